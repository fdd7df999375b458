"""The text that docstrings of installed packages are."""

import package_text
from click.testing import CliRunner
from data import text

PROSE = "Ends at line {}, where (as it says) every other word ends too."
MODULE = f'"""{PROSE.format(0)}\n\n>>> f(1)\n\n{PROSE.format(0)}"""\n'
FUNCTION = f'def f():\n    """{PROSE.format("{}")}"""\n'


def written(folder, packages):
    arguments = [str(folder), "--packages", str(packages)]
    return CliRunner().invoke(package_text.main, arguments)


def test_each_paragraph_of_prose_is_a_line_of_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_HELD_OUT_TOKENS", 5)
    packages = tmp_path / "packages" / "below"
    packages.mkdir(parents=True)
    (packages / "a.py").write_text(MODULE)
    (packages / "b.py").write_text("not Python")
    for i in range(1, 5):
        (packages / f"f{i}.py").write_text(FUNCTION.format(f"{i}00"))

    result = written(tmp_path / "text", packages.parent)

    assert result.exit_code == 0, result.output
    documents = text.load_documents(tmp_path / "text")
    lines = [*documents.train, *documents.valid, *documents.test]
    expected = [PROSE.format(i) for i in ("0", "100", "200", "300", "400")]
    assert sorted(line.strip() for line in lines) == expected
    assert (len(documents.valid), len(documents.test)) == (1, 1)
    # Words as they stand, not in lower case and without punctuation.
    assert "(as" in documents.words()["train"]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    kept = tmp_path / "train.txt"
    kept.write_text("mine")

    result = written(tmp_path, tmp_path)

    assert result.exit_code == 1
    assert "must be new" in result.output
    assert kept.read_text() == "mine"
