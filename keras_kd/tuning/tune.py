"""`tune`: the search, and the comparison on fresh seeds after it."""

import contextlib
import math
import operator
import pathlib
import warnings

import numpy as np

from keras_kd.attribution import METHODS as ATTRIBUTED
from keras_kd.attribution import attribute
from keras_kd.files import kept_path
from keras_kd.monitors import DivergedError
from keras_kd.reports.terminal import say
from keras_kd.tuning.advice import advice_of
from keras_kd.tuning.budget import Budget
from keras_kd.tuning.outcome import (
    DEFAULT_KD,
    WINNER,
    Tuning,
    best,
    counted,
    score_of,
    short,
)
from keras_kd.tuning.spaces import (
    BASELINES,
    LEARNING_RATE,
    PLAIN,
    SMOOTHING,
    SPACES,
    spaces,
    starts,
)

# Fresh seeds are so far from the seed of the search.
_FRESH = 1000


def tune(
    trainer,
    seconds=None,
    epochs=None,
    methods=None,
    space=None,
    learning_rate=None,
    folder=None,
    fresh_seeds=3,
    seed=0,
    sampler=None,
    pruner=None,
    verbose=True,
):
    """Finds the best loss for a student, and its settings, within a budget.

    Students are trained with every method at its defaults, with what a
    diagnosis of the teacher suggests, and then with what Optuna's sampler
    proposes; those that fall behind are stopped early. Plain training and
    label smoothing each get an even share of the training and begin with
    learning rates spread over the whole range, and plain training tries the
    winner's as well, so that what the teacher is worth is measured against
    students that were tuned as well, and a learning rate is not taken for it.

    The best of many trials is partly the luckiest. So the winner, plain
    training at its best and KD at its defaults are then trained with seeds
    that the search did not use, and their differences are reported with
    paired intervals. The time for that is part of the budget.

    The search chooses by the scores of the validation data. The comparison is
    measured on the trainer's `test` data, by which nothing was chosen; of a
    trainer without any it is on the validation data as well, and a finding
    says so. Where the score of each example is known, intervals hold what
    other seeds and what other examples would change.

    Args:
        trainer: a `keras_kd.StudentTrainer`, with `test` data.
        seconds: the budget, of all calls with the same `folder` together.
        epochs: the budget in epochs of students, instead of `seconds`. What is
            found then does not depend on how fast the machine is.
        methods: names of the losses to try, beside plain training and label
            smoothing; by default all that the trainer can train.
        space: optional dict by method of dicts by setting of a range (low,
            high), a list of choices, or the one value to keep, in place of
            those of `keras_kd.tuning.SPACES`. `{"kd": {"temperature": (2, 8),
            "weight": 0.9}}` searches KD's temperature alone.
        learning_rate: optional range (low, high), searched with every method.
        folder: optional path of what is kept; a call that was killed resumes
            with it, and a larger budget continues the search. One call at a
            time. A leading `~` is the home folder.
        fresh_seeds: how many seeds compare the winner with plain training.
        seed: integer, of the students in the search, and of the sampler.
        sampler: optional `optuna.samplers.BaseSampler`; by default TPE.
        pruner: optional `optuna.pruners.BasePruner`, which stops students
            that fall behind; by default the worst quarter, at half time.
        verbose: whether to print a line for each student.

    Returns:
        A `Tuning`.

    Raises:
        ImportError: without Optuna.
        TypeError: if `trainer` is a function.
        ValueError: for a budget that is too small, which is known after one
            student at the latest; a trainer that evaluates no epoch; a method
            that the trainer can't train, or without a teacher; a space that a
            loss does not take; a folder of another search; or a metric that is
            not logged.
        OSError: if a trial can't be kept, such as on a full disk, or another
            call uses the folder.

    Example:
    ```python
    trainer = kd.StudentTrainer(
        make_student, train, validation, test=test, teacher=teacher, epochs=10
    )
    result = kd.tune(trainer, seconds=3600, folder="runs/tuning")
    print(result)
    result.save("tuning.html")
    distiller.compile("adam", loss=result.loss)
    ```

    Source: Akiba et al. 2019, "Optuna: A Next-generation Hyperparameter
    Optimization Framework" (arXiv 1907.10902); Bergstra et al. 2011,
    "Algorithms for Hyper-Parameter Optimization", for the sampler.
    """
    _require_optuna()
    if not hasattr(trainer, "methods"):
        raise TypeError(
            "`tune` asks a trainer for students of several settings. Received: "
            f"{trainer!r}. Pass a keras_kd.StudentTrainer; a function of a "
            "method and a seed is for keras_kd.attribute."
        )
    _check_arguments(seconds, epochs, fresh_seeds, learning_rate)
    # NumPy's numbers would not fit into files.
    seconds, epochs, seed, fresh_seeds, learning_rate = (
        None if each is None else np.asarray(each).tolist()
        for each in (seconds, epochs, seed, fresh_seeds, learning_rate)
    )
    if folder is not None:
        folder = kept_path(folder, "folder")
    methods = _methods(trainer, methods)
    _check_evaluated(trainer)
    # What losses don't take is refused before anything is written or trained.
    spaces(methods, space, learning_rate)
    with _quiet_optuna():
        call = _Call(
            trainer,
            Budget(seconds, epochs, trainer),
            methods,
            fresh_seeds,
            learning_rate,
            verbose,
        )
        with call.opened(folder, space, seed, sampler, pruner):
            call.search()
            return call.result()


