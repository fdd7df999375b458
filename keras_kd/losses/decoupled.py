"""Decoupled distillation: the label's probability apart from the others."""

import dataclasses

import keras
from keras import ops

from keras_kd.batch import are_soft
from keras_kd.losses.base import DistillationLoss, Tunable
from keras_kd.losses.methods import KD
from keras_kd.losses.targets import DenseTarget, LabelTarget
from keras_kd.softmax import number_like, softmax_of_largest, weighed

_TARGET_CLASS, _OTHER_CLASSES = "tckd", "nckd"
# Below every logit, so that a class has no probability.
_BOTTOM = -1e30


@dataclasses.dataclass(frozen=True)
class _TwoClassTarget(LabelTarget):
    """The label's probability against that of all others together.

    Attributes:
        mass: see `LabelTarget`.
        rest: see `LabelTarget`.
        entropy: [...], of the two.
    """

    entropy: object = None

    def cross_entropy(self, softmax):
        """[...], of the two probabilities with the student's."""
        return _two_class_cross_entropy(self.mass, self.rest, softmax.log_odds)

    def compared(self, softmax):
        """[..., 2] each; see `DenseTarget.compared`."""
        log_odds = ops.stop_gradient(softmax.log_odds)
        return (
            ops.stack([self.mass, self.rest], axis=-1),
            ops.stack([log_odds, ops.zeros_like(log_odds)], axis=-1),
        )


@dataclasses.dataclass(frozen=True)
class _OtherClassesTarget(DenseTarget):
    """A distribution over the classes but the label, which has mass 0."""

    def cross_entropy(self, softmax):
        """[...], with the student's distribution over these classes."""
        return softmax.others + softmax.expected_gap(self.probabilities)


class _AllClasses:
    """A softmax seen from every class as if it were the label.

    The largest class is taken out of the others by a softmax of its own, which
    keeps their digits; without another one at least half is left.

    Args:
        softmax: a `LabelSoftmax`, seen from the largest class.
    """

    def __init__(self, softmax):
        self._softmax = softmax
        log_odds = _finite(softmax.all_log_odds)
        # [..., classes], p and 1 - p of each class, and their logarithms.
        self.own = softmax.probabilities
        self.log_own = ops.log_sigmoid(log_odds)
        self.others = softmax.complements
        self.log_others = ops.log_sigmoid(-log_odds)
        # [..., classes], the distribution over all but the largest class.
        scaled = _finite(softmax.scaled)
        self.but_largest = ops.softmax(
            softmax.with_largest(scaled, _BOTTOM), axis=-1
        )

    def mean_without(self, values):
        """The mean of values over the classes but one, for each left out.

        Args:
            values: [..., classes].

        Returns:
            [..., classes].
        """
        weighed = self.own * values
        total = ops.sum(weighed, axis=-1, keepdims=True)
        of_largest = ops.sum(self.but_largest * values, axis=-1)
        without = (total - weighed) / self.others
        return self._softmax.with_largest(without, of_largest)

    def spread_over_others(self, amounts):
        """What each class gets if every class gives its amount to the others.

        Args:
            amounts: [..., classes], shared among the others by their
                probabilities.

        Returns:
            [..., classes].
        """
        with_largest = self._softmax.with_largest
        of_largest = amounts - with_largest(amounts, 0.0)
        of_largest = ops.sum(of_largest, axis=-1, keepdims=True)
        shares = with_largest(amounts / self.others, 0.0)
        shares = ops.sum(shares, axis=-1, keepdims=True) - shares
        return self.own * shares + self.but_largest * of_largest


@dataclasses.dataclass(frozen=True)
class _SoftTwoClassTarget:
    """`_TwoClassTarget` of every class, weighed by a soft label's shares.

    Attributes:
        labels: [..., classes], shares.
        teacher: the teacher's `_AllClasses`.
    """

    labels: object
    teacher: object
    entropy = None

    def cross_entropy(self, softmax):
        """[...], the divergence of the two probabilities."""
        teacher, student = self.teacher, _AllClasses(softmax)
        values = teacher.own * (teacher.log_own - student.log_own)
        values += teacher.others * (teacher.log_others - student.log_others)
        # 1 - q less 1 - p, where these have more digits.
        pull = ops.where(
            student.own > 0.5,
            teacher.others - student.others,
            student.own - teacher.own,
        )
        pull = self.labels * pull
        gradient = pull - student.spread_over_others(pull)
        return _with_gradient(self.labels * values, gradient, softmax)

    def off_label_mass(self, labels, num_classes):
        """[..., classes], 1 - p of every class."""
        del labels, num_classes
        return self.teacher.others


@dataclasses.dataclass(frozen=True)
class _SoftOtherClassesTarget:
    """`_OtherClassesTarget` of every class, weighed by a soft label's shares.

    Attributes: as of `_SoftTwoClassTarget`.
    """

    labels: object
    teacher: object
    entropy = None

    def cross_entropy(self, softmax):
        """[...], the divergence of the distributions over other classes.

        With log(p / (1 - p_c)) for their logarithms it is the mean of
        log p - log q without class c, less that of 1 - p_c and 1 - q_c.
        """
        teacher, student = self.teacher, _AllClasses(softmax)
        values = teacher.mean_without(teacher.log_own - student.log_own)
        values -= teacher.log_others - student.log_others
        gradient = student.spread_over_others(self.labels)
        gradient -= teacher.spread_over_others(self.labels)
        return _with_gradient(self.labels * values, gradient, softmax)


