"""The outputs of a student, each with what it is trained on.

A student has one output, or several with names. Each has a head: a `Head`
where it is distilled, or a `PlainHead` with a loss of Keras's on its label.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_kd import batch, precomputed
from keras_kd.backend.private import (
    LossFunctionWrapper,
    get_keras_mask,
    set_keras_mask,
)
from keras_kd.batch import (
    STATISTICS_TEMPERATURE,
    TEACHER_CLASSES,
    TEACHER_FINGERPRINT,
    TEACHER_LOGITS,
    TEACHER_RIGHT,
    UNKNOWN_TEACHER,
)
from keras_kd.logits import (
    class_count_message,
    first_classes,
    is_binary,
    of_two_classes,
    output_of,
)
from keras_kd.losses.base import cross_entropy, reduce_over_batch
from keras_kd.losses.names import STATISTICS
from keras_kd.monitors import LossTracker, Monitors

# In y, the teacher's outputs, where their values must tell what they are.
_TEACHER_OUTPUTS = "teacher_outputs"
_HALF = ("float16", "bfloat16")


class Head:
    """An output that is distilled.

    Args:
        distiller: the `Distiller`.
        name: of the output; `None` for a student's only one.
        loss: a `DistillationLoss`.
        gradient_scale: a `GradientScale` that gives the bins, or `None` for
            no histograms.
        weight: float, of its loss in the sum over all heads.
    """

    def __init__(self, distiller, name, loss, gradient_scale, weight=1.0):
        self._distiller = distiller
        self.name = name
        self.loss = loss
        self.weight = weight
        prefix = "" if name is None else f"{name}_"
        self.monitors = Monitors(loss, gradient_scale, prefix)
        self.tracker = _tracker(name)
        self.num_classes = None
        self.has_soft_labels = False
        # Whether the output's units are a sigmoid's.
        self.has_units = False
        # Of the first labels that the metrics read, which decide how Keras
        # builds "accuracy".
        self._metrics_take_shares = None
        # Whether the data that are trained on have no labels at all.
        self.is_without_labels = False
        self.forget_teacher()

    def forget_teacher(self):
        """Makes room for another teacher."""
        self._teacher_classes = self._teacher_kind = None
        # Whether it is the data that give its outputs.
        self._is_carried = False

    @property
    def student_reader(self):
        """The `LogitReader` of the student's output."""
        return self._distiller.reader("student", self.name)

    @property
    def teacher_reader(self):
        """The `LogitReader` of the teacher's, or `None`.

        Where the data carry its logits, what reads those.
        """
        if self._is_carried:
            return self._distiller.reader_of_carried(self.name)
        return self._distiller.reader("teacher", self.name)

    def reader(self, role):
        """The `LogitReader` of the outputs of "student" or "teacher"."""
        return getattr(self, f"{role}_reader")

    @property
    def label_reader(self):
        """What reads the label of every example now, or `None`."""
        if self._distiller.is_evaluating:
            return batch.EVALUATION
        return self.loss.label_reader

    # -- what the teacher gives ----------------------------------------------

    def missing_statistics(self, y):
        """Names of what the loss needs and the data don't carry.

        Args:
            y: dict of labels and what comes beside them.

        Returns:
            List of names; empty where the data carry the teacher's outputs.
        """
        if precomputed.carried(y):
            return []
        return [name for name in self.loss.statistics if name not in y]

    def check_keys(self, y):
        """Refuses labels under a name of their own, which would be lost.

        Args:
            y: dict of labels and what comes beside them.

        Raises:
            ValueError: if there are none, but something that is not known.
        """
        # A cache may hold what other losses than these take.
        if batch.LABELS in y or TEACHER_FINGERPRINT in y:
            return
        known = {*precomputed.KEYS, *STATISTICS, *self.loss.statistics}
        unknown = [name for name in y if name not in known]
        if unknown:
            raise ValueError(
                "Labels that come in a dict have the name 'labels'. Received: "
                f"{unknown} in place of them. Pass the labels themselves, or "
                "{'labels': …}."
            )

    def with_known_classes(self, y, width):
        """Replaces ids of classes that only another teacher's outputs have.

        A batch with such statistics is refused, but at the end of a step, in
        which TensorFlow would fail to find these classes among the student's.

        Args:
            y: dict of labels and what comes beside them.
            width: function that returns the number of the output's units.

        Returns:
            A dict.
        """
        ids = [name for name in self.loss.statistics if _are_ids(y.get(name))]
        if TEACHER_CLASSES not in y or not ids:
            return y
        classes = self.student_reader.num_classes or width()
        is_other = ops.any(self._of_other_classes(y, classes))
        known = {
            name: ops.where(is_other, ops.zeros_like(y[name]), y[name])
            for name in ids
        }
        return {**y, **known}

    def with_statistics(self, y, teacher_outputs, width):
        """Adds to the labels what the loss needs from the teacher.

        Args:
            y: dict of labels and what comes beside them.
            teacher_outputs: function that returns what the teacher gives for
                the batch; it is called if the data don't carry it.
            width: function that returns the number of the output's units.

        Returns:
            A dict.
        """
        y = precomputed.with_statistics(y, self.loss, width)
        carried = TEACHER_LOGITS in y and self.loss.statistics
        if not (carried or self.missing_statistics(y)):
            return y
        self._is_carried = bool(carried)
        if carried:
            # What was written by a cache, or as logarithms, is known.
            if (
                TEACHER_FINGERPRINT not in y
                and precomputed.OUTPUT_FAULT not in y
            ):
                given = ops.convert_to_tensor(y[TEACHER_LOGITS])
                y = {**y, _TEACHER_OUTPUTS: given}
            shared = self.student_reader.num_classes
            logits = first_classes(y[TEACHER_LOGITS], shared)
            # What a cache keeps is of two classes already.
            if self._is_binary and TEACHER_FINGERPRINT not in y:
                logits = of_two_classes(logits)
        else:
            outputs = teacher_outputs()
            reader = self.teacher_reader
            logits = reader.logits(outputs)
            self._teacher_kind = reader.kind_of(outputs)
            if not reader.is_certain:
                y = {**y, _TEACHER_OUTPUTS: reader.single(outputs)}
        logits = ops.cast(logits, self.loss.dtype)
        self._teacher_classes = logits.shape[-1]
        settled = self._settled(y, logits, self._is_binary)
        labels = settled.labels
        if settled.is_soft:
            self.loss.check_soft_labels(labels)
        top_class = ops.cast(ops.argmax(logits, axis=-1), "int32")
        is_top = ops.argmax(labels, axis=-1) if settled.is_soft else labels
        right = ops.equal(top_class, ops.cast(is_top, "int32"))
        return {
            **y,
            **self.loss.teacher_statistics(labels, logits),
            TEACHER_RIGHT: right,
        }

    @property
    def _is_binary(self):
        """Whether units are a sigmoid's, before the student runs."""
        kind = self._teacher_kind or self.student_reader.kind
        return is_binary(kind)

    # -- a batch -------------------------------------------------------------

    def settle(self, y, y_pred, sample_weight=None, class_weight=None):
        """What a batch is to losses and metrics.

        Args:
            y: labels, or a dict of labels and teacher statistics.
            y_pred: the student's outputs.
            sample_weight: optional, [batch] or the shape of the labels.
            class_weight: optional dict of weights by class id.

        Returns:
            A `keras_kd.batch.Batch`.
        """
        reader = self.student_reader
        outputs = reader.single(y_pred)
        logits = reader.logits(outputs)
        kind = reader.kind_of(outputs)
        self._check_kinds(kind)
        self.num_classes = logits.shape[-1]
        if self._teacher_classes not in (None, self.num_classes):
            raise ValueError(
                class_count_message(self.num_classes, self._teacher_classes)
            )
        by_class = None
        if class_weight:
            by_class = batch.class_weight_array(class_weight, self.num_classes)
        settled = self._settled(
            y,
            logits,
            is_binary(kind),
            sample_weight=sample_weight,
            mask=get_keras_mask(outputs),
            ignore_class=self.loss.ignore_class,
            class_weight=by_class,
        )
        self.has_soft_labels = settled.is_soft
        self.has_units = is_binary(kind)
        outside = reader.outside(outputs, self.loss.dtype)
        has_units = is_binary(kind) and _have_units(settled, outputs)
        row_weights = None
        # Those of the classes differ from unit to unit.
        if has_units and sample_weight is not None and not class_weight:
            row_weights = batch.weights_of_rows(sample_weight, settled.is_valid)
        return dataclasses.replace(
            settled, outside=outside, row_weights=row_weights
        )

    def _settled(self, y, logits, binary, **kwargs):
        return batch.settle(
            y, logits, label_reader=self.label_reader, binary=binary, **kwargs
        )

    def _check_kinds(self, student_kind):
        """Refuses models and losses that don't fit a sigmoid's units."""
        kinds = (student_kind, self._teacher_kind)
        if None not in kinds and is_binary(kinds[0]) != is_binary(kinds[1]):
            raise ValueError(
                "Student and teacher must both give classes, or both a "
                "sigmoid's units. Received: a student that gives "
                f"{kinds[0]} and a teacher that gives {kinds[1]}. Say what "
                "they give by `student_output` and `teacher_output`, or "
                "change one of the models."
            )
        if is_binary(student_kind) and not self.loss.takes_two_classes:
            raise ValueError(
                f"{type(self.loss).__name__} compares many classes; a "
                "sigmoid's unit has two, between which there are no relations "
                "and no tail. Received: a student that gives "
                f"{student_kind}. Use KD or KDPt, which are the same there, "
                "or LabelSmoothing."
            )

    def losses(self, settled, training):
        """The loss of each example; in training the monitors see the batch.

        Args:
            settled: a `keras_kd.batch.Batch`.
            training: whether to give the distillation loss, or the plain
                cross-entropy on the labels.

        Returns:
            [...], 0 where an example doesn't count.
        """
        if training:
            parts = self.loss.batch_parts(settled)
            self.monitors.update(parts, settled, settled.y.get(TEACHER_RIGHT))
            return parts.loss
        logits = ops.cast(settled.logits, self.loss.dtype)
        values = cross_entropy(logits, settled.labels)
        return settled.counted_part(settled.over_all_classes(values))

    def reduced(self, values, settled):
        """The loss of a batch; see `reduce_over_batch`."""
        return reduce_over_batch(values, settled, self.loss.reduction)

    def counts(self, settled, training, teacher_number):
        """Counts of `InvalidExamples` that labels and statistics give.

        Args:
            settled: a `keras_kd.batch.Batch`.
            training: whether it is trained on.
            teacher_number: of the teacher's fingerprint, a scalar.

        Returns:
            A dict of scalars.
        """
        bad = ops.logical_not(settled.is_valid)
        counts = {
            "labels": number(bad),
            "label": ops.where(
                ops.any(bad), _worst_label(settled, self.has_units), 0.0
            ),
        }
        if training:
            counts |= self.counts_of_statistics(settled.y, teacher_number)
            fault = settled.y.get(precomputed.OUTPUT_FAULT)
            if fault is not None:
                counted = ops.cast(settled.counted, "bool")
                counts |= precomputed.count_faults(
                    fault, counted, settled.weights
                )
        return counts

    def counts_of_statistics(self, y, teacher_number):
        """Counts of statistics that belong to something else.

        Args:
            y: dict of labels and what comes beside them.
            teacher_number: of the teacher's fingerprint, a scalar.

        Returns:
            A dict of scalars.
        """
        return {
            "stale": number(self._stale(y)),
            "other_teacher": number(_of_other_teacher(y, teacher_number)),
            "other_classes": number(
                self._of_other_classes(y, self.compared_classes)
            ),
        }

    def outputs_to_check(self, settled, y_pred):
        """List of pairs of a reader and outputs that its model gave."""
        pairs = [(self.student_reader, y_pred)]
        if _TEACHER_OUTPUTS in settled.y:
            outputs = settled.y[_TEACHER_OUTPUTS]
            pairs.append((self.teacher_reader, outputs))
        return pairs

    def _stale(self, y):
        """Booleans: whether statistics are of another temperature."""
        kept = y.get(STATISTICS_TEMPERATURE)
        if kept is None:
            return ops.zeros((1,), dtype="bool")
        # Of `train_on_batch` it may be NumPy's.
        kept = ops.convert_to_tensor(kept)
        wanted = ops.cast(self.loss.temperature, kept.dtype)
        return ops.abs(kept - wanted) > 1e-4 * wanted

    def _of_other_classes(self, y, classes):
        """Booleans: whether statistics are of another number of classes."""
        kept = y.get(TEACHER_CLASSES)
        if kept is None or not self.loss.statistics:
            return ops.zeros((1,), dtype="bool")
        return ops.not_equal(kept, classes)

    @property
    def compared_classes(self):
        """How many classes the distillation term is over."""
        return self.student_reader.num_classes or self.num_classes

    def metric_arguments(self, settled, y_pred):
        """What Keras's metrics read.

        Args:
            settled: a `keras_kd.batch.Batch`.
            y_pred: the student's outputs.

        Returns:
            Labels, outputs, weights, and 1 for each example with a label, 0 for
            the others (`None` if all have one); `None` for data without labels.
        """
        if settled.given_labels is None:
            self.is_without_labels = True
            return None
        outputs = self.student_reader.single(y_pred)
        mask = get_keras_mask(outputs)
        kept, weights = None, settled.row_weights
        if weights is None:
            weights = settled.weights
        if settled.is_labelled is not None:
            # Of several units, which metrics average, rows where any has none.
            labelled = settled.is_labelled
            if _have_units(settled, outputs):
                labelled = ops.all(labelled, axis=-1)
            mask = labelled if mask is None else ops.logical_and(mask, labelled)
            kept = ops.cast(labelled, "float32")
            weights = kept if weights is None else _times(weights, kept)
        # A copy: its mask is the metrics' alone.
        outputs = ops.copy(_in_full_precision(outputs))
        set_keras_mask(outputs, _with_axes_of_weights(mask, weights))
        kind = self.student_reader.kind_of(outputs)
        labels = _metric_labels(settled, outputs, kind)
        if not is_binary(kind):
            labels = self._in_first_form(labels, settled)
        return labels, outputs, weights, kept

    def _in_first_form(self, labels, settled):
        """Labels in the form that the compiled metrics were built for."""
        if self._metrics_take_shares is None:
            self._metrics_take_shares = settled.is_soft
        is_same = settled.is_soft == self._metrics_take_shares
        if is_same or not self._distiller.has_metrics:
            return labels
        if settled.is_soft:
            raise ValueError(
                "Metrics that began with class ids can't read shares of the "
                "classes. Received: labels of shape "
                f"{tuple(labels.shape)}, after class ids. Give all labels as "
                "shares, such as keras.ops.one_hot(ids, "
                f"{settled.num_classes}), or compile again between them."
            )
        return ops.one_hot(labels, settled.num_classes, dtype="float32")


