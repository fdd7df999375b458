"""The options that every study has."""

import click

import keras_kd as kd
from keras_kd import files
from keras_kd.attribution import make_loss
from keras_kd.attribution.methods import SHUFFLED
from keras_kd.cache import stores
from study import methods, strategies
from study.messages import option_name

positive = click.IntRange(min=1)
share = click.FloatRange(0, 1)
not_negative = click.FloatRange(0)
# What Keras takes as one.
random_seed = click.IntRange(0, 2**32 - 1)
# The largest default cache, in bytes; above it, the teacher runs beside the
# students unless --cache is given.
_LARGEST_CACHE = 32 * 2**30
# Of --tune, in students.
STUDENT_BUDGET = 60


class UserPath(click.Path):
    """A path as the user meant it: with a home folder, and not empty."""

    def convert(self, value, param, ctx):
        """The path; see `click.Path`."""
        try:
            value = files.user_path(value, param.opts[0])
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


log_dir = click.option(
    "--log-dir",
    type=UserPath(),
    help="Run folder. [default: a folder below runs/ named after the options]",
)


def shared_options(default_losses):
    """A decorator with the options that every study has.

    Args:
        default_losses: names of the losses of a run without `--loss`.

    Returns:
        A decorator of a click command.
    """
    options = [
        click.option(
            "--loss",
            "losses",
            multiple=True,
            type=click.Choice(methods.METHODS),
            default=default_losses,
            help="A loss to train the student with; may be given several "
            "times. With --attribute and --tune all, unless it is given.",
        ),
        click.option(
            "--attribute",
            is_flag=True,
            help="Say what each part of the teacher's knowledge was worth: "
            "diagnose the teacher, then train the student with every loss "
            "over several seeds, all from one teacher cache.",
        ),
        click.option(
            "--tune",
            is_flag=True,
            help="Search for the best loss and its settings, learning rate "
            "included, then compare it with plain training and KD on fresh "
            "seeds and on the test data.",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(min=2),
            default=3,
            help="Of --attribute: how many, from --seed on. Of --tune: how "
            "many fresh ones.",
        ),
        click.option(
            "--time-budget",
            type=click.FloatRange(0, min_open=True),
            help="In minutes. Of --attribute, for this call: no run is "
            "started that would not fit; the same command resumes. [default: "
            "none] Of --tune, for all calls together.",
        ),
        click.option(
            "--student-budget",
            type=positive,
            help="Of --tune, instead of --time-budget: as many epochs as so "
            "many students take, those on fresh seeds included. [default: "
            f"{STUDENT_BUDGET}]",
        ),
        click.option(
            "--sampler",
            type=click.Choice(("tpe", "random")),
            default="tpe",
            help="Of --tune; random search is there to compare with.",
        ),
        click.option(
            "--teacher",
            type=UserPath(exists=True, dir_okay=False),
            help="A trained teacher, instead of training one.",
        ),
        click.option(
            "--cache",
            type=UserPath(file_okay=False),
            help="Folder of the teacher cache, with which the teacher runs "
            "once for all students: made if it is missing, used if it fits. "
            "[default: in the run folder]",
        ),
        click.option(
            "--no-cache",
            is_flag=True,
            help="Run the teacher beside each student instead.",
        ),
        click.option(
            "--weight",
            type=share,
            help="Of the distillation term. [default: each loss's own]",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0, min_open=True),
            help="Of the losses that have one. [default: each loss's own]",
        ),
        click.option(
            "--k",
            type=positive,
            help="Classes that kd_topk and kd_sampled keep. [default: the "
            "study's]",
        ),
        click.option(
            "--strategy",
            type=click.Choice(strategies.KINDS),
            default="one",
            help="Devices to train on; all but one need TensorFlow.",
        ),
        click.option(
            "--replicas", type=positive, help="Of --strategy mirrored."
        ),
        click.option(
            "--steps-per-execution",
            type=positive,
            default=1,
            help="Steps that Keras runs in one call, at most: as many as "
            "divide the steps of an epoch evenly. 1 on PyTorch.",
        ),
        click.option(
            "--validate-every",
            type=positive,
            default=1,
            help="Epochs from one evaluation during training to the next.",
        ),
        click.option(
            "--mixed-precision", is_flag=True, help="Compute in float16."
        ),
        click.option("--seed", type=random_seed, default=0),
        click.option(
            "--probe-steps",
            type=positive,
            help="Train each model for only this many steps, and print how "
            "long the whole run would take.",
        ),
        log_dir,
    ]
    return with_options(options)


