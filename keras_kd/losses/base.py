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
import functools
import inspect

import keras
import numpy as np
from keras import ops

from keras_kd import backend, distribution
from keras_kd.backend.private import get_keras_mask, kept_logits
from keras_kd.batch import LABELS, are_soft, has_known_rank, may_match, settle
from keras_kd.logits import are_distributions
from keras_kd.losses.targets import DenseTarget, SparseTarget, term
from keras_kd.softmax import (
    label_softmax,
    number_like,
    plain_and_tempered,
    softmax_of_largest,
)

# Outside of these a temperature leaves no digit of float32 logits, or of T**2.
_TEMPERATURES = (1e-4, 1e4)
# Above this, a difference of two entropies leaves few digits of a divergence.
_HOT = 16.0
_PROBABILITIES = (
    "A distillation loss in a plain model compares logits. Received: "
    "probabilities, values that are not negative and sum to 1 for each "
    "example. Leave the softmax out of the model, or train it in a "
    "`keras_kd.Distiller`, with student_output='probabilities' where its graph "
    "does not tell."
)
_BAD_LABELS = (
    "A label is not a class id of the student, or a soft label's shares are "
    "negative or don't sum to 1. Received: such labels for {} classes, "
    "ignore_class={}. Check the labels' encoding."
)


@dataclasses.dataclass(frozen=True)
class LossParts:
    """What a loss is made of, per example (or per token).

    Attributes:
        loss: [...], the mixed loss, 0 where an example doesn't count.
        cross_entropy: [...], H(onehot(label), q).
        terms: dict by `term_names` of [...], H(target, q_T) of each
            distillation term, before its weight and T ** 2; less the target's
            entropy where the target has one, which makes it the divergence.
        gradient_scale: [...], the ratio w of this loss's gradient on the
            label's logit to that of the plain cross-entropy; NaN where it is
            undefined because q_t is 1. Of soft labels that of every class,
            [..., classes].
    """

    loss: object
    cross_entropy: object
    terms: dict
    gradient_scale: object


class Tunable:
    """A number of a loss that may change while training.

    It is held in a variable, which the compiled training step reads again at
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


# Parameters that stand for any number of arguments.
_COLLECTING = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


@functools.cache
def _fixed_arguments(loss_class):
    """Arguments of a loss that compiled steps read once, a set of names.

    Those of this package: how an attribute of a user's own class is used is
    the user's to know.
    """
    arguments = _arguments(
        each
        for each in loss_class.__mro__
        if each.__module__.startswith(__package__)
    )
    return {
        name
        for name in arguments
        if not isinstance(getattr(loss_class, name, None), Tunable)
    }


def _arguments(classes):
    """Names of the arguments of classes' constructors, in order."""
    names = dict.fromkeys(
        name
        for each in classes
        for name in _named(inspect.signature(each.__init__))
    )
    return list(names)


def _named(signature):
    """Names of the arguments of a constructor's signature."""
    return [
        name
        for name, parameter in signature.parameters.items()
        if name != "self" and parameter.kind not in _COLLECTING
    ]


def _losses_of(loss_class):
    """The distillation losses that a class is derived from, and itself."""
    classes = loss_class.__mro__
    return [each for each in classes if issubclass(each, DistillationLoss)]


def told_config(loss):
    """A loss's configuration, where it tells the loss from others of its class.

    Args:
        loss: a `DistillationLoss`.

    Returns:
        What `get_config` gives.

    Raises:
        ValueError: if its constructor has arguments that are not told.
    """
    config = loss.get_config()
    untold = untold_arguments(loss)
    if untold:
        raise ValueError(
            f"A loss must tell the arguments of its constructor, or a cache or "
            "a study would take it for another one of its class. Received: "
            f"{type(loss).__name__} with {untold}, which are not in its "
            "configuration. Give the class a `get_config` that returns "
            f"{{**super().get_config(), {untold[0]!r}: ...}}."
        )
    return config


def untold_arguments(loss):
    """List of the arguments of a user's own loss that `get_config` leaves out.

    Args:
        loss: a `DistillationLoss`.
    """
    named = []
    for each in type(loss).__mro__:
        if "get_config" in vars(each):
            break  # It knows the arguments of its class and of those above.
        if "__init__" in vars(each):
            named += _named(inspect.signature(each.__init__))
    config = loss.get_config() if named else ()
    return [name for name in named if name not in config]


