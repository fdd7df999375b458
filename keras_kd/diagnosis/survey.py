"""One pass over labelled data: what a teacher says there, added up.

`Survey.batch_sums` turns a batch into sums of a fixed size, in one compiled
function together with the teacher's forward pass; the host adds them up in
float64. Memory does not grow with the data: all that is kept are these sums,
and the tables of `keras_kd.relations`, whose size is bounded.

Shapes are those of the batch, as JAX asks for: an example that does not count
keeps its place, with 0 in `keep`, logits of 0 and a label in range.
"""

import keras
import numpy as np
from keras import ops

from keras_kd import backend
from keras_kd.batch import LABELS
from keras_kd.diagnosis.bins import (
    CONFIDENCE_BINS,
    SCALE_EDGES,
    TEMPERATURES,
)
from keras_kd.diagnosis.relations import Relations, as_number
from keras_kd.outputs import to_logits
from keras_kd.softmax import label_softmax
from keras_kd.states import all_variables

# An example whose gradient is under a tenth of plain training's is as good as
# left out of the data.
SWITCHED_OFF = 0.1

# What costs more than one look at the logits (softmaxes at many temperatures,
# sorting, the loss) is done for so many logits of a batch at most: all of
# them with 100 classes, evenly spaced examples of a vocabulary.
_SAMPLE_CELLS = 2**18
# How far the sum of float16 probabilities may be from 1.
_SUM_TOLERANCE = 1e-2


