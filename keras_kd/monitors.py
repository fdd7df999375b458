"""What the Distiller watches while a student trains."""

import keras
import numpy as np
from keras import ops

from keras_kd import distribution, precomputed
from keras_kd.batch import NOT_WHOLE
from keras_kd.metrics import GradientScale

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


class Monitors:
    """Means of the loss's parts, gradient scales, and invalid examples.

    Args:
        loss: a `DistillationLoss`.
        gradient_scale: a `GradientScale` that gives the bins, or `None` for
            no histograms.
    """

    def __init__(self, loss, gradient_scale=None):
        names = ("cross_entropy", *loss.term_names)
        self.parts = {name: keras.metrics.Mean(name=name) for name in names}
        self.scales = {}
        self.invalid_examples = InvalidExamples()
        if gradient_scale is not None:
            config = gradient_scale.get_config()
            for group in GROUPS:
                suffix = "" if group == "all" else f"_{group}"
                config["name"] = f"gradient_scale{suffix}"
                self.scales[group] = GradientScale.from_config(config)

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
        values = {"cross_entropy": parts.cross_entropy, **parts.terms}
        for name, metric in self.parts.items():
            metric.update_state(values[name], sample_weight=weight)
        if not self.scales:
            return
        self.scales["all"].update_state(parts.gradient_scale, weight)
        if teacher_right is not None:
            right = ops.cast(teacher_right, "float32")
            for group, share in (
                ("teacher_right", right),
                ("teacher_wrong", 1.0 - right),
            ):
                self.scales[group].update_state(
                    parts.gradient_scale, weight * share
                )


# What `InvalidExamples` counts in a step, in this order: labels that are not
# class ids and the largest of them, examples whose loss is not finite because
# of the inputs, the student or the teacher, statistics of another temperature
# or teacher, outputs other than those expected of student or teacher, and a
# teacher's outputs in the data that are not valid, with what is wrong with the
# first and where it is.
_ROLES = ("student", "teacher")
_COUNTS = (
    "labels",
    "label",
    "inputs",
    "student",
    "teacher",
    "stale",
    "other_teacher",
    "student_output",
    "teacher_output",
    "outputs",
    "fault",
    "fault_row",
)
# What is told of the first batch that has any, by what is counted.
_TOLD = {"label": "labels", "fault": "outputs", "fault_row": "outputs"}


class InvalidExamples(keras.metrics.Metric):
    """Counts the examples that must not be trained on.

    A compiled step can't raise (XLA drops assertions), so it leaves the
    student as it was, counts why, and the host raises after the step.
    """

    def __init__(self):
        super().__init__(name="invalid_examples")
        # Batches of which the outputs of student and teacher were seen, then
        # all 0 as long as all is well.
        self.state = self.add_variable(
            (len(_ROLES) + len(_COUNTS),), "zeros", name="state"
        )

    # Not a property: Keras reads those when it saves, which the chief of
    # several workers does alone, and this adds up over all of them.
    def is_first_batch(self, role):
        """Whether no batch of a model's outputs was seen yet.

        A method: Keras reads properties when it saves, and this one joins all
        workers.

        Args:
            role: "student" or "teacher".

        Returns:
            A boolean scalar tensor.
        """
        return ops.equal(self.result()[_ROLES.index(role)], 0)

    def update_state(self, roles, **counts):
        """Counts a batch.

        Args:
            roles: the roles of the models whose outputs were seen.
            **counts: scalars by names of `_COUNTS`; others are 0.
        """
        before = ops.unstack(self.result(), len(_ROLES) + len(_COUNTS))
        seen = [
            count + float(role in roles)
            for role, count in zip(_ROLES, before, strict=False)
        ]
        before = dict(zip(_COUNTS, before[len(_ROLES) :], strict=True))
        after = {
            name: count + ops.cast(counts.get(name, 0), self.dtype)
            for name, count in before.items()
        }
        for name, counted in _TOLD.items():
            is_first = ops.equal(before[counted], 0)
            after[name] = ops.where(is_first, after[name], before[name])
        self.state.assign(ops.stack([*seen, *after.values()]))

    @staticmethod
    def any_in(state):
        """Whether a value of `state` counts any invalid example.

        Args:
            state: [roles + counts].

        Returns:
            A boolean scalar.
        """
        return ops.any(ops.not_equal(state[len(_ROLES) :], 0))

    def result(self):
        """[roles + counts], see `state`."""
        return ops.convert_to_tensor(self.state)

    def check(self, distiller):
        """Raises for what the last steps counted.

        Args:
            distiller: the `Distiller` that ran them.

        Raises:
            ValueError: with what was received.
        """
        # Replica by replica: their sum, which is what a metric's variable
        # gives, would mix up the labels that two of them saw.
        strategy = distribution.strategy_of(distiller)
        for state in distribution.local_values(self.state.value, strategy):
            state = ops.convert_to_numpy(state)
            if np.any(state[len(_ROLES) :] != 0):
                break
        else:
            return
        self.reset_state()
        counts = dict(zip(_COUNTS, state[len(_ROLES) :], strict=True))
        if not any(counts[name] for name in ("inputs", "student", "teacher")):
            for reader in (distiller.student_reader, distiller.teacher_reader):
                if reader is not None and counts[f"{reader.role}_output"]:
                    reader.refuse()
        raise ValueError(
            f"{_message(counts, distiller)} The batch left the student as it "
            "was."
        )