def refuse_arguments(loss_class, unknown):
    """Raises for arguments that a loss does not have.

    Args:
        loss_class: the class of the loss.
        unknown: dict of what was given by name.

    Raises:
        TypeError: always.
    """
    known = _arguments(_losses_of(loss_class))
    known = [name for name in known if name not in unknown]
    given = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
    raise TypeError(
        f"{loss_class.__name__} has no such argument. Received: {given}. "
        f"Choose among {', '.join(known)}."
    )


def check_number(loss_class, name, value):
    """Refuses an argument that is not one number.

    Args:
        loss_class: the class of the loss.
        name: of the argument.
        value: as it was given. Strings are refused, even "0.5".

    Returns:
        A float.

    Raises:
        ValueError: if it is not a number.
    """
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`{name}` of {loss_class.__name__} must be a number. Received: "
        f"{name}={value!r}. Pass it as a float."
    )


def _class_id(loss_class, value):
    """`ignore_class` as an integer, or `None`."""
    if value is None:
        return None
    try:
        if int(value) == value:
            return int(value)
    except (OverflowError, TypeError, ValueError):
        pass
    raise ValueError(
        f"`ignore_class` of {loss_class.__name__} must be one integer. "
        f"Received: ignore_class={value!r}. Give the label that does not "
        "count, such as 255 or -100; of several, make them one in the data."
    )