class Survey:
    """Sums over a data set of what a teacher says there.

    Args:
        teacher: a `keras.Model`.
        student: a `keras.Model`, or `None` for a student half-way: 1/2 on
            every label, the rest spread evenly.
        loss: a bound `DistillationLoss`.
        num_classes: integer.
    """

    def __init__(self, teacher, student, loss, num_classes):
        self.teacher = teacher
        self.student = student
        self.loss = loss
        self.num_classes = num_classes
        self.temperature = loss.tunables["temperature"]
        # Beside the label, two classes have but one to tell apart.
        self.relations = (
            Relations(num_classes, self.temperature)
            if num_classes > 2
            else None
        )

    def run(self, dataset):
        """Goes over the data once.

        Args:
            dataset: a finite batched `tf.data.Dataset`.

        Returns:
            Dict of float64 NumPy arrays: sums by name, and "batches", and
            "first_bad_batch" (-1 if the teacher's outputs were all finite).

        Raises:
            ValueError: for labels that are no class ids.
        """
        import tensorflow as tf

        places = tf.TensorSpec((None,), "int32")
        step = backend.compiled(
            self.batch_sums,
            self._variables(),
            [dataset.element_spec, places, places],
        )
        random = np.random.default_rng(0)
        totals, first_bad_batch, batch = {}, -1, -1
        for batch, element in enumerate(dataset):
            sample = self._sample(element, batch)
            order = random.permutation(len(sample)).astype("int32")
            sums = {
                name: ops.convert_to_numpy(value).astype("float64")
                for name, value in step(
                    backend.from_tf_data(element), sample, order
                ).items()
            }
            self._check(sums, batch)
            if sums["not_finite"] and first_bad_batch < 0:
                first_bad_batch = batch
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        if self.relations is not None and totals:
            totals |= self.relations.totals()
        totals["batches"] = batch + 1
        totals["first_bad_batch"] = first_bad_batch
        return totals

    def _check(self, sums, batch):
        """Raises for what can't be diagnosed."""
        # Taken out of the sums: a label is nothing to add up.
        worst = sums.pop("worst_label")
        if sums["bad_labels"]:
            raise ValueError(
                "A label is no class id of the teacher. Received: label "
                f"{int(worst)} among {int(sums['bad_labels'])} labels of "
                f"batch {batch} outside [0, {self.num_classes}), ignore_class="
                f"{self.loss.ignore_class}. Check the labels' encoding, or "
                "give a loss with the `ignore_class` that stands for padding."
            )
        if sums.get("student_not_finite"):
            raise ValueError(
                "The student's logits are not finite. Received: NaN or "
                f"infinite logits for {int(sums['student_not_finite'])} "
                f"examples of batch {batch}. Leave the student out, or "
                "diagnose an earlier state of it."
            )

    def _variables(self):
        """What a step reads or changes."""
        variables = [*all_variables(self.teacher), *self.loss.variables]
        if self.student is not None:
            variables += all_variables(self.student)
        if self.relations is not None:
            variables += self.relations.variables
        return variables

    def _sample(self, element, batch):
        """Evenly spaced examples of a batch: [n] int32, their places."""
        _, labels, _ = keras.utils.unpack_x_y_sample_weight(element)
        size = int(np.prod(_class_ids(labels).shape))
        stride = 1 + size * self.num_classes // _SAMPLE_CELLS
        # Another part of each batch, so that none of its places is favoured.
        return np.arange(batch % stride, size, stride, dtype="int32")

    def batch_sums(self, element, sample, order):
        """Sums of a batch.

        Args:
            element: (x, labels) or (x, labels, sample_weight).
            sample: [n] int32, the examples for what costs more than a look.
            order: [n] int32, a random order of the sample.

        Returns:
            Dict of tensors by name.
        """
        labels, keep, logits, student_logits, faults = self._read(element)
        sums = {**faults, **self._predictions(labels, keep, logits)}
        if self.student is not None:
            sums |= _against_student(labels, keep, logits, student_logits)
        labels, keep, logits = (
            ops.take(each, sample, axis=0) for each in (labels, keep, logits)
        )
        if self.student is None:
            student_logits = _half_way(labels, self.num_classes)
        else:
            student_logits = ops.take(student_logits, sample, axis=0)
        if self.relations is not None:
            sums |= self.relations.batch_sums(labels, keep, logits, order)
        return {
            **sums,
            "sampled": ops.sum(keep),
            **self._temperatures(labels, keep, logits),
            **self._gradient_scales(labels, keep, logits, student_logits),
        }

    def _read(self, element):
        """Runs the models on a batch.

        Returns:
            Labels [examples]; 1 for the examples that count and have nothing
            wrong, else 0; the teacher's and the student's logits [examples,
            classes] (or `None`); and what was wrong, as sums.
        """
        x, labels, weight = keras.utils.unpack_x_y_sample_weight(element)
        outputs = self.teacher(x, training=False)
        logits = to_logits(self.teacher, outputs)
        labels = check_labels(_class_ids(labels), logits.shape)
        counted = ops.reshape(self._counted(labels, weight, outputs), (-1,))
        labels, logits = ops.reshape(labels, (-1,)), _flat(logits)
        finite = _is_finite(logits)
        in_range = (labels >= 0) & (labels < self.num_classes)
        bad_labels = ops.where(counted & ~in_range, labels, 0)
        faults = {
            "bad_labels": _count(counted & ~in_range),
            "worst_label": ops.take(
                bad_labels, ops.argmax(ops.abs(bad_labels))
            ),
            "not_finite": _count(counted & ~finite),
        }
        keep = counted & finite & in_range
        labels = ops.clip(labels, 0, self.num_classes - 1)
        logits = _where_kept(keep, logits)
        student_logits = None
        if self.student is not None:
            outputs = self.student(x, training=False)
            student_logits = _flat(to_logits(self.student, outputs))
            faults["student_not_finite"] = _count(
                keep & ~_is_finite(student_logits)
            )
            student_logits = _where_kept(keep, student_logits)
        faults["like_probabilities"] = _count(keep & _is_distribution(logits))
        return labels, as_number(keep), logits, student_logits, faults

    def _counted(self, labels, weight, outputs):
        counted = self.loss.valid_labels(labels)
        if weight is not None:
            counted &= expand_weights(weight, labels) != 0
        mask = keras.src.backend.get_keras_mask(outputs)
        return counted if mask is None else counted & ops.cast(mask, "bool")

    def _predictions(self, labels, keep, logits):
        """What is counted for every example: labels, predictions, confidence.

        The difficulty of an example is told by the teacher's probability of
        its label, at temperature 1.
        """
        classes = self.num_classes
        softmax = label_softmax(logits, labels)
        label_probability = ops.sigmoid(softmax.log_odds)
        confidence = ops.exp(-softmax.log_normaliser)
        predicted = _predicted(logits)
        correct = keep * as_number(predicted == labels)
        return {
            "examples": ops.sum(keep),
            "correct": ops.sum(correct),
            "cross_entropy": ops.sum(keep * softmax.cross_entropy),
            "label_probability": ops.sum(keep * label_probability),
            "confidence": ops.sum(keep * confidence),
            "label_probability_bins": _sum_by(
                _bin(label_probability), keep, CONFIDENCE_BINS
            ),
            "confidence_bins": ops.stack(
                [
                    _sum_by(_bin(confidence), value, CONFIDENCE_BINS)
                    for value in (keep, keep * confidence, correct)
                ]
            ),
            "class_examples": _sum_by(labels, keep, classes),
            "class_correct": _sum_by(labels, correct, classes),
            "class_predicted": _sum_by(predicted, keep, classes),
            "class_confidence": _sum_by(
                labels, keep * label_probability, classes
            ),
        }

    def _temperatures(self, labels, keep, logits):
        """Entropy and label probability of the soft targets, by temperature.

        The last row is the loss's own temperature.
        """
        entropies, at_labels, column = [], [], ops.expand_dims(labels, -1)
        for temperature in (*TEMPERATURES, self.temperature):
            log_p = ops.log_softmax(logits / temperature, axis=-1)
            entropies.append(-ops.sum(ops.exp(log_p) * log_p, axis=-1))
            at_labels.append(backend.take_classes(log_p, column)[:, 0])
        label = ops.exp(ops.stack(at_labels))
        values = (ops.stack(entropies), label, label**2)
        return {
            "temperatures": ops.stack(
                [ops.sum(keep * each, axis=-1) for each in values], axis=-1
            )
        }

    def _gradient_scales(self, labels, keep, logits, student_logits):
        """Scales w of each example, by class and by difficulty."""
        statistics = self.loss.teacher_statistics(
            labels, ops.cast(logits, self.loss.dtype)
        )
        parts = self.loss.parts({LABELS: labels, **statistics}, student_logits)
        scale = ops.cast(parts.gradient_scale, "float32")
        undefined = ops.isnan(scale)
        counts = keep * as_number(~undefined)
        scale = ops.where(counts > 0, scale, 0.0)
        values = (
            counts,
            scale,
            as_number(scale < 0),
            counts * as_number(ops.abs(scale) < SWITCHED_OFF),
        )
        difficulty = _bin(
            ops.sigmoid(label_softmax(logits, labels).log_odds), 10
        )
        bins = len(SCALE_EDGES) - 1
        low, high = float(SCALE_EDGES[0]), float(SCALE_EDGES[-1])
        index = _bin((scale - low) / (high - low), bins)
        cells = _sum_by(difficulty * bins + index, counts, 10 * bins)
        return {
            "scale_undefined": ops.sum(keep * as_number(undefined)),
            "scale_squared": ops.sum(scale**2),
            "scale_histogram": ops.reshape(cells, (10, bins)),
            "scale_by_difficulty": ops.stack(
                [_sum_by(difficulty, value, 10) for value in values]
            ),
            "scale_by_class": ops.stack(
                [_sum_by(labels, value, self.num_classes) for value in values]
            ),
        }


