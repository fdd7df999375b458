"""One pass over labelled data: what a teacher says there, added up.

`Survey.batch_sums` turns a batch into sums of a fixed size, in one compiled
function together with the teacher's forward pass; the host adds them up in
float64. Memory does not grow with the data: all that is kept is these sums, a
few batches (`samples`), and tables whose size is bounded (`relations` and
`agreement`).

Shapes are those of the batch, as JAX requires: an example that does not count
keeps its place, with 0 in `keep`, logits of 0 and a label in range.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from keras_kd import backend, metrics
from keras_kd.backend import private
from keras_kd.batch import LABELS
from keras_kd.chunks import are_many
from keras_kd.data import TfData
from keras_kd.diagnosis import by_chunks, examples
from keras_kd.diagnosis.agreement import Agreement
from keras_kd.diagnosis.bins import (
    CONFIDENCE_BINS,
    DIFFICULTY_BINS,
    TEMPERATURES,
)
from keras_kd.diagnosis.relations import Relations, as_number
from keras_kd.diagnosis.samples import Samples
from keras_kd.model_inputs import outputs_of
from keras_kd.softmax import label_softmax
from keras_kd.states import all_variables

# An example whose gradient is less than a tenth of plain training's might as
# well be left out.
SWITCHED_OFF = 0.1

# What costs more than one pass over the logits (softmaxes at many temperatures,
# sorting, the loss) is done for at most this many logits of a batch: all with
# 100 classes, those of evenly spaced examples with a large vocabulary.
_SAMPLE_CELLS = 2**18


class Survey:
    """Sums over a data set of what a teacher says there.

    Args:
        teacher: a `LogitReader` of the teacher.
        student: a `LogitReader`, or `None` for a student halfway through
            training: 1/2 on every label, the rest spread evenly.
        loss: a bound `DistillationLoss`.
        logits_shape: tuple, [..., classes], `None` where unknown.
    """

    def __init__(self, teacher, student, loss, logits_shape):
        self.teacher = teacher
        self.student = student
        self.loss = loss
        self.logits_shape = logits_shape
        self.num_classes = logits_shape[-1]
        self.temperature = loss.tunables["temperature"]
        # With two classes there is only one beside the label.
        self.relations = (
            Relations(self.num_classes, self.temperature)
            if self.num_classes > 2
            else None
        )
        self.agreement = Agreement(self.num_classes)
        self.samples = Samples()
        self.input_spec = self._step = self._by_chunks = None

    def run(self, data):
        """Goes over the data once.

        Args:
            data: finite batches, `keras_kd.data.Data`.

        Returns:
            Dict of float64 NumPy arrays: sums by name, and "batches", and
            "first_bad_batch" (-1 if the teacher's outputs were all finite).

        Raises:
            ValueError: for labels that are not class ids, for outputs that
                are not what the models are taken to give, and for a student
                whose outputs are not finite.
        """
        self.input_spec = _input_spec(data, self.teacher.model)
        self._step = backend.compiled(
            self.batch_sums, self.variables, _signature(self.input_spec)
        )
        random = np.random.default_rng(0)
        totals, first_bad_batch, batch = {}, -1, -1
        outputs_checked = False
        for batch, element in enumerate(data.as_read()):
            settled = examples.settle(
                element, self.logits_shape, self.loss.ignore_class
            )
            sample = self._sample(len(settled.labels), batch)
            groups = random.integers(self._groups, size=len(sample))
            sums = self._run_step(settled, sample, groups.astype("int32"))
            predicted, kept = sums.pop("predictions"), sums.pop("kept") > 0
            self.agreement.add(settled.labels, predicted.astype("int64"), kept)
            self.samples.add(dataclasses.replace(settled, counted=kept))
            self._check_kinds(sums, outputs_checked)
            outputs_checked |= bool(sums["examples"])
            self._check_labels(sums, batch, settled)
            self._check_student(sums, batch)
            if sums["not_finite"] and first_bad_batch < 0:
                first_bad_batch = batch
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        if self.relations is not None and totals:
            totals |= self.relations.totals()
        totals["batches"] = batch + 1
        totals["first_bad_batch"] = first_bad_batch
        return totals

    @property
    def batch_size(self):
        """The number of rows that every batch has; `None` if it may vary."""
        shape = keras.tree.flatten(self.input_spec)[0].shape
        # TensorFlow's may be of unknown rank.
        return None if getattr(shape, "rank", 0) is None else shape[0]

    @property
    def _groups(self):
        """How many random groups the control of the class relations has."""
        return 1 if self.relations is None else self.relations.groups

    def _run_step(self, settled, sample, groups, step=None):
        """Dict of a batch's sums, as float64 NumPy arrays."""
        data = (settled.x, settled.labels, settled.counted)
        if step is None and are_many(settled.labels.size, self.num_classes):
            step = self._step_by_chunks()
        step = step or self._step
        sums = step(*backend.from_tf_data(data), sample, groups)
        return {
            name: ops.convert_to_numpy(value).astype("float64")
            for name, value in sums.items()
        }

    def _step_by_chunks(self):
        """The step without all logits at once, where the models allow it."""
        if self._by_chunks is None:
            signature = _signature(self.input_spec)
            self._by_chunks = by_chunks.make(self, signature) or self._step
        return self._by_chunks

    @functools.cached_property
    def _step_of_floats(self):
        """The step for inputs that the data set has as integers."""
        signature = _signature(self.input_spec, "float32")
        return backend.compiled(self.batch_sums, self.variables, signature)

    def right(self, x, labels, counted):
        """How often the teacher is right on other inputs, after `run`.

        Args:
            x: [rows, ...] NumPy array, of the data set's type or floats.
            labels: [rows, n] int32 class ids, n of each row.
            counted: [rows, n] booleans.

        Returns:
            [rows, n] floats, 1 for a label that counts and is predicted.
        """
        rows, sample = len(x), self._sample(labels.size, 0)
        groups = np.zeros(len(sample), "int32")
        (spec,) = keras.tree.flatten(self.input_spec)
        given, wanted = map(
            keras.backend.standardize_dtype, (x.dtype, spec.dtype)
        )
        step = None if given == wanted else self._step_of_floats
        x = keras.tree.pack_sequence_as(self.input_spec, [x])
        labels = labels.reshape(-1)
        settled = examples.Examples(x, labels, labels, counted.reshape(-1))
        sums = self._run_step(settled, sample, groups, step)
        hits = (sums["predictions"] == labels) * sums["kept"]
        return hits.reshape(rows, -1)

    def _check_kinds(self, sums, checked):
        """Raises if the first outputs are not what they are taken for."""
        for name, reader in (
            ("teacher_contradicted", self.teacher),
            ("student_contradicted", self.student),
        ):
            contradicted = sums.pop(name, 0)
            if contradicted and not checked and not reader.is_certain:
                reader.refuse()

    def _check_labels(self, sums, batch, settled):
        """Raises for labels that are not class ids."""
        # Popped, because places in batches can't be added up.
        place = int(sums.pop("bad_label_place"))
        if sums["bad_labels"]:
            raise ValueError(
                "A label is not a class id of the teacher. Received: label "
                f"{settled.given[place]:.15g} among {int(sums['bad_labels'])} "
                f"labels of batch {batch} outside [0, {self.num_classes}), "
                f"ignore_class={self.loss.ignore_class}. Check the labels' "
                "encoding, or give a loss with the `ignore_class` that stands "
                "for padding."
            )

    def _check_student(self, sums, batch):
        """Raises for a student that gives NaN."""
        bad = int(sums.get("student_not_finite", 0))
        if not bad:
            return
        if sums["student_not_finite_inputs"]:
            raise ValueError(
                "The inputs are not finite. Received: NaN or infinite inputs "
                f"in batch {batch}, of which the student makes NaN or infinite "
                f"logits for {bad} examples. Clean the inputs, or give these "
                "examples weight 0."
            )
        weights = not_finite_weights(self.student.model)
        raise ValueError(
            "The student's logits are not finite. Received: NaN or infinite "
            f"logits for {bad} examples of batch {batch}, of finite inputs"
            + (
                f", and weights {weights} that are not finite"
                if weights
                else ""
            )
            + ". Leave the student out, or diagnose an earlier state of it."
        )

    @property
    def variables(self):
        """List of what a step reads or changes."""
        variables = [*all_variables(self.teacher.model), *self.loss.variables]
        if self.student is not None:
            variables += all_variables(self.student.model)
        if self.relations is not None:
            variables += self.relations.variables
        return variables

    def _sample(self, size, batch):
        """Evenly spaced examples of a batch: [n] int32, their places."""
        stride = 1 + size * self.num_classes // _SAMPLE_CELLS
        # Another part of each batch, so that no place is favoured.
        return np.arange(batch % stride, size, stride, dtype="int32")

    def batch_sums(self, x, labels, counted, sample, groups):
        """Sums of a batch.

        Args:
            x: the models' inputs.
            labels: [examples] int32 class ids, or `NO_CLASS`.
            counted: [examples] booleans.
            sample: [n] int32, the examples for what costs more than a pass.
            groups: [n] int32, a random group for each of the sample.

        Returns:
            Dict of tensors by name.
        """
        outputs = [
            outputs_of(each.model, x, each.role) for each in self.readers
        ]
        mask = private.get_keras_mask(self.teacher.single(outputs[0]))
        counted, bad_inputs = examples.known_before(x, mask, labels, counted)
        sums, keep, *logits = self.sums_of_all(
            outputs, labels, counted, bad_inputs
        )
        labels = ops.maximum(labels, 0)
        labels, keep, *logits = (
            ops.take(each, sample, axis=0) for each in (labels, keep, *logits)
        )
        return {**sums, **self.sums_of_sample(labels, keep, logits, groups)}

    @property
    def readers(self):
        """List of the `LogitReader`s, of the teacher and of the student."""
        both = (self.teacher, self.student)
        return [reader for reader in both if reader is not None]

    def sums_of_all(self, outputs, labels, counted, bad_inputs):
        """Sums over all examples.

        Args:
            outputs: list of what the models gave.
            labels: see `batch_sums`.
            counted: the same, less what is masked.
            bad_inputs: [examples] booleans, those with inputs not finite.

        Returns:
            Dict of tensors by name; 1 for the examples that count and have
            nothing wrong, else 0, [examples]; and for each model the logits,
            [examples, classes].
        """
        labels, keep, logits, student_logits, invalid = self._read(
            outputs, labels, counted, bad_inputs
        )
        sums = {**invalid, **self._predictions(labels, keep, logits)}
        if self.student is None:
            return sums, keep, logits
        sums |= _against_student(labels, keep, logits, student_logits)
        return sums, keep, logits, student_logits

    def sums_of_sample(self, labels, keep, logits, groups):
        """Sums over a sample of the examples.

        Args:
            labels: [n] class ids, inside of the classes.
            keep: [n], from `sums_of_all`.
            logits: list of [n, classes], of each model.
            groups: [n] int32, a random group for each of the sample.

        Returns:
            Dict of tensors by name.
        """
        logits, *of_student = logits
        if of_student:
            (student_logits,) = of_student
        else:
            student_logits = _halfway_logits(labels, self.num_classes)
        sums = {}
        if self.relations is not None:
            sums |= self.relations.batch_sums(labels, keep, logits, groups)
        return {
            **sums,
            "sampled": ops.sum(keep),
            **self._temperatures(labels, keep, logits),
            **self._gradient_scales(labels, keep, logits, student_logits),
        }

    def _read(self, outputs, labels, counted, bad_inputs):
        """Reads what the models gave for a batch.

        Returns:
            Labels [examples]; 1 for the examples that count and have nothing
            wrong, else 0; the teacher's and the student's logits [examples,
            classes] (or `None`); and what was wrong, as sums.
        """
        outputs, *student_outputs = outputs
        logits, finite = examples.logits_of(self.teacher, outputs)
        in_range = labels != examples.NO_CLASS
        bad_labels = counted & ~in_range
        invalid = {
            "teacher_contradicted": as_number(
                self.teacher.contradicted(outputs)
            ),
            "bad_labels": _count(bad_labels),
            "bad_label_place": ops.argmax(as_number(bad_labels)),
            "not_finite": _count(counted & ~finite),
            "not_finite_inputs": _count(counted & ~finite & bad_inputs),
        }
        keep = counted & finite & in_range
        labels = ops.maximum(labels, 0)
        logits = examples.where_kept(keep, logits)
        student_logits = None
        if self.student is not None:
            (outputs,) = student_outputs
            student_logits, finite = examples.logits_of(self.student, outputs)
            bad = keep & ~finite
            invalid |= {
                "student_contradicted": as_number(
                    self.student.contradicted(outputs)
                ),
                "student_not_finite": _count(bad),
                "student_not_finite_inputs": _count(bad & bad_inputs),
            }
            student_logits = examples.where_kept(keep, student_logits)
        return labels, as_number(keep), logits, student_logits, invalid

    def _predictions(self, labels, keep, logits):
        """What is counted for every example: labels, predictions, confidence.

        An example's difficulty is the teacher's probability of its label, at
        temperature 1.
        """
        classes = self.num_classes
        softmax = label_softmax(logits, labels)
        label_probability = ops.sigmoid(softmax.log_odds)
        confidence = ops.exp(-softmax.log_normaliser)
        predicted = _predicted(logits)
        correct = keep * as_number(predicted == labels)
        return {
            "predictions": predicted,
            "kept": keep,
            "examples": ops.sum(keep),
            "correct": ops.sum(correct),
            "cross_entropy": ops.sum(keep * softmax.cross_entropy),
            "label_probability": ops.sum(keep * label_probability),
            "confidence": ops.sum(keep * confidence),
            "label_probability_bins": _sum_by(
                _confidence_bin(label_probability), keep, CONFIDENCE_BINS
            ),
            "confidence_bins": ops.stack(
                [
                    _sum_by(_confidence_bin(confidence), value, CONFIDENCE_BINS)
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
        difficulty = metrics.bin_index(
            ops.sigmoid(label_softmax(logits, labels).log_odds),
            0.0,
            1.0,
            DIFFICULTY_BINS,
        )
        shape = (DIFFICULTY_BINS, metrics.BINS)
        cells = _sum_by(
            difficulty * metrics.BINS + metrics.bin_index(scale),
            counts,
            DIFFICULTY_BINS * metrics.BINS,
        )
        return {
            "scale_undefined": ops.sum(keep * as_number(undefined)),
            "scale_squared": ops.sum(scale**2),
            "scale_histogram": ops.reshape(cells, shape),
            "scale_sums": _sum_by(
                metrics.bin_index(scale), scale, metrics.BINS
            ),
            "scale_by_difficulty": ops.stack(
                [
                    _sum_by(difficulty, value, DIFFICULTY_BINS)
                    for value in values
                ]
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


def _halfway_logits(labels, classes):
    """Logits of a student with 1/2 on each label, the rest even.

    Halfway is where w says most: of an untrained student w is never below
    1 - weight, whatever the teacher, and a finished one has no gradient left
    to compare with.
    """
    others = float(np.log(max(classes - 1, 1)))
    return others * ops.one_hot(labels, classes, dtype="float32")


def _input_spec(data, model):
    """What the inputs of a batch are, a structure of specs."""
    if isinstance(data, TfData):
        return data.dataset.element_spec[0]
    return data.input_specs(model)


def _signature(input_spec, dtype=None):
    """The specs of what a step takes; see `Survey.batch_sums`.

    Only TensorFlow compiles by them. The inputs' are of a dtype, if given.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    x = keras.tree.map_structure(
        lambda spec: (
            tf.TensorSpec(spec.shape, dtype or spec.dtype)
            if dtype or isinstance(spec, keras.KerasTensor)
            else spec
        ),
        input_spec,
    )
    places = tf.TensorSpec((None,), "int32")
    counted = tf.TensorSpec((None,), "bool")
    return [x, places, counted, places, places]


def not_finite_weights(model):
    """Paths of the weights that hold NaN or infinity, the first three.

    Args:
        model: a built `keras.Model`.

    Returns:
        List of strings.
    """
    return [
        weight.path
        for weight in model.weights
        if "float" in str(weight.dtype)
        and not bool(ops.all(ops.isfinite(ops.convert_to_tensor(weight))))
    ][:3]


def _count(booleans):
    return ops.sum(as_number(booleans))


def _confidence_bin(probability):
    return metrics.bin_index(probability, 0.0, 1.0, CONFIDENCE_BINS)


def _sum_by(index, values, size):
    return ops.segment_sum(values, index, num_segments=size)
