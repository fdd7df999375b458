"""Class relations in a teacher's soft targets, as sums of a fixed size."""

import heapq

import keras
import numpy as np
from keras import ops

from keras_kd import backend

# Entries of a per-class profile: all classes up to 2,048, else the first rows.
PROFILE_CELLS = 2**22
# Random groups of the control, of which groups as large as classes are made.
_MOST_GROUPS = 4096
# A mean of fewer other examples says nothing about a class.
_FEWEST_OTHERS = 5
# A class this likely competes with the label.
_STRONG = 0.25
# Cross-entropy has no gradient left where the label's logit is this far above
# every other; memorised training data end at 15 to 40.
FAR_AHEAD = 100
# A class whose logit is so far below the largest is ruled out, as padding of a
# vocabulary and illegal moves are, by adding -100, -1e4 or -inf. That says
# nothing of the scale of the other logits.
_RULED_OUT_BELOW = 75


class Relations:
    """What the non-target part of soft targets says, by label.

    Means by class are kept on the device as the data go by, in two
    [rows, classes] tables; the rows are the first classes, as many as
    `PROFILE_CELLS` allows. Each example is compared with the mean of the
    *other* examples of its label seen so far, so that what they have in
    common is not an artefact of counting it on both sides.

    The control is of the same examples by groups instead of by labels. Each
    draws its group alone, so that it does not matter in which order they come
    and in which batches; in the end groups are joined until they are as large
    as the classes, so far as that can be. That is as if labels were shuffled,
    which keeps all but the relation to the label.

    Args:
        num_classes: integer, at least 3.
        temperature: float above 0, of the soft targets.
    """

    def __init__(self, num_classes, temperature):
        self.num_classes = num_classes
        self.temperature = temperature
        self.rows = max(min(num_classes, PROFILE_CELLS // num_classes), 1)
        shape = (self.rows, num_classes)
        self.groups = min(_MOST_GROUPS, max(PROFILE_CELLS // num_classes, 1))
        # Sums of non-target probabilities.
        self.by_label = _zeros(shape)
        self.by_group = _zeros((self.groups, num_classes))
        self.log_profiles = _zeros(shape)
        self.counts = _zeros((self.rows,))
        self.group_counts = _zeros((self.groups,))

    @property
    def variables(self):
        """List of the tables, which `batch_sums` changes."""
        return [
            self.by_label,
            self.by_group,
            self.log_profiles,
            self.counts,
            self.group_counts,
        ]

    def totals(self):
        """Dict of the tables, as float64 NumPy arrays.

        The control's rows are groups joined to the size of the classes.
        """
        by_label, by_group, counts, group_counts = (
            ops.convert_to_numpy(table).astype("float64")
            for table in (
                self.by_label,
                self.by_group,
                self.counts,
                self.group_counts,
            )
        )
        rows = _classes_of_groups(group_counts, counts)
        control, control_counts = np.zeros_like(by_label), np.zeros_like(counts)
        np.add.at(control, rows, by_group)
        np.add.at(control_counts, rows, group_counts)
        return {
            "relations": by_label,
            "control": control,
            "profile_counts": np.stack([counts, control_counts]),
        }

    def batch_sums(self, labels, keep, logits, groups):
        """Records a batch.

        Args:
            labels: [examples] int32, inside [0, classes).
            keep: [examples] float32, 1 for examples that count, else 0.
            logits: [examples, classes] float32, the teacher's.
            groups: [examples] int32, drawn from [0, `self.groups`).

        Returns:
            Dict of sums.
        """
        at_label = ops.expand_dims(labels, -1)
        is_label = at_label == ops.arange(self.num_classes, dtype="int32")
        scaled = logits / self.temperature
        log_p = ops.log_softmax(ops.where(is_label, -1e9, scaled), axis=-1)
        log_p = ops.where(is_label, 0.0, log_p)
        p = ops.where(is_label, 0.0, ops.exp(log_p))
        is_other = _not_ruled_out(logits, ~is_label)
        others = ops.sum(as_number(is_other), axis=-1, keepdims=True)
        mean_log = ops.sum(ops.where(is_other, log_p, 0.0), axis=-1)
        mean_log = ops.expand_dims(mean_log, -1) / others
        centred = ops.where(is_other, log_p - mean_log, 0.0)
        known = self._known(labels, keep)
        groups = ops.convert_to_tensor(groups)
        self._add(self._inside(labels), groups, known, p, centred)

        label_logit = backend.take_classes(logits, at_label)[:, 0]
        mean_other = ops.sum(ops.where(is_other, logits, 0.0), axis=-1)
        mean_other = mean_other / others[:, 0]
        best_other = ops.max(ops.where(is_label, -1e30, logits), axis=-1)
        mean, has_mean = self._mean_of_others(labels, known, centred)
        return {
            "off_label_entropy": -_sum(keep, ops.sum(p * log_p, axis=-1)),
            "logit_margin": _sum(keep, label_logit - mean_other),
            "far_ahead": _sum(
                keep, as_number(label_logit - best_other > FAR_AHEAD)
            ),
            "ranked": ops.sum(known),
            **_by_rank(
                is_other,
                known,
                centred,
                mean,
                has_mean,
                ops.softmax(scaled, axis=-1),
            ),
            **self._competitors(
                is_other, centred, mean, has_mean, ops.softmax(logits, axis=-1)
            ),
        }

    def _add(self, rows, groups, known, p, centred):
        weight = ops.expand_dims(known, -1)
        backend.add_to_rows(self.by_label, rows, weight * p)
        backend.add_to_rows(self.by_group, groups, weight * p)
        backend.add_to_rows(self.log_profiles, rows, weight * centred)
        for counts, index in (
            (self.counts, rows),
            (self.group_counts, groups),
        ):
            counts.assign_add(
                ops.segment_sum(known, index, num_segments=counts.shape[0])
            )

    def _known(self, rows, keep):
        """1 for examples that count and have a row in the tables, else 0."""
        return keep * as_number(rows < self.rows)

    def _inside(self, rows):
        return ops.minimum(rows, self.rows - 1)

    def _mean_of_others(self, labels, known, centred):
        """[n, classes] mean of the label's other examples; 1 if enough."""
        rows = self._inside(labels)
        others = ops.take(self.counts, rows) - 1
        total = ops.take(self.log_profiles, rows, axis=0) - centred
        mean = total / ops.expand_dims(ops.maximum(others, 1.0), -1)
        return mean, known * as_number(others >= _FEWEST_OTHERS)

    def _competitors(self, is_other, centred, mean, has_mean, probabilities):
        """The likeliest class beside the label: how likely, how related.

        Its place among all classes in the mean of the label's other examples
        is 1 for the most related class, and on average 1/2 for an unrelated
        one, such as the true class of a mislabelled example.
        """
        likeliest = ops.expand_dims(
            ops.argmax(ops.where(is_other, centred, -1e9), axis=-1), -1
        )
        probability = backend.take_classes(probabilities, likeliest)[:, 0]
        below = (mean < backend.take_classes(mean, likeliest)) & is_other
        others = ops.sum(as_number(is_other), axis=-1) - 1
        place = ops.sum(as_number(below), axis=-1) / ops.maximum(others, 1.0)
        # Where all others are ruled out, it has no place among them.
        strong = has_mean * as_number((probability > _STRONG) & (others > 0))
        return {
            "placed": ops.sum(has_mean),
            "strong_competitors": ops.sum(strong),
            "strong_competitor_place": _sum(strong, place),
        }


def _not_ruled_out(logits, others):
    """The other classes of each example that it does not rule out.

    Args:
        logits: [examples, classes].
        others: [examples, classes] booleans, all but the label.

    Returns:
        [examples, classes] booleans; all others where none would be left, as
        of logits on a strange scale.
    """
    floor = ops.max(logits, axis=-1, keepdims=True) - _RULED_OUT_BELOW
    found = others & (logits > floor)
    return ops.where(ops.any(found, axis=-1, keepdims=True), found, others)


def _by_rank(is_other, known, centred, mean, has_mean, probabilities):
    """By rank of a class in the soft target: its mass, and its relation.

    `relation_by_rank` holds the number of examples and sums of u, m, u²,
    m² and u·m, with u the example's log-probability of the class at that
    rank and m its mean over the others. The label and classes that are ruled
    out are left out.
    """
    # Unlike `top_k`, in the same order on all backends where two are equal.
    order = ops.argsort(-probabilities, axis=-1)
    used = ops.expand_dims(has_mean, -1) * as_number(is_other)
    mass, u, m, used = (
        backend.take_classes(each, order)
        for each in (probabilities, centred, mean, used)
    )
    moments = (ops.ones_like(u), u, m, u * u, m * m, u * m)
    return {
        "mass_by_rank": ops.sum(ops.expand_dims(known, -1) * mass, axis=0),
        "relation_by_rank": ops.stack(
            [ops.sum(used * each, axis=0) for each in moments]
        ),
    }


def _classes_of_groups(sizes, counts):
    """Which class each random group stands for, by sizes alone.

    Args:
        sizes: [groups] how many examples each group has.
        counts: [rows] how many each class has.

    Returns:
        [groups] rows of classes, so that the groups of a class have together
        about as many examples as the class. Each class has a group of its own,
        as far as there are as many.
    """
    classes = np.flatnonzero(counts)
    found = np.zeros(len(sizes), "int64")
    filled = np.flatnonzero(sizes)
    filled = filled[np.argsort(sizes[filled], kind="stable")]
    # What chance makes of a class hardly depends on its size, but on how many
    # classes there are: first, the smallest groups, one for each of them.
    classes = classes[np.argsort(counts[classes], kind="stable")]
    first, others = filled[: len(classes)], filled[len(classes) :]
    classes = classes[len(classes) - len(first) :]
    found[first] = classes
    missing = [
        (sizes[group] - counts[row], row)
        for group, row in zip(first, classes, strict=True)
    ]
    heapq.heapify(missing)
    for group in others[::-1]:
        surplus, row = missing[0]
        found[group] = row
        heapq.heapreplace(missing, (surplus + sizes[group], row))
    return found


def _zeros(shape):
    return keras.Variable(
        shape=shape, initializer="zeros", dtype="float32", trainable=False
    )


def as_number(booleans):
    """1.0 where true, else 0.0."""
    return ops.cast(booleans, "float32")


def _sum(keep, values):
    return ops.sum(keep * values)
