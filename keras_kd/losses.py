"""Partial-KD losses: one target distribution per method, one way to use it.

Every loss here is

    L = (1 - sum_m weight_m) * H(onehot(label), q)
        + sum_m weight_m * kappa * H(target_m, q_T)

with q = softmax(z), q_T = softmax(z / T) and kappa = T ** 2 (Hinton et al.
2015) or 1 (Tang et al. 2020). A method says two things, its target and what it
needs from the teacher to make it; `DistillationLoss` does the rest.
"""

import abc
import dataclasses

import keras
import numpy as np
from keras import ops

# Keras's own reduction, so that masks, sample weights and the scaling under a
# distribution strategy are the ones of every other Keras loss.
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.losses.loss import reduce_weighted_values

from keras_kd.similarity import DEFAULT_TABLE_BYTES, ClassSimilarity
from keras_kd.softmax import label_softmax

LABELS = "labels"


@dataclasses.dataclass(frozen=True)
class SparseTarget:
    """A distribution: a mass on some classes, the rest evenly on the others.

    Attributes:
        classes: [..., k], distinct integer class ids.
        masses: [..., k], their probabilities.
        rest: [...], the probability shared by the other classes: 1 minus the
            sum of `masses`, given apart because that difference would lose
            its digits where it is small.
    """

    classes: object
    masses: object
    rest: object

    def cross_entropy(self, softmax):
        """[...], H(target, softmax), with no [..., classes] target."""
        classes = ops.cast(self.classes, "int32")
        gaps = softmax.gaps(classes)
        normaliser = softmax.log_normaliser
        named = ops.sum(
            self.masses * (ops.expand_dims(normaliser, -1) + gaps), axis=-1
        )
        others = max(softmax.num_classes - classes.shape[-1], 1)
        mean_gap = (softmax.gap_sum - ops.sum(gaps, axis=-1)) / others
        return named + self.rest * (normaliser + ops.maximum(mean_gap, 0.0))

    def off_label_mass(self, labels, num_classes):
        """[...], 1 - target[label], without cancellation."""
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


@dataclasses.dataclass(frozen=True)
class DenseTarget:
    """A distribution given class by class.

    Attributes:
        probabilities: [..., classes].
        off_label: [...], 1 - probabilities[label], where the method knows it
            more exactly than by that difference; else `None`.
    """

    probabilities: object
    off_label: object = None

    def cross_entropy(self, softmax):
        """[...], H(target, softmax)."""
        return softmax.log_normaliser + ops.sum(
            self.probabilities * softmax.gaps(), axis=-1
        )

    def off_label_mass(self, labels, num_classes):
        """[...], 1 - target[label]."""
        if self.off_label is not None:
            return self.off_label
        index = ops.expand_dims(ops.clip(labels, 0, num_classes - 1), -1)
        return 1.0 - ops.squeeze(
            ops.take_along_axis(self.probabilities, index, axis=-1), -1
        )


@dataclasses.dataclass(frozen=True)
class LossParts:
    """What a loss is made of, per example (or per token).

    Attributes:
        loss: [...], the mixed loss, 0 where `valid` is false.
        cross_entropy: [...], H(onehot(label), q).
        terms: dict by `term_names` of [...], H(target, q_T) of each
            distillation term, before its weight and T ** 2.
        gradient_scale: [...], the ratio w of this loss's gradient on the
            label's logit to that of the plain cross-entropy; NaN where it is
            undefined because q_t is 1.
        valid: [...] booleans, false where the label is `ignore_class`.
    """

    loss: object
    cross_entropy: object
    terms: dict
    gradient_scale: object
    valid: object


class Tunable:
    """A number of a loss that may change while training.

    It is held in a variable, which the compiled training step reads anew at
    each step; a plain attribute would be baked into the compiled step.
    """

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, loss, owner=None):
        if loss is None:
            return self
        try:
            return loss._tunables[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(loss).__name__} has no `{self.name}`; it has "
                f"{sorted(loss._tunables)}."
            ) from None

    def __set__(self, loss, value):
        loss.assign(**{self.name: value})


