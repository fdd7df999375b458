"""What tells one teacher or data set from another: fingerprints and samples.

A cache is only right for the teacher, the data and the order that it was
written with. Weights are compared exactly, by a hash. Inputs are compared by
random projections within a tolerance, because decoding and resizing differ in
the last digits from one processor to another.
"""

import hashlib
import json
import zlib

import keras
import numpy as np

from keras_kd.states import state_variables

# Two inputs of another data set or preprocessing differ by far more, the same
# one read on another processor by far less.
_TOLERANCE = 1e-3
# Parts of a layer's configuration that do not change what it computes.
_NAMES = frozenset(
    {"name", "registered_name", "build_config", "inbound_nodes", "trainable"}
)


def teacher_fingerprint(teacher):
    """A hash of a teacher's weights, layers and preprocessing layers.

    Names do not count: the same model loaded twice has one fingerprint. Nor
    does the carried state of recurrent layers, nor the batch size.

    Args:
        teacher: a built `keras.Model`.

    Returns:
        A dict of two hexadecimal strings, "weights" and "layers".

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
    layers = hashlib.sha256()
    for layer in teacher._flatten_layers(include_self=False):
        layers.update(_description(layer).encode())
    return {"weights": weights.hexdigest(), "layers": layers.hexdigest()}


def _description(layer):
    """A layer's class and configuration, without names."""
    kind = type(layer).__name__
    if isinstance(layer, keras.Model):
        return kind  # Its layers speak for it.
    try:
        config = keras.saving.serialize_keras_object(layer.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return kind
    config.pop("batch_shape", None)
    return kind + json.dumps(_without_names(config), sort_keys=True)


def _without_names(config):
    if isinstance(config, dict):
        return {
            key: _without_names(value)
            for key, value in config.items()
            if key not in _NAMES
        }
    if isinstance(config, list | tuple):
        return [_without_names(value) for value in config]
    return config if isinstance(config, int | float | bool) else str(config)


def sample(x, labels):
    """A few numbers that stand for one example of a data set.

    Args:
        x: the input, an array of numbers or strings or a structure of such.
        labels: the example's labels, an integer array of any shape.

    Returns:
        List of floats, three for each array: a size and two projections.
    """
    arrays = [*keras.tree.flatten(x), labels]
    return [n for array in arrays for n in _projections(np.asarray(array))]


def _projections(array):
    if array.dtype.kind in "OSU":
        text = b"\0".join(
            v if isinstance(v, bytes) else str(v).encode() for v in array.flat
        )
        checksums = zlib.crc32(text), zlib.adler32(text)
        return [1.0, *(checksum / 2**32 for checksum in checksums)]
    values = array.astype("float64").ravel()
    random = np.random.default_rng(values.size)
    return [
        float(np.linalg.norm(values)),
        *(float(values @ random.normal(size=values.size)) for _ in range(2)),
    ]


def same_sample(first, second):
    """Whether two samples are of the same example.

    Args:
        first: from `sample`.
        second: from `sample`.

    Returns:
        A boolean.
    """
    if len(first) != len(second):
        return False
    first = np.reshape(first, (-1, 3))
    second = np.reshape(second, (-1, 3))
    size = np.maximum(first[:, :1], second[:, :1])
    return bool(np.all(np.abs(first - second) <= _TOLERANCE * size))
