"""A model's logits, whatever it gives: logits, probabilities or their logs.

Units with a sigmoid are two classes each, with the logits 0 and z: the sigmoid
of z is the softmax of these.

What a model gives is said by the user, or read from the graph of a functional
model; where there is no graph, outputs are taken for logits. No name and no
order of attributes is looked at. Whatever is assumed is compared with the
values of the first batch.
"""

import functools

import keras
import numpy as np
from keras import ops

from keras_kd.backend import private
from keras_kd.reports.numbers import how_many

_BINARY = ("binary_logits", "binary_probabilities")
KINDS = ("logits", "probabilities", "log_probabilities", *_BINARY)
# From so many values between 0 and 1 on, none below, they aren't logits.
_TELLING = 32
# A logit below it rules a class out.
_RULED_OUT = -1e30
# Layers whose `activation` is the last thing that they do.
_APPLY_LAST = (
    keras.layers.Activation,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    private.BaseConv,
)
# What values show that a model gives something else, and what that may be.
_CONTRADICTIONS = {
    "logits": (
        "values between 0 and 1, as of a softmax or a sigmoid",
        "'probabilities' (or 'binary_probabilities', of a sigmoid)",
    ),
    "probabilities": (
        "values that are negative or don't sum to 1 for each example",
        "'logits'",
    ),
    "log_probabilities": (
        "values whose exponentials don't sum to 1 for each example",
        "'logits'",
    ),
    "binary_logits": (
        "values between 0 and 1, as of a sigmoid",
        "'binary_probabilities'",
    ),
    "binary_probabilities": (
        "values that are not between 0 and 1",
        "'binary_logits'",
    ),
}
# What to say of probabilities in the place of a teacher's logits in the data.
CARRIED_MESSAGE = (
    'The "teacher_logits" in the data must be logits. Received: a first batch '
    "of values between 0 and 1, as of a softmax or a sigmoid. Give the logits; "
    "or, of classes, the logarithms of the probabilities as "
    '"teacher_log_probabilities". Logits that do lie there, and do not sum to '
    "1, need Distiller(teacher_output='logits'), or 'binary_logits' of a "
    "sigmoid's."
)


