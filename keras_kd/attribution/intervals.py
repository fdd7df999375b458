"""Intervals of paired differences, over seeds and over test examples.

The difference between two methods varies with the seed and with the test
example, and every student meets every example. A two-way analysis of variance
of the differences d[seed, example] (random effects, one value a cell) gives
the mean squares of seeds, examples and residual, and their mean over S seeds
and N examples has the variance

    seeds / SN + (examples - residual) / SN

where that of the seeds holds the residual too, which is counted once. Few
seeds know the first part badly and many examples the second part well, so each
has its own quantile of Student's t, and the squares of the two half widths are
added: a "modified large-sample" interval. (One quantile for the sum, with
Satterthwaite's degrees of freedom, covers 87 % for 95 % with two seeds.)
"""

import dataclasses
import math

import numpy as np
import scipy.optimize
import scipy.special

# The first two were chosen by numerical integration over normal differences, so
# that intervals of 95 % cover in 94 to 97 % whatever the two parts are, from
# two seeds on; the third on simulated students that agree on nearly every
# example. tools/simulate_coverage.py measures what they come to. Squares added
# up are too wide where both parts count: some of the examples' part is taken
# from that of the seeds.
_COUNTED_TWICE = 0.1
# Seeds that happen to agree still leave so much of the residual.
_LEAST_RESIDUAL = 0.25
# Standard error, in examples: a gain of one example alone is never one.
_LEAST_ERROR = 0.6
_LEAST_P = 1e-12


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of paired differences, with its 95 % confidence interval.

    Attributes:
        mean: float; above 0 is better.
        low: float; NaN where the differences tell no interval: with fewer
            than two seeds, or seeds that agree exactly and no examples.
        high: float.
        seeds: number of paired seeds.
        examples: number of test examples; `None` where scores alone are
            known, so that the interval does not hold what another test set
            would change.
        p_value: of the two-sided test that the true mean is 0: at a
            confidence of one less it, the interval ends at 0. NaN without an
            interval.
    """

    mean: float
    low: float
    high: float
    seeds: int
    examples: int | None = None
    p_value: float = math.nan

    @property
    def over(self):
        """What it is over: "seeds", or "seeds and examples"."""
        return "seeds" if self.examples is None else "seeds and examples"

    @property
    def is_known(self):
        """Whether there is an interval, and not a mean alone."""
        return not math.isnan(self.low)

    @property
    def verdict(self):
        """A "gain" or a "loss", or "inconclusive" where it crosses 0."""
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "inconclusive"


def paired_interval(differences, confidence=0.95):
    """The interval of the mean of paired differences.

    Args:
        differences: [seeds] floats, for Student's t interval over the seeds;
            or [seeds, examples], the differences of each test example, for an
            interval that holds what another seed and what another test set
            would change.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Raises:
        ValueError: if they are of another shape, or not finite.

    Example:
    >>> paired_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., seeds=3,
        examples=None, p_value=0.074...)

    Source: Student 1908, "The Probable Error of a Mean"; of examples, Graybill
    and Wang 1980, "Confidence Intervals on Nonnegative Linear Combinations of
    Variances", with corrections for few seeds (see the module).
    """
    differences = np.asarray(differences, "float64")
    if differences.ndim not in (1, 2) or not np.isfinite(differences).all():
        raise ValueError(
            "Differences must be finite numbers, [seeds] or [seeds, examples]. "
            f"Received: shape {differences.shape} with "
            f"{np.sum(~np.isfinite(differences))} that are not finite. Pass "
            "one for each seed, or one for each seed and example."
        )
    if differences.ndim == 2 and differences.shape[1] > 1:
        return _over_both(differences, confidence)
    return _over_seeds(differences.reshape(len(differences)), confidence)


def holm(p_values):
    """P-values corrected for their number.

    Args:
        p_values: list of floats; a NaN is not a test, and stays.

    Returns:
        List of floats: where one is at most 0.05, the comparison survives, and
        the probability of any false survivor is at most 5 %.

    Example:
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test
    Procedure".
    """
    adjusted = np.array(p_values, "float64")
    tests = np.flatnonzero(~np.isnan(adjusted))
    order = tests[np.argsort(adjusted[tests], kind="stable")]
    factors = len(order) - np.arange(len(order))
    stepped = np.maximum.accumulate(adjusted[order] * factors)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the differences of seeds and examples vary by.

    Attributes:
        mean: [...] mean difference.
        seeds: [...] variance of the mean by seeds and residual.
        examples: [...] by examples.
        residual: [...] by the residual alone.
        unit: [...] the largest difference of an example; 1 if there is none.
        shape: (seeds, examples).
    """

    mean: np.ndarray
    seeds: np.ndarray
    examples: np.ndarray
    residual: np.ndarray
    unit: np.ndarray
    shape: tuple

    @classmethod
    def of(cls, differences):
        """The parts of [..., seeds, examples] differences."""
        seeds, examples = shape = differences.shape[-2:]
        of_seeds, of_examples = differences.mean(-1), differences.mean(-2)
        mean = of_seeds.mean(-1)
        left = differences - of_seeds[..., None] - of_examples[..., None, :]
        left += mean[..., None, None]
        residual = np.square(left).sum((-2, -1))
        residual /= (seeds - 1) * (examples - 1)
        by_example = seeds * of_examples.var(-1, ddof=1)
        by_seed = examples * of_seeds.var(-1, ddof=1)
        unit = np.abs(differences).max((-2, -1))
        cells = seeds * examples
        return cls(
            mean,
            by_seed / cells,
            np.maximum(by_example - residual, 0) / cells,
            residual / cells,
            np.where(unit > 0, unit, 1.0),
            shape,
        )

    def half_width(self, confidence):
        """[...] half of the interval's width."""
        seeds, examples = self.shape
        of_seeds = _quantile(confidence, seeds - 1) ** 2
        of_examples = _quantile(confidence, examples - 1) ** 2
        # The same at each confidence, so that a small p is none too small.
        twice = _COUNTED_TWICE * (_quantile(0.95, seeds - 1) / 1.96) ** 2
        by_examples = of_examples * self.examples
        by_seeds = np.maximum(
            of_seeds * self.seeds - twice * by_examples,
            of_examples * _LEAST_RESIDUAL * self.residual,
        )
        least = of_examples * np.square(_LEAST_ERROR * self.unit / examples)
        return np.sqrt(np.maximum(by_examples + by_seeds, least))