class DistillationLoss(keras.losses.Loss, abc.ABC):
    """Base of the partial-KD losses, and of a user's own.

    A subclass lists in `statistics` the names of what it needs from the
    teacher per example (nothing: the teacher never runs), computes them in
    `teacher_statistics`, and makes its target distribution of them in
    `target`. Reduction, masks, sample weights and distribution scaling are
    those of `keras.losses.Loss`. Computations are in float32 whatever the
    dtype of the logits. The teacher is outside the gradient: that of the loss
    in the teacher's logits and statistics is 0, or `None` where the backend
    says so.

    Args:
        weight: float in [0, 1], the weight of the distillation term; the
            cross-entropy on the labels weighs 1 - `weight`. Or a dict of
            such weights by term name, for a loss of several terms, with a
            sum of at most 1; `targets` gives a target for each name.
        temperature: float above 0, divides the logits in the distillation
            term.
        temperature_squared: whether the distillation term is multiplied by
            `temperature ** 2`, as by Hinton et al. 2015 and every toolkit
            since; `False` gives the form of Tang et al. 2020.
        ignore_class: optional integer; examples with this label count
            neither in the loss nor in its mean. As in Keras, metrics see
            them.
        reduction: as in `keras.losses.Loss`.
        name: optional name.
        dtype: `"float32"` (default) or `"float64"`.
        **kwargs: none; refused by name.

    Raises:
        TypeError: for an argument that the loss does not have.
        ValueError: for a weight outside [0, 1], weights that sum to more
            than 1, a temperature not above 0, one of these that is not a
            number, an `ignore_class` that is not an integer, or another dtype.

    Example:
    A loss that keeps nothing but the teacher's favourite class:

    ```python
    class KDTop1(kd.losses.DistillationLoss):
        statistics = ("top_class", "top_probability")
        reads_labels = False

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
    # Whether the target depends on the label. Where it does not, examples
    # without a label are trained on too.
    reads_labels = True
    # Whether `teacher_statistics` and `targets` take soft labels as well; of
    # no account where they don't read the labels.
    takes_soft_labels = False
    # Whether there is such a target between two classes.
    takes_two_classes = True
    # A weak reference to the Distiller that is compiled with it.
    owner = None

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
        **kwargs,
    ):
        if kwargs:
            refuse_arguments(type(self), kwargs)
        dtype = "float32" if dtype is None else dtype
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                f"{type(self).__name__} computes in float32 or float64, "
                f"whatever the dtype of the models. Received: dtype={dtype}. "
                "Leave `dtype` out."
            )
        self.temperature_squared = temperature_squared
        self.ignore_class = _class_id(type(self), ignore_class)
        weights = weight if isinstance(weight, dict) else {"weight": weight}
        self._weight_names = tuple(weights)
        self._tunables = {}
        self._add_tunables(**weights, temperature=temperature)

    def __setattr__(self, name, value):
        """Refuses a change that a compiled step would not see.

        Raises:
            ValueError: for an argument of the constructor that may not change
                while training, once a Distiller is compiled with the loss.
        """
        owner = self.owner and self.owner()
        if owner is not None and name in _fixed_arguments(type(self)):
            raise ValueError(
                f"`{name}` of {type(self).__name__} is fixed once a Distiller "
                f"is compiled with it. Received: {name}={value!r}. Compile the "
                f"Distiller again, with a loss made with this `{name}`; only "
                f"{sorted(self._tunables)} may change while training."
            )
        super().__setattr__(name, value)

    def _add_tunables(self, **values):
        """Makes numbers that may change while training; see `Tunable`."""
        self._check_tunables({**self.tunables, **values})
        for key, value in values.items():
            self._tunables[key] = keras.Variable(
                self._number(value), self.dtype, trainable=False, name=key
            )
        self._note_heat(values)

    def _note_heat(self, values):
        """Notes whether the temperature is high, as a compiled step reads once.

        Digits of the loss's value depend on it, not its gradient.
        """
        if "temperature" in values:
            self._is_hot = bool(values["temperature"] > _HOT)

    # -- what a subclass says ------------------------------------------------

    def teacher_statistics(self, labels, teacher_logits):
        """What the loss needs from the teacher, per example.

        Args:
            labels: [...] int32 class ids, all inside [0, classes); with
                `takes_soft_labels` perhaps floats, [..., classes].
            teacher_logits: [..., classes], in the loss's dtype.

        Returns:
            A dict with a tensor for each name in `statistics`.
        """
        del labels, teacher_logits
        return {}

    def target(self, labels, statistics, num_classes):
        """The target distribution of a loss with one distillation term.

        Args:
            labels: [...] int32 class ids; with `takes_soft_labels` perhaps
                floats, [..., classes].
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

    def bind_teacher(self, teacher, num_classes=None):
        """Takes from the teacher's weights what is not needed per example.

        A Distiller calls it in `compile`, and again whenever training starts,
        since weights may have been loaded between. What a compiled step reads
        belongs in variables that are assigned to, not made again.

        Args:
            teacher: a built `keras.Model`, or `None`.
            num_classes: how many of its classes, from the first on, the
                student is compared with; `None` for all.
        """

    def copy(self):
        """A loss of the same settings, with variables of its own.

        A Distiller that is compiled with the loss of another one takes a copy.
        A subclass with variables of its own gives the copy its own as well.

        Returns:
            A loss of this class, with the current values.
        """
        # Not by `get_config`, which a subclass may have left as it was.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.owner = None
        twin._tunables = {
            key: keras.Variable(
                self._number(value), self.dtype, trainable=False, name=key
            )
            for key, value in self.tunables.items()
        }
        return twin

    @property
    def term_names(self):
        """Names of the distillation terms: "pt" for `pt_weight`, and so on."""
        return tuple(_term_name(name) for name in self._weight_names)

    # -- numbers that may change while training ------------------------------

    @property
    def variables(self):
        """List of the `keras.Variable`s that the loss reads.

        A subclass that has its own adds them: on JAX what is not listed is
        compiled into the training step as it was at the first step.
        """
        return list(self._tunables.values())

    @property
    def random_variables(self):
        """Those of the variables that hold the state of random numbers.

        `keras_kd.callbacks.BackupAndRestore` and a Distiller's file keep them,
        so that training that resumes draws what it would have drawn.
        """
        return []

    @property
    def tunables(self):
        """Dict of the current values of what may change, by name."""
        # Python can't make a number of a variable of several replicas.
        return {
            name: float(ops.convert_to_numpy(variable))
            for name, variable in self._tunables.items()
        }

    @property
    def weights(self):
        """Dict of the current weights of the distillation terms, by name."""
        return {name: self.tunables[name] for name in self._weight_names}

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
        self._check_tunables({**self.tunables, **values})
        for key, value in values.items():
            self._tunables[key].assign(self._number(value))
        self._note_heat(values)

    def _number(self, value):
        # PyTorch makes a float32 of a Python float first.
        return np.asarray(value, self.dtype)

    def _check_tunables(self, values):
        name = type(self).__name__
        for key, value in values.items():
            check_number(type(self), key, value)
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
        low, high = _TEMPERATURES
        if not low <= values["temperature"] <= high:
            raise ValueError(
                f"`temperature` of {name} divides the logits and must be above "
                f"0, in [{low:g}, {high:g}]. Received: temperature="
                f"{values['temperature']}. Choose a value such as 1, 2 or 4."
            )

    # -- the loss ------------------------------------------------------------

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced loss.

        A loss that is given to a plain `keras.Model` sees the model's outputs
        alone: those of Keras's softmax are traced back to the logits where the
        backend lets Keras keep them (not on JAX); other probabilities are
        refused.

        Args:
            y_true: dict with "labels" ([...] integer class ids, or soft
                labels [..., classes]) and the statistics that the loss names;
                or the labels alone where it names none.
            y_pred: [..., classes] student logits.
            sample_weight: optional, [batch] or the shape of the labels.

        Returns:
            A scalar, or [...] with `reduction=None`.

        Raises:
            TypeError: for a tuple in place of labels.
            ValueError: if statistics are missing, labels or weights don't fit
                the logits, or `y_pred` holds probabilities. (In a compiled
                step of TensorFlow or JAX the last is the backend's own
                error, with the same message.)
        """
        if isinstance(y_true, tuple):
            raise TypeError(
                f"{type(self).__name__} takes what it reads by name. Received: "
                f"a tuple of {len(y_true)}. Pass labels, or a dict with "
                f"{[LABELS, *self.statistics]}."
            )
        with keras.name_scope(self.name):
            logits, is_bad = _logits_of(y_pred)
            batch = settle(
                y_true,
                logits,
                sample_weight,
                get_keras_mask(y_pred),
                self.ignore_class,
                label_reader=self.label_reader,
            )
            losses = self.batch_parts(batch).loss
            losses = backend.refuse_where(is_bad, _PROBABILITIES, losses)
            is_bad = ops.logical_not(ops.all(batch.is_valid))
            message = _BAD_LABELS.format(batch.num_classes, self.ignore_class)
            losses = backend.refuse_where(is_bad, message, losses)
            return reduce_over_batch(losses, batch, self.reduction)

    def call(self, y_true, y_pred):
        """[...], the loss of each example; see `__call__`."""
        return self.parts(y_true, y_pred).loss

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
        batch = settle(
            y_true,
            y_pred,
            ignore_class=self.ignore_class,
            label_reader=self.label_reader,
        )
        return self.batch_parts(batch)

    def batch_parts(self, batch):
        """The loss of each example of a settled batch.

        Args:
            batch: a `keras_kd.batch.Batch`.

        Returns:
            `LossParts`.

        Raises:
            ValueError: if statistics are missing.
        """
        logits = ops.cast(batch.logits, self.dtype)
        labels = batch.labels
        if batch.is_soft:
            self.check_soft_labels(labels)
            labels = ops.cast(labels, self.dtype)
        statistics = self._statistics_of(batch.y, batch.is_valid.shape)
        targets = self.targets(labels, statistics, logits.shape[-1])
        plain, tempered = plain_and_tempered(
            logits,
            # A soft label is seen from the largest class, which keeps the
            # digits of all.
            ops.argmax(logits, axis=-1) if batch.is_soft else labels,
            self.temperature,
            classes=[
                target.classes
                for target in targets.values()
                if isinstance(target, SparseTarget)
            ],
            mixtures=[
                target.probabilities
                for target in targets.values()
                if isinstance(target, DenseTarget)
            ],
        )
        hard = batch.over_all_classes(_cross_entropy(plain, labels))
        hard = batch.of_labelled(hard)
        copies = tempered.copies(len(targets))
        terms = {
            key: term(target, copy, self._is_hot)
            for (key, target), copy in zip(targets.items(), copies, strict=True)
        }
        factor = self._term_factor()
        loss = _share(self._hard_weight(), hard)
        for key, value in terms.items():
            loss = loss + _share(self._term_weight(key) * factor, value)
        return LossParts(
            loss=batch.counted_part(loss),
            cross_entropy=hard,
            terms={_term_name(key): value for key, value in terms.items()},
            gradient_scale=self._gradient_scale(
                labels, targets, plain, tempered
            ),
        )

    def _gradient_scale(self, labels, targets, plain, tempered):
        """The gradient scale w (Tang et al. 2020, proposition 1).

        w = (1 - sum weights) + sum weight * kappa / T
            * ((1 - q_T,t) - (1 - target_t)) / (1 - q_t),

        written with complements, which keep their digits where the
        probabilities are close to 1. Of soft labels it is that of every class.
        """
        temperature = self._tunable("temperature")
        factor = self._term_factor() / temperature

        def off_label(softmax):
            if are_soft(labels):
                return softmax.complements
            return softmax.off_label_probability

        room = off_label(plain)
        # Where q_t is 1 in float32, plain training has no gradient to compare
        # with.
        defined = room > np.finfo("float32").epsneg
        safe_room = ops.where(defined, room, 1.0)
        scale = self._hard_weight()
        for key, target in targets.items():
            pull = off_label(tempered) - target.off_label_mass(
                labels, plain.num_classes
            )
            weight = self._term_weight(key) * factor
            scale = scale + weight * (pull / safe_room)
        return ops.stop_gradient(ops.where(defined, scale, float("nan")))

    @property
    def label_reader(self):
        """The class's name if examples must have labels, else `None`."""
        return type(self).__name__ if self.reads_labels else None

    def check_soft_labels(self, labels):
        """Refuses soft labels for a loss that reads class ids.

        Args:
            labels: [..., classes].

        Raises:
            ValueError: unless the loss takes soft labels or reads none.
        """
        if self.reads_labels and not self.takes_soft_labels:
            raise ValueError(
                f"{type(self).__name__} reads class ids. Received: labels of "
                f"shape {tuple(labels.shape)}, a share for each class. Pass "
                "class ids, labels.argmax(-1); or declare `reads_labels = "
                "False` if its target doesn't depend on the label, or "
                "`takes_soft_labels = True` if it does for shares as well."
            )

    def _hard_weight(self):
        return 1.0 - sum(self._tunable(key) for key in self._weight_names)

    def _term_weight(self, name):
        """Scalar, what a term is multiplied by; see `targets`."""
        return self._tunable(name)

    def _term_factor(self):
        if self.temperature_squared:
            return ops.square(self._tunable("temperature"))
        return ops.ones((), dtype=self.dtype)

    def _tunable(self, name):
        return ops.convert_to_tensor(self._tunables[name])

    def _statistics_of(self, y, shape):
        """Dict of what the loss names; `shape` is [...], of the examples."""
        missing = [name for name in self.statistics if name not in y]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs y_true to be a dict with "
                f"{[LABELS, *self.statistics]}. Received: {sorted(y)}. "
                "`keras_kd.Distiller` makes it from labels and a teacher; "
                "give it a teacher, or a data set that carries its statistics."
            )
        statistics = {
            name: ops.stop_gradient(ops.convert_to_tensor(y[name]))
            for name in self.statistics
        }
        for name, values in statistics.items():
            check_of_each(name, values, shape)
        return statistics

    def get_config(self):
        """The arguments of the constructor, with the current values.

        A subclass with further arguments adds them to it.
        """
        weights = self.weights
        others = {k: v for k, v in self.tunables.items() if k not in weights}
        return {
            **self.weight_arguments(),
            **others,
            "temperature_squared": self.temperature_squared,
            "ignore_class": self.ignore_class,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }

    def weight_arguments(self):
        """Dict of the weights, by the arguments that take them."""
        if set(self.weights) == {"weight"}:
            return self.weights
        known = _arguments(_losses_of(type(self)))
        found = {}
        for name, value in self.weights.items():
            if name in known and name != "weight":
                found[name] = value
            elif f"{name}_weight" in known:
                found[f"{name}_weight"] = value
            else:
                found.setdefault("weight", {})[name] = value
        return found


