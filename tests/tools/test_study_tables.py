"""Tables of studies: over_seeds.py collects, study_tables.py prints."""

import json
import pathlib
import sys

import over_seeds
import pytest
import study_tables
from click.testing import CliRunner

RECIPE = """
import json, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(options["--log-dir"])
folder.mkdir(parents=True)
seed = int(options["--seed"])
assert seed < int(options.get("--fail-at", 9))
results = {
    "teacher": {"test_accuracy": 0.75, "seconds": 1},
    "student-plain": {"test_accuracy": [0.5, 0.625][seed], "seconds": 2},
    "student-kd": {"test_accuracy": [0.625, 0.875][seed]},
}
(folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def run(recipe, *options):
    arguments = [recipe, "--seeds", 2, "--log-dir", recipe.parent / "study"]
    return CliRunner().invoke(over_seeds.main, [*map(str, arguments), *options])


def test_results_of_all_seeds_are_collected(recipe):
    done = run(recipe)
    assert done.exit_code == 0
    study = json.loads((recipe.parent / "study" / "study.json").read_text())
    assert study["seeds"] == 2 and study["command"] == f"python {recipe}"
    assert list(study["rows"]) == ["plain", "kd", "teacher"]
    assert study["rows"]["kd"] == {"test accuracy %": [62.5, 87.5]}
    # (0.5 - 0.625) / sqrt(2) = 8.84 %.
    assert "| plain | 56.25 ± 8.84 |" in done.output


def test_a_seed_that_fails_is_named(recipe):
    done = run(recipe, "--", "--fail-at", "1")
    assert done.exit_code == 1
    assert (
        f"exit code 1 of {sys.executable} {recipe} --fail-at 1" in done.output
    )


def test_options_that_are_the_tools_own_are_refused(recipe):
    done = run(recipe, "--", "--seed=5")
    assert done.exit_code == 2 and "Give --seeds" in done.output


def test_gains_are_paired_and_better_is_above_0():
    rows = {
        "plain": {"bytes": 0, "test perplexity": [10.0, 12.0, 11.0]},
        "kd": {"bytes": 2000, "test perplexity": [9.0, 10.0, 8.0]},
        "teacher": {"test perplexity": [5.0, 5.0, 5.0]},
    }
    table = study_tables.table({"gain": "test perplexity", "rows": rows})
    # Of 1, 2 and 3: the mean 2, and 4.303 standard errors of 0.577.
    assert table.splitlines() == [
        "| loss | bytes | test perplexity | over plain |",
        "| --- | --- | --- | --- |",
        "| plain | 0 | 11.00 ± 1.00 | - |",
        "| kd | 2,000 | 9.00 ± 1.00 | +2.00 [-0.48, +4.48] |",
        "| teacher |  | 5.00 ± 0.00 | - |",
    ]
    accuracies = {"plain": {"x %": [1.0, 2.0]}, "kd": {"x %": [2.0, 3.5]}}
    table = study_tables.table({"gain": "x %", "rows": accuracies})
    assert table.splitlines()[-1].startswith("| kd | 2.75 ± 1.06 | +1.25 [")


def test_claims_are_held_against_studies(tmp_path):
    better = {"kd": {"x %": [3.0, 4.5, 6.0]}, "plain": {"x %": [1.0, 2, 3]}}
    worse = {
        "kd": {"perplexity": [30.0, 31, 32]},
        "plain": {"perplexity": [20.0, 20, 20]},
    }
    single = {"kd": {"x %": [3.0]}, "plain": {"x %": [1.0]}}
    studies = {"a": better, "b": worse, "c": {"kd": {}}, "d": single}
    for name, rows in studies.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    claims = {
        "studies": {
            "A": ["a.json", "x %"],
            "B": ["b.json", "perplexity"],
            "C": ["c.json", "x %"],
            "D": ["d.json", "x %"],
        },
        "claims": {
            "KD helps": {"kd": 1, "plain": -1},
            "twice": {"kd": 1, "plain": -2},
        },
    }
    table = study_tables.claims_table(claims, tmp_path / "claims.json")
    # 2, 2.5 and 3; -10, -11 and -12; 1, 0.5 and 0; 4.303 standard errors.
    assert table.splitlines() == [
        "| claim | A | B | C | D |",
        "| --- | --- | --- | --- | --- |",
        "| KD helps | confirmed: +2.50 [+1.26, +3.74] "
        "| refuted: -11.00 [-13.48, -8.52] |  | +2.00, one seed |",
        "| twice | inconclusive: +0.50 [-0.74, +1.74] "
        "| confirmed: +9.00 [+6.52, +11.48] |  | +1.00, one seed |",
    ]


def test_only_tables_below_their_line_are_made_again(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    study = {"rows": {"kd": {"x": [1.5]}}}
    (folder / "one.json").write_text(json.dumps(study))
    readme = tmp_path / "README.md"
    old = "| x |\n| --- |\n| 3 |\n"
    readme.write_text(f"a\n\n<!-- results/one.json -->\n\n{old}\nb\n\n{old}")
    done = CliRunner().invoke(study_tables.main, ["--readme", str(readme)])
    assert done.output == "1 tables of README.md.\n"
    new = "| loss | x |\n| --- | --- |\n| kd | 1.50 |\n"
    assert readme.read_text() == (
        f"a\n\n<!-- results/one.json -->\n\n{new}\nb\n\n{old}"
    )


@pytest.mark.parametrize(
    "content, message", [(None, "does not exist"), ("[", "it must be JSON")]
)
def test_results_that_can_not_be_read_are_named(content, message, tmp_path):
    readme, path = tmp_path / "README.md", tmp_path / "results" / "one.json"
    readme.write_text("<!-- results/one.json -->\n\n")
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    done = CliRunner().invoke(study_tables.main, ["--readme", str(readme)])
    assert isinstance(done.exception, SystemExit)
    output = " ".join(done.output.split())
    assert str(path) in output and message in output


def test_the_readmes_tables_are_those_of_the_results():
    text = study_tables.README.read_text()
    assert study_tables.updated(text, study_tables.README.parent) == text
    folder = study_tables.README.parent / "results"
    named = {pathlib.Path(path).name for path in study_tables.names(text)}
    claims = json.loads((folder / "claims.json").read_text())
    named |= {name for name, _ in claims["studies"].values()}
    assert named == {path.name for path in folder.glob("*.json")}
