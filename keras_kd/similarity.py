"""Class similarity: what a logit layer knows of the relations of classes."""

import contextlib
import re

import keras
import numpy as np
import scipy.optimize
from keras import ops

from keras_kd.backend.private import (
    BaseConv,
    is_reversible_embedding,
    made_by,
)
from keras_kd.batch import are_soft
from keras_kd.softmax import label_softmax

# A vocabulary of 10,000 words fits.
DEFAULT_TABLE_BYTES = 512 * 2**20

# Rows worked on at a time; also enough of them to place alpha.
_BLOCK_ROWS = 512
# Those whose kernel is [..., classes, features].
_TRANSPOSED_CONVOLUTIONS = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
# An alpha is searched for between these.
_ALPHAS = (1e-3, 1e3)


def logit_weights(model, layer=None):
    """The rows W_i of a classifier's logit layer, one for each class.

    Args:
        model: a built `keras.Model`. The layer is found when it is the last
            layer with weights and a `Dense` (also inside a wrapper), or an
            embedding used in reverse (tied weights).
        layer: optional, the layer or its name, where it can't be found.

    Returns:
        [classes, features] float32 NumPy array.

    Raises:
        ValueError: if no logit layer is found, it has no weights yet, or it is
            not known which of them are of which class.

    Example:
    >>> rows = logit_weights(teacher)
    >>> rows.shape
    (100, 64)
    """
    if layer is None:
        layer = find_logit_layer(model)
    elif isinstance(layer, str):
        layer = _layer_by_name(model, layer)
    return _rows(layer)


def class_similarity(weights):
    """Cosines of the rows of a logit layer.

    Args:
        weights: [classes, features] array.

    Returns:
        [classes, classes] NumPy array in float64, 1 on the diagonal.

    Source: Tang et al. 2020, section 3.3.
    """
    unit = _unit_rows(weights)
    return unit @ unit.T


def find_logit_layer(model):
    """The layer that makes a classifier's logits.

    Args:
        model: a `keras.Model`.

    Returns:
        The layer: the one behind the output of a functional or sequential
        model (a softmax or another layer without weights may follow it), or
        the last weighted layer of a subclassed one.

    Raises:
        ValueError: if the model has not been built, its output joins those
            of several layers, or that layer is neither a `Dense` nor a
            reversible embedding.
    """
    layers = _output_layers(model)
    if len(layers) > 1:
        raise ValueError(_several_layers(model, layers))
    layer = layers[0] if layers else None
    if layer is not None and _is_logit_layer(layer):
        return layer
    weighted = _weighted_layers(model)[-5:]
    names = [each.name for each in weighted]
    readable = [each.name for each in weighted if _has_rows(each)]
    if layer is None and not names:
        raise ValueError(_without_weights(model))
    found = (
        "no layer with weights on the way to its output"
        if layer is None
        else f"{type(layer).__name__} {layer.name!r}"
    )
    remedy = "Pass"
    if readable:
        remedy = f"Name it, as in KDSim(logit_layer={readable[-1]!r}), or pass"
    raise ValueError(
        f"No logit layer was found in model {model.name!r}: its last layer "
        "with weights must be a Dense or an embedding used in reverse. "
        f"Received: {found}. {remedy} its [classes, features] matrix. The last "
        f"layers with weights are {names}."
    )


def _without_weights(model):
    """What to say of a model in which no layer has weights."""
    if model.built:
        return (
            "Class relations are read from the weights of a logit layer. "
            f"Received: model {model.name!r}, in which no layer has weights. "
            "Pass a [classes, features] matrix as `logit_layer`, or use a "
            "loss without class relations, such as KDPt."
        )
    return (
        "Class relations are read from the weights of a logit layer, so the "
        f"model must be built first. Received: model {model.name!r}, which "
        "has not been built. Call it on a batch, or load its weights."
    )


def _several_layers(model, layers):
    """What to say of a model whose output joins those of several layers."""
    return (
        "Class relations are read from one logit layer. Received: model "
        f"{model.name!r}, whose output joins those of "
        f"{[each.name for each in layers]}, as an ensemble does. Pass the "
        "[classes, features] matrix of one of its members, as in "
        "KDSim(logit_layer=keras_kd.similarity.logit_weights(member)), or a "
        "mean of them."
    )


def _output_layers(model):
    """The last layers with weights on all ways to the model's output."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return _weighted_layers(model)[-1:]
    found, waiting = {}, [outputs[0]]
    while waiting:
        operation, inputs, _ = made_by(waiting.pop(0))
        if isinstance(operation, keras.Model):
            found.update((id(each), each) for each in _output_layers(operation))
        elif getattr(operation, "weights", None):
            layer = _unwrap(operation)
            found[id(layer)] = layer
        else:
            waiting += inputs
    return list(found.values())


def _weighted_layers(model):
    """Innermost layers with weights, in the order they were attached."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _weighted_layers(layer)
        elif layer.weights:
            found.append(_unwrap(layer))
    return found