def check_of_each(name, values, shape, exactly=False):
    """Refuses a statistic of other examples, which might broadcast.

    Args:
        name: of the statistic, for the message.
        values: a tensor; a scalar passes.
        shape: [...], of the examples.
        exactly: whether there is one number for each.

    Raises:
        ValueError: if its shape does not begin with that of the examples.
    """
    if not has_known_rank(values):
        return
    given, shape = tuple(values.shape), tuple(shape)
    compared = given if exactly else given[: len(shape)]
    if given and not may_match(compared, shape):
        raise ValueError(
            "Statistics of the teacher are those of each example (or token), "
            f"here of shape {shape}{'' if exactly else ', and more axes'}. "
            f"Received: {name!r} of shape {given}. Check that they are of the "
            "same batch as the labels; what all examples share belongs in "
            "a variable of the loss."
        )


def _term_name(weight_name):
    return weight_name.removesuffix("_weight").replace("weight", "distillation")


def _share(weight, values):
    """A weight times values, nothing of an infinite one at weight 0."""
    is_nothing = ops.logical_and(ops.equal(weight, 0), ops.isinf(values))
    return ops.where(is_nothing, 0.0, weight * values)


def _logits_of(y_pred):
    """Logits, and whether outputs of a plain model are probabilities."""
    kept = kept_logits(y_pred)
    if kept is not None:
        return kept, None
    y_pred = ops.convert_to_tensor(y_pred)
    look_so = are_distributions(y_pred)
    # Of an empty batch all would.
    return y_pred, ops.logical_and(ops.any(look_so), ops.all(look_so))


