"""A study: a teacher, then the same student once per loss.

What a recipe adds is in the methods at the top of `Study`.
"""

import contextlib
import time

import click
import common
import strategies

PLAIN = "plain"
LOSSES = (
    PLAIN,
    "label_smoothing",
    "kd_pt",
    "kd_sim",
    "kd_pt_sim",
    "kd_topk",
    "kd",
)
# Losses without the knowledge of another: of permuted class relations, and of
# confidences shuffled within each class.
PERMUTED, SHUFFLED = "kd_sim_permuted", "kd_pt_shuffled"
CONTROLS = {PERMUTED: "kd_sim", SHUFFLED: "kd_pt"}
METHODS = (*LOSSES, *CONTROLS)
positive = click.IntRange(min=1)
share = click.FloatRange(0, 1)


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
            type=click.Choice(METHODS),
            default=default_losses,
            help="A loss to train the student with; may be given several "
            "times. With --attribute all, unless it is given.",
        ),
        click.option(
            "--attribute",
            is_flag=True,
            help="Say what each part of the teacher's knowledge was worth: "
            "diagnose the teacher, then train the student with every loss "
            "over several seeds, all from one teacher cache.",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(min=2),
            default=3,
            help="Of --attribute: how many, from --seed on.",
        ),
        click.option(
            "--time-budget",
            type=click.FloatRange(0, min_open=True),
            help="Of --attribute, in minutes: no run is started that would "
            "not fit; the same command goes on. [default: none]",
        ),
        click.option(
            "--teacher",
            type=common.UserPath(exists=True, dir_okay=False),
            help="A trained teacher, instead of training one.",
        ),
        click.option(
            "--cache",
            type=common.UserPath(file_okay=False),
            help="Folder of a teacher cache: made if it is missing, used if "
            "it fits. The teacher then runs once for all students.",
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
            "--strategy",
            type=click.Choice(strategies.KINDS),
            default="one",
            help="Devices to train on; TensorFlow alone has others than one.",
        ),
        click.option(
            "--replicas", type=positive, help="Of --strategy mirrored."
        ),
        click.option(
            "--steps-per-execution",
            type=positive,
            default=1,
            help="Steps that Keras runs in one call; 1 on PyTorch.",
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
        click.option("--seed", type=int, default=0),
        click.option(
            "--probe-steps",
            type=positive,
            help="Train each model for so many steps alone, and print how "
            "long the whole run would take.",
        ),
        click.option(
            "--log-dir",
            type=common.UserPath(),
            help="Run folder. [default: a folder below runs/ named after the "
            "options]",
        ),
    ]

    return lambda command: with_options(command, options)


def with_options(command, options):
    """A command with more options, listed in their order.

    Args:
        command: what click decorates.
        options: list of click's decorators.

    Returns:
        The decorated command.
    """
    for option in reversed(options):
        command = option(command)
    return command


def run_config(options):
    """The options that decide the results, for the run folder.

    Where the cache is does not, but that there is one does: its views are
    other crops. `--attribute` always has one.

    Args:
        options: dict of a command's options.

    Returns:
        A dict.
    """
    cached = options["cache"] is not None or options["attribute"]
    config = {**options, "cache": cached}
    for name in ("attribute", "seeds", "time_budget"):
        config.pop(name)  # Runs can be added to a folder.
    if not cached:
        config.pop("views", None)
    return config


