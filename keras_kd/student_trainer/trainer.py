"""StudentTrainer: one student by a method's name and a seed."""

import functools
import gc
import hashlib
import json
import operator
import pathlib
import sys
import tempfile
import time
import weakref

import keras
import numpy as np

from keras_kd import data as any_data
from keras_kd import distribution, files, fingerprint, losses
from keras_kd.attribution.controls import shuffle_within_labels
from keras_kd.attribution.levels import METHODS
from keras_kd.attribution.methods import (
    PERMUTED,
    PLAIN,
    SHUFFLED,
    base_of,
    make_loss,
)
from keras_kd.cache import TeacherCache
from keras_kd.callbacks import BackupAndRestore
from keras_kd.diagnosis import diagnose
from keras_kd.distiller import Distiller
from keras_kd.logits import (
    LogitReader,
    check_model,
    shared_class_count,
)
from keras_kd.losses.base import told_config
from keras_kd.reports.terminal import say
from keras_kd.similarity import find_logit_layer
from keras_kd.states import in_both
from keras_kd.student_trainer import data, progress, results, scores
from keras_kd.student_trainer.making import Metrics, Optimizers

_LEARNING_RATE = "learning_rate"


class StudentTrainer:
    """Trains one student with a named method and a seed, and measures it.

    It is what `keras_kd.attribute` and `keras_kd.tune` stand on: a function of
    (method, seed). All methods of a seed get the same data in the same order,
    the same teacher and the same initial student.

    A teacher runs once: what it says of the training data is kept in a
    `TeacherCache` of its logits, which serves every method and setting. Where
    the data differ from one reading to the next (shuffled or augmented by a
    `tf.data.Dataset` of your own), it runs beside each student, which is said.

    Args:
        make_student: function without arguments that builds a new student. It
            is called after `keras.utils.set_random_seed`; initial weights must
            come of that seed.
        train: training data as `keras.Model.fit` takes them: (x, y[,
            sample_weight]) arrays, which are shuffled by the seed; a finite
            `tf.data.Dataset`, `keras.utils.PyDataset` or PyTorch `DataLoader`,
            each in its own order. A `tf.data.Dataset` may also be of single
            examples, which are then shuffled by the seed, augmented and made
            batches of, all from the cache.
        validation: data as `fit` takes them as `validation_data`; without
            `test`, in the same order whenever they are read.
        teacher: a `keras.Model`; may be left out for methods without one.
        cache: a `TeacherCache` of `train`, or its path, in place of one that
            the trainer writes.
        epochs: integer.
        optimizer: a name, a configuration or an instance, of which each
            student gets a copy, learning-rate schedules included; or a
            function without arguments that makes one.
        metric: what a student is judged by, as `compile` takes it.
        metrics: list of further metrics that are logged.
        higher_is_better: whether more of `metric` is better; by default told
            by its name.
        test: data that final scores are of, in place of `validation`. Students
            are compared example by example, so it must have the same order
            whenever it is read.
        batch_size: of arrays and of single examples.
        shuffle: whether arrays are shuffled, or the size of the buffer that
            single examples are shuffled in.
        augment: function of (x, seed) that makes a view of a single example
            of a `tf.data.Dataset`; see `TeacherCache.write`.
        views: how many views of each example the cache keeps.
        losses: dict by name of your own `DistillationLoss`es.
        loss_arguments: dict by method of dicts of arguments of its loss, where
            its own defaults do not suit.
        superclasses: optional [classes] integers, for reports.
        folder: path that keeps the cache, the result of each student, and how
            far an unfinished one is: a killed study resumes. One of other
            data is refused, for which a trainer first reads all data twice;
            of data that differ each time, such as augmented ones, only what
            stays the same is compared. By default nothing is kept.
        save_students: whether `folder` also keeps the students themselves.
        callbacks: function of a student's name, such as "kd-seed0", that
            returns a list of Keras callbacks.
        student_output: as for `Distiller`.
        teacher_output: as for `Distiller`.
        shared_classes: as for `Distiller`.
        logit_chunks: as for `Distiller`: the same results in less memory. The
            scores of single examples take the logits of a batch at once, as
            `predict` does, without a gradient.
        steps_per_execution: as for `compile`. With data of single examples
            an upper limit: as many as divide the steps of an epoch evenly.
        validation_freq: as for `fit`.
        verbose: 0 for silence. Otherwise a bar of the epochs on a terminal,
            and a line for each student.

    Attributes:
        metric: name of the metric.
        higher_is_better: boolean.
        methods: tuple of the names that can be trained.
        study: dict in JSON's types of what scores depend on.
        teacher: the teacher, or `None`.
        cache: the `TeacherCache` given or written, or `None` so far.
        epochs: integer.
        superclasses: [classes] integers, or `None`.
        scored_on: "test" or "validation", what final scores are of.

    Raises:
        TypeError: if a model, data, `losses` or `callbacks` are of another
            kind.
        ValueError: before any training: for students of different shapes or
            with shared weights, a metric that is not logged, no epoch, no
            validation data, data to be scored on that change their order,
            single examples or views that no cache can keep, the folder of
            another study, or a student that `logit_chunks` don't suit.

    Example:
    ```python
    trainer = kd.StudentTrainer(
        make_student, (x, y), (x_test, y_test), teacher=teacher, epochs=10
    )
    print(trainer("kd_pt", seed=0)["accuracy"])
    ```
    """

    def __init__(
        self,
        make_student,
        train,
        validation,
        *,
        teacher=None,
        cache=None,
        epochs,
        optimizer="adam",
        metric="accuracy",
        metrics=None,
        higher_is_better=None,
        test=None,
        batch_size=any_data.DEFAULT_BATCH_SIZE,
        shuffle=True,
        augment=None,
        views=1,
        losses=None,
        loss_arguments=None,
        superclasses=None,
        folder=None,
        save_students=False,
        callbacks=None,
        student_output=None,
        teacher_output=None,
        shared_classes=None,
        logit_chunks=None,
        steps_per_execution=1,
        validation_freq=1,
        verbose=1,
    ):
        _check_numbers(
            epochs=epochs,
            batch_size=batch_size,
            views=views,
            steps_per_execution=steps_per_execution,
        )
        if isinstance(validation_freq, int):
            _check_numbers(validation_freq=validation_freq)
        if not (callbacks is None or callable(callbacks)):
            raise TypeError(
                "`callbacks` is a function of a student's name, since each "
                "student needs callbacks of its own. Received: "
                f"{callbacks!r}. Pass one that makes them, as in lambda name: "
                "[keras.callbacks.TerminateOnNaN()]."
            )
        if not (losses is None or isinstance(losses, dict)):
            raise TypeError(
                "`losses` is a dict from names to losses. Received: "
                f"{losses!r}. Pass a dict, as in {{'mine': MyLoss()}}."
            )
        if validation is None:
            raise ValueError(
                "Students are compared on data that they are not trained on. "
                "Received: validation=None. Pass data such as (x, y)."
            )
        if teacher is not None:
            check_model("teacher", teacher)
        if isinstance(cache, str | pathlib.Path):
            cache = TeacherCache(cache)
        self.teacher, self.cache = teacher, cache
        self.epochs, self.superclasses = int(epochs), superclasses
        self._metrics = Metrics(metric, metrics, higher_is_better)
        self.metric = self._metrics.name
        self.higher_is_better = self._metrics.higher_is_better
        self._optimizers = Optimizers(optimizer)
        validation, test = map(_as_tuple, (validation, test))
        self._validation, self._test = validation, test
        self.scored_on = "validation" if test is None else "test"
        self._scored = validation if test is None else test
        batch_size = int(batch_size)
        self._batch_size, self._views = batch_size, int(views)
        self._own_losses = dict(losses or {})
        self._loss_arguments = dict(loss_arguments or {})
        self._callbacks = callbacks or (lambda name: [])
        self._distiller_arguments = {
            "student_output": student_output,
            "teacher_output": teacher_output,
            "shared_classes": shared_classes,
        }
        # Not among what scores depend on: they are the same.
        self._logit_chunks = logit_chunks
        self._steps_per_execution = steps_per_execution
        self._validation_freq = validation_freq
        self._verbose = verbose
        self._save_students = save_students
        self._check_names()
        self._data = data.TrainingData(
            train, batch_size, shuffle, teacher, cache, augment
        )
        if cache is not None:
            cache.check(train, teacher, augment=augment)
        elif self._data.of_examples and not self._is_cached:
            raise ValueError(
                "Single examples are shuffled, augmented and made batches of "
                "from a cache of what the teacher says. Received: `train` "
                "whose statistics can't be kept, since "
                f"{self._why_not_cached}. Pass them in a fixed order, which "
                "`shuffle` changes, or in batches."
            )
        self._students = _Students(make_student, self._data)
        if logit_chunks is not None:
            self._compiled(PLAIN, {}, cache, self._students.first)
        self._temporary = None
        self._given_cache = cache
        about = None if folder is None else self._about
        self._results = results.Results(folder, about)

    # -- what it can do --------------------------------------------------------

    @functools.cached_property
    def methods(self):
        """Tuple of the names of the methods that can be trained."""
        names = (*METHODS, *self._own_losses)
        return tuple(name for name in names if self._why_not(name) is None)

    def check(self, method, settings=None):
        """Refuses what can't be trained, before anything is.

        Args:
            method: name.
            settings: see `train`.

        Raises:
            ValueError: naming what is missing.
        """
        self._check_known(method)
        why_not = self._why_not(method, settings)
        if why_not is not None:
            raise ValueError(why_not)

    @property
    def teacher_similarity(self):
        """[classes, classes] cosines of the teacher's logit layer, or `None`.

        Also where there are too many classes to be looked at.
        """
        return scores.similarity_of(self.teacher)

    @property
    def learning_rate(self):
        """The optimizer's learning rate; of a schedule the first."""
        return self._optimizers.learning_rate

    @property
    def seconds_per_student(self):
        """Mean time of the students so far, `None` before the first."""
        seconds = self._results.seconds
        return float(np.mean(seconds)) if seconds else None

    @functools.cached_property
    def study(self):
        """Dict in JSON's types of all that scores depend on, but the seed."""
        own = {n: _loss_config(loss) for n, loss in self._own_losses.items()}
        more = {"losses": own, "loss_arguments": self._loss_arguments}
        text = json.dumps({**self._about, **more}, default=_in_json)
        return json.loads(text)

    @property
    def evaluated_epochs(self):
        """Tuple of the epochs, from 0 on, that end with an evaluation."""
        given = self._validation_freq
        if isinstance(given, int):
            return tuple(range(given - 1, self.epochs, given))
        return tuple(e for e in range(self.epochs) if e + 1 in given)

    def diagnosis(self):
        """What `keras_kd.diagnose` says of the teacher on the training data.

        Returns:
            A `Diagnosis`, made at the first call; `None` without a teacher.
        """
        return self._diagnosis

    @functools.cached_property
    def _diagnosis(self):
        if self.teacher is None:
            return None
        return diagnose(
            self.teacher,
            self._data.first_views(),
            superclasses=self.superclasses,
            teacher_output=self._distiller_arguments["teacher_output"],
        )

    # -- training --------------------------------------------------------------

    def __call__(self, method, seed):
        """Trains a student; see `train`."""
        return self.train(method, seed)

    def train(self, method, seed, settings=None, report=None):
        """Trains a student, unless its result is kept.

        Args:
            method: one of `methods`: "plain", a name of
                `keras_kd.losses.NAMES`, the controls "kd_sim_permuted" and
                "kd_pt_shuffled", the levels "dkd_tckd" and "dkd_nckd", or one
                of your own `losses`.
            seed: integer of at least 0.
            settings: optional dict of arguments of the method's loss, such as
                "weight" and "temperature", and of "learning_rate".
            report: optional function of (epoch, value), called after each
                evaluated epoch with the metric of the validation data, where a
                student resumes also with those before; where it returns true,
                training stops, and the result is not kept.

        Returns:
            A dict in JSON's types. Of the last epoch's student the scores by
            name, `metric` among them; "examples", the scores of single
            examples, and "examples_of", how the metric follows from them
            ("mean", or "exp_mean" for perplexity), where it does; "history",
            lists by name of a number an epoch; "seconds"; "gradient_scale",
            {"edges": [bins + 1], "counts": [epochs, bins]}, the histogram of w
            in each epoch, if there is a teacher's term; "class_similarity",
            [classes, classes], cosines of the student's logit layer, if it has
            one.

        Raises:
            ValueError: for a method or settings that can't be trained, or data
                to be scored on that are not the same in each reading.
            OSError: if the folder can't be written, or another process trains
                this student.
        """
        seed, settings = _checked_seed(seed), dict(settings or {})
        self._check_known(method)
        name = self._name(method, seed, settings)
        kept = self._results.get(name)
        if kept is not None:
            return kept
        self.check(method, settings)
        _ = self._scored_data  # Refused, if they have no fixed order.
        with self._results.unfinished(name) as folder:
            result, stopped = self._trained(
                method, seed, settings, report, name, folder
            )
            if not stopped:
                self._results.add(name, result)
        gc.collect()  # Models are in cycles that Python finds late.
        return result

    def _trained(self, method, seed, settings, report, name, folder):
        """The result of a student, and whether `report` stopped it."""
        began = time.perf_counter()
        cache = self._cache_for(method, settings)
        keras.utils.set_random_seed(seed)
        student = self._students.make()
        distiller = self._compiled(method, settings, cache, student)
        others = self._callbacks_of(name)
        backup, path, done = None, None, 0
        if folder is not None:
            # It keeps the last epoch, too, so that a student is not lost
            # between its training and its evaluation.
            backup = BackupAndRestore(
                folder / "backup", delete_checkpoint=False, callbacks=others
            )
            path, done = folder / "epochs.json", backup.epochs_done()
        record = progress.Record(path, done)
        key = f"val_{self.metric}"
        reporter = report and progress.Report(report, key, record.values(key))
        bar = progress.Bar(
            f"{method}, seed {seed}",
            self.epochs,
            key,
            self._verbose,
        )
        given = self._data.epochs(seed, done, cache, distiller.loss)
        try:
            distiller.fit(
                **given,
                **self._validation_arguments(),
                validation_freq=self._validation_freq,
                epochs=self.epochs,
                shuffle=False,  # Arrays are, by the seed.
                verbose=0,
                callbacks=[
                    progress.StartFromZero(distiller.student, self.teacher),
                    *others,
                    bar,
                    record,
                    *([backup] if backup else []),
                    *([reporter] if reporter else []),
                ],
            )
        finally:
            bar.close()
        result = self._measured(distiller)
        result["history"] = record.history
        if record.counts:
            edges = distiller.gradient_scales["all"].edges
            result["gradient_scale"] = {
                "edges": edges.tolist(),
                "counts": record.counts,
            }
        seconds = time.perf_counter() - began + record.seconds_before
        result["seconds"] = round(seconds, 2)
        if self._save_students and not (reporter and reporter.has_stopped):
            self._results.save(name, distiller.student)
        if self._verbose:
            score = result[self.metric]
            say(
                f"{method}, seed {seed}: {self.metric} {score:.4g} in "
                f"{seconds:.0f} s"
            )
        return result, bool(reporter and reporter.has_stopped)

    def _compiled(self, method, settings, cache, student):
        """A student in a compiled Distiller."""
        arguments = {
            **self._distiller_arguments,
            "logit_chunks": self._logit_chunks,
        }
        if method == PLAIN:
            distiller = Distiller(student, gradient_scale=False, **arguments)
        else:
            distiller = Distiller(student, self.teacher, **arguments)
        strategy = distribution.strategy_of(distiller)
        with distribution.scope(strategy):
            distiller.compile(
                optimizer=self._optimizers.make(settings.get(_LEARNING_RATE)),
                loss=self.loss(method, settings),
                weighted_metrics=self._metrics.make(),
                steps_per_execution=self._data.steps_per_execution(
                    self._steps_per_execution, cache
                ),
            )
        return distiller

    def _validation_arguments(self):
        given = {"validation_data": self._validation}
        if isinstance(self._validation, tuple):
            given["validation_batch_size"] = self._batch_size
        return given

    def _measured(self, distiller):
        """Scores of a student, of single examples and of its logit layer."""
        given = self._scored
        found = distiller.evaluate(
            **data.evaluation_arguments(given, self._batch_size),
            callbacks=[progress.StartFromZero(distiller.student)],
            verbose=0,
            return_dict=True,
        )
        result = {key: float(value) for key, value in found.items()}
        if self.metric not in result:
            raise ValueError(
                f"`metric` must be logged. Received: metric={self.metric!r} "
                f"where {sorted(result)} are. Choose one of these."
            )
        result |= scores.example_scores(
            distiller, given, self.metric, result[self.metric], self._batch_size
        )
        similarity = scores.similarity_of(distiller.student)
        if similarity is not None:
            result["class_similarity"] = similarity
        return result

    # -- losses ----------------------------------------------------------------

    def loss(self, method, settings=None):
        """A new loss of a method, as its students are trained by.

        Args:
            method: name.
            settings: see `train`.

        Returns:
            A `DistillationLoss`.

        Raises:
            ValueError: for an unknown method, or settings that its loss does
                not have or accept.
        """
        self._check_known(method)
        arguments = dict(settings or {})
        arguments.pop(_LEARNING_RATE, None)
        if method in self._own_losses:
            return _changed(self._own_losses[method], arguments)
        arguments = {**self._arguments_of(method), **arguments}
        shared = self._num_shared() if method == PERMUTED else None
        return make_loss(method, arguments, self.teacher, shared)

    def _num_shared(self):
        """How many classes both models begin with; `None` for all."""
        shared = self._distiller_arguments["shared_classes"]
        return shared_class_count(self._students.first, self.teacher, shared)

    def _arguments_of(self, method):
        given = self._loss_arguments
        return given.get(method, given.get(base_of(method), {}))

    def _why_not(self, method, settings=None):
        """Why a method can't be trained, in three parts, or `None`."""
        try:
            self._optimizers.make((settings or {}).get(_LEARNING_RATE))
            if method == PERMUTED and self.teacher is None:
                return _no_teacher(method, "the relations of its classes")
            loss = self.loss(method, settings)
            relations = getattr(loss, "class_similarity", None)
            if relations is not None and not relations.is_given:
                if self.teacher is None:
                    return _no_teacher(method, "the relations of its classes")
                if relations.logit_layer is None:
                    find_logit_layer(self.teacher)
            if loss.statistics and self.cache is not None:
                self.cache.check(losses=loss, augment=self._data.augment)
        except ValueError as error:
            return str(error)
        if loss.statistics and self.teacher is None and self.cache is None:
            return _no_teacher(method, f"its {', '.join(loss.statistics)}")
        if not loss.takes_two_classes and self._has_binary_students:
            return (
                f"{method!r} compares many classes; a sigmoid's unit has two. "
                "Received: a student with sigmoid units. Choose among plain, "
                "label_smoothing, kd_pt and kd."
            )
        if method == SHUFFLED and self.cache is None and not self._is_cached:
            return (
                f"{method!r} shuffles what is kept of the teacher in a cache. "
                f"Received: `train` whose statistics can't be kept, since "
                f"{self._why_not_cached}. "
                "Leave the method out, or pass data in a fixed order."
            )
        return None

    def _callbacks_of(self, name):
        """The callbacks that the user's function makes for a student."""
        made, kind = self._callbacks(name), keras.callbacks.Callback
        made = [made] if isinstance(made, kind) else list(made or ())
        if not all(isinstance(each, kind) for each in made):
            raise TypeError(
                "`callbacks` is a function that returns a list of callbacks. "
                f"Received: {made!r} for {name!r}. Return callbacks alone."
            )
        return made

    @functools.cached_property
    def _has_binary_students(self):
        """Whether students have sigmoid units."""
        kind = self._distiller_arguments["student_output"]
        return LogitReader(self._students.first, kind).is_binary

    def _check_known(self, method):
        names = (*METHODS, *self._own_losses)
        if method not in names:
            raise ValueError(
                f"There is no method of that name. Received: {method!r}. "
                f"Choose among {', '.join(self.methods)}, or give a loss of "
                "your own a name by `losses`."
            )

    def _check_names(self):
        """Refuses names and kinds of a user's own losses."""
        for name, loss in self._own_losses.items():
            if name in METHODS or not files.is_file_name(name):
                raise ValueError(
                    "A loss of your own needs a name of letters, digits and "
                    "any of _ . + -, that no method has. Received: "
                    f"{name!r}. Rename it."
                )
            if not isinstance(loss, losses.DistillationLoss):
                raise TypeError(
                    "A loss of your own is a `keras_kd.losses."
                    f"DistillationLoss`. Received: {loss!r} as {name!r}. Make "
                    "a subclass of it."
                )
        unknown = set(self._loss_arguments) - set(METHODS)
        if unknown:
            raise ValueError(
                "`loss_arguments` are by method. Received: "
                f"{sorted(unknown)}. Choose among {', '.join(METHODS)}."
            )

    # -- what it depends on ----------------------------------------------------

    def _name(self, method, seed, settings):
        """A student's name, which tells it from those of other settings."""
        own = self._own_losses.get(method)
        config = None if own is None else _loss_config(own)
        about = [self._arguments_of(method), settings, config]
        name = f"{method}-seed{seed}"
        if not any(about):
            return name
        text = json.dumps(about, sort_keys=True, default=_in_json)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @functools.cached_property
    def _about(self):
        """What all scores depend on, but method, settings and seed.

        It takes two passes over the data, so only what is kept needs it.
        """
        teacher = self.teacher
        if teacher is not None:
            teacher = fingerprint.teacher_fingerprint(teacher)
        parts = {"validation": self._validation, "test": self._test}
        others = {
            name: given
            if given is None
            else data.described(given, self._batch_size)
            for name, given in parts.items()
            if name != self.scored_on
        }
        return {
            "student": self._students.description,
            "teacher": teacher,
            "cache": self._given_cache
            and self._given_cache.teacher_fingerprint,
            "train": data.described(self._data.given, self._batch_size),
            **self._data.views_description,
            **others,
            self.scored_on: self._scored_data,
            "epochs": self.epochs,
            "batch_size": self._batch_size,
            "shuffle": self._data.shuffle,
            "views": self._views,
            "optimizer": self._optimizers.config,
            "metric": self._metrics.description,
            **self._distiller_arguments,
        }

    @functools.cached_property
    def _scored_data(self):
        """What tells the data that final scores are of from others.

        It takes two passes over data that may change their order.

        Raises:
            ValueError: if they do: examples of two students are paired by it.
        """
        return data.described_in_order(
            self._scored, self._batch_size, f"`{self.scored_on}`"
        )

    # -- the cache -------------------------------------------------------------

    @functools.cached_property
    def _is_cached(self):
        """Whether the trainer can keep what its teacher says."""
        reader = LogitReader(
            self.teacher, self._distiller_arguments["teacher_output"], "teacher"
        )
        outputs = getattr(self.teacher, "outputs", None)
        classes = reader.single(outputs).shape[-1] if outputs else None
        return self._data.why_not_cached is None and (
            classes is None or self._data.fits_a_cache(classes)
        )

    @property
    def _why_not_cached(self):
        """In words, where it can't."""
        return self._data.why_not_cached or "they would be too large"

    def _cache_for(self, method, settings):
        """The cache that a method is trained from, or `None`."""
        statistics = self.loss(method, settings).statistics
        if not (statistics or self._data.of_examples):
            return None
        if self.cache is None:
            if not self._is_cached:
                self._say_that_the_teacher_runs()
                return None
            self._write_cache()
        if method != SHUFFLED:
            return self.cache

        def order(labels):
            return shuffle_within_labels(np.arange(len(labels)), labels)

        return self.cache.shuffled(
            self._own_folder() / "cache-shuffled", self._data.given, order
        )

    def _write_cache(self):
        self.cache = TeacherCache.write(
            self._own_folder() / "cache",
            self._data.given,
            self.teacher,
            losses.KD(),
            augment=self._data.augment,
            views=self._views,
            verbose=int(bool(self._verbose) and sys.stdout.isatty()),
            teacher_output=self._distiller_arguments["teacher_output"],
        )

    def _own_folder(self):
        """Where caches are kept, as long as the trainer at least."""
        if self._results.folder is not None:
            return self._results.folder
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="keras_kd-")
        return pathlib.Path(self._temporary.name)

    def _say_that_the_teacher_runs(self):
        """Says once that the teacher runs beside each student."""
        if self._verbose and not self.__dict__.get("_has_said_so"):
            print(
                "The teacher runs beside each student: what it says of the "
                "training data isn't kept, since "
                f"{self._why_not_cached}.",
                flush=True,
            )
        self._has_said_so = True


