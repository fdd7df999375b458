"""The partial-KD methods, each in terms of its target distribution."""

import keras
import numpy as np
from keras import ops

from keras_kd.batch import (
    are_soft,
    has_known_rank,
    may_match,
    without_column,
)
from keras_kd.losses.base import (
    DistillationLoss,
    Tunable,
    check_number,
    check_of_each,
    refuse_arguments,
)
from keras_kd.losses.targets import (
    DenseTarget,
    LabelTarget,
    SparseTarget,
    mixed_over_labels,
    off_label_sum,
)
from keras_kd.similarity import DEFAULT_TABLE_BYTES, ClassSimilarity
from keras_kd.softmax import label_softmax, number_like, softmax_of_largest

# The name of a logit layer's matrix in a file.
_LOGIT_LAYER = "logit_layer"


def _register(cls):
    return keras.saving.register_keras_serializable(package="keras_kd")(cls)


@_register
class LabelSmoothing(DistillationLoss):
    """Label smoothing: the regularisation that any teacher brings (universe).

    The target is (1 - smoothing) on the label plus smoothing / classes on
    every class, at temperature 1. It needs no teacher.

    Args:
        smoothing: float in [0, 1], the probability spread over all classes.
        weight: float in [0, 1], weight of the smoothed term.
        **kwargs: `ignore_class`, `reduction`, `name`, `dtype` of
            `DistillationLoss`.

    Raises:
        ValueError: if `smoothing` is outside [0, 1], or for a temperature
            other than 1.

    Example:
    >>> loss = kd.LabelSmoothing(smoothing=0.1)
    >>> loss(np.array([1]), np.array([[0.0, 2.0]], "float32"))

    Source: Tang et al. 2020, section 3.1 (Szegedy et al. 2016).
    """

    takes_soft_labels = True

    def __init__(self, smoothing=0.1, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        smoothing = check_number(type(self), "smoothing", smoothing)
        if not 0 <= smoothing <= 1:
            raise ValueError(
                "`smoothing` is a probability and must be in [0, 1]. "
                f"Received: smoothing={smoothing}. A usual value is 0.1."
            )
        self.smoothing = smoothing

    def _check_tunables(self, values):
        super()._check_tunables(values)
        if values["temperature"] != 1:
            raise ValueError(
                "The target of LabelSmoothing is at temperature 1. Received: "
                f"temperature={values['temperature']}. Leave it out; "
                "`smoothing` says how much is spread."
            )

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        spread = self.smoothing * (num_classes - 1) / num_classes
        like = ops.ones_like(labels, dtype=self.dtype)
        mass, rest = (1 - spread) * like, spread * like
        return _even_target(mass, rest, labels)

    def get_config(self):
        """The arguments of the constructor."""
        config = {**super().get_config(), "smoothing": self.smoothing}
        del config["temperature"], config["temperature_squared"]
        return config


def _even_target(mass, rest, labels):
    """A mass on the label, the rest evenly on the others."""
    if are_soft(labels):
        return mixed_over_labels(mass, rest, labels)
    return LabelTarget(mass, rest)


def _confidence_target(statistics, labels):
    """The teacher's probability on the label, the rest spread evenly."""
    statistics = _of_both_classes(statistics, labels)
    log_odds = _one_each(statistics, "label_log_odds", labels)
    return _even_target(ops.sigmoid(log_odds), ops.sigmoid(-log_odds), labels)


@_register
class KDPt(DistillationLoss):
    """KD-pt: the teacher's gradient rescaling of each example (instance).

    The target is the teacher's probability p_t on the label and
    (1 - p_t) / (classes - 1) on every other class. All it needs from the
    teacher is one number per example, the log-odds log(p_t / (1 - p_t)),
    which keep their digits where p_t is close to 0 or 1.

    Args:
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Example:
    >>> distiller.compile(loss=kd.KDPt(weight=0.5, temperature=2.0))

    Source: Tang et al. 2020, section 3.2.
    """

    statistics = ("label_log_odds",)
    takes_soft_labels = True

    def __init__(self, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        if are_soft(labels):
            softmax = softmax_of_largest(teacher_logits, self.temperature)
            return {"label_log_odds": softmax.all_log_odds}
        softmax = label_softmax(teacher_logits, labels, self.temperature)
        return {"label_log_odds": softmax.log_odds}

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        return _confidence_target(statistics, labels)


def _of_both_classes(statistics, labels):
    """The log-odds of each of two classes, where those of the label are given.

    Labels 0.0 and 1.0 of a sigmoid's units are shares of its two classes to a
    loss, and class ids to a cache, which keeps a number for each.
    """
    log_odds = statistics["label_log_odds"]
    of_two = are_soft(labels) and labels.shape[-1] == 2
    of_two = of_two and has_known_rank(log_odds)
    if not (of_two and may_match(tuple(log_odds.shape), labels.shape[:-1])):
        return statistics
    is_first = ops.equal(ops.argmax(labels, axis=-1), 0)
    first = ops.where(is_first, log_odds, -log_odds)
    return {**statistics, "label_log_odds": ops.stack([first, -first], -1)}


def _one_each(statistics, name, like):
    """A statistic that is one number for each element of a tensor.

    A last axis of size 1, as a column of a table has, would broadcast.
    """
    values = statistics[name]
    if not (has_known_rank(values) and has_known_rank(like)):
        return values
    shape = tuple(like.shape)
    values = without_column(values, len(shape))
    check_of_each(name, values, shape, exactly=True)
    return values


def _of_relations(name):
    """An argument that the loss's `class_similarity` holds, to be read."""
    return property(lambda loss: getattr(loss.class_similarity, name))


class _ClassRelationLoss(DistillationLoss):
    """What `KDSim` and `KDPtSim` share: a `class_similarity`."""

    takes_soft_labels = True
    takes_two_classes = False

    alpha = _of_relations("alpha")
    beta = _of_relations("beta")
    label_mass = _of_relations("label_mass")
    logit_layer = _of_relations("logit_layer")
    table_bytes = _of_relations("table_bytes")

    def _relate(self, alpha, beta, label_mass, logit_layer, table_bytes):
        """Makes the `class_similarity`; arguments as of the constructor."""

        def number(name, value):
            return check_number(type(self), name, value)

        self.class_similarity = ClassSimilarity(
            None if alpha is None else number("alpha", alpha),
            number("beta", beta),
            number("label_mass", label_mass),
            logit_layer,
            number("table_bytes", table_bytes),
            self.dtype,
        )

    def bind_teacher(self, teacher, num_classes=None):
        """Reads the teacher's logit layer; see `DistillationLoss`."""
        self.class_similarity.bind_teacher(teacher, num_classes)

    def copy(self):
        """A loss with variables of its own; see `DistillationLoss`."""
        twin = super().copy()
        twin.class_similarity = self.class_similarity.copy()
        return twin

    @property
    def variables(self):
        """The targets by class beside the numbers; see `DistillationLoss`."""
        return [*super().variables, *self.class_similarity.variables]

    # Keras calls these two for what a Distiller's file holds.

    def save_own_variables(self, store):
        """Saves the matrix read from the teacher, in its place.

        Args:
            store: mapping by name, as in `keras.Layer.save_own_variables`.
        """
        relations = self.class_similarity
        if relations.weights is not None and not relations.is_given:
            store[_LOGIT_LAYER] = relations.weights

    def load_own_variables(self, store):
        """Loads the matrix read from the teacher, if the file holds it.

        Args:
            store: mapping by name, as in `keras.Layer.load_own_variables`.
        """
        if _LOGIT_LAYER in store.keys():
            self.class_similarity.use(np.array(store[_LOGIT_LAYER]))

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), **self.class_similarity.get_config()}

    @classmethod
    def from_config(cls, config):
        """A loss from `get_config`, also when Keras serialised its matrix."""
        layer = keras.saving.deserialize_keras_object(config["logit_layer"])
        return cls(**{**config, "logit_layer": layer})


