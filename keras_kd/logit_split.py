"""A model split at its logit layer: what makes features, and what follows.

The first part is a model of the same layers that gives the logit layer's input.
The second is the product with the layer's kernel and whatever the graph does
with it afterwards, as long as that keeps tokens apart: it can then be computed
for some tokens at a time.
"""

import dataclasses
import functools
import re

import keras
from keras import ops

from keras_kd import backend
from keras_kd.backend import private
from keras_kd.logits import output_tensor
from keras_kd.states import num_rows

_LAST_AXIS = (
    *private.SOFTMAX_OPERATIONS,
    *private.LOG_SOFTMAX_OPERATIONS,
)
# Layers that compute each number from one, or each vector of logits from one.
_ELEMENTWISE = (
    keras.layers.Activation,
    keras.layers.Identity,
    keras.layers.Rescaling,
    private.Cast,
    *private.SIGMOID_OPERATIONS,
    *private.ELEMENTWISE_OPERATIONS,
)
_WHAT_FITS = (
    "`logit_chunks` computes a model's logits for some tokens at a time, so "
    "its graph must end in a logit layer (a Dense, or an embedding used in "
    "reverse) after which only activations, a scale or a soft cap follow. "
)
_WHAT_TO_DO = {
    "student": "Leave `logit_chunks` out, or let the model end so.",
    "teacher": (
        "Leave `logit_chunks` out, let the model end so, or write a "
        "TeacherCache and train from it without a teacher."
    ),
}


@dataclasses.dataclass(frozen=True)
class LogitLayer:
    """The product that makes logits of features.

    Attributes:
        kernel: `keras.Variable`, [features, classes]; of tied weights
            [classes, features].
        bias: `keras.Variable`, [classes], or `None`.
        is_tied: whether the kernel is an embedding.
        dtype: in which the layer computes.
        activation: function that the layer applies last, or `None`.
        keeps_mask: whether the mask of the features is that of the outputs.
    """

    kernel: object
    bias: object
    is_tied: bool
    dtype: str
    activation: object = None
    keeps_mask: bool = False

    @property
    def num_classes(self):
        """Number of logits, a Python integer."""
        return self.kernel.shape[0 if self.is_tied else 1]

    @property
    def variables(self):
        """List of the kernel and, if there is one, the bias."""
        return [v for v in (self.kernel, self.bias) if v is not None]

    def weights(self):
        """List of their values, constants to the gradient.

        They are in the dtype of the product.
        """
        values = map(ops.convert_to_tensor, self.variables)
        return [
            ops.cast(ops.stop_gradient(value), self.dtype) for value in values
        ]

    def product(self, features, weights):
        """Logits before any activation.

        Args:
            features: [tokens, features].
            weights: what `weights` returned.

        Returns:
            [tokens, classes], in float32 at least.
        """
        kernel, *bias = weights
        features = ops.cast(features, self.dtype)
        logits = backend.product(features, kernel, transposed=self.is_tied)
        for each in bias:
            logits = logits + each
        return ops.cast(logits, wide(self.dtype))

    def add_gradients(self, sums, gradient, features, weights):
        """Adds what some tokens contribute to the gradient.

        Args:
            sums: list of the gradients of the weights so far.
            gradient: [tokens, classes], of the logits.
            features: [tokens, features].
            weights: what `weights` returned.

        Returns:
            The list of sums; and the gradient of the features, [tokens,
            features], in float32 at least.
        """
        kernel, *_ = weights
        kernel_sum, *bias_sum = sums
        added = [each + ops.sum(gradient, axis=0) for each in bias_sum]
        gradient, unit = _in_range(gradient, self.dtype)
        features = ops.cast(features, self.dtype)
        of_features = backend.product(
            gradient, kernel, transposed=not self.is_tied
        )
        of_features = ops.cast(of_features, wide(self.dtype)) * unit
        pair = (features, gradient)
        if self.is_tied:
            pair = (gradient, features)
        if isinstance(unit, float):
            kernel_sum = backend.add_product(kernel_sum, *pair)
        else:
            of_kernel = backend.product(ops.transpose(pair[0]), pair[1])
            kernel_sum = kernel_sum + ops.cast(of_kernel, wide(self.dtype)) * (
                unit
            )
        return [kernel_sum, *added], of_features


def wide(dtype):
    """The dtype, or float32 for one of half precision."""
    return dtype if dtype == "float64" else "float32"


