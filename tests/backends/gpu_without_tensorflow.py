"""Trains by the recipe of one GPU where TensorFlow is not installed."""

import importlib.abc
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


class Missing(importlib.abc.MetaPathFinder):
    """Finds that a package is not there."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {fullname!r}")


sys.meta_path.insert(0, Missing())
sys.path += [str(ROOT / "recipes"), str(ROOT / "tools")]

import benchmark_gpu  # noqa: E402, F401
import one_gpu  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "ptb").mkdir()
    for part in ("train", "valid", "test"):
        text = f" {part} is a text of words \n" * 30
        pathlib.Path(folder, "ptb", f"ptb.{part}.txt").write_text(text)
    arguments = ["ptb", f"{folder}/study", "--data-dir", f"{folder}/ptb"]
    for role in ("student", "teacher"):
        arguments += [f"--{role}-units", "4", f"--{role}-layers", "1"]
    arguments += ["--epochs", "1", "--teacher-epochs", "1", "--seeds", "2"]
    arguments += ["--time-steps", "5", "--batch-size", "2"]
    arguments += ["--method", "plain", "--method", "kd_pt"]
    one_gpu.main(arguments, standalone_mode=False)
