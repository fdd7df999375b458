"""The table of a run's results."""

import rich.console
import rich.table
import rich.text

from keras_kd.reports.terminal import printable

# Wider than any table.
_WIDTH = 10_000


def print_table(title, rows):
    """Prints results as a table, of which nothing is ever cut.

    On a terminal that is too narrow for it each row is a list.

    Args:
        title: string.
        rows: list of dicts of strings, with the same keys.
    """
    console = rich.console.Console()
    table = rich.table.Table(title=_text(title))
    for i, column in enumerate(rows[0]):
        justify = "right" if i else "left"
        table.add_column(_text(column), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    unlimited = console.options.update(width=_WIDTH)
    width = console.measure(table, options=unlimited).maximum
    if width <= console.width:
        console.print(table)
    elif console.is_terminal:
        _print_lists(title, rows)
    else:
        # A file has no width.
        rich.console.Console(width=width).print(table)


def _print_lists(title, rows):
    print(printable(title))
    for row in rows:
        name, *others = row
        print(printable(f"{name} {row[name]}"))
        for column in others:
            print(printable(f"  {column}: {row[column]}"))


def _text(text):
    """Plain text: brackets are not markup."""
    return rich.text.Text(printable(text))


def result_rows(results, columns):
    """Results as rows of strings, the teacher last.

    Args:
        results: dict of results by the models' names.
        columns: tuples of a heading, the key of a result, a factor and a
            format.

    Returns:
        List of dicts.
    """
    columns = (
        ("parameters", "parameters", 1, ","),
        *columns,
        ("median w", "median_gradient_scale", 1, ".2f"),
        ("reversed", "reversed_share", 1, ".1%"),
        ("seconds", "seconds", 1, ".0f"),
    )
    names = sorted(results, key="teacher".__eq__)
    return [
        {
            "loss": name.removeprefix("student-"),
            **{
                heading: _number(results[name].get(key), factor, form)
                for heading, key, factor, form in columns
            },
        }
        for name in names
    ]


def _number(value, factor, form):
    return "-" if value is None else f"{value * factor:{form}}"
