"""`diagnose` and `attribute` say the same on TensorFlow, JAX and PyTorch."""

import json

import inputs
import numpy as np
import pytest
import reference
from test_agreement import BACKENDS, forward, run_on_each

CASES = ("with a student", "subclassed, alone")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By backend what it said."""
    folder = tmp_path_factory.mktemp("diagnosis")
    paths = run_on_each("diagnosis.py", folder, ".json")
    return {
        backend: json.loads(path.read_text()) for backend, path in paths.items()
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
def test_numbers_and_findings_are_tensorflows(found, backend, case):
    expected, diagnosis = (found[b][case] for b in ("tensorflow", backend))
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
def test_numbers_are_numpys(found, backend):
    given = inputs.arrays()
    x, labels, weight = inputs.diagnosed(given)
    counted = (weight != 0) & np.isfinite(x).all(-1)
    x, labels = x[counted].astype("float64"), labels[counted]
    rows = np.arange(len(labels))
    _, logits = forward(given["teacher"], x)
    label_p = reference.softmax(logits)[rows, labels]
    numbers = found[backend]["with a student"]["numbers"]
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
def test_attribution_is_the_same(found, backend):
    attribution = found[backend]["attribution"]
    assert_same(found["tensorflow"]["attribution"], attribution)
    # "plain" has three letters more than "kd", whatever the seed.
    assert attribution["gains"]["kd"]["mean"] == -3