class LogitReader:
    """Reads the logits from the outputs of one model.

    Args:
        model: a `keras.Model`.
        kind: one of `KINDS`, what the model gives; `None` to read it from the
            model's graph, else to expect logits.
        role: "student" or "teacher", for messages and the argument's name.
        output: name of the output that is read; `None` for the only one.
        num_classes: optional integer; classes from there on are cut off.

    Raises:
        ValueError: if `kind` is none of `KINDS`.
    """

    def __init__(
        self,
        model,
        kind=None,
        role="student",
        output=None,
        num_classes=None,
    ):
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"`{role}_output` says what the {role} gives, one of "
                f"{', '.join(map(repr, KINDS))}. Received: {kind!r}. Leave it "
                "out to have it read from the model's graph."
            )
        self.model = model
        self.declared = kind
        self.role = role
        self.output = output
        self.num_classes = num_classes

    @property
    def kind(self):
        """One of `KINDS`, as far as it is known before the model runs."""
        return self.declared or self._graph_kind or "logits"

    @property
    def is_certain(self):
        """Whether the model's graph tells, so that no value is checked."""
        return self.declared is None and self._graph_kind is not None

    @functools.cached_property
    def _graph_kind(self):
        return graph_kind(self.model, self.output)

    @property
    def is_binary(self):
        """Whether each unit is a sigmoid's, as far as it is known."""
        return is_binary(self.kind)

    def kind_of(self, outputs):
        """One of `KINDS`, what a model's outputs are taken to be.

        Args:
            outputs: [..., units], what the model gave.

        Returns:
            `kind`; but a single unit is a sigmoid's.
        """
        kind = self.kind
        if kind not in _BINARY and self.single(outputs).shape[-1] == 1:
            if kind != "logits" or self.declared:
                raise ValueError(
                    f"The {self.role} {self.model.name!r} is taken to give "
                    f"{kind} of classes, of which there must be at least two. "
                    "Received: one output unit. Leave its softmax out, or say "
                    f"{self.role}_output='binary_logits'."
                )
            return "binary_logits"
        return kind

    def single(self, outputs):
        """The tensor that is read of what a model gave.

        Args:
            outputs: what the model gave.

        Returns:
            [..., classes].

        Raises:
            ValueError: if there are several and none was named, or there is
                none of that name.
        """
        if self.output is not None:
            return output_of(self.model, outputs, self.output, self.role)
        leaves = keras.tree.flatten(outputs)
        if len(leaves) != 1:
            raise ValueError(
                f"The {self.role} {self.model.name!r} must have one output, "
                f"the logits. Received: {len(leaves)} outputs. Give a loss by "
                "the output's name, as in compile(loss={name: KD()}), or wrap "
                "it in a model that returns that output alone."
            )
        return leaves[0]

    def logits(self, outputs):
        """The logits behind a model's outputs, of the classes that are kept.

        Args:
            outputs: [..., classes], what the model gave.

        Returns:
            [..., classes]: the outputs themselves; or, after a softmax, its
            input where Keras kept it (exact), else the logarithm of the
            probabilities. Of a sigmoid's units [..., units, 2], the logits 0
            and z; of a single one [..., 2].

        Raises:
            ValueError: if there are several outputs, or a single class.
        """
        logits = self._all_logits(outputs)
        return first_classes(logits, self.num_classes)

    def outside(self, outputs, dtype):
        """What the classes that are cut off add to a cross-entropy.

        Args:
            outputs: [..., classes], what the model gave.
            dtype: of the result.

        Returns:
            [...], the negative logarithm of the probability of all classes
            that are kept; `None` if none is cut off.
        """
        if self.num_classes is None:
            return None
        logits = ops.cast(self._all_logits(outputs), dtype)
        if logits.shape[-1] <= self.num_classes:
            return None
        kept = logits[..., : self.num_classes]
        cut = logits[..., self.num_classes :]
        log_odds = ops.logsumexp(cut, axis=-1) - ops.logsumexp(kept, axis=-1)
        return ops.logaddexp(log_odds, ops.zeros_like(log_odds))

    def _all_logits(self, outputs):
        outputs = self.single(outputs)
        kind = self.kind_of(outputs)
        kept = self._kept(outputs)
        if kept is not None:
            logits = kept
        elif kind == "probabilities":
            logits = _log(outputs)
        elif kind == "binary_probabilities":
            logits = _log(outputs) - _log(1.0 - outputs)
        else:
            logits = outputs
        return of_two_classes(logits) if kind in _BINARY else logits

    def contradicted(self, outputs):
        """Whether values are not what the model is taken to give.

        Args:
            outputs: [..., classes], what the model gave for a batch.

        Returns:
            A boolean scalar tensor.
        """
        values = outputs = self.single(outputs)
        kind = self.kind_of(outputs)
        kept = self._kept(outputs) is not None
        if kind in _BINARY:
            inside = ops.all(ops.logical_and(values >= 0, values <= 1))
            if kept or kind == "binary_probabilities":
                return ops.logical_not(inside)
            return inside if self.declared is None else ops.zeros((), "bool")
        if kind == "log_probabilities" and not kept:
            values = ops.exp(outputs)
        if kind == "logits" and not kept:
            are = are_all_distributions(values)
            if self.declared is None:
                are = ops.logical_or(are, _are_sigmoids(values))
            return are
        told = ops.logical_or(are_distributions(values), _say_nothing(values))
        return ops.logical_not(ops.all(told))

    def refuse(self):
        """Raises for outputs that contradict what the model is taken to give.

        Raises:
            ValueError: with what to say instead.
        """
        received, instead = _CONTRADICTIONS[self.kind]
        told = "said to give" if self.declared else "taken to give"
        raise ValueError(
            f"The {self.role} {self.model.name!r} is {told} {self.kind}. "
            f"Received: a first batch of {received}. Say what it gives, as in "
            f"{self.role}_output={instead}, or correct the model."
        )

    def check(self, outputs):
        """Refuses values that contradict what the model is taken to give.

        Args:
            outputs: [..., classes], what the model gave for a batch.

        Raises:
            ValueError: see `refuse`.
        """
        if bool(ops.convert_to_numpy(self.contradicted(outputs))):
            self.refuse()

    def _kept(self, outputs):
        """What went into Keras's softmax, if that gave the outputs."""
        if self.declared in ("logits", "log_probabilities", "binary_logits"):
            return None
        return private.kept_logits(outputs)


