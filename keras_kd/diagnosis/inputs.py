"""What a teacher's inputs look like, and whether it was trained on such."""

import keras
import numpy as np
from keras import ops

from keras_kd.diagnosis import normalisers, trials
from keras_kd.states import state_variables

# Rows that are run once more, without compilation.
_ROWS = 64
# And so many for a batch's statistics.
_BATCH = 128


class Inputs:
    """A few inputs of a data set, and what a teacher makes of them.

    Args:
        survey: a `Survey` that has run.
    """

    def __init__(self, survey):
        self._survey = survey
        self._rows = survey.samples.rows()
        self._numbers = None
        # To run a teacher that carries a state would change it.
        self._runs = not state_variables(survey.teacher.model)

    def numbers(self, with_forms=False):
        """Numbers about the inputs.

        Args:
            with_forms: whether to try them in other forms, which takes the
                time of some batches.

        Returns:
            A dict: "looks", a summary of the values; "normalisers", what the
            teacher's first normalisation layers meet and expect; "averages",
            how far those of batch normalisation have come, and what the
            teacher gets right without them, or `None`; and "form", one in
            which it gets more right, or `None`. `None` for models that take
            several inputs, or ragged or sparse ones.
        """
        if self._rows is None:
            return None
        x = self._rows[0]
        if self._numbers is None:
            self._numbers = {"looks": _looks(x), "form": None}
            self._numbers["averages"] = None
            self._numbers["normalisers"] = self._normalisers(x[:_ROWS])
        if with_forms and self._runs:
            self._numbers["form"] = trials.best_form(
                x, self._right, self._rare()
            )
            self._numbers["averages"] = self._averages(x[:_BATCH])
        return self._numbers

    def _normalisers(self, x):
        if not self._runs or self._survey.batch_size is not None:
            return []
        return normalisers.compare(self._survey.teacher.model, self._nested(x))

    def _nested(self, x):
        return keras.tree.pack_sequence_as(self._survey.input_spec, [x])

    def _averages(self, x):
        """What the teacher gets right by the statistics of these rows."""
        if self._survey.batch_size is not None:
            return None
        teacher = self._survey.teacher
        outputs, numbers = normalisers.by_the_batch(
            teacher.model, self._nested(x)
        )
        if numbers is None:
            return None
        _, labels, counted = (each[: len(x)] for each in self._rows)
        logits = ops.convert_to_numpy(teacher.single(outputs))
        right = logits.argmax(-1).reshape(labels.shape) == labels
        return {
            **numbers,
            "accuracy": right[counted].mean() if counted.any() else 0.0,
            "examples": int(counted.sum()),
        }

    def _rare(self):
        """Which labels of the rows are not the commonest one."""
        _, labels, counted = self._rows
        if not counted.any():
            return counted
        occurring, counts = np.unique(labels[counted], return_counts=True)
        return counted & (labels != occurring[counts.argmax()])

    def _right(self, x):
        """Whether the teacher is right on other forms of the first rows."""
        _, labels, counted = self._rows
        n, size = len(x), self._survey.batch_size or len(x)
        parts = []
        for start in range(0, n, size):
            # Where batches have a fixed size, the last row fills them.
            take = np.minimum(np.arange(start, start + size), n - 1)
            hits = self._survey.right(x[take], labels[take], counted[take])
            parts.append(hits[: n - start])
        return np.concatenate(parts)


def _looks(x):
    """Shape, type and range of the inputs, and their means by channel."""
    looks = {"shape": list(x.shape[1:]), "dtype": str(x.dtype)}
    if x.dtype.kind not in "iuf" or not x.size:
        return looks
    values = np.where(np.isfinite(x), x, 0).astype("float64")
    looks |= {
        "least": values.min(),
        "most": values.max(),
        "mean": values.mean(),
        "deviation": values.std(),
    }
    if x.ndim > 2 and x.shape[-1] <= 4:
        others = tuple(range(x.ndim - 1))
        looks["channel_means"] = values.mean(others)
        looks["channel_deviations"] = values.std(others)
    return looks
