"""Runs the recipes: in this process, or in one of their own as a user does."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


def invoke(recipe, *arguments):
    """Runs a recipe's module in this process; see `click.testing.Result`."""
    return CliRunner().invoke(
        recipe.main, [str(a) for a in arguments], catch_exceptions=False
    )


def finish(recipe, *arguments):
    """Runs a recipe in this process to its end; what it printed."""
    result = invoke(recipe, *arguments)
    assert result.exit_code == 0, result.output[-3000:]
    return result.output


def refused(recipe, *arguments):
    """The message with which a recipe is refused before it trains."""
    result = invoke(recipe, *arguments)
    assert result.exit_code != 0
    assert "Epoch" not in result.output
    return " ".join(result.output.split())


def command(recipe, *arguments):
    return [sys.executable, str(RECIPES / recipe), *map(str, arguments)]


def environment(**more):
    return {**os.environ, **more}


def kill_when(condition, recipe, folder, *arguments):
    """Starts a recipe in a process and kills it once a condition holds."""
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            command(recipe, *arguments),
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while not condition():
            assert process.poll() is None, (folder / "output").read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()


@contextlib.contextmanager
def copied_after_an_epoch(study_class, folder, copy):
    """In this context a run copies its folder while it trains.

    The copy is what a process would leave that is killed when a student with a
    teacher is about to begin its second epoch.
    """
    import keras

    class Copy(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                shutil.copytree(folder, copy)

    own = study_class.callbacks

    def callbacks(study, student, teacher=None):
        more = [] if teacher is None else [Copy()]
        return [*own(study, student, teacher), *more]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_class, "callbacks", callbacks)
        yield


def results(folder):
    return json.loads((folder / "results.json").read_text())


def losses(*names):
    return [word for name in names for word in ("--loss", name)]