class _Students:
    """Makes students, and sees that they are alike but independent."""

    def __init__(self, make, training):
        if not callable(make) or isinstance(make, keras.Model):
            raise TypeError(
                "`make_student` must be a function that builds a student. "
                f"Received: {make!r}. Pass lambda: ..., or its builder."
            )
        self._make = make
        self._training = training
        self._before = None
        first = self._new()
        self.shapes = _shapes(first)
        self.description = {
            "parameters": first.count_params(),
            "graph": fingerprint.teacher_fingerprint(first)["graph"],
        }
        self.first = first
        self.make()

    def make(self):
        """A new student.

        Raises:
            ValueError: if it has another shape than the others, or shares
                what is trained with one of them.
        """
        student = self._new()
        shapes = _shapes(student)
        if shapes != self.shapes:
            raise ValueError(
                "`make_student` must build the same network each time. "
                f"Received: weights of shapes {shapes} after {self.shapes}. "
                "Leave out what differs from call to call."
            )
        return student

    def _new(self):
        student = self._make()
        check_model("student", student)
        if not student.built:
            specs = self._training.data.input_specs(student)
            student(specs)
        before = self._before() if self._before is not None else None
        shared = before is not None and (
            before is student
            or in_both(student.trainable_variables, before.trainable_variables)
        )
        if shared:
            raise ValueError(
                "`make_student` must build a new student each time. Received: "
                f"{student.name!r} with weights of the one before, so that a "
                "student would begin where another one ended. Build its "
                "layers inside of the function."
            )
        self._before = weakref.ref(student)
        return student