def cross_entropy(logits, labels):
    """Plain cross-entropy on the labels.

    Args:
        logits: [..., classes].
        labels: settled: [...] class ids, or [..., classes] shares.

    Returns:
        [...].
    """
    if are_soft(labels):
        labels = ops.cast(labels, logits.dtype)
        return _cross_entropy(softmax_of_largest(logits), labels)
    return _cross_entropy(label_softmax(logits, labels), labels)


def _cross_entropy(softmax, labels):
    """The same, from the softmax seen from the label or the largest class."""
    if are_soft(labels):
        return DenseTarget(labels).cross_entropy(softmax)
    return softmax.cross_entropy


def reduce_over_batch(values, batch, reduction):
    """The weighted mean, or sum, of a batch's losses over all replicas.

    Keras divides each replica's sum by what that replica counted and averages
    over replicas, so that a replica with few unmasked examples weighs as much
    as one with many; this divides by what all of them counted.

    Args:
        values: [...], a loss for each example, 0 where it doesn't count.
        batch: the `keras_kd.batch.Batch`.
        reduction: as in `keras.losses.Loss`: "sum_over_batch_size" and "mean"
            divide by the number of examples that count,
            "mean_with_sample_weight" by the sum of their weights.

    Returns:
        A scalar, this replica's share of the sum over all replicas; [...]
        with reduction "none" or `None`.
    """
    if reduction in (None, "none"):
        return _weighed(values, batch)
    return mean_over_replicas(*batch_sums(values, batch, reduction))


