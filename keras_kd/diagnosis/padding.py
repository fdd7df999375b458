"""Padding that counts as examples: what fills sequences up to one length."""

import keras
import numpy as np

# Fewer alike steps at an end of a sequence may be its own.
_SHORTEST = 2
# Padding is hardly anything else: a word that is said twice at an end is.
_NOWHERE_ELSE = 0.9
# So many of the labels beside padding are one class. Of padding on the left,
# the last step has the first token for its label.
_ONE_LABEL = 0.5


def padding_numbers(batches):
    """What of some batches is padding, and counts all the same.

    Padding is what many sequences end, or begin, with: one step over and over,
    with one label.

    Args:
        batches: list of `examples.Examples`, of sequences.

    Returns:
        A dict: at which "side" it is ("end" or "start"); its "class", the
        label there; its "step", the input there (`None` where that is not one
        number); the "rows" that have it, of so many "sequences"; and the
        "share" of it in the labels that count. `None` if there is none.
    """
    rows = [row for batch in batches for row in _rows(batch)]
    from_end = [tuple(part[::-1] for part in row) for row in rows]
    found = [_padding(rows, "start"), _padding(from_end, "end")]
    found = [numbers for numbers in found if numbers is not None]
    return max(found, key=lambda numbers: numbers["share"], default=None)


def _rows(batch):
    """Steps [time, n], labels and counted [time], of each of the sequences.

    A step is what all inputs that have one for each label say of it: a mask or
    the number of a segment alone is the same for many.
    """
    steps = []
    for x in map(np.asarray, keras.tree.flatten(batch.x)):
        labels = batch.labels.reshape(len(x), -1)
        if x.dtype.kind in "biuf" and x.shape[:2] == labels.shape:
            steps.append(x.reshape(*labels.shape, -1))
    if not steps:
        return ()
    steps = np.concatenate(steps, axis=-1)
    counted = batch.counted.reshape(labels.shape)
    return zip(steps, labels, counted, strict=True)


def _padding(rows, side):
    """The padding that sequences begin with, or `None`."""
    runs = [(_alike(steps), steps, *others) for steps, *others in rows]
    runs = [run for run in runs if _SHORTEST <= run[0] < len(run[1])]
    if not runs:
        return None
    step = _commonest([steps[0] for _, steps, _, _ in runs])
    runs = [run for run in runs if (run[1][0] == step).all()]
    everywhere = sum((steps == step).all(axis=1).sum() for steps, _, _ in rows)
    if sum(run[0] for run in runs) < _NOWHERE_ELSE * everywhere:
        return None
    beside = [
        labels[:length][counted[:length]] for length, _, labels, counted in runs
    ]
    labels = np.concatenate(beside)
    if not len(labels):
        return None
    label = _commonest(labels)
    if (labels == label).mean() < _ONE_LABEL:
        return None
    return {
        "side": side,
        "class": label,
        "step": step[0] if len(step) == 1 else None,
        "rows": sum(label in each for each in beside),
        "sequences": len(rows),
        "share": (labels == label).sum() / sum(row[2].sum() for row in rows),
    }


def _alike(steps):
    """How many of the first steps are the same."""
    differs = (steps != steps[:1]).any(axis=1)
    return int(differs.argmax()) if differs.any() else len(steps)


def _commonest(values):
    """The commonest of [n] or [n, features] values."""
    values, counts = np.unique(values, axis=0, return_counts=True)
    return values[counts.argmax()]
