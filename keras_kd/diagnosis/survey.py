"""One pass over labelled data: what a teacher says there, added up.

`Survey.batch_sums` turns a batch into sums of a fixed size, in one compiled
function together with the teacher's forward pass; the host adds them up in
float64. Memory does not grow with the data: all that is kept are these sums,
and the tables of `keras_kd.relations`, whose size is bounded.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_kd.diagnosis.bins import (
    CONFIDENCE_BINS,
    SCALE_EDGES,
    TEMPERATURES,
)
from keras_kd.diagnosis.relations import Relations
from keras_kd.distillation_loss import LABELS, check_labels, expand_weights
from keras_kd.outputs import to_logits
from keras_kd.softmax import label_softmax

# An example whose gradient is under a tenth of plain training's is as good as
# left out of the data.
SWITCHED_OFF = 0.1

# What costs more than one look at the logits (softmaxes at many temperatures,
# sorting, the loss) is done for so many logits of a batch at most: all of
# them with 100 classes, evenly spaced examples of a vocabulary.
_SAMPLE_CELLS = 2**18
# How far the sum of float16 probabilities may be from 1.
_SUM_TOLERANCE = 1e-2


class Survey(tf.Module):
    """Sums over a data set of what a teacher says there.

    Args:
        teacher: a `keras.Model`.
        student: a `keras.Model`, or `None` for a student half-way: 1/2 on
            every label, the rest spread evenly.
        loss: a bound `DistillationLoss`.
        num_classes: integer.
    """

    def __init__(self, teacher, student, loss, num_classes):
        super().__init__()
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
        step = tf.function(
            self.batch_sums,
            autograph=False,
            input_signature=[
                dataset.element_spec,
                tf.TensorSpec((), "int32"),
            ],
        )
        totals, first_bad_batch, batch = {}, -1, -1
        for batch, element in enumerate(dataset):
            sums = {
                name: value.numpy().astype("float64")
                for name, value in step(element, batch).items()
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

    def batch_sums(self, element, batch):
        """Sums of a batch.

        Args:
            element: (x, labels) or (x, labels, sample_weight).
            batch: scalar, the number of the batch.

        Returns:
            Dict of tensors by name.
        """
        labels, logits, student_logits, faults = self._read(element)
        sums = {**faults, **self._predictions(labels, logits)}
        if self.student is not None:
            sums |= self._against_student(labels, logits, student_logits)
        # Another part of each batch, so that none of its places is favoured.
        stride = 1 + tf.size(logits) // _SAMPLE_CELLS
        sample = tf.range(batch % stride, tf.size(labels), stride)
        labels, logits = tf.gather(labels, sample), tf.gather(logits, sample)
        if self.student is None:
            student_logits = _half_way(labels, self.num_classes)
        else:
            student_logits = tf.gather(student_logits, sample)
        if self.relations is not None:
            sums |= self.relations.batch_sums(labels, logits)
        return {
            **sums,
            "sampled": tf.cast(tf.size(labels), "float32"),
            **self._temperatures(labels, logits),
            **self._gradient_scales(labels, logits, student_logits),
        }

    def _read(self, element):
        """Runs the models on a batch.

        Returns:
            Labels [examples], the teacher's and the student's logits
            [examples, classes] (or `None`) of the examples that count and
            have nothing wrong; and what was wrong, as sums.
        """
        x, labels, weight = keras.utils.unpack_x_y_sample_weight(element)
        labels = labels[LABELS] if isinstance(labels, dict) else labels
        outputs = self.teacher(x, training=False)
        logits = to_logits(self.teacher, outputs)
        labels = check_labels(labels, logits.shape)
        counted = self._counted(labels, weight, outputs)
        finite = _is_finite(logits)
        in_range = (labels >= 0) & (labels < self.num_classes)
        bad_labels = tf.reshape(tf.where(counted & ~in_range, labels, 0), [-1])
        faults = {
            "bad_labels": _count(counted & ~in_range),
            "worst_label": bad_labels[tf.argmax(tf.abs(bad_labels))],
            "not_finite": _count(counted & ~finite),
        }
        keep = counted & finite & in_range
        student_logits = None
        if self.student is not None:
            outputs = self.student(x, training=False)
            student_logits = to_logits(self.student, outputs)
            faults["student_not_finite"] = _count(
                keep & ~_is_finite(student_logits)
            )
            student_logits = tf.cast(
                tf.boolean_mask(student_logits, keep), "float32"
            )
        logits = tf.cast(tf.boolean_mask(logits, keep), "float32")
        labels = tf.boolean_mask(labels, keep)
        faults["like_probabilities"] = _count_distributions(logits)
        return labels, logits, student_logits, faults

    def _counted(self, labels, weight, outputs):
        counted = self.loss.valid_labels(labels)
        if weight is not None:
            weight = expand_weights(weight, labels)
            counted &= tf.broadcast_to(weight != 0, tf.shape(labels))
        mask = keras.src.backend.get_keras_mask(outputs)
        return counted if mask is None else counted & tf.cast(mask, "bool")

    def _predictions(self, labels, logits):
        """What is counted for every example: labels, predictions, confidence.

        The difficulty of an example is told by the teacher's probability of
        its label, at temperature 1.
        """
        classes = self.num_classes
        softmax = label_softmax(logits, labels)
        label_probability = tf.sigmoid(softmax.log_odds)
        confidence = tf.exp(-softmax.log_normaliser)
        predicted = tf.argmax(logits, -1, output_type="int32")
        correct = tf.cast(predicted == labels, "float32")
        ones = tf.ones_like(correct)
        return {
            "examples": tf.reduce_sum(ones),
            "correct": tf.reduce_sum(correct),
            "cross_entropy": tf.reduce_sum(softmax.cross_entropy),
            "label_probability": tf.reduce_sum(label_probability),
            "confidence": tf.reduce_sum(confidence),
            "label_probability_bins": _sum_by(
                _bin(label_probability), ones, CONFIDENCE_BINS
            ),
            "confidence_bins": tf.stack(
                [
                    _sum_by(_bin(confidence), value, CONFIDENCE_BINS)
                    for value in (ones, confidence, correct)
                ]
            ),
            "class_examples": _sum_by(labels, ones, classes),
            "class_correct": _sum_by(labels, correct, classes),
            "class_predicted": _sum_by(predicted, ones, classes),
            "class_confidence": _sum_by(labels, label_probability, classes),
        }

    def _against_student(self, labels, logits, student_logits):
        softmax = label_softmax(student_logits, labels)
        student_correct = _is_correct(labels, student_logits)
        lead = student_correct - _is_correct(labels, logits)
        return {
            "student_correct": tf.reduce_sum(student_correct),
            "student_cross_entropy": tf.reduce_sum(softmax.cross_entropy),
            "student_lead": tf.reduce_sum(lead),
            "student_lead_squared": tf.reduce_sum(lead**2),
        }

    def _temperatures(self, labels, logits):
        """Entropy and label probability of the soft targets, by temperature.

        The last row is the loss's own temperature.
        """
        rows = []
        for temperature in (*TEMPERATURES, self.temperature):
            log_p = tf.nn.log_softmax(logits / temperature)
            entropy = -tf.reduce_sum(tf.exp(log_p) * log_p, -1)
            label = tf.exp(tf.gather(log_p, labels, batch_dims=1))
            rows.append([tf.reduce_sum(v) for v in (entropy, label, label**2)])
        return {"temperatures": tf.convert_to_tensor(rows)}

    def _gradient_scales(self, labels, logits, student_logits):
        """Scales w of each example, by class and by difficulty."""
        statistics = self.loss.teacher_statistics(labels, logits)
        parts = self.loss.parts({LABELS: labels, **statistics}, student_logits)
        scale = tf.reshape(parts.gradient_scale, [-1])
        defined = ~tf.math.is_nan(scale)
        scale = tf.where(defined, scale, 0.0)
        counts = tf.cast(defined, "float32")
        values = (
            counts,
            scale,
            tf.cast(scale < 0, "float32"),
            tf.cast(defined & (tf.abs(scale) < SWITCHED_OFF), "float32"),
        )
        difficulty = _bin(
            tf.sigmoid(label_softmax(logits, labels).log_odds), 10
        )
        bins = len(SCALE_EDGES) - 1
        low, high = SCALE_EDGES[0], SCALE_EDGES[-1]
        position = (scale - low) * (bins / (high - low))
        index = tf.cast(tf.clip_by_value(position, 0, bins - 1), "int32")
        cells = _sum_by(difficulty * bins + index, counts, 10 * bins)
        return {
            "scale_undefined": _count(~defined),
            "scale_squared": tf.reduce_sum(scale**2),
            "scale_histogram": tf.reshape(cells, (10, bins)),
            "scale_by_difficulty": tf.stack(
                [_sum_by(difficulty, value, 10) for value in values]
            ),
            "scale_by_class": tf.stack(
                [_sum_by(labels, value, self.num_classes) for value in values]
            ),
        }


def _half_way(labels, classes):
    """Logits of a student with 1/2 on each label, the rest even.

    Half-way is where w says most: of an untrained student w is never below
    1 - weight, whatever the teacher, and a finished one has no gradient left
    to compare with.
    """
    return tf.one_hot(labels, classes) * np.log(max(classes - 1, 1)).astype(
        "float32"
    )


def _count_distributions(logits):
    """How many vectors of logits could pass for probabilities."""
    sums = tf.reduce_sum(logits, -1)
    near_one = tf.abs(sums - 1) < _SUM_TOLERANCE
    return _count(near_one & (tf.reduce_min(logits, -1) >= 0))


def _is_finite(logits):
    return tf.math.is_finite(tf.reduce_sum(tf.cast(logits, "float32"), -1))


def _count(booleans):
    return tf.reduce_sum(tf.cast(booleans, "float32"))


def _bin(share, bins=CONFIDENCE_BINS):
    """The bin of equal width that a number in [0, 1] falls in."""
    return tf.cast(tf.clip_by_value(share * bins, 0, bins - 1), "int32")


def _is_correct(labels, logits):
    predicted = tf.argmax(logits, -1, output_type="int32")
    return tf.cast(predicted == labels, "float32")


def _sum_by(index, values, size):
    return tf.math.unsorted_segment_sum(values, index, size)