class DistillationLoss(keras.losses.Loss, abc.ABC):
    """Base of the partial-KD losses, and of a user's own.

    A subclass lists in `statistics` the names of what it needs from the
    teacher per example (nothing: the teacher never runs), computes them in
    `teacher_statistics`, and makes its target distribution of them in
    `target`. Reduction, masks, sample weights and distribution scaling are
    those of `keras.losses.Loss`. Computations are in float32 whatever the
    dtype of the logits.

    Args:
        weight: float in [0, 1], the weight of the distillation term; the
            cross-entropy on the labels weighs 1 - `weight`. Or a dict of
            such weights by term name, for a loss of several terms, with a
            sum of at most 1.
        temperature: float above 0, divides the logits in the distillation
            term.
        temperature_squared: whether the distillation term is multiplied by
            `temperature ** 2`, as by Hinton et al. 2015 and every toolkit
            since; `False` gives the form of Tang et al. 2020.
        ignore_class: optional integer; examples with this label count
            neither in the loss nor in its mean.
        reduction: as in `keras.losses.Loss`.
        name: optional name.
        dtype: `"float32"` (default) or `"float64"`.

    Raises:
        ValueError: for a weight outside [0, 1], weights that sum to more
            than 1, a temperature not above 0, or another dtype.

    Example:
    A loss that keeps nothing but the teacher's favourite class:

    ```python
    class KDTop1(kd.losses.DistillationLoss):
        statistics = ("top_class", "top_probability")

        def teacher_statistics(self, labels, teacher_logits):
            p = keras.ops.softmax(teacher_logits / self.temperature)
            return {
                "top_class": keras.ops.argmax(p, axis=-1),
                "top_probability": keras.ops.max(p, axis=-1),
            }

        def target(self, labels, statistics, num_classes):
            mass = statistics["top_probability"]
            return kd.losses.SparseTarget(
                classes=statistics["top_class"][..., None],
                masses=mass[..., None],
                rest=1 - mass,
            )
    ```

    Source: Tang et al. 2020, "Understanding and Improving Knowledge
    Distillation" (arXiv 2002.03532).
    """

    statistics = ()

    weight = Tunable()
    temperature = Tunable()

    def __init__(
        self,
        weight=0.5,
        temperature=1.0,
        temperature_squared=True,
        ignore_class=None,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        dtype = "float32" if dtype is None else dtype
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                f"{type(self).__name__} computes in float32 or float64, "
                f"whatever the dtype of the models. Received: dtype={dtype}. "
                "Leave `dtype` out."
            )
        self.temperature_squared = temperature_squared
        self.ignore_class = ignore_class
        weights = weight if isinstance(weight, dict) else {"weight": weight}
        self._weight_names = tuple(weights)
        self._tunables = {}
        values = {**weights, "temperature": temperature}
        self._check_tunables(values)
        self._tunables = {
            key: keras.Variable(
                float(value), dtype=self.dtype, trainable=False, name=key
            )
            for key, value in values.items()
        }

    # -- what a subclass says ------------------------------------------------

    def teacher_statistics(self, labels, teacher_logits):
        """What the loss needs from the teacher, per example.

        Args:
            labels: [...] int32 class ids, all inside [0, classes).
            teacher_logits: [..., classes], in the loss's dtype.

        Returns:
            A dict with a tensor for each name in `statistics`.
        """
        del labels, teacher_logits
        return {}

    def target(self, labels, statistics, num_classes):
        """The target distribution of a loss with one distillation term.

        Args:
            labels: [...] int32 class ids.
            statistics: what `teacher_statistics` returned.
            num_classes: Python integer.

        Returns:
            A `SparseTarget` or a `DenseTarget`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `target(labels, "
            "statistics, num_classes)`, or `targets` for several terms."
        )

    def targets(self, labels, statistics, num_classes):
        """The targets by weight name; by default the one `target`."""
        target = self.target(labels, statistics, num_classes)
        return {self._weight_names[0]: target}

    def bind_teacher(self, teacher):
        """Takes what is needed from the teacher once, before training.

        Args:
            teacher: a built `keras.Model`, or `None`.
        """

    @property
    def term_names(self):
        """Names of the distillation terms: "pt" for `pt_weight`, and so on."""
        return tuple(_term_name(name) for name in self._weight_names)

    # -- numbers that may change while training ------------------------------

    @property
    def tunables(self):
        """Dict of the variables that may change while training, by name."""
        return dict(self._tunables)

    def assign(self, **values):
        """Changes weights or the temperature, also while training.

        Args:
            **values: new values by name, for example `weight=0.3`. Weights
                given together are checked together.

        Raises:
            ValueError: as the constructor does, or for an unknown name.
        """
        unknown = sorted(set(values) - set(self._tunables))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has nothing called {unknown[0]!r} to "
                f"change. Received: {values}. Choose among "
                f"{sorted(self._tunables)}."
            )
        current = {k: float(v) for k, v in self._tunables.items()}
        self._check_tunables({**current, **values})
        for key, value in values.items():
            self._tunables[key].assign(float(value))

    def _check_tunables(self, values):
        name = type(self).__name__
        weights = {key: values[key] for key in self._weight_names}
        for key, value in weights.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"`{key}` of {name} is a share of the loss and must be in "
                    f"[0, 1]. Received: {key}={value}. Choose a value such as "
                    "0.5."
                )
        # Schedules written as 1 - x may overshoot by a rounding error.
        if sum(weights.values()) > 1 + 1e-6:
            raise ValueError(
                f"The weights of {name} sum to more than 1, which leaves a "
                "negative weight for the cross-entropy on the labels. "
                f"Received: {weights}. Lower them."
            )
        if not values["temperature"] > 0:
            raise ValueError(
                f"`temperature` of {name} divides the logits and must be above "
                f"0. Received: temperature={values['temperature']}. Choose a "
                "value such as 1, 2 or 4."
            )

    # -- the loss ------------------------------------------------------------

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced loss.

        Args:
            y_true: dict with "labels" ([...] integer class ids) and the
                statistics that the loss names; or the labels alone where it
                names none.
            y_pred: [..., classes] student logits.
            sample_weight: optional, [batch] or the shape of the labels.

        Returns:
            A scalar, or [...] with `reduction=None`.
        """
        with keras.name_scope(self.name):
            losses = self.call(y_true, y_pred)
            return self.reduce(losses, get_keras_mask(y_pred), sample_weight)

    def call(self, y_true, y_pred):
        """[...], the loss of each example; see `__call__`."""
        parts = self.parts(y_true, y_pred)
        if self.ignore_class is not None:
            set_keras_mask(parts.loss, parts.valid)
        return parts.loss

    def parts(self, y_true, y_pred):
        """The loss of each example and what it is made of.

        Args:
            y_true: as in `__call__`.
            y_pred: as in `__call__`.

        Returns:
            `LossParts`.

        Raises:
            ValueError: if statistics are missing, or labels are not integer
                class ids of the shape that the logits ask for.
        """
        labels, statistics = self._split(y_true)
        logits = ops.cast(y_pred, self.dtype)
        labels = check_labels(labels, logits.shape)
        valid = self.valid_labels(labels)
        plain = label_softmax(logits, labels)
        tempered = label_softmax(logits, labels, self.temperature)
        targets = self.targets(labels, statistics, logits.shape[-1])

        terms = {k: t.cross_entropy(tempered) for k, t in targets.items()}
        factor = self._term_factor()
        loss = self._hard_weight() * plain.cross_entropy
        for key, term in terms.items():
            loss = loss + self._tunable(key) * factor * term
        return LossParts(
            loss=ops.where(valid, loss, 0.0),
            cross_entropy=plain.cross_entropy,
            terms={_term_name(key): term for key, term in terms.items()},
            gradient_scale=self._gradient_scale(
                labels, targets, plain, tempered
            ),
            valid=valid,
        )

    def reduce(self, losses, mask=None, sample_weight=None):
        """Reduces per-example losses as Keras reduces its own.

        Args:
            losses: [...], from `call` (its mask of ignored labels counts).
            mask: optional [...] booleans, such as the model's padding mask.
            sample_weight: optional, [batch] or [...].

        Returns:
            A scalar, or [...] with `reduction=None`.
        """
        valid = get_keras_mask(losses)
        if mask is not None and valid is not None:
            mask = ops.logical_and(mask, valid)
        elif valid is not None:
            mask = valid
        return reduce_weighted_values(
            losses,
            sample_weight=expand_weights(sample_weight, losses),
            mask=mask,
            reduction=self.reduction,
            dtype=self.dtype,
        )

    def valid_labels(self, labels):
        """[...] booleans, false where the label is `ignore_class`."""
        if self.ignore_class is None:
            return ops.ones_like(labels, dtype="bool")
        return ops.not_equal(labels, self.ignore_class)

    def _gradient_scale(self, labels, targets, plain, tempered):
        """The ratio w of DESIGN's section on gradient rescaling.

        w = (1 - sum weights) + sum weight * kappa / T
            * ((1 - q_T,t) - (1 - target_t)) / (1 - q_t),

        written with complements, which keep their digits where the
        probabilities are close to 1.
        """
        temperature = self._tunable("temperature")
        factor = self._term_factor() / temperature
        room = plain.off_label_probability
        # Where q_t is 1 in float32, plain training has no gradient to compare
        # with.
        defined = room > np.finfo("float32").epsneg
        safe_room = ops.where(defined, room, 1.0)
        scale = self._hard_weight()
        for key, target in targets.items():
            pull = tempered.off_label_probability - target.off_label_mass(
                labels, plain.num_classes
            )
            scale = scale + self._tunable(key) * factor * (pull / safe_room)
        return ops.stop_gradient(ops.where(defined, scale, float("nan")))

    def _hard_weight(self):
        return 1.0 - sum(self._tunable(key) for key in self._weight_names)

    def _term_factor(self):
        if self.temperature_squared:
            return ops.square(self._tunable("temperature"))
        return ops.ones((), dtype=self.dtype)

    def _tunable(self, name):
        return ops.convert_to_tensor(self._tunables[name])

    def _split(self, y_true):
        if not isinstance(y_true, dict):
            y_true = {LABELS: y_true}
        missing = [n for n in self.statistics if n not in y_true]
        if LABELS not in y_true or missing:
            raise ValueError(
                f"{type(self).__name__} needs y_true to be a dict with "
                f"{[LABELS, *self.statistics]}. Received: {sorted(y_true)}. "
                "`keras_kd.Distiller` makes it from labels and a teacher; "
                "give it a teacher, or a data set that carries its statistics."
            )
        statistics = {
            name: ops.convert_to_tensor(y_true[name])
            for name in self.statistics
        }
        return y_true[LABELS], statistics

    def get_config(self):
        """The arguments of the constructor, with the current values."""
        config = {key: float(v) for key, v in self._tunables.items()}
        config.update(
            temperature_squared=self.temperature_squared,
            ignore_class=self.ignore_class,
            reduction=self.reduction,
            name=self.name,
            dtype=self.dtype,
        )
        return config