def _unwrap(layer):
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    return layer


def _is_logit_layer(layer):
    is_dense = isinstance(layer, keras.layers.Dense)
    return is_dense or is_reversible_embedding(layer)


def _layer_by_name(model, name):
    candidates = {}
    for layer in [*model.layers, *_weighted_layers(model)]:
        candidates.setdefault(layer.name, layer)
    if name not in candidates:
        raise ValueError(
            f"Model {model.name!r} has no layer called {name!r} to read class "
            f"relations from. Received: logit_layer={name!r}. Choose among "
            f"{sorted(candidates)}."
        )
    return _unwrap(candidates[name])


def _rows(layer):
    """[classes, features], what a layer multiplies its input by."""
    # In float8 a layer keeps the weights that it had.
    if getattr(layer, "quantization_mode", None) not in (None, "float8"):
        return _rows_of_quantized(layer)
    if is_reversible_embedding(layer) and not layer.tie_weights:
        # The reverse matrix of an untied embedding is [features, classes].
        return _to_numpy(layer.reverse_embeddings).T
    if hasattr(layer, "embeddings"):
        return _to_numpy(layer.embeddings)
    axis = _class_axis(layer)
    if axis is None or not hasattr(layer, "kernel"):
        raise _not_read(layer)
    kernel = np.moveaxis(_to_numpy(layer.kernel), axis, 0)
    return kernel.reshape(len(kernel), -1)


def _has_rows(layer):
    """Whether a layer that is named can be read."""
    return hasattr(layer, "embeddings") or _class_axis(layer) is not None


def _not_read(layer):
    """The error for a layer whose rows can't be told."""
    equation = getattr(layer, "equation", None)
    mode = getattr(layer, "quantization_mode", None)
    return ValueError(
        "Class relations are read from the kernel of a Dense, an EinsumDense "
        "or a convolution that gives classes on its last axis, or from "
        f"embeddings. Received: layer {layer.name!r}, {type(layer).__name__}"
        f"{f' of {equation!r}' if equation else ''}"
        f"{f' in {mode}' if mode else ''}, built: {layer.built}. Call the "
        "model once to build it, name another layer, or pass the [classes, "
        "features] matrix."
    )


def _class_axis(layer):
    """Which axis of a layer's kernel is the classes', or `None`."""
    if isinstance(layer, _TRANSPOSED_CONVOLUTIONS):
        return -2
    if isinstance(layer, (keras.layers.Dense, BaseConv)):
        return -1
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, output = _subscripts(layer)
        return kernel.index(output[-1]) if output[-1] in kernel else None
    return None


def _subscripts(layer):
    """Those of the input, the kernel and the output of an `EinsumDense`."""
    return re.split(",|->", layer.equation)


def _rows_of_quantized(layer):
    """The rows that a quantized layer computes with.

    Weights are packed in several ways, with scales of their own for groups of
    them. The layer, which reads them all, gives its matrix for the identity.
    """
    if is_reversible_embedding(layer):
        shape, arguments = (layer.output_dim,), {"reverse": True}
    elif isinstance(layer, keras.layers.Embedding):
        return _to_numpy(layer(np.arange(layer.input_dim, dtype="int32")))
    else:
        shape, arguments = _input_shape(layer), {}
    features = shape[-1]
    unit = np.eye(features, dtype="float32").reshape(features, *shape)
    with _as_product(layer):
        products = _to_numpy(layer(unit, **arguments))
        bias = _to_numpy(layer(np.zeros_like(unit[:1]), **arguments))
    return (products - bias).reshape(features, -1).T


def _input_shape(layer):
    """Shape of one example of a quantized layer, the other axes of size 1."""
    if isinstance(layer, keras.layers.Dense):
        return (layer.input_spec.axes[-1],)
    if not isinstance(layer, keras.layers.EinsumDense):
        raise _not_read(layer)
    given, kernel, output = _subscripts(layer)
    made, contracted = output[-1], given[-1]
    if sorted(kernel) != sorted({made, contracted}) or contracted in output:
        raise _not_read(layer)
    shape = getattr(layer, "original_kernel_shape", None) or layer.kernel.shape
    others = (1,) * (layer.input_spec.ndim - 2)
    return (*others, shape[kernel.index(contracted)])


