"""What the recipes do on each backend, and refuse where it lacks something."""

import json
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


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_recipes_start_on_every_backend(backend, tmp_path):
    for part in ("train", "valid", "test"):
        lines = [f"w{i % 20} w{(i + 1) % 20} w{i % 7}" for i in range(60)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n")
    script = pathlib.Path(__file__).parent / "run_recipes.py"
    process = subprocess.run(
        [sys.executable, script, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    names = {path.parent.name for path in tmp_path.glob("*/results.json")}
    expected = {"cifar100_resnet", "causal_lm", "synthetic", "ptb_lstm"}
    assert names == expected - ({"ptb_lstm"} if backend == "torch" else set())
    for name in names:
        found = json.loads((tmp_path / name / "results.json").read_text())
        # The synthetic study always has plain students too.
        assert "teacher" in found and len(found) == 2 + (name == "synthetic")
