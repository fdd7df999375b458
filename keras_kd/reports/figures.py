"""Figures for a report, drawn by Matplotlib once the page's theme is known."""

import base64
import dataclasses
import functools
import io
import textwrap
import unicodedata
import warnings

# Inches: on a phone's 360 points of width text then keeps its size.
_WIDTH, _HEIGHT = 4.2, 2.7
# Of many small panels: how many side by side, and the height of each.
_COLUMNS, _PANEL_HEIGHT = 3, 1.75
_PALE = 0.35
# Width of a letter of a title, and height of a line.
_LETTER, _LINE = 0.09, 0.17
# How much of a figure names and labels may take before they are wrapped.
_NAME, _BARS_LABEL, _X_LABEL, _Y_LABEL, _LEGEND = 2.2, 2.4, 3.4, 2.2, 2.9
# Lines and points differ in more than their colours, for eyes and printers that
# don't tell these apart.
_DASHES, _MARKERS = ("-", "--", ":"), "o^s"


@dataclasses.dataclass(frozen=True)
class Theme:
    """The colours of a page and of the figures on it.

    Attributes:
        ground: of the page.
        ink: of text and of lines that show no data.
        faint: of frames.
        series: of the first, second, ... series of a figure.
    """

    ground: str
    ink: str
    faint: str
    series: tuple


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#b4bac2", ("#1f6fb4", "#d1622b", "#3a8f4d")
)
DARK = Theme("#14171a", "#e4e7eb", "#59616b", ("#6db3f2", "#f39a6b", "#7fce92"))


class Figure:
    """A figure that can be drawn in any theme.

    Args:
        draw: function that returns a Matplotlib figure in its current style.

    Example:
    >>> figure = bars(["KD"], [1.2], [(0.9, 1.5)])
    >>> address = figure.to_address(LIGHT)
    """

    def __init__(self, draw):
        self._draw = draw

    def to_matplotlib(self):
        """A new Matplotlib figure in the colours of the light theme."""
        with _style(LIGHT):
            return self._draw()

    @property
    def is_wide(self):
        """Whether it is drawn for the whole width of a page."""
        return self.to_matplotlib().get_figwidth() > _WIDTH

    def to_svg(self, theme=LIGHT):
        """An SVG document, as a string."""
        with _style(theme), warnings.catch_warnings():
            # Who shows the page draws its letters, and has other fonts.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            file = io.StringIO()
            self._draw().savefig(
                file, format="svg", metadata={"Date": None}, transparent=True
            )
        return file.getvalue()

    def to_address(self, theme=LIGHT):
        """The SVG as a `data:` address, for an image on a page."""
        data = base64.b64encode(self.to_svg(theme).encode())
        return f"data:image/svg+xml;base64,{data.decode()}"

    def to_image(self):
        """A [height, width, 3] uint8 NumPy array, on white."""
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with _style(LIGHT):
            figure = self._draw()
            figure.set_dpi(120)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _style(theme):
    """A context with Matplotlib's settings for a theme."""
    _require_matplotlib()
    import matplotlib

    return matplotlib.rc_context(
        {
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.ink,
            "axes.labelsize": 9.5,
            "axes.prop_cycle": matplotlib.cycler(color=theme.series),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 10,
            "font.size": 9.5,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "legend.labelspacing": 0.2,
            "svg.fonttype": "none",
            # The same figure is written as the same file.
            "svg.hashsalt": "keras_kd",
            "text.color": theme.ink,
            # A metric or a method may have a dollar sign in its name.
            "text.parse_math": False,
            "xtick.color": theme.ink,
            "xtick.labelsize": 9,
            "ytick.color": theme.ink,
            "ytick.labelsize": 9,
        }
    )


def _drawn_later(function):
    """Makes a function that draws at once return a `Figure`."""

    @functools.wraps(function)
    def prepare(*args, **kwargs):
        return Figure(functools.partial(function, *args, **kwargs))

    return prepare


@_drawn_later
def bars(names, values, intervals=None, label="", emphasised=None):
    """Horizontal bars, with intervals where there are some.

    Args:
        names: list of strings, from top to bottom.
        values: list of numbers.
        intervals: optional list of (low, high).
        label: of the axis.
        emphasised: optional list of booleans; other bars are pale.

    Returns:
        A `Figure`.
    """
    names = [_wrapped(name, _NAME) for name in names]
    label = _wrapped(label, _BARS_LABEL)
    # Bars have equal distances, so that the longest name sets them all.
    lines_of_text = 1 + max(name.count("\n") for name in names)
    figure, (axes,) = _new_figure(
        height=0.9
        + max(0.32, 0.19 * lines_of_text) * len(names)
        + _LINE * label.count("\n")
    )
    places = range(len(names))
    bars = axes.barh(places, values, 0.6, color="C0")
    for bar, is_one in zip(bars, emphasised or (), strict=False):
        bar.set_alpha(1.0 if is_one else _PALE)
    for place, (low, high) in zip(places, intervals or (), strict=False):
        axes.plot([low, high], [place, place], color=_ink(), lw=1.4, marker="|")
    axes.axvline(0.0, color=_ink(), lw=0.8)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