@_register
class KDSim(_ClassRelationLoss):
    """KD-sim: the teacher's class relations (domain).

    The target of label t is the softmax over classes i of
    sign(c) * |c / alpha| ** beta, with c the cosine of rows t and i of the
    teacher's logit layer. The teacher never runs: its weights are read when
    training starts (`fit`, or each `train_on_batch`), so that a teacher whose
    weights are loaded or averaged later counts as it is then. A Distiller's
    file without its teacher holds that matrix instead.

    Args:
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0, for the student's logits.
        alpha: float above 0, or `None` to choose it so that the target keeps
            `label_mass` on the label on average: the loss is then label
            smoothing with the even spread replaced by class relations.
        beta: float above 0.
        label_mass: float in (0, 1), used when `alpha` is `None`.
        logit_layer: `None` to find the teacher's logit layer, or its name, or
            the layer, or its matrix with a row for each class
            ([classes, features]); with the latter two no teacher is needed.
            They are part of the loss's configuration, and so of the JSON in a
            Distiller's file; where that is large, give the name.
        table_bytes: the target of every class is kept in a [classes, classes]
            table when it fits in this many bytes, else worked out per batch.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: for `alpha`, `beta` or `label_mass` out of range, or a
            `logit_layer` that is not a matrix.

    Example:
    >>> distiller.compile(loss=kd.KDSim(logit_layer="predictions"))

    Source: Tang et al. 2020, section 3.3.
    """

    def __init__(
        self,
        weight=0.5,
        temperature=1.0,
        alpha=None,
        beta=1.0,
        label_mass=0.9,
        logit_layer=None,
        table_bytes=DEFAULT_TABLE_BYTES,
        **kwargs,
    ):
        super().__init__(weight=weight, temperature=temperature, **kwargs)
        self._relate(alpha, beta, label_mass, logit_layer, table_bytes)

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        return _similarity_target(self.class_similarity, labels, num_classes)


