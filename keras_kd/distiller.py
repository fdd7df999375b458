"""The Distiller: a Keras model that trains a student with a partial-KD loss."""

import contextlib
import weakref

import keras
import numpy as np
from keras import ops

from keras_kd import (
    backend,
    batch,
    data_errors,
    distribution,
    fingerprint,
    losses,
    precomputed,
)
from keras_kd.backend.private import (
    get_keras_mask,
    set_keras_mask,
    set_loss_tracker,
)
from keras_kd.batch import (
    STATISTICS_TEMPERATURE,
    TEACHER_FINGERPRINT,
    TEACHER_LOGITS,
    TEACHER_RIGHT,
)
from keras_kd.logits import (
    LogitReader,
    check_class_counts,
    check_model,
    class_count_message,
)
from keras_kd.losses.base import reduce_over_batch
from keras_kd.metrics import GradientScale
from keras_kd.monitors import LossTracker, Monitors
from keras_kd.sharing import check_sharing
from keras_kd.softmax import label_softmax

# In y, the teacher's outputs, where their values must tell what they are.
_TEACHER_OUTPUTS = "teacher_outputs"
_HALF = ("float16", "bfloat16")

# Methods of a student's own that a Distiller's training would bypass.
_OVERRIDES = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
)


class _Untracked:
    """Holds a value out of reach of Keras's tracking."""

    def __init__(self, value):
        self.value = value


