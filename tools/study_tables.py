"""Makes the tables of recipes/README.md from the results that are kept.

    python tools/study_tables.py

A line `<!-- results/NAME.json -->` stands above each. Such a file is the
`study.json` of `tools/over_seeds.py`: under "rows" by a row's name a dict from
headings to a list of one number a seed, or to what stands in the table as it
is. With "gain" the heading that it names is also compared with the first row,
paired by seed, with 95 % intervals.

A file with "claims" holds the files under "studies" against them: each claim is
a sum of rows, by their factors, that is above 0 where it is true.
"""

import pathlib
import re
import statistics

import click

from keras_kd import files
from keras_kd.attribution.intervals import paired_interval

README = pathlib.Path(__file__).parents[1] / "recipes" / "README.md"
_TABLE = re.compile(r"<!-- (results/[\w-]+\.json) -->\n\n(?:\|.*\n)*")
TEACHER = "teacher"


@click.command()
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    default=README,
    help="The file whose tables to make again.",
)
def main(readme):
    """Replaces each table below a line that names results."""
    text = readme.read_text()
    try:
        files.write_whole(readme, updated(text, readme.parent))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(names(text))} tables of {readme.name}.")


def names(text):
    """The results that tables of a text are made of."""
    return _TABLE.findall(text)


def updated(text, folder):
    """The text with its tables as the results in a folder have them."""

    def replace(found):
        path = folder / found[1]
        study = read_study(path)
        lines = claims_table(study, path) if "claims" in study else table(study)
        return f"<!-- {found[1]} -->\n\n{lines}\n"

    return _TABLE.sub(replace, text)


def read_study(path):
    """The results in a file.

    Args:
        path: `pathlib.Path`.

    Returns:
        A dict.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    remedy = "Put a copy of it there, or remove what names it."
    study = files.read_dict(path, remedy)
    if study is None:
        raise ValueError(
            "Results of a table must be where it names them. Received: "
            f"{path}, which does not exist. {remedy}"
        )
    return study


def table(study):
    """A study's table in Markdown.

    Args:
        study: dict with "rows", and optionally "gain"; see the module.

    Returns:
        A string; mean ± sample standard deviation where there are seeds.
    """
    rows, compared = study["rows"], study.get("gain")
    first, *_ = rows
    headings = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [["loss", *headings, *([f"over {first}"] if compared else [])]]
    lines.append(["---"] * len(lines[0]))
    for name, row in rows.items():
        cells = [_cell(row.get(heading, "")) for heading in headings]
        if compared:
            cells.append(_gain(row, rows[first], compared, name))
        lines.append([name, *cells])
    return _markdown(lines)


def claims_table(claims, path):
    """What studies say of claims, in Markdown.

    Args:
        claims: dict with "studies", by title the file beside `path` and its
            heading, and "claims", by claim the factors of rows.
        path: `pathlib.Path` of the claims.

    Returns:
        A string; the sum of each study that has all rows, with its interval
        over seeds and the verdict, if there are several.
    """
    studies = {
        title: (read_study(path.parent / name)["rows"], heading)
        for title, (name, heading) in claims["studies"].items()
    }
    lines = [["claim", *studies], ["---"] * (1 + len(studies))]
    for claim, factors in claims["claims"].items():
        cells = [_verdict(*study, factors) for study in studies.values()]
        lines.append([claim, *cells])
    return _markdown(lines)


def _verdict(rows, heading, factors):
    if not factors.keys() <= rows.keys():
        return ""
    terms = [(factor, rows[name]) for name, factor in factors.items()]
    found = _contrast(heading, terms)
    if found.seeds == 1:
        return f"{found.mean:+.2f}, one seed"
    word = {"gain": "confirmed", "loss": "refuted"}.get(found.verdict)
    return f"{word or found.verdict}: {_shown(found)}"


def _cell(value):
    if isinstance(value, list):
        mean = f"{statistics.mean(value):.2f}"
        return f"{mean} ± {statistics.stdev(value):.2f}" if value[1:] else mean
    return value if isinstance(value, str) else f"{value:,}"


def _gain(row, baseline, heading, name):
    """Of a row's mean over the baseline's; above 0 is better."""
    if row is baseline or name == TEACHER or len(row[heading]) < 2:
        return "-"
    return _shown(_contrast(heading, [(1, row), (-1, baseline)]))


def _contrast(heading, terms):
    """The interval over seeds of a sum of rows, each with its factor.

    Above 0 is better, of perplexities too.
    """
    sign = -1 if heading.endswith("perplexity") else 1
    terms = [[sign * f * value for value in row[heading]] for f, row in terms]
    return paired_interval([sum(seed) for seed in zip(*terms, strict=True)])


def _shown(found):
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _markdown(lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
