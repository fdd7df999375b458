"""The softmax seen from the label: stable log-odds, one pass, exact gradient.

Every closed form of the package needs the same three numbers of an example:
how far the label's logit stands above all the others together (its log-odds),
the log-normaliser, and the sum of the logits. They are taken together here,
because each alone would read the [..., classes] array again, and with a
gradient of their own, because automatic differentiation of the masked sum
costs four times as much.
"""

import dataclasses

from keras import ops

# Below this a float32 sum of exponentials has underflowed: log-odds stop at
# about +87, where the probability of the label is 1 in float32 anyway.
_SMALLEST_SUM = 1e-37


@dataclasses.dataclass(frozen=True)
class LabelSoftmax:
    """softmax(logits / temperature) of each example, as its label sees it.

    Attributes:
        log_odds: [...], log(q_t / (1 - q_t)) for the label t.
        log_normaliser: [...], log of the sum over classes of
            exp((z - max z) / temperature), in [0, log(classes)].
        gap_sum: [...], sum over classes of (max z - z_i) / temperature.
        logits: [..., classes], z as given.
        shift: [..., 1], max z, a constant to the gradient.
        temperature: scalar.
    """

    log_odds: object
    log_normaliser: object
    gap_sum: object
    logits: object
    shift: object
    temperature: object

    @property
    def num_classes(self):
        """Number of classes, a Python integer."""
        return self.logits.shape[-1]

    @property
    def cross_entropy(self):
        """[...], -log q_t, exact also where q_t rounds to 1."""
        return ops.softplus(-self.log_odds)

    @property
    def off_label_probability(self):
        """[...], 1 - q_t, exact also where q_t rounds to 1."""
        return ops.sigmoid(-self.log_odds)

    def gaps(self, classes=None):
        """(max z - z_i) / temperature, at least 0.

        Args:
            classes: [..., k] integer class ids, or `None` for all classes.

        Returns:
            [..., k], or [..., classes].
        """
        logits = self.logits
        if classes is not None:
            logits = ops.take_along_axis(logits, classes, axis=-1)
        return (self.shift - logits) / self.temperature


def label_softmax(logits, labels, temperature=1.0):
    """Looks at softmax(logits / temperature) from each example's label.

    With s the log-normaliser, s - u_i = log_normaliser + gap_i has two terms
    that are never negative, so no cross-entropy made of them cancels, however
    far apart the logits are.

    Args:
        logits: [..., classes], any float dtype that the result should have.
        labels: [...], integer class ids. An id outside [0, classes) matches
            no class; what comes out for it has no meaning but is finite.
        temperature: scalar above 0.

    Returns:
        A `LabelSoftmax`.

    Example:
    >>> softmax = label_softmax(np.array([[2.0, 0.0]], "float32"), [0])
    >>> float(softmax.log_odds[0])
    2.0
    """
    logits = ops.convert_to_tensor(logits)
    labels = ops.cast(labels, "int32")
    num_classes = logits.shape[-1]
    temperature = ops.convert_to_tensor(temperature, dtype=logits.dtype)
    is_label = ops.equal(
        ops.expand_dims(labels, -1), ops.arange(num_classes, dtype="int32")
    )
    label_index = ops.expand_dims(ops.clip(labels, 0, num_classes - 1), -1)
    shift = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))

    log_odds, log_normaliser, gap_sum = _normalise(
        logits, is_label, label_index, shift, temperature
    )
    return LabelSoftmax(
        log_odds, log_normaliser, gap_sum, logits, shift, temperature
    )


def _normalise(logits, is_label, label_index, shift, temperature):
    """Log-odds, log-normaliser and gap sum, differentiable in the logits."""

    @ops.custom_gradient
    def normalise(logits):
        scaled = (logits - shift) / temperature
        label_scaled = ops.take_along_axis(scaled, label_index, axis=-1)
        label_exp = ops.exp(label_scaled)
        others_exp = ops.where(
            is_label, ops.zeros_like(scaled), ops.exp(scaled)
        )
        # The label's own exponential is left out of the sum, not taken off it
        # afterwards: 1 - q_t then keeps its digits where q_t is close to 1.
        others_sum = ops.sum(others_exp, axis=-1, keepdims=True)
        total = others_sum + label_exp
        safe_others_sum = ops.maximum(others_sum, _SMALLEST_SUM)
        log_odds = label_scaled - ops.log(safe_others_sum)
        log_normaliser = ops.where(
            label_scaled < 0, ops.log(total), ops.log1p(others_sum)
        )
        gap_sum = -ops.sum(scaled, axis=-1, keepdims=True)
        outputs = (log_odds, log_normaliser, gap_sum)

        def gradient(*args, upstream=None):
            up_odds, up_normaliser, up_gap = (
                ops.expand_dims(g, -1)
                for g in (args if upstream is None else upstream)
            )
            per_exp = up_normaliser / total - up_odds / safe_others_sum
            others = others_exp * (per_exp / temperature)
            label = (up_odds + up_normaliser * label_exp / total) / temperature
            return ops.where(is_label, label, others) - up_gap / temperature

        return tuple(ops.squeeze(o, -1) for o in outputs), gradient

    return normalise(logits)
