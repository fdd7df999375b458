"""What the Distiller watches while a student trains."""

import keras
import numpy as np
from keras import ops

from keras_kd import distribution, precomputed
from keras_kd.batch import (
    EVALUATION,
    NOT_WHOLE,
    TEACHER_RIGHT,
    UNLABELLED,
    has_known_rank,
    with_axes_of,
)
from keras_kd.metrics import GradientScale
from keras_kd.reports.numbers import how_many

# Which examples a histogram of gradient scales is about.
GROUPS = ("all", "teacher_right", "teacher_wrong")


class LossTracker(keras.metrics.Mean):
    """The mean loss, the same number however many replicas train.

    Keras weighs what each replica makes of its share of a batch by the rows of
    that share, which its loss was divided by already.
    """

    def update_state(self, values, sample_weight=None):
        """Adds the loss of a batch.

        Args:
            values: scalar, this replica's share of the loss of the batch.
            sample_weight: this replica's rows of the batch.
        """
        super().update_state(
            distribution.sum_over_replicas(values), sample_weight
        )


class MeanOfCounted(keras.metrics.Mean):
    """A mean that is NaN where nothing was counted, not 0.

    A cross-entropy of 0 would look perfect, where no example has a label.
    """

    def result(self):
        """The mean."""
        return self.total / self.count


class Monitors:
    """Means of the loss's parts, and gradient scales.

    Args:
        loss: a `DistillationLoss`.
        gradient_scale: a `GradientScale` that gives the bins, or `None` for
            no histograms.
        prefix: of the names of the metrics.
    """

    def __init__(self, loss, gradient_scale=None, prefix=""):
        names = ("cross_entropy", *loss.term_names)
        self.parts = {
            name: MeanOfCounted(name=f"{prefix}{name}") for name in names
        }
        self.scales = {}
        if gradient_scale is not None:
            config = gradient_scale.get_config()
            for group in GROUPS:
                suffix = "" if group == "all" else f"_{group}"
                config["name"] = f"{prefix}gradient_scale{suffix}"
                self.scales[group] = GradientScale.from_config(config)

    @property
    def of_labels(self):
        """List of the metrics that only examples with a label count in."""
        return [self.parts["cross_entropy"], *self.scales.values()]

    @property
    def metrics(self):
        """The metrics that are reset at the start of each epoch."""
        return [*self.parts.values(), *self.scales.values()]

    def update(self, parts, batch, teacher_right=None):
        """Adds a batch.

        Args:
            parts: `LossParts`.
            batch: the `Batch` that they belong to.
            teacher_right: optional [...] booleans, whether the teacher's
                largest logit is the label's.
        """
        weight = ops.cast(batch.counted, "float32")
        if batch.weights is not None:
            weight = weight * batch.weights
        labelled = batch.of_labelled(weight)
        values = {"cross_entropy": parts.cross_entropy, **parts.terms}
        for name, metric in self.parts.items():
            of_metric = labelled if name == "cross_entropy" else weight
            metric.update_state(values[name], sample_weight=of_metric)
        if not self.scales:
            return
        unlabelled = 0.0
        if batch.is_labelled is not None:
            without = ops.logical_and(
                ops.logical_not(batch.is_labelled), weight > 0
            )
            unlabelled = ops.sum(ops.cast(without, "float32"))
        groups = {"all": None}
        if teacher_right is not None:
            right = ops.cast(teacher_right, "float32")
            if has_known_rank(right):
                right = with_axes_of(right, labelled, TEACHER_RIGHT)
            groups["teacher_right"] = right
            groups["teacher_wrong"] = 1.0 - right
        for group, share in groups.items():
            counted = labelled if share is None else labelled * share
            scale, shares = parts.gradient_scale, None
            if batch.is_soft:
                # A value for each class, by its share.
                counted = ops.cast(ops.not_equal(counted, 0), "float32")
                given = ops.cast(batch.given_shares, "float32")
                shares = ops.expand_dims(counted, -1) * given
                counted = shares
            self.scales[group].update_state(scale, counted, shares, unlabelled)