def _similarity_target(class_similarity, labels, num_classes):
    return DenseTarget(*class_similarity.target(labels, num_classes))


@_register
class KDPtSim(_ClassRelationLoss):
    """KD-pt+sim: gradient rescaling and class relations together.

    Two terms, the targets of `KDPt` and `KDSim`, each with its weight.

    Args:
        pt_weight: float in [0, 1], weight of the `KDPt` term.
        sim_weight: float in [0, 1], weight of the `KDSim` term.
        temperature: float above 0, of the teacher's confidence and of the
            student's logits in both terms.
        alpha: see `KDSim`.
        beta: see `KDSim`.
        label_mass: see `KDSim`.
        logit_layer: see `KDSim`.
        table_bytes: see `KDSim`.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: as `KDSim`, and if the weights sum to more than 1.

    Example:
    >>> distiller.compile(loss=kd.KDPtSim(pt_weight=0.4, sim_weight=0.1))

    Source: Tang et al. 2020, section 3.4.
    """

    statistics = KDPt.statistics
    teacher_statistics = KDPt.teacher_statistics

    pt_weight = Tunable()
    sim_weight = Tunable()

    def __init__(
        self,
        pt_weight=0.4,
        sim_weight=0.1,
        temperature=2.0,
        alpha=None,
        beta=1.0,
        label_mass=0.9,
        logit_layer=None,
        table_bytes=DEFAULT_TABLE_BYTES,
        **kwargs,
    ):
        if "weight" in kwargs:
            refuse_arguments(type(self), {"weight": kwargs["weight"]})
        super().__init__(
            weight={"pt_weight": pt_weight, "sim_weight": sim_weight},
            temperature=temperature,
            **kwargs,
        )
        self._relate(alpha, beta, label_mass, logit_layer, table_bytes)

    def targets(self, labels, statistics, num_classes):
        """See `DistillationLoss.targets`."""
        return {
            "pt_weight": _confidence_target(statistics, labels),
            "sim_weight": _similarity_target(
                self.class_similarity, labels, num_classes
            ),
        }


