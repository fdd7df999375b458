"""The table of a run's results."""

import rich.console
import rich.table


def print_table(title, rows):
    """Prints results as a table.

    Args:
        title: string.
        rows: list of dicts of strings, with the same keys.
    """
    table = rich.table.Table(title=title)
    first, *others = rows[0]
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row.values())
    rich.console.Console().print(table)


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
