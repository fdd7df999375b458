"""Callbacks: TensorBoard, schedules, and backups of unfinished training."""

import contextlib
import math
import os
import warnings

import keras
import numpy as np
from keras import ops

from keras_kd import distribution
from keras_kd.backend import private
from keras_kd.backup import BackupAndRestore
from keras_kd.files import errors_naming, kept_path
from keras_kd.logits import model_of_output
from keras_kd.similarity import class_similarity, logit_weights

__all__ = ["BackupAndRestore", "KDTensorBoard", "LossSchedule"]


class LossSchedule(keras.callbacks.Callback):
    """Changes a distillation loss's weights and temperature by epoch.

    Args:
        output: name of the output whose loss is changed, where a student has
            several.
        **schedules: by the name of a number of the loss ("weight",
            "temperature", "pt_weight", ...), a function from the epoch
            (integer from 0) to its value.

    Raises:
        TypeError: if a schedule is not a function, or has no name; or at the
            start of training, if it is not that of a Distiller.
        ValueError: at the start of training, if the loss has no such number,
            or no output was named of several; or when a value is out of range.

    Example:
    >>> kd.callbacks.LossSchedule(weight=lambda epoch: 0.9 * 0.8**epoch)
    """

    def __init__(self, output=None, **schedules):
        super().__init__()
        if callable(output):
            raise TypeError(
                "A schedule has the name of the number that it changes. "
                f"Received: {output!r} without a name. Name it, as in "
                "LossSchedule(weight=lambda epoch: 0.9 * 0.8**epoch)."
            )
        for name, schedule in schedules.items():
            if not callable(schedule):
                raise TypeError(
                    "A schedule is a function of the epoch. Received: "
                    f"{name}={schedule!r}. What stays the same is given to "
                    f"the loss itself, as in KD({name}={schedule!r})."
                )
        self.output = output
        self.schedules = schedules

    def set_model(self, model):
        """Takes the Distiller whose loss is changed."""
        _check_distiller(self, model)
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the values of this epoch."""
        self._loss().assign(
            **{name: f(epoch) for name, f in self.schedules.items()}
        )

    def _loss(self):
        """The loss of the output."""
        losses = {head.name: head.loss for head in self.model.distilled_heads}
        if self.output not in losses:
            has_names = None not in losses
            raise ValueError(
                "LossSchedule changes the distillation loss of one output. "
                f"Received: output={self.output!r} for a student of which "
                f"{list(losses) if has_names else 'the only one'} is "
                "distilled. "
                + (
                    "Name one, as in LossSchedule(output=..., weight=...)."
                    if has_names
                    else "Leave `output` out."
                )
            )
        return losses[self.output]


def _check_distiller(callback, model):
    """Refuses a model that is not distilled."""
    if not hasattr(model, "distilled_heads"):
        name = type(callback).__name__
        raise TypeError(
            f"{name} is a callback for a keras_kd.Distiller. Received: "
            f"model {model.name!r} of class {type(model).__name__}. Train it "
            f"in Distiller(student, teacher), or leave {name} out."
        )


class KDTensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, and what distillation does.

    Beside Keras's own (loss, metrics, the loss's parts), under `train`:

    - histograms `gradient_scale/all`, `/teacher_right`, `/teacher_wrong`: how
      the loss rescaled the examples' gradients since the last histogram, and
      scalars `.../mean`, `.../reversed_share`, `.../undefined_share`;
    - scalars `distillation/...`: weights and temperature;
    - image `class_similarity`, for losses that use class relations: cosines
      of the logit layers, the teacher's on the left and the student's on the
      right; blue is -1, white 0, red 1.

    Of a student with several outputs, each name holds the output's.

    Where a `fit` resumes, or has an `initial_epoch`, the numbers of batches go
    on from those of the epochs before. What was written of an epoch that was
    interrupted stays, and is written again at the same numbers.

    Args:
        log_dir: folder of the event files; `~` is the home folder.
        histogram_steps: also write histograms every this many batches, at the
            batch's number; by default only at the end of each epoch. Where
            several batches are one execution (`steps_per_execution`), at the
            end of the execution that reaches the number.
        similarity_classes: which classes to show, and in which order: a list
            of class ids (sort them by superclass to see its blocks), or how
            many of the first classes.
        **kwargs: as in `keras.callbacks.TensorBoard`. What is listed above is
            written whatever `update_freq` is.

    Raises:
        TypeError: at the start of training, if it is not that of a Distiller.
        ValueError: if `histogram_steps` is below 1, `log_dir` is empty, or
            `similarity_classes` are not classes.

    Example:
    >>> distiller.fit(train, callbacks=[kd.callbacks.KDTensorBoard("logs")])
    """

    # Reading a metric adds it up over all workers, which all must join.
    every_worker = True

    def __init__(
        self,
        log_dir="logs",
        histogram_steps=None,
        similarity_classes=100,
        **kwargs,
    ):
        super().__init__(kept_path(log_dir, "log_dir"), **kwargs)
        if histogram_steps is not None and histogram_steps < 1:
            raise ValueError(
                "`histogram_steps` counts batches and must be at least 1. "
                f"Received: {histogram_steps}. Leave it out for a histogram "
                "at the end of each epoch."
            )
        self.histogram_steps = histogram_steps
        self.similarity_classes = _class_ids(similarity_classes)
        self._written = {}
        self._windows = 0
        self._similarity_warned = False

    @property
    def _train_writer(self):
        return self._silent_writer or super()._train_writer

    @property
    def _val_writer(self):
        return self._silent_writer or super()._val_writer

    def set_model(self, model):
        """Opens the event files, on the chief alone of several workers."""
        _check_distiller(self, model)
        self._silent_writer = None
        if not distribution.is_chief(distribution.strategy_of(model)):
            import tensorflow as tf

            self._silent_writer = tf.summary.create_noop_writer()
        elif "://" not in self.log_dir:
            # TensorFlow's own message names one of its operations.
            with errors_naming(self.log_dir):
                os.makedirs(self.log_dir, exist_ok=True)
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Looks whether there are such classes."""
        super().on_train_begin(logs)
        self._begins = True
        for head in self.model.distilled_heads:
            similarity = getattr(head.loss, "class_similarity", None)
            if similarity is not None:
                _class_ids(self.similarity_classes, len(similarity.weights))

    def on_epoch_begin(self, epoch, logs=None):
        """Starts counting again from 0, as the metrics do."""
        super().on_epoch_begin(epoch, logs)
        if self._begins and epoch:
            # Keras counts batches, and seconds per step, from 0.
            private.set_batches_before(self, *self._before(epoch))
        self._begins = False
        self._written = {}
        self._windows = 0

    def _before(self, epoch):
        """Executions and steps of the epochs before this one."""
        steps = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        by_epoch = self.params.get("steps") or steps / epoch
        at_once = self.model.steps_per_execution
        return epoch * math.ceil(by_epoch / at_once), steps

    def on_train_batch_end(self, batch, logs=None):
        """Writes histograms every `histogram_steps` batches."""
        super().on_train_batch_end(batch, logs)
        if not self.histogram_steps:
            return
        # An execution of several steps may pass a multiple without ending on
        # one.
        windows = (batch + 1) // self.histogram_steps
        if windows > self._windows:
            self._windows = windows
            self._log_gradient_scales()

    def on_epoch_end(self, epoch, logs=None):
        """Writes what the epoch gave."""
        super().on_epoch_end(epoch, logs)
        self._log_gradient_scales()
        with self._always_writing():
            for head in self.model.distilled_heads:
                output = "" if head.name is None else f"{head.name}/"
                for name, value in head.loss.tunables.items():
                    self.summary.scalar(
                        f"distillation/{output}{name}", value, step=epoch
                    )
                self._log_class_similarity(head, output, epoch)

    @contextlib.contextmanager
    def _always_writing(self):
        """Writes to `train`, in batches that `update_freq` skips as well."""
        with self._train_writer.as_default(), self.summary.record_if(True):
            yield

    def _log_gradient_scales(self):
        step = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        with self._always_writing():
            for group, metric in self.model.gradient_scales.items():
                since = self._written.get(group)
                summary = metric.summary(since)
                self._written[group] = metric.snapshot()
                if not summary["count"] and not summary["undefined_share"]:
                    continue
                name = f"gradient_scale/{group}"
                self._write_histogram(name, summary, step)
                for key in ("mean", "reversed_share", "undefined_share"):
                    self.summary.scalar(f"{name}/{key}", summary[key], step)

    def _write_histogram(self, name, summary, step):
        # TensorBoard's summary op would bin raw values again; these are
        # binned already, so its storage format is written directly.
        from tensorboard.plugins.histogram import metadata

        edges = summary["edges"]
        buckets = np.stack(
            [edges[:-1], edges[1:], summary["histogram"]], axis=-1
        )
        self.summary.write(
            tag=name,
            tensor=buckets.astype("float64"),
            step=step,
            metadata=metadata.create_summary_metadata(
                display_name=None,
                description="w: how the loss rescales an example's gradient",
            ),
        )

    def _log_class_similarity(self, head, output, epoch):
        similarity = getattr(head.loss, "class_similarity", None)
        if similarity is None:
            return
        try:
            student = logit_weights(
                model_of_output(self.model.student, head.name)
            )
        except ValueError as error:
            if not self._similarity_warned:
                warnings.warn(
                    f"No image of the student's class similarity: {error}",
                    stacklevel=2,
                )
            self._similarity_warned = True
            return
        classes = self.similarity_classes
        if isinstance(classes, int):
            shared = min(len(similarity.weights), len(student))
            classes = np.arange(min(classes, shared))
        image = similarity_image(similarity.weights[classes], student[classes])
        name = f"{output}class_similarity"
        self.summary.image(name, image[None], step=epoch)


def _class_ids(classes, num_classes=None):
    """`similarity_classes` as a number or a list of integers.

    Raises:
        ValueError: if they are not classes.
    """
    ids = np.asarray(classes)
    received = ids.tolist() if ids.dtype.kind in "iu" else repr(classes)
    are_classes = ids.dtype.kind in "iu" and ids.ndim <= 1 and ids.size
    if are_classes and ids.ndim == 0:
        are_classes = ids >= 1
    elif are_classes:
        is_outside = ids < 0
        if num_classes is not None:
            is_outside |= ids >= num_classes
        are_classes = not is_outside.any()
        received = ids[is_outside].tolist()
    if not are_classes:
        of = "" if num_classes is None else f" of {num_classes} classes"
        raise ValueError(
            "`similarity_classes` are class ids, or how many of the first "
            f"classes to show. Received: {received}{of}. Give a list such as "
            "[0, 1, 2], or a number of at least 1."
        )
    return ids.tolist()


def similarity_image(teacher_weights, student_weights):
    """Class similarities of teacher and student side by side.

    Args:
        teacher_weights: [classes, features] rows of the teacher's logit layer.
        student_weights: [classes, features'] rows of the student's.

    Returns:
        [height, width, 3] float32 array in [0, 1]: the teacher's cosines on
        the left, the student's on the right; blue is -1, white 0, red 1.
    """
    panels = [
        _diverging_colours(class_similarity(weights))
        for weights in (teacher_weights, student_weights)
    ]
    scale = max(1, -(-400 // len(teacher_weights)))
    panels = [p.repeat(scale, axis=0).repeat(scale, axis=1) for p in panels]
    gap = np.zeros((len(panels[0]), max(8, scale), 3))
    return np.concatenate([panels[0], gap, panels[1]], axis=1).astype("float32")


def _diverging_colours(values):
    """Blue for -1 through white for 0 to red for 1, [..., 3]."""
    anchors = np.array([[0.13, 0.26, 0.68], [1, 1, 1], [0.70, 0.07, 0.13]])
    values = np.clip(values, -1, 1)
    return np.stack(
        [np.interp(values, [-1, 0, 1], channel) for channel in anchors.T], -1
    )