@_register
class KDTopK(DistillationLoss):
    """KD-topk: knowledge distillation with its noisy tail removed.

    The target keeps the teacher's probabilities on its k largest classes and
    spreads the rest of the mass evenly over the others. The distillation term
    is the divergence from it, as in `KD`.

    Args:
        k: how many classes to keep: an integer count of at least 1, or a
            float in (0, 1], a fraction of the classes. Tang et al. report 25 %
            as best on CIFAR-100 and 50 % on ImageNet.
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: if `k` is below 1, above the number of classes (when that
            is known), or a fraction outside (0, 1].

    Example:
    >>> distiller.compile(loss=kd.KDTopK(k=25, temperature=4.0))

    Source: Tang et al. 2020, section 4.
    """

    statistics = ("top_classes", "top_probabilities", "tail_probability")
    reads_labels = False
    takes_two_classes = False

    def __init__(self, k=0.25, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)
        if isinstance(k, np.generic):  # Such as labels.max() // 4.
            k = k.item()
        is_fraction = isinstance(k, float) and 0 < k <= 1
        is_count = isinstance(k, int) and not isinstance(k, bool) and k >= 1
        if not (is_fraction or is_count):
            raise ValueError(
                f"`k` of {type(self).__name__} must be an integer count of at "
                f"least 1 or a float fraction in (0, 1]. Received: k={k!r}. "
                "Use k=25 for 25 classes or k=0.25 for a quarter of them."
            )
        self.k = k

    def count(self, num_classes):
        """How many classes are kept.

        Args:
            num_classes: integer.

        Returns:
            An integer in [1, num_classes].

        Raises:
            ValueError: if `k` is a count above `num_classes`.
        """
        if isinstance(self.k, float):
            return max(1, round(self.k * num_classes))
        if self.k > num_classes:
            raise ValueError(
                f"`k` of {type(self).__name__} can't exceed the number of "
                f"classes. Received: k={self.k} for {num_classes} classes. Use "
                "a smaller count or a fraction such as k=0.25."
            )
        return self.k

    def _check_kept(self, classes, num_classes):
        """Refuses statistics of another number of classes."""
        k, kept = self.count(num_classes), classes.shape[-1]
        if kept not in (None, k):
            name = type(self).__name__
            raise ValueError(
                f"Statistics of {name} are those of its k classes. Received: "
                f"{kept} classes for a loss with k={k}. Write the cache for "
                "this loss, and attach it with the loss, as in "
                "attach(dataset, loss)."
            )

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        del labels
        k = self.count(teacher_logits.shape[-1])
        scaled = teacher_logits / self.temperature
        scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
        top, classes = ops.top_k(scaled, k)
        # Not `top[..., -1:]`: XLA would take that from a sort of all classes.
        smallest = ops.min(top, axis=-1, keepdims=True)
        # The tail is summed by itself: 1 minus the head would lose its digits.
        # Of logits equal to the smallest one kept, some may be in the tail.
        exp = ops.exp(scaled)
        below = ops.sum(ops.where(scaled < smallest, exp, 0.0), axis=-1)
        ties = _count(scaled, smallest) - _count(top, smallest)
        tail = below + ties * ops.exp(smallest[..., 0])
        head = ops.exp(top)
        total = ops.sum(head, axis=-1) + tail
        return {
            "top_classes": ops.cast(classes, "int32"),
            "top_probabilities": head / ops.expand_dims(total, -1),
            "tail_probability": tail / total,
        }

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        self._check_kept(statistics["top_classes"], num_classes)
        masses = statistics["top_probabilities"]
        rest = _one_each(statistics, "tail_probability", masses[..., 0])
        others = max(num_classes - masses.shape[-1], 1)
        entropy = _surprise(rest, others) + ops.sum(_surprise(masses), axis=-1)
        return SparseTarget(
            classes=statistics["top_classes"],
            masses=masses,
            rest=rest,
            entropy=entropy,
        )

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "k": self.k}


def _surprise(mass, classes=1):
    """-m log(m / classes), 0 at a mass of 0: a share of the entropy."""
    return -mass * ops.log(_at_least(mass, 1e-30) / classes)


def _at_least(values, lowest):
    # PyTorch's `ops.maximum` with a Python number makes float32 of float64.
    lowest = number_like(lowest, values)
    return ops.where(values < lowest, lowest, values)


def _count(values, value):
    return ops.sum(ops.cast(ops.equal(values, value), values.dtype), axis=-1)


@_register
class KD(DistillationLoss):
    """Full knowledge distillation: all three kinds of knowledge at once.

    The target is the teacher's softmax at the temperature. The distillation
    term is the divergence KL(teacher, student), 0 where they agree, times
    T ** 2 with `temperature_squared`: the value of Hinton's loss as other
    toolkits give it.

    Args:
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Example:
    >>> distiller.compile(loss=kd.KD(weight=0.9, temperature=4.0))

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network" (arXiv 1503.02531); Tang et al. 2020, section 2.
    """

    statistics = ("teacher_logits",)
    reads_labels = False

    def __init__(self, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        del labels
        return {"teacher_logits": teacher_logits}

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        logits = ops.cast(statistics["teacher_logits"], self.dtype)
        scaled = logits / self.temperature
        scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
        probabilities = ops.softmax(scaled, axis=-1)
        return DenseTarget(
            probabilities,
            off_label=off_label_sum(probabilities, labels),
            entropy=_entropy(probabilities, scaled),
        )


def _entropy(probabilities, scaled):
    """[...], of a softmax and its input, whose largest value is 0."""
    log_normaliser = -ops.log(ops.max(probabilities, axis=-1))
    # A class that the teacher rules out has the logit -inf.
    scaled = _at_least(scaled, -1e30)
    return log_normaliser - ops.sum(probabilities * scaled, axis=-1)