def _over_seeds(differences, confidence):
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    # Seeds that agree exactly say nothing of how far apart seeds are.
    if count < 2 or np.ptp(differences) == 0:
        return Interval(mean, math.nan, math.nan, count)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half = _quantile(confidence, count - 1) * error
    p_value = 2 * float(scipy.special.stdtr(count - 1, -abs(mean) / error))
    return Interval(mean, mean - half, mean + half, count, None, p_value)


def _over_both(differences, confidence):
    count, examples = differences.shape
    if count < 2:
        mean = float(differences.mean()) if count else math.nan
        return Interval(mean, math.nan, math.nan, count, examples)
    parts = Parts.of(differences)
    mean, half = float(parts.mean), float(parts.half_width(confidence))
    return Interval(
        mean, mean - half, mean + half, count, examples, _p_value(parts)
    )


def _p_value(parts):
    """The largest p for which the interval of 1 - p still reaches 0."""
    size = abs(parts.mean)

    def beyond(log_p):
        return float(parts.half_width(-math.expm1(log_p)) - size)

    # At a confidence of 0 the interval is its mean.
    if size == 0 or beyond(math.log1p(-1e-9)) >= 0:
        return 1.0
    if beyond(math.log(_LEAST_P)) <= 0:
        return _LEAST_P
    bounds = math.log(_LEAST_P), math.log1p(-1e-9)
    return math.exp(scipy.optimize.brentq(beyond, *bounds))


def _quantile(confidence, degrees):
    """Two-sided quantile of Student's t."""
    return -float(scipy.special.stdtrit(degrees, (1 - confidence) / 2))