class _Call:
    """One call of `tune`; arguments as there.

    Args:
        budget: `Budget`.
    """

    def __init__(
        self, trainer, budget, methods, fresh_seeds, learning_rate, verbose
    ):
        self.trainer, self.budget, self.methods = trainer, budget, methods
        self.learning_rate = learning_rate
        self.fresh_seeds, self.verbose = fresh_seeds, verbose
        # What the budget must suffice for.
        self.needed = [m for m in (*BASELINES, DEFAULT_KD) if m in methods]
        if learning_rate is not None:
            self.needed.append("plain with the winner's learning rate")
        self.final_runs = fresh_seeds * min(len(methods), 3)
        self._check_budget()

    @contextlib.contextmanager
    def opened(self, folder, space, seed, sampler, pruner):
        """A context in which no other call uses the folder."""
        from keras_kd.tuning.search import open_storage

        with open_storage(folder) as storage:
            self._begin(folder, storage, space, seed, sampler, pruner)
            yield

    def _begin(self, folder, storage, space, seed, sampler, pruner):
        """Reads what is kept, and puts in line what is to be tried first."""
        from keras_kd.tuning import search

        trainer = self.trainer
        self.record = search.Record(storage)
        self.record.claim(
            folder,
            study=trainer.study,
            metric=trainer.metric,
            higher_is_better=trainer.higher_is_better,
            epochs=trainer.epochs,
            methods=self.methods,
            space=space,
            learning_rate=self.learning_rate,
            seed=seed,
        )
        self.folder, self.seed = folder, seed
        self.budget.resume(self.record.get("spent"))
        self.advice = self._take_advice()
        self.spaces = spaces(
            self.methods, space, self.learning_rate, self.advice
        )
        self.searched = search.Search(
            trainer, self.spaces, storage, seed, sampler, pruner
        )
        self._spend(self.searched.retry_the_dead())
        self.budget.learn(self.searched.trials)
        self.searched.add_starts(
            starts(
                self.spaces,
                lambda method: self._defaults(method, self.learning_rate),
                self.advice,
            )
        )

    def _defaults(self, method, learning_rate=None):
        """Settings with which a method is tried first, and more."""
        own = _loss(self.trainer, method, {}).get_config()
        if method == SMOOTHING:
            # Only the product counts, and the weight is not searched.
            own |= {"smoothing": own["smoothing"] * own["weight"], "weight": 1}
        rate = _first_rate(self.trainer, learning_rate)
        return {**own, LEARNING_RATE: rate}

    def _take_advice(self):
        """What the teacher's diagnosis suggests, in every call the same."""
        advice = self.record.get("advice")
        if advice is None:
            advice = self._diagnosed()
            self.record.set("advice", advice)
        self._say(" ".join(advice["verdict"]) or advice.get("why_not"))
        return advice

    def _diagnosed(self):
        """Advice, without any where the teacher can't be diagnosed."""
        try:
            return advice_of(self.trainer.diagnosis())
        except (TypeError, ValueError) as error:
            # Students are trained on more kinds of data than it takes.
            why = str(error).split(". ", 1)[0]
            why = f"No diagnosis of the teacher advised the search: {why}."
            return {**advice_of(None), "why_not": why}

    def search(self):
        """Trains students as long as the budget allows."""
        # What it leaves must suffice for the comparison.
        searches_rates = self.learning_rate is not None
        rest = self.final_runs + searches_rates
        while (group := self.searched.next_group()) is not None:
            if not self.budget.allows(rest + 1):
                break
            was_known = self.budget.per_student is not None
            self._count(self.searched.run(group))
            if not was_known:
                self._check_budget()
        if searches_rates and self.budget.allows(rest):
            rate = self._best().settings[LEARNING_RATE]
            self._count(self.searched.try_rate(PLAIN, rate))

    def _count(self, trial):
        """Counts and prints a trial, if there was one."""
        if trial is not None:
            self._spend(counted(trial.epochs))
            self.budget.learn([trial])
            self._say(self._line(trial))

    def result(self):
        """Compares the winner on fresh seeds: a `Tuning`."""
        winner, plain = self._best(), self._best(PLAIN)
        students = {PLAIN: (PLAIN, plain.settings)}
        if DEFAULT_KD in self.methods:
            own = self._defaults(DEFAULT_KD)
            settings = {name: own[name] for name in SPACES[DEFAULT_KD]}
            students[DEFAULT_KD] = (DEFAULT_KD, settings)
        chosen = (winner.method, winner.settings)
        names = [n for n, each in students.items() if self._alike(each, chosen)]
        if not names:
            students[WINNER] = chosen
        final = self._compare(students, (plain.number, winner.number))
        return Tuning(
            trials=self.searched.trials,
            final=final,
            winner=winner,
            winner_name=names[0] if names else WINNER,
            loss=_loss(self.trainer, *chosen),
            plain=plain,
            metric=self.trainer.metric,
            higher_is_better=self.trainer.higher_is_better,
            importance=self.searched.importance(),
            spent=self.budget.spent,
            verdict=self.advice["verdict"],
            no_advice=self.advice.get("why_not"),
            scored_on=getattr(self.trainer, "scored_on", None),
            methods=tuple(self.methods),
        )

    def _alike(self, one, other):
        """Whether students differ in no setting, be it said or a default."""
        return one[0] == other[0] and self._whole(*one) == self._whole(*other)

    def _whole(self, method, settings):
        """All settings of a student."""
        own = getattr(self.trainer, "learning_rate", None)
        rate = settings.get(LEARNING_RATE, own)
        config = _loss(self.trainer, method, settings).get_config()
        # Of which each loss has another one.
        config.pop("name", None)
        return {**config, LEARNING_RATE: rate}

    def _best(self, method=None):
        """The best finished trial, of all or of one method."""
        trials = self.searched.trials
        found = best(trials, self.trainer.higher_is_better, method)
        if found is None:
            raise ValueError(
                "No student's training came to an end"
                f"{f' with {method!r}' if method else ''}. Received: "
                f"{len(trials)} trials that diverged or were stopped. Lower "
                "the learning rate of the trainer, or the range given here."
            )
        return found

    def _compare(self, students, trials):
        """Trains students on seeds that the search did not use."""
        seeds = [self.seed + _FRESH + n for n in range(self.fresh_seeds)]

        def train(name, seed):
            method, settings = students[name]
            place = f"fresh seed {seeds.index(seed) + 1}/{len(seeds)} {name}"
            try:
                result = self.trainer.train(method, seed, settings)
            except DivergedError:
                self._spend(self.trainer.epochs)
                self._say(f"{place}: left out, as it diverged")
                raise
            self._spend(self.trainer.epochs)
            score = score_of(result, self.trainer.metric)
            self._say(f"{place}: {self.trainer.metric} {short(score)}")
            return result

        folder = self.folder
        if folder is not None:
            # Of other trials than before, where the search went on.
            name = "final-{}-{}".format(*trials)
            folder = pathlib.Path(folder) / name
        return attribute(
            train,
            seeds,
            methods=list(students),
            folder=folder,
            metric=self.trainer.metric,
            higher_is_better=self.trainer.higher_is_better,
            study={"students": students, "study": self.trainer.study},
            verbose=False,
        )

    def _spend(self, epochs):
        self.budget.add(epochs)
        self.record.set("spent", self.budget.spent)

    def _check_budget(self):
        self.budget.check(self.needed, self.final_runs)

    def _line(self, trial):
        """What is printed of a trial."""
        metric, epochs = self.trainer.metric, self.trainer.epochs
        if trial.state == "finished":
            is_best = trial.number == self._best().number
            said = f"{metric} {short(trial.score)}{', the best' * is_best}"
        else:
            said = f"stopped after {trial.epochs} of {epochs} epochs"
            said += "".join(f" at {short(s)}" for s in trial.curve[-1:])
        return f"{self.budget.share_spent:4.0%} {trial}: {said}"

    def _say(self, text):
        if self.verbose and text:
            say(text)


