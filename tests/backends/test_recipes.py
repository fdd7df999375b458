"""What the recipes refuse where a backend has no such thing."""

import os
import pathlib
import subprocess
import sys

import pytest

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("backend", "recipe", "arguments", "word"),
    [
        ("torch", "ptb_lstm.py", (), "stateful LSTMs"),
        ("jax", "cifar100_resnet.py", ("--strategy", "mirrored"), "mirrored"),
    ],
)
def test_what_a_backend_lacks_is_refused(
    backend, recipe, arguments, word, tmp_path
):
    process = subprocess.run(
        [sys.executable, RECIPES / recipe, *arguments],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert word in process.stderr
    assert f"KERAS_BACKEND={backend}" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())
