"""What tells one teacher from another."""

import ast
import hashlib
import inspect
import json
import textwrap

import keras
import numpy as np

from keras_kd.backend.private import flatten_layers
from keras_kd.states import state_variables

# Parts of a configuration that do not change what is computed.
_NAMES = frozenset({"name", "registered_name", "build_config", "trainable"})


def teacher_fingerprint(teacher):
    """A hash of a teacher's weights, and one of what it computes with them.

    The second covers layers, their configuration, the graph that joins them,
    and the source of a user's own classes. Names do not count: the same model
    loaded twice has one fingerprint. Nor does the carried state of recurrent
    layers, nor the batch size.

    Args:
        teacher: a built `keras.Model`.

    Returns:
        A dict of two hexadecimal strings, "weights" and "graph".

    Example:
    >>> teacher_fingerprint(teacher)["weights"][:8]
    """
    states = {id(variable) for variable in state_variables(teacher)}
    weights = hashlib.sha256()
    for variable in teacher.weights:
        if id(variable) not in states:
            array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
            weights.update(f"{array.shape}{array.dtype}".encode())
            weights.update(array.tobytes())
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


def _description(layer):
    """A layer's class and configuration; of a model also its graph."""
    kind = type(layer).__name__ + _source(type(layer))
    if isinstance(layer, keras.Sequential):
        return kind  # A chain of its layers, which are described already.
    if isinstance(layer, keras.Model) and not hasattr(layer, "operations"):
        return kind
    try:
        config = keras.saving.serialize_keras_object(layer.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return kind
    if isinstance(layer, keras.Model):
        config = _graph(config)
    config.pop("batch_shape", None)
    return kind + json.dumps(_without_names(config), sort_keys=True)


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


def _source(kind):
    """The source of a user's own class, without comments."""
    if kind.__module__.split(".")[0] == "keras":
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