def _loss(trainer, method, settings):
    """The loss of a method as the trainer makes it."""
    return trainer.loss(
        method, {k: v for k, v in settings.items() if k != LEARNING_RATE}
    )


def _first_rate(trainer, learning_rate):
    """The learning rate to start from: the trainer's, or the middle one."""
    if learning_rate is None:
        return None
    own = getattr(trainer, "learning_rate", None)
    low, high = learning_rate
    return math.sqrt(low * high) if own is None else own


def _methods(trainer, methods):
    """Names of what is tried, plain training first, refused if unknown."""
    if methods is None:
        own = [m for m in trainer.methods if m not in ATTRIBUTED]
        methods = [m for m in (*SPACES, *own) if m in trainer.methods]
    if isinstance(methods, str):
        raise ValueError(
            f"`methods` is a list of names. Received: {methods!r}. Pass "
            f"[{methods!r}]."
        )
    methods = list(dict.fromkeys((*BASELINES, *methods)))
    unknown = [m for m in methods if m not in trainer.methods]
    if unknown and trainer.teacher is None and unknown[0] in SPACES:
        raise ValueError(
            "A loss needs a teacher that the trainer does not have. Received: "
            f"the method {unknown[0]!r}, where it has "
            f"{', '.join(trainer.methods)}. Pass it `teacher`, or leave "
            "`methods` out."
        )
    if unknown:
        raise ValueError(
            "The trainer can't train such a student. Received: the method "
            f"{unknown[0]!r}, where it has {', '.join(trainer.methods)}. "
            "Choose among these."
        )
    return methods


