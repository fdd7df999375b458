"""Target distributions over classes, and the cross-entropy with them.

Labels are class ids, [...], or soft: shares of the classes, [..., classes]. A
soft label is a bag of class ids that share one input, so what a target says
about its label it then says about each class.
"""

import dataclasses

from keras import ops

from keras_kd import backend
from keras_kd.batch import are_soft
from keras_kd.softmax import weighed


@dataclasses.dataclass(frozen=True)
class LabelTarget:
    """A distribution: a mass on the label, the rest evenly on the others.

    For class ids; of soft labels `mixed_over_labels` makes a `DenseTarget`.

    Attributes:
        mass: [...], the probability of the label.
        rest: [...], 1 - `mass`, given apart because that difference would
            lose its digits where it is small.
    """

    mass: object
    rest: object
    entropy = None

    def cross_entropy(self, softmax):
        """[...], H(target, softmax), with no [..., classes] target."""
        normaliser, label_gap = softmax.log_normaliser, softmax.label_gap
        others = max(softmax.num_classes - 1, 1)
        mean_gap = _mean_of_others(softmax.gap_sum, label_gap, others)
        named = weighed(self.mass, normaliser + label_gap)
        return named + weighed(self.rest, normaliser + mean_gap)

    def off_label_mass(self, labels, num_classes):
        """[...], 1 - target[label], without cancellation."""
        del labels, num_classes
        return self.rest


@dataclasses.dataclass(frozen=True)
class SparseTarget:
    """A distribution: a mass on some classes, the rest evenly on the others.

    Attributes:
        classes: [..., k], distinct integer class ids.
        masses: [..., k], their probabilities.
        rest: [...], the probability shared by the other classes: 1 minus the
            sum of `masses`, given apart because that difference would lose
            its digits where it is small.
        entropy: [...], of the distribution, for a term that is its divergence
            from the student; or `None`, for one that is the cross-entropy.
    """

    classes: object
    masses: object
    rest: object
    entropy: object = None

    def cross_entropy(self, softmax):
        """[...], H(target, softmax), with no [..., classes] target."""
        gaps = softmax.gaps(self.classes)
        normaliser = softmax.log_normaliser
        named = weighed(self.masses, ops.expand_dims(normaliser, -1) + gaps)
        others = max(softmax.num_classes - self.classes.shape[-1], 1)
        mean_gap = _mean_of_others(
            softmax.gap_sum, ops.sum(gaps, axis=-1), others
        )
        rest = weighed(self.rest, normaliser + mean_gap)
        return ops.sum(named, axis=-1) + rest

    def compared(self, softmax):
        """See `DenseTarget.compared`."""
        return self._dense(softmax.num_classes), softmax.scaled

    def off_label_mass(self, labels, num_classes):
        """[...], 1 - target[label], without cancellation.

        Of soft labels [..., classes], that of every class.
        """
        if are_soft(labels):
            return complements(self._dense(num_classes))
        is_label = ops.equal(
            ops.cast(self.classes, "int32"), ops.expand_dims(labels, -1)
        )
        other_masses = ops.where(is_label, 0.0, self.masses)
        others = max(num_classes - self.classes.shape[-1], 1)
        rest = ops.where(
            ops.any(is_label, axis=-1),
            self.rest,
            self.rest * ((others - 1) / others),
        )
        return ops.sum(other_masses, axis=-1) + rest

    def _dense(self, num_classes):
        """[..., classes], the probabilities."""
        others = max(num_classes - self.classes.shape[-1], 1)
        even = ops.expand_dims(self.rest / others, -1)
        ids = ops.cast(self.classes, "int32")
        shape = (-1, self.classes.shape[-1])
        added = ops.reshape(self.masses - even, shape)
        empty = ops.zeros((num_classes,), dtype=added.dtype)
        dense = ops.zeros_like(added[..., :1]) + empty
        dense = backend.add_to_classes(dense, ops.reshape(ids, shape), added)
        shape = (*ops.shape(self.masses)[:-1], num_classes)
        return ops.reshape(dense, shape) + even


@dataclasses.dataclass(frozen=True)
class DenseTarget:
    """A distribution given class by class.

    Attributes:
        probabilities: [..., classes].
        off_label: [...], 1 - probabilities[label], where the method knows it
            more exactly than by that difference; else `None`. Of soft labels
            [..., classes]: for each class c, 1 - target[c] of the target that
            an example labelled c has.
        entropy: as in `SparseTarget`.
    """

    probabilities: object
    off_label: object = None
    entropy: object = None

    def cross_entropy(self, softmax):
        """[...], H(target, softmax)."""
        return softmax.log_normaliser + softmax.expected_gap(self.probabilities)

    def compared(self, softmax):
        """What the divergence compares, two arrays of [..., classes].

        Returns:
            The target's probabilities; and the logarithms of the student's, up
            to a constant of each example, constants to the gradient.
        """
        return self.probabilities, softmax.scaled

    def off_label_mass(self, labels, num_classes):
        """[...], 1 - target[label]; of soft labels, that of every class."""
        if self.off_label is not None:
            return self.off_label
        if are_soft(labels):
            return complements(self.probabilities)
        index = ops.expand_dims(ops.clip(labels, 0, num_classes - 1), -1)
        return 1.0 - ops.squeeze(
            ops.take_along_axis(self.probabilities, index, axis=-1), -1
        )