def _in_range(gradient, dtype):
    """A gradient in a layer's dtype, and the unit that it is in.

    Loss scaling, which would lift small numbers into the range of float16,
    comes later.
    """
    if dtype != "float16":
        return ops.cast(gradient, dtype), 1.0
    largest = ops.max(ops.abs(gradient))
    unit = ops.where(largest > 0, largest / 1024.0, 1.0)
    return ops.cast(gradient / unit, dtype), unit


@dataclasses.dataclass(frozen=True)
class ModelSplit:
    """A model split at its logit layer.

    Attributes:
        model: the whole `keras.Model`.
        body: a `keras.Model` from the same inputs to the logit layer's.
        layer: `LogitLayer`, as it was when it was read.
        read_layer: function that reads it, see `as_it_is`.
        rest: list of functions, applied one after another to what the layer
            gives.
    """

    model: object
    body: object
    layer: LogitLayer
    read_layer: object
    rest: list

    def as_it_is(self):
        """The same split, with the logit layer as it is now.

        Its activation may have been changed, or LoRA enabled.

        Raises:
            ValueError: if it can't be split any more, saying why.
        """
        return dataclasses.replace(self, layer=self.read_layer())

    def outputs(self, features, weights, mask=None):
        """The model's outputs for some tokens.

        Args:
            features: [tokens, features].
            weights: what `layer.weights` returned.
            mask: optional [tokens] booleans, the mask of the features.

        Returns:
            [tokens, 1, ..., classes], see `with_axes`.
        """
        return self.finish(self.layer.product(features, weights), mask)

    def finish(self, logits, mask=None):
        """The model's outputs.

        Args:
            logits: [tokens, classes], what `LogitLayer.product` gave.
            mask: optional [tokens] booleans, the mask of the features.

        Returns:
            [tokens, 1, ..., classes], see `with_axes`.
        """
        logits = self.with_axes(logits)
        if self.layer.activation is not None:
            logits = self.layer.activation(logits)
        if mask is not None and self.layer.keeps_mask:
            private.set_keras_mask(logits, self.with_axes(mask))
        for function in self.rest:
            logits = function(logits)
        return logits

    def with_axes(self, values):
        """Values of tokens with as many axes as the model's own.

        What follows the logit layer may name an axis, or have one to broadcast.

        Args:
            values: [tokens, ...].

        Returns:
            [tokens, 1, ..., ...], with the other axes of the model's features.
        """
        axes = len(self.body.outputs[0].shape) - 1
        shape = (*(1,) * (axes - 1), *values.shape[1:])
        return ops.reshape(values, (num_rows(values), *shape))


def split_or_none(model, output=None):
    """As `split_model`, but `None` of a model that can't be split.

    Args:
        model: a `keras.Model`.
        output: name of the output; `None` for the only one.

    Returns:
        A `ModelSplit`, or `None`.
    """
    try:
        return split_model(model, "teacher", output)
    except ValueError:
        return None


def split_model(model, role, output=None):
    """Splits a model at its logit layer.

    Args:
        model: a built `keras.Model`, functional or sequential.
        role: "student" or "teacher", for messages.
        output: name of the output; `None` for the only one.

    Returns:
        A `ModelSplit`.

    Raises:
        ValueError: if it can't be split, saying why.
    """

    def refuse(received):
        raise ValueError(
            f"{_WHAT_FITS}Received: {role} {model.name!r}, {received}. "
            f"{_WHAT_TO_DO[role]}"
        )

    _check_graph(model, refuse)
    tensor = output_tensor(model, output)
    features, read_layer, rest = _split_at(tensor, refuse)
    inputs = private.input_structure(model)
    body = keras.Model(inputs, features, name=f"{model.name}_features")
    return ModelSplit(model, body, read_layer(), read_layer, rest)


def _check_graph(model, refuse):
    if not private.runs_its_graph(model):
        refuse(
            "a model without a graph, or with a `call` of its own"
            if model.built
            else "which has not been built"
        )


def _split_at(tensor, refuse):
    """The logit layer's symbolic input, what reads it, what follows it."""
    rest = []
    while True:
        operation, arguments, position = private.call_of(tensor)
        inputs = private.made_by(tensor)[1]
        if isinstance(operation, keras.Model):
            return _split_nested(operation, inputs, position, rest, refuse)
        if len(inputs) != 1:
            refuse(
                f"whose output joins {len(inputs)} tensors"
                if inputs
                else "which has no logit layer"
            )
        _check_call(operation, refuse)
        read_layer = functools.partial(
            _logit_layer, operation, arguments, refuse
        )
        if read_layer() is not None:
            return inputs[0], read_layer, rest
        if not _keeps_tokens_apart(operation, arguments, tensor):
            refuse(
                "whose output is made by "
                f"{type(operation).__name__} {operation.name!r}"
            )
        rest.insert(0, _applied(operation, arguments, inputs[0]))
        tensor = inputs[0]


