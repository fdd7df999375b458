"""What a teacher's first normalisation layers meet, and what they expect."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_kd.backend.private import flatten_layers

# Later layers repeat what the first ones say.
_LAYERS = 3
_KINDS = (keras.layers.BatchNormalization, keras.layers.Normalization)


def compare(model, x):
    """Compares the inputs of normalisation layers with their statistics.

    Args:
        model: a built `keras.Model`, which is run once, without compilation.
        x: [batch, ...] inputs.

    Returns:
        List by layer, the first that the inputs meet first, of dicts: "layer",
        "channels"; "distance", the median over channels of how far the mean is
        from the expected one, in expected standard deviations; and "scale",
        the median ratio of standard deviations.
    """
    layers = [
        each for each in flatten_layers(model) if isinstance(each, _KINDS)
    ]
    if not layers:
        return []
    seen = {}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_recorded(layer, seen))
        model(x, training=False)
    return [_compared(layer, values) for layer, values in seen.items()]


@contextlib.contextmanager
def _recorded(layer, seen):
    """Keeps the first inputs of a layer while the context lasts."""
    call = layer.call

    def recording(inputs, *args, **kwargs):
        if layer not in seen and len(seen) < _LAYERS:
            # Inside a loop, tensors have no values yet.
            with contextlib.suppress(
                AttributeError, NotImplementedError, TypeError
            ):
                values = ops.convert_to_numpy(inputs)
                seen[layer] = np.asarray(values, "float64")
        return call(inputs, *args, **kwargs)

    layer.call = recording
    try:
        yield
    finally:
        del layer.call


def _compared(layer, values):
    mean, deviation, axes = _expected(layer)
    kept = tuple(axis % values.ndim for axis in axes)
    others = tuple(a for a in range(values.ndim) if a not in kept)
    own_mean = values.mean(others, keepdims=True).reshape(-1)
    own_deviation = values.std(others, keepdims=True).reshape(-1)
    mean, deviation = (
        np.broadcast_to(v.reshape(-1), own_mean.shape)
        for v in (mean, deviation)
    )
    used = deviation > 0
    mean, deviation = mean[used], deviation[used]
    own_mean, own_deviation = own_mean[used], own_deviation[used]
    return {
        "layer": layer.name,
        "kind": type(layer).__name__,
        "channels": len(mean),
        "expected_mean": mean[:8],
        "mean": own_mean[:8],
        "expected_deviation": deviation[:8],
        "deviation": own_deviation[:8],
        "distance": np.median(np.abs(own_mean - mean) / deviation),
        "scale": np.exp(
            np.median(np.log(np.maximum(own_deviation, 1e-9) / deviation))
        ),
    }


def _expected(layer):
    """The mean, the deviation and the axes that a layer normalises by."""
    if isinstance(layer, keras.layers.BatchNormalization):
        mean, variance = layer.moving_mean, layer.moving_variance
        variance = ops.convert_to_numpy(variance) + layer.epsilon
        axis = layer.axis
    else:
        mean, variance, axis = layer.mean, layer.variance, layer.axis
        variance = ops.convert_to_numpy(variance)
    axes = () if axis is None else axis
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    mean = np.asarray(ops.convert_to_numpy(mean), "float64")
    return mean, np.sqrt(np.asarray(variance, "float64")), axes
