"""Intervals of paired differences."""

import dataclasses
import math

import numpy as np
import scipy


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of paired differences, with its 95 % confidence interval.

    Attributes:
        mean: float; above 0 is better.
        low: float, NaN for fewer than two seeds.
        high: float.
        seeds: number of differences.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self):
        """A "gain" or a "loss", or "inconclusive" where it crosses 0."""
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "inconclusive"


def paired_interval(differences, confidence=0.95):
    """Student's t interval of the mean of paired differences.

    Args:
        differences: [seeds] floats.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Example:
    >>> paired_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., seeds=3)

    Source: Student 1908, "The Probable Error of a Mean".
    """
    differences = np.asarray(differences, "float64")
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    error = differences.std(ddof=1) / math.sqrt(count)
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, count - 1)
    half = float(quantile * error)
    return Interval(mean, mean - half, mean + half, count)
