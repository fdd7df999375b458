"""A study: a teacher, and the same student once per loss.

What a recipe adds is in the methods at the top of `Study`.
"""

import contextlib
import sys
import time

import click
import keras
import numpy as np
import tensorflow as tf
from data.batches import untuned

import keras_kd as kd
from keras_kd import distribution
from keras_kd.attribution import make_loss
from keras_kd.attribution.methods import SHUFFLED
from keras_kd.student_trainer.data import dividing_steps
from keras_kd.tuning.outcome import in_words
from study import strategies
from study.messages import counted
from study.methods import METHODS, PLAIN, settings_of
from study.run_folder import load_model

# A bar for a person who watches; a line an epoch for a file.
VERBOSE = 1 if sys.stdout.isatty() else 2


class Study:
    """Trains and evaluates the models of a run, each once.

    Args:
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options, from `options.settled`.
    """

    # Arguments of the losses where their own defaults do not suit.
    loss_arguments = {}
    # Columns of the table: heading, key of the result, factor and format.
    columns = ()
    # Which result tells how good a student is, and whether more is better.
    score, higher_is_better = None, True
    # How many training examples there are.
    train_size = None

    def __init__(self, run, strategy, options):
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
        """Number of full batches in an epoch."""
        return self.train_size // self.options["batch_size"]

    def cached_data(self):
        """What a teacher cache is written of: one pass, in order."""
        raise NotImplementedError

    @property
    def shuffle_buffer(self):
        """Number of examples that are shuffled at a time."""
        given = self.options.get("shuffle_buffer") or self.train_size
        return min(given, self.train_size)

    def cached_stream(self, cache, loss, first_epoch):
        """The same where there is a cache: another order in each epoch."""
        options = self.options
        return cache.epochs(
            self.cached_data(),
            loss,
            first_epoch,
            batch_size=options["batch_size"],
            shuffle=self.shuffle_buffer,
            seed=options["seed"],
            augment=self.augment(),
        )

    def augment(self):
        """What makes a view of an example for the cache, or `None`."""
        return None

    def superclasses(self):
        """The superclass of each class, or `None` where there are none."""
        return None

    def evaluation_data(self):
        """Dict of data sets by part; `fit` reports the first of them."""
        raise NotImplementedError

    def callbacks(self, *models):
        """Callbacks for `fit` and `evaluate` with these models."""
        return []

    def class_order(self):
        """Classes in the order in which TensorBoard shows them, or `None`."""
        return None

    def guess(self):
        """What who does not look at the inputs has as `score`."""
        raise NotImplementedError

    def adapted_teacher(self, model):
        """A loaded teacher, made to fit the data or refused."""
        return model

    def teacher_of_one_process(self, teacher):
        """A copy of the teacher that one of several workers can run alone."""
        # Keras's `clone_model` would untie weights that layers share.
        copy = type(teacher).from_config(teacher.get_config())
        copy.set_weights(teacher.get_weights())
        return copy

    # -- teacher and cache -----------------------------------------------------

    def teacher(self):
        """The teacher: the one given, or one trained now or before."""
        path = self.options["teacher"]
        if path is None:
            path = self.run.model("teacher")
            self.run.train_once("teacher", self._train_teacher)
            self.wait_for_chief()
        with distribution.scope(self.strategy):
            # It is not trained further, so how it was trained does not matter.
            teacher = self.adapted_teacher(load_model(path))
        if self.options["teacher"]:
            self.evaluate_teacher(teacher)
        return teacher

    def evaluate_teacher(self, teacher):
        """Records the scores of a teacher that was not trained here."""
        self.run.train_once(
            "teacher",
            lambda: self._scores(self._trainer("teacher", teacher)),
            self.options["teacher"],
        )
        if self.run.writes:
            self._warn_of_guessing(self.run.results["teacher"])

    def _warn_of_guessing(self, result):
        """Says so if a given teacher knows nothing of these data."""
        score, guess = result[self.score], self.guess()
        # Where classes are in another order some are right by chance.
        if score < 2 * guess if self.higher_is_better else score > guess:
            click.echo(
                f"The teacher hardly knows more than a guess: {self.score} "
                f"{score:.4g}, where a guess has {guess:.4g}. Its classes may "
                "be others than here, or in another order, or its inputs in "
                "another form; --attribute and --tune begin with a diagnosis."
            )

    def cache(self, names, teacher):
        """The teacher cache, written unless it is there.

        Args:
            names: of the losses that it must serve.
            teacher: a `keras.Model`.

        Returns:
            A `keras_kd.TeacherCache`, or `None` if the options say so or no
            loss needs any.
        """
        needing = {}
        for name in names:
            if (loss := self.loss(name)).statistics:
                needing[name] = loss
        if not (self.options["cached"] and needing):
            return None
        path = self.options["cache"]
        if path is None:
            path = self.run.folder / "-".join(["cache", *sorted(needing)])
        if self.run.writes:
            if distribution.spans_workers(self.strategy):
                teacher = self.teacher_of_one_process(teacher)
            kd.TeacherCache.write(
                path,
                untuned(self.cached_data()),
                teacher,
                list(needing.values()),
                augment=self.augment(),
                views=self.options.get("views") or 1,
                batch_size=self.options["batch_size"],
                verbose=int(VERBOSE == 1),
            )
        self.wait_for_chief()
        cache = kd.TeacherCache(path)
        # Of an opened cache nobody else knows how its views were made.
        cache.check(augment=self.augment())
        click.echo(
            f"Teacher cache: {counted(cache.examples, 'example')}, "
            f"{counted(cache.views, 'view')}, "
            f"{counted(cache.record_bytes, 'byte')} each; the teacher gets "
            f"{cache.teacher_accuracy:.2%} of their labels right."
        )
        self._cache_path = path
        return cache

    def _shuffled(self, cache):
        """The cache with the examples of each class in another order."""

        def order(labels):
            return kd.attribution.shuffle_within_labels(
                np.arange(len(labels)), labels
            )

        return cache.shuffled(
            f"{self._cache_path}-shuffled", self.cached_data(), order
        )

    # -- training --------------------------------------------------------------

    def student(self, loss_name, teacher, cache=None):
        """Trains a student with a loss, unless it is done.

        Args:
            loss_name: out of `methods.METHODS`.
            teacher: a `keras.Model`.
            cache: optional `keras_kd.TeacherCache`.
        """
        name = f"student-{loss_name}"
        self.run.train_once(
            name, lambda: self._train_student(name, loss_name, teacher, cache)
        )

    def loss_settings(self, name):
        """The settings of a method's loss in this study."""
        return settings_of(
            name,
            self.loss_arguments,
            self.options["weight"],
            self.options["temperature"],
            self.options["k"],
        )

    def loss(self, name, teacher=None):
        """The loss of a method; see `keras_kd.attribution.make_loss`."""
        return make_loss(name, self.loss_settings(name), teacher)

    def epochs(self, role):
        """Number of epochs."""
        key = "epochs" if role == "student" else "teacher_epochs"
        return self.options[key]

    def check_one_process(self):
        """Refuses options of what a `StudentTrainer` does not do.

        Raises:
            ValueError: naming them.
        """
        if distribution.spans_workers(self.strategy):
            raise ValueError(
                f"{self._asked} runs in one process, which decides what there "
                "is time for. Received: --strategy multiworker. Use --strategy "
                "mirrored."
            )
        steps = self.options["probe_steps"]
        if steps:
            raise ValueError(
                "--probe-steps measures the teacher and a student for each "
                f"--loss. Received: --probe-steps {steps} and {self._asked}. "
                f"Leave {self._asked} out to measure."
            )

    @property
    def _asked(self):
        return "--tune" if self.options["tune"] else "--attribute"

    def student_trainer(self, teacher, cache=None):
        """What `keras_kd.attribute` and `keras_kd.tune` train students by.

        Args:
            teacher: a `keras.Model`.
            cache: its `keras_kd.TeacherCache`; `None` to write another one.

        Returns:
            A `keras_kd.StudentTrainer`, with a folder in the run folder.

        Raises:
            ValueError: if the options say what it can't do.
        """
        options = self.options
        self.check_one_process()
        validation, *others = map(untuned, self.evaluation_data().values())

        def student():
            with distribution.scope(self.strategy):
                return self.build("student")

        return kd.StudentTrainer(
            student,
            untuned(self.cached_data()),
            validation,
            test=others[-1] if others else None,
            teacher=teacher,
            cache=cache,
            epochs=self.epochs("student"),
            optimizer=lambda: self.optimizer("student"),
            # Without the part that it is measured on.
            metric=self.score.split("_", 1)[1],
            metrics=self.metrics(),
            higher_is_better=self.higher_is_better,
            batch_size=options["batch_size"],
            shuffle=self.shuffle_buffer if self.train_size else False,
            augment=self.augment(),
            views=options.get("views") or 1,
            loss_arguments={n: self.loss_settings(n) for n in METHODS},
            superclasses=self.superclasses(),
            folder=self.run.folder / "students",
            save_students=True,
            callbacks=lambda name: [
                self._board(name, distilled=not name.startswith(PLAIN))
            ],
            steps_per_execution=options["steps_per_execution"],
            validation_freq=options["validate_every"],
        )

    def _train_teacher(self):
        with self._seeded_scope():
            trainer = self._trainer("teacher", self.build("teacher"))
        return self._fit("teacher", "teacher", trainer)

    def _train_student(self, name, loss_name, teacher, cache):
        with self._seeded_scope():
            trainer = self._trainer(
                "student", self.build("student"), loss_name, teacher
            )
        if loss_name == SHUFFLED:
            cache = self._shuffled(cache)
        result = self._fit(name, "student", trainer, cache)
        if loss_name != PLAIN:
            summary = trainer.gradient_scales["all"].summary()
            result["median_gradient_scale"] = summary["median"]
            result["reversed_share"] = summary["reversed_share"]
        return result

    def distiller_arguments(self):
        """Further arguments of the Distillers that train."""
        return {}

    def _trainer(self, role, model, loss_name=PLAIN, teacher=None):
        """What trains and evaluates a model, compiled."""
        with distribution.scope(self.strategy):
            arguments = self.distiller_arguments()
            if loss_name == PLAIN:
                trainer = kd.Distiller(model, gradient_scale=False, **arguments)
            else:
                trainer = kd.Distiller(model, teacher, **arguments)
            trainer.compile(
                optimizer=self.optimizer(role),
                loss=self.loss(loss_name, teacher),
                weighted_metrics=self.metrics(),
                steps_per_execution=self._steps_per_execution(role),
            )
        return trainer

    def _steps(self, role):
        """Number of steps of an epoch, or of a probe."""
        steps = self.steps_per_epoch(role)
        return min(steps, self.options["probe_steps"] or steps)

    def _steps_per_execution(self, role):
        """How many steps Keras runs in one call, so that they fill an epoch."""
        asked = self.options["steps_per_execution"]
        return dividing_steps(asked, self._steps(role))

    def _fit(self, name, role, trainer, cache=None):
        """Trains a model, saves it and returns its results."""
        backup = self.run.backup(name)
        epochs, steps = self.epochs(role), self._steps(role)
        timers = []
        if self.options["probe_steps"]:
            epochs, timers = 1, [StepTimer(steps)]
        asked = self.options["steps_per_execution"]
        at_once = trainer.steps_per_execution
        if at_once < min(asked, steps):
            click.echo(
                f"{counted(at_once, 'step')} in one call, not {asked}: calls "
                f"must fill an epoch's {steps} steps exactly."
            )
        first_epoch = backup.epochs_done()
        if cache is None:
            data = self.training_data(role, first_epoch)
        else:
            data = self.cached_stream(cache, trainer.loss, first_epoch)
        trainer.fit(
            untuned(data),
            steps_per_epoch=steps,
            epochs=epochs,
            shuffle=False,  # The data are, where they have to be.
            validation_data=untuned(
                next(iter(self.evaluation_data().values()))
            ),
            validation_freq=self.options["validate_every"],
            verbose=VERBOSE,
            callbacks=[
                backup,
                *self.callbacks(trainer.student, trainer.teacher),
                self._board(name, distilled=bool(trainer.gradient_scales)),
                *timers,
            ],
        )
        if self.run.writes:
            self.run.save(trainer.student, name)
        result = self._scores(trainer)
        result["seconds"] = round(backup.seconds, 1)
        for timer in timers:
            result["projected_hours"] = self._project(name, role, timer.seconds)
        return result

    def _board(self, name, distilled):
        """TensorBoard; with what distillation does, where there is any."""
        path = str(self.run.tensorboard / name)
        if not distilled:
            return keras.callbacks.TensorBoard(path)
        order = self.class_order()
        return kd.callbacks.KDTensorBoard(
            path, **({} if order is None else {"similarity_classes": order})
        )

    def _project(self, name, role, seconds):
        """Prints and returns how many hours all epochs would take."""
        epochs, steps = self.epochs(role), self.steps_per_epoch(role)
        whole = seconds * epochs * steps
        click.echo(
            f"{name}: {seconds:.3f} s a step; {counted(epochs, 'epoch')} of "
            f"{counted(steps, 'step')} would take {in_words(whole)}."
        )
        return whole / 3600

    def _scores(self, trainer):
        results = {"parameters": trainer.student.count_params()}
        for part, data in self.evaluation_data().items():
            scores = trainer.evaluate(
                untuned(data),
                callbacks=self.callbacks(trainer.student),
                verbose=0,
                return_dict=True,
            )
            for key, value in scores.items():
                results[f"{part}_{key}"] = float(value)
        return results

    def wait_for_chief(self):
        """Of several workers, lets none go on before all are here."""
        if distribution.spans_workers(self.strategy):
            self.strategy.reduce("SUM", tf.constant(1.0), axis=None)

    @contextlib.contextmanager
    def _seeded_scope(self):
        """The strategy's scope, with the seed set again.

        Each model then starts from the same numbers whether or not others
        were trained before it.
        """
        keras.utils.set_random_seed(self.options["seed"])
        with distribution.scope(self.strategy):
            yield


class StepTimer(keras.callbacks.Callback):
    """Times steps once they run at their own pace.

    Args:
        steps: how many there will be; the first fifth does not count.
    """

    def __init__(self, steps):
        super().__init__()
        self._first = steps // 5

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._times = [(0, time.perf_counter())]

    def on_train_batch_end(self, batch, logs=None):
        """Records the end of a step, or of several in one call."""
        self._times.append((batch + 1, time.perf_counter()))

    @property
    def seconds(self):
        """Seconds a step."""
        settled = [t for t in self._times if t[0] >= self._first]
        if len(settled) < 2:
            settled = self._times[-2:]  # One call, which compiles as well.
        (first, began), (last, ended) = settled[0], settled[-1]
        return (ended - began) / max(last - first, 1)
