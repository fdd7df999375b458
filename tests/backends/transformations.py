"""Losses on JAX alone: through what it makes of functions, of empty batches.

Run by name, where Keras is on JAX.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import numpy as np
import pytest
from keras import ops
from test_losses import Case, every_loss, targets


def by_jit(function):
    return jax.jit(function)


def by_checkpoint(function):
    return jax.checkpoint(function)


def by_cond(function):
    return lambda *z: jax.lax.cond(z[1].sum() < np.inf, function, alike, *z)


def alike(y_true, logits):
    return ops.sum(logits)


def by_scan(function):
    """One example after another."""

    def total(y_true, logits):
        def step(sum_so_far, example):
            one = jax.tree.map(lambda each: each[None], example)
            return sum_so_far + function(*one), None

        return jax.lax.scan(step, 0.0, (y_true, logits))[0]

    return total


def by_map(function):
    def total(y_true, logits):
        def of_one(example):
            return function(*jax.tree.map(lambda each: each[None], example))

        return jax.lax.map(of_one, (y_true, logits)).sum()

    return total


@every_loss
def test_gradient_through_jit(name):
    """Inside of the gradient; `test_losses` compiles the gradient itself."""
    assert_gradient(name, by_jit)


@pytest.mark.parametrize("transform", [by_checkpoint, by_cond, by_scan, by_map])
def test_gradient_through_a_transformation(transform):
    assert_gradient("kd_pt_sim", transform, jax.jit)


def assert_gradient(name, transform, compiled=lambda function: function):
    case = Case(name, seed=3)
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    y_true = jax.tree.map(jax.numpy.asarray, y_true)
    gradient = compiled(jax.grad(transform(loss), argnums=1))
    np.testing.assert_allclose(
        gradient(y_true, jax.numpy.asarray(case.logits)),
        case.expected_gradient(),
        rtol=1e-5,
        atol=1e-5,
    )


@every_loss
def test_an_empty_batch_has_no_loss(name):
    """It was refused as probabilities."""
    case = Case(name, seed=3)
    logits, teacher = np.zeros((2, 0, case.num_classes), "float32")
    loss = case.loss()
    y_true = targets(loss, np.zeros(0, "int32"), teacher)
    assert float(loss(y_true, logits)) == 0.0
