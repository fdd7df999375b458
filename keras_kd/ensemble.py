"""Several teachers as one: the mean of their probabilities."""

import collections.abc
import math

import keras
import numpy as np
from keras import ops

from keras_kd.backend import private
from keras_kd.logits import LogitReader, check_model, graph_kind
from keras_kd.states import buffers

_KINDS = ("logits", "probabilities", "log_probabilities")


def ensemble(teachers, weights=None, member_output=None, name=None):
    """Several models as one teacher, the mean of their probabilities.

    Its outputs are the logarithm of the members' mean probabilities, which
    serve as logits and are known as log-probabilities from its graph. So it
    is a teacher like any other for `Distiller`, `TeacherCache` (which knows
    it by all members' weights) and `diagnose`. Members are left as they are,
    and share their weights with it.

    The mean of probabilities, unlike that of logits, gives a member that is
    unsure little say, and does not depend on the scale of a member's logits.

    It has no logit layer of its own, so `KDSim` and `KDPtSim` need
    `logit_layer`, the matrix of one member or of several.

    Args:
        teachers: list of at least two `keras.Model`s with the same inputs and
            the same classes in the same order, at least one of them
            functional or sequential. One that reads some of several inputs
            is put in a model of all first, as in
            `keras.Model(inputs, member({"a": inputs["a"]}))`.
        weights: optional list of numbers above 0, one for each member, of
            which the sum does not matter; the same for all by default.
        member_output: what members give, one of "logits", "probabilities" and
            "log_probabilities", or a list with one for each member. `None`
            reads it from their graphs.
        name: optional name of the model.

    Returns:
        A functional `keras.Model` with outputs [..., classes] in float32.

    Raises:
        TypeError: if members are not a list, or not of `keras.Model`s.
        ValueError: for fewer than two members, members with different inputs
            or classes or several outputs, weights that don't fit, or a member
            whose graph doesn't tell what it gives.

    Example:
    >>> teacher = kd.ensemble([resnet, efficientnet], weights=[1, 2])
    >>> distiller = kd.Distiller(student, teacher)

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network" (arXiv 1503.02531), section 5.
    """
    members = _members(teachers, weights)
    if len(members) < 2:
        raise ValueError(
            "An ensemble has at least two members. Received: "
            f"{len(members)}. A single teacher needs no ensemble."
        )
    for member in members:
        check_model("member", member)
    weights = _shares(weights, len(members))
    kinds = _kinds(members, member_output)
    inputs = _common_inputs(members)
    # Keras runs PyTorch's modules to know their shapes, as if in training.
    kept = [(b, np.array(b)) for member in members for b in buffers(member)]
    outputs = [
        LogitReader(member, role="member").single(
            _named(member, members, i)(inputs)
        )
        for i, member in enumerate(members)
    ]
    for buffer, value in kept:
        buffer.assign(value)
    _check_classes(members, outputs)
    mean = LogMeanProbabilities(kinds, weights)(outputs)
    # Changes nothing, and says in the graph what the outputs are.
    logs = keras.layers.Activation("log_softmax", dtype="float32")(mean)
    return keras.Model(inputs, logs, name=name or "ensemble")


def _members(teachers, weights):
    """The models as a list; anything else, or one as `weights`, is refused."""
    given = [
        each for each in (teachers, weights) if isinstance(each, keras.Model)
    ]
    if given:
        names = ", ".join(repr(each.name) for each in given)
        received = f"{names} without a list"
    elif isinstance(teachers, collections.abc.Iterable):
        return list(teachers)
    else:
        received = repr(teachers)
    raise TypeError(
        "The members of an ensemble are one list of models. Received: "
        f"{received}. Pass a list, as in ensemble([first, second])."
    )


@keras.saving.register_keras_serializable(package="keras_kd")
class LogMeanProbabilities(keras.layers.Layer):
    """The logarithm of the weighted mean of several models' probabilities.

    Args:
        kinds: list of what the inputs are: "logits", "probabilities" or
            "log_probabilities".
        weights: list of floats above 0 with a sum of 1.
        **kwargs: as of `keras.layers.Layer`; computed in float32 by default.
    """

    def __init__(self, kinds, weights, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.kinds = list(kinds)
        self.shares = [float(weight) for weight in weights]
        self.supports_masking = True

    def call(self, inputs):
        """The logarithm of the mean.

        Args:
            inputs: list of [..., classes].

        Returns:
            [..., classes].
        """
        logs = [
            _log_probabilities(each, kind) + math.log(share)
            for each, kind, share in zip(
                inputs, self.kinds, self.shares, strict=True
            )
        ]
        return ops.logsumexp(ops.stack(logs), axis=0)

    def compute_output_shape(self, input_shape):
        """That of each input."""
        return tuple(input_shape[0])

    def compute_mask(self, inputs, mask=None):
        """The first member's."""
        masks = keras.tree.flatten(mask)
        return next((each for each in masks if each is not None), None)

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "kinds": self.kinds,
            "weights": self.shares,
        }