def _with_gradient(values, gradient, softmax):
    """[...], the sum of values over the classes, with a gradient of its own.

    Args:
        values: [..., classes].
        gradient: [..., classes], by the logits over the temperature; it sums
            to 0.
        softmax: the student's `LabelSoftmax`.
    """
    # Its gradient is that of a mean of gaps under a "distribution".
    carrier = softmax.expected_gap(ops.stop_gradient(-gradient))
    values = ops.sum(values, axis=-1)
    # It is infinite where the student rules out a class of the teacher's.
    values = ops.where(ops.isinf(carrier), values, values - carrier)
    return carrier + ops.stop_gradient(values)


@keras.saving.register_keras_serializable(package="keras_kd")
class DKD(DistillationLoss):
    """Decoupled distillation: instance and class relations, each weighed.

    The divergence of `KD` is a sum of two: that of the label's probability
    from the student's, as of two classes (TCKD, the instance's level), and
    1 - p_t times that of the distributions over the other classes (NCKD, the
    class relations with the tail). A confident teacher mutes the second. Here
    each has a weight of its own:

        L = (1 - weight) * H(onehot(label), q)
            + weight * T ** 2 * (alpha * TCKD + beta * NCKD)

    Logs and TensorBoard show both terms, "tckd" and "nckd". NCKD moves nothing
    between the label and the others, so the gradient scale depends on alpha
    alone.

    Of soft labels both terms are those of each class, by its share.

    As published the cross-entropy has the weight 1: that is `weight=0.5` with
    twice the learning rate.

    Args:
        alpha: float of at least 0, weight of TCKD within the distillation
            term.
        beta: float of at least 0, weight of NCKD. With alpha = 1 and
            beta = 1 - p_t, which differs by example, it would be `KD`.
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: if `alpha` or `beta` is below 0 or not finite.

    Example:
    >>> distiller.compile(loss=kd.DKD(alpha=1.0, beta=2.0))
    >>> distiller.loss.beta = 4.0  # Also while training.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv
    2203.08679).
    """

    statistics = KD.statistics
    # The teacher's logits, as of KD: a cache of these serves both.
    teacher_statistics = KD.teacher_statistics
    takes_two_classes = False
    takes_soft_labels = True

    alpha = Tunable()
    beta = Tunable()

    def __init__(
        self, alpha=1.0, beta=8.0, weight=0.5, temperature=4.0, **kwargs
    ):
        super().__init__(weight=weight, temperature=temperature, **kwargs)
        self._add_tunables(alpha=alpha, beta=beta)

    @property
    def term_names(self):
        """The two levels; see `DistillationLoss`."""
        return _TARGET_CLASS, _OTHER_CLASSES

    def targets(self, labels, statistics, num_classes):
        """See `DistillationLoss.targets`."""
        logits = ops.cast(statistics["teacher_logits"], self.dtype)
        scaled = logits / self.temperature
        if are_soft(labels):
            teacher = _AllClasses(softmax_of_largest(scaled))
            return {
                _TARGET_CLASS: _SoftTwoClassTarget(labels, teacher),
                _OTHER_CLASSES: _SoftOtherClassesTarget(labels, teacher),
            }
        is_label = ops.equal(
            ops.expand_dims(labels, -1), ops.arange(num_classes, dtype="int32")
        )
        bottom = number_like(_BOTTOM, scaled)
        at_label = ops.max(ops.where(is_label, scaled, bottom), axis=-1)
        others = ops.where(is_label, bottom, scaled)
        top = ops.max(others, axis=-1, keepdims=True)
        others = others - top
        probabilities = ops.softmax(others, axis=-1)
        # Of the others, less their largest logit, whose exponential is 1.
        log_normaliser = -ops.log(ops.max(probabilities, axis=-1))
        log_odds = _finite(at_label - top[..., 0] - log_normaliser)
        mass, rest = ops.sigmoid(log_odds), ops.sigmoid(-log_odds)
        expected = ops.sum(probabilities * _finite(others), axis=-1)
        return {
            _TARGET_CLASS: _TwoClassTarget(
                mass, rest, _two_class_cross_entropy(mass, rest, log_odds)
            ),
            _OTHER_CLASSES: _OtherClassesTarget(
                probabilities, entropy=log_normaliser - expected
            ),
        }

    def _term_weight(self, name):
        share = "alpha" if name == _TARGET_CLASS else "beta"
        return self._tunable("weight") * self._tunable(share)

    def _gradient_scale(self, labels, targets, plain, tempered):
        targets = {_TARGET_CLASS: targets[_TARGET_CLASS]}
        return super()._gradient_scale(labels, targets, plain, tempered)

    def _check_tunables(self, values):
        super()._check_tunables(values)
        for name in ("alpha", "beta"):
            if not 0 <= values.get(name, 0) < float("inf"):
                raise ValueError(
                    f"`{name}` of DKD weighs a level of the teacher's "
                    "knowledge and must be finite and at least 0. Received: "
                    f"{name}={values[name]}. The published values are alpha=1 "
                    "and beta from 1 to 8."
                )


def _finite(values):
    """Values without the infinity of a class that the teacher rules out."""
    bottom = number_like(_BOTTOM, values)
    values = ops.where(values < bottom, bottom, values)
    return ops.where(values > -bottom, -bottom, values)


def _two_class_cross_entropy(mass, rest, log_odds):
    """[...], of (mass, rest) with the sigmoids of (log_odds, -log_odds)."""
    of_label = weighed(mass, ops.log_sigmoid(log_odds))
    return -(of_label + weighed(rest, ops.log_sigmoid(-log_odds)))