class CarriedLogits(LogitReader):
    """Reads a teacher's logits that come with the data.

    Args:
        kind: what the teacher is said to give, or `None`.
        output: name of the output that they are of; `None` for the only one.
    """

    def __init__(self, kind=None, output=None):
        # Of a teacher of probabilities the data have their logarithms.
        kind = kind if kind in ("logits", "binary_logits") else None
        super().__init__(None, kind, "teacher", output)

    def kind_of(self, outputs):
        """As of a model's; a single unit is a sigmoid's."""
        is_single = self.single(outputs).shape[-1] == 1
        return "binary_logits" if is_single else self.kind

    def refuse(self):
        """Raises for values that are not logits.

        Raises:
            ValueError: with what to give instead.
        """
        raise ValueError(CARRIED_MESSAGE)


def output_names(model, outputs=None):
    """The names of a model's outputs.

    Args:
        model: a `keras.Model`.
        outputs: optional, what it gave.

    Returns:
        List of names; `None` where they are not known, of a subclassed model
        that gives no dict.
    """
    if isinstance(outputs, dict):
        return list(outputs)
    # Of a model that has not been built there is none.
    symbolic = getattr(model, "output", None)
    if isinstance(symbolic, dict) and all(
        isinstance(each, keras.KerasTensor) for each in symbolic.values()
    ):
        # Its keys need not be the names of the layers that made them; in the
        # order of `model.outputs`.
        return keras.tree.flatten({name: name for name in symbolic})
    if isinstance(model, keras.Sequential) and model.built:
        return [model.layers[-1].name]
    return getattr(model, "output_names", None)


def output_of(model, outputs, name, role="student"):
    """One of a model's outputs.

    Args:
        model: a `keras.Model`.
        outputs: what it gave: a dict by name, or in the order of the names;
            or the output itself, taken from these.
        name: of the output.
        role: "student" or "teacher", for the message.

    Returns:
        A tensor.

    Raises:
        ValueError: if there is no output of that name.
    """
    if not isinstance(outputs, (dict, list, tuple)):
        return outputs
    names = output_names(model, outputs)
    if names is None or name not in names:
        raise ValueError(
            f"The {role} {model.name!r} must have an output {name!r}. "
            f"Received: a model with the outputs {names}. Let it return a dict "
            "by name, or name the last layers of a functional model."
        )
    if isinstance(outputs, dict):
        return outputs[name]
    return keras.tree.flatten(outputs)[list(names).index(name)]


def model_of_output(model, name):
    """A model that gives one of the outputs of another.

    Args:
        model: a `keras.Model`.
        name: of the output; `None` for the only one.

    Returns:
        A `keras.Model` of the same layers; the model itself where it has no
        graph.
    """
    tensor = output_tensor(model, name)
    if name is None or tensor is None or len(model.outputs) == 1:
        return model
    return keras.Model(model.inputs, tensor, name=model.name)


def output_tensor(model, name):
    """The symbolic tensor of an output.

    Args:
        model: a `keras.Model`.
        name: of the output; `None` for the first.

    Returns:
        A `keras.KerasTensor`; `None` without a graph.
    """
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    # A model's only output is what it gives, whatever its name.
    if name is None or len(outputs) == 1:
        return outputs[0]
    names = list(output_names(model))
    return outputs[names.index(name)] if name in names else None


def _log(probabilities):
    """The logarithm, finite where a probability is 0."""
    dtype = keras.backend.standardize_dtype(probabilities.dtype)
    wide = dtype if dtype == "float64" else "float32"
    values = ops.cast(probabilities, wide)
    tiny = float(np.finfo(wide).tiny)
    return ops.log(ops.where(values < tiny, tiny, values))


def with_finite_ruled_out(logits):
    """Logits that can be added up, as those of -inf can't.

    A class is ruled out by -inf, or by the smallest number of its dtype.

    Args:
        logits: [..., classes].

    Returns:
        [..., classes] with another number for these, whose probability is 0
        as well; and [...] booleans, whether no logit is NaN or infinite
        otherwise, and not all classes are ruled out.
    """
    is_out = logits < _RULED_OUT
    logits = ops.where(is_out, ops.full_like(logits, _RULED_OUT), logits)
    are_all_out = ops.all(is_out, axis=-1)
    finite = ops.isfinite(ops.sum(logits, axis=-1))
    return logits, ops.logical_and(finite, ops.logical_not(are_all_out))


def of_two_classes(units):
    """The logits of a sigmoid's two classes.

    Args:
        units: [..., units], logits z.

    Returns:
        [..., units, 2], (0, z); of a single unit [..., 2].
    """
    if units.shape[-1] == 1:
        return ops.concatenate([ops.zeros_like(units), units], axis=-1)
    return ops.stack([ops.zeros_like(units), units], axis=-1)