def _log_probabilities(outputs, kind):
    if kind == "probabilities":
        kept = private.kept_logits(outputs)
        if kept is None:
            tiny = float(np.finfo("float32").tiny)
            kept = ops.log(ops.where(outputs < tiny, tiny, outputs))
        outputs = ops.cast(kept, "float32")
    return ops.log_softmax(outputs, axis=-1)


def _shares(weights, count):
    """Weights with a sum of 1."""
    given = np.ones(count) if weights is None else np.asarray(weights)
    fits = given.shape == (count,) and given.dtype.kind in "iuf"
    if not fits or not np.isfinite(given).all() or not (given > 0).all():
        raise ValueError(
            "`weights` of an ensemble are finite numbers above 0, one for each "
            f"member. Received: weights={weights} for {count} members. Leave "
            "out the members that should not count, or the weights."
        )
    given = given.astype("float64")
    return (given / given.sum()).tolist()


def _kinds(members, member_output):
    """What each member gives."""
    declared = member_output
    if declared is None or isinstance(declared, str):
        declared = [declared] * len(members)
    if len(declared) != len(members):
        raise ValueError(
            "`member_output` is what all members give, or a list with one for "
            f"each. Received: {len(declared)} for {len(members)} members. Give "
            "one each, None for those whose graph tells."
        )
    kinds = []
    for number, (member, kind) in enumerate(
        zip(members, declared, strict=True)
    ):
        reader = LogitReader(member, kind, "member")
        if kind is None and graph_kind(member) is None:
            raise ValueError(
                f"What member {number}, {member.name!r}, gives can't be read "
                f"from its graph. Received: a {type(member).__name__} without "
                "`member_output`. Say it, as in member_output='logits' or "
                "'probabilities'."
            )
        if reader.kind not in _KINDS:
            raise ValueError(
                "An ensemble is of models with a softmax over their classes. "
                f"Received: member {number}, {member.name!r}, which gives "
                f"{reader.kind}. Join models with a sigmoid by "
                "keras.layers.Average."
            )
        kinds.append(reader.kind)
    return kinds


def _common_inputs(members):
    """New inputs that all members take, in the structure of the first."""
    known = [
        (member, private.input_structure(member))
        for member in members
        if getattr(member, "inputs", None)
    ]
    if not known:
        raise ValueError(
            "The inputs of an ensemble are those of its members' graphs. "
            "Received: members without a graph. Wrap one of them, as in "
            "keras.Model(inputs, member(inputs)) of inputs = keras.Input(...)."
        )
    first, structure = known[0]
    for member, other in known[1:]:
        if _specs(structure) != _specs(other):
            raise ValueError(
                "The members of an ensemble must take the same inputs. "
                f"Received: {first.name!r} with {_specs(structure)} and "
                f"{member.name!r} with {_specs(other)}. Put what differs, such "
                "as a resizing or a cast, into a model around one of them."
            )
    return keras.tree.map_structure(
        lambda tensor: keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name
        ),
        structure,
    )


def _specs(structure):
    """Paths, shapes and dtypes of inputs."""
    if hasattr(structure, "shape"):
        return f"{tuple(structure.shape)} {structure.dtype}"
    return keras.tree.map_structure(_specs, structure)


def _named(member, members, number):
    """A member under a name that no other model of the ensemble has."""
    same = [each for each in members if each.name == member.name]
    if all(each is member for each in same):
        return member
    if not getattr(member, "outputs", None):
        raise ValueError(
            "The members of an ensemble need names of their own, unless they "
            f"are functional. Received: {len(same)} called {member.name!r}. "
            "Give the constructor another `name`."
        )
    return keras.Model(
        private.input_structure(member),
        member.outputs[0] if len(member.outputs) == 1 else member.outputs,
        name=f"{member.name}_member_{number}",
    )


def _check_classes(members, outputs):
    counts = [tensor.shape[-1] for tensor in outputs]
    shapes = {tuple(tensor.shape) for tensor in outputs}
    if len(shapes) > 1 or 1 in counts:
        found = ", ".join(
            f"{tuple(tensor.shape)} from {member.name!r}"
            for member, tensor in zip(members, outputs, strict=True)
        )
        raise ValueError(
            "The members of an ensemble must have the same classes, at least "
            f"two, in the same order. Received: outputs of shape {found}. Use "
            "models of one task."
        )