class Study:
    """Trains and evaluates the models of a run, each once.

    Args:
        run: a `common.RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    # Arguments of the losses where their own defaults do not suit.
    loss_arguments = {}
    # What fills up a last batch has weight 0 and must not count in the mean.
    reduction = "mean_with_sample_weight"
    # Columns of the table: heading, key of the result, factor and format.
    columns = ()
    # Which result tells how good a student is, and whether more is better.
    score, higher_is_better = None, True

    def __init__(self, run, strategy, options):
        import keras

        strategies.check_batch_size(options["batch_size"], strategy)
        self.run = run
        self.strategy = strategy
        self.options = options
        if options["mixed_precision"]:
            keras.config.set_dtype_policy("mixed_float16")

    # -- what a recipe says ----------------------------------------------------

    def build(self, role):
        """An untrained "teacher" or "student"."""
        raise NotImplementedError

    def optimizer(self, role):
        """Its optimizer."""
        raise NotImplementedError

    def metrics(self):
        """Keras metrics, weighted by the data's sample weights."""
        raise NotImplementedError

    def training_data(self, role, first_epoch):
        """What `fit` takes as `x`, from an epoch on."""
        raise NotImplementedError

    def steps_per_epoch(self, role):
        """Number of batches in an epoch."""
        raise NotImplementedError

    def cached_data(self):
        """What a teacher cache is written of: one pass, in order."""
        raise NotImplementedError

    def cached_stream(self, cache, loss, first_epoch):
        """What `fit` takes as `x` where there is a cache, from an epoch on."""
        return cache.epochs(self.cached_data(), loss, first_epoch)

    def augment(self):
        """What makes a view of an example for the cache, or `None`."""
        return None

    def diagnosed_data(self):
        """Batches of (x, labels) that tell what the teacher has to offer."""
        return self.cached_data()

    def superclasses(self):
        """The superclass of each class, or `None` where there are none."""
        return None

    def evaluation_data(self):
        """Dict of data sets by part; `fit` reports the first of them."""
        raise NotImplementedError

    def callbacks(self, *models):
        """Callbacks for `fit` and `evaluate` with these models."""
        return []

    def board(self, path):
        """The TensorBoard callback that logs to a path."""
        import keras_kd as kd

        return kd.callbacks.KDTensorBoard(path)

    def fitted_teacher(self, model):
        """A loaded teacher, made to fit the data or refused."""
        return model

    def teacher_of_one_process(self, teacher):
        """A copy of the teacher that one of several workers can run alone."""
        # Keras's `clone_model` would untie weights that layers share.
        copy = type(teacher).from_config(teacher.get_config())
        copy.set_weights(teacher.get_weights())
        return copy

    # -- the study -------------------------------------------------------------

    def train_all(self, losses):
        """Trains the teacher and a student per loss, and prints the table.

        With `--attribute` it says what each part of the knowledge was worth.

        Args:
            losses: names out of `METHODS`.
        """
        options = self.options
        if options["attribute"]:
            import attribution_study

            return attribution_study.attribute(
                self,
                attribution_study.methods_of(losses),
                options["seeds"],
                options["time_budget"],
            )
        for name in losses:
            self.loss(name)  # Refuses a bad weight before anything is trained.
        if SHUFFLED in losses and self.cache_path() is None:
            raise ValueError(
                f"{SHUFFLED} shuffles what a teacher cache holds. Received: "
                "no --cache. Pass a folder for it."
            )
        teacher = self.teacher()
        cache = self.cache(losses, teacher)
        for name in losses:
            self.student(name, teacher, cache)
        self._wait_for_chief()
        common.print_table(self.run.folder.name, self.table_rows())
        click.echo(f"tensorboard --logdir {self.run.tensorboard}")

    def teacher(self):
        """The teacher: the one given, or one trained now or before."""
        from keras_kd import distribution

        path = self.options["teacher"]
        if path is None:
            path = self.run.model("teacher")
            self.run.train_once("teacher", self._train_teacher)
            self._wait_for_chief()
        with distribution.scope(self.strategy):
            # It is not trained on, so that how it was does not matter.
            model = common.load_model(path)
            teacher = self.fitted_teacher(model)
        if self.options["teacher"]:
            self.evaluate_teacher(teacher)
        return teacher

    def evaluate_teacher(self, teacher):
        """Puts the scores of a teacher that was not trained here on record."""
        self.run.train_once(
            "teacher",
            lambda: self._scores(self._distiller("teacher", teacher)),
            self.options["teacher"],
        )

    def cache(self, loss_names, teacher):
        """The teacher cache of `--cache`, written if it is not there.

        Args:
            loss_names: names out of `METHODS`, which it shall serve.
            teacher: a `keras.Model`.

        Returns:
            A `keras_kd.TeacherCache`, or `None` if there shall be none.
        """
        import keras_kd as kd
        from keras_kd import distribution

        losses = [self.loss(name) for name in loss_names]
        losses = [loss for loss in losses if loss.statistics]
        path = self.cache_path()
        if not (path and losses):
            return None
        if self.run.writes:
            if distribution.spans_workers(self.strategy):
                teacher = self.teacher_of_one_process(teacher)
            kd.TeacherCache.write(
                path,
                self.cached_data(),
                teacher,
                losses,
                augment=self.augment(),
                views=self.options.get("views") or 1,
                batch_size=self.options["batch_size"],
            )
        self._wait_for_chief()
        cache = kd.TeacherCache(path)
        click.echo(
            f"Teacher cache: {cache.examples:,} examples, {cache.views} views, "
            f"{cache.record_bytes} bytes each; the teacher gets "
            f"{cache.teacher_accuracy:.2%} of their labels right."
        )
        return cache

    def cache_path(self):
        """The folder of the teacher cache, or `None`."""
        if self.options["attribute"] and self.options["cache"] is None:
            return self.run.folder / "cache"
        return self.options["cache"]

    def shuffled_cache(self, cache):
        """The cache with the examples of each class in another order."""
        import numpy as np

        from keras_kd.attribution import shuffle_within_labels

        def order(labels):
            return shuffle_within_labels(np.arange(len(labels)), labels)

        return cache.shuffled(
            f"{self.cache_path()}-shuffled", self.cached_data(), order
        )

    def student(self, loss_name, teacher, cache=None, suffix=""):
        """Trains a student with a loss, unless it is done.

        Args:
            loss_name: out of `METHODS`.
            teacher: a `keras.Model`.
            cache: optional `keras_kd.TeacherCache`.
            suffix: of the student's name in the run folder.

        Returns:
            The student's name.
        """
        name = f"student-{loss_name}{suffix}"
        self.run.train_once(
            name, lambda: self._train_student(name, loss_name, teacher, cache)
        )
        return name

    def _train_teacher(self):
        with self._seeded_scope():
            distiller = self._distiller("teacher", self.build("teacher"))
        return self._fit("teacher", "teacher", distiller)

    def _train_student(self, name, loss_name, teacher, cache):
        with self._seeded_scope():
            distiller = self._distiller(
                "student", self.build("student"), loss_name, teacher
            )
        if loss_name == SHUFFLED:
            cache = self.shuffled_cache(cache)
        result = self._fit(name, "student", distiller, cache)
        if loss_name != PLAIN:
            summary = distiller.gradient_scales["all"].summary()
            result["median_gradient_scale"] = summary["median"]
            result["reversed_share"] = summary["reversed_share"]
        return result

    def _distiller(self, role, model, loss_name=PLAIN, teacher=None):
        """A compiled Distiller; the plain one trains on the labels alone."""
        import keras_kd as kd
        from keras_kd import distribution

        plain = loss_name == PLAIN
        with distribution.scope(self.strategy):
            distiller = kd.Distiller(
                model,
                None if plain else teacher,
                gradient_scale=False if plain else None,
            )
            distiller.compile(
                optimizer=self.optimizer(role),
                loss=self.loss(loss_name, teacher),
                weighted_metrics=self.metrics(),
                steps_per_execution=self.options["steps_per_execution"],
            )
        return distiller

    def loss(self, name, teacher=None):
        """A loss with the weight and temperature asked for.

        One weight for two terms is shared between them as by default. A
        control has what the loss has that it belongs to.

        Args:
            name: out of `METHODS`.
            teacher: `keras.Model` whose class relations are permuted in the
                control of class relations.

        Returns:
            A `keras_kd.losses.DistillationLoss`.
        """
        import keras_kd as kd

        if name == PLAIN:
            return kd.LabelSmoothing(weight=0.0, reduction=self.reduction)
        arguments = dict(self.loss_arguments.get(CONTROLS.get(name, name), {}))
        if name == PERMUTED and teacher is not None:
            arguments["logit_layer"] = kd.attribution.permuted_logit_weights(
                kd.similarity.logit_weights(teacher)
            )
        name = CONTROLS.get(name, name)
        loss = kd.losses.get(name, reduction=self.reduction, **arguments)
        weight = self.options["weight"]
        temperature = self.options["temperature"]
        if weight is not None:
            total = sum(loss.weights.values())
            loss.assign(
                **{k: v * weight / total for k, v in loss.weights.items()}
            )
        if temperature is not None and name != "label_smoothing":
            loss.assign(temperature=temperature)
        return loss

    def epochs(self, role):
        """Number of epochs."""
        key = "epochs" if role == "student" else "teacher_epochs"
        return self.options[key]

    def _fit(self, name, role, distiller, cache=None):
        """Fits a Distiller, saves its student and returns its results."""
        backup = self.run.backup(name)
        epochs, steps = self.epochs(role), self.steps_per_epoch(role)
        probe = None
        if self.options["probe_steps"]:
            steps = min(steps, self.options["probe_steps"])
            probe = make_step_timer(steps)
            epochs = 1
        validation = next(iter(self.evaluation_data().values()))
        first_epoch = backup.epochs_done()
        if cache is None:
            data = self.training_data(role, first_epoch)
        else:
            data = self.cached_stream(cache, distiller.loss, first_epoch)
        distiller.fit(
            data,
            steps_per_epoch=steps,
            epochs=epochs,
            validation_data=validation,
            validation_freq=self.options["validate_every"],
            callbacks=[
                backup,
                *self.callbacks(distiller.student, distiller.teacher),
                self.board(str(self.run.tensorboard / name)),
                *([probe] if probe else []),
            ],
        )
        if self.run.writes:
            self.run.save(distiller.student, name)
        result = self._scores(distiller)
        result["seconds"] = round(backup.seconds, 1)
        if probe:
            seconds = probe.seconds_per_step()
            total = seconds * self.epochs(role) * self.steps_per_epoch(role)
            result["projected_hours"] = total / 3600
            click.echo(
                f"{name}: {seconds:.3f} s a step; {self.epochs(role)} epochs "
                f"of {self.steps_per_epoch(role)} steps would take "
                f"{total / 3600:.1f} hours."
            )
        return result

    def _scores(self, distiller):
        results = {"parameters": distiller.student.count_params()}
        for part, data in self.evaluation_data().items():
            scores = distiller.evaluate(
                data,
                callbacks=self.callbacks(distiller.student),
                verbose=0,
                return_dict=True,
            )
            for key, value in scores.items():
                results[f"{part}_{key}"] = float(value)
        return results

    def _wait_for_chief(self):
        """Of several workers, lets none go on before all came here."""
        import tensorflow as tf

        from keras_kd import distribution

        if distribution.spans_workers(self.strategy):
            self.strategy.reduce("SUM", tf.constant(1.0), axis=None)

    @contextlib.contextmanager
    def _seeded_scope(self):
        """The strategy's scope, with the seed set anew.

        Each model then starts from the same numbers whether or not others
        were trained before it.
        """
        import keras

        from keras_kd import distribution

        keras.utils.set_random_seed(self.options["seed"])
        with distribution.scope(self.strategy):
            yield

    def table_rows(self):
        """The results of the run as rows of strings, the teacher last."""
        results = self.run.results
        teacher = results.pop("teacher")
        return [
            {
                "loss": name.removeprefix("student-"),
                "parameters": f"{result['parameters']:,}",
                **{
                    heading: _number(result.get(key), form, factor)
                    for heading, key, factor, form in self.columns
                },
                "median w": _number(result.get("median_gradient_scale"), ".2f"),
                "reversed": _number(result.get("reversed_share"), ".1%"),
                "seconds": _number(result.get("seconds"), ".0f"),
            }
            for name, result in [*results.items(), ("teacher", teacher)]
        ]


def _number(value, form, factor=1):
    return "-" if value is None else f"{value * factor:{form}}"


def with_weight_decay(model, weight_decay):
    """Adds weight decay to a model that is to be trained.

    It is the L2 penalty of SGD's classical form, whose gradient passes through
    the momentum; Keras's optimizers' own `weight_decay` does not. The
    regularisers are not saved with the model.

    Args:
        model: a built `keras.Model`.
        weight_decay: float; its half times the sum of squares of every
            trainable weight joins the loss.

    Returns:
        The model.
    """
    import keras

    if weight_decay:
        for variable in model.trainable_variables:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2)
    return model


def make_step_timer(steps):
    """A callback that times steps once they run at their own pace.

    Args:
        steps: how many there will be; the first fifth does not count.

    Returns:
        A Keras callback with a method `seconds_per_step`.
    """
    import keras

    class StepTimer(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self._times = [(0, time.perf_counter())]

        def on_train_batch_end(self, batch, logs=None):
            self._times.append((batch + 1, time.perf_counter()))

        def seconds_per_step(self):
            settled = [t for t in self._times if t[0] >= steps // 5]
            (first, began), (last, ended) = settled[0], settled[-1]
            return (ended - began) / max(last - first, 1)

    return StepTimer()