def _are_sigmoids(values):
    """Whether values look like a sigmoid's, and are enough of them to tell."""
    inside = ops.all(ops.logical_and(values >= 0, values <= 1))
    telling = ops.logical_and(
        ops.size(values) >= _TELLING, ops.any(ops.not_equal(values, 0))
    )
    return ops.logical_and(inside, telling)


def is_binary(kind):
    """Whether one of `KINDS` is of a sigmoid's units."""
    return kind in _BINARY


def are_distributions(values):
    """Which vectors look like probabilities of classes.

    Args:
        values: [..., classes].

    Returns:
        [...] booleans, true where no value is negative and all sum to 1.
    """
    dtype = keras.backend.standardize_dtype(values.dtype)
    tolerance = 2e-2 if dtype in ("float16", "bfloat16") else 1e-3
    total = ops.sum(ops.cast(values, "float32"), axis=-1)
    sums_to_1 = ops.abs(total - 1.0) <= tolerance
    return ops.logical_and(ops.min(values, axis=-1) >= 0, sums_to_1)


def are_all_distributions(values):
    """Whether all vectors that say anything are probabilities of classes.

    Args:
        values: [..., classes].

    Returns:
        A boolean scalar tensor, false if none says anything.
    """
    distributions = are_distributions(values)
    told = ops.logical_or(distributions, _say_nothing(values))
    return ops.logical_and(ops.all(told), ops.any(distributions))


def _say_nothing(values):
    """[...] booleans: masked steps may be zeros, and NaN could be anything."""
    zeros = ops.all(ops.equal(values, 0), axis=-1)
    finite = ops.isfinite(ops.sum(ops.cast(values, "float32"), axis=-1))
    return ops.logical_or(zeros, ops.logical_not(finite))


def graph_kind(model, output=None):
    """What a functional model gives, as far as its graph says.

    Args:
        model: a `keras.Model`.
        output: name of the output; `None` for the first.

    Returns:
        "probabilities" or "log_probabilities" if the graph ends in a softmax
        over the last axis or its logarithm, "binary_probabilities" if in a
        sigmoid, "logits" if it ends in a layer without activation (of a single
        unit, "binary_logits"); reshapes, casts and averages may follow. `None`
        where the graph does not tell.
    """
    if not private.runs_its_graph(model):
        return None
    tensor = output_tensor(model, output)
    kind = None if tensor is None else _tensor_kind(tensor)
    if kind == "logits" and tensor.shape[-1] == 1:
        return "binary_logits"
    return kind


def _tensor_kind(tensor):
    """What an operation's result is, as far as the graph tells."""
    operation, inputs, position = private.made_by(tensor)
    if isinstance(operation, keras.Model):
        if not private.runs_its_graph(operation):
            return None
        return _tensor_kind(operation.outputs[position])
    while isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
        if isinstance(operation, keras.Model):
            return graph_kind(operation)
    if isinstance(operation, private.SOFTMAX_OPERATIONS):
        return _of_last_axis(operation, tensor, "probabilities")
    if isinstance(operation, private.LOG_SOFTMAX_OPERATIONS):
        return _of_last_axis(operation, tensor, "log_probabilities")
    if isinstance(operation, private.SIGMOID_OPERATIONS):
        return "binary_probabilities"
    activation = _last_activation(operation)
    if activation is keras.activations.sigmoid:
        return "binary_probabilities"
    if activation is keras.activations.softmax:
        return "probabilities"
    if activation is keras.activations.log_softmax:
        return "log_probabilities"
    if _makes_logits(operation, activation):
        return "logits"
    if not inputs:
        return None
    kinds = {_tensor_kind(each) for each in inputs}
    if isinstance(operation, keras.layers.Average):
        # The mean of logits, or of log-probabilities, serves as logits.
        if len(kinds) == 1 and kinds <= {"probabilities", *_BINARY}:
            return kinds.pop()
        known = kinds <= {"logits", "log_probabilities"}
        return "logits" if known else None
    same_classes = inputs[0].shape[-1] == tensor.shape[-1]
    if _keeps_values(operation, activation) and same_classes:
        return kinds.pop()
    return None


def _of_last_axis(operation, tensor, kind):
    rank = len(tensor.shape)
    return kind if operation.axis in (-1, rank - 1) else None


def _last_activation(operation):
    """The function that a layer applies to its result, `None` if unknown."""
    if isinstance(operation, _APPLY_LAST):
        return operation.activation
    return None


