"""An attribution as a page with figures, and in TensorBoard."""

import contextlib
import dataclasses
import pathlib

from keras_kd.files import user_path
from keras_kd.reports import events

_CAPTIONS = {
    "gains_by_level": "Gain of each level over its baseline, with 95 % "
    "intervals, each by itself.",
    "gains_by_method": "Gain of each method over plain training, with 95 % "
    "intervals, each by itself.",
}


def page(attribution):
    """The report of an attribution.

    Args:
        attribution: a `keras_kd.Attribution`.

    Returns:
        A `keras_kd.reports.page.Page`.
    """
    from keras_kd.reports.page import Page

    report = Page("What each level of the teacher's knowledge was worth")
    for finding in attribution.findings:
        report.add_text(finding)
    for name, figure in figures(attribution).items():
        report.add_figure(figure, _CAPTIONS[name])
    for heading, rows in (
        ("Levels", attribution.level_rows()),
        ("Methods", attribution.method_rows()),
    ):
        if rows:
            report.add_heading(heading)
            report.add_table(
                list(rows[0]), [list(row.values()) for row in rows]
            )
    report.add_text(attribution.note)
    return report


def figures(attribution):
    """The figures of an attribution.

    Args:
        attribution: a `keras_kd.Attribution`.

    Returns:
        Dict by name of `keras_kd.reports.figures.Figure`, of the gains with
        at least two paired seeds; empty figures are left out.
    """
    from keras_kd.reports.figures import bars

    groups = {
        "gains_by_level": {
            f"{c.level.name}:\n{c.method} - {c.baseline}": c.interval
            for c in attribution.levels
        },
        "gains_by_method": {
            method: attribution.gain(method)
            for method in attribution.scores
            if method != "plain"
        },
    }
    unit = attribution.unit
    return {
        name: bars(
            list(gains),
            [unit.factor * gain.mean for gain in gains.values()],
            [
                (unit.factor * gain.low, unit.factor * gain.high)
                for gain in gains.values()
            ],
            unit.titled(f"gain in {attribution.metric}"),
        )
        for name, group in groups.items()
        if (gains := {k: g for k, g in group.items() if g.seeds > 1})
    }


def to_tensorboard(attribution, log_dir):
    """Writes a row for each run to the HParams table, levels and figures.

    Args:
        attribution: a `keras_kd.Attribution`.
        log_dir: path of the logs.
    """
    import tensorflow as tf

    images = {k: each.to_image() for k, each in figures(attribution).items()}
    write_hparams(
        log_dir,
        {
            f"{method}-{seed}": (
                {"method": method, "seed": seed},
                {attribution.metric: score},
            )
            for method, by_seed in attribution.scores.items()
            for seed, score in by_seed.items()
        },
    )
    with _writing(log_dir, "levels"):
        for name, image in images.items():
            tf.summary.image(name, image[None], step=0)
        for comparison in attribution.levels:
            level = comparison.level
            tag = f"{level.name}/{level.method}_over_{comparison.baseline}"
            interval = dataclasses.asdict(comparison.interval)
            for key in ("mean", "low", "high", "p_value"):
                name = f"{tag.replace(' ', '_')}/{key}"
                tf.summary.scalar(name, interval[key], step=0)


def write_hparams(log_dir, runs):
    """Writes a table of runs that TensorBoard's HParams page shows.

    Args:
        log_dir: path of the logs; the event files are written to its folder
            "hparams", a folder for each run. An earlier table is replaced.
        runs: dict by the run's name of pairs of dicts: what was chosen, and
            the numbers that came out.

    Raises:
        OSError: if the files can't be written, such as on a full disk.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    chosen = {name: None for choice, _ in runs.values() for name in choice}
    measured = {name: None for _, result in runs.values() for name in result}
    with _writing(log_dir, "."):
        api.hparams_config(
            hparams=[api.HParam(name) for name in chosen],
            metrics=[api.Metric(name) for name in measured],
        )
    for name, (choice, result) in runs.items():
        with _writing(log_dir, name):
            api.hparams(choice, trial_id=name)
            for key, value in result.items():
                tf.summary.scalar(key, value, step=0)


@contextlib.contextmanager
def _writing(log_dir, name):
    """Makes TensorFlow's summaries go to a new event file, the only one."""
    folder = pathlib.Path(user_path(log_dir, "log_dir")) / "hparams" / name
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with events.writing(folder):
        yield
