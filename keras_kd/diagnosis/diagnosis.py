"""What a teacher has to offer, and why distillation may fail."""

import dataclasses
import json
import textwrap

import keras
import numpy as np

from keras_kd import losses
from keras_kd.batch import LABELS
from keras_kd.diagnosis import measures
from keras_kd.diagnosis.finding import PROBLEM, Finding
from keras_kd.diagnosis.findings import find
from keras_kd.diagnosis.survey import Survey
from keras_kd.outputs import check_class_counts
from keras_kd.similarity import logit_weights


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Its text is for reading: `print(diagnosis)`.

    Attributes:
        numbers: nested dict of numbers and lists, as JSON takes it: "data",
            "loss", "teacher", "student", "gradient_scale",
            "class_relations", "temperature" and "similarity". Only "data"
            and "loss" where none of the teacher's outputs was finite.
        findings: list of `Finding`, problems first, the likeliest cause
            before others.
    """

    numbers: dict
    findings: list[Finding]

    @property
    def problems(self):
        """The findings that are problems."""
        return [each for each in self.findings if each.severity == PROBLEM]

    def to_json(self):
        """Numbers and findings as a JSON string."""
        findings = [dataclasses.asdict(each) for each in self.findings]
        return json.dumps({"findings": findings, "numbers": self.numbers})

    def save(self, path):
        """Writes a report: one HTML page that needs nothing else.

        Args:
            path: of a file that does not exist yet.

        Raises:
            FileExistsError: if it does.
            ImportError: without matplotlib, which draws the pictures.
        """
        from keras_kd.diagnosis import pictures
        from keras_kd.reports import page

        page.check_new(path)
        pictures.page(self).save(path)

    def to_tensorboard(self, log_dir):
        """Writes the numbers as scalars, the pictures as images, the text.

        Args:
            log_dir: folder of the event file.

        Raises:
            ImportError: without matplotlib, which draws the pictures.
        """
        import tensorflow as tf

        from keras_kd.diagnosis import pictures

        images = pictures.images(self)
        with tf.summary.create_file_writer(str(log_dir)).as_default():
            tf.summary.text("diagnosis", f"```\n{self}\n```", step=0)
            for name, value in _scalars(self.numbers):
                tf.summary.scalar(f"diagnosis/{name}", value, step=0)
            for name, image in images.items():
                tf.summary.image(f"diagnosis/{name}", image[None], step=0)

    def __str__(self):
        parts = [_headline(self)]
        for finding in self.findings:
            parts.append(
                "\n".join(
                    [
                        _wrap(
                            f"{finding.severity.upper()} {finding.code}: "
                            f"{finding.summary}"
                        ),
                        _wrap(finding.consequence, "    "),
                        _wrap(f"Try: {finding.remedy}", "    "),
                    ]
                )
            )
        return "\n\n".join(parts)


def _headline(diagnosis):
    data, count = diagnosis.numbers["data"], len(diagnosis.problems)
    problems = {0: "no problem", 1: "1 problem"}.get(count, f"{count} problems")
    text = f"{problems} found in {data['examples']:,} examples"
    if "teacher" in diagnosis.numbers:
        teacher = diagnosis.numbers["teacher"]
        scale = diagnosis.numbers["gradient_scale"]
        text += (
            f" of {data['classes']:,} classes: teacher accuracy "
            f"{teacher['accuracy']:.1%}, confidence "
            f"{teacher['confidence']:.1%}; w {scale['mean']:.2f} ± "
            f"{scale['deviation']:.2f} for {scale['student']}"
        )
    return _wrap(f"{text[0].upper()}{text[1:]}.")


def _wrap(text, indent=""):
    return textwrap.fill(
        text, 79, initial_indent=indent, subsequent_indent=indent
    )


def _scalars(numbers, prefix=""):
    """Names and values of the single numbers in nested dicts."""
    for key, value in numbers.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, float(value)


def diagnose(
    teacher,
    dataset,
    student=None,
    loss=None,
    superclasses=None,
    logit_layer=None,
):
    """Tells what a teacher has to offer on some data, before training.

    One pass over the data in inference mode; memory does not grow with them.
    Give it the data that the student is to be trained on, with the labels
    that it is to be trained with.

    Of vocabularies, entropies, the relations of classes, the tail and w are
    taken from an even sample of each batch.

    Args:
        teacher: a `keras.Model` with one output, [..., classes] logits (or
            probabilities from a softmax).
        dataset: a finite, batched `tf.data.Dataset` of (x, labels) or (x,
            labels, sample_weight), with integer class ids of shape [batch] or
            [batch, time]. Examples with weight 0 do not count.
        student: optional `keras.Model` with the same classes. Without one, w
            is that of a student half-way: with probability 1/2 on each label
            and the rest spread evenly. An untrained student's w is hardly
            ever below 1 - weight, whatever the teacher, and a finished one
            has no gradient left to compare with.
        loss: a `keras_kd.losses.DistillationLoss` or its name, with the
            weight and temperature to judge; `KD()` by default.
        superclasses: optional [classes] integers, the superclass of each.
        logit_layer: as in `KDSim`, where the teacher's logit layer is not
            found: its name, layer, or [classes, features] matrix.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: if `teacher` or `student` is no `keras.Model`, or `dataset`
            no `tf.data.Dataset`.
        ValueError: if the data set is infinite or empty, not batched or has
            no labels, if labels are no class ids, or if the superclasses do
            not cover the classes.

    Example:
    >>> diagnosis = kd.diagnose(teacher, train)
    >>> print(diagnosis)
    >>> diagnosis.save("report.html")

    Source: Tang et al. 2020, "Understanding and Improving Knowledge
    Distillation" (arXiv 2002.03532).
    """
    _check_model("teacher", teacher)
    if student is not None:
        _check_model("student", student)
        check_class_counts(student, teacher)
    tokens = _check_dataset(dataset)
    loss = losses.get("kd" if loss is None else loss)
    loss.bind_teacher(teacher)
    num_classes = _num_classes(teacher, dataset)
    if student is not None:
        _output_shape(student, dataset)
    superclasses = _check_superclasses(superclasses, num_classes)
    rows = _logit_rows(teacher, logit_layer, num_classes)

    totals = Survey(teacher, student, loss, num_classes).run(dataset)
    if not totals["batches"]:
        raise ValueError(_EMPTY)
    numbers = {
        "data": measures.data_numbers(totals, num_classes, tokens),
        "loss": {
            "name": type(loss).__name__,
            "temperature_squared": loss.temperature_squared,
            **loss.tunables,
        },
    }
    if totals["examples"]:
        temperature = loss.tunables["temperature"]
        numbers |= {
            "teacher": measures.teacher_numbers(totals),
            "student": measures.student_numbers(totals),
            "gradient_scale": {
                "student": (
                    "a student half-way"
                    if student is None
                    else "the given student"
                ),
                **measures.gradient_scale_numbers(totals),
            },
            "class_relations": measures.relation_numbers(
                totals, num_classes, temperature
            ),
            "temperature": measures.temperature_numbers(totals, temperature),
            "similarity": measures.similarity_numbers(
                rows,
                None if student is None else _logit_rows(student, None),
                superclasses,
            ),
        }
    elif not totals["not_finite"]:
        raise ValueError(
            "No example of the data set counts. Received: "
            f"{totals['batches']} batches, in which every example has sample "
            "weight 0 or is masked or of the class to ignore. Check the "
            "weights and `ignore_class`."
        )
    numbers = measures.plain(numbers)
    return Diagnosis(numbers, find(numbers))


def _check_model(role, model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{role}` must be a keras.Model. Received: "
            f"{type(model).__name__}. Load a saved one with "
            "keras.models.load_model."
        )


def _check_dataset(dataset):
    """Refuses what can't be gone over; tells whether labels are tokens."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            "`dataset` must be a batched tf.data.Dataset of (x, labels) or (x, "
            f"labels, sample_weight). Received: {type(dataset).__name__}. Make "
            "one with tf.data.Dataset.from_tensor_slices((x, labels))."
            "batch(128)."
        )
    spec = dataset.element_spec
    labels = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    labels = labels.get(LABELS) if isinstance(labels, dict) else labels
    if not isinstance(labels, tf.TensorSpec):
        raise ValueError(
            "`dataset` has no labels to hold the teacher against. Received: "
            f"elements {spec}. Give (x, labels) or (x, labels, sample_weight)."
        )
    if labels.shape.rank == 0:
        raise ValueError(
            "`dataset` must be batched. Received: labels of shape (). Call "
            "dataset.batch(128)."
        )
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`dataset` has no end, and a diagnosis goes over all of it. "
            "Received: an infinite data set. Leave out repeat(), or cut it "
            "with dataset.take(100)."
        )
    if cardinality == 0:
        raise ValueError(_EMPTY)
    return labels.shape.rank == 2 and labels.shape[-1] != 1


