"""Keras's private names that the package uses, each with the reason.

Everything that is imported from `keras.src`, or starts with an underscore in
Keras, stands here, so that one place has to change with Keras.
"""

import keras

# The mask that Keras leaves on a tensor; it is public in layers alone.
from keras.src.backend import get_keras_mask, set_keras_mask

# What `keras.ops.softmax` and its like leave in a functional model's graph;
# Keras exports the functions alone.
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.ops.core import Cast
from keras.src.ops.nn import LogSoftmax, Softmax
from keras.src.ops.numpy import ExpandDims, Reshape, Squeeze
from keras.src.utils.tracking import DotNotTrackScope

SOFTMAX_OPERATIONS = (Softmax, keras.layers.Softmax)
LOG_SOFTMAX_OPERATIONS = (LogSoftmax,)
# Those that give their input's values in another shape or dtype.
RESHAPING_OPERATIONS = (Cast, ExpandDims, Reshape, Squeeze)


def is_reversible_embedding(layer):
    """Whether a layer is an embedding that also makes logits.

    Keras's and KerasHub's are different classes; both have this flag.
    """
    return hasattr(layer, "tie_weights")


def flatten_layers(model):
    """A model and all the layers inside of it, at any depth.

    `keras.Model.layers` lists the outermost ones alone.
    """
    return list(model._flatten_layers())


def own_statistics(layer):
    """Variables that a layer was built with as not trainable.

    `non_trainable_variables` would add the weights of a frozen layer.
    """
    return list(layer._non_trainable_variables)


def set_loss_tracker(model, tracker):
    """Replaces the metric that Keras's steps add a batch's loss to.

    Keras makes it in `compile`, out of sight of the tracking that would list
    it among a model's own metrics as well.
    """
    with DotNotTrackScope():
        model._loss_tracker = tracker


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
    "flatten_layers",
    "get_keras_mask",
    "is_reversible_embedding",
    "own_statistics",
    "set_initial_epoch",
    "set_keras_mask",
    "set_loss_tracker",
]