def _as_tuple(given):
    """Data for an evaluation, those in a list as `fit` takes them."""
    return tuple(given) if isinstance(given, list) else given


def _shapes(model):
    return [tuple(variable.shape) for variable in model.variables]


def _changed(loss, settings):
    """A copy of a user's own loss with other settings."""
    now = {k: v for k, v in settings.items() if k in loss.tunables}
    others = {k: v for k, v in settings.items() if k not in now}
    if not others:
        copy = loss.copy()
        copy.assign(**now)
        return copy
    config = loss.get_config()
    unknown = sorted(set(others) - set(config))
    if unknown:
        raise ValueError(
            "Settings are arguments of the method's loss. Received: "
            f"{unknown} for {type(loss).__name__}, which has "
            f"{sorted(config)}. Leave them out, or add them to its "
            "`get_config`."
        )
    return type(loss).from_config({**config, **settings})


def _loss_config(loss):
    """What tells a user's own loss from another one."""
    # Keras numbers the names of losses as they are made.
    told = {k: v for k, v in told_config(loss).items() if k != "name"}
    config = json.dumps(told, sort_keys=True, default=_in_json)
    return {"class": type(loss).__name__, "config": config}


def _in_json(value):
    """What tells a value from others that JSON does not hold."""
    if not hasattr(value, "__array__"):
        return repr(value)
    array = np.asarray(value)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return [str(array.dtype), array.shape, digest]


def _no_teacher(method, needed):
    return (
        f"{method!r} needs a teacher, of which it takes {needed}. Received: "
        "no teacher that gives it. Pass `teacher`, or choose a method without "
        "one, such as plain or label_smoothing."
    )


def _check_numbers(**counts):
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(
                f"`{name}` must be an integer of at least 1. Received: "
                f"{name}={value!r}. Pass such a number, or leave it out."
            )


def _checked_seed(seed):
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(
            "A seed is an integer of at least 0. Received: "
            f"{seed}. Choose another one."
        )
    return seed
