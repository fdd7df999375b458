"""What a teacher's inputs look like, and whether it was trained on such."""

import keras
import numpy as np

from keras_kd.diagnosis import normalisers, trials
from keras_kd.states import state_variables

# Rows that are run once more, without compilation.
_ROWS = 64


def input_numbers(survey):
    """Numbers about the inputs of a teacher that gets few labels right.

    Args:
        survey: a `Survey` that has run.

    Returns:
        A dict: "looks", a summary of the values; "normalisers", what the
        teacher's first normalisation layers meet and expect; and "form", a
        form of the inputs in which it gets more right. `None` for models that
        take several inputs.
    """
    rows = survey.samples.rows()
    if rows is None:
        return None
    x, labels, counted = rows
    numbers = {"looks": _looks(x), "normalisers": [], "form": None}
    # To run a teacher that carries a state would change it.
    if state_variables(survey.teacher.model):
        return numbers
    size = survey.batch_size
    if size is None:
        numbers["normalisers"] = normalisers.compare(
            survey.teacher.model,
            keras.tree.pack_sequence_as(survey.input_spec, [x[:_ROWS]]),
        )

    def right(changed):
        n = len(changed)
        if size is None:
            return survey.right(changed, labels[:n], counted[:n])
        # A fixed number of rows: the last one is repeated to fill them.
        parts = []
        for start in range(0, n, size):
            take = np.minimum(np.arange(start, start + size), n - 1)
            hits = survey.right(changed[take], labels[take], counted[take])
            parts.append(hits[: n - start])
        return np.concatenate(parts)

    numbers["form"] = trials.best_form(x, right)
    return numbers


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
