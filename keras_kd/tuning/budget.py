"""What a search may cost, what it has cost, and what a student costs."""

import time

from keras_kd.tuning.outcome import in_words


class Budget:
    """A number of seconds, or of epochs of students.

    Args:
        seconds: float, or `None`.
        epochs: integer, or `None`; one of the two is given.
        trainer: as in `keras_kd.tune`.
    """

    def __init__(self, seconds, epochs, trainer):
        self._unit = "seconds" if epochs is None else "epochs"
        self._limit = seconds if epochs is None else epochs
        self._trainer, self._began = trainer, time.perf_counter()
        self._seconds, self._epochs = 0.0, 0
        self._by_method = {}

    def resume(self, spent):
        """Counts what earlier calls spent.

        Args:
            spent: what `spent` was; or `None`.
        """
        if spent is not None:
            self._seconds, self._epochs = spent["seconds"], spent["epochs"]

    @property
    def spent(self):
        """Dict of "seconds" and "epochs", in all calls."""
        return {
            "seconds": self._seconds + time.perf_counter() - self._began,
            "epochs": self._epochs,
        }

    @property
    def share_spent(self):
        """Share of the budget that is spent."""
        return self.spent[self._unit] / self._limit

    def add(self, epochs):
        """Counts epochs of training."""
        self._epochs += epochs

    def learn(self, trials):
        """Takes from finished trials what a student costs in seconds."""
        # The first of a method may have waited for the teacher's cache, so
        # that its shortest time says most.
        for trial in trials:
            if trial.state == "finished":
                shortest = self._by_method.get(trial.method, float("inf"))
                self._by_method[trial.method] = min(shortest, trial.seconds)

    @property
    def per_student(self):
        """The cost of one student; `None` as long as it is not known."""
        if self._unit == "epochs":
            return self._trainer.epochs
        if self._by_method:
            return max(self._by_method.values())
        return self._trainer.seconds_per_student

    def allows(self, students):
        """Whether so many students more are within the budget."""
        cost = students * (self.per_student or 0.0)
        return self.spent[self._unit] + cost <= self._limit

    def check(self, search, final):
        """Refuses a budget in which nothing can be found.

        Args:
            search: list of the students that the search needs at the least.
            final: how many the final comparison needs.

        Raises:
            ValueError: if it is too small; it says what one student takes.
        """
        if self.per_student is None:
            return
        least = (len(search) + final) * self.per_student
        if least <= self._limit:
            return
        one, all_of_them = (
            self._in_words(n) for n in (self.per_student, least)
        )
        raise ValueError(
            f"The budget is too small to find anything. Received: {self._unit}="
            f"{self._limit:g}, where one student takes {one}; the search needs "
            f"one of each of {', '.join(search)}, and the comparison on fresh "
            f"seeds {final} more: {all_of_them} in all. Raise the budget, or "
            "lower the number of fresh seeds or the epochs of a student."
        )

    def _in_words(self, cost):
        return in_words(cost) if self._unit == "seconds" else f"{cost} epochs"
