"""What a teacher has to offer, and why distillation may fail."""

import dataclasses
import json
import textwrap

import keras
import numpy as np

from keras_kd import data as any_data
from keras_kd import losses, preprocessing
from keras_kd.batch import labels_of
from keras_kd.diagnosis import faults, measures, pictures, verdict
from keras_kd.diagnosis.agreement import agreement_numbers
from keras_kd.diagnosis.finding import PROBLEM, Finding
from keras_kd.diagnosis.findings import find
from keras_kd.diagnosis.initialised import untrained_layers
from keras_kd.diagnosis.inputs import Inputs
from keras_kd.diagnosis.padding import padding_numbers
from keras_kd.diagnosis.survey import Survey, not_finite_weights
from keras_kd.logits import LogitReader, check_model, class_count_message
from keras_kd.model_inputs import check_order, outputs_of
from keras_kd.reports import events
from keras_kd.reports.numbers import plural
from keras_kd.reports.page import Reported
from keras_kd.similarity import logit_weights
from keras_kd.states import reset_states


@dataclasses.dataclass(frozen=True)
class Diagnosis(Reported):
    """What `diagnose` found. Its text is for reading: `print(diagnosis)`.

    Attributes:
        numbers: nested dict of numbers and lists, as JSON takes it: "data",
            "loss", "teacher", "student", "gradient_scale",
            "class_relations", "temperature", "similarity", "agreement",
            "inputs" and "weights". Only "data" and "loss" where none of the
            teacher's outputs was finite.
        findings: list of `Finding`, problems first, the likeliest cause
            before others.
    """

    numbers: dict = dataclasses.field(repr=False)
    findings: list[Finding]

    @property
    def problems(self):
        """The findings that are problems."""
        return [each for each in self.findings if each.severity == PROBLEM]

    @property
    def verdict(self):
        """Three sentences that answer what a user asks first.

        Is this teacher fit for use, what will help most, what to try first?
        """
        return verdict.sentences(self.numbers, self.findings)

    def to_json(self):
        """Numbers and findings as a JSON string."""
        findings = [dataclasses.asdict(each) for each in self.findings]
        return json.dumps({"findings": findings, "numbers": self.numbers})

    def _page(self):
        return pictures.page(self)

    def to_tensorboard(self, log_dir):
        """Writes numbers as scalars, figures as images, and the text.

        Args:
            log_dir: folder of the event file.

        Raises:
            ImportError: without Matplotlib, which draws the figures.
        """
        import tensorflow as tf

        images = pictures.images(self)
        with events.writing(log_dir):
            tf.summary.text("diagnosis", f"```\n{self}\n```", step=0)
            for name, value in _scalars(self.numbers):
                tf.summary.scalar(f"diagnosis/{name}", value, step=0)
            for name, image in images.items():
                tf.summary.image(f"diagnosis/{name}", image[None], step=0)

    def _repr_markdown_(self):
        """What a notebook shows."""
        return f"```text\n{self}\n```"

    def __str__(self):
        parts = [_headline(self), _wrap(" ".join(self.verdict))]
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
    if "teacher" not in diagnosis.numbers:
        bad = data["not_finite"]
        examples = f"{bad:,} {plural(bad, 'example')}"
        text = f"{problems} found, and no finite output, in {examples}"
    else:
        examples = f"{data['examples']:,} {plural(data['examples'], 'example')}"
        text = f"{problems} found in {examples}"
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
    teacher_output=None,
    student_output=None,
    batch_size=None,
):
    """Tells what a teacher has to offer on some data, before training.

    It goes over the data once, in inference mode; memory does not grow with
    them. Give it the data and the labels that the student will be trained on.

    With a large vocabulary, entropies, class relations, the tail and w are
    taken from an even sample of each batch.

    Args:
        teacher: a `keras.Model` with one output, [..., classes].
        dataset: (x, labels) or (x, labels, sample_weight): a tuple of arrays,
            a finite, batched `tf.data.Dataset`, a `keras.utils.PyDataset`, or
            a PyTorch `DataLoader` that does not shuffle. Labels are class ids
            of shape [batch] or [batch, time], which a last axis of 1 may
            follow, as integers or integer-valued floats. Examples with weight
            0 do not count. Of a KerasHub task with a preprocessor, raw
            strings or images.
        student: optional `keras.Model` with the same classes. Without one, w
            is that of a student halfway through training: with probability
            1/2 on each label and the rest spread evenly. An untrained
            student's w is hardly ever below 1 - weight, whatever the teacher,
            and a finished one has no gradient left to compare with.
        loss: a `keras_kd.losses.DistillationLoss` or its name, with the
            weight and temperature to judge; `KD()` by default.
        superclasses: optional [classes] integers, the superclass of each.
        logit_layer: as in `KDSim`, where the teacher's logit layer is not
            found: its name, layer, or [classes, features] matrix.
        teacher_output: what the teacher gives: "logits", "probabilities" or
            "log_probabilities". `None` reads it from the teacher's graph; a
            model without one is taken to give logits.
        student_output: the same of the student.
        batch_size: of arrays; 32 by default, as in `fit`.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: if `teacher` or `student` is not a `keras.Model`, or
            `dataset` not such data.
        ValueError: if the data set is infinite or empty, not batched or has
            no labels; if labels are not class ids; if the first outputs of a
            model are not what it is taken to give; if the student's outputs
            are not finite; or if the superclasses do not cover the classes.

    Example:
    >>> diagnosis = kd.diagnose(teacher, train)
    >>> print(diagnosis)
    >>> diagnosis.save("report.html")

    Source: Tang et al. 2020, "Understanding and Improving Knowledge
    Distillation" (arXiv 2002.03532).
    """
    check_model("teacher", teacher)
    teacher_reader = LogitReader(teacher, teacher_output, "teacher")
    student_reader = None
    if student is not None:
        _check_student(student)
        student_reader = LogitReader(student, student_output)
    dataset = preprocessing.dataset_of(teacher, dataset, student)
    data = _data(dataset, batch_size)
    # Builds the models, whose weights are read next.
    logits_shape = _logits_shape(teacher_reader, student_reader, data)
    num_classes = logits_shape[-1]
    loss = losses.get("kd" if loss is None else loss)
    loss.bind_teacher(teacher)
    superclasses = _check_superclasses(superclasses, num_classes)
    rows = _logit_rows(teacher, logit_layer, num_classes)

    for model in (teacher, student):
        if model is not None:
            reset_states(model)
    survey = Survey(teacher_reader, student_reader, loss, logits_shape)
    totals = survey.run(data)
    if not totals["batches"]:
        raise ValueError(_EMPTY)
    tokens = len(logits_shape) == 3
    numbers = {
        "data": {
            **measures.data_numbers(totals, num_classes, tokens),
            "padding": padding_numbers(survey.samples.batches)
            if tokens
            else None,
            "not_finite_weights": (
                not_finite_weights(teacher) if totals["not_finite"] else []
            ),
        },
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
                    "a student halfway through training"
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
            "agreement": agreement_numbers(survey.agreement, totals),
        }
        inputs = Inputs(survey)
        numbers |= {"inputs": inputs.numbers(), "weights": None}
        if faults.is_suspect(numbers):
            numbers |= {
                "inputs": inputs.numbers(with_forms=True),
                "weights": untrained_layers(teacher),
            }
    elif not totals["not_finite"]:
        raise ValueError(
            "At least one example of the data set must count. Received: "
            f"{totals['batches']} batches in which every example has sample "
            "weight 0, is masked or has the label `ignore_class`. Check the "
            "weights and `ignore_class`."
        )
    numbers = measures.plain(numbers)
    return Diagnosis(numbers, find(numbers))


