"""The Distiller: a Keras model that trains a student with a partial-KD loss."""

import contextlib

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

from keras_kd import backend, data_errors, distribution, losses
from keras_kd.distillation_loss import (
    LABELS,
    check_labels,
    expand_weights,
)
from keras_kd.metrics import GradientScale
from keras_kd.monitors import Monitors
from keras_kd.outputs import (
    check_class_counts,
    class_count_message,
    to_logits,
)
from keras_kd.softmax import label_softmax

# Beside labels and statistics, y may carry these of each example: whether the
# teacher's largest logit is the label's, its logits, and the temperature at
# which the statistics were computed.
TEACHER_RIGHT = "teacher_right"
TEACHER_LOGITS = "teacher_logits"
STATISTICS_TEMPERATURE = "statistics_temperature"
_TEACHER_FINITE = "teacher_finite"
_HALF = ("float16", "bfloat16")


class _Untracked:
    """Holds a teacher out of reach of Keras's tracking.

    A tracked teacher would be saved with the student, its regularisation
    would join the loss and `trainable` would reach it.
    """

    def __init__(self, value):
        self.value = value


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(backend.Trainer):
    """Trains a student on labels and on a teacher's knowledge.

    It is a `keras.Model`: `compile` it with a distillation loss and `fit` it
    as any other. The teacher runs in inference mode, outside the gradient, in
    its own dtype, and only when the loss needs something from it; it is left
    as it was found. A model that ends in softmax is recognised and its logits
    are used.

    `evaluate` and `val_loss` report the student's plain cross-entropy on the
    labels, whatever the loss, so that runs compare; the teacher does not run
    there. `predict` gives the student's outputs.

    The training logs hold, besides the loss and your metrics, the
    cross-entropy on the labels, each distillation term before its weight, and
    the mean gradient scale. `gradient_scales` holds the histograms.

    Args:
        student: a `keras.Model` with one output, [..., classes] logits (or
            probabilities from a softmax).
        teacher: a `keras.Model` with the same input and classes; may be left
            out for losses that need nothing from it per example, and for data
            that carries its statistics.
        save_teacher: whether the saved Distiller holds the teacher.
        gradient_scale: a `GradientScale` that gives the bins of the
            histograms, or `False` for no histograms.
        name: optional name.

    Raises:
        TypeError: if student or teacher is no `keras.Model`.
        ValueError: if they have different numbers of classes.

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
    ):
        _check_model("student", student)
        # The student's policy decides on loss scaling; inputs are left to the
        # student's own layers to cast.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.student = student
        self.save_teacher = save_teacher
        self._evaluating = False
        self._class_weight = {}
        self._teacher_classes = None
        self.num_classes = None
        if gradient_scale is None:
            gradient_scale = GradientScale()
        self._bins = _Untracked(gradient_scale or None)
        self.teacher = teacher
        if student.built:
            self.built = True

    @property
    def teacher(self):
        """The teacher, or `None`; assigning another one is allowed."""
        return self._teacher.value

    @teacher.setter
    def teacher(self, teacher):
        if teacher is not None:
            _check_model("teacher", teacher)
            check_class_counts(self.student, teacher)
        self._teacher = _Untracked(teacher)
        self._teacher_classes = None
        if self.compiled:
            with self._scope():
                self.loss.bind_teacher(teacher)
            self.train_function = self.test_function = None

    def __setattr__(self, name, value):
        # Keras tracks what is assigned before a property's setter sees it.
        if name == "teacher":
            type(self).teacher.fset(self, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self):
        # Keras saves every saveable attribute that `dir` lists.
        names = super().__dir__()
        if self.save_teacher:
            return names
        return [name for name in names if name != "teacher"]

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

        Args:
            optimizer: as in `keras.Model.compile`.
            loss: a `keras_kd.losses.DistillationLoss`, or its name.
            loss_weights: not used; a distillation loss has its own weights.
            metrics: as in `keras.Model.compile`, of the labels and the
                student's outputs.
            weighted_metrics: as in `keras.Model.compile`.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if `loss` is no distillation loss, if it needs a logit
                layer that is not found, or if `loss_weights` are given.
        """
        if loss_weights is not None:
            raise ValueError(
                "A distillation loss carries its own weights. Received: "
                f"loss_weights={loss_weights}. Pass them to the loss, as in "
                "KDPt(weight=0.3)."
            )
        with self._scope():
            loss = losses.get(loss)
            loss.bind_teacher(self.teacher)
            optimizer = keras.optimizers.get(optimizer)
            monitors = Monitors(loss, self._bins.value)
        arguments = {
            "optimizer": optimizer,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **kwargs,
        }
        super().compile(**{**arguments, "optimizer": self._scaled(**arguments)})
        self.loss = loss
        # Kept out of Keras's tracking, which ends when a model is built: a
        # Distiller can be compiled again with a loss of other terms.
        self._monitors = _Untracked(monitors)
        self._compile_arguments = _Untracked({**arguments, "loss": loss})

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
        self.compile(**keras.saving.deserialize_keras_object(config))
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
        self.bring_up_to_date()
        return dict(self._monitors.value.scales)

    @property
    def faults(self):
        """The `Faults` that a step notes, for the host to look at after it."""
        return self._monitors.value.faults

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
        return x, self._with_statistics(x, _as_dict(y)), sample_weight

    def _with_statistics(self, x, y):
        """Adds to the labels what the loss needs from the teacher."""
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
            logits = to_logits(self.teacher, self.teacher(x, training=False))
        logits = ops.cast(logits, self.loss.dtype)
        self._teacher_classes = logits.shape[-1]
        labels = check_labels(y[LABELS], logits.shape)

        finite = ops.isfinite(ops.sum(logits, axis=-1))
        logits = ops.where(ops.expand_dims(finite, -1), logits, 0.0)
        labels_in_range = ops.clip(labels, 0, self._teacher_classes - 1)
        statistics = self.loss.teacher_statistics(labels_in_range, logits)
        return {
            **y,
            **statistics,
            LABELS: labels,
            _TEACHER_FINITE: finite,
            TEACHER_RIGHT: ops.equal(
                ops.cast(ops.argmax(logits, axis=-1), "int32"), labels
            ),
        }

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The loss of a batch.

        Args:
            x: inputs, not used.
            y: labels, or a dict of labels and teacher statistics.
            y_pred: the student's outputs.
            sample_weight: optional, [batch] or the shape of the labels.
            training: whether to give the distillation loss with the layers'
                own losses, or the plain cross-entropy on the labels.

        Returns:
            A scalar.
        """
        mask = get_keras_mask(y_pred)
        logits = self._student_logits(y_pred)
        y, usable = self._usable(_as_dict(y), logits)
        sample_weight = self._weights(y, logits, sample_weight)
        if not training:
            values = self._cross_entropy(y, logits)
            return self._reduce(values, mask, sample_weight)

        parts = self.loss.parts(y, logits)
        counted = ops.logical_and(parts.valid, usable)
        if mask is not None:
            counted = ops.logical_and(counted, ops.cast(mask, "bool"))
        self._monitors.value.update(
            parts, counted, sample_weight, y.get(TEACHER_RIGHT)
        )
        values = ops.where(usable, parts.loss, 0.0)
        if self.loss.ignore_class is not None:
            set_keras_mask(values, parts.valid)
        total = self._reduce(values, mask, sample_weight)
        if self.losses:
            # Keras's own sum of the layers' losses, scaled for distribution.
            total = total + ops.cast(super().compute_loss(), total.dtype)
        return total

    def _reduce(self, values, mask, sample_weight):
        """The loss's reduction, of the whole batch under a strategy.

        Keras divides each replica's sum by what that replica counted and
        averages, so that a step of few unmasked examples weighs as much as one
        of many; this divides by what all replicas counted.
        """
        reduced = self.loss.reduce(values, mask, sample_weight)
        strategy = distribution.strategy_of(self)
        replicas = distribution.num_replicas(strategy)
        if replicas == 1 or self.loss.reduction in ("sum", "none", None):
            return reduced
        count = self.loss.divisor(values, mask, sample_weight)
        total = distribution.sum_over_replicas(count, strategy)
        return reduced * ops.divide_no_nan(count * replicas, total)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics with labels and student outputs.

        Half-precision outputs are given in float32, as some metrics ask.
        """
        logits = self._student_logits(y_pred)
        labels, in_range = self._labels(_as_dict(y), logits)
        y = {LABELS: ops.where(in_range, labels, 0)}
        sample_weight = self._weights(y, logits, sample_weight)
        if keras.backend.standardize_dtype(y_pred.dtype) in _HALF:
            mask = get_keras_mask(y_pred)
            y_pred = ops.cast(y_pred, "float32")
            set_keras_mask(y_pred, mask)
        return super().compute_metrics(x, y[LABELS], y_pred, sample_weight)

    def _student_logits(self, y_pred):
        logits = to_logits(self.student, y_pred)
        classes = logits.shape[-1]
        if self._teacher_classes not in (None, classes):
            raise ValueError(
                class_count_message(classes, self._teacher_classes)
            )
        return logits

    def _labels(self, y, logits):
        """The labels, and which are class ids or the ignored one."""
        num_classes = logits.shape[-1]
        labels = check_labels(y[LABELS], logits.shape)
        in_range = ops.logical_and(labels >= 0, labels < num_classes)
        if self.loss.ignore_class is not None:
            ignored = ops.equal(labels, self.loss.ignore_class)
            in_range = ops.logical_or(in_range, ignored)
        return labels, in_range

    def _usable(self, y, logits):
        """Puts out-of-range labels aside, and notes them in `faults`.

        Returns:
            y with every label inside [0, classes) or the ignored one, and
            [...] booleans, false where an example must not be trained on.
        """
        self.num_classes = logits.shape[-1]
        labels, in_range = self._labels(y, logits)
        finite = y.get(_TEACHER_FINITE, ops.ones_like(in_range))
        current = self._at_current_temperature(y, in_range)
        self.faults.update_state(labels, in_range, finite, current)
        labels = ops.where(in_range, labels, 0)
        usable = ops.logical_and(in_range, ops.logical_and(finite, current))
        return {**y, LABELS: labels}, usable

    def _at_current_temperature(self, y, like):
        """[...] booleans: whether statistics are of the loss's temperature."""
        kept = y.get(STATISTICS_TEMPERATURE)
        if kept is None:
            return ops.ones_like(like)
        wanted = ops.cast(self.loss.temperature, kept.dtype)
        same = ops.abs(kept - wanted) <= 1e-4 * wanted
        return ops.logical_and(expand_weights(same, like), ops.ones_like(like))

    def _weights(self, y, logits, sample_weight):
        """Sample weights, times the class weights in training."""
        if not self._class_weight or self._evaluating:
            return sample_weight
        num_classes = logits.shape[-1]
        by_class = np.ones(num_classes, dtype="float32")
        for class_id, weight in self._class_weight.items():
            if not 0 <= class_id < num_classes:
                raise ValueError(
                    "`class_weight` must be a dict from class ids to weights. "
                    f"Received: class id {class_id} with {num_classes} "
                    "classes. Remove it, or correct the class ids."
                )
            by_class[class_id] = weight
        labels = ops.clip(y[LABELS], 0, num_classes - 1)
        weights = ops.take(by_class, labels, axis=0)
        if sample_weight is None:
            return weights
        return ops.cast(expand_weights(sample_weight, weights), "float32") * (
            weights
        )

    def _cross_entropy(self, y, logits):
        """[...], plain cross-entropy on the labels, 0 on ignored ones."""
        logits = ops.cast(logits, self.loss.dtype)
        valid = self.loss.valid_labels(y[LABELS])
        values = label_softmax(logits, y[LABELS]).cross_entropy
        values = ops.where(valid, values, 0.0)
        if self.loss.ignore_class is not None:
            set_keras_mask(values, valid)
        return values

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
        class_weight = dict(class_weight or {})
        if class_weight != self._class_weight:
            self._class_weight = class_weight
            self.train_function = None
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
        if all(hasattr(s, "shape") for s in keras.tree.flatten(spec)):
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

    def get_config(self):
        """The arguments of the constructor, serialised."""
        serialize = keras.saving.serialize_keras_object
        return {
            "student": serialize(self.student),
            "teacher": serialize(self.teacher) if self.save_teacher else None,
            "save_teacher": self.save_teacher,
            "gradient_scale": serialize(self._bins.value or False),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """A Distiller from `get_config`."""
        config = dict(config)
        for key in ("student", "teacher", "gradient_scale"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def _as_dict(y):
    if y is None:
        raise ValueError(
            "Distillation needs labels. Received: data without them. Pass "
            "(x, labels) with integer class ids."
        )
    if isinstance(y, dict):
        if LABELS in y:
            return y
        raise ValueError(
            f'Labels given as a dict must have the key "{LABELS}". Received: '
            f"keys {sorted(y)}. Rename the key of the class ids."
        )
    return {LABELS: y}


def _check_model(role, model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"The {role} must be a keras.Model. Received: {type(model)}. Wrap "
            "a layer or a function in a keras.Model."
        )
