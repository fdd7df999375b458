"""Compares the losses: a student with each, a table, TensorBoard's HParams."""

import click

from keras_kd.attribution import write_hparams
from study import attribution, options, tuning
from study.run_folder import folder_of, is_begun, open_run
from study.table import print_table, result_rows


def run_study(
    recipe,
    about,
    make,
    strategy,
    chosen,
    losses,
    log_dir,
    checksums=None,
    **size,
):
    """Opens a recipe's run folder and compares the losses in it.

    Args:
        recipe: name of the recipe.
        about: line of text that says what the data are.
        make: function of (run, strategy, options) that makes the study.
        strategy: a `tf.distribute.Strategy`, or `None`.
        chosen: dict of the command's options.
        losses: names out of `methods.METHODS`.
        log_dir: path of the run folder, or `None`.
        checksums: dict by part of checksums of data that may change, or `None`.
        **size: "labels" and "classes" of the training data, and "arguments"
            of the study's losses; see `options.settled`.
    """
    chosen = options.settled(chosen, losses, **size)
    config = options.run_config(chosen)
    folder = folder_of(recipe, config, log_dir)
    _refuse_unused(chosen, losses, config if is_begun(folder) else ())
    run = open_run(recipe, config, log_dir, strategy)
    run.check_data(checksums or {})
    click.echo(f"{about} Run folder: {run.folder}")
    try:
        compare(make(run, strategy, chosen), losses)
    except ValueError:
        run.leave_unused()
        raise


def _refuse_unused(chosen, losses, kept):
    """Refuses options that do nothing, but for those that a run folder has.

    A folder of an earlier version may have such; its command resumes.
    """
    names = losses
    if chosen["attribute"] or chosen["tune"]:
        names = attribution.methods_of(losses)
    given = options.given_options() - set(kept)
    options.refuse_unused(chosen, given, options.uses_of(chosen, names))


def compare(study, losses):
    """Trains the teacher and a student per loss, and prints the table.

    With `--attribute` it says what each part of the knowledge was worth, with
    `--tune` it searches for the best loss.

    Args:
        study: a `study.study.Study`.
        losses: names out of `methods.METHODS`.
    """
    if study.options["attribute"]:
        attribution.attribute(study, attribution.methods_of(losses))
        return
    if study.options["tune"]:
        tuning.tune(study, losses)
        return
    for name in losses:
        study.loss(name)  # Refuses a bad weight before anything is trained.
    teacher = study.teacher()
    cache = None
    if not all(study.run.has(f"student-{name}") for name in losses):
        cache = study.cache(losses, teacher)
    for name in losses:
        study.student(name, teacher, cache)
    study.wait_for_chief()
    results = study.run.results
    if study.run.writes:
        write_hparams(study.run.tensorboard, hparams(results, study))
    print_table(study.run.folder.name, result_rows(results, study.columns))
    study.run.echo_tensorboard()


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
