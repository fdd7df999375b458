"""Figures for a report: drawn by Matplotlib, in the colours of the page."""

import io
import re

# Colours that stand for the page's own: what Matplotlib draws with each of
# these gets the page's variable of that name. No two differ by rounding.
_INK, _FAINT = "#010203", "#a1a2a3"
COLOURS = ("#1f6fb4", "#d1622b", "#3a8f4d", "#8a5bb0")
_VARIABLES = {
    _INK: "currentColor",
    _FAINT: "var(--faint)",
    **{c: f"var(--series-{i})" for i, c in enumerate(COLOURS)},
}
# Inches: on a phone's 360 points of width text then keeps its size.
_WIDTH, _HEIGHT = 4.2, 2.7


def bars(names, values, intervals=None, label="", baseline=0.0):
    """Horizontal bars, with intervals where there are some.

    Args:
        names: list of strings, from top to bottom.
        values: list of numbers.
        intervals: optional list of (low, high).
        label: of the axis.
        baseline: where the bars start.

    Returns:
        A Matplotlib figure.
    """
    figure, axes = _new_figure(height=0.9 + 0.32 * len(names))
    places = range(len(names))
    lengths = [value - baseline for value in values]
    axes.barh(places, lengths, 0.6, left=baseline, color=COLOURS[0])
    for place, (low, high) in zip(places, intervals or (), strict=False):
        axes.plot([low, high], [place, place], color=_INK, lw=1.4, marker="|")
    axes.axvline(baseline, color=_INK, lw=0.8)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


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
        A Matplotlib figure.
    """
    figure, axes = _new_figure()
    if diagonal:
        axes.plot([0, 1], [0, 1], color=_FAINT, lw=1)
    for (name, (x, y)), colour in zip(series.items(), COLOURS, strict=False):
        marker = "o" if len(x) < 25 else None
        axes.plot(x, y, color=colour, label=name, marker=marker, ms=3, lw=1.6)
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    for x, name in marks:
        axes.axvline(x, color=_INK, lw=0.9, ls=":")
        axes.annotate(
            name,
            (x, 0.02),
            xytext=(2, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            rotation=90,
            color=_INK,
            fontsize=8,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, series)
    return figure


def histograms(edges, groups, x_label="", marks=()):
    """Outlines of histograms, each as shares of its own examples.

    Args:
        edges: list of bin edges.
        groups: dict by name of counts.
        x_label: of the axis.
        marks: x values to draw a dotted line at.

    Returns:
        A Matplotlib figure.
    """
    figure, axes = _new_figure()
    for (name, counts), colour in zip(groups.items(), COLOURS, strict=False):
        total = max(sum(counts), 1)
        shares = [count / total for count in counts]
        axes.stairs(shares, edges, color=colour, label=name, lw=1.6)
    for x in marks:
        axes.axvline(x, color=_INK, lw=0.8, ls=":")
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of examples")
    _legend(axes, groups)
    return figure


def heatmaps(panels, limit=1.0, label=""):
    """Matrices side by side in one scale of colours, from -limit to limit.

    Args:
        panels: dict by name of [n, n] nested lists.
        limit: float.
        label: of the scale.

    Returns:
        A Matplotlib figure.
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
        each.set_title(name, fontsize=10, color=_INK)
        each.set_xticks([])
        each.set_yticks([])
    bar = figure.colorbar(
        image, ax=list(axes), orientation="horizontal", fraction=0.05, pad=0.02
    )
    bar.set_label(label, color=_INK)
    bar.ax.tick_params(color=_INK, labelcolor=_INK)
    bar.outline.set_visible(False)
    return figure


def _legend(axes, names):
    """Above the axes, where it hides nothing."""
    if len(names) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            frameon=False,
            labelcolor=_INK,
            labelspacing=0.2,
            fontsize=9,
        )


def _new_figure(height=_HEIGHT, columns=None):
    figure_class = _matplotlib_figure()
    figure = figure_class(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(1, columns or 1, squeeze=False)[0]
    for each in axes:
        each.patch.set_alpha(0)
        each.tick_params(colors=_INK, labelsize=9)
        for label in (each.xaxis.label, each.yaxis.label):
            label.set(color=_INK, fontsize=9.5)
        for side, spine in each.spines.items():
            spine.set_color(_FAINT)
            spine.set_visible(side in ("left", "bottom") or bool(columns))
    return figure, axes if columns else axes[0]


def _matplotlib_figure():
    try:
        # The class and not pyplot, which would choose a window system.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "The pictures of a report are drawn by matplotlib. Received: no "
            "module of that name. Run pip install matplotlib; print(diagnosis) "
            "and diagnosis.to_json() need it not."
        ) from error
    return Figure


def to_svg(figure, name):
    """A figure as an SVG element in the page's colours.

    Args:
        figure: a Matplotlib figure.
        name: that no other figure of the page has.

    Returns:
        A string.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5}
    ):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page's width decides; and names are unique in a page.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r"font: ([^;\"]*?)(['\"]?DejaVu Sans['\"]?)[^;\"]*",
        r"font: \1system-ui, sans-serif",
        svg,
    )
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def to_image(figure):
    """A figure as a [height, width, 3] uint8 NumPy array, on white.

    Args:
        figure: a Matplotlib figure.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.patch.set(alpha=1, facecolor="white")
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
