"""Tables of results, on whatever they are printed."""

import io
import sys

import pytest
from study.table import print_table

ROWS = [
    {"loss": name, "parameters": "162,024", "test [%]": "55.09"}
    for name in ("plain", "label_smoothing")
]
TITLE = "runs/[b]first[/b] λ"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [10, 40, 80])
@pytest.mark.parametrize("output", [io.StringIO, Terminal])
def test_nothing_of_a_table_is_cut(monkeypatch, output, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", output())
    print_table(TITLE, ROWS)
    text = sys.stdout.getvalue()
    assert "…" not in text
    for row in ROWS:
        for word in (*row, *row.values()):
            assert word in text
    is_list = output is Terminal and columns < 50
    assert ("parameters: 162,024" in text) == is_list


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_pipe_takes_what_it_can(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    print_table(TITLE, ROWS)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert r"runs/[b]first[/b] \u03bb" in text and "162,024" in text
