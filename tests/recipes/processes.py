"""Runs the recipes as a user does, in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys
import time

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"


def command(recipe, *arguments):
    return [sys.executable, str(RECIPES / recipe), *map(str, arguments)]


def environment(**more):
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def run(recipe, folder, *arguments, check=True):
    """Runs a recipe in a folder to its end."""
    process = subprocess.run(
        command(recipe, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if check and process.returncode:
        raise AssertionError(process.stdout[-2000:] + process.stderr[-3000:])
    return process


def kill_when(condition, recipe, folder, *arguments):
    """Starts a recipe and kills it once a condition holds."""
    process = subprocess.Popen(
        command(recipe, *arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()


def results(folder):
    return json.loads((folder / "results.json").read_text())


def losses(*names):
    return [word for name in names for word in ("--loss", name)]
