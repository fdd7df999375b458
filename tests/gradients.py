"""Values and gradients by the backend's own automatic differentiation."""

import keras
import numpy as np


def seeds(count):
    """Seeds of random cases: one on JAX, which compiles each case again."""
    return range(1 if keras.backend.backend() == "jax" else count)


def fewer_seeds(count):
    """As `seeds`, but every other one on TensorFlow.

    A case takes ten times as long there as on PyTorch, which has them all.
    """
    if keras.backend.backend() == "tensorflow":
        return range(1, count, 2)
    return seeds(count)


def value_and_gradient(function, array):
    """A function's value and its gradient.

    Args:
        function: from a tensor to a scalar.
        array: NumPy array, where to take them.

    Returns:
        Two NumPy arrays.
    """
    backend = keras.backend.backend()
    value, gradient = _BY_BACKEND[backend](function, np.asarray(array))
    numpy = keras.ops.convert_to_numpy
    return numpy(value), numpy(gradient)


def _tensorflow(function, array):
    import tensorflow as tf

    tensor = tf.constant(array)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        value = function(tensor)
    return value, tape.gradient(value, tensor)


def _jax(function, array):
    import jax

    compiled = jax.jit(jax.value_and_grad(function))
    return compiled(jax.numpy.asarray(array))


def _torch(function, array):
    import torch

    tensor = torch.tensor(array, requires_grad=True)
    value = function(tensor)
    (gradient,) = torch.autograd.grad(value, tensor)
    return value, gradient


_BY_BACKEND = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
