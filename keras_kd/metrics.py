"""Gradient scales: a streaming histogram of how a loss rescales gradients."""

import keras
import numpy as np
from keras import ops

# The bins of w, here and in a diagnosis.
LOW, HIGH, BINS = -3.0, 5.0, 80


def bin_edges(low=LOW, high=HIGH, bins=BINS):
    """[bins + 1] NumPy array, the edges of bins of equal width."""
    return np.linspace(low, high, bins + 1)


def bin_index(values, low=LOW, high=HIGH, bins=BINS):
    """The bins that values fall in.

    Args:
        values: [...] floats, not NaN.
        low: float, left edge of the first bin, which also counts lower values.
        high: float, right edge of the last bin, which also counts higher ones.
        bins: integer, number of bins of equal width.

    Returns:
        [...] int32.
    """
    position = (values - low) * (bins / (high - low))
    return ops.cast(ops.floor(ops.clip(position, 0.0, bins - 1.0)), "int32")


def median(histogram, edges, sums=None):
    """The median of what a histogram counts, to within a bin.

    The values of a bin are taken to be even about their mean, as far to either
    side as the bin reaches. So it is exact of values that are all the same,
    such as a w of 1, which lies on an edge.

    Args:
        histogram: [bins] NumPy array of counts.
        edges: [bins + 1] NumPy array.
        sums: optional [bins] NumPy array, the sums of the values of each bin;
            by default their mean is the middle of the bin.

    Returns:
        A float within the edges, 0 if nothing was counted.
    """
    seen = histogram > 0
    if not seen.any():
        return 0.0
    counts, low, high = histogram[seen], edges[:-1][seen], edges[1:][seen]
    means = (low + high) / 2
    if sums is not None:
        means = np.clip(sums[seen] / counts, low, high)
    reach = np.minimum(means - low, high - means)
    below = np.cumsum(counts)
    half = below[-1] / 2
    # Between two bins if half of the values lie in either direction.
    places = []
    for at in (np.argmax(below >= half), np.argmax(below > half)):
        share = 1 - (below[at] - half) / counts[at]
        places.append(means[at] + (2 * share - 1) * reach[at])
    return float(np.mean(places))


def _are_bins(low, high, bins):
    """Whether bins can be made of these."""
    try:
        is_range = -np.inf < low < high < np.inf
    except TypeError:
        return False
    return is_range and isinstance(bins, (int, np.integer)) and bins >= 1