def term(target, softmax, is_hot=False):
    """What a distillation term compares a student with a target by.

    Args:
        target: a `LabelTarget`, `SparseTarget` or `DenseTarget`.
        softmax: the student's `LabelSoftmax`.
        is_hot: whether the temperature is so high that the divergence is far
            smaller than the entropy. It is then computed without their
            difference, in more passes over the classes.

    Returns:
        [...], the divergence KL(target, softmax) where the target knows its
        entropy, else the cross-entropy, which has the same gradient.
    """
    cross_entropy = target.cross_entropy(softmax)
    if target.entropy is None:
        return cross_entropy
    divergence = cross_entropy - ops.stop_gradient(target.entropy)
    if is_hot:
        divergence = _near(divergence, *target.compared(softmax))
    return _at_least_zero(divergence)


def _near(divergence, probabilities, logs):
    """Keeps the digits of a divergence of two distributions that are alike.

    With u = log(q / p) less its mean under p, it is
    log(1 + mean of (exp(u) - 1 - u)), in which nothing cancels.

    Args:
        divergence: [...], the same by a difference.
        probabilities: [..., classes], p.
        logs: [..., classes], log q, up to a constant of each example.

    Returns:
        [...], with the gradient of `divergence`.
    """
    p = ops.stop_gradient(probabilities)
    is_counted = p > 0
    logs = logs - ops.log(ops.where(is_counted, p, 1.0))
    p = p / ops.sum(p, axis=-1, keepdims=True)
    mean = ops.sum(weighed(p, logs), axis=-1, keepdims=True)
    u = ops.where(is_counted, logs - mean, 0.0)
    exact = ops.log1p(ops.sum(p * (ops.expm1(u) - u), axis=-1))
    # Its value alone is replaced.
    exact = ops.stop_gradient(exact) + (
        divergence - ops.stop_gradient(divergence)
    )
    are_alike = ops.max(ops.abs(u), axis=-1) < 1
    return ops.where(are_alike, exact, divergence)


def _mean_of_others(total, named, others):
    """[...], the mean gap of the classes but those with a mass of their own.

    Args:
        total: [...], the sum of all gaps, infinite where the student rules out
            a class.
        named: [...], the sum of the gaps of those classes.
        others: integer, how many others there are.
    """
    rest = ops.where(ops.isinf(total), total, total - named)
    return _at_least_zero(rest / others)


def _at_least_zero(gap):
    """A gap without the rounding error that makes it negative.

    Its gradient is left alone: of a gap of 0, that of a maximum is 1, 1/2
    or 0, by the backend and by the rounding error.
    """
    return gap + ops.stop_gradient(ops.relu(-gap))


def mixed_over_labels(mass, rest, labels):
    """The targets of class ids, mixed by the shares of a soft label.

    Args:
        mass: [..., classes], for each class what the target of that label has
            on it, the rest being even.
        rest: [..., classes], 1 - `mass`.
        labels: [..., classes], shares.

    Returns:
        A `DenseTarget`.
    """
    others = max(labels.shape[-1] - 1, 1)
    spread = labels * rest / others
    total = ops.sum(spread, axis=-1, keepdims=True)
    return DenseTarget(labels * mass + (total - spread), off_label=rest)


def off_label_sum(probabilities, labels):
    """1 - probabilities[label], as the sum of the others.

    Args:
        probabilities: [..., classes].
        labels: [...] int32 class ids inside [0, classes), or soft labels
            [..., classes].

    Returns:
        [...], without cancellation; of soft labels [..., classes], that of
        every class.
    """
    if are_soft(labels):
        return complements(probabilities)
    is_label = ops.equal(
        ops.expand_dims(labels, -1),
        ops.arange(probabilities.shape[-1], dtype="int32"),
    )
    return ops.sum(ops.where(is_label, 0.0, probabilities), axis=-1)


def complements(probabilities):
    """1 - p of every class, where it is above 1/2 as the sum of the others.

    Args:
        probabilities: [..., classes].

    Returns:
        [..., classes].
    """
    largest = ops.cast(ops.argmax(probabilities, axis=-1), "int32")
    others = ops.expand_dims(off_label_sum(probabilities, largest), -1)
    is_largest = ops.equal(
        ops.expand_dims(largest, -1),
        ops.arange(probabilities.shape[-1], dtype="int32"),
    )
    return ops.where(is_largest, others, 1.0 - probabilities)
