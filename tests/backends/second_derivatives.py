"""Gradients of gradients, which PyTorch must refuse.

Run by name, where Keras is on PyTorch.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest
import torch
from test_losses import Case, every_loss, targets

from keras_kd.softmax import label_softmax


@every_loss
def test_second_derivatives_are_refused(name):
    """They were wrong without a word."""
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


def test_numbers_linear_in_the_result_refuse_second_derivatives_too():
    def others(logits):
        return label_softmax(logits, torch.tensor([0])).others.sum()

    with pytest.raises(NotImplementedError, match="second"):
        torch.autograd.functional.hessian(others, torch.tensor([[1.0, 2, -1]]))
