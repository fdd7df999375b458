"""StudentTrainer trains the same students on TensorFlow, JAX and PyTorch."""

import json

import pytest
from test_agreement import run_on_each
from test_diagnosis import leaves


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By backend the results of students, one of which was interrupted."""
    folder = tmp_path_factory.mktemp("students")
    paths = run_on_each("students.py", folder, ".json")
    return {
        backend: json.loads(path.read_text()) for backend, path in paths.items()
    }


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_students_are_those_of_tensorflow(found, backend):
    expected, other = (
        dict(leaves(found[each])) for each in ("tensorflow", backend)
    )
    assert expected.keys() == other.keys()
    for name, value in expected.items():
        # An example may be at the border of two bins or two classes.
        if "counts" not in name and "accuracy" not in name:
            if not isinstance(value, str) and "examples" not in name:
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-4)
