"""`--tune`: the best loss for the student, and its settings.

The search chooses by the validation data; the winner, plain training and KD at
its defaults are then trained on fresh seeds and measured on the test data.
"""

import click

import keras_kd as kd
from keras_kd.tuning.outcome import DEFAULT_KD
from keras_kd.tuning.spaces import BASELINES, SPACES
from study import attribution
from study.options import STUDENT_BUDGET
from study.run_folder import save_report

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
    _check_evaluated(options)
    _check_budget(options, losses if attribution.are_named() else None)
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
    save_report(tuning, study.run.folder, "tuning")
    study.run.echo_tensorboard()


def _check_evaluated(options):
    """Refuses students that are not evaluated, before a teacher is trained."""
    if options["validate_every"] > options["epochs"]:
        raise ValueError(
            "--tune chooses by the validation scores of students. Received: "
            f"--validate-every {options['validate_every']} of --epochs "
            f"{options['epochs']}. Lower --validate-every."
        )


def _check_budget(options, names):
    """Refuses too few students before the teacher is trained.

    `keras_kd.tune` does so too, but needs the teacher, and knows no options.
    """
    if options["time_budget"] is not None:
        return  # What students take in minutes is not known yet.
    students = _students(options)
    methods = {*BASELINES, *(SPACES if names is None else names)}
    # Each once, and plain training with the winner's learning rate.
    search = len({*BASELINES, DEFAULT_KD} & methods) + 1
    final = options["seeds"] * min(len(methods), 3)
    if students < search + final:
        raise ValueError(
            "The budget is too small to find anything. Received: "
            f"--student-budget {students}, where the search needs {search} "
            f"and --seeds {options['seeds']} need {final} more. Raise it to "
            f"{search + final} at least, or lower --seeds."
        )


def _budget(options):
    """Arguments of `keras_kd.tune`."""
    if options["time_budget"] is not None:
        return {"seconds": 60 * options["time_budget"]}
    return {"epochs": _students(options) * options["epochs"]}


def _students(options):
    return options["student_budget"] or STUDENT_BUDGET


def _sampler(options):
    if options["sampler"] == "tpe":
        return None
    import optuna

    return optuna.samplers.RandomSampler(seed=options["seed"])
