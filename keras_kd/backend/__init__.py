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
        function: function of a tensor and of constants to the gradient, nested
            structures of tensors, that returns its result, or a tuple of
            several, and a function from their gradients, which come one by
            one, to that of the tensor. It closes over no tensor: JAX, which
            traces it again, may then be tracing something else.

    Returns:
        A function of a tensor and constants.
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


# -- a step by chunks ---------------------------------------------------------


def product(first, second, transposed=False):
    """The matrix product.

    Args:
        first: [m, n].
        second: [n, p]; [p, n] if `transposed`.
        transposed: whether the second matrix is to be transposed, which is
            done without a copy.

    Returns:
        [m, p].
    """
    return _chosen.product(first, second, transposed)


def add_product(total, first, second):
    """A matrix plus the product of another one, transposed, with a third.

    Args:
        total: [n, p], which may be overwritten.
        first: [m, n].
        second: [m, p].

    Returns:
        [n, p], in the dtype of `total`.
    """
    return _chosen.add_product(total, first, second)


def take_rows(values, start, size):
    """Consecutive rows.

    Args:
        values: [rows, ...].
        start: integer scalar.
        size: integer; on TensorFlow it may be a scalar tensor.

    Returns:
        [size, ...].
    """
    return _chosen.take_rows(values, start, size)


def put_rows(values, start, rows):
    """Values with others in consecutive rows.

    Args:
        values: [rows, ...], which may be overwritten.
        start: integer scalar.
        rows: [size, ...].

    Returns:
        [rows, ...].
    """
    return _chosen.put_rows(values, start, rows)


def repeat(function, state, count):
    """Runs a function one time after another, never two times at once.

    Args:
        function: function of a number from 0 to `count` - 1 and of the state,
            a nested structure of tensors, that returns the state.
        state: the first one.
        count: integer; on TensorFlow it may be a scalar tensor.

    Returns:
        The last state.
    """
    return _chosen.repeat(function, state, count)


def takes_any_size(jit_compile):
    """Whether tensors may differ in size between the times of `repeat`.

    Args:
        jit_compile: whether the step is compiled by XLA.

    Returns:
        A boolean.
    """
    return _chosen.takes_any_size(jit_compile)


def fuses_operations():
    """Whether a compiler makes one operation of those on the same elements."""
    return _chosen.fuses_operations()


def is_on_gpu():
    """Whether Keras computes on a GPU or another accelerator, not a CPU."""
    return _chosen.is_on_gpu()


def stored_values(values):
    """What a tensor holds: of a sparse one, the entries that it stores.

    Args:
        values: a tensor of the backend, dense or sparse.

    Returns:
        A dense tensor.
    """
    return _chosen.stored_values(values)


def by_pieces(function, state, values, most, jit_compile):
    """Runs a function on rows of values, on some of them at a time.

    That is where it saves memory: where operations run side by side, each of
    which makes an array of all these rows.

    Args:
        function: function of the first row, the number of rows and the state
            that returns the state, and something of the shape of these rows.
        state: the first one, a nested structure of tensors.
        values: [rows, ...].
        most: integer, the rows at a time at most.
        jit_compile: whether the step is compiled by XLA.

    Returns:
        The last state, and [rows, ...] in the dtype of the values.
    """
    return _chosen.by_pieces(function, state, values, most, jit_compile)


def random_states():
    """What random numbers follow from that no `keras.Variable` holds.

    Returns:
        A list of uint8 arrays; empty but on PyTorch, where dropout without a
        seed draws from the generators of PyTorch itself.
    """
    return _chosen.random_states()


def set_random_states(states):
    """Lets random numbers go on from `random_states`.

    Args:
        states: list of arrays; that of a device which is not here is left out.
    """
    _chosen.set_random_states(states)


def value_and_gradient(function, tensor):
    """A function's value and gradient, apart from those of the step.

    Args:
        function: function of a tensor that returns a scalar, and a nested
            structure of tensors.
        tensor: where to take them.

    Returns:
        The scalar and the structure, constants to the step's gradient; and
        the gradient of the scalar.
    """
    return _chosen.value_and_gradient(function, tensor)


def with_gradients(value, tensors, gradients):
    """A scalar whose gradients are known.

    Args:
        value: scalar, a constant to the gradient.
        tensors: list of tensors that it depends on.
        gradients: list of its gradients, of their shapes; they may be
            overwritten.

    Returns:
        The scalar.
    """
    return _chosen.with_gradients(value, tensors, gradients)


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
