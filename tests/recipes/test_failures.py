"""The study of failures: its table, and that it resumes."""

import failures
import pytest
from click.testing import CliRunner

ONE = (
    *("--seeds", "1", "--first-seed", "5"),
    *("--kind", "perceptron, digits", "--case", "class order"),
)


def invoke(*arguments):
    return CliRunner().invoke(failures.main, [str(each) for each in arguments])


def test_help_says_no_more_than_names():
    assert "<function" not in invoke("--help").output


def test_the_study_resumes_and_grows(tmp_path):
    first = invoke(*ONE, "--log-dir", tmp_path / "run")
    assert first.exit_code == 0, first.output
    assert "| class order | `class_order` |" in first.output
    said = tmp_path / "run" / "class order; perceptron, digits; seed 5.json"
    assert '"class_order"' in said.read_text()
    written = said.stat().st_mtime_ns
    again = invoke(*ONE, "--case", "healthy", "--log-dir", tmp_path / "run")
    assert again.output.count("done before, kept") == 1
    assert said.stat().st_mtime_ns == written
    assert "right cause first in 1 of 1" in again.output
    assert "healthy teachers accused in 0 of 1" in again.output
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.strip() in again.output


def test_a_trained_network_needs_its_file(tmp_path):
    refused = invoke("--kind", failures._CIFAR, "--log-dir", tmp_path / "run")
    assert refused.exit_code == 1
    assert "no --teacher" in refused.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--kind", "perceptron", "--case", "colour order"],
            "--case 'colour order' with perceptron. Choose --kind among cnn",
        ),
        (["--data-dir", "."], "--data-dir does nothing without --teacher"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, arguments, message):
    refused = invoke(*arguments, "--log-dir", tmp_path / "run")
    assert refused.exit_code == 1
    assert message in refused.output
    assert not (tmp_path / "run").exists()


def test_results_are_of_one_trained_network(tmp_path, monkeypatch):
    """Another teacher's are not shown as this one's."""
    said = {"said": [], "first": None, "right": True}
    monkeypatch.setattr(failures, "resnet56", lambda *_: None)
    monkeypatch.setattr(failures, "result_of", lambda *_: said)
    teacher = tmp_path / "teacher.keras"
    arguments = ["--kind", failures._CIFAR, "--case", "healthy"]
    arguments += ["--seeds", "1", "--log-dir", tmp_path / "run"]
    arguments += ["--teacher", teacher]
    teacher.write_bytes(b"one")
    for _ in range(2):
        assert invoke(*arguments).exit_code == 0
    teacher.write_bytes(b"other")
    refused = invoke(*arguments)
    assert "was replaced" in refused.output
    assert "or choose another --log-dir" in refused.output


def test_the_table_counts_by_case_and_kind():
    def result(first, right):
        return {"said": [first], "first": first, "right": right}

    results = {
        ("healthy", "perceptron", 3): result(None, True),
        ("healthy", "transformer", 3): result("noisy_labels", False),
        ("class order", "transformer", 3): result("class_order", True),
        ("class order", "transformer", 4): result("weak_teacher", False),
    }
    table = failures.markdown_table(results)
    healthy, order = table.splitlines()[2:]
    cells = [each.strip() for each in healthy.strip("|").split("|")]
    assert cells[0] == "healthy" and cells[2:] == ["1 of 1", "0 of 1"]
    assert "`class_order` (1), `weak_teacher` (1)" in order
    said = failures.totals(results)
    assert "accused in 0 of 1" in said.splitlines()[0]
    assert "right cause first in 1 of 2" in said.splitlines()[1]
    assert "accused in 1 of 1" in said.splitlines()[1]