def with_options(options):
    """A decorator that adds options to a command, listed in their order.

    Args:
        options: list of click's decorators.

    Returns:
        A decorator.
    """

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def settled(options, losses, labels, classes, arguments):
    """The options, with a decision on the cache.

    Args:
        options: dict of a command's options.
        losses: names out of `methods.METHODS`.
        labels: how many labels a pass over the training data has.
        classes: number of classes.
        arguments: the study's dict by loss of dicts of its arguments.

    Returns:
        A dict, with the key "cached".

    Raises:
        ValueError: if options contradict each other.
    """
    _check_together(options, "--attribute", "--tune")
    _check_together(options, "--time-budget", "--student-budget")
    needing = [
        name
        for name, needs in (
            ("--cache", options["cache"] is not None),
            ("--attribute", options["attribute"]),
            ("--tune", options["tune"]),
            (f"--loss {SHUFFLED}", SHUFFLED in losses),
        )
        if needs
    ]
    if options["no_cache"] and needing:
        raise ValueError(
            f"{needing[0]} needs the teacher cache. Received: {needing[0]} "
            "with --no-cache. Leave one of them out."
        )
    mixing = [name for name in ("mixup", "cutmix") if options.get(name)]
    if mixing and needing:
        raise ValueError(
            "A teacher cache keeps what the teacher says of each image, not of "
            f"mixtures. Received: {needing[0]} with --{mixing[0]}. Leave one "
            "of them out: without a cache the teacher sees every mixture."
        )
    views = options.get("views") or 1
    made = [
        make_loss(name, methods.settings_of(name, arguments, k=options["k"]))
        for name in losses
    ]
    small = views * labels * _bytes_a_label(made, classes) <= _LARGEST_CACHE
    cached = bool(needing) or (small and not mixing and not options["no_cache"])
    return {**options, "cached": cached}


def given_options():
    """Set of the names of the options that were given on the command line."""
    context = click.get_current_context()
    command_line = click.core.ParameterSource.COMMANDLINE
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) == command_line
    }


def refuse_unused(options, given, uses):
    """Refuses options that would do nothing: whoever gives one expects it to.

    Args:
        options: dict of a command's options.
        given: set of names of those that were given.
        uses: dict by option of (whether this run uses it; where none does, in
            words after "does nothing").

    Raises:
        ValueError: naming the first that is not used.
    """
    for name, (is_used, where) in uses.items():
        if name in given and not is_used:
            option, value = option_name(name), options[name]
            received = option if value is True else f"{option} {value}"
            raise ValueError(
                f"{option} does nothing {where}. Received: {received}. Leave "
                "it out, or choose what uses it."
            )


def uses_of(options, names):
    """What a study's options that only some runs use need.

    Args:
        options: dict, from `settled`.
        names: out of `methods.METHODS`, of what is trained.

    Returns:
        A dict; see `refuse_unused`.
    """
    tunes = options["tune"]
    many = options["attribute"] or tunes
    bases = {methods.base_of(name) for name in names} - {methods.PLAIN}
    made = [make_loss(name, methods.settings_of(name)) for name in names]
    reads = tunes or any(loss.statistics for loss in made)
    of_many = many, "without --attribute or --tune"
    of_tune = tunes, "without --tune"
    of_cache = reads and options["cached"], "without a teacher cache"
    trained = not options["teacher"], "with --teacher"
    keeping = bases & set(methods.KEEPING_K)
    uses = {
        "seeds": of_many,
        "time_budget": of_many,
        "student_budget": of_tune,
        "sampler": of_tune,
        "weight": (bases, "without a --loss other than plain"),
        "temperature": (
            bases - {methods.SMOOTHING},
            "without a --loss that has one",
        ),
        "k": (keeping, f"without --loss {' or '.join(methods.KEEPING_K)}"),
        "cache": (reads, "without a --loss that reads a teacher"),
        "views": of_cache
        if options.get("augment", True)
        else (False, "with --no-augment"),
        "drop_at": (_drops(options), "after the last epoch"),
        # A `keras_kd.StudentTrainer` computes all logits at once.
        "logit_chunks": (not many, "with --attribute or --tune"),
        **{n: trained for n in options if n.startswith("teacher_")},
    }
    if options.get("teacher_epochs") == 0:
        where = "where --teacher-epochs is 0"
        uses["teacher_learning_rate"] = False, where
    return uses


def _drops(options):
    """Whether the rate of a model drops before its training ends."""
    epochs = max(options["epochs"], options.get("teacher_epochs") or 0)
    return any(after < epochs for after in options.get("drop_at") or ())


def _bytes_a_label(losses, classes):
    """Of the cache of losses; of KD where none reads a teacher yet."""
    if not any(loss.statistics for loss in losses):
        losses = [kd.KD()]
    plan = stores.plan(losses, classes)
    return sum(field.size for store in plan for field in store.fields(()))


def _check_together(options, one, other):
    """Refuses two options of which a command may have one."""
    values = [options[name[2:].replace("-", "_")] for name in (one, other)]
    if all(values):
        raise ValueError(
            f"There may be {one} or {other}. Received: both. Leave one of "
            "them out."
        )


def run_config(options):
    """The options that decide the results, for the run folder.

    Where the cache is does not, but that there is one does: its views are
    other crops.

    Args:
        options: from `settled`.

    Returns:
        A dict.
    """
    # Losses and seeds can be added to a folder.
    left_out = {"attribute", "tune", "seeds", "time_budget", "student_budget"}
    left_out |= {"sampler", "cache", "no_cache"}
    if not options["cached"]:
        left_out.add("views")
    # Run folders of earlier versions have none.
    left_out |= {name for name in ("k", "hold_out") if not options.get(name)}
    return {k: v for k, v in options.items() if k not in left_out}