def _check_arguments(seconds, epochs, fresh_seeds, learning_rate):
    if (seconds is None) == (epochs is None):
        raise ValueError(
            "A budget is a number of seconds, or of epochs of students. "
            f"Received: seconds={seconds}, epochs={epochs}. Give one of them, "
            "such as seconds=3600."
        )
    if not (epochs if seconds is None else seconds) > 0:
        raise ValueError(
            f"A budget must be above 0. Received: seconds={seconds}, epochs="
            f"{epochs}. Give one such as seconds=3600."
        )
    if operator.index(fresh_seeds) < 2:
        raise ValueError(
            "The interval of the final comparison needs at least two seeds. "
            f"Received: fresh_seeds={fresh_seeds}. Leave it out for three."
        )
    if learning_rate is not None and not (
        isinstance(learning_rate, tuple)
        and len(learning_rate) == 2
        and 0 < learning_rate[0] < learning_rate[1]
    ):
        raise ValueError(
            "`learning_rate` is the range to search, two numbers above 0. "
            f"Received: {learning_rate!r}. Give (1e-4, 1e-2), for example, or "
            "leave it out to keep the trainer's."
        )


def _check_evaluated(trainer):
    if getattr(trainer, "evaluated_epochs", None) == ():
        raise ValueError(
            "A search chooses by the validation scores of students. Received: "
            f"a trainer that evaluates none of its {trainer.epochs} epochs. "
            "Lower its `validation_freq`."
        )


def _require_optuna():
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`tune` searches with Optuna. Received: no module of that name. "
            "Run pip install 'keras_kd[tune]', or pip install optuna."
        ) from error


@contextlib.contextmanager
def _quiet_optuna():
    """Optuna without a line for each trial, nor one for what is not final."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            category = optuna.exceptions.ExperimentalWarning
            warnings.simplefilter("ignore", category)
            yield
    finally:
        optuna.logging.set_verbosity(before)