def _check_student(student):
    """Refuses what is not a model, such as labels after inputs."""
    if hasattr(student, "shape"):
        raise TypeError(
            "`diagnose` takes inputs and labels as one argument. Received: an "
            f"array of shape {tuple(student.shape)} as the student. Pass "
            "(x, y), as in diagnose(teacher, (x, y))."
        )
    check_model("student", student)


def _data(dataset, batch_size):
    """The data as `keras_kd.data.Data`, refused if they can't be diagnosed."""
    data = any_data.of(dataset, batch_size, "`dataset`")
    if batch_size is not None and data.batched:
        raise ValueError(
            "`batch_size` makes batches of arrays. Received: batch_size="
            f"{batch_size} with a {type(dataset).__name__}, which has its own. "
            "Leave it out."
        )
    if any_data.is_tf_data(dataset):
        _check_tf_data(dataset)
    elif (first := data.first()) is None:
        raise ValueError(_EMPTY)
    elif len(first) < 2:
        raise ValueError(
            "`dataset` has no labels to compare the teacher with. Received: "
            "batches of an input alone. Give (x, labels) or (x, labels, "
            "sample_weight)."
        )
    return data


def _check_tf_data(dataset):
    """Refuses a `tf.data.Dataset` that can't be diagnosed."""
    import tensorflow as tf

    spec = dataset.element_spec
    y = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    labels = labels_of(y)
    if not isinstance(labels, tf.TensorSpec):
        raise ValueError(
            "`dataset` has no labels to compare the teacher with. Received: "
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
            "`dataset` must be finite, because a diagnosis goes over all of "
            "it. Received: an infinite data set. Leave out repeat(), or cut "
            "it with dataset.take(100)."
        )
    if cardinality == 0:
        raise ValueError(_EMPTY)


_EMPTY = (
    "`dataset` must not be empty. Received: no batch. Check its filters and "
    "files; drop_remainder=True drops everything that does not fill a batch."
)


def _logits_shape(teacher, student, data):
    """Shape of the logits, learned without running the models; builds them."""
    shape = _output_shape(teacher, data)
    if len(shape) < 2 or shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            "The teacher must give [..., classes] logits, of a known number "
            f"of classes, at least 2. Received: outputs of shape {shape}."
            + (_ONE_UNIT if shape[-1:] == (1,) else " Check its last layer.")
        )
    if student is not None:
        check_order(student.model, teacher.model, data.input_specs())
        own = _output_shape(student, data)
        if own[-1:] != shape[-1:]:
            raise ValueError(
                class_count_message(own[-1], shape[-1], can_share=False)
            )
        if len(own) != len(shape):
            raise ValueError(
                "Student and teacher must give logits for the same examples. "
                f"Received: outputs of shape {own} from the student and "
                f"{shape} from the teacher. Check the layer before the last "
                "one, such as return_sequences."
            )
    return shape


_ONE_UNIT = (
    " With one sigmoid unit, p = model.output, diagnose "
    "keras.Model(model.inputs, keras.ops.concatenate([1 - p, p], -1)) with "
    'teacher_output="probabilities"; it has two classes and the same weights.'
)


def _output_shape(reader, data):
    outputs = getattr(reader.model, "outputs", None)
    if not outputs:
        x = data.input_specs(reader.model)
        outputs = outputs_of(reader.model, x, reader.role)
    return tuple(reader.single(outputs).shape)


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
    if layer is None and not np.isfinite(rows).all():
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
