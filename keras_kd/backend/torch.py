"""The Distiller's step on PyTorch."""

import keras
import torch

from keras_kd.backend.checked import CheckedFunctions


def custom_gradient(function):
    """A function with a gradient of its own.

    Keras's has one result; this has any number.

    Args:
        function: function of a tensor that returns its results, and a function
            from their gradients to that of the tensor.

    Returns:
        A function of a tensor.
    """
    return lambda tensor: _CustomGradient.apply(function, tensor)


class _CustomGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, function, tensor):
        results, context.gradient = function(tensor)
        return results

    @staticmethod
    def backward(context, *gradients):
        return None, context.gradient(*gradients)


def compiled(function, variables=(), signature=None):
    """A function outside the gradient; PyTorch runs it as it is.

    Args:
        function: function of tensors, or of nested structures of them.
        variables: not used; a function reads what they are when it runs.
        signature: not used; nothing is compiled.

    Returns:
        A function of the same arguments.
    """
    del variables, signature
    return torch.no_grad()(function)


def take_classes(values, classes):
    """The values of some classes of each example.

    Args:
        values: [examples, classes].
        classes: [examples, k] class ids.

    Returns:
        [examples, k].
    """
    return keras.ops.take_along_axis(values, classes, axis=-1)


def add_to_classes(values, classes, added):
    """Adds something to the values of some classes of each example.

    Args:
        values: [examples, classes].
        classes: [examples, k] class ids, those of an example distinct.
        added: [examples, k].

    Returns:
        [examples, classes].
    """
    return values.scatter_add(-1, classes.long(), added)


def add_to_rows(variable, rows, values):
    """Adds values to rows of a variable.

    Args:
        variable: a `keras.Variable`, [rows, n].
        rows: [examples] row numbers, any of them more than once.
        values: [examples, n].
    """
    variable.value.index_add_(0, rows.long(), values)


class Trainer(CheckedFunctions):
    """The part of a Distiller that runs a step."""

    def train_step(self, data):
        """One step: the teacher, outside the gradient, then the student.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            Dict of metric results.
        """
        with torch.no_grad():
            data = self.with_teacher(data)
        return super().train_step(data)

    def test_step(self, data):
        """One step of evaluation: the student alone, on the labels."""
        with self.evaluation():
            return super().test_step(data)

    def _checked(self, step):
        def checked_step(data):
            logs = step(data)
            self.faults.check(self)
            return logs

        return checked_step