@dataclasses.dataclass(frozen=True)
class PlainBatch:
    """A batch as a loss of Keras's reads it.

    Attributes:
        outputs: the student's, as it gave them.
        labels: as they came.
        counted: [...] floats, 0 under a mask; of the loss's shape.
        weights: [...] float32, or `None`.
        values: [...], the loss of each example.
        sample_weight: as it came, for the metrics; or `None`.
    """

    outputs: object
    labels: object
    counted: object
    weights: object
    values: object
    sample_weight: object


class PlainHead:
    """An output that a loss of Keras's trains on its label.

    Args:
        distiller: the `Distiller`.
        name: of the output.
        loss: a loss of Keras's, or its name.
        weight: float, of its loss in the sum over all heads.
    """

    is_without_labels = False

    def __init__(self, distiller, name, loss, weight=1.0):
        self._distiller = distiller
        self.name = name
        loss = keras.losses.get(loss)
        if not isinstance(loss, keras.losses.Loss):
            loss = LossFunctionWrapper(loss)
        self.loss = loss
        self.weight = weight
        self.tracker = _tracker(name)

    def with_statistics(self, y, teacher_outputs, width):
        """The labels as they are; see `Head`."""
        del teacher_outputs, width
        return y

    def settle(self, y, y_pred, sample_weight=None, class_weight=None):
        """What a batch is to this loss; see `Head`."""
        del class_weight
        labels = batch.as_dict(y).get(batch.LABELS)
        if labels is None:
            batch.refuse_missing_labels(f"The loss of output {self.name!r}")
        outputs = output_of(self._distiller.student, y_pred, self.name)
        loss_weight = sample_weight
        if type(self.loss).__call__ is keras.losses.Loss.__call__:
            values, masks = self._unreduced(labels, outputs)
        else:
            # It weighs, masks and reduces as it likes.
            full = _in_full_precision(outputs)
            set_keras_mask(full, get_keras_mask(outputs))
            values, masks = self.loss(labels, full, sample_weight), []
            loss_weight = None
        values = _of_each(values, [*masks, loss_weight], outputs)
        counted = ops.ones_like(values)
        for mask in masks:
            mask = batch.with_axes_of(ops.cast(mask, "bool"), values, "mask")
            counted = ops.where(mask, counted, 0.0)
        weights = None
        if loss_weight is not None:
            loss_weight = ops.cast(loss_weight, values.dtype)
            weights = batch.with_axes_of(loss_weight, values) * counted
        values = ops.where(counted > 0, values, 0.0)
        return PlainBatch(
            outputs, labels, counted, weights, values, sample_weight
        )

    def _unreduced(self, labels, outputs):
        """What `keras.losses.Loss` computes before it weighs and reduces.

        Returns:
            The values, and a list of the masks of the outputs and of the loss
            itself (such as that of `ignore_class`).
        """
        dtype = self.loss.dtype
        values = self.loss.call(
            ops.convert_to_tensor(labels, dtype=dtype),
            ops.convert_to_tensor(outputs, dtype=dtype),
        )
        masks = [get_keras_mask(outputs), get_keras_mask(values)]
        return values, [mask for mask in masks if mask is not None]

    def losses(self, settled, training):
        """[...], the loss of each example."""
        del training
        return settled.values

    def reduced(self, values, settled):
        """The loss of a batch; see `reduce_over_batch`."""
        reduction = getattr(self.loss, "reduction", "sum_over_batch_size")
        return reduce_over_batch(values, settled, reduction)

    def counts(self, settled, training, teacher_number):
        """None: any label may be right."""
        del settled, training, teacher_number
        return {}

    def outputs_to_check(self, settled, y_pred):
        """None: outputs may be anything."""
        del settled, y_pred
        return []

    def metric_arguments(self, settled, y_pred):
        """What Keras's metrics read; see `Head`."""
        del y_pred
        outputs = _in_full_precision(settled.outputs)
        set_keras_mask(outputs, get_keras_mask(settled.outputs))
        return settled.labels, outputs, settled.sample_weight, None


