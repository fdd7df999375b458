"""Draws the histograms of w that a recipe's run logged for TensorBoard.

    python tools/plot_gradient_scale.py runs/study/seed-0 gradient_scales.png

One row per model of the run that has such histograms, three columns: all
examples over the epochs, then those that the teacher gets right and wrong in
the last epoch.
"""

import pathlib

import click
import numpy as np

GROUPS = {
    "all": "all examples",
    "teacher_right": "teacher right, last epoch",
    "teacher_wrong": "teacher wrong, last epoch",
}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("picture", type=click.Path(dir_okay=False))
def main(run, picture):
    """Draws the histograms logged in the folder RUN into the file PICTURE."""
    histograms = read_histograms(pathlib.Path(run))
    if not histograms:
        raise click.ClickException(
            "The run must have logged gradient scales. Received: "
            f"{run}, in which there are no histograms of them. Give the run "
            "folder of a recipe with a distilled student."
        )
    try:
        plot(histograms).savefig(picture, dpi=110)
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"The picture can't be written. Received: {picture} ({error}). "
            "Let it end in .png, in a folder that you may write to."
        ) from error
    click.echo(picture)


def read_histograms(run):
    """Histograms of w from the event files below a folder.

    Args:
        run: path.

    Returns:
        Dict by model of dicts by group of lists of [bins, 3] arrays (left
        edge, right edge, count), one per epoch.
    """
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    found = {}
    for folder in sorted(run.glob("tensorboard/*/train")):
        events = event_accumulator.EventAccumulator(
            str(folder), size_guidance={event_accumulator.TENSORS: 0}
        ).Reload()
        tags = {f"gradient_scale/{group}": group for group in GROUPS}
        groups = {
            tags[tag]: [
                tensor_util.make_ndarray(event.tensor_proto)
                for event in events.Tensors(tag)
            ]
            for tag in events.Tags()["tensors"]
            if tag in tags
        }
        if groups:
            found[folder.parent.name.removeprefix("student-")] = groups
    return found


def plot(histograms):
    """A matplotlib figure of what `read_histograms` returns."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(histograms),
        len(GROUPS),
        figsize=(11, 0.9 + 1.9 * len(histograms)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (model, groups) in zip(axes, histograms.items(), strict=True):
        for axis, group in zip(row, GROUPS, strict=True):
            axis.axvspan(-3, 0, color="tab:red", alpha=0.08, lw=0)
            axis.axvline(1, color="black", lw=0.8, ls=":")
            axis.set_yticks([])
            axis.set_xlim(-3, _highest(histograms))
            for name in ("top", "left", "right"):
                axis.spines[name].set_visible(False)
            series = groups.get(group, [])
            if group == "all":
                _draw_epochs(axis, series)
            elif series:
                _draw(axis, series[-1], "tab:blue")
            else:
                axis.text(-2.8, 0.5, "the teacher does not run")
        row[0].set_ylabel(model)
    for axis, title in zip(axes[0], GROUPS.values(), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("gradient scale w (w < 0: reversed)")
    return figure


def _highest(histograms):
    """Where the axis ends: at 3, unless one example in 1,000 is beyond."""
    shown = [
        each
        for groups in histograms.values()
        for series in groups.values()
        for each in series
    ]
    for left, right, count in (each.T for each in shown):
        if count[left >= 3].sum() > 1e-3 * count.sum():
            return max(right)
    return 3


_SHADES = 0.35, 0.65, 1.0


def _draw_epochs(axis, series):
    """First, middle and last epoch, darker as they go on."""
    epochs = sorted({0, len(series) // 2, len(series) - 1})
    for epoch, shade in zip(epochs, _SHADES[-len(epochs) :], strict=True):
        _draw(axis, series[epoch], "tab:blue", shade, f"epoch {epoch + 1}")
    axis.legend(fontsize=8, frameon=False)


def _draw(axis, histogram, colour, alpha=1.0, label=None):
    left, right, count = histogram.T
    share = count / max(count.sum(), 1)
    axis.stairs(
        share,
        np.append(left, right[-1]),
        color=colour,
        alpha=alpha,
        label=label,
        lw=1.4,
    )


if __name__ == "__main__":
    main()
