"""What a teacher's normalisation layers meet, and what they expect."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_kd.backend.private import flatten_layers

# Later layers repeat what the first ones say.
_LAYERS = 3
_KINDS = (keras.layers.BatchNormalization, keras.layers.Normalization)
# Averages of one training have come about as far, if they have come somewhere.
_ALIKE, _SAME_WAY = 0.3, 0.8


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
            with _only_values():
                values = ops.convert_to_numpy(inputs)
                seen[layer] = np.asarray(values, "float64")
        return call(inputs, *args, **kwargs)

    with _calling(layer, recording):
        yield


@contextlib.contextmanager
def _calling(layer, call):
    """Replaces what a layer does while the context lasts."""
    layer.call = call
    try:
        yield
    finally:
        del layer.call


def _only_values():
    """Leaves out tensors that have no values yet, as inside a loop."""
    return contextlib.suppress(AttributeError, NotImplementedError, TypeError)


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


def by_the_batch(model, x):
    """Runs a model whose batch normalisation takes the batch's statistics.

    As in training, but without dropout, and the model is left as it is.

    Args:
        model: a built `keras.Model`, which is run once, without compilation.
        x: [batch, ...] inputs.

    Returns:
        The outputs, and a dict: "layers", how many there are; "progress", the
        median share of the way that moving averages have come from 0 and 1,
        where they begin, to the batch's means and variances; and "alike", the
        share of them that are near that. Where inputs are of another form,
        each has a share of its own. (`None`, `None`) without such layers.
    """
    layers = [
        each
        for each in flatten_layers(model)
        if isinstance(each, keras.layers.BatchNormalization)
    ]
    met = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            call = _normalising(layer, met)
            stack.enter_context(_calling(layer, call))
        outputs = model(x, training=False) if layers else None
    if not met:
        return None, None
    return outputs, {"layers": len(met), **_progress(np.concatenate(met))}


def _normalising(layer, met):
    """What a layer of batch normalisation does in training."""

    def call(inputs, training=None, mask=None):
        x = ops.cast(inputs, "float32")
        axis = layer.axis % len(x.shape)
        others = [each for each in range(len(x.shape)) if each != axis]
        mean, variance = ops.moments(x, others)
        with _only_values():
            met.append(_shares(layer, mean, variance))
        outputs = ops.batch_normalization(
            x,
            mean,
            variance,
            axis,
            getattr(layer, "beta", None),
            getattr(layer, "gamma", None),
            layer.epsilon,
        )
        return ops.cast(outputs, layer.compute_dtype)

    return call


def _shares(layer, mean, variance):
    """How far a layer's averages have come: [2, 2], with a cosine each.

    They began at 0 and at 1.
    """
    pairs = (
        (layer.moving_mean, mean, 0),
        (layer.moving_variance, variance, 1),
    )
    shares = []
    for average, own, start in pairs:
        way, whole = (
            np.asarray(ops.convert_to_numpy(each), "float64") - start
            for each in (average, own)
        )
        length, full = np.linalg.norm(way), np.linalg.norm(whole)
        along = way @ whole / max(full, 1e-9)
        # Those that have not moved have no direction that could be wrong.
        shares.append(
            [along / max(full, 1e-9), along / length if length > 1e-9 else 1]
        )
    return np.array(shares)


def _progress(shares):
    share, cosine = shares.T
    middle = np.median(share)
    alike = (abs(share - middle) <= _ALIKE * middle) & (cosine > _SAME_WAY)
    return {"progress": middle, "alike": alike.mean()}