@_drawn_later
def lines(
    series, x_label="", y_label="", log_x=False, marks=(), diagonal=False
):
    """Lines over a common axis.

    Args:
        series: dict by name of (x values, y values).
        x_label: of the axis.
        y_label: of the axis.
        log_x: whether the x axis is logarithmic.
        marks: x values to draw a dotted line at, with a name: (x, name).
        diagonal: whether to draw y = x.

    Returns:
        A `Figure`.
    """
    figure, (axes,) = _new_figure()
    if diagonal:
        axes.plot([0, 1], [0, 1], color=_faint(), lw=1)
    for i, (name, (x, y)) in enumerate(series.items()):
        marker = "o" if len(x) < 25 else None
        axes.plot(
            x,
            y,
            color=f"C{i}",
            ls=_DASHES[i % len(_DASHES)],
            label=name,
            marker=marker,
            ms=3,
            lw=1.6,
        )
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    for x, name in marks:
        axes.axvline(x, color=_ink(), lw=0.9, ls=":")
        axes.annotate(
            name,
            (x, 0.02),
            xytext=(3, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            rotation=90,
            fontsize=8,
        )
    _label(axes, x_label, y_label)
    _legend(axes, series)
    return figure


@_drawn_later
def histograms(edges, groups, x_label="", marks=()):
    """Outlines of histograms, each as shares of its own examples.

    Args:
        edges: list of bin edges.
        groups: dict by name of counts.
        x_label: of the axis.
        marks: x values to draw a dotted line at.

    Returns:
        A `Figure`.
    """
    figure, (axes,) = _new_figure()
    for i, (name, counts) in enumerate(groups.items()):
        total = max(sum(counts), 1)
        shares = [count / total for count in counts]
        dashes = _DASHES[i % len(_DASHES)]
        axes.stairs(shares, edges, color=f"C{i}", ls=dashes, label=name, lw=1.6)
    for x in marks:
        axes.axvline(x, color=_ink(), lw=0.8, ls=":")
    _label(axes, x_label, "share of examples")
    _legend(axes, groups)
    return figure


@_drawn_later
def densities(edges, panels, x_label="", y_label="", label="", marks=()):
    """Histograms in the course of something: a panel for each group.

    Args:
        edges: [bins + 1], the edges of all histograms.
        panels: dict by name of [times, bins] counts; each row is shown as
            shares of its sum, the first at the bottom.
        x_label: of what is counted.
        y_label: of the course, in which rows are numbered from 1 on.
        label: of the scale of colours.
        marks: x values to draw a dotted line at.

    Returns:
        A `Figure`.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm

    shares = {
        name: np.asarray(counts) / np.maximum(np.sum(counts, 1), 1)[:, None]
        for name, counts in panels.items()
    }
    figure, grid = _new_grid(panels)
    for axes, rows in zip(grid, shares.values(), strict=True):
        image = axes.imshow(
            rows,
            cmap=_shades(),
            # Rare values are seen beside the frequent ones.
            norm=PowerNorm(0.5, 0, max(map(np.max, shares.values()))),
            extent=(edges[0], edges[-1], 0.5, len(rows) + 0.5),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
        )
        for x in marks:
            axes.axvline(x, color=_ink(), lw=0.8, ls=":")
        axes.set_xlim(_occupied(edges, list(shares.values())))
        axes.yaxis.get_major_locator().set_params(integer=True)
    # Not below the scale of colours.
    for axes in grid[-_COLUMNS:]:
        axes.set_xlabel(x_label)
    figure.supylabel(_wrapped(y_label, _Y_LABEL), fontsize=9.5)
    _scale(figure, image, grid, label)
    return figure


def _occupied(edges, shares):
    """The range of the bins that hold more than one example in 1,000."""
    import numpy as np

    used = np.flatnonzero(np.concatenate(shares).max(0) > 1e-3)
    if not len(used):
        return edges[0], edges[-1]
    return edges[used[0]], edges[used[-1] + 1]


@_drawn_later
def curves(panels, reference=None, x_label="", y_label=""):
    """Curves with bands, a panel for each, and one to compare them with.

    Args:
        panels: dict by name of (x, middle, low, high), lists of numbers.
        reference: optional (name, (x, middle, low, high)), drawn in each.
        x_label: of all axes.
        y_label: of all axes.

    Returns:
        A `Figure`.
    """
    figure, grid = _new_grid(panels, share=True)
    for axes, curve in zip(grid, panels.values(), strict=True):
        if reference:
            _draw_band(axes, reference[1], "C1", "--")
        _draw_band(axes, curve, "C0", "-")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel(x_label, fontsize=9.5)
    figure.supylabel(_wrapped(y_label, _Y_LABEL), fontsize=9.5)
    if reference:
        lines = grid[0].lines[1], grid[0].lines[0]
        figure.legend(
            lines,
            ("named above the panel", reference[0]),
            loc="outside upper left",
            ncols=2,
        )
    return figure


def _draw_band(axes, curve, colour, style):
    x, middle, low, high = curve
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    # A single epoch is a point.
    marker = "o" if len(x) == 1 else None
    axes.plot(x, middle, color=colour, ls=style, lw=1.6, marker=marker, ms=4)


@_drawn_later
def scatter(
    groups, x_label="", y_label="", log_x=False, rug=(), steps=None, ring=None
):
    """Points of several groups, the last of them on top.

    Args:
        groups: dict by name of (x values, y values). One called "others" is
            drawn faintly.
        x_label: of the axis.
        y_label: of the axis.
        log_x: whether the x axis is logarithmic.
        rug: x values to mark at the bottom, whose y is not known.
        steps: optional (x values, y values) of a line of steps.
        ring: optional (x, y) of a point to put a ring around.

    Returns:
        A `Figure`.
    """
    figure, (axes,) = _new_figure()
    if steps is not None:
        axes.step(*steps, color="C1", lw=1.4, where="post")
    number = 0
    for name, (x, y) in groups.items():
        colour, marker = _faint(), "o"
        if name != "others":
            colour, marker = f"C{number}", _MARKERS[number % len(_MARKERS)]
            number += 1
        axes.scatter(
            x, y, 16, color=colour, marker=marker, label=name, linewidths=0
        )
    if rug:
        axes.plot(
            rug,
            [0.02] * len(rug),
            "|",
            color=_faint(),
            ms=7,
            transform=axes.get_xaxis_transform(),
        )
    if ring is not None:
        axes.scatter(*ring, 90, facecolors="none", edgecolors="C1", lw=1.6)
    if log_x:
        _log_axis(axes, [*rug, *(v for x, _ in groups.values() for v in x)])
    _label(axes, x_label, y_label)
    _legend(axes, groups, len(groups))
    return figure


def _log_axis(axes, values):
    """A logarithmic axis with few ticks, and numbers as they are read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    subs = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
    axes.xaxis.set_major_locator(LogLocator(10, subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


@_drawn_later
def courses(groups, x_label="", y_label=""):
    """Many lines from 1 on, in the colour of their group.

    Args:
        groups: dict by name of lists of lists of y values, at most three; the
            last on top, and thicker.
        x_label: of the axis.
        y_label: of the axis.

    Returns:
        A `Figure`.
    """
    figure, (axes,) = _new_figure()
    colours = ["C1", _faint(), "C0"][-len(groups) :]
    for i, (name, members) in enumerate(groups.items()):
        last = i == len(groups) - 1
        for n, values in enumerate(members):
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=colours[i],
                lw=2.2 if last else 0.9,
                label=None if n else name,
            )
            if len(values) == 1 or not last:
                axes.plot(len(values), values[-1], ".", color=colours[i], ms=4)
    _label(axes, x_label, y_label)
    _legend(axes, groups, len(groups))
    return figure


@_drawn_later
def heatmaps(panels, limit=1.0, label=""):
    """Matrices side by side in one scale of colours, from -limit to limit.

    Args:
        panels: dict by name of [n, n] nested lists.
        limit: float.
        label: of the scale.

    Returns:
        A `Figure`.
    """
    if len(panels) > _COLUMNS:
        figure, axes = _new_grid(panels, _COLUMNS + 1, 2.25)
    else:
        height = 1.2 + 0.9 * _WIDTH / len(panels)
        titles, more = _titles(panels, _WIDTH / len(panels))
        figure, axes = _new_figure(height + more, len(panels))
        for each, title in zip(axes, titles, strict=True):
            each.set_title(title)
    for each, values in zip(axes, panels.values(), strict=True):
        image = each.imshow(
            values,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
        )
        each.set_xticks([])
        each.set_yticks([])
        each.spines[:].set_visible(True)
    _scale(figure, image, axes, label)
    return figure


def _scale(figure, image, axes, label):
    """A scale of the colours below all axes."""
    from matplotlib.ticker import MaxNLocator

    rows = figure.get_figheight() / _HEIGHT
    bar = figure.colorbar(
        image,
        ax=list(axes),
        orientation="horizontal",
        fraction=0.05 / max(rows, 1),
        pad=0.02,
        aspect=40,
    )
    # So few numbers that they don't run into each other.
    bar.locator = MaxNLocator(4)
    bar.set_label(label)
    bar.outline.set_visible(False)


@_drawn_later
def overview(table, shares, curve, band):
    """A table of labels and predictions, shares as bars, and a curve.

    Args:
        table: [n, n] shares of each label's predictions, or `None`.
        shares: dict by name of numbers in [0, 1].
        curve: (temperatures, values), or `None`.
        band: (lowest, highest) temperature to mark.

    Returns:
        A `Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * _WIDTH, 1.4 * _HEIGHT), layout="constrained")
    columns = figure.add_gridspec(1, 2 if table else 1)
    right = columns[-1].subgridspec(2, 1, height_ratios=(2, 3))
    if table:
        _draw_table(figure.add_subplot(columns[0]), table)
    _draw_shares(figure.add_subplot(right[0]), shares)
    if curve:
        _draw_curve(figure.add_subplot(right[1]), curve, band)
    return figure


def _draw_table(axes, table):
    axes.imshow(table, cmap=_shades(), vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="prediction", ylabel="label", xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def _draw_shares(axes, shares):
    places, values = range(len(shares)), list(shares.values())
    axes.barh(places, values, 0.6, color="C0")
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.0%}",
            (value, place),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(list(places), list(shares))
    axes.set(xlim=(0, 1.15), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()


def _draw_curve(axes, curve, band):
    axes.axvspan(*band, color="C2", alpha=0.25, lw=0)
    axes.plot(*curve, "C0", lw=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="temperature", ylabel="nats", ylim=(0, None))


def _shades():
    """From nothing, so that the page shows through, to the first colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    return LinearSegmentedColormap.from_list(
        "shares", [(*to_rgb("C0"), 0), (*to_rgb("C0"), 1)]
    )


def _ink():
    import matplotlib

    return matplotlib.rcParams["text.color"]


def _faint():
    import matplotlib

    return matplotlib.rcParams["axes.edgecolor"]


def _label(axes, x_label, y_label):
    """Names the axes, in several lines where the names are longer."""
    x_label = _wrapped(x_label, _X_LABEL)
    axes.set_xlabel(x_label)
    axes.set_ylabel(_wrapped(y_label, _Y_LABEL))
    _add_lines(axes.figure, x_label.count("\n"))


def _legend(axes, names, columns=1):
    """Above the axes, where it hides nothing."""
    if len(names) > 1:
        if columns > 1 and sum(map(len, names)) * _LETTER > _X_LABEL:
            columns = 1
            _add_lines(axes.figure, len(names) - 1)
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            ncols=columns,
            columnspacing=1.2,
        )
        for text in legend.texts:
            text.set_text(_wrapped(text.get_text(), _LEGEND))
            _add_lines(axes.figure, text.get_text().count("\n"))


def _add_lines(figure, lines):
    """Makes room for further lines of text."""
    figure.set_figheight(figure.get_figheight() + _LINE * lines)


def _new_figure(height=_HEIGHT, columns=1):
    # The class and not pyplot, which would choose a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _titles(names, width):
    """Titles in lines that are no wider than a panel, and what they add.

    Args:
        names: strings.
        width: of a panel's place, in inches.

    Returns:
        (titles, inches), a list of strings and what the lines beyond the
        first take of a row's height.
    """
    # A panel has some nine tenths of its place.
    titles = [_wrapped(name.replace("\n", " "), 0.9 * width) for name in names]
    return titles, _LINE * max(title.count("\n") for title in titles)


def _wrapped(text, width):
    """Text wrapped into lines of at most a width in inches."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    letters = int(width / _LETTER / (1 + wide / max(len(text), 1)))
    lines = [
        line
        for part in text.split("\n")
        for line in textwrap.wrap(part, max(letters, 1)) or [""]
    ]
    # These spaces have done their work.
    return "\n".join(lines).replace("\xa0", " ")


def _new_grid(names, columns=_COLUMNS, height=_PANEL_HEIGHT, share=False):
    """A wide figure of a panel for each name, and their axes in order."""
    from matplotlib.figure import Figure

    count = len(names)
    columns = min(columns, count)
    rows = -(-count // columns)
    titles, more = _titles(names, 2 * _WIDTH / columns)
    figure = Figure(
        figsize=(2 * _WIDTH, 0.9 + (height + more) * rows),
        layout="constrained",
    )
    grid = list(
        figure.subplots(
            rows, columns, sharex=share, sharey=share, squeeze=False
        ).flat
    )
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title)
    for axes in grid[count:]:
        axes.set_axis_off()
    # Those above an empty place would have their numbers there.
    for axes in grid[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def _require_matplotlib():
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The figures of a report are drawn by Matplotlib. Received: no "
            "module of that name. Run pip install matplotlib, or use what "
            "needs no figures: print(...) and to_json() or to_dict()."
        ) from error