def _message(counts, distiller):
    """What was invalid, what was received and what to do about it."""
    if counts["inputs"]:
        return (
            "The inputs are not finite. Received: NaN or infinity in "
            f"{int(counts['inputs'])} inputs of a batch. Look for missing "
            "values and for divisions by zero in the preprocessing."
        )
    if counts["outputs"]:
        return precomputed.fault_message(
            counts["outputs"],
            counts["fault"],
            counts["fault_row"],
            distiller.num_classes,
        )
    if counts["teacher"]:
        return (
            "What the teacher gives is not finite. Received: NaN or infinite "
            f"logits or statistics from {_teacher_name(distiller)} for "
            f"{int(counts['teacher'])} examples of a batch. Check its weights, "
            "its input's preprocessing and its dtype (float16 overflows at "
            "65504)."
        )
    if counts["student"]:
        return (
            "The student's loss is not finite. Received: NaN or infinity from "
            f"student {distiller.student.name!r} for "
            f"{int(counts['student'])} examples of a batch, with finite "
            "inputs. Lower the learning rate, or clip gradients; check the "
            "student's weights and its dtype (float16 overflows at 65504)."
        )
    if counts["stale"]:
        return (
            "Statistics of the teacher belong to a temperature. Received: "
            f"{int(counts['stale'])} examples with statistics of another than "
            f"the loss's {distiller.loss.tunables['temperature']:g}. Write the "
            "cache for a loss of this temperature; to change it while "
            "training, write it for `KD`, whose statistics serve every "
            "temperature."
        )
    if counts["other_teacher"]:
        return (
            "The Distiller's teacher is not the one whose statistics the data "
            f"carry. Received: {_teacher_name(distiller)} and "
            f"{int(counts['other_teacher'])} examples with the statistics of "
            "another. Pass the teacher that the cache was written with, or "
            "none: Distiller(student)."
        )
    label = int(counts["label"])
    label = "not a whole number" if label == NOT_WHOLE else f"label {label}"
    return (
        f"A label is not a class id of the student. Received: {label} among "
        f"{int(counts['labels'])} labels outside [0, {distiller.num_classes}), "
        "ignore_class="
        f"{distiller.loss.ignore_class}. Check the labels' encoding, or the "
        "units of the student's last layer."
    )


def _teacher_name(distiller):
    if distiller.teacher is None:
        return "the data"
    return f"teacher {distiller.teacher.name!r}"
