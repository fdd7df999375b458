"""The Distiller's step on PyTorch."""

import keras
import torch

from keras_kd.backend.checked import CheckedFunctions

# What these functions are for, and their arguments: see `keras_kd.backend`.


def custom_gradient(function):
    """Keras's own has one result; this has any number."""
    return lambda tensor: _CustomGradient.apply(function, tensor)


class _CustomGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, function, tensor):
        results, context.gradient = function(tensor)
        # What is returned leads to the context, and so to what the gradient
        # closes over: were the results among that, nothing would be freed.
        return keras.tree.map_structure(torch.detach, results)

    @staticmethod
    def backward(context, *gradients):
        return None, context.gradient(*gradients)


def compiled(function, variables, signature):
    """PyTorch runs it as it is."""
    del variables, signature
    return torch.no_grad()(function)


def take_classes(values, classes):
    """By Keras's own."""
    return keras.ops.take_along_axis(values, classes, axis=-1)


def add_to_classes(values, classes, added):
    """By a scatter."""
    return values.scatter_add(-1, classes.long(), added)


def add_to_rows(variable, rows, values):
    """In place."""
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