def _term_name(weight_name):
    return weight_name.removesuffix("_weight").replace("weight", "distillation")


def check_labels(labels, logits_shape):
    """Checks that labels are class ids for logits of this shape.

    Args:
        labels: [...] or [..., 1], a tensor or array of an integer dtype.
        logits_shape: shape of the logits, [..., classes].

    Returns:
        [...], the labels in int32.

    Raises:
        ValueError: if their dtype is no integer dtype or their shape does not
            fit, as one-hot labels' does not.
    """
    labels = ops.convert_to_tensor(labels)
    shape, dtype = (
        tuple(labels.shape),
        keras.backend.standardize_dtype(labels.dtype),
    )
    rank = len(logits_shape) - 1
    if len(shape) == rank + 1 and shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    elif len(shape) != rank:
        one_hot = len(shape) == rank + 1 and shape[-1] == logits_shape[-1]
        raise ValueError(
            "Labels must be integer class ids with one id for each vector of "
            f"logits, here of shape {tuple(logits_shape[:-1])}. Received: "
            f"labels of shape {shape} and dtype {dtype}"
            + (
                ", which look one-hot. Pass `labels.argmax(-1)`."
                if one_hot
                else ". Reshape them, or check the model's output shape."
            )
        )
    if "int" not in dtype:
        raise ValueError(
            "Labels must be class ids of an integer dtype. Received: labels "
            f"of shape {shape} and dtype {dtype}. Cast class ids with "
            '`labels.astype("int32")`; turn one-hot or soft labels into class '
            "ids with `labels.argmax(-1)`."
        )
    return ops.cast(labels, "int32")


