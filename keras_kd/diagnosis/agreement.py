"""How a teacher's predictions agree with the labels, and with other labels.

Kept on the host, in tables whose size does not grow with the data: which class
is predicted for which label, in two halves of the examples, so that what is
found on one half can be tested on the other; and how often a prediction is the
label of another row, or a class a few places away.
"""

import numpy as np
import scipy

# A table for each half, of at most this many classes.
_MOST_CLASSES = 2048
# Neighbouring rows that labels may have been shifted by.
_MOST_OFFSET = 8
# Class ids may be counted from 1, or after one background class or two.
_MOST_SHIFT = 2
# A label with fewer examples in a half says nothing of where it is predicted.
_FEWEST_EXAMPLES = 5
_PICTURED_CLASSES = 100


class Agreement:
    """Counts of labels against predictions.

    Args:
        num_classes: integer.
    """

    def __init__(self, num_classes):
        self.num_classes = num_classes
        shape = (2, num_classes, num_classes)
        self.halves = (
            np.zeros(shape, "int32") if num_classes <= _MOST_CLASSES else None
        )
        self.offsets = dict.fromkeys(_both_signs(_MOST_OFFSET), 0)
        self.pairs = dict.fromkeys(self.offsets, 0)
        self.shifts = dict.fromkeys(_both_signs(_MOST_SHIFT), 0)
        self.examples = 0
        self._last = np.zeros((2, 0), "int64")

    def add(self, labels, predicted, kept):
        """Adds a batch.

        Args:
            labels: [examples] class ids.
            predicted: [examples] class ids.
            kept: [examples] booleans, which examples count.
        """
        labels = np.where(kept, labels, -1)
        predicted = np.where(kept, predicted, -2)
        self._add_offsets(labels, predicted)
        labels, predicted = labels[kept], predicted[kept]
        for shift in self.shifts:
            self.shifts[shift] += np.count_nonzero(predicted == labels + shift)
        if self.halves is not None:
            half = (self.examples + np.arange(len(labels))) % 2
            np.add.at(self.halves, (half, labels, predicted), 1)
        self.examples += len(labels)

    def _add_offsets(self, labels, predicted):
        """Counts predictions that are the label of a row nearby."""
        before = self._last.shape[1]
        labels = np.concatenate([self._last[0], labels])
        predicted = np.concatenate([self._last[1], predicted])
        for offset in self.offsets:
            size = abs(offset)
            # Only pairs that have a new row.
            start = max(before, size)
            late, early = slice(start, None), slice(start - size, -size)
            one, other = (early, late) if offset > 0 else (late, early)
            here, there = predicted[one], labels[other]
            both = (here >= 0) & (there >= 0)
            self.offsets[offset] += np.count_nonzero(both & (here == there))
            self.pairs[offset] += np.count_nonzero(both)
        self._last = np.stack([labels, predicted])[:, -_MOST_OFFSET:]


def _both_signs(most):
    return [n for n in range(-most, most + 1) if n]


def agreement_numbers(agreement, totals):
    """Numbers about labels and predictions.

    Args:
        agreement: an `Agreement`.
        totals: the sums of a `Survey`.

    Returns:
        A dict.
    """
    n = max(totals["examples"], 1)
    labels = totals["class_examples"] / n
    predicted = totals["class_predicted"] / n
    accuracy = totals["correct"] / n
    chance = float(labels @ predicted)
    numbers = {
        # What independent predictions of the same frequencies would get.
        "chance": chance,
        "above_chance": (accuracy - chance) / max(1 - chance, 1e-9),
        "label_entropy": _entropy(labels),
        "prediction_entropy": _entropy(predicted),
        "predicted_without_label": predicted[labels == 0].sum(),
        "error_awareness": _error_awareness(totals["confidence_bins"]),
        "offset": _best_offset(agreement),
        "shift": _best_shift(agreement),
        "dependence": None,
        "assignment": None,
        "table": None,
    }
    if agreement.halves is not None:
        numbers |= {
            "dependence": _dependence(agreement.halves.sum(0)),
            "assignment": _assignment(agreement.halves, labels),
            "table": _table(agreement.halves.sum(0)),
        }
    return numbers