def _against_student(labels, keep, logits, student_logits):
    softmax = label_softmax(student_logits, labels)
    correct, student_correct = (
        keep * as_number(_predicted(each) == labels)
        for each in (logits, student_logits)
    )
    lead = student_correct - correct
    return {
        "student_correct": ops.sum(student_correct),
        "student_cross_entropy": ops.sum(keep * softmax.cross_entropy),
        "student_lead": ops.sum(lead),
        "student_lead_squared": ops.sum(lead**2),
    }


def _predicted(logits):
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def _class_ids(labels):
    return labels[LABELS] if isinstance(labels, dict) else labels


def _half_way(labels, classes):
    """Logits of a student with 1/2 on each label, the rest even.

    Half-way is where w says most: of an untrained student w is never below
    1 - weight, whatever the teacher, and a finished one has no gradient left
    to compare with.
    """
    others = float(np.log(max(classes - 1, 1)))
    return others * ops.one_hot(labels, classes, dtype="float32")


def _flat(logits):
    """[examples, classes] in float32 of [..., classes]."""
    logits = ops.cast(logits, "float32")
    return ops.reshape(logits, (-1, logits.shape[-1]))


def _where_kept(keep, logits):
    """The logits, with 0 for examples not kept, which may be NaN."""
    return ops.where(ops.expand_dims(keep, -1), logits, 0.0)


def _is_distribution(logits):
    """Whether vectors of logits could pass for probabilities."""
    near_one = ops.abs(ops.sum(logits, axis=-1) - 1) < _SUM_TOLERANCE
    return near_one & (ops.min(logits, axis=-1) >= 0)


def _is_finite(logits):
    return ops.isfinite(ops.sum(logits, axis=-1))


def _count(booleans):
    return ops.sum(as_number(booleans))


def _bin(share, bins=CONFIDENCE_BINS):
    """The bin of equal width that a number in [0, 1] falls in."""
    return ops.cast(ops.clip(share * bins, 0, bins - 1), "int32")


def _sum_by(index, values, size):
    return ops.segment_sum(values, index, num_segments=size)