_EMPTY = (
    "`dataset` is empty. Received: no batch. Check its filters and files; "
    "drop_remainder=True leaves nothing of less than a batch."
)


def _output_shape(model, dataset):
    """A model's output shape, told without running it; builds the model."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        x = keras.tree.map_structure(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name),
            dataset.element_spec[0],
        )
        outputs = [model(x, training=False)]
    return getattr(outputs[0], "shape", (None,))


def _num_classes(teacher, dataset):
    shape = _output_shape(teacher, dataset)
    if shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            "The teacher must give [..., classes] logits, of a known number "
            f"of classes, at least 2. Received: outputs of shape {shape}. A "
            "teacher with one sigmoid unit needs a Dense(2) instead."
        )
    return int(shape[-1])


def _check_superclasses(superclasses, num_classes):
    if superclasses is None:
        return None
    given = np.asarray(superclasses)
    if given.shape != (num_classes,) or given.dtype.kind not in "iu":
        raise ValueError(
            "`superclasses` must cover the classes: one integer for each, in "
            f"order. Received: shape {given.shape} and dtype {given.dtype} for "
            f"{num_classes} classes. For CIFAR-100 these are the 20 coarse "
            "labels of the 100 fine ones."
        )
    return given


def _logit_rows(model, layer, num_classes=None):
    """Rows of the logit layer; `None` if there is none to be found."""
    if layer is not None and not isinstance(layer, str | keras.layers.Layer):
        rows = np.asarray(layer, "float32")
    else:
        try:
            rows = logit_weights(model, layer)
        except ValueError:
            if layer is not None:
                raise
            return None
    if num_classes is not None and len(rows) != num_classes:
        if layer is None:
            return None
        raise ValueError(
            "The logit layer must have a row for each class. Received: "
            f"`logit_layer` with {len(rows)} rows for {num_classes} classes. "
            "Name the layer that makes the logits."
        )
    return rows
