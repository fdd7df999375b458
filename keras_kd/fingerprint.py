"""What tells one teacher from another."""

import ast
import hashlib
import inspect
import json
import textwrap
import types
import zlib

import keras
import numpy as np

from keras_kd.backend.private import Functional, call_of, flatten_layers
from keras_kd.states import state_variables, wrappers

# Parts of a configuration that do not change what is computed.
_NAMES = frozenset({"name", "registered_name", "build_config", "trainable"})
# Of a model's also these: its layers are described by themselves, and have
# dtypes of their own; seeds may differ from one process to the next.
_NOT_OF_MODELS = _NAMES | {
    "activity_regularizer",
    "build_input_shape",
    "dtype",
    "input_layers",
    "layers",
    "output_layers",
    "seed",
}
# Their versions count for nothing, their source neither.
_LIBRARIES = frozenset({"jax", "keras", "numpy", "tensorflow", "torch"})


def teacher_fingerprint(teacher):
    """A hash of a teacher's weights, and one of what it computes with them.

    The second covers layers, their configuration, the graph that joins them,
    and the source of a user's own classes and functions. Names do not count:
    the same model loaded twice has one fingerprint. Nor does the carried state
    of recurrent layers, nor the batch size, nor whether PyTorch's modules were
    last called to train.

    Args:
        teacher: a built `keras.Model`.

    Returns:
        A dict of two hexadecimal strings, "weights" and "graph".

    Example:
    >>> teacher_fingerprint(teacher)["weights"][:8]
    """
    weights = hashlib.sha256()
    for value in _weights(teacher):
        for part in _parts(value):
            weights.update(part)
    graph = hashlib.sha256()
    for layer in flatten_layers(teacher):
        graph.update(_description(layer).encode())
    return {"weights": weights.hexdigest(), "graph": graph.hexdigest()}


def teacher_number(fingerprint):
    """A fingerprint as a number that every backend can compare.

    Args:
        fingerprint: from `teacher_fingerprint`.

    Returns:
        An integer in [0, 2**31).
    """
    content = fingerprint["weights"] + fingerprint["graph"]
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


class KnownNumber:
    """The number of a teacher, not worked out again while it is the same.

    A fingerprint of 25 million weights takes 0.1 s and more, longer than many a
    step. A checksum of them takes a fifth of that, or less, and tells whether
    they have changed since. What layers are set to is not looked at again.
    """

    def __init__(self):
        self._seen = None

    def forget(self):
        """Has the number worked out at the next call."""
        self._seen = None

    def of(self, teacher):
        """The `teacher_number` of a teacher's fingerprint.

        Args:
            teacher: a built `keras.Model`.

        Returns:
            An integer in [0, 2**31).
        """
        checksum = 0
        for value in _weights(teacher):
            for part in _parts(value):
                checksum = zlib.crc32(part, checksum)
        now = [checksum, *map(id, flatten_layers(teacher))]
        if self._seen is None or self._seen[0] != now:
            self._seen = now, teacher_number(teacher_fingerprint(teacher))
        return self._seen[1]


def _parts(value):
    """What a weight consists of: shape and dtype, and its bytes."""
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
    yield f"{array.shape}{array.dtype}".encode()
    yield array.reshape(-1).view("uint8")


def _weights(teacher):
    """The values of weights; of PyTorch's modules what they would save."""
    of_modules = wrappers(teacher)
    apart = {id(variable) for variable in state_variables(teacher)}
    apart |= {id(v) for layer in of_modules for v in layer.variables}
    weights = [v for v in teacher.weights if id(v) not in apart]
    saved = [
        value
        for layer in of_modules
        for value in layer.module.state_dict().values()
        if keras.ops.is_tensor(value)
    ]
    return [*weights, *saved]


def _description(layer):
    """A layer's class and configuration; of a model also its graph."""
    kind = type(layer).__name__ + source_of(type(layer)) + _functions(layer)
    if isinstance(layer, keras.layers.TorchModuleWrapper):
        return kind + json.dumps(_modules(layer.module), sort_keys=True)
    if isinstance(layer, keras.Model):
        return kind + _model_description(layer)
    config = _config(layer)
    if config is None:
        return kind
    config.pop("batch_shape", None)
    if wrappers(layer):  # It would hold them pickled, flags included.
        config = {key: _plain(value, {}) for key, value in config.items()}
    return kind + json.dumps(_without_names(config), sort_keys=True)


