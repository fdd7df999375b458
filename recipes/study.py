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
            type=click.Choice(LOSSES),
            default=default_losses,
            help="A loss to train the student with; may be given several "
            "times.",
        ),
        click.option(
            "--teacher",
            type=click.Path(exists=True, dir_okay=False),
            help="A trained teacher, instead of training one.",
        ),
        click.option(
            "--cache",
            type=click.Path(file_okay=False),
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
            type=click.Path(),
            help="Run folder. [default: a folder below runs/ named after the "
            "options]",
        ),
    ]

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run_config(options):
    """The options that decide the results, for the run folder.

    Where the cache is does not, but that there is one does: its views are
    other crops.

    Args:
        options: dict of a command's options.

    Returns:
        A dict.
    """
    config = {**options, "cache": options["cache"] is not None}
    if not config["cache"]:
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
        import keras

        copy = keras.models.clone_model(teacher)
        copy.set_weights(teacher.get_weights())
        return copy

    # -- the study -------------------------------------------------------------

    def train_all(self, losses):
        """Trains the teacher and a student per loss, and prints the table.

        Args:
            losses: names out of `LOSSES`.
        """
        for name in losses:
            self.loss(name)  # Refuses a bad weight before anything is trained.
        teacher = self.teacher()
        cache = self.cache(losses, teacher)
        for name in losses:
            self.student(name, teacher, cache)
        self._wait_for_chief()
        common.print_table(self.run.folder.name, self.table_rows())
        click.echo(f"tensorboard --logdir {self.run.tensorboard}")

    def teacher(self):
        """The teacher: the one given, or one trained now or before."""
        import keras

        from keras_kd import distribution

        path = self.options["teacher"]
        if path is None:
            path = self.run.model("teacher")
            self.run.train_once("teacher", self._train_teacher)
            self._wait_for_chief()
        with distribution.scope(self.strategy):
            teacher = self.fitted_teacher(keras.models.load_model(path))
        if self.options["teacher"]:
            self.evaluate_teacher(teacher)
        return teacher

    def evaluate_teacher(self, teacher):
        """Puts the scores of a teacher that was not trained here on record."""
        self.run.train_once(
            "teacher",
            lambda: self._scores(self._distiller("teacher", teacher)),
        )

    def cache(self, loss_names, teacher):
        """The teacher cache of `--cache`, written if it is not there.

        Args:
            loss_names: names out of `LOSSES`, which it shall serve.
            teacher: a `keras.Model`.

        Returns:
            A `keras_kd.TeacherCache`, or `None` if there shall be none.
        """
        import keras_kd as kd
        from keras_kd import distribution

        losses = [self.loss(name) for name in loss_names]
        losses = [loss for loss in losses if loss.statistics]
        path = self.options["cache"]
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

    def student(self, loss_name, teacher, cache=None):
        """Trains a student with a loss, unless it is done."""
        self.run.train_once(
            f"student-{loss_name}",
            lambda: self._train_student(loss_name, teacher, cache),
        )

    def _train_teacher(self):
        with self._seeded_scope():
            distiller = self._distiller("teacher", self.build("teacher"))
        return self._fit("teacher", "teacher", distiller)

    def _train_student(self, loss_name, teacher, cache):
        with self._seeded_scope():
            distiller = self._distiller(
                "student", self.build("student"), loss_name, teacher
            )
        result = self._fit(f"student-{loss_name}", "student", distiller, cache)
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
                loss=self.loss(loss_name),
                weighted_metrics=self.metrics(),
                steps_per_execution=self.options["steps_per_execution"],
            )
        return distiller

    def loss(self, name):
        """A loss with the weight and temperature asked for.

        One weight for two terms is shared between them as by default.
        """
        import keras_kd as kd

        if name == PLAIN:
            return kd.LabelSmoothing(weight=0.0, reduction=self.reduction)
        arguments = self.loss_arguments.get(name, {})
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
        *callbacks, stopwatch = self.run.callbacks(name)
        epochs, steps = self.epochs(role), self.steps_per_epoch(role)
        probe = None
        if self.options["probe_steps"]:
            steps = min(steps, self.options["probe_steps"])
            probe = make_step_timer(steps)
            epochs = 1
        validation = next(iter(self.evaluation_data().values()))
        first_epoch = self.run.epochs_done(name)
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
                *callbacks,
                stopwatch,
                *self.callbacks(distiller.student, distiller.teacher),
                self.board(str(self.run.tensorboard / name)),
                *([probe] if probe else []),
            ],
        )
        if self.run.writes:
            distiller.student.save(self.run.model(name))
        result = self._scores(distiller)
        result["seconds"] = round(stopwatch.seconds(), 1)
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
