"""TensorFlow, JAX and PyTorch against each other and against NumPy.

Plain `pytest` does not come here, as it must do without JAX and PyTorch:

    pytest tests/backends
"""

import importlib
import itertools
import os
import pathlib
import subprocess
import sys

import inputs
import keras
import numpy as np
import pytest
import reference

BACKENDS = ("tensorflow", "jax", "torch")
FOLDER = pathlib.Path(__file__).parent
every_loss = pytest.mark.parametrize("name", inputs.LOSSES)


def run(script, backend, *arguments, **variables):
    """Runs a script of this folder in a process of a backend's own."""
    subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        check=True,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            # This checkout, whichever one is installed.
            "PYTHONPATH": os.pathsep.join(map(str, FOLDER.parents[:2])),
            **variables,
        },
    )


def run_on_each(script, folder, ending):
    """Runs a script on every backend: dict by it of the file it wrote."""
    paths = {backend: folder / f"{backend}{ending}" for backend in BACKENDS}
    for backend, path in paths.items():
        # A process of its own would take seconds to start.
        if backend == keras.backend.backend():
            importlib.import_module(script.removesuffix(".py")).main(path)
        else:
            run(script, backend, path)
    return paths


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By backend what it computed."""
    folder = tmp_path_factory.mktemp("backends")
    paths = run_on_each("compute.py", folder, ".npz")
    results = {}
    for backend, path in paths.items():
        with np.load(path) as file:
            results[backend] = dict(file)
    return results


def assert_close(one, other, key):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("pair", itertools.combinations(BACKENDS, 2))
@every_loss
def test_two_backends_agree(found, pair, name):
    one, other = (found[backend] for backend in pair)
    assert one.keys() == other.keys()
    keys = [key for key in one if key.startswith(f"{name} ")]
    assert len(keys) > 8
    for key in keys:
        assert_close(one[key], other[key], key)


# -- the same in float64 NumPy -------------------------------------------------


def terms(name, labels, teacher_logits, rows):
    """[(weight, explicit target)], and the temperature."""
    given = inputs.LOSSES[name]
    t = given.get("temperature", 1.0)
    targets = {
        "label_smoothing": lambda: reference.label_smoothing_target(
            labels, inputs.CLASSES, given["smoothing"]
        ),
        "kd_pt": lambda: reference.pt_target(labels, teacher_logits, t),
        "kd_sim": lambda: reference.sim_target(
            labels, rows, inputs.ALPHA, inputs.BETA
        ),
        "kd_topk": lambda: reference.topk_target(teacher_logits, t, given["k"]),
        "kd_sampled": lambda: reference.kd_target(teacher_logits, t),
        "kd": lambda: reference.kd_target(teacher_logits, t),
    }
    if name == "kd_pt_sim":
        return [
            (given["pt_weight"], targets["kd_pt"]()),
            (given["sim_weight"], targets["kd_sim"]()),
        ], t
    return [(given["weight"], targets[name]())], t


def explicit(function, name, logits, labels, teacher_logits, rows):
    """A loss or its gradient by `reference`, from explicit distributions."""
    if name == "dkd":
        given = inputs.LOSSES[name]
        settings = (given[k] for k in ("weight", "alpha", "beta"))
        decoupled = getattr(reference, f"dkd_{function}")
        return decoupled(
            *(logits, labels, teacher_logits),
            *settings,
            given["temperature"],
            True,
        )
    made = terms(name, labels, teacher_logits, rows)
    if function == "gradient":
        return reference.per_example_gradient(logits, labels, *made)
    return reference.per_example_loss(
        logits, labels, *made, divergence=name in reference.DIVERGENCES
    )


def forward(weights, x):
    first, bias, second, last_bias = weights
    hidden = np.tanh(x @ first + bias)
    return hidden, hidden @ second + last_bias


def trained_by_numpy(name, examples=None):
    """The student's weights after the same steps of gradient descent.

    Args:
        name: of a loss.
        examples: how many to take; all unless given.
    """
    given = inputs.arrays()
    rows = given["teacher"][2].T
    student, teacher = (
        [w.astype("float64") for w in given[role]]
        for role in ("student", "teacher")
    )
    examples = examples or len(given["x"])
    for start in range(0, examples, inputs.BATCH):
        x, labels, sample_weight = (
            given[key][start : start + inputs.BATCH]
            for key in ("x", "labels", "sample_weight")
        )
        hidden, logits = forward(student, x)
        at_logits = explicit(
            "gradient", name, logits, labels, forward(teacher, x)[1], rows
        )
        at_logits *= sample_weight[:, None] / len(x)
        at_hidden = (at_logits @ student[2].T) * (1 - hidden**2)
        gradients = (
            x.T @ at_hidden,
            at_hidden.sum(0),
            hidden.T @ at_logits,
            at_logits.sum(0),
        )
        for weight, gradient in zip(student, gradients, strict=True):
            weight -= inputs.LEARNING_RATE * gradient
    return student


@pytest.mark.parametrize("backend", BACKENDS)
@every_loss
def test_losses_gradients_and_w_are_numpys(found, backend, name):
    given = inputs.arrays()
    logits, labels = given["logits"], given["logit_labels"]
    rows = given["teacher"][2].T
    settings = (name, logits, labels, given["teacher_logits"], rows)
    gradient = explicit("gradient", *settings)
    at_label = np.arange(len(labels)), labels
    plain = reference.softmax(logits) - reference.one_hot(
        labels, inputs.CLASSES
    )
    for key, expected in {
        "loss": explicit("loss", *settings),
        "gradient": gradient,
        "w": gradient[at_label] / plain[at_label],
    }.items():
        assert_close(found[backend][f"{name} {key}"], expected, key)


@pytest.mark.parametrize("backend", BACKENDS)
@every_loss
def test_ten_steps_are_numpys(found, backend, name):
    for i, expected in enumerate(trained_by_numpy(name)):
        assert_close(found[backend][f"{name} weights {i}"], expected, str(i))
