"""Compares the losses: a student with each, a table, TensorBoard's HParams."""

import click

from keras_kd.attribution import write_hparams
from study import attribution
from study.table import print_table, result_rows


def compare(study, losses):
    """Trains the teacher and a student per loss, and prints the table.

    With `--attribute` it says what each part of the knowledge was worth.

    Args:
        study: a `study.study.Study`.
        losses: names out of `methods.METHODS`.
    """
    if study.options["attribute"]:
        attribution.attribute(study, attribution.methods_of(losses))
        return
    for name in losses:
        study.loss(name)  # Refuses a bad weight before anything is trained.
    teacher = study.teacher()
    done = study.run.results
    cache = None
    if any(f"student-{name}" not in done for name in losses):
        cache = study.cache(losses, teacher)
    for name in losses:
        study.student(name, teacher, cache)
    study.wait_for_chief()
    results = study.run.results
    if study.run.writes:
        write_hparams(study.run.tensorboard, hparams(results, study))
    print_table(study.run.folder.name, result_rows(results, study.columns))
    click.echo(f"tensorboard --logdir {study.run.tensorboard}")


def hparams(results, study):
    """A row for each student: what was chosen, and what came out.

    Args:
        results: dict of results by the models' names.
        study: a `study.study.Study`.

    Returns:
        Dict as `keras_kd.attribution.write_hparams` takes it.
    """
    chosen = ("weight", "temperature", "learning_rate", "epochs", "batch_size")
    settings = {
        key: study.options[key]
        for key in ("seed", *chosen)
        if study.options[key] is not None
    }
    shown = [key for _, key, *_ in study.columns]
    return {
        name: (
            {"method": name.removeprefix("student-"), **settings},
            {key: result[key] for key in shown},
        )
        for name, result in results.items()
        if name.startswith("student-")
    }