def _config(layer):
    """A layer's serialised configuration, or `None` if it has none."""
    try:
        return keras.saving.serialize_keras_object(layer.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return None


def _model_description(model):
    """What a model has beside its layers: its graph, and settings."""
    is_plain = type(model).get_config is Functional.get_config
    if is_plain and not wrappers(model):
        config = _config(model)
        if config and "layers" in config:
            return json.dumps(_without_names(_graph(config)), sort_keys=True)
    about = _settings(model)
    if isinstance(model, Functional):
        about = {"settings": about, "calls": _calls(model)}
    return json.dumps(about, sort_keys=True) if about else ""


def _settings(model):
    """What a model's own configuration says, beside its layers."""
    # Settings may name layers, as in "features_of": "dense_1".
    numbers = {each.name: n for n, each in enumerate(flatten_layers(model))}
    try:
        config = model.get_config()
        own = {k: v for k, v in config.items() if k not in _NOT_OF_MODELS}
        return _without_names(_plain(own, numbers))
    # A user's own may raise anything: nothing but saving a model needs it.
    except Exception:
        return {}


def _calls(model):
    """The calls of a functional model's graph, with numbers for tensors."""
    numbers = {id(tensor): n for n, tensor in enumerate(model.inputs)}
    operations, calls = {}, []
    waiting = list(reversed(model.outputs))
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in numbers:
            continue
        operation, arguments, position = call_of(tensor)
        needed = [
            each
            for each in keras.tree.flatten(arguments)
            if isinstance(each, keras.KerasTensor) and id(each) not in numbers
        ]
        if needed:
            waiting += [tensor, *reversed(needed)]
            continue
        numbers[id(tensor)] = len(numbers)
        calls.append(
            [
                operations.setdefault(id(operation), len(operations)),
                _operation(operation),
                _plain(arguments, numbers),
                position,
            ]
        )
    return [calls, [numbers[id(tensor)] for tensor in model.outputs]]


def _operation(operation):
    """Its class, and its configuration unless it is a layer."""
    if isinstance(operation, keras.Layer):
        return [type(operation).__name__]  # It is described by itself.
    config = _plain(_config(operation) or {}, {})
    return [type(operation).__name__, _without_names(config)]


def _modules(module):
    """Of a PyTorch module and those in it the classes and settings.

    Settings are what is plain of their public attributes; tensors that are
    kept elsewhere than in buffers may be made by a call.
    """
    return [
        [
            name,
            f"{type(each).__module__}.{type(each).__qualname__}",
            source_of(type(each)),
            {
                key: _plain(value, {})
                for key, value in vars(each).items()
                if not (key.startswith("_") or key == "training")
                and not keras.ops.is_tensor(value)
            },
        ]
        for name, each in module.named_modules(remove_duplicate=False)
    ]


def _plain(value, numbers):
    """A structure as JSON has them, which is the same in every process.

    Args:
        value: anything.
        numbers: dict of numbers that stand for names, and for the ids of
            symbolic tensors.
    """
    if isinstance(value, dict):
        inner = value.get("config", value)
        if isinstance(inner, dict) and {"name", "trainable"} <= inner.keys():
            return str(value.get("class_name"))  # A layer, described apart.
        return {str(key): _plain(v, numbers) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, numbers) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, str):
        return numbers.get(value, value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, keras.KerasTensor):
        return {"tensor": numbers.get(id(value))}
    if isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value).tolist()
    if isinstance(value, types.FunctionType | type):
        return [value.__qualname__, source_of(value)]
    if hasattr(value, "get_config") and not isinstance(value, keras.Layer):
        return _plain(keras.saving.serialize_keras_object(value), numbers)
    return type(value).__name__


def _functions(layer):
    """The source of a user's own functions that a layer was given.

    Lambdas are in its configuration, others by name alone.
    """
    return "".join(
        source_of(value)
        for name, value in sorted(vars(layer).items())
        if isinstance(value, types.FunctionType)
        and value.__name__ != "<lambda>"
        # Keras wraps a layer's own methods.
        and not hasattr(type(layer), name)
    )


def _graph(config):
    """A functional model's layers and edges, with numbers for names."""
    layers = config.get("layers", [])
    numbers = {layer["name"]: n for n, layer in enumerate(layers)}

    def numbered(value):
        if isinstance(value, dict):
            return {
                key: numbered(each)
                for key, each in value.items()
                if key != "shape"  # Its first dimension is the batch size.
            }
        if isinstance(value, list | tuple):
            return [numbered(each) for each in value]
        return numbers.get(value, value) if isinstance(value, str) else value

    nodes = [
        [
            layer["class_name"],
            numbered(layer["inbound_nodes"]),
            # Operations that are not layers describe themselves nowhere else.
            {} if "layers" in layer["config"] else layer["config"],
        ]
        for layer in layers
    ]
    ends = [config.get("input_layers"), config.get("output_layers")]
    return {"nodes": nodes, "ends": numbered(ends)}


def source_of(kind):
    """The source of a user's own class or function, without comments."""
    if str(kind.__module__).split(".")[0] in _LIBRARIES:
        return ""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
        return ast.unparse(ast.parse(source))
    except (OSError, TypeError, SyntaxError):
        return ""  # Written at a prompt, or generated.


def _without_names(config):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return config["config"]  # Its name is what it does.
        return {
            key: _without_names(value)
            for key, value in config.items()
            if key not in _NAMES and key != "batch_shape"
        }
    if isinstance(config, list | tuple):
        return [_without_names(value) for value in config]
    return config if isinstance(config, int | float | bool) else str(config)
