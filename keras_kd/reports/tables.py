"""Tables as text that is also Markdown."""

import io

import rich.box
import rich.console
import rich.table
import rich.text

# Wider than any table, so that no cell is wrapped or cut.
_WIDTH = 10_000


def markdown(rows):
    """A Markdown table with aligned columns, readable as it is.

    Args:
        rows: list of dicts of strings, with the same keys in the same order.

    Returns:
        A string without a trailing line break; empty if there are no rows.

    Example:
    >>> print(markdown([{"method": "kd", "gain": "+1.2"}]))
    | method | gain |
    |--------|------|
    | kd     | +1.2 |
    """
    if not rows:
        return ""
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for name in rows[0]:
        table.add_column(_cell(name), no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    file = io.StringIO()
    console = rich.console.Console(
        file=file,
        width=_WIDTH,
        color_system=None,
        # In a notebook Rich would show the table instead of writing it.
        force_jupyter=False,
        force_terminal=False,
    )
    console.print(table)
    # Rich leaves a blank line above and below.
    return file.getvalue().strip()


def _cell(text):
    """Plain text: brackets are not markup, bars and line ends not borders."""
    return rich.text.Text(" ".join(text.split("\n")).replace("|", r"\|"))
