"""Derivatives of the losses through what a backend makes of functions."""

import keras
import numpy as np
import pytest
from keras import ops
from test_losses import Case, every_loss, targets

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX's transformations.")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's graphs.")


def by_jit(jax, function):
    return jax.jit(function)


def by_checkpoint(jax, function):
    return jax.checkpoint(function)


def by_cond(jax, function):
    return lambda *z: jax.lax.cond(z[1].sum() < np.inf, function, alike, *z)


def alike(y_true, logits):
    return ops.sum(logits)


def by_scan(jax, function):
    """One example after another."""

    def total(y_true, logits):
        def step(sum_so_far, example):
            one = jax.tree.map(lambda each: each[None], example)
            return sum_so_far + function(*one), None

        return jax.lax.scan(step, 0.0, (y_true, logits))[0]

    return total


def by_map(jax, function):
    def total(y_true, logits):
        def of_one(example):
            return function(*jax.tree.map(lambda each: each[None], example))

        return jax.lax.map(of_one, (y_true, logits)).sum()

    return total


@on_jax
@every_loss
@pytest.mark.parametrize(
    "transform", [by_jit, by_checkpoint, by_cond, by_scan, by_map]
)
def test_gradient_through_a_transformation(name, transform):
    import jax

    case = Case(name, seed=3)
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    y_true = jax.tree.map(jax.numpy.asarray, y_true)
    gradient = jax.grad(transform(jax, loss), argnums=1)
    for each in (gradient, jax.jit(gradient)):
        np.testing.assert_allclose(
            each(y_true, jax.numpy.asarray(case.logits)),
            case.expected_gradient(),
            rtol=1e-5,
            atol=1e-5,
        )


@on_torch
@every_loss
def test_second_derivatives_are_refused(name):
    """They were wrong without a word."""
    import torch

    case = Case(name, seed=3)
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    logits = torch.tensor(case.logits, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        loss(y_true, logits), logits, create_graph=True
    )
    np.testing.assert_allclose(
        gradient.detach(), case.expected_gradient(), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(NotImplementedError, match="Received: .* second"):
        gradient.square().sum().backward()
    with pytest.raises(NotImplementedError, match="Received: .* second"):
        torch.autograd.functional.hessian(
            lambda z: loss(y_true, z), logits.detach()
        )


@on_torch
def test_numbers_linear_in_the_result_refuse_second_derivatives_too():
    import torch

    from keras_kd.softmax import label_softmax

    def others(logits):
        return label_softmax(logits, torch.tensor([0])).others.sum()

    with pytest.raises(NotImplementedError, match="second"):
        torch.autograd.functional.hessian(others, torch.tensor([[1.0, 2, -1]]))
