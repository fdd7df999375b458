"""The study of failures: its table, and that it resumes."""

import failures
from click.testing import CliRunner

ONE = (
    *("--seeds", "1", "--first-seed", "5"),
    *("--kind", "perceptron, digits", "--case", "class order"),
)


def invoke(*arguments):
    return CliRunner().invoke(failures.main, [str(each) for each in arguments])


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
