"""A report: one HTML page with its figures in it, for screen and print.

A `Page` takes headings, text, tables and figures in order. Figures are those
of `keras_kd.reports.figures`, drawn for the page's light and dark scheme.
"""

import html
import os

from keras_kd.files import user_path, write_whole
from keras_kd.reports.figures import DARK, LIGHT
from keras_kd.reports.numbers import general


def _colours(theme, bad, good, card):
    """The page's colours as CSS variables."""
    return (
        f"--ground: {theme.ground}; --ink: {theme.ink}; --faint: "
        f"{theme.faint}; --bad: {bad}; --good: {good}; --card: {card};"
    )


_COLOURS = (
    ":root { color-scheme: light dark; "
    + _colours(LIGHT, "#b3261e", "#2a6b3c", "#f5f6f8")
    # Paper is white, whatever the screen is.
    + " }\n@media screen and (prefers-color-scheme: dark) { :root { "
    + _colours(DARK, "#ff8a80", "#81c995", "#1f2429")
    + " } }"
)
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; line-height: 1.5;
  font: 1rem/1.5 system-ui, sans-serif; background: var(--ground);
  color: var(--ink); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.card { background: var(--card); border-left: .3rem solid var(--faint);
  padding: .6rem .9rem; margin: .8rem 0; border-radius: .2rem; }
.card.problem { border-color: var(--bad); }
.card h3 { margin: 0 0 .3rem; font-size: 1rem; }
.card p { margin: .3rem 0; }
.tag { font-size: .75rem; text-transform: uppercase; letter-spacing: .05em; }
.problem .tag { color: var(--bad); }
.evidence { font-size: .85rem; opacity: .85; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; break-inside: avoid; max-width: 36rem; min-width: 0; }
figure.wide { grid-column: 1 / -1; max-width: none; }
figure img { width: 100%; height: auto; }
figure.wide img { min-width: 36rem; }
img.dark { display: none; }
@media screen and (prefers-color-scheme: dark) {
  img.dark { display: inline; } img.light { display: none; } }
figcaption { font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .875rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--faint); white-space: nowrap; }
td + td, th + th { text-align: right; }
th { vertical-align: bottom; }
th, td:first-child { white-space: normal; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  .card, figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  figure.wide img { min-width: 0; }
  .scroll { overflow: visible; } th, td { white-space: normal; }
  td:first-child { overflow-wrap: anywhere; } }
"""


def check_new(path):
    """Refuses a path at which there is a file already.

    Args:
        path: of the file to be written; a leading `~` is the home folder.

    Returns:
        The path as a string.

    Raises:
        FileExistsError: if there is one.
        ValueError: if the path is empty.
    """
    path = user_path(path)
    if os.path.lexists(path):  # A link may lead nowhere yet.
        raise FileExistsError(
            f"A report never overwrites a file. Received: {path!r}, which "
            "exists. Choose another name, or remove it first."
        )
    return path


class Reported:
    """What has a report: shown as Markdown, and saved as a page."""

    def __str__(self):
        return self.to_markdown()

    def _repr_markdown_(self):
        """What a notebook shows."""
        return self.to_markdown()

    def save(self, path):
        """Writes a report: one HTML page that needs no other file.

        Args:
            path: of a file that does not exist yet.

        Raises:
            FileExistsError: if it does.
            ImportError: without Matplotlib, which draws the figures.
            OSError: if it can't be written, such as on a full disk.
        """
        path = check_new(path)  # Before figures are drawn.
        self._page().save(path)


class Page:
    """One self-contained HTML page, written from top to bottom.

    Args:
        title: of the page.

    Example:
    >>> page = Page("What each level of knowledge was worth")
    >>> page.add_text("KD gained 1.2 ± 0.3 points.")
    >>> page.add_table(["level", "gain"], [["KD", "1.2"]])
    >>> bars = figures.bars(["KD"], [1.2], [(0.9, 1.5)])
    >>> page.add_figure(bars, "Gains by level.")
    >>> page.save("report.html")
    """

    def __init__(self, title):
        self.title = title
        self._parts = []
        self._in_figures = False

    def add_heading(self, text):
        """Begins a section."""
        self._add(f"<h2>{html.escape(text)}</h2>")

    def add_text(self, text):
        """Adds a paragraph of plain text."""
        self._add(f"<p>{html.escape(text)}</p>")

    def add_finding(self, code, severity, summary, details, evidence=None):
        """Adds a finding as a box.

        Args:
            code: its name.
            severity: "problem" or "info".
            summary: what was found.
            details: further paragraphs.
            evidence: optional dict of numbers.
        """
        paragraphs = "".join(f"<p>{html.escape(each)}</p>" for each in details)
        if evidence:
            words = ", ".join(
                f"{key.replace('_', ' ')} {_number(value)}"
                for key, value in evidence.items()
            )
            paragraphs += f'<p class="evidence">{html.escape(words)}</p>'
        self._add(
            f'<section class="card {html.escape(severity)}"><h3>'
            f'<span class="tag">{html.escape(severity)}</span> '
            f"{html.escape(code.replace('_', ' '))}</h3>"
            f"<p><strong>{html.escape(summary)}</strong></p>{paragraphs}"
            "</section>"
        )

    def add_table(self, header, rows):
        """Adds a table; the first column names the row.

        Args:
            header: list of strings.
            rows: list of lists of strings.
        """
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in rows
        )
        self._add(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def add_rows(self, rows):
        """Adds a table of rows that name their columns.

        Args:
            rows: list of dicts of strings, with the same keys.
        """
        self.add_table(list(rows[0]), [list(row.values()) for row in rows])

    def add_figure(self, figure, caption):
        """Adds a figure; successive ones share a row where there is room.

        Args:
            figure: a `keras_kd.reports.figures.Figure`, drawn in the colours
                of the page's light and of its dark scheme.
            caption: what it shows.
        """
        caption = html.escape(caption)
        # Of a <picture>, browsers would print the one that is on the screen.
        images = "".join(
            f'<img class="{scheme}" alt="{caption}" '
            f'src="{figure.to_address(theme)}">'
            for scheme, theme in (("light", LIGHT), ("dark", DARK))
        )
        self._add(
            f'<figure class="{"wide" if figure.is_wide else "narrow"}">'
            f'<div class="scroll">{images}</div>'
            f"<figcaption>{caption}</figcaption></figure>",
            in_figures=True,
        )

    def _add(self, part, in_figures=False):
        if in_figures != self._in_figures:
            self._parts.append(
                '<div class="figures">' if in_figures else "</div>"
            )
            self._in_figures = in_figures
        self._parts.append(part)

    def render(self):
        """The page as a string."""
        title = html.escape(self.title)
        body = "\n".join(self._parts + ["</div>"] * self._in_figures)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, '
            f'initial-scale=1">\n<title>{title}</title>\n'
            f"<style>{_COLOURS}{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            f"{body}\n</body></html>\n"
        )

    def save(self, path):
        """Writes the page to a new file, whole or not at all.

        Args:
            path: of a file that does not exist yet.

        Raises:
            FileExistsError: if it does.
            OSError: if it can't be written, such as on a full disk.
        """
        write_whole(check_new(path), self.render())


def _number(value):
    if isinstance(value, float):
        return general(value)
    if isinstance(value, list | tuple):
        shown = ", ".join(map(_number, value[:12]))
        return f"[{shown}{', ...' if len(value) > 12 else ''}]"
    return str(value)