@contextlib.contextmanager
def _as_product(layer):
    """A context in which a layer leaves out what follows its product."""
    names = ("activation", "logit_soft_cap")
    kept = {
        name: getattr(layer, name) for name in names if hasattr(layer, name)
    }
    try:
        for name in kept:
            setattr(layer, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(layer, name, value)


def _to_numpy(variable):
    # A copy: PyTorch's array changes with the variable.
    return np.array(ops.convert_to_numpy(variable), dtype="float32")


def _unit_rows(weights):
    weights = np.asarray(weights, dtype="float64")
    norms = np.linalg.norm(weights, axis=-1, keepdims=True)
    return weights / np.maximum(norms, 1e-12)


class ClassSimilarity:
    """Targets made of class relations, for `KDSim` and `KDPtSim`.

    The target of label t is the softmax over classes i of
    sign(c) * |c / alpha| ** beta, with c the cosine of the rows t and i of
    the teacher's logit layer.

    Args:
        alpha: see `keras_kd.KDSim`, as the following.
        beta: float above 0.
        label_mass: float in (0, 1).
        logit_layer: `None`, a name, a layer, or a matrix.
        table_bytes: integer.
        dtype: of the targets.
    """

    def __init__(
        self, alpha, beta, label_mass, logit_layer, table_bytes, dtype
    ):
        _check_positive("alpha", alpha, optional=True)
        _check_positive("beta", beta)
        if not 0 < label_mass < 1:
            raise ValueError(
                "`label_mass` is the average probability that the target keeps "
                f"on the label, in (0, 1). Received: label_mass={label_mass}. "
                "A usual value is 0.9."
            )
        self.alpha = alpha
        self.beta = beta
        self.label_mass = label_mass
        self.logit_layer = logit_layer
        self.table_bytes = table_bytes
        self.dtype = dtype
        # [classes, features] float32, what the targets are made of.
        self.weights = None
        self.fitted_alpha = None
        self._variables = {}
        if isinstance(logit_layer, keras.layers.Layer):
            self.bind_teacher(None)
        elif self.is_given:
            self.use(np.array(logit_layer, dtype="float32"))

    @property
    def is_given(self):
        """Whether a layer or a matrix was given, whatever the teacher."""
        return self.logit_layer is not None and not isinstance(
            self.logit_layer, str
        )

    @property
    def variables(self):
        """List of the variables that `target` reads."""
        return list(self._variables.values())

    def bind_teacher(self, teacher, num_classes=None):
        """Reads the logit layer as it is now.

        Nothing is computed if its weights are those of the last time.

        Args:
            teacher: a built `keras.Model`, or `None` if there is none; the
                rows read last, or kept in a file, are then used.
            num_classes: how many of a layer's rows, from the first on, are
                classes of the student, too; `None` for all. A given matrix is
                used as it is.

        Raises:
            ValueError: if there is neither a teacher nor a matrix, no logit
                layer is found, or it has weights that are not finite.
        """
        if isinstance(self.logit_layer, keras.layers.Layer):
            self.use(_rows(_unwrap(self.logit_layer))[:num_classes])
        elif teacher is not None and not self.is_given:
            self.use(logit_weights(teacher, self.logit_layer)[:num_classes])
        if self.weights is None:
            raise ValueError(
                "Class relations are read from the teacher's logit layer. "
                f"Received: teacher={teacher}, logit_layer="
                f"{self.logit_layer!r}. Give the Distiller a teacher, or the "
                "loss a layer or a [classes, features] matrix as "
                "`logit_layer`."
            )

    def use(self, weights):
        """Makes the targets of the rows of a logit layer.

        Args:
            weights: [classes, features] array.

        Raises:
            ValueError: if it has another shape, or is not finite.
        """
        if self.weights is not None and np.array_equal(weights, self.weights):
            return
        finite = np.isfinite(weights)
        if weights.ndim != 2 or not finite.all():
            raise ValueError(
                "The logit layer's matrix must be [classes, features], with "
                f"finite entries. Received: shape {weights.shape}, "
                f"{np.count_nonzero(~finite)} not finite. Check "
                "`logit_layer`, or the teacher's weights."
            )
        unit = _unit_rows(weights)
        self.fitted_alpha = self.alpha or _fit_alpha(
            unit, self.beta, self.label_mass
        )
        num_classes = len(unit)
        if num_classes**2 * np.dtype(self.dtype).itemsize <= self.table_bytes:
            table, off_label = self._target_table(unit)
            self._assign(table=table, off_label=off_label)
        else:
            self._assign(unit=unit, alpha=np.asarray(self.fitted_alpha))
        self.weights = weights

    def _assign(self, **arrays):
        """Puts arrays where a compiled step finds them again."""
        shapes = {name: array.shape for name, array in arrays.items()}
        kept = {name: tuple(v.shape) for name, v in self._variables.items()}
        if shapes == kept:
            for name, array in arrays.items():
                self._variables[name].assign(array.astype(self.dtype))
            return
        # Variables, so that each device of a strategy keeps its own copy.
        self._variables = {
            name: keras.Variable(array, dtype=self.dtype, trainable=False)
            for name, array in arrays.items()
        }

    def copy(self):
        """One of the same relations, with variables of its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._variables = {
            name: keras.Variable(
                ops.convert_to_numpy(variable), self.dtype, trainable=False
            )
            for name, variable in self._variables.items()
        }
        return twin

    def target(self, labels, num_classes):
        """The targets of a batch.

        Args:
            labels: [...] int32 class ids, or soft labels [..., classes].
            num_classes: integer, the student's.

        Returns:
            [..., classes] probabilities, and [...] their complement on the
            label; of soft labels, that of every class, [classes].

        Raises:
            ValueError: if nothing was bound, the class counts differ, or soft
                labels need a table that doesn't fit in `table_bytes`.
        """
        if self.weights is None:
            self.bind_teacher(None)
        if len(self.weights) != num_classes:
            raise ValueError(
                "The teacher's logit layer and the student must have the same "
                f"classes. Received: {len(self.weights)} rows in the logit "
                f"layer, {num_classes} student logits. Check `logit_layer`."
            )
        kept = {
            name: ops.convert_to_tensor(variable)
            for name, variable in self._variables.items()
        }
        if are_soft(labels):
            self._check_table(kept)
            # Not `ops.matmul`, which on PyTorch makes float32 of float64.
            return labels @ kept["table"], kept["off_label"]
        labels = ops.clip(labels, 0, num_classes - 1)
        if "table" in kept:
            return (
                ops.take(kept["table"], labels, axis=0),
                ops.take(kept["off_label"], labels, axis=0),
            )
        unit = kept["unit"]
        cosines = ops.take(unit, labels, axis=0) @ ops.transpose(unit)
        scores = _amplify(cosines, kept["alpha"], self.beta, ops)
        softmax = label_softmax(scores, labels)
        return ops.softmax(scores, axis=-1), softmax.off_label_probability

    def _check_table(self, kept):
        """Refuses soft labels without the target of every class."""
        if "table" not in kept:
            raise ValueError(
                "Soft labels mix the targets of all classes, which must fit in "
                f"`table_bytes`. Received: table_bytes={self.table_bytes} for "
                f"{len(self.weights)} classes. Raise it to at least "
                f"{len(self.weights) ** 2 * np.dtype(self.dtype).itemsize}, or "
                "pass class ids."
            )

    def get_config(self):
        """The arguments of the constructor; a layer as its matrix."""
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "label_mass": self.label_mass,
            "logit_layer": self.weights if self.is_given else self.logit_layer,
            "table_bytes": self.table_bytes,
        }

    def _target_table(self, unit):
        """The target of every class, and its complement on the class."""
        num_classes = len(unit)
        table = np.empty((num_classes, num_classes), self.dtype)
        off_label = np.empty(num_classes, self.dtype)
        for start in range(0, num_classes, _BLOCK_ROWS):
            rows = np.arange(num_classes)[start : start + _BLOCK_ROWS]
            scores = _amplify(
                unit[rows] @ unit.T, self.fitted_alpha, self.beta, np
            )
            exp = np.exp(scores - scores.max(-1, keepdims=True))
            target = exp / exp.sum(-1, keepdims=True)
            table[rows] = target
            target[np.arange(len(rows)), rows] = 0
            off_label[rows] = target.sum(-1)
        return table, off_label


def _amplify(cosines, alpha, beta, xp):
    """sign(c) * |c / alpha| ** beta."""
    return xp.sign(cosines) * xp.power(xp.abs(cosines) / alpha, beta)


def _fit_alpha(unit, beta, label_mass):
    """The alpha at which targets keep `label_mass` on the label on average."""
    step = max(len(unit) // _BLOCK_ROWS, 1)
    rows = np.arange(0, len(unit), step)
    cosines = unit[rows] @ unit.T
    at_label = (np.arange(len(rows)), rows)

    def mean_mass(log_alpha):
        scores = _amplify(cosines, np.exp(log_alpha), beta, np)
        scores -= scores.max(-1, keepdims=True)
        exp = np.exp(scores)
        return (exp[at_label] / exp.sum(-1)).mean()

    # The mass falls from the first alpha to the last; brentq needs both signs.
    low, high = np.log(_ALPHAS)
    if mean_mass(low) <= label_mass:
        return float(np.exp(low))
    if mean_mass(high) >= label_mass:
        return float(np.exp(high))
    root = scipy.optimize.brentq(
        lambda log_alpha: mean_mass(log_alpha) - label_mass,
        low,
        high,
        xtol=1e-9,
    )
    return float(np.exp(root))


def _check_positive(name, value, optional=False):
    if optional and value is None:
        return
    if not value > 0:
        raise ValueError(
            f"`{name}` of the class similarity must be above 0. Received: "
            f"{name}={value}. Leave it at its default, or choose a value such "
            "as 0.3 for alpha and 1 for beta."
        )
