"""The Distiller: a Keras model that trains a student with a partial-KD loss."""

import contextlib
import functools
import inspect
import threading
import warnings
import weakref

import keras
from keras import ops

from keras_kd import (
    backend,
    batch,
    by_output,
    chunks,
    data_errors,
    distribution,
    fingerprint,
    losses,
    precomputed,
    preprocessing,
    soundness,
)
from keras_kd import data as any_data
from keras_kd.backend.private import (
    compiled_metrics,
    flatten_layers,
    set_initial_epoch,
    set_loss_tracker,
    update_compiled_metrics,
)
from keras_kd.batch import EVALUATION, TEACHER_FINGERPRINT, UNKNOWN_TEACHER
from keras_kd.head import Head, PlainHead
from keras_kd.logits import (
    CarriedLogits,
    LogitReader,
    check_model,
    model_of_output,
    shared_class_count,
)
from keras_kd.losses.base import mean_over_replicas, untold_arguments
from keras_kd.metrics import GradientScale
from keras_kd.model_inputs import (
    check_number_of_inputs,
    check_order,
    inputs_of,
    outputs_of,
)
from keras_kd.monitors import TOLD, InvalidExamples, LossTracker
from keras_kd.sharing import check_sharing
from keras_kd.states import all_variables

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


class _Settled(dict):
    """What a batch is to each head, by name."""


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
    cross-entropy on the labels, each distillation term before its weight and
    T ** 2, and the mean gradient scale. `gradient_scales` holds the histograms.
    Of data without labels they hold only what reads none; a mean over labelled
    examples is NaN in an epoch that has none.

    Args:
        student: a `keras.Model` with one output, [..., classes], or several
            with names. The `preprocessor` of a KerasHub task is applied to the
            data, as in the task's own `fit`; set it to `None` for images that
            are preprocessed already (token ids are recognised).
        teacher: a `keras.Model` with the same input and classes; may be left
            out for losses that need nothing from it per example, and for data
            that carries its statistics. Another one may be assigned later. Of
            inputs with names each model reads those that it has. A
            KerasHub task whose preprocessor differs from the student's gets
            the raw data by its own, such as images of another size.
        student_output: what the student gives: "logits", "probabilities" or
            "log_probabilities" of classes, or "binary_logits" or
            "binary_probabilities" of sigmoid units. `None` reads it from the
            student's graph, or expects logits where there is no graph (of a
            single unit, a sigmoid's). Values of the first batch that show
            something else are refused. Of several outputs, a dict by name.
        teacher_output: likewise, of the teacher.
        shared_classes: how many classes student and teacher both begin with,
            where their numbers differ, as with vocabularies that are padded;
            `True` for the smaller number. The distillation term and w compare
            the distributions over these classes alone. The cross-entropy on
            the labels, which are among them, stays that over all of the
            student's classes, so that the others become improbable, and so
            do metrics. `KDSim` reads the rows of these classes; a matrix that
            you give has to have no others. A teacher whose statistics are
            cached has to be cut by you, as in
            `keras.Model(t.inputs, t.outputs[0][..., :n])`. Of several
            outputs, a dict by name.
        save_teacher: whether the saved Distiller holds the teacher. If not,
            it holds what the loss took from the teacher's weights, and the
            teacher has to be assigned after loading where it must run.
        gradient_scale: a `GradientScale` that gives the bins of the
            histograms, or `False` for no histograms.
        name: optional name.
        logit_chunks: in how many chunks of tokens logits, losses, metrics and
            gradients are computed, one after another, in training and in
            `evaluate`, so that no array of [tokens, classes] is held; for a
            large vocabulary. The last chunk may be smaller. "auto" chooses the
            number by size. Student and, where it runs, teacher are split at
            their logit layers: a `Dense`, or an embedding used in reverse,
            after which activations, a scale or a soft cap may follow. The
            results are the same. `None` computes all logits at once, as
            `predict` always does.

    Raises:
        TypeError: if student or teacher is not a `keras.Model`, or
            `gradient_scale` neither a `GradientScale` nor `False`.
        ValueError: if they have different numbers of classes or tokenizers
            of different vocabularies, are one object or share variables that
            training changes, the student has a training step or a loss of
            its own or was made in another scope of `tf.distribute`, or
            `logit_chunks` is not a number of chunks.

    Example:
    ```python
    distiller = kd.Distiller(student, teacher)
    distiller.compile(optimizer="adam", loss=kd.KDPtSim(), metrics=["accuracy"])
    distiller.fit(train, validation_data=test)
    distiller.student.save("student.keras")
    ```

    Data are (x, labels) or (x, labels, sample_weight). Labels are integer
    class ids of shape [batch] or [batch, time], or soft: a share for each
    class, [batch, classes] or [batch, time, classes], such as one-hot labels
    or those of MixUp. Of sigmoid units they are 0 or 1. Losses that read no
    label (`KD`, `KDTopK`, `KDSampled`) also train on x alone, and on examples
    that are marked as unlabelled by the class id -1 or a row of zeros; of
    sigmoid units by -1, each for itself. Labels may be a dict with "labels" and
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
        shared_classes=None,
        logit_chunks=None,
    ):
        check_model("student", student)
        _check_overrides(student)
        chunks.check_chunks(logit_chunks)
        # The student's policy decides on loss scaling; inputs are left to the
        # student's own layers to cast.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        distribution.check_scope(self, student)
        self.student = student
        self.save_teacher = save_teacher
        self.student_output = student_output
        self.teacher_output = teacher_output
        self.shared_classes = shared_classes
        self.logit_chunks = logit_chunks
        self._chunked = _Untracked(
            None if logit_chunks is None else chunks.ChunkedStep(self)
        )
        # A replica's thread may be in a step of evaluation while another one's
        # is not.
        self._thread = _Untracked(threading.local())
        self._class_weight = {}
        self._prepare = _Untracked({})
        self._compiled_with = _Untracked({})
        self._teacher_number = _Untracked(None)
        self._is_teacher_noted = False
        self._known_number = _Untracked(fingerprint.KnownNumber())
        # Out of Keras's tracking, which ends when a model is built: a
        # Distiller can be compiled again with a loss of other terms.
        self._heads = _Untracked([])
        if gradient_scale is None:
            gradient_scale = GradientScale()
        is_scale = isinstance(gradient_scale, GradientScale)
        if not (is_scale or gradient_scale is False):
            raise TypeError(
                "`gradient_scale` gives the bins of the histograms of w. "
                f"Received: {gradient_scale!r}. Pass a "
                "keras_kd.metrics.GradientScale(low=-3, high=5, bins=80), "
                "False for no histograms, or leave it out."
            )
        self._bins = _Untracked(gradient_scale or None)
        self._draws = _Draws(
            lambda: self.random_variables if self.compiled else []
        )
        self.teacher = teacher
        self._num_shared()
        for role in ("student", "teacher"):
            self._check_kinds(role)
        if student.built:
            self.built = True

    def _check_kinds(self, role):
        """Refuses a kind of output that doesn't exist."""
        kinds = getattr(self, f"{role}_output")
        names = kinds if isinstance(kinds, dict) else [None]
        for name in names:
            self.reader(role, name)

    def reader(self, role, output=None):
        """The `LogitReader` of a model.

        Args:
            role: "student" or "teacher".
            output: name of the output; `None` for the only one.

        Returns:
            A `LogitReader`; `None` of a teacher that is not there.
        """
        model, kind = getattr(self, role), self._kind_of(role, output)
        if model is None and kind is None:
            return None
        shared = self._num_shared(output)
        reader = LogitReader(model, kind, role, output, shared)
        return None if model is None else reader

    def reader_of_carried(self, output=None):
        """What reads the teacher's logits where data carry them.

        Args:
            output: name of the output; `None` for the only one.

        Returns:
            A `CarriedLogits`.
        """
        return CarriedLogits(self._kind_of("teacher", output), output)

    def _kind_of(self, role, output):
        """What a model is said to give, or `None`."""
        kind = getattr(self, f"{role}_output")
        return kind.get(output) if isinstance(kind, dict) else kind

    def _shared_of(self, output):
        """What `shared_classes` says of an output."""
        shared = self.shared_classes
        return shared.get(output) if isinstance(shared, dict) else shared

    def _num_shared(self, output=None):
        """How many classes both models begin with; `None` for all."""
        return shared_class_count(
            self.student, self.teacher, self._shared_of(output), output
        )

    @property
    def heads(self):
        """List of what each output of the student is trained on."""
        return self._heads.value

    @property
    def has_metrics(self):
        """Whether it is compiled with metrics that read labels."""
        return compiled_metrics(self) is not None

    @property
    def is_evaluating(self):
        """Whether the student is evaluated now in this thread, not trained."""
        return getattr(self._thread.value, "is_evaluating", False)

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
            shared_class_count(self.student, value, self._shared_of(None))
            preprocessing.check_tokenizers(self.student, value)
            check_sharing(self.student, value, self.save_teacher)
        # Past Keras, which would track it: it would be trained, its
        # regularisation would join the loss and `trainable` would reach it.
        object.__setattr__(self, name, value)
        self._is_teacher_noted = False
        self._known_number.value.forget()
        for head in self.distilled_heads:
            head.forget_teacher()
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
        """Builds the student; its first call does where it has no `build`."""
        has_own = type(self.student).build is not keras.Layer.build
        if has_own and not self.student.built:
            self.student.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        """The student's outputs; its features in a step by chunks."""
        if self._runs_by_chunks:
            return self._chunked.value.features(inputs, training)
        inputs = inputs_of(self.student, inputs, "student")
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

        A loss object belongs to the first Distiller, and the first output, that
        is compiled with it; another one takes a copy, with the values that it
        has then. Change it by `distiller.loss`, as in
        `distiller.loss.weight = 0.3`.

        Args:
            optimizer: as in `keras.Model.compile`.
            loss: a `keras_kd.losses.DistillationLoss`, or its name. Of a
                student with several outputs, a dict by their names, or a list
                in the order of those that it gives: one with a distillation
                loss is distilled from the teacher's output of the same name,
                one with a loss of Keras's is trained on its label alone.
                Labels are then by output as well.
            loss_weights: with several outputs, floats in the same form; 1 by
                default.
            metrics: as in `keras.Model.compile`, of the labels and the
                student's outputs; of several that have names, a dict. Missing
                labels do not count, nor an example's other sigmoid units where
                one has none. Those that `ignore_class` leaves out of the loss
                do, as in Keras; `keras.metrics.MeanIoU(ignore_class=255)` and
                sample weights of 0 for `weighted_metrics` leave them out.
            weighted_metrics: as in `keras.Model.compile`.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: if `loss` is not a distillation loss, or names an
                output that does not exist; if it needs a logit layer that is
                not found; if `loss_weights` are given for one output; if
                student and teacher share what training changes; or if the
                student can't be split for `logit_chunks`, or a metric is not
                the same by chunks.
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
        if isinstance(loss, (list, tuple)):
            loss = by_output.by_name(self.student, "loss", loss)
            loss_weights = by_output.by_name(
                self.student, "loss_weights", loss_weights
            )
        is_by_name = isinstance(loss, dict)
        if loss_weights is not None and not is_by_name:
            raise ValueError(
                "A distillation loss carries its own weights. Received: "
                f"loss_weights={loss_weights}. Pass them to the loss, as in "
                "KDPt(weight=0.3)."
            )
        given = loss if is_by_name else {None: loss}
        weights = loss_weights or {}
        if is_by_name:
            by_output.check_names(self.student, "loss", given)
            by_output.check_names(self.student, "loss_weights", weights)
            if len(given) > 1:
                metrics, weighted_metrics = (
                    by_output.by_name(self.student, "metrics", each)
                    for each in (metrics, weighted_metrics)
                )
            by_output.check_metrics(given, metrics, weighted_metrics)
        with self._scope():
            found = {}
            for name, each in given.items():
                if not is_by_name or _is_distillation(each):
                    each = self._own(losses.get(each), found.values())
                found[name] = each
            heads = [
                self._head(name, each, weights.get(name, 1.0))
                for name, each in found.items()
            ]
            optimizer = keras.optimizers.get(optimizer)
            self._invalid_examples = _Untracked(InvalidExamples(len(heads)))
            # As "int", which on TensorFlow a GPU's memory can hold.
            self._teacher_number.value = keras.Variable(
                UNKNOWN_TEACHER, dtype="int", trainable=False
            )
            self._is_teacher_noted = False
        loss = found if is_by_name else found[None]
        arguments = {
            "optimizer": optimizer,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **kwargs,
        }
        self._heads.value = heads
        is_auto = kwargs.get("jit_compile", "auto") == "auto"
        if is_auto and not self._teacher_supports_jit():
            arguments["jit_compile"] = False
        if self.logit_chunks is not None:
            self._chunked.value.check([metrics, weighted_metrics])
        strategy = distribution.strategy_of(self)
        distribution.check_reductions([head.loss for head in heads], strategy)
        distribution.check_optimizer(optimizer, strategy)
        super().compile(**{**arguments, "optimizer": self._scaled(**arguments)})
        with self._scope():
            set_loss_tracker(self, LossTracker(name="loss"))
        self.loss = loss
        self._compile_arguments = _Untracked(
            {**arguments, "loss": loss, "loss_weights": loss_weights}
        )

    def _teacher_supports_jit(self):
        """Whether the teacher can be compiled with the step it runs in.

        Keras asks the layers that it tracks, which are the student's.
        """
        return self.teacher is None or all(
            layer.supports_jit for layer in flatten_layers(self.teacher)
        )

    def _head(self, name, loss, weight):
        """What one output is trained on."""
        if isinstance(loss, losses.DistillationLoss):
            if name is not None:
                self._num_shared(name)
            return Head(self, name, loss, self._bins.value, weight)
        return PlainHead(self, name, loss, weight)

    def _own(self, loss, others):
        """The loss, or a copy if another Distiller or output has it."""
        owner = loss.owner and loss.owner()
        is_taken = any(loss is other for other in others)
        if is_taken or (owner is not None and owner is not self):
            loss = loss.copy()
        loss.owner = weakref.ref(self)
        return loss

    def _bind_teacher(self):
        """Lets the loss read the teacher's weights as they are now."""
        before = self.loss_variables
        with self._scope():
            for head in self.distilled_heads:
                teacher = self.teacher
                if teacher is not None:
                    teacher = model_of_output(teacher, head.name)
                shared = self._num_shared(head.name)
                # A user's own loss may know of no shared classes.
                counts = () if shared is None else (shared,)
                head.loss.bind_teacher(teacher, *counts)
        after = self.loss_variables
        if list(map(id, before)) != list(map(id, after)):
            # A compiled step reads the variables that it was made with.
            self.train_function = self.test_function = None

    @property
    def distilled_heads(self):
        """List of the heads with a distillation loss."""
        return [head for head in self.heads if isinstance(head, Head)]

    @property
    def loss_variables(self):
        """Variables of the distillation losses, which a step reads."""
        return [v for head in self.distilled_heads for v in head.loss.variables]

    @property
    def random_variables(self):
        """The state of random numbers of the losses, for a backup."""
        losses = [head.loss for head in self.distilled_heads]
        return [v for loss in losses for v in loss.random_variables]

    def make_train_function(self, force=False):
        """Makes the training step; Keras calls it whenever training starts."""
        if self.train_function is None or force:
            check_sharing(self.student, self.teacher, self.save_teacher)
        self._bind_teacher()
        models = (self.student, self.teacher)
        return super().make_train_function(
            self._is_stale("train", *models) or force
        )

    def make_test_function(self, force=False):
        """Makes the evaluation step; Keras calls it before each evaluation."""
        # On JAX the teacher's variables are among what this step is given.
        is_stale = self._is_stale("test", self.student, self.teacher)
        return super().make_test_function(is_stale or force)

    def make_predict_function(self, force=False):
        """Makes the step of `predict`, which calls it each time."""
        is_stale = self._is_stale("predict", self.student)
        return super().make_predict_function(is_stale or force)

    def _is_stale(self, step, *models):
        """Whether models have other variables than a step was compiled with.

        `quantize` and `enable_lora` exchange or add some. Keras makes the steps
        of the model itself again, but not those of a Distiller that holds it.
        """
        now = [
            [] if model is None else all_variables(model) for model in models
        ]
        kept = self._compiled_with.value.get(step, [[]] * len(now))
        # Without keeping alive what a model no longer has.
        self._compiled_with.value[step] = [
            [weakref.ref(variable) for variable in variables]
            for variables in now
        ]
        return any(
            # A model that had none is built by its first step.
            before and [id(ref()) for ref in before] != list(map(id, after))
            for before, after in zip(kept, now, strict=True)
        )

    def load_weights(self, *args, **kwargs):
        """As `keras.Model.load_weights`.

        A file that holds a teacher's weights sets those of the teacher too;
        where that changes them, there is a warning.
        """
        is_set = self.save_teacher and self.teacher is not None
        before = is_set and fingerprint.teacher_fingerprint(self.teacher)
        super().load_weights(*args, **kwargs)
        if is_set and fingerprint.teacher_fingerprint(self.teacher) != before:
            warnings.warn(
                f"The file set the weights of the teacher {self.teacher.name!r}"
                " to others than it had. To keep a teacher's own, assign it "
                "after loading, or save with Distiller(save_teacher=False).",
                stacklevel=2,
            )
        # Also while training: BackupAndRestore calls it when that has begun.
        if self.compiled and self.teacher is not None:
            self._bind_teacher()

    def _scaled(self, optimizer, auto_scale_loss=True, **_):
        """The optimizer, in mixed precision with its loss scaled."""
        half = self.dtype_policy.name == "mixed_float16"
        kind = keras.optimizers.LossScaleOptimizer
        if auto_scale_loss and half and not isinstance(optimizer, kind):
            optimizer = kind(optimizer, name="loss_scale_optimizer")
        replicas = distribution.num_replicas(distribution.strategy_of(self))
        if isinstance(optimizer, kind) and replicas > 1:
            distribution.share_overflow(optimizer)
        return optimizer

    def get_compile_config(self):
        """The serialised arguments of `compile`."""
        if not self.compiled:
            return None
        for head in self.distilled_heads:
            untold = untold_arguments(head.loss)
            if untold:
                warnings.warn(
                    f"The file does not hold {untold} of the loss "
                    f"{type(head.loss).__name__}, whose `get_config` leaves "
                    "them out: a loaded Distiller has their defaults.",
                    stacklevel=2,
                )
        return keras.saving.serialize_keras_object(
            self._compile_arguments.value
        )

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
        did not run); of several outputs, "species/all" and so on.
        """
        if not self.compiled:
            return {}
        self.sync_variables()
        return {
            group if head.name is None else f"{head.name}/{group}": scale
            for head in self.distilled_heads
            for group, scale in head.monitors.scales.items()
        }

    @property
    def invalid_examples(self):
        """The `InvalidExamples` that steps count, for the host to check."""
        return self._invalid_examples.value

    @property
    def metrics(self):
        """Keras's metrics, and in training those of the loss's parts."""
        metrics = super().metrics
        if not self.compiled:
            return metrics
        of_outputs = [head.tracker for head in self.heads]
        metrics = [*metrics, *(each for each in of_outputs if each is not None)]
        if self.is_evaluating:
            return metrics
        if self._is_without_labels:
            of_labels = compiled_metrics(self)
            metrics = [m for m in metrics if m is not of_labels]
        parts = [head.monitors.metrics for head in self.distilled_heads]
        return [*metrics, *(metric for each in parts for metric in each)]

    def get_metrics_result(self):
        """Current metrics; of the gradient scales, the mean over all.

        Of an output whose data have no labels, nothing that reads them.
        """
        results = super().get_metrics_result()
        for head in self.distilled_heads:
            monitors = head.monitors
            unseen = [m for g, m in monitors.scales.items() if g != "all"]
            if head.is_without_labels:
                unseen += monitors.of_labels
            for metric in unseen:
                results.pop(metric.name, None)
        return results

    # -- one step ------------------------------------------------------------

    def train_step(self, *args):
        """One step of training; see `keras_kd.backend`."""
        with self._step():
            return super().train_step(*args)

    def test_step(self, *args):
        """One step of evaluation; see `keras_kd.backend`."""
        with self._step():
            return super().test_step(*args)

    def _step(self):
        by_chunks = self._chunked.value
        return by_chunks.running() if by_chunks else contextlib.nullcontext()

    @property
    def _runs_by_chunks(self):
        """Whether a step runs now that computes logits by chunks."""
        by_chunks = self._chunked.value
        return by_chunks is not None and by_chunks.is_running

    def with_teacher(self, data):
        """Adds to a batch what the loss needs from the teacher.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            (x, y, sample_weight), with y a dict.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        inputs, y = preprocessing.inputs_of_teacher(x, y)
        return x, self._with_statistics(x, inputs, y), sample_weight

    def _width(self, x, output):
        """Number of an output's units, before the student runs."""
        outputs = getattr(self.student, "outputs", None)
        if not outputs:
            inputs = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype), x
            )
            outputs = outputs_of(self.student, inputs, "student")
        return self.reader("student", output).single(outputs).shape[-1]

    def _with_statistics(self, x, inputs, y):
        """Adds to the labels what the losses need from the teacher.

        Args:
            x: the student's inputs.
            inputs: the teacher's.
            y: labels, and what comes beside them.
        """
        by_head = {
            head.name: batch.as_dict(part)
            for head, part in by_output.parts(self.student, self.heads, y)
        }
        widths = {
            head.name: functools.partial(self._width, x, head.name)
            for head in self.heads
        }
        for head in self.distilled_heads:
            part = by_head[head.name]
            head.check_keys(part)
            by_head[head.name] = head.with_known_classes(
                part, widths[head.name]
            )
        if self._runs_by_chunks:
            return self._chunked.value.with_teacher(by_head, x, inputs)
        outputs = []

        def teacher_outputs():
            if not outputs:
                self.check_teacher(by_head)
                read = self.inputs_of_teacher(x, inputs)
                outputs.append(self.teacher(read, training=False))
            return outputs[0]

        by_head = {
            head.name: head.with_statistics(
                by_head[head.name], teacher_outputs, widths[head.name]
            )
            for head in self.heads
        }
        return by_head[None] if None in by_head else by_head

    def inputs_of_teacher(self, x, inputs):
        """What the teacher reads of its inputs.

        Args:
            x: the student's inputs.
            inputs: the teacher's, which may be the same.
        """
        if inputs is x:
            check_order(self.student, self.teacher, x)
        return inputs_of(self.teacher, inputs, "teacher")

    def check_teacher(self, by_head):
        """Refuses a loss that needs a teacher where there is none.

        Args:
            by_head: dict by head of what the data hold.

        Raises:
            ValueError: naming what is missing.
        """
        if self.teacher is not None:
            return
        for head in self.distilled_heads:
            y = by_head[head.name]
            missing = head.missing_statistics(y)
            if missing:
                raise ValueError(
                    f"{type(head.loss).__name__} needs {missing} from a "
                    "teacher. Received: teacher=None and a data set with "
                    f"{sorted(y)}. Pass Distiller(student, teacher), or data "
                    "that carry the statistics, as TeacherCache.attach gives, "
                    "or use LabelSmoothing, which needs no teacher."
                )

    def settle(self, y, y_pred, sample_weight=None):
        """What a batch is to losses and metrics.

        Args:
            y: labels, or a dict of labels and teacher statistics (of several
                outputs, a dict of these by name); or what `settle` returned,
                which is returned as it is.
            y_pred: the student's outputs.
            sample_weight: optional, [batch] or the shape of the labels.

        Returns:
            Dict of a `keras_kd.batch.Batch` by head; of a
            `keras_kd.chunks.Unsettled` in a step by chunks.
        """
        if isinstance(y, _Settled):
            return y
        by_class = None if self.is_evaluating else self._class_weight
        by_chunks = self._runs_by_chunks
        return _Settled(
            (
                head.name,
                (chunks.Unsettled if by_chunks else head.settle)(
                    part, y_pred, by_output.one_of(weight), by_class
                ),
            )
            for (head, part), (_, weight) in zip(
                by_output.parts(self.student, self.heads, y),
                by_output.parts(
                    self.student, self.heads, sample_weight, "sample weights"
                ),
                strict=True,
            )
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
        # First of all: replicas share the lists in which layers keep them, and
        # take turns wherever one waits for the others.
        of_layers = super().compute_loss() if training and self.losses else None
        settled = self.settle(y, y_pred, sample_weight)
        for_all = {"inputs": soundness.bad_inputs(x)}
        if of_layers is not None:
            for_all |= soundness.of_layers(of_layers, y_pred)
        total, updates = 0.0, []
        for index, head in enumerate(self.heads):
            part = settled[head.name]
            if isinstance(part, chunks.Unsettled):
                *sums, roles, counts = self._chunked.value.loss(part, training)
                loss = mean_over_replicas(*sums)
            else:
                values = head.losses(part, training)
                roles, counts = soundness.counts(
                    self, index, y_pred, part, values, training
                )
                loss = head.reduced(values, part)
            counts = soundness.with_weights(counts, loss)
            updates.append((roles, {**counts, **for_all}))
            if head.tracker is not None:
                rows = ops.shape(keras.tree.flatten(y_pred)[0])[0]
                head.tracker.update_state(loss, sample_weight=rows)
                loss = head.weight * loss
            total = total + loss
        self.invalid_examples.update_state(updates)
        invalid = sum(
            value
            for _, counts in updates
            for name, value in counts.items()
            if name not in TOLD
        )
        if of_layers is not None:
            total = total + ops.cast(of_layers, total.dtype)
        # So that all replicas agree whether to train on the batch.
        invalid = invalid + soundness.not_finite(total)
        is_invalid = distribution.sum_over_replicas(invalid) > 0
        return ops.where(is_invalid, float("nan"), total)

    def count_gradients(self, loss, gradients):
        """Counts gradients that are not finite though the loss is.

        Args:
            loss: what they are of.
            gradients: iterable of tensors, `None` for weights without.

        Returns:
            A scalar, 0 if the student can be trained on them.
        """
        bad = soundness.of_gradients(gradients, self.optimizer)
        bad = ops.where(soundness.not_finite(loss) > 0, 0.0, bad)
        self.invalid_examples.add("gradients", bad)
        return bad

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the compiled metrics with labels and student outputs.

        Half-precision outputs are given in float32, as some metrics ask.
        """
        if self._runs_by_chunks:
            return self.get_metrics_result()
        settled = self.settle(y, y_pred, sample_weight)
        was_known = self._is_without_labels
        found = {
            head.name: head.metric_arguments(settled[head.name], y_pred)
            for head in self.heads
        }
        found = {name: each for name, each in found.items() if each is not None}
        if self._is_without_labels and not self.is_evaluating:
            if not was_known:
                self._warn_of_metrics()
            return self.get_metrics_result()
        if None in found:
            arguments = found[None]
        else:
            arguments = (
                {name: each[i] for name, each in found.items()}
                for i in range(4)
            )
        update_compiled_metrics(self, *arguments)
        return self.get_metrics_result()

    def _check_outputs(self, y):
        """Before training on arrays that hold a teacher's outputs."""
        known = getattr(self.student, "outputs", None)
        if not isinstance(y, dict) or not known:
            return
        for head, part in by_output.parts(self.student, self.heads, y):
            # Logits may be of more classes than the student's; the step reads
            # those that it has.
            if precomputed.carried(part) not in (None, batch.TEACHER_LOGITS):
                width = self._width(None, head.name)
                precomputed.check_outputs(part, width)

    @property
    def teacher_number(self):
        """Variable, the number of the teacher's fingerprint.

        A step compares it with that of the statistics which the data carry;
        `UNKNOWN_TEACHER` without a teacher. `None` before `compile`.
        """
        return self._teacher_number.value

    def note_teacher_of(self, data, values=contextlib.nullcontext):
        """Before a step whose data may say whose statistics they carry.

        The teacher's number costs a pass over its weights, so it is worked out
        once in a training, at the first batch that has such statistics.

        Args:
            data: a batch as the step gets it, or the specs of one.
            values: function that gives a context in which the variables have
                their values.
        """
        if self._is_teacher_noted or self.is_evaluating:
            return
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if _names_a_teacher(y):
            with values():
                self._note_teacher()

    def _note_teacher(self):
        """Works out the number of the teacher as it is now."""
        self._is_teacher_noted = True
        number = UNKNOWN_TEACHER
        if self.teacher is not None:
            number = self._known_number.value.of(self.teacher)
        with self._scope():
            self.teacher_number.assign(number)

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
        # That of a backup which an earlier `fit` resumed from, of which Keras
        # makes the start of every later one.
        set_initial_epoch(self, None)
        given = (x, y, batch_size, epochs, verbose, callbacks, *args)
        given = _by_name(super().fit, *given, **kwargs)
        check_number_of_inputs(self.student, x, y)
        prepare = self._preprocessing(with_teacher=True)
        given = prepare.fit_arguments(given)
        given = _with_weights_by_entry(given)
        self._build_models(given["x"])
        self._note_labels(**{"y": None, **given})
        self._is_teacher_noted = False
        self._known_number.value.forget()
        self._check_outputs(given.get("y"))
        self._note_class_weight(class_weight)
        strategy = distribution.strategy_of(self)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given["callbacks"] = distribution.worker_callbacks(
                callbacks, strategy
            )
        if isinstance(given["x"], any_data.EpochsOfArrays):
            given["callbacks"].append(any_data.EpochOrder(given["x"]))
        with self._running():
            return super().fit(**given)

    def train_on_batch(
        self,
        x,
        y=None,
        sample_weight=None,
        class_weight=None,
        return_dict=False,
    ):
        """Trains on one batch; arguments as in `keras.Model.train_on_batch`."""
        self._check_whole_batch()
        # Its weights may have changed since the last batch.
        self._is_teacher_noted = False
        if self.compiled:
            self.note_teacher_of((x, y))
        self._note_labels(x, y)
        self._note_class_weight(class_weight)
        prepare = self._preprocessing(with_teacher=True)
        x, y, sample_weight = prepare.on_batch(x, y, sample_weight)
        self._build_models(x)
        with self._running():
            return super().train_on_batch(
                x, y, sample_weight, return_dict=return_dict
            )

    def _note_labels(
        self, x, y, validation_data=None, validation_split=0.0, **_
    ):
        """Looks whether there are labels where they are needed."""
        was_known = self._is_without_labels

        of_only_output = functools.partial(
            by_output.of_only_output, self.student
        )

        def lack(x, y, head):
            return batch.lack_labels(x, y, head.name, of_only_output)

        for head in self.distilled_heads:
            before = head.is_without_labels
            head.is_without_labels = lack(x, y, head)
            if before and not head.is_without_labels:
                # A step that was compiled without metrics can't make them.
                self.train_function = None
            if head.is_without_labels and head.label_reader is not None:
                batch.refuse_missing_labels(head.label_reader)
            if isinstance(validation_data, (list, tuple)):
                unlabelled = len(validation_data) < 2 or lack(
                    *validation_data[:2], head
                )
            else:
                unlabelled = lack(validation_data, None, head)
            if unlabelled or (validation_split and head.is_without_labels):
                batch.refuse_missing_labels(EVALUATION)
        if self._is_without_labels and not was_known:
            self._warn_of_metrics()

    @property
    def _is_without_labels(self):
        """Whether the data that are trained on lack an output's labels."""
        return any(head.is_without_labels for head in self.heads)

    def _warn_of_metrics(self):
        """Says that metrics of labels are not in the logs."""
        if self.has_metrics:
            warnings.warn(
                "Metrics compare the student with labels. Received: data to "
                "train on that have no labels. The metrics are left out of the "
                "logs; pass validation data with labels to have them of those.",
                stacklevel=4,
            )

    def _note_class_weight(self, class_weight):
        """Takes the class weights of the training that begins."""
        if class_weight is not None and not isinstance(class_weight, dict):
            raise ValueError(
                "`class_weight` must be a dict from class ids to weights. "
                f"Received: {class_weight!r}. Pass one, as in "
                "dict(enumerate(weights))."
            )
        class_weight = dict(class_weight or {})
        if class_weight and len(self.heads) > 1:
            raise ValueError(
                "Class weights are for a student with one output, as in Keras. "
                f"Received: class_weight={class_weight} and the outputs "
                f"{[head.name for head in self.heads]}. Pass sample weights by "
                "output."
            )
        if class_weight != self._class_weight:
            self._class_weight = class_weight
            self.train_function = None

    def evaluate(self, *args, **kwargs):
        """Plain cross-entropy and metrics; as `keras.Model.evaluate`."""
        given = _by_name(super().evaluate, *args, **kwargs)
        check_number_of_inputs(self.student, given.get("x"), given.get("y"))
        # What `fit` evaluates is preprocessed already.
        if not given.get("_use_cached_eval_dataset"):
            prepare = self._preprocessing()
            given = prepare.arguments(given, given.get("batch_size"))
        given = _with_weights_by_entry(given)
        with self.evaluation(), self._running():
            return super().evaluate(**given)

    def predict(self, *args, **kwargs):
        """The student's outputs; as `keras.Model.predict`."""
        given = _by_name(super().predict, *args, **kwargs)
        prepare = self._preprocessing()
        given = prepare.arguments(given, given.get("batch_size"))
        with self._running():
            return super().predict(**given)

    def predict_on_batch(self, x):
        """The student's outputs; as `keras.Model.predict_on_batch`."""
        x, _, _ = self._preprocessing().on_batch(x)
        with self._running():
            return super().predict_on_batch(x)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """As `keras.Model.test_on_batch`, of the student alone."""
        self._check_whole_batch()
        prepare = self._preprocessing()
        x, y, sample_weight = prepare.on_batch(x, y, sample_weight)
        with self.evaluation(), self._running():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    def _check_whole_batch(self):
        """Refuses a sum over replicas that each get the whole batch.

        Keras shares out the batches of `fit`, but not a single one. Of a mean
        the divisor counts as often as the sum.
        """
        replicas = distribution.num_replicas(distribution.strategy_of(self))
        is_sum = any(
            getattr(head.loss, "reduction", None) == "sum"
            for head in self.heads
        )
        if replicas > 1 and is_sum:
            raise ValueError(
                "Of a single batch Keras gives each replica the whole, so a "
                "sum would count it more than once. Received: a loss with "
                f"reduction='sum' and a strategy of {replicas} replicas. Use "
                "`fit` or `evaluate`, or a mean."
            )

    def _preprocessing(self, with_teacher=False):
        """The `Preprocessing` of student and, where it runs, teacher."""
        teacher = self.teacher if with_teacher else None
        made = preprocessing.Preprocessing(self.student, teacher)
        # What is compiled for single batches serves the next ones.
        kept = self._prepare.value.get(with_teacher)
        if kept is None or kept.settings != made.settings:
            self._prepare.value[with_teacher] = kept = made
        return kept

    @contextlib.contextmanager
    def evaluation(self):
        """A context in which the student is evaluated, not trained."""
        before = self.is_evaluating
        self._thread.value.is_evaluating = True
        try:
            yield
        finally:
            self._thread.value.is_evaluating = before

    @contextlib.contextmanager
    def _running(self):
        """A context in which Keras runs steps.

        However it is left, variables have their values: those of the last
        step that came to its end.
        """
        with (
            distribution.lost_worker_as_message(distribution.strategy_of(self)),
            data_errors.raised_plainly(),
        ):
            try:
                yield
            finally:
                self.sync_variables()

    def _scope(self):
        return distribution.scope(distribution.strategy_of(self))

    def _build_models(self, x):
        """Builds both models before callbacks such as BackupAndRestore ask.

        On JAX the weights of a teacher that were made in a step would be lost.
        PyTorch's modules run on made-up values then, which in training would
        move their statistics.
        """
        student = not (self.built and self.student.built)
        reads = any(head.loss.statistics for head in self.distilled_heads)
        teacher = reads and self.teacher is not None and not self.teacher.built
        if not (student or teacher):
            return
        spec = getattr(x, "element_spec", None)
        spec = spec[0] if isinstance(spec, tuple) else x
        leaves = keras.tree.flatten(spec)
        # Of other data, such as those of pandas, Keras makes arrays in `fit`.
        if not all(hasattr(s, "shape") and hasattr(s, "dtype") for s in leaves):
            return
        inputs = keras.tree.map_structure(
            lambda s: keras.KerasTensor(
                (None, *s.shape[1:]),
                keras.backend.standardize_dtype(s.dtype),
            ),
            spec,
        )
        with self._scope():
            if student:
                self(inputs, training=False)
            if teacher:
                read = self.inputs_of_teacher(inputs, inputs)
                # A PyTorch module that doesn't say its shape needs real values.
                with contextlib.suppress(NotImplementedError):
                    self.teacher(read, training=False)
                self.train_function = self.test_function = None

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
            "shared_classes": self.shared_classes,
            "logit_chunks": self.logit_chunks,
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


class _Draws(keras.losses.Loss):
    """What a Distiller's file holds of its losses' random numbers.

    The losses themselves are not saved where the teacher is. Keras saves what
    an attribute of this class holds and, unlike a layer, leaves it alone
    otherwise.
    """

    def __init__(self, variables):
        super().__init__(name="draws")
        # A function: to the Distiller itself Keras would come back for ever.
        self._variables = variables

    def save_own_variables(self, store):
        """Called by Keras."""
        for i, variable in enumerate(self._variables()):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Called by Keras; a file of an earlier release holds none."""
        for i, variable in enumerate(self._variables()):
            if str(i) in store.keys():
                variable.assign(ops.convert_to_tensor(store[str(i)][()]))


def _by_name(method, *args, **kwargs):
    """The arguments of a method of Keras, by name."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    arguments = dict(bound.arguments)
    others = arguments.pop("kwargs", {})
    return {**arguments, **others}


def _with_weights_by_entry(given):
    """Arguments of `fit` or `evaluate`, with weights as Keras takes them."""
    given = dict(given)
    weights = by_output.for_each_entry(
        given.get("y"), given.get("sample_weight")
    )
    if weights is not None:
        given["sample_weight"] = weights
    held_out = given.get("validation_data")
    if isinstance(held_out, (list, tuple)) and len(held_out) == 3:
        x, y, weights = held_out
        given["validation_data"] = x, y, by_output.for_each_entry(y, weights)
    return given


def _is_distillation(loss):
    """Whether a loss, or its name, is one of distillation."""
    by_name = isinstance(loss, str) and loss in losses.NAMES
    return by_name or isinstance(loss, losses.DistillationLoss)


def _names_a_teacher(y):
    """Whether labels, of any output, come with a teacher's fingerprint."""
    if isinstance(y, dict):
        return TEACHER_FINGERPRINT in y or _names_a_teacher(list(y.values()))
    return isinstance(y, (list, tuple)) and any(map(_names_a_teacher, y))


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