def _makes_logits(operation, activation):
    """Whether a layer's result can be anything, as logits can."""
    if private.is_reversible_embedding(operation):
        return True
    return (
        isinstance(operation, _APPLY_LAST)
        and not isinstance(operation, keras.layers.Activation)
        and activation is keras.activations.linear
    )


def _keeps_values(operation, activation):
    """Whether an operation gives its input's values, perhaps reshaped."""
    if isinstance(operation, keras.layers.Activation):
        return activation is keras.activations.linear
    shape_only = (
        keras.layers.Reshape,
        keras.layers.Identity,
        *private.RESHAPING_OPERATIONS,
    )
    return isinstance(operation, shape_only)


def check_model(role, model):
    """Refuses what is not a `keras.Model`.

    Args:
        role: what the model is, for the message.
        model: what was given for it.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"The {role} must be a keras.Model. Received: {type(model)}. Load "
            "a saved one with keras.models.load_model; wrap a layer or a "
            "function in a keras.Model."
        )


def first_classes(logits, num_classes=None):
    """[..., num_classes], the first of them; `None` for all."""
    if num_classes is None or logits.shape[-1] <= num_classes:
        return logits
    return logits[..., :num_classes]


def shared_class_count(student, teacher, shared=None, output=None):
    """The number of classes that training compares.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model`, or `None`.
        shared: `None` if both have the same classes, the number of classes
            that both begin with, or `True` for the smaller of their counts.
        output: name of the output; `None` for the only one.

    Returns:
        An integer, or `None` for all classes.

    Raises:
        ValueError: if the counts are known and differ while nothing is
            shared, or if `shared` is not a number of classes of both.
    """
    counts = [_class_count(student, output), _class_count(teacher, output)]
    known = [count for count in counts if count is not None]
    if shared is None or shared is False:
        if len(set(known)) > 1:
            raise ValueError(class_count_message(*counts))
        return None
    if shared is True and counts[0] and (counts[1] or teacher is None):
        return min(known)
    is_number = isinstance(shared, int | float | np.number)
    if shared is True or not is_number or shared != int(shared) or shared < 2:
        raise ValueError(
            "`shared_classes` is the number of classes, at least 2, that "
            "student and teacher both begin with; True stands for the smaller "
            f"of their counts, which must be known. Received: {shared!r} with "
            f"a student of {_count_text(counts[0])} and a teacher of "
            f"{_count_text(counts[1])}. Give a number, such as the size of "
            "the tokenizer's vocabulary."
        )
    if known and shared > min(known):
        raise ValueError(
            "`shared_classes` are classes that student and teacher both have. "
            f"Received: {shared} with a student of {_count_text(counts[0])} "
            f"and a teacher of {_count_text(counts[1])}. Give at most "
            f"{min(known)}."
        )
    return int(shared)


def _count_text(count):
    return f"{'an unknown number of' if count is None else count} classes"


def check_several_classes(num_classes):
    """Refuses a model with a single unit.

    Args:
        num_classes: integer, or `None` if it isn't known.

    Raises:
        ValueError: if it is 1.
    """
    if num_classes == 1:
        raise ValueError(
            "Distillation compares classes, of which there must be at least "
            "two. Received: a model with one output unit, as for a sigmoid. "
            "Train it in a keras_kd.Distiller, which takes it for two classes, "
            "or give it two units: a sigmoid of z is the softmax of (0, z)."
        )


def class_count_message(student_classes, teacher_classes, can_share=True):
    """What to say of models with different numbers of classes.

    Args:
        student_classes: integer.
        teacher_classes: integer.
        can_share: whether the caller has an argument `shared_classes`.
    """
    if 1 in (student_classes, teacher_classes):
        return (
            "Student and teacher must have the same outputs. Received: a "
            f"student with {how_many(student_classes, 'class')} and a teacher "
            f"with {teacher_classes}. Give both one unit, whose "
            "sigmoid of z is the softmax of (0, z), or both two."
        )
    shared = "or say `shared_classes`, a number,"
    if not can_share:
        shared = "or cut it, keras.Model(t.inputs, t.outputs[0][..., :n]),"
    return (
        "Student and teacher must have the same classes in the same order. "
        f"Received: a student with {student_classes} classes and a teacher "
        f"with {teacher_classes}. Give the student's last layer "
        f"{teacher_classes} units, use a teacher of the same task, {shared} "
        "if the first ones are the same, as in padded vocabularies."
    )


def _class_count(model, output):
    if output is None and len(getattr(model, "outputs", None) or ()) != 1:
        return None
    tensor = output_tensor(model, output)
    return None if tensor is None else tensor.shape[-1]
