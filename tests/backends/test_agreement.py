"""TensorFlow, JAX and PyTorch against each other and against NumPy.

Plain `pytest` does not come here, as it must do without JAX and PyTorch:

    pytest tests/backends
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import compared
import inputs
import keras
import numpy as np
import pytest
import reference

BACKENDS = ("tensorflow", "jax", "torch")
TWO_DEVICES = "--xla_force_host_platform_device_count=2"
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


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """By backend a folder of what `compared.py` wrote there."""
    parent = tmp_path_factory.mktemp("backends")
    folders = {backend: parent / backend for backend in BACKENDS}
    # On JAX all but data parallel training uses the first device alone.
    flags = f"{os.environ['XLA_FLAGS']} {TWO_DEVICES}"
    for backend, folder in folders.items():
        folder.mkdir()
        # A process of its own would take seconds to start.
        if backend == keras.backend.backend():
            compared.main(folder)
        else:
            run("compared.py", backend, folder, XLA_FLAGS=flags)
    return folders


def arrays(path):
    with np.load(path) as file:
        return dict(file)


# -- losses, gradients and steps -----------------------------------------------


@pytest.fixture(scope="module")
def found(computed):
    """By backend the numbers of each loss and training."""
    return {
        backend: arrays(folder / "compute.npz")
        for backend, folder in computed.items()
    }


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


def trained_by_numpy(name, examples):
    """The student's weights after the same steps of gradient descent."""
    given = inputs.arrays()
    rows = given["teacher"][2].T
    student, teacher = (
        [w.astype("float64") for w in given[role]]
        for role in ("student", "teacher")
    )
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
def test_steps_are_numpys(found, backend, name):
    steps = trained_by_numpy(name, inputs.trained_examples(name))
    for i, expected in enumerate(steps):
        assert_close(found[backend][f"{name} weights {i}"], expected, str(i))


# -- diagnosis and attribution -------------------------------------------------

CASES = ("with a student", "subclassed, alone")


@pytest.fixture(scope="module")
def diagnoses(computed):
    """By backend what `diagnose` and `attribute` said."""
    return {
        backend: json.loads((folder / "diagnosis.json").read_text())
        for backend, folder in computed.items()
    }


def leaves(value, name=""):
    """Pairs of the name and the value of all that is in dicts and lists."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{name}/{key}")
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from leaves(each, f"{name}/{i}")
    else:
        yield name, value


def assert_same(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        expected = value
        if isinstance(value, float):
            expected = pytest.approx(value, rel=1e-5, abs=1e-5)
        assert other[name] == expected, name


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_numbers_and_findings_are_tensorflows(diagnoses, backend, case):
    expected, diagnosis = (diagnoses[b][case] for b in ("tensorflow", backend))
    assert len(list(leaves(expected["numbers"]))) > 300
    assert_same(expected["numbers"], diagnosis["numbers"])
    assert [each["code"] for each in expected["findings"]][0] == "not_finite"
    for one, other in zip(
        expected["findings"], diagnosis["findings"], strict=True
    ):
        assert (one["code"], one["severity"]) == (
            other["code"],
            other["severity"],
        )
        assert_same(one["evidence"], other["evidence"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_numpys(diagnoses, backend):
    given = inputs.arrays()
    x, labels, weight = inputs.diagnosed(given)
    counted = (weight != 0) & np.isfinite(x).all(-1)
    x, labels = x[counted].astype("float64"), labels[counted]
    rows = np.arange(len(labels))
    _, logits = forward(given["teacher"], x)
    label_p = reference.softmax(logits)[rows, labels]
    numbers = diagnoses[backend]["with a student"]["numbers"]
    temperature = inputs.LOSSES["kd_pt_sim"]["temperature"]
    p = reference.softmax(logits / temperature)
    others = p * (1 - reference.one_hot(labels, inputs.CLASSES))
    others /= others.sum(-1, keepdims=True)
    uniform = np.log(inputs.CLASSES - 1)
    logs = np.log(np.where(others > 0, others, 1))
    student_right = forward(given["student"], x)[1].argmax(-1) == labels
    for value, expected in (
        (numbers["data"]["examples"], counted.sum()),
        (numbers["teacher"]["accuracy"], (logits.argmax(-1) == labels).mean()),
        (numbers["teacher"]["cross_entropy"], -np.log(label_p).mean()),
        (numbers["student"]["accuracy"], student_right.mean()),
        (
            numbers["temperature"]["entropy_at_loss"],
            -(p * np.log(p)).sum(-1).mean(),
        ),
        (
            numbers["class_relations"]["against_uniform"],
            (others * (logs + uniform)).sum(-1).mean(),
        ),
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attribution_is_the_same(diagnoses, backend):
    attribution = diagnoses[backend]["attribution"]
    assert_same(diagnoses["tensorflow"]["attribution"], attribution)
    # "plain" has three letters more than "kd", whatever the seed.
    assert attribution["gains"]["kd"]["mean"] == -3


# -- students of a StudentTrainer ----------------------------------------------


@pytest.fixture(scope="module")
def students(computed):
    """By backend the results of students, one of which was interrupted."""
    return {
        backend: json.loads((folder / "students.json").read_text())
        for backend, folder in computed.items()
    }


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_students_are_those_of_tensorflow(students, backend):
    expected, other = (
        dict(leaves(students[each])) for each in ("tensorflow", backend)
    )
    assert expected.keys() == other.keys()
    for name, value in expected.items():
        # An example may be at the border of two bins or two classes.
        if "counts" not in name and "accuracy" not in name:
            if not isinstance(value, str) and "examples" not in name:
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-4)


# -- recurrent layers, whose state Keras itself does not carry on JAX ----------


@pytest.fixture(scope="module")
def carried(computed):
    """Of TensorFlow and of JAX; Keras trains no such layer on PyTorch."""
    return [
        arrays(computed[backend] / "carried_state.npz")
        for backend in ("tensorflow", "jax")
    ]


def test_state_is_carried_as_on_tensorflow(carried):
    one, other = carried
    assert one.keys() == other.keys()
    for key in one:
        assert_close(one[key], other[key], key)


@pytest.mark.parametrize("place", [0, 1])
def test_every_kind_of_step_changes_the_state(carried, place):
    states = [
        carried[place][f"online {when}"]
        for when in (
            "student state",
            "state after predict",
            "state after evaluate",
        )
    ]
    for i, state in enumerate(states):
        assert np.abs(state).max() > 0.01
        assert not any(np.array_equal(state, s) for s in states[:i])


@pytest.mark.parametrize("place", [0, 1])
def test_a_refused_batch_leaves_the_state_as_it_was(carried, place):
    before, after = (
        carried[place][f"student state {when} refusal"]
        for when in ("before", "after")
    )
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("place", [0, 1])
def test_a_cache_follows_the_state(carried, place):
    online, cached = (
        carried[place][f"{kind} losses"] for kind in ("online", "cached")
    )
    assert_close(online, cached, "losses")


# -- JAX: two devices ----------------------------------------------------------


def test_two_devices_end_where_one_would(computed):
    """Which NumPy's float64 says."""
    found = arrays(computed["jax"] / "data_parallel.npz")
    assert found.pop("devices") == 2
    message = str(found.pop("uneven"))
    assert "2 devices" in message and "a batch of 3 examples" in message
    for name in inputs.ON_TWO_DEVICES:
        for i, expected in enumerate(trained_by_numpy(name, inputs.WHOLE)):
            assert_close(found.pop(f"{name} {i}"), expected, f"{name} {i}")
    assert not found