class _LiveName(str):
    """A model's name, which leads to the model within its process.

    A file holds only the name. So a clone keeps the teacher itself, and a
    loaded Distiller gets the file's.
    """

    def __new__(cls, model):
        instance = super().__new__(cls, model.name)
        instance.model = model
        return instance


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(backend.Trainer):
    """Trains a student on labels and on a teacher's knowledge.

    It is a `keras.Model`: `compile` it with a distillation loss and `fit` it
    as any other. The teacher runs in inference mode, outside the gradient, in
    its own dtype, and only when the loss needs something from it; it is left
    as it was found. It may share layers with the student if they are not
    trainable. What a loss takes from the teacher's weights themselves, as
    `KDSim` does, is read when training starts. Of a model whose graph ends in
    softmax the logits are used.

    `evaluate` and `val_loss` report the student's plain cross-entropy on the
    labels, whatever the loss, so that runs compare; the teacher does not run
    there. `predict` gives the student's outputs.

    The training logs hold, besides the loss and your metrics, the
    cross-entropy on the labels, each distillation term before its weight, and
    the mean gradient scale. `gradient_scales` holds the histograms.

    Args:
        student: a `keras.Model` with one output, [..., classes]. It is called
            as it is: the `preprocessor` of a KerasHub task, which runs in the
            task's own `fit`, has to be mapped over the data.
        teacher: a `keras.Model` with the same input and classes; may be left
            out for losses that need nothing from it per example, and for data
            that carries its statistics. Another one may be assigned later.
        student_output: what the student gives: "logits", "probabilities" or
            "log_probabilities". `None` reads it from the student's graph, or
            expects logits where there is no graph. Values of the first batch
            that show something else are refused.
        teacher_output: likewise, of the teacher.
        save_teacher: whether the saved Distiller holds the teacher. If not,
            it holds what the loss took from the teacher's weights, and the
            teacher has to be assigned after loading where it must run.
        gradient_scale: a `GradientScale` that gives the bins of the
            histograms, or `False` for no histograms.
        name: optional name.

    Raises:
        TypeError: if student or teacher is not a `keras.Model`.
        ValueError: if they have different numbers of classes, are one object
            or share variables that training changes, or the student has a
            training step or a loss of its own.

    Example:
    ```python
    distiller = kd.Distiller(student, teacher)
    distiller.compile(optimizer="adam", loss=kd.KDPtSim(), metrics=["accuracy"])
    distiller.fit(train, validation_data=test)
    distiller.student.save("student.keras")
    ```

    Data are (x, labels) or (x, labels, sample_weight), with integer class ids
    of shape [batch] or [batch, time]; labels may be a dict with "labels" and
    the statistics that the loss names, and then no teacher is needed.

    Source: Tang et al. 2020, "Understanding and Improving Knowledge
    Distillation" (arXiv 2002.03532).
    """

    def __init__(
        self,
        student,
        teacher=None,
        save_teacher=True,
        gradient_scale=None,
        name=None,
        *,
        student_output=None,
        teacher_output=None,
    ):
        check_model("student", student)
        _check_overrides(student)
        # The student's policy decides on loss scaling; inputs are left to the
        # student's own layers to cast.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student = student
        self.save_teacher = save_teacher
        self.student_output = student_output
        self.teacher_output = teacher_output
        self._evaluating = False
        self._class_weight = {}
        self._teacher_classes = None
        self._teacher_number = None
        self.num_classes = None
        if gradient_scale is None:
            gradient_scale = GradientScale()
        self._bins = _Untracked(gradient_scale or None)
        self.teacher = teacher
        check_class_counts(student, teacher)
        # Refuse a kind of output that doesn't exist.
        LogitReader(student, student_output, "student")
        LogitReader(teacher, teacher_output, "teacher")
        if student.built:
            self.built = True

    @property
    def student_reader(self):
        """The `LogitReader` of the student."""
        return LogitReader(self.student, self.student_output, "student")

    @property
    def teacher_reader(self):
        """The `LogitReader` of the teacher, or `None`."""
        if self.teacher is None:
            return None
        return LogitReader(self.teacher, self.teacher_output, "teacher")

    def __setattr__(self, name, value):
        if name == "student" and hasattr(self, "student"):
            raise ValueError(
                "A Distiller trains the student that it was made with. "
                f"Received: student={value!r} in place of "
                f"{self.student.name!r}. Make another one, as in "
                "Distiller(student, distiller.teacher), and compile it."
            )
        if name != "teacher":
            super().__setattr__(name, value)
            return
        if value is not None:
            check_model("teacher", value)
            check_class_counts(self.student, value)
            check_sharing(self.student, value, self.save_teacher)
        # Past Keras, which would track it: it would be trained, its
        # regularisation would join the loss and `trainable` would reach it.
        object.__setattr__(self, name, value)
        self._teacher_classes = self._teacher_number = None
        if self.compiled:
            self.invalid_examples.reset_state()
            self._bind_teacher()
            self.train_function = self.test_function = None

    def __dir__(self):
        # Keras saves every saveable attribute that `dir` lists: the teacher,
        # or in its place what the loss keeps of it.
        saved = self.save_teacher and self.teacher is not None
        hidden = "loss" if saved else "teacher"
        return [name for name in super().__dir__() if name != hidden]

    # -- building and compiling -----------------------------------------------

    def build(self, input_shape):
        """Builds the student."""
        if not self.student.built:
            self.student.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        """The student's outputs."""
        return self.student(inputs, training=training)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """Configures training.

        A loss object belongs to the first Distiller that is compiled with it;
        another one takes a copy, with the values that it has then. Change it
        by `distiller.loss`, as in `distiller.loss.weight = 0.3`.

        Args:
            optimizer: as in `keras.Model.compile`.
            loss: a `keras_kd.losses.DistillationLoss`, or its name.
            loss_weights: not used; a distillation loss has its own weights.
            metrics: as in `keras.Model.compile`, of the labels and the
                student's outputs.
            weighted_metrics: as in `keras.Model.compile`.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if `loss` is not a distillation loss, if it needs a
                logit layer that is not found, if `loss_weights` are given, or
                if student and teacher share what training changes.
        """
        self._configure(
            optimizer, loss, loss_weights, metrics, weighted_metrics, **kwargs
        )
        check_sharing(self.student, self.teacher, self.save_teacher)
        self._bind_teacher()

    def _configure(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        """As `compile`, before the loss reads the teacher's weights."""
        if loss_weights is not None:
            raise ValueError(
                "A distillation loss carries its own weights. Received: "
                f"loss_weights={loss_weights}. Pass them to the loss, as in "
                "KDPt(weight=0.3)."
            )
        with self._scope():
            loss = self._own(losses.get(loss))
            optimizer = keras.optimizers.get(optimizer)
            monitors = Monitors(loss, self._bins.value)
        arguments = {
            "optimizer": optimizer,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **kwargs,
        }
        super().compile(**{**arguments, "optimizer": self._scaled(**arguments)})
        with self._scope():
            set_loss_tracker(self, LossTracker(name="loss"))
        self.loss = loss
        # Kept out of Keras's tracking, which ends when a model is built: a
        # Distiller can be compiled again with a loss of other terms.
        self._monitors = _Untracked(monitors)
        self._compile_arguments = _Untracked({**arguments, "loss": loss})

    def _own(self, loss):
        """The loss, or a copy of it if another Distiller has it."""
        owner = loss.owner and loss.owner()
        if owner is not None and owner is not self:
            loss = loss.copy()
        loss.owner = weakref.ref(self)
        return loss

    def _bind_teacher(self):
        """Lets the loss read the teacher's weights as they are now."""
        before = self.loss.variables
        with self._scope():
            self.loss.bind_teacher(self.teacher)
        after = self.loss.variables
        if list(map(id, before)) != list(map(id, after)):
            # A compiled step reads the variables that it was made with.
            self.train_function = self.test_function = None

    def make_train_function(self, force=False):
        """Makes the training step; Keras calls it whenever training starts."""
        if self.train_function is None or force:
            check_sharing(self.student, self.teacher, self.save_teacher)
        self._bind_teacher()
        return super().make_train_function(force)

    def load_weights(self, *args, **kwargs):
        """As `keras.Model.load_weights`."""
        super().load_weights(*args, **kwargs)
        # Also while training: BackupAndRestore calls it when that has begun.
        if self.compiled and self.teacher is not None:
            self._bind_teacher()

    def _scaled(self, optimizer, auto_scale_loss=True, **_):
        """The optimizer, in mixed precision with its loss scaled."""
        half = self.dtype_policy.name == "mixed_float16"
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if not (auto_scale_loss and half) or scaled:
            return optimizer
        return distribution.LossScaleOptimizer(
            optimizer, name="loss_scale_optimizer"
        )

    def get_compile_config(self):
        """The serialised arguments of `compile`."""
        if self.compiled:
            return keras.saving.serialize_keras_object(
                self._compile_arguments.value
            )
        return None

    def compile_from_config(self, config):
        """Compiles a loaded Distiller as it was saved."""
        # Weights are loaded later, and read when training starts.
        self._configure(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def gradient_scales(self):
        """Dict of the `GradientScale` of this epoch's training, by group.

        The groups are "all", "teacher_right" and "teacher_wrong" (by whether
        the teacher's largest logit is the label's; empty where the teacher
        did not run).
        """
        if not self.compiled:
            return {}
        self.sync_variables()
        return dict(self._monitors.value.scales)

    @property
    def invalid_examples(self):
        """The `InvalidExamples` that steps count, for the host to check."""
        return self._monitors.value.invalid_examples

    @property
    def metrics(self):
        """Keras's metrics, and in training those of the loss's parts."""
        metrics = super().metrics
        if self.compiled and not self._evaluating:
            metrics = [*metrics, *self._monitors.value.metrics]
        return metrics

    def get_metrics_result(self):
        """Current metrics; of the gradient scales, the mean over all."""
        results = super().get_metrics_result()
        if self.compiled:
            for group, metric in self._monitors.value.scales.items():
                if group != "all":
                    results.pop(metric.name, None)
        return results

    # -- one step ------------------------------------------------------------

    def with_teacher(self, data):
        """Adds to a batch what the loss needs from the teacher.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            (x, y, sample_weight), with y a dict.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return x, self._with_statistics(x, batch.as_dict(y)), sample_weight

    def _with_statistics(self, x, y):
        """Adds to the labels what the loss needs from the teacher."""
        y = precomputed.with_statistics(
            y, self.loss, lambda: self._classes_for(x)
        )
        missing = [n for n in self.loss.statistics if n not in y]
        carried = TEACHER_LOGITS in y
        if not (missing or carried and self.loss.statistics):
            return y
        if carried:
            logits = y[TEACHER_LOGITS]
        elif self.teacher is None:
            raise ValueError(
                f"{type(self.loss).__name__} needs {missing} from a teacher. "
                "Received: teacher=None and a data set with "
                f"{sorted(y)}. Pass Distiller(student, teacher), or data that "
                "carry the statistics, as TeacherCache.attach gives, or use "
                "LabelSmoothing, which needs no teacher."
            )
        else:
            outputs = self.teacher(x, training=False)
            logits = self.teacher_reader.logits(outputs)
            if not self.teacher_reader.is_certain:
                y = {**y, _TEACHER_OUTPUTS: self.teacher_reader.single(outputs)}
        logits = ops.cast(logits, self.loss.dtype)
        self._teacher_classes = logits.shape[-1]
        settled = batch.settle(y, logits)
        top_class = ops.argmax(logits, axis=-1)
        right = ops.equal(ops.cast(top_class, "int32"), settled.labels)
        return {
            **y,
            **self.loss.teacher_statistics(settled.labels, logits),
            TEACHER_RIGHT: right,
        }

    def _classes_for(self, x):
        """Number of the student's classes, before it runs."""
        if self.num_classes is None:
            inputs = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype), x
            )
            outputs = self.student_reader.single(self.student(inputs))
            self.num_classes = outputs.shape[-1]
        return self.num_classes

    def settle(self, y, y_pred, sample_weight=None):
        """What a batch is to losses and metrics.

        Args:
            y: labels, or a dict of labels and teacher statistics; or a batch
                that is settled, which is returned as it is.
            y_pred: the student's outputs.
            sample_weight: optional, [batch] or the shape of the labels.

        Returns:
            A `keras_kd.batch.Batch`.
        """
        if isinstance(y, batch.Batch):
            return y
        if isinstance(sample_weight, dict):
            # Of arrays, Keras gives each entry of y the same weights.
            sample_weight = sample_weight[batch.LABELS]
        outputs = self.student_reader.single(y_pred)
        logits = self.student_reader.logits(outputs)
        self.num_classes = logits.shape[-1]
        if self._teacher_classes not in (None, self.num_classes):
            raise ValueError(
                class_count_message(self.num_classes, self._teacher_classes)
            )
        class_weight = None
        if self._class_weight and not self._evaluating:
            class_weight = batch.class_weight_array(
                self._class_weight, self.num_classes
            )
        return batch.settle(
            y,
            logits,
            sample_weight,
            get_keras_mask(outputs),
            self.loss.ignore_class,
            class_weight,
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The loss of a batch.

        Args:
            x: optional inputs, looked at where the loss is not finite.
            y: labels, a dict of labels and teacher statistics, or a settled
                batch.
            y_pred: the student's outputs.
            sample_weight: optional, [batch] or the shape of the labels.
            training: whether to give the distillation loss with the layers'
                own losses, or the plain cross-entropy on the labels.

        Returns:
            A scalar; NaN for a batch that must not be trained on. Under a
            strategy, this replica's share of the sum over all.
        """
        settled = self.settle(y, y_pred, sample_weight)
        if training:
            parts = self.loss.batch_parts(settled)
            values = parts.loss
            self._monitors.value.update(
                parts, settled, settled.y.get(TEACHER_RIGHT)
            )
        else:
            values = self._cross_entropy(settled)
        number = self._count_invalid(x, y_pred, settled, values, training)
        total = reduce_over_batch(values, settled, self.loss.reduction)
        if training and self.losses:
            # Keras's own sum of the layers' losses, scaled for distribution.
            total = total + ops.cast(super().compute_loss(), total.dtype)
        is_invalid = distribution.sum_over_replicas(number) > 0
        return ops.where(is_invalid, float("nan"), total)

    def _cross_entropy(self, settled):
        """[...], plain cross-entropy on the labels, 0 where none counts."""
        logits = ops.cast(settled.logits, self.loss.dtype)
        values = label_softmax(logits, settled.labels).cross_entropy
        return ops.where(settled.counted, values, 0.0)

    def _count_invalid(self, x, y_pred, settled, values, training):
        """Counts what must not be trained on in `invalid_examples`.

        Returns:
            A scalar that is above 0 if there is anything.
        """
        bad = ops.logical_not(settled.is_class)
        given = settled.given_labels
        lowest = np.iinfo(keras.backend.standardize_dtype(given.dtype)).min
        labels = ops.max(ops.where(bad, given, lowest))
        counts = {
            "labels": _number(bad),
            "label": ops.where(ops.any(bad), ops.cast(labels, "float32"), 0.0),
        }
        if training:
            counts["stale"] = _number(self._stale(settled))
            counts["other_teacher"] = _number(self._of_other_teacher(settled))
            if precomputed.OUTPUT_FAULT in settled.y:
                fault = settled.y[precomputed.OUTPUT_FAULT]
                counts |= precomputed.count_faults(
                    fault, settled.counted, settled.weights
                )
        infinite = _number(ops.logical_not(ops.isfinite(values)))
        # Not every layer passes a NaN on.
        inputs = sum((ops.sum(each) for each in _floats(x)), ops.zeros(()))
        origins = ops.cond(
            ops.logical_or(infinite > 0, ops.logical_not(ops.isfinite(inputs))),
            lambda: _origins(x, settled.logits, infinite),
            lambda: ops.zeros((3,)),
        )
        for name, count in zip(
            ("inputs", "student", "teacher"),
            ops.unstack(origins, 3),
            strict=True,
        ):
            counts[name] = count
        outputs = {self.student_reader: y_pred}
        if _TEACHER_OUTPUTS in settled.y:
            outputs[self.teacher_reader] = settled.y[_TEACHER_OUTPUTS]
        for reader, values in outputs.items():
            if not reader.is_certain:
                counts[f"{reader.role}_output"] = self._contradicted(
                    reader, values
                )
        roles = [reader.role for reader in outputs]
        self.invalid_examples.update_state(roles, **counts)
        told = ("label", "fault", "fault_row")
        return sum(n for name, n in counts.items() if name not in told)

    def _stale(self, settled):
        """Booleans: whether statistics are of another temperature."""
        kept = settled.y.get(STATISTICS_TEMPERATURE)
        if kept is None:
            return ops.zeros((1,), dtype="bool")
        wanted = ops.cast(self.loss.temperature, kept.dtype)
        return ops.abs(kept - wanted) > 1e-4 * wanted

    def _of_other_teacher(self, settled):
        """Booleans: whether statistics are not those of this teacher."""
        kept = settled.y.get(TEACHER_FINGERPRINT)
        if kept is None or self._teacher_number is None:
            return ops.zeros((1,), dtype="bool")
        return ops.not_equal(kept, self._teacher_number)

    def _check_outputs(self, y):
        """Before training on arrays that hold a teacher's outputs."""
        outputs = getattr(self.student, "outputs", None)
        if isinstance(y, dict) and outputs:
            precomputed.check_outputs(y, outputs[0].shape[-1])

    def _note_teacher_of(self, x, y=None):
        """Before training on data that say whose statistics they carry."""
        spec = getattr(x, "element_spec", None)
        y = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else y
        if isinstance(y, dict) and TEACHER_FINGERPRINT in y:
            self._note_teacher()

    def _note_teacher(self):
        """Works out the number of the teacher as it is now."""
        if self.teacher is None:
            return
        number = fingerprint.teacher_number(
            fingerprint.teacher_fingerprint(self.teacher)
        )
        if number != self._teacher_number:
            self._teacher_number = number
            self.train_function = None

    def _contradicted(self, reader, outputs):
        """1 if the first batch shows that a model gives something else."""
        return ops.cond(
            self.invalid_examples.is_first_batch(reader.role),
            lambda: ops.cast(reader.contradicted(outputs), "float32"),
            lambda: ops.zeros(()),
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics with labels and student outputs.

        Half-precision outputs are given in float32, as some metrics ask.
        """
        settled = self.settle(y, y_pred, sample_weight)
        labels = ops.where(settled.is_class, settled.given_labels, 0)
        outputs = self.student_reader.single(y_pred)
        if keras.backend.standardize_dtype(outputs.dtype) in _HALF:
            mask = get_keras_mask(outputs)
            outputs = ops.cast(outputs, "float32")
            set_keras_mask(outputs, mask)
        return super().compute_metrics(
            x, ops.cast(labels, "int32"), outputs, settled.weights
        )

    # -- running -------------------------------------------------------------

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        class_weight=None,
        **kwargs,
    ):
        """Trains the student; arguments as in `keras.Model.fit`.

        Class weights apply to labels of any shape, [batch, time] included,
        and multiply sample weights.

        Where several workers train together each calls `fit` with the same
        arguments; only the chief (worker 0) writes files, and all of them
        restore from its `BackupAndRestore`, so its folder must be one that
        all can read.

        Raises:
            RuntimeError: if another worker is lost.
        """
        self._build_student(x)
        self._note_teacher_of(x, y)
        self._check_outputs(y)
        self._note_class_weight(class_weight)
        strategy = distribution.strategy_of(self)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = distribution.worker_callbacks(callbacks, strategy)
        with (
            distribution.lost_worker_as_message(strategy),
            data_errors.raised_plainly(),
        ):
            return super().fit(
                x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
            )

    def train_on_batch(
        self,
        x,
        y=None,
        sample_weight=None,
        class_weight=None,
        return_dict=False,
    ):
        """Trains on one batch; arguments as in `keras.Model.train_on_batch`."""
        named = isinstance(y, dict) and TEACHER_FINGERPRINT in y
        if named and self._teacher_number is None:
            self._note_teacher()
        self._note_class_weight(class_weight)
        return super().train_on_batch(
            x, y, sample_weight, return_dict=return_dict
        )

    def _note_class_weight(self, class_weight):
        """Takes the class weights of the training that begins."""
        class_weight = dict(class_weight or {})
        if class_weight != self._class_weight:
            self._class_weight = class_weight
            self.train_function = None

    def evaluate(self, *args, **kwargs):
        """Plain cross-entropy and metrics; as `keras.Model.evaluate`."""
        strategy = distribution.strategy_of(self)
        with (
            self.evaluation(),
            distribution.lost_worker_as_message(strategy),
            data_errors.raised_plainly(),
        ):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """The student's outputs; as `keras.Model.predict`."""
        strategy = distribution.strategy_of(self)
        with distribution.lost_worker_as_message(strategy):
            return super().predict(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """As `keras.Model.test_on_batch`, of the student alone."""
        with self.evaluation():
            return super().test_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def evaluation(self):
        """A context in which the student is evaluated, not trained."""
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def _scope(self):
        return distribution.scope(distribution.strategy_of(self))

    def _build_student(self, x):
        """Builds the student before callbacks such as BackupAndRestore ask."""
        if self.built:
            return
        spec = getattr(x, "element_spec", None)
        spec = spec[0] if isinstance(spec, tuple) else x
        leaves = keras.tree.flatten(spec)
        # Of other data, such as those of pandas, Keras makes arrays in `fit`.
        if all(hasattr(s, "shape") and hasattr(s, "dtype") for s in leaves):
            inputs = keras.tree.map_structure(
                lambda s: keras.KerasTensor(
                    (None, *s.shape[1:]),
                    keras.backend.standardize_dtype(s.dtype),
                ),
                spec,
            )
            with self._scope():
                self(inputs)

    # -- saving --------------------------------------------------------------

    def save(self, *args, **kwargs):
        """As `keras.Model.save`; of several workers only the chief writes."""
        if distribution.is_chief(distribution.strategy_of(self)):
            super().save(*args, **kwargs)

    def save_weights(self, *args, **kwargs):
        """As `keras.Model.save_weights`; only the chief writes."""
        if distribution.is_chief(distribution.strategy_of(self)):
            super().save_weights(*args, **kwargs)

    def save_own_variables(self, store):
        """Called by Keras before it saves what a Distiller consists of."""
        # Once trained, what training read is kept: saving must not change it.
        untrained = self.compiled and self.train_function is None
        if untrained and self.teacher is not None:
            self._bind_teacher()
        super().save_own_variables(store)

    def export(self, *args, **kwargs):
        """Exports the student, for inference; as `keras.Model.export`."""
        if distribution.is_chief(distribution.strategy_of(self)):
            self.student.export(*args, **kwargs)

    def get_config(self):
        """The arguments of the constructor, serialised."""
        serialize = keras.saving.serialize_keras_object
        teacher = self.teacher
        return {
            "student": serialize(self.student),
            "teacher": serialize(teacher) if self.save_teacher else None,
            "teacher_name": None if teacher is None else _LiveName(teacher),
            "save_teacher": self.save_teacher,
            "student_output": self.student_output,
            "teacher_output": self.teacher_output,
            "gradient_scale": serialize(self._bins.value or False),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """A Distiller from `get_config`.

        In the process that made the configuration, as for
        `keras.models.clone_model`, it has the same teacher.
        """
        config = dict(config)
        teacher = getattr(config.pop("teacher_name", None), "model", None)
        if teacher is not None:
            config["teacher"] = None
        for key in ("student", "teacher", "gradient_scale"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        if teacher is not None:
            config["teacher"] = teacher
        return cls(**config)


def _number(booleans):
    return ops.sum(ops.cast(booleans, "float32"))


def _origins(x, logits, infinite):
    """Where losses that are not finite come from.

    Returns:
        [3]: numbers of inputs that are not finite, of examples if it is the
        student's logits, and if it is what the teacher gave.
    """
    inputs = sum(
        (_number(ops.logical_not(ops.isfinite(each))) for each in _floats(x)),
        ops.zeros(()),
    )
    sound = ops.all(ops.isfinite(logits))
    student = ops.where(sound, 0.0, infinite)
    return ops.stack([inputs, student, infinite - student])


def _floats(x):
    """The inputs of a float dtype, in float32."""
    return [
        ops.cast(values, "float32")
        for values in keras.tree.flatten(x)
        if values is not None
        and "float" in keras.backend.standardize_dtype(values.dtype)
    ]


def _check_overrides(student):
    """Refuses a student with methods that training would bypass."""
    overridden = [
        name
        for name in _OVERRIDES
        if getattr(getattr(student, name), "__func__", None)
        is not getattr(keras.Model, name)
    ]
    if overridden:
        raise ValueError(
            "A Distiller trains the student by its own step and loss, so the "
            "student must not have its own. Received: student "
            f"{student.name!r} of class {type(student).__name__} with "
            f"{', '.join(overridden)}. Pass a model without them, such as "
            "keras.Model(inputs, student(inputs)); for a loss of your own "
            "make a subclass of keras_kd.losses.DistillationLoss."
        )
