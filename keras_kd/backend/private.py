"""Keras's private names that the package uses, each with the reason.

Everything that is imported from `keras.src`, or starts with an underscore in
Keras, stands here, so that one place has to change with Keras.
"""

import keras

# What `keras.ops.softmax` and its like leave in a functional model's graph;
# Keras exports the functions alone.
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.ops.core import Cast
from keras.src.ops.nn import LogSoftmax, Softmax
from keras.src.ops.numpy import ExpandDims, Reshape, Squeeze

SOFTMAX_OPERATIONS = (Softmax, keras.layers.Softmax)
LOG_SOFTMAX_OPERATIONS = (LogSoftmax,)
# Those that give their input's values in another shape or dtype.
RESHAPING_OPERATIONS = (Cast, ExpandDims, Reshape, Squeeze)


def set_initial_epoch(model, epoch):
    """Makes a `fit` that has begun start at an epoch.

    Keras's `BackupAndRestore` says it this way; `fit` takes `initial_epoch`
    only before its callbacks have read anything.

    Args:
        model: a `keras.Model` in `on_train_begin`.
        epoch: integer.
    """
    model._initial_epoch = epoch


__all__ = [
    "LOG_SOFTMAX_OPERATIONS",
    "RESHAPING_OPERATIONS",
    "SOFTMAX_OPERATIONS",
    "BaseConv",
    "set_initial_epoch",
]