def _times(weights, kept):
    """Weights of rows or of their units, 0 in rows that are not kept."""
    if len(weights.shape) > len(kept.shape):
        kept = ops.expand_dims(kept, -1)
    return weights * kept


def _have_units(settled, outputs):
    """Whether labels have an axis for several units, as outputs have."""
    return len(settled.is_valid.shape) == len(outputs.shape)


def _with_axes_of_weights(mask, weights):
    """A mask of rows, so that Keras multiplies weights of their units by it.

    It would line up [batch, units] with [batch] at the units.
    """
    if mask is None or weights is None:
        return mask
    if len(weights.shape) > len(mask.shape):
        return ops.expand_dims(mask, -1)
    return mask


def _of_each(values, others, outputs):
    """A loss that gives one number for the batch, as that of each example."""
    if len(values.shape):
        return values
    like = next((each for each in others if each is not None), None)
    if like is None:
        like = ops.ones(ops.shape(outputs)[:1])
    return values * ops.ones_like(ops.convert_to_tensor(like), values.dtype)


def _tracker(name):
    """The mean loss of one of several outputs."""
    return None if name is None else LossTracker(name=f"{name}_loss")


def _in_full_precision(outputs):
    """Outputs in float32 at least, as some metrics and losses ask."""
    if keras.backend.standardize_dtype(outputs.dtype) in _HALF:
        return ops.cast(outputs, "float32")
    return outputs