def batch_sums(values, batch, reduction):
    """The weighted sum of losses, and what a mean divides it by.

    Args:
        values: see `reduce_over_batch`.
        batch: the same.
        reduction: the same, but not "none" or `None`.

    Returns:
        Two scalars; the second is `None` for a sum.
    """
    total = ops.sum(_weighed(values, batch))
    if reduction == "sum":
        return total, None
    counted = ops.cast(batch.counted, values.dtype)
    if reduction == "mean_with_sample_weight" and batch.weights is not None:
        counted = counted * ops.cast(batch.weights, values.dtype)
    return total, ops.sum(counted)


def mean_over_replicas(total, count):
    """A replica's share of the mean over all of them.

    Args:
        total: scalar, this replica's sum.
        count: scalar, what it counted; `None` for no mean.

    Returns:
        A scalar.
    """
    if count is None:
        return total
    # It has no gradient, for which replicas would be asked once more.
    count = distribution.sum_over_replicas(ops.stop_gradient(count))
    # PyTorch's `ops.divide_no_nan` makes float32 of float64.
    is_empty = ops.equal(count, 0)
    zero, one = (number_like(each, total) for each in (0.0, 1.0))
    return ops.where(is_empty, zero, total / ops.where(is_empty, one, count))


def _weighed(values, batch):
    if batch.weights is None:
        return values
    return values * ops.cast(batch.weights, values.dtype)
