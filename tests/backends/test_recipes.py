"""What the recipes do on each backend, and refuse where it lacks something."""

import json
import os
import pathlib
import subprocess
import sys

import pytest


@pytest.fixture(scope="module", params=["jax", "torch"])
def ran(request, tmp_path_factory):
    """The backend, and the folder in which its recipes ran."""
    backend, folder = request.param, tmp_path_factory.mktemp("recipes")
    for part in ("train", "valid", "test"):
        lines = [f"w{i % 20} w{(i + 1) % 20} w{i % 7}" for i in range(60)]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    script = pathlib.Path(__file__).parent / "run_recipes.py"
    process = subprocess.run(
        [sys.executable, script, folder],
        cwd=folder,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return backend, folder


def test_what_a_backend_lacks_is_refused(ran):
    backend, folder = ran
    code, message = (folder / "refused.txt").read_text().split(maxsplit=1)
    assert code != "0"
    word = {"jax": "mirrored", "torch": "stateful LSTMs"}[backend]
    assert word in " ".join(message.split())
    assert f"KERAS_BACKEND={backend}" in message
    assert "Traceback" not in message
    assert not list((folder / "nothing").iterdir())


def test_recipes_start_on_every_backend(ran):
    backend, folder = ran
    names = {path.parent.name for path in folder.glob("*/results.json")}
    expected = {"cifar100_resnet", "causal_lm", "synthetic", "ptb_lstm"}
    assert names == expected - ({"ptb_lstm"} if backend == "torch" else set())
    for name in names:
        found = json.loads((folder / name / "results.json").read_text())
        # The synthetic study always has plain students too.
        assert "teacher" in found and len(found) == 2 + (name == "synthetic")
