"""Whether a model's weights are those that its layers were created with."""

import keras
import numpy as np
import scipy
from keras import ops

from keras_kd.backend.private import BaseConv, flatten_layers

_KINDS = (keras.layers.Dense, keras.layers.EinsumDense, BaseConv)
# Weights that were trained follow the initial distribution with a probability
# far below this.
_LEAST_P = 1e-3
# Fewer weights can't be told from any distribution; biases of 0 must say it.
_FEWEST_WEIGHTS = 50
# Most initialisers draw within bounds; training, even a little, goes beyond.
_BEYOND = 1.05
_MOST_WEIGHTS = 20_000


def untrained_layers(model):
    """The dense and convolution layers that look as if just created.

    Their biases are all 0, where they have any, and their kernels have the
    distribution that their initialiser draws from. A layer below the last one
    that is frozen where others are not may be random on purpose; it is left
    out.

    Args:
        model: a built `keras.Model`.

    Returns:
        A dict: "layers", how many were looked at; "untrained", the names of
        those; and "last", whether the last one is among them.
    """
    layers = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, _KINDS) and layer.built
    ]
    trainable = any(layer.trainable for layer in layers)
    found = [
        layer
        for layer in layers
        if (layer.trainable == trainable or layer is layers[-1])
        and _is_untrained(layer)
    ]
    return {
        "layers": len(layers),
        "untrained": [layer.name for layer in found],
        "last": bool(layers) and layers[-1] in found,
    }


def _is_untrained(layer):
    bias = getattr(layer, "bias", None)
    if bias is not None and np.any(ops.convert_to_numpy(bias)):
        return False
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), "float64")
    values = kernel.reshape(-1)
    few = len(values) < _FEWEST_WEIGHTS and bias is None
    if few or not np.isfinite(values).all():
        return False
    try:
        # The initialiser itself is asked, so that no formula is repeated here.
        drawn = layer.kernel_initializer(kernel.shape, "float32")
    except (TypeError, ValueError):
        return False
    drawn = np.asarray(ops.convert_to_numpy(drawn), "float64").reshape(-1)
    # Without biases, the kernel must say more than a test can tell.
    if bias is None and abs(values).max() > _BEYOND * abs(drawn).max():
        return False
    step = -(-len(values) // _MOST_WEIGHTS)
    return scipy.stats.ks_2samp(values[::step], drawn[::step]).pvalue > _LEAST_P