def expand_weights(sample_weight, losses):
    """Gives [batch] weights the rank of [batch, time] losses."""
    if sample_weight is None:
        return None
    sample_weight = ops.convert_to_tensor(sample_weight)
    while len(sample_weight.shape) < len(losses.shape):
        sample_weight = ops.expand_dims(sample_weight, -1)
    return sample_weight


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
        ValueError: if `smoothing` is outside [0, 1].

    Example:
    >>> loss = kd.LabelSmoothing(smoothing=0.1)
    >>> loss(np.array([1]), np.array([[0.0, 2.0]], "float32"))

    Source: Tang et al. 2020, section 3.1 (Szegedy et al. 2016).
    """

    def __init__(self, smoothing=0.1, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        if not 0 <= smoothing <= 1:
            raise ValueError(
                "`smoothing` is a probability and must be in [0, 1]. "
                f"Received: smoothing={smoothing}. A usual value is 0.1."
            )
        self.smoothing = smoothing

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        spread = self.smoothing * (num_classes - 1) / num_classes
        like = ops.ones_like(labels, dtype=self.dtype)
        return SparseTarget(
            classes=ops.expand_dims(labels, -1),
            masses=ops.expand_dims((1 - spread) * like, -1),
            rest=spread * like,
        )

    def get_config(self):
        """The arguments of the constructor."""
        config = {**super().get_config(), "smoothing": self.smoothing}
        del config["temperature"], config["temperature_squared"]
        return config


def _confidence_target(labels, log_odds):
    """The teacher's probability on the label, the rest spread evenly."""
    return SparseTarget(
        classes=ops.expand_dims(labels, -1),
        masses=ops.expand_dims(ops.sigmoid(log_odds), -1),
        rest=ops.sigmoid(-log_odds),
    )


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

    def __init__(self, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        return _label_log_odds(labels, teacher_logits, self.temperature)

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        return _confidence_target(labels, statistics["label_log_odds"])


def _label_log_odds(labels, teacher_logits, temperature):
    softmax = label_softmax(teacher_logits, labels, temperature)
    return {"label_log_odds": softmax.log_odds}


class _ClassRelationLoss(DistillationLoss):
    """What `KDSim` and `KDPtSim` share: a `class_similarity`."""

    def bind_teacher(self, teacher):
        """Reads the teacher's logit layer; see `DistillationLoss`."""
        self.class_similarity.bind_teacher(teacher)

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
    teacher's logit layer. The teacher never runs: its weights are read once.

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
        table_bytes: the target of every class is kept in a [classes, classes]
            table when it fits in this many bytes, else worked out per batch.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: for `alpha`, `beta` or `label_mass` out of range.

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
        self.class_similarity = ClassSimilarity(
            alpha, beta, label_mass, logit_layer, table_bytes, self.dtype
        )

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
        super().__init__(
            weight={"pt_weight": pt_weight, "sim_weight": sim_weight},
            temperature=temperature,
            **kwargs,
        )
        self.class_similarity = ClassSimilarity(
            alpha, beta, label_mass, logit_layer, table_bytes, self.dtype
        )

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        return _label_log_odds(labels, teacher_logits, self.temperature)

    def targets(self, labels, statistics, num_classes):
        """See `DistillationLoss.targets`."""
        return {
            "pt_weight": _confidence_target(
                labels, statistics["label_log_odds"]
            ),
            "sim_weight": _similarity_target(
                self.class_similarity, labels, num_classes
            ),
        }


@_register
class KDTopK(DistillationLoss):
    """KD-topk: knowledge distillation with its noisy tail removed.

    The target keeps the teacher's probabilities on its k largest classes and
    spreads the rest of the mass evenly over the others.

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

    def __init__(self, k=0.25, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)
        is_fraction = isinstance(k, float) and 0 < k <= 1
        is_count = isinstance(k, int) and not isinstance(k, bool) and k >= 1
        if not (is_fraction or is_count):
            raise ValueError(
                "`k` of KDTopK must be an integer count of at least 1 or a "
                f"float fraction in (0, 1]. Received: k={k!r}. Use k=25 for "
                "25 classes or k=0.25 for a quarter of them."
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
                "`k` of KDTopK can't exceed the number of classes. Received: "
                f"k={self.k} for {num_classes} classes. Use a smaller count "
                "or a fraction such as k=0.25."
            )
        return self.k

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        del labels
        k = self.count(teacher_logits.shape[-1])
        scaled = teacher_logits / self.temperature
        scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
        top, classes = ops.top_k(scaled, k)
        smallest = top[..., -1:]
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
        self.count(num_classes)
        return SparseTarget(
            classes=statistics["top_classes"],
            masses=statistics["top_probabilities"],
            rest=statistics["tail_probability"],
        )

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "k": self.k}


def _count(values, value):
    return ops.sum(ops.cast(ops.equal(values, value), values.dtype), axis=-1)


@_register
class KD(DistillationLoss):
    """Full knowledge distillation: all three kinds of knowledge at once.

    The target is the teacher's softmax at the temperature. With
    `temperature_squared` the gradient is that of weight * T ** 2 *
    KL(teacher, student) plus the cross-entropy's; the value differs from it
    by the teacher's entropy, which the student can't change.

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

    def __init__(self, weight=0.5, temperature=2.0, **kwargs):
        super().__init__(weight=weight, temperature=temperature, **kwargs)

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        del labels
        return {"teacher_logits": teacher_logits}

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        logits = ops.cast(statistics["teacher_logits"], self.dtype)
        teacher = label_softmax(logits, labels, self.temperature)
        return DenseTarget(
            ops.softmax(logits / self.temperature, axis=-1),
            off_label=teacher.off_label_probability,
        )


_BY_NAME = {
    "label_smoothing": LabelSmoothing,
    "kd_pt": KDPt,
    "kd_sim": KDSim,
    "kd_pt_sim": KDPtSim,
    "kd_topk": KDTopK,
    "kd": KD,
}
NAMES = tuple(_BY_NAME)


def get(identifier, **kwargs):
    """A loss by name.

    Args:
        identifier: one of `NAMES`, or a `DistillationLoss`, returned as it is.
        **kwargs: arguments of the loss's constructor.

    Returns:
        A `DistillationLoss`.

    Raises:
        ValueError: if there is no loss of that name.

    Example:
    >>> loss = kd.losses.get("kd_topk", k=25)
    """
    if isinstance(identifier, DistillationLoss):
        return identifier
    if not isinstance(identifier, str) or identifier not in _BY_NAME:
        raise ValueError(
            "A distillation loss is a `keras_kd.losses.DistillationLoss` or "
            f"its name. Received: {identifier!r}. The names are "
            f"{', '.join(NAMES)}. For plain training fit the student itself."
        )
    return _BY_NAME[identifier](**kwargs)
