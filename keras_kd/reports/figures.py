"""Figures for a report, drawn by Matplotlib once the page's theme is known."""

import base64
import dataclasses
import functools
import io

# Inches: on a phone's 360 points of width text then keeps its size.
_WIDTH, _HEIGHT = 4.2, 2.7


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

    def to_matplotlib(self, theme=LIGHT):
        """A new Matplotlib figure in the colours of a theme."""
        with _style(theme):
            return self._draw()

    def to_svg(self, theme=LIGHT):
        """An SVG document, as a string."""
        with _style(theme):
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
def bars(names, values, intervals=None, label="", baseline=0.0):
    """Horizontal bars, with intervals where there are some.

    Args:
        names: list of strings, from top to bottom.
        values: list of numbers.
        intervals: optional list of (low, high).
        label: of the axis.
        baseline: where the bars start.

    Returns:
        A `Figure`.
    """
    figure, (axes,) = _new_figure(height=0.9 + 0.32 * len(names))
    places = range(len(names))
    lengths = [value - baseline for value in values]
    axes.barh(places, lengths, 0.6, left=baseline, color="C0")
    for place, (low, high) in zip(places, intervals or (), strict=False):
        axes.plot([low, high], [place, place], color=_ink(), lw=1.4, marker="|")
    axes.axvline(baseline, color=_ink(), lw=0.8)
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
        axes.plot(x, y, f"C{i}", label=name, marker=marker, ms=3, lw=1.6)
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
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
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
        axes.stairs(shares, edges, color=f"C{i}", label=name, lw=1.6)
    for x in marks:
        axes.axvline(x, color=_ink(), lw=0.8, ls=":")
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of examples")
    _legend(axes, groups)
    return figure


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
        colour = _faint() if name == "others" else f"C{number}"
        number += name != "others"
        axes.scatter(x, y, 16, color=colour, label=name, linewidths=0)
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
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
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
def curves(groups, x_label="", y_label=""):
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
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
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
    height = 1.2 + 0.9 * _WIDTH / len(panels)
    figure, axes = _new_figure(height, len(panels))
    for each, (name, values) in zip(axes, panels.items(), strict=True):
        image = each.imshow(
            values,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
        )
        each.set_title(name)
        each.set_xticks([])
        each.set_yticks([])
        each.spines[:].set_visible(True)
    bar = figure.colorbar(
        image, ax=list(axes), orientation="horizontal", fraction=0.05, pad=0.02
    )
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


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
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    # From nothing, so that the page shows through, to the first colour.
    colours = LinearSegmentedColormap.from_list(
        "shares", [(*to_rgb("C0"), 0), (*to_rgb("C0"), 1)]
    )
    axes.imshow(table, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
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


def _ink():
    import matplotlib

    return matplotlib.rcParams["text.color"]


def _faint():
    import matplotlib

    return matplotlib.rcParams["axes.edgecolor"]


def _legend(axes, names, columns=1):
    """Above the axes, where it hides nothing."""
    if len(names) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            ncols=columns,
            columnspacing=1.2,
        )


def _new_figure(height=_HEIGHT, columns=1):
    # The class and not pyplot, which would choose a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _require_matplotlib():
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The figures of a report are drawn by Matplotlib. Received: no "
            "module of that name. Run pip install matplotlib, or use what "
            "needs no figures: print(...) and to_json() or to_dict()."
        ) from error
