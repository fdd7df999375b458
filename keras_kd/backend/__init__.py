"""What differs between TensorFlow, JAX and PyTorch, a module a backend.

Each has a `Trainer`, the part of the Distiller that runs a step, and the
functions below. Keras's own choice of backend decides which module is used;
the rest of the package knows none of them.
"""

import importlib

import keras
import numpy as np

from keras_kd.backend import private

_NAME = keras.backend.backend()
if _NAME not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "keras_kd trains on TensorFlow, JAX and PyTorch. Received: Keras "
        f"backend {_NAME!r}. Set the environment variable KERAS_BACKEND to "
        "tensorflow, jax or torch before Keras is imported."
    )
private.check_keras(_NAME)
_chosen = importlib.import_module(f"keras_kd.backend.{_NAME}")

Trainer = _chosen.Trainer


def custom_gradient(function):
    """A function with a gradient of its own, as `tf.custom_gradient`.

    Args:
        function: function of a tensor that returns its result, or a tuple of
            several, and a function from their gradients, which come one by
            one, to that of the tensor.

    Returns:
        A function of a tensor.
    """
    return _chosen.custom_gradient(function)


def compiled(function, variables=(), signature=None):
    """A function that runs models outside the gradient.

    It is compiled where the backend compiles.

    Args:
        function: function of tensors, or of nested structures of them.
        variables: the `keras.Variable`s that it reads or changes, which JAX
            has to know.
        signature: optional list of the arguments' `tf.TensorSpec`s, with which
            TensorFlow compiles once, not again for each new shape.

    Returns:
        A function of the same arguments.
    """
    return _chosen.compiled(function, variables, signature)


def refuse_where(condition, message, values):
    """Values, with an error in their place where a condition holds.

    Args:
        condition: boolean scalar tensor, or `None` for one that never holds.
        message: string.
        values: a tensor of floats.

    Returns:
        The values. In a compiled step they are NaN where the condition holds,
        since a compiler may drop the error.

    Raises:
        ValueError: with the message; in a compiled step the backend's own
            error, which holds the message.
    """
    if condition is None:
        return values
    return _chosen.refuse_where(condition, message, values)


def take_classes(values, classes):
    """The values of some classes of each example.

    Args:
        values: [examples, classes].
        classes: [examples, k] class ids.

    Returns:
        [examples, k].
    """
    return _chosen.take_classes(values, classes)


def add_to_classes(values, classes, added):
    """Adds something to the values of some classes of each example.

    `keras.ops` has nothing for it that is fast on TensorFlow.

    Args:
        values: [examples, classes].
        classes: [examples, k] class ids, those of an example distinct.
        added: [examples, k].

    Returns:
        [examples, classes].
    """
    return _chosen.add_to_classes(values, classes, added)


def add_to_rows(variable, rows, values):
    """Adds values to rows of a variable.

    Args:
        variable: a `keras.Variable`, [rows, n].
        rows: [examples] row numbers, any of them more than once.
        values: [examples, n].
    """
    _chosen.add_to_rows(variable, rows, values)


def from_tf_data(element):
    """An element of a `tf.data.Dataset` as tensors of the backend.

    Args:
        element: TensorFlow's tensors, or a nested structure of them.

    Returns:
        The same structure.
    """
    if _NAME == "tensorflow":
        return element
    return keras.tree.map_structure(
        lambda value: keras.ops.convert_to_tensor(np.asarray(value)), element
    )