@keras.saving.register_keras_serializable(package="keras_kd")
class GradientScale(keras.metrics.Metric):
    """Histogram of the gradient scale w over the examples seen.

    w is the ratio of the distillation loss's gradient on the label's logit
    (and equally on the sum of the others) to that of plain cross-entropy:
    w > 1 turns an example up, 0 < w < 1 turns it down, w < 0 reverses it. It
    is undefined where the student's probability of the label is 1; such
    examples come as NaN, are counted and left out.

    The result is the mean. Counts are float32, exact up to 16.7 million a
    bin; they add up over the replicas of a distribution strategy.

    Args:
        low: float, left edge of the first bin.
        high: float, right edge of the last bin.
        bins: integer, number of bins of equal width. Values outside [low,
            high] are counted in the first and the last bin; mean and share
            of reversed examples use the values themselves.
        name: optional name.
        dtype: optional dtype.

    Raises:
        ValueError: if `low` and `high` are not finite, `low` is not below
            `high`, or `bins` is not an integer of at least 1.

    Example:
    >>> scale = GradientScale()
    >>> scale.update_state(np.array([0.5, 1.5, -1.0, np.nan], "float32"))
    >>> scale.summary()["reversed_share"]
    0.3333333432674408

    Source: Tang et al. 2020, section 3.2, proposition 1.
    """

    def __init__(
        self, low=LOW, high=HIGH, bins=BINS, name="gradient_scale", dtype=None
    ):
        super().__init__(name=name, dtype=dtype)
        if not _are_bins(low, high, bins):
            raise ValueError(
                "GradientScale needs finite low < high and at least one bin. "
                f"Received: low={low}, high={high}, bins={bins}. The default "
                "is low=-3, high=5, bins=80."
            )
        self.low, self.high, self.bins = float(low), float(high), int(bins)
        self.histogram = self.add_variable(
            (self.bins,), "zeros", name="histogram"
        )
        # Sum of w by bin, which makes the median exact where w is constant.
        self.sums = self.add_variable((self.bins,), "zeros", name="sums")
        # Numbers of w < 0, of undefined w and of no label.
        self.totals = self.add_variable((3,), "zeros", name="totals")

    @property
    def edges(self):
        """[bins + 1] NumPy array, the edges of the bins."""
        return bin_edges(self.low, self.high, self.bins)

    def update_state(
        self, gradient_scale, mask=None, shares=None, unlabelled=0
    ):
        """Counts a batch.

        Args:
            gradient_scale: [...], w of each example, NaN where undefined.
            mask: optional [...], examples to count where it is not 0.
            shares: optional [...], how much of an example each value is, as
                of the classes of a soft label; 1 by default.
            unlabelled: scalar, number of further examples, without a label
                and so without a w.
        """
        values = ops.reshape(ops.cast(gradient_scale, self.dtype), (-1,))
        if mask is None:
            counted = ops.ones_like(values, dtype="bool")
        else:
            counted = ops.not_equal(ops.reshape(mask, (-1,)), 0)
        undefined = ops.isnan(values)
        defined = ops.logical_and(counted, ops.logical_not(undefined))
        values = ops.where(defined, values, 0.0)
        share = 1.0 if shares is None else ops.reshape(shares, (-1,))
        number = ops.cast(defined, self.dtype) * share

        index = bin_index(values, self.low, self.high, self.bins)
        self.histogram.assign_add(
            ops.segment_sum(number, index, num_segments=self.bins)
        )
        self.sums.assign_add(
            ops.segment_sum(values * number, index, num_segments=self.bins)
        )
        self.totals.assign_add(
            ops.stack(
                [
                    ops.sum(ops.cast(values < 0, self.dtype) * number),
                    ops.sum(
                        ops.cast(
                            ops.logical_and(counted, undefined), self.dtype
                        )
                        * share
                    ),
                    ops.cast(unlabelled, self.dtype),
                ]
            )
        )

    def result(self):
        """The mean of w, NaN before the first example that has one."""
        return ops.sum(self.sums) / ops.sum(self.histogram)

    def snapshot(self):
        """What was counted so far, to be given to `summary` later.

        Returns:
            [2 * bins + 3] NumPy array.
        """
        return np.concatenate(
            [
                ops.convert_to_numpy(variable)
                for variable in (self.histogram, self.sums, self.totals)
            ]
        )

    def summary(self, since=None):
        """Everything that was counted.

        Args:
            since: optional earlier `snapshot`, to leave out what it counted.

        Returns:
            A dict: "count" (examples with a defined w), "mean", "median"
            (to within a bin, and exact of values that are all the same; unlike
            the mean it is not moved by the huge values of examples of which
            the student is nearly sure),
            "reversed_share" (share of them with w < 0), "undefined_share"
            (share of labelled examples left out because q_t is 1),
            "unlabelled" (number of examples without a label), "histogram"
            ([bins] NumPy array) and "edges" ([bins + 1]).
        """
        counts = self.snapshot() if since is None else self.snapshot() - since
        histogram, sums, totals = np.split(counts, [self.bins, 2 * self.bins])
        reversed_, undefined, unlabelled = totals
        count = float(histogram.sum())
        return {
            "count": count,
            "mean": float(sums.sum() / max(count, 1)),
            "median": median(histogram, self.edges, sums),
            "reversed_share": float(reversed_ / max(count, 1)),
            "undefined_share": float(undefined / max(count + undefined, 1)),
            "unlabelled": float(unlabelled),
            "histogram": histogram,
            "edges": self.edges,
        }

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "low": self.low,
            "high": self.high,
            "bins": self.bins,
        }
