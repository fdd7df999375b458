"""`--tune`: the best loss for the student, and its settings.

The search chooses by the validation data; the winner, plain training and KD at
its defaults are then trained on fresh seeds and measured on the test data.
"""

import click

import keras_kd as kd
from study import attribution
from study.options import STUDENT_BUDGET

# Learning rates are searched from so much below the recipe's to so much above.
_FACTOR = 4


def tune(study, losses):
    """Searches for the best loss and prints what it gains.

    Args:
        study: a `study.study.Study`, whose options say what it may cost.
        losses: what `--loss` gave.

    Raises:
        ValueError: if several workers train together, only the steps are to be
            measured, or the budget is too small.
    """
    options = study.options
    study.check_one_process()
    teacher = study.teacher()
    # What KD needs serves every loss, whatever its settings.
    trainer = study.student_trainer(teacher, study.cache(("kd",), teacher))
    attribution.diagnose(study, trainer)
    rate = trainer.learning_rate
    tuning = kd.tune(
        trainer,
        **_budget(options),
        methods=losses if attribution.are_named() else None,
        learning_rate=(rate / _FACTOR, rate * _FACTOR),
        folder=study.run.folder / f"tuning-{options['sampler']}",
        fresh_seeds=options["seeds"],
        seed=options["seed"],
        sampler=_sampler(options),
    )
    click.echo(f"\n{tuning}\n")
    tuning.to_tensorboard(study.run.tensorboard)
    attribution.save(tuning, study.run.folder, "tuning")
    click.echo(f"tensorboard --logdir {study.run.tensorboard}")


def _budget(options):
    """Arguments of `keras_kd.tune`."""
    if options["time_budget"] is not None:
        return {"seconds": 60 * options["time_budget"]}
    students = options["student_budget"] or STUDENT_BUDGET
    return {"epochs": students * options["epochs"]}


def _sampler(options):
    if options["sampler"] == "tpe":
        return None
    import optuna

    return optuna.samplers.RandomSampler(seed=options["seed"])