def _of_other_teacher(y, teacher_number):
    """Booleans: whether statistics are not those of this teacher."""
    kept = y.get(TEACHER_FINGERPRINT)
    if kept is None:
        return ops.zeros((1,), dtype="bool")
    wanted = ops.convert_to_tensor(teacher_number)
    differ = ops.not_equal(ops.cast(kept, wanted.dtype), wanted)
    is_known = ops.not_equal(wanted, UNKNOWN_TEACHER)
    return ops.logical_and(differ, is_known)


def _are_ids(statistic):
    """Whether a statistic is there, and of integers."""
    if statistic is None:
        return False
    return "int" in keras.backend.standardize_dtype(statistic.dtype)


def _worst_label(settled, has_units):
    """Of labels that can't be used the highest, or the highest sum of shares.

    Args:
        settled: a `keras_kd.batch.Batch`.
        has_units: whether they are a sigmoid's, of two shares that sum to 1.
    """
    given = settled.given_labels
    if given is None:
        return 0.0
    bad = ops.logical_not(settled.is_valid)
    if settled.is_soft:
        given = ops.cast(given, "float32")
        found = ops.sum(given, axis=-1)
        if has_units:
            missing = ops.equal(found, 0)
            found = ops.where(missing, batch.UNLABELLED, given[..., 1])
        return ops.max(ops.where(bad, found, float("-inf")))
    lowest = np.iinfo(keras.backend.standardize_dtype(given.dtype)).min
    return ops.cast(ops.max(ops.where(bad, given, lowest)), "float32")


def _metric_labels(settled, outputs, kind):
    """Labels as Keras's metrics read them."""
    given = settled.given_labels
    if not settled.is_soft:
        given = ops.cast(ops.where(settled.is_valid, given, 0), "int32")
    if is_binary(kind):
        units = given[..., 1] if settled.is_soft else given
        return ops.reshape(units, ops.shape(outputs))
    return given


def number(booleans):
    """How many are true, a float32 scalar."""
    return ops.sum(ops.cast(booleans, "float32"))
