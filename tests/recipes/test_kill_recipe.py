"""The tool that kills a recipe, with a stand-in for the recipe."""

import json
import pathlib
import sys

import pytest
from click.testing import CliRunner

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tools"))
import kill_recipe  # noqa: E402

# Takes ten steps, a line of its file each, and forgets some if told to.
RECIPE = """
import json, pathlib, sys, time
forgets, folder = sys.argv[1], pathlib.Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
begun, steps = folder / "begun", folder / "steps"
started = begun.exists()
begun.touch()
done = len(steps.read_text()) if steps.exists() else 0
for _ in range(10 - done):
    time.sleep(0.05)
    with open(steps, "a") as file:
        file.write(".")
score = 1 if started and forgets == "forgets" else 2
result = {"student": {"score": score, "seconds": time.time()}}
(folder / "results.json").write_text(json.dumps(result))
"""


@pytest.mark.parametrize("forgets", ["forgets", "resumes"])
def test_results_after_kills_are_held_against_a_whole_runs(forgets, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    arguments = ["--kills", 8, "--log-dir", tmp_path / "runs"]
    done = CliRunner().invoke(
        kill_recipe.main,
        [str(a) for a in (*arguments, "--", recipe, forgets)],
    )
    assert (done.exit_code == 0) == (forgets == "resumes"), done.output
    if forgets == "forgets":
        assert "with the results of a whole one" in done.output
        return
    assert done.output.count("Kill ") == 8
    assert json.dumps({"student": {"score": 2}}) in done.output


def test_a_recipe_that_fails_is_said_to(tmp_path):
    (tmp_path / "recipe.py").write_text("raise SystemExit('no data')")
    done = CliRunner().invoke(
        kill_recipe.main,
        ["--log-dir", str(tmp_path), "--", str(tmp_path / "recipe.py")],
    )
    assert done.exit_code != 0 and "output says:\nno data" in done.output
