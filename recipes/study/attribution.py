"""`--attribute`: what each part of the teacher's knowledge was worth.

The teacher is diagnosed, then runs once over the data for a cache; every loss
and control trains a student from it with each seed.
"""

import time

import click

import keras_kd as kd
from study.methods import METHODS, PLAIN
from study.options import given_options
from study.run_folder import save_report


def attribute(study, names):
    """Trains the students and prints what each level of knowledge was worth.

    Args:
        study: a `study.study.Study`, whose options say how many seeds there
            are and how long all of it may take.
        names: out of `methods.METHODS`, "plain" among them.

    Raises:
        ValueError: if several workers train together, or only the steps are
            to be measured.
    """
    began = time.monotonic()
    study.check_one_process()
    for name in names:
        study.loss(name)  # Refuses a bad weight before anything is trained.
    teacher = study.teacher()
    trainer = study.student_trainer(teacher, study.cache(names, teacher))
    diagnose(study, trainer)
    budget = study.options["time_budget"]
    if budget is not None:
        budget = max(60 * budget - (time.monotonic() - began), 1e-3)
    first = study.options["seed"]
    attribution = kd.attribute(
        trainer,
        range(first, first + study.options["seeds"]),
        names,
        folder=study.run.folder / "attribution",
        time_budget=budget,
        metric=trainer.metric,
        higher_is_better=trainer.higher_is_better,
        study=trainer.study,
    )
    click.echo(f"\n{attribution}\n")
    attribution.to_tensorboard(study.run.tensorboard)
    save_report(attribution, study.run.folder, "attribution")
    study.run.echo_tensorboard()


def diagnose(study, trainer):
    """Prints and saves what the teacher has to offer, once in a run folder.

    Args:
        study: a `study.study.Study`.
        trainer: its `keras_kd.StudentTrainer`.
    """
    if list(study.run.folder.glob("diagnosis*.html")):
        return
    diagnosis = trainer.diagnosis()
    click.echo(f"\n{diagnosis}\n")
    diagnosis.to_tensorboard(study.run.tensorboard / "diagnosis")
    save_report(diagnosis, study.run.folder, "diagnosis")


def methods_of(losses):
    """The methods to compare: all, unless the user named some.

    Args:
        losses: what `--loss` gave.

    Returns:
        Names out of `methods.METHODS`, "plain" the first of them.
    """
    return dict.fromkeys((PLAIN, *losses)) if are_named() else METHODS


def are_named():
    """Whether the user named the losses."""
    return "losses" in given_options()
