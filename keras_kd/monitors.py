"""What the Distiller watches while a student trains."""

import keras
import numpy as np
from keras import ops

from keras_kd import distribution
from keras_kd.distillation_loss import expand_weights
from keras_kd.metrics import GradientScale

# Which examples a histogram of gradient scales is about.
GROUPS = ("all", "teacher_right", "teacher_wrong")


class Monitors:
    """Means of the loss's parts, gradient scales, and bad examples.

    Args:
        loss: a `DistillationLoss`.
        gradient_scale: a `GradientScale` that gives the bins, or `None` for
            no histograms.
    """

    def __init__(self, loss, gradient_scale=None):
        names = ("cross_entropy", *loss.term_names)
        self.parts = {name: keras.metrics.Mean(name=name) for name in names}
        self.scales = {}
        self.faults = Faults()
        if gradient_scale is not None:
            config = gradient_scale.get_config()
            for group in GROUPS:
                suffix = "" if group == "all" else f"_{group}"
                config["name"] = f"gradient_scale{suffix}"
                self.scales[group] = GradientScale.from_config(config)

    @property
    def metrics(self):
        """The metrics that start anew with each epoch."""
        return [*self.parts.values(), *self.scales.values()]

    def update(self, parts, counted, sample_weight=None, teacher_right=None):
        """Takes note of a batch.

        Args:
            parts: `LossParts`.
            counted: [...] booleans, which examples count.
            sample_weight: optional, [batch] or [...].
            teacher_right: optional [...] booleans, whether the teacher's
                largest logit is the label's.
        """
        weight = ops.cast(counted, "float32")
        if sample_weight is not None:
            sample_weight = expand_weights(sample_weight, weight)
            weight = weight * ops.cast(sample_weight, "float32")
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


class Faults(keras.metrics.Metric):
    """Remembers what must not be trained on, until the step is over.

    A compiled step can't raise (XLA drops assertions), so it leaves bad
    examples out of the loss and notes them here; the host looks after the
    step and raises.
    """

    def __init__(self):
        super().__init__(name="faults")
        # All 0 as long as all is well: number of bad labels, one of them,
        # number of examples for which the teacher's logits were not finite,
        # and of those whose statistics are of another temperature.
        self.state = self.add_variable((4,), "zeros", name="state")

    def update_state(self, labels, in_range, teacher_finite, current):
        """Takes note of a batch.

        Args:
            labels: [...] int32.
            in_range: [...] booleans, false for labels that are no class ids.
            teacher_finite: [...] booleans.
            current: [...] booleans, false for statistics of a temperature
                that is not the loss's.
        """
        bad = ops.logical_not(in_range)
        largest_bad = ops.max(ops.where(bad, labels, np.iinfo("int32").min))
        count, label, teacher, stale = ops.unstack(
            ops.convert_to_tensor(self.state), 4
        )
        is_first = ops.logical_and(ops.equal(count, 0), ops.any(bad))
        self.state.assign(
            ops.stack(
                [
                    count + self._number(bad),
                    ops.where(
                        is_first, ops.cast(largest_bad, self.dtype), label
                    ),
                    teacher + self._number(ops.logical_not(teacher_finite)),
                    stale + self._number(ops.logical_not(current)),
                ]
            )
        )

    def _number(self, booleans):
        return ops.sum(ops.cast(booleans, self.dtype))

    def result(self):
        """[4], see `state`."""
        return ops.convert_to_tensor(self.state)

    def check(self, distiller):
        """Raises for what the last steps noted.

        Args:
            distiller: the `Distiller` that ran them.

        Raises:
            ValueError: with what was received.
        """
        # Replica by replica: their sum, which is what a metric's variable
        # gives, would mix up the labels that two of them saw.
        strategy = distribution.strategy_of(distiller)
        for state in distribution.local_values(self.state.value, strategy):
            count, label, teacher, stale = ops.convert_to_numpy(state)
            if count or teacher or stale:
                break
        else:
            return
        self.reset_state()
        if teacher:
            raise ValueError(
                "The teacher's logits are not finite. Received: NaN or "
                f"infinite logits from teacher {distiller.teacher.name!r} for "
                f"{int(teacher)} examples of a batch. Check its weights, its "
                "input's preprocessing and its dtype (float16 overflows at "
                "65504). The student was not trained on these examples."
            )
        if stale:
            raise ValueError(
                "Statistics of the teacher belong to a temperature. Received: "
                f"{int(stale)} examples with statistics of another than the "
                f"loss's {distiller.loss.tunables['temperature']:g}. Write the "
                "cache for a loss of this temperature; to change it while "
                "training, write it for `KD`, whose statistics serve every "
                "temperature. The student was not trained on these examples."
            )
        raise ValueError(
            "A label is no class id of the student. Received: label "
            f"{int(label)} among {int(count)} labels outside [0, "
            f"{distiller.num_classes}), ignore_class="
            f"{distiller.loss.ignore_class}. Check the labels' encoding, or "
            "the units of the student's last layer. The student was not "
            "trained on these examples."
        )
