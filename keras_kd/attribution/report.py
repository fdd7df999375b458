"""An attribution as a page with figures, and in TensorBoard."""

import dataclasses
import pathlib

from keras_kd.attribution import pictures
from keras_kd.files import user_path
from keras_kd.reports import events
from keras_kd.reports.page import Page

_HEADINGS = {
    "learning_curves": "Learning curves",
    "gradient_scale": "Gradient scales over training",
    "class_similarity": "Class relations",
}


def page(attribution):
    """The report of an attribution.

    Args:
        attribution: a `keras_kd.Attribution`.

    Returns:
        A `keras_kd.reports.page.Page`.
    """
    report = Page("What each level of the teacher's knowledge was worth")
    for finding in attribution.findings:
        report.add_text(finding)
    for picture in pictures.of_gains(attribution).values():
        report.add_figure(*picture)
    for heading, rows in (
        ("Levels", attribution.level_rows()),
        ("Methods", attribution.method_rows()),
    ):
        if rows:
            report.add_heading(heading)
            report.add_rows(rows)
    report.add_text(attribution.note)
    for name, picture in pictures.of_training(attribution).items():
        # A heading between them gives each the page's whole width.
        report.add_heading(_HEADINGS[name])
        report.add_figure(*picture)
    return report


def to_tensorboard(attribution, log_dir):
    """Writes a row for each run to the HParams table, levels and figures.

    Args:
        attribution: a `keras_kd.Attribution`.
        log_dir: path of the logs.
    """
    import tensorflow as tf

    images = {
        name: figure.to_image()
        for drawn in (pictures.of_gains, pictures.of_training)
        for name, (figure, _) in drawn(attribution).items()
    }
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
    with events.writing(_hparams_folder(log_dir) / "levels"):
        for name, image in images.items():
            tf.summary.image(name, image[None], step=0)
        for comparison in attribution.levels:
            level = comparison.level
            tag = f"{level.name}/{level.method}_over_{comparison.baseline}"
            numbers = dataclasses.asdict(comparison.interval)
            numbers["adjusted_p_value"] = comparison.adjusted_p_value
            for key in ("mean", "low", "high", "p_value", "adjusted_p_value"):
                name = f"{tag.replace(' ', '_')}/{key}"
                tf.summary.scalar(name, numbers[key], step=0)


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
    folder = _hparams_folder(log_dir)
    # Runs of an earlier table would be rows of this one.
    for each in [folder, *folder.glob("*")]:
        events.remove(each)
    with events.writing(folder):
        api.hparams_config(
            hparams=[api.HParam(name) for name in chosen],
            metrics=[api.Metric(name) for name in measured],
        )
    for name, (choice, result) in runs.items():
        with events.writing(folder / name):
            api.hparams(choice, trial_id=name)
            for key, value in result.items():
                tf.summary.scalar(key, value, step=0)


def _hparams_folder(log_dir):
    return pathlib.Path(user_path(log_dir, "log_dir")) / "hparams"