# What `InvalidExamples` counts in a step, in this order: labels that are not
# class ids and the largest of them, examples whose loss is not finite because
# of the inputs, the student or the teacher, losses of the student's layers that
# are not finite, of examples or on a replica that has none, a loss that is not
# finite though that of each example is (by the weights), gradients that are not
# finite though the loss is, statistics of another temperature, teacher or
# number of classes, outputs other than those expected of student or teacher,
# and a teacher's outputs in the data that are not valid, with what is wrong
# with the first and where it is.
_ROLES = ("student", "teacher")
COUNTS = (
    "labels",
    "label",
    "inputs",
    "student",
    "teacher",
    "layers",
    "empty",
    "weights",
    "gradients",
    "stale",
    "other_teacher",
    "other_classes",
    "student_output",
    "teacher_output",
    "outputs",
    "fault",
    "fault_row",
)
# What is told of the first batch that has any, by what is counted.
TOLD = {"label": "labels", "fault": "outputs", "fault_row": "outputs"}


class DivergedError(ValueError):
    """The student's loss, or its gradient, is not finite for finite data."""


class InvalidExamples(keras.metrics.Metric):
    """Counts the examples that must not be trained on.

    A compiled step can't raise (XLA drops assertions), so it leaves the
    student as it was, counts why, and the host raises after the step.

    Args:
        heads: integer, how many outputs are trained.
    """

    def __init__(self, heads=1):
        super().__init__(name="invalid_examples")
        # For each head: batches of which the outputs of student and teacher
        # were seen, then all 0 as long as all is well.
        self.state = self.add_variable(
            (heads, len(_ROLES) + len(COUNTS)), "zeros", name="state"
        )

    # Not a property: Keras reads those when it saves, which the chief of
    # several workers does alone, and this adds up over all of them.
    def is_first_batch(self, role, head=0):
        """Whether no batch of a model's outputs was seen yet.

        Args:
            role: "student" or "teacher".
            head: integer, which output.

        Returns:
            A boolean scalar tensor.
        """
        return ops.equal(self.result()[head, _ROLES.index(role)], 0)

    def update_state(self, updates):
        """Counts a batch.

        Args:
            updates: list by head of the roles of the models whose outputs were
                seen, and a dict of scalars by names of `COUNTS`; others are
                0.
        """
        rows = []
        for before, (roles, counts) in zip(
            ops.unstack(self.result(), len(updates)), updates, strict=True
        ):
            before = ops.unstack(before, len(_ROLES) + len(COUNTS))
            seen = [
                count + float(role in roles)
                for role, count in zip(_ROLES, before, strict=False)
            ]
            before = dict(zip(COUNTS, before[len(_ROLES) :], strict=True))
            after = {
                name: count + ops.cast(counts.get(name, 0), self.dtype)
                for name, count in before.items()
            }
            for name, counted in TOLD.items():
                is_first = ops.equal(before[counted], 0)
                after[name] = ops.where(is_first, after[name], before[name])
            rows.append(ops.stack([*seen, *after.values()]))
        self.state.assign(ops.stack(rows))

    def add(self, name, count):
        """Counts what does not belong to a single head, under the first one.

        Args:
            name: of `COUNTS`.
            count: scalar.
        """
        place = np.zeros(self.state.shape)
        place[0, len(_ROLES) + COUNTS.index(name)] = 1
        place = ops.convert_to_tensor(place, self.dtype)
        self.state.assign_add(ops.cast(count, self.dtype) * place)

    @staticmethod
    def any_in(state):
        """Whether a value of `state` counts any invalid example.

        Args:
            state: [heads, roles + counts].

        Returns:
            A boolean scalar.
        """
        return ops.any(ops.not_equal(state[:, len(_ROLES) :], 0))

    def result(self):
        """[heads, roles + counts], see `state`."""
        return ops.convert_to_tensor(self.state)

    def check(self, distiller):
        """Raises for what the last steps counted.

        Args:
            distiller: the `Distiller` that ran them.

        Raises:
            ValueError: with what was received.
            DivergedError: if it is the student's loss alone.
        """
        # Replica by replica: their sum, which is what a metric's variable
        # gives, would mix up the labels that two of them saw.
        strategy = distribution.strategy_of(distiller)
        for state in distribution.local_values(self.state.value, strategy):
            state = ops.convert_to_numpy(state)
            if np.any(state[:, len(_ROLES) :] != 0):
                break
        else:
            return
        self.reset_state()
        for head, row in zip(distiller.heads, state, strict=True):
            counts = dict(zip(COUNTS, row[len(_ROLES) :], strict=True))
            if any(counts.values()):
                _refuse(counts, distiller, head)