def _split_nested(model, inputs, position, rest, refuse):
    """The same of a model that is the last layer of another."""
    _check_graph(model, refuse)
    features, read_layer, before = _split_at(model.outputs[position], refuse)
    body = keras.Model(model.inputs, features)
    return body(inputs), read_layer, [*before, *rest]


def _check_call(operation, refuse):
    """Refuses a subclass of what is known that computes something else."""
    if not private.runs_kerass_call(operation):
        refuse(
            f"whose output is made by {type(operation).__name__} "
            f"{operation.name!r}, which has a `call` of its own"
        )


def _logit_layer(operation, arguments, refuse):
    """A `LogitLayer`; `None` of what isn't one."""
    layer = operation
    while isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    _check_call(layer, refuse)
    if private.is_reversible_embedding(layer):
        if not _is_reversed(arguments):
            refuse(f"whose output is the embedding {layer.name!r}")
        found = _of_embedding(layer)
    elif isinstance(layer, keras.layers.Dense):
        found = _of_kernel(layer)
    elif isinstance(layer, keras.layers.EinsumDense):
        if not _is_plain_product(layer):
            refuse(f"whose logit layer computes {layer.equation!r}")
        found = _of_kernel(layer)
    else:
        return None
    for name, has_it in (
        ("is quantized", getattr(layer, "quantization_mode", None)),
        ("has LoRA enabled", getattr(layer, "lora_enabled", False)),
        (
            "has an activity regularizer",
            getattr(layer, "activity_regularizer", None),
        ),
    ):
        if has_it:
            refuse(f"whose logit layer {layer.name!r} {name}")
    if not isinstance(found.kernel, keras.Variable):
        refuse(f"whose logit layer {layer.name!r} computes its kernel")
    keeps_mask = isinstance(
        operation, (keras.layers.Dense, keras.layers.TimeDistributed)
    )
    return dataclasses.replace(found, keeps_mask=keeps_mask)


def _is_reversed(arguments):
    args, kwargs = arguments
    return kwargs.get("reverse", len(args) > 1 and args[1])


def _of_embedding(layer):
    is_tied = layer.tie_weights
    kernel = layer.embeddings if is_tied else layer.reverse_embeddings
    dtype = layer.reverse_dtype or layer.compute_dtype
    cap = getattr(layer, "logit_soft_cap", None)

    def soft_cap(logits):
        return ops.tanh(logits / cap) * cap

    activation = None if cap is None else soft_cap
    return LogitLayer(kernel, None, is_tied, dtype, activation)


def _of_kernel(layer):
    activation = layer.activation
    if activation is keras.activations.linear:
        activation = None
    return LogitLayer(
        layer.kernel, layer.bias, False, layer.compute_dtype, activation
    )


def _is_plain_product(layer):
    """Whether an `EinsumDense` computes what a `Dense` does."""
    match = re.fullmatch(
        r"(\.\.\.|\w*)(\w),(\w)(\w)->(\.\.\.|\w*)(\w)", layer.equation
    )
    if match is None:
        return False
    axes, last, contracted, made, axes_after, last_after = match.groups()
    return (
        (axes, last, made) == (axes_after, contracted, last_after)
        and last != made
        and made not in axes
        and layer.bias_axes in (None, made)
    )


def _keeps_tokens_apart(operation, arguments, tensor):
    """Whether an operation computes each token's values from its own."""
    if isinstance(operation, _LAST_AXIS):
        return operation.axis in (-1, len(tensor.shape) - 1)
    if getattr(operation, "weights", None):
        return False
    if not isinstance(operation, _ELEMENTWISE):
        return False
    others = [
        each
        for each in keras.tree.flatten(arguments)
        if not isinstance(each, keras.KerasTensor) and hasattr(each, "shape")
    ]
    return all(
        all(size == 1 for size in tuple(each.shape)[:-1]) for each in others
    )


def _applied(operation, arguments, tensor):
    """An operation as a function of one tensor."""

    def apply(values):
        args, kwargs = keras.tree.map_structure(
            lambda each: values if each is tensor else each, arguments
        )
        return operation(*args, **kwargs)

    return apply