def _entropy(shares):
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _error_awareness(bins):
    """How likely a right prediction is surer than a wrong one (0.5: chance)."""
    count, _, correct = bins
    wrong = count - correct
    if not correct.sum() or not wrong.sum():
        return None
    below = np.cumsum(wrong) - wrong
    pairs = correct @ (below + wrong / 2)
    return float(pairs / (correct.sum() * wrong.sum()))


def _best_offset(agreement):
    """The row offset at which most predictions are the label."""
    shares = {
        offset: agreement.offsets[offset] / pairs
        for offset, pairs in agreement.pairs.items()
        if pairs
    }
    if not shares:
        return None
    best = max(shares, key=shares.get)
    return {"rows": best, "agreement": shares[best]}


def _best_shift(agreement):
    """The number to add to the labels so that most predictions are right."""
    best = max(agreement.shifts, key=agreement.shifts.get)
    return {
        "classes": best,
        "agreement": agreement.shifts[best] / max(agreement.examples, 1),
    }


def _dependence(table):
    """Cramér's V of labels and predictions, without its bias: 0 to 1.

    Source: Bergsma 2013, "A bias-correction for Cramér's V and Tschuprow's T".
    """
    table = table[table.sum(1) > 0][:, table.sum(0) > 0].astype("float64")
    rows, columns = table.shape
    n = table.sum()
    if min(rows, columns) < 2 or n < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / n
    squared = ((table - expected) ** 2 / expected).sum() / n
    squared = max(squared - (rows - 1) * (columns - 1) / (n - 1), 0)
    rows, columns = (k - (k - 1) ** 2 / (n - 1) for k in (rows, columns))
    return float(np.sqrt(squared / max(min(rows, columns) - 1, 1e-9)))


def _assignment(halves, frequencies):
    """The best one-to-one mapping of labels on predicted classes.

    It is found on the first half of the examples, and everything said of it is
    counted on the second.

    Returns:
        A dict, or `None` if no label has enough examples.
    """
    first, second = halves.astype("float64")
    known = np.flatnonzero(first.sum(1) >= _FEWEST_EXAMPLES)
    if not len(known):
        return None
    rows, columns = scipy.optimize.linear_sum_assignment(
        first[known], maximize=True
    )
    mapping = np.full(len(first), -1)
    mapping[known[rows]] = columns
    # A label that is hardly ever predicted as its partner tells nothing.
    tested = second[known]
    n = max(tested.sum(), 1)
    moved = known[mapping[known] != known]
    at_partner = second[known, mapping[known]].sum() / n
    own, partner = second[moved, moved].sum(), second[moved, mapping[moved]]
    of_moved = max(second[moved].sum(), 1)
    likeliest = first[known].argmax(1)
    shift = _common_shift(known, mapping[known], len(first))
    return {
        "mapping": [[int(c), int(mapping[c])] for c in known],
        "accuracy": at_partner,
        "accuracy_unmapped": second[known, known].sum() / n,
        "examples": int(n),
        "moved": len(moved),
        "moved_share": float(frequencies[moved].sum()),
        "moved_examples": int(second[moved].sum()),
        "moved_accuracy": partner.sum() / of_moved,
        "moved_accuracy_unmapped": own / of_moved,
        # 1 where each label is predicted as a class of its own.
        "distinct": len(np.unique(likeliest)) / len(known),
        "shift": shift,
        # Whether the shifted labels start again from 0.
        "wraps": bool(
            shift
            and (mapping[known] == (known + shift) % len(first))[
                (known + shift < 0) | (known + shift >= len(first))
            ].any()
        ),
    }


def _common_shift(labels, classes, num_classes):
    """The one number that most labels are off by, or `None`."""
    if num_classes < 3:
        return None
    shifts, counts = np.unique(
        (classes - labels) % num_classes, return_counts=True
    )
    best = int(shifts[counts.argmax()])
    if not best or counts.max() < 0.8 * len(labels):
        return None
    return best if best <= num_classes // 2 else best - num_classes


def _table(table):
    """Shares of predictions by label, of so many classes as can be seen."""
    step = -(-len(table) // _PICTURED_CLASSES)
    starts = np.arange(0, len(table), step)
    summed = np.add.reduceat(
        np.add.reduceat(table, starts, axis=0), starts, axis=1
    )
    return {
        "classes_in_cell": step,
        "shares": summed / np.maximum(summed.sum(1, keepdims=True), 1),
    }