def _refuse(counts, distiller, head):
    """Raises for what was counted of one head."""
    if not any(counts[name] for name in ("inputs", "student", "teacher")):
        for role in _ROLES:
            if counts[f"{role}_output"]:
                head.reader(role).refuse()
    output = "" if head.name is None else f"Output {head.name!r}: "
    others = ("inputs", "outputs", "teacher", "other_classes")
    of_student = counts["student"] or counts["layers"] or counts["gradients"]
    diverged = of_student and not any(counts[name] for name in others)
    raise (DivergedError if diverged else ValueError)(
        f"{output}{_message(counts, distiller, head)} The batch left the "
        "student as it was."
    )


def _message(counts, distiller, head):
    """What was invalid, what was received and what to do about it."""
    if counts["inputs"]:
        return (
            "The inputs are not finite. Received: NaN or infinity in "
            f"{how_many(counts['inputs'], 'value')} of a batch's inputs. Look "
            "for missing values and for divisions by zero in the preprocessing."
        )
    if counts["outputs"]:
        return precomputed.fault_message(
            counts["outputs"],
            counts["fault"],
            counts["fault_row"],
            head.num_classes,
        )
    if counts["other_classes"]:
        return (
            "A teacher's statistics belong to its classes. Received: "
            f"{how_many(counts['other_classes'], 'example')} with those of "
            "another number of classes than the "
            f"{head.compared_classes} that are compared. Use the cache of a "
            "teacher of these classes. If the models share only the first n, "
            "pass shared_classes=n, and write the cache for `KD`, or for a "
            "teacher that was cut: keras.Model(t.inputs, "
            "t.outputs[0][..., :n])."
        )
    if counts["teacher"]:
        return (
            "What the teacher gives is not finite. Received: NaN or infinite "
            f"logits or statistics from {_teacher_name(distiller)} for "
            f"{how_many(counts['teacher'], 'example')} of a batch. Check "
            "its weights, its input's preprocessing and its dtype (float16 "
            "overflows at 65504)."
        )
    if counts["student"]:
        return (
            "The student's loss is not finite. Received: NaN or infinity from "
            f"student {distiller.student.name!r} for "
            f"{how_many(counts['student'], 'example')} of a batch, with finite "
            "inputs. Lower the learning rate, or clip gradients; check the "
            "student's weights and its dtype (float16 overflows at 65504). "
            "Classes that it rules out by logits of -inf need a loss that "
            "gives them nothing: KD, with a teacher that rules them out too."
        )
    if counts["weights"]:
        return (
            "The loss is not finite, though that of each example is. Received: "
            "sample or class weights that are NaN, infinite, or so large that "
            "the sum over the batch is. Check `sample_weight` and "
            "`class_weight`; an example that is not to count has the weight 0."
        )
    if counts["layers"]:
        return (
            "A loss of the student's own layers is not finite. Received: NaN "
            "or infinity from `add_loss` or a regularizer of student "
            f"{distiller.student.name!r}, with finite inputs. Look for "
            "divisions by zero and roots of negative numbers in it; lower the "
            "learning rate, or clip gradients."
        )
    if counts["gradients"]:
        return (
            "The student's gradient is not finite, though its loss is. "
            "Received: NaN or infinity in the update of student "
            f"{distiller.student.name!r}. Look for roots, norms, logarithms "
            "and divisions of 0 in its layers and losses: their value may be "
            "finite where their gradient is not, also in the branch that "
            "`where` does not choose."
        )
    if counts["empty"]:
        return (
            "A loss of the student's own layers is not finite on a replica "
            "without examples. Received: a batch of fewer examples than "
            "replicas, and NaN or infinity from `add_loss` or a regularizer of "
            f"student {distiller.student.name!r}; a mean over no examples is "
            "0 / 0, in plain Keras too. Leave such a batch out, with "
            "batch(size, drop_remainder=True), or let the layer divide by "
            "at least 1."
        )
    if counts["stale"]:
        return (
            "Statistics of the teacher belong to a temperature. Received: "
            f"{how_many(counts['stale'], 'example')} with statistics of "
            "another than "
            f"the loss's {head.loss.tunables['temperature']:g}. Write the "
            "cache for a loss of this temperature; to change it while "
            "training, write it for `KD` and attach it without a loss, as in "
            "attach(dataset): the teacher's logits serve every temperature."
        )
    if counts["other_teacher"]:
        return (
            "The Distiller's teacher is not the one whose statistics the data "
            f"carry. Received: {_teacher_name(distiller)} and "
            f"{how_many(counts['other_teacher'], 'example')} with the "
            "statistics of another. Pass the teacher that the cache was "
            "written with, or none: Distiller(student)."
        )
    if head.has_soft_labels and not head.has_units:
        return (
            "Soft labels are shares of the classes, not negative and with a "
            "sum of 1 for each example. Received: "
            f"{how_many(counts['labels'], 'row')} unlike that, with sums of up "
            f"to {counts['label']:g}. Normalise them, labels / labels.sum(-1); "
            "pass class ids as integers with one axis less; and say "
            "student_output='binary_logits' where each output is a sigmoid's."
            f"{_unlabelled_hint(head, counts['label'] == 0)}"
        )
    label = counts["label"]
    # A share may be NaN.
    label = int(label) if np.isfinite(label) else label
    hint = _unlabelled_hint(head, counts["label"] == UNLABELLED)
    if label in _PADDING and head.loss.ignore_class is None:
        hint = (
            f" If {label} marks what is not to count, give the loss "
            f"ignore_class={label}."
        )
    if head.has_soft_labels:
        return (
            "A sigmoid's labels are 0 or 1, or between them. Received: label "
            f"{counts['label']:g} among {how_many(counts['labels'], 'label')} "
            f"unlike that, ignore_class={head.loss.ignore_class}. Check the "
            f"labels' encoding.{hint}"
        )
    label = "not a whole number" if label == NOT_WHOLE else f"label {label}"
    return (
        f"A label is not a class id of the student. Received: {label} among "
        f"{how_many(counts['labels'], 'label')} outside [0, "
        f"{head.num_classes}), "
        "ignore_class="
        f"{head.loss.ignore_class}. Check the labels' encoding, or the "
        f"units of the student's last layer.{hint}"
    )


# Labels of padding in PyTorch's losses, and of void pixels.
_PADDING = (-100, 255)


def _unlabelled_hint(head, is_marked):
    """What to say of labels that may mark examples without one."""
    reader = head.label_reader
    if reader is None or not is_marked:
        return ""
    if reader == EVALUATION:
        return f" {reader} reads every label; leave out what has none."
    return (
        f" {reader} reads the label of every example; KD and other losses "
        "that read none train on examples without a label."
    )


def _teacher_name(distiller):
    if distiller.teacher is None:
        return "the data"
    return f"teacher {distiller.teacher.name!r}"
