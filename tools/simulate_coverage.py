"""How often the intervals of an attribution hold the true gain.

    python tools/simulate_coverage.py

Students of two methods are simulated on test sets: each example has a
difficulty that all students share, a part that its method gives it with every
seed, and one of each training; each seed may move a whole method. The true
gain is known in closed form. Six minutes of processor time.
"""

import dataclasses
import itertools

import click
import numpy as np
import rich.progress
import scipy.special
import scipy.stats

from keras_kd.attribution.intervals import Parts
from keras_kd.reports import tables

SEEDS = (2, 3, 5, 10)
EXAMPLES = (300, 1000, 10_000)
# Numbers in memory at a time.
_CHUNK = 2_000_000


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Methods whose examples are right or wrong.

    Attributes:
        accuracy: of the baseline.
        gain: what the method adds to it.
        moved: standard deviation of a method's accuracy over seeds, in an
            infinite test set.
        of_method: share of an example's latent variance that is its method's,
            whatever the seed.
        of_training: share that is each training's own.
    """

    accuracy: float
    gain: float
    moved: float = 0.0
    of_method: float = 0.03
    of_training: float = 0.15

    def __str__(self):
        method = self.accuracy + self.gain
        return (
            f"{100 * method:.3g} against {100 * self.accuracy:.3g} %, seeds "
            f"move {100 * self.moved:.2g} points"
            + (", examples differ" if self.of_method > 0.03 else "")
        )

    @property
    def truth(self):
        """The expected difference of an example."""
        return self.gain

    def differences(self, random, shape):
        """[repetitions, seeds, examples] differences."""
        shared = 1 - self.of_method - self.of_training
        of_all = _normal(random, shape, (0, 2), shared)
        right = []
        for accuracy in (self.accuracy, self.accuracy + self.gain):
            level = scipy.special.ndtri(accuracy)
            # From accuracy to the latent scale, by its density there.
            variance = (self.moved / scipy.stats.norm.pdf(level)) ** 2
            latent = _normal(random, shape, (0, 1, 2), self.of_training)
            latent += _normal(random, shape, (0, 2), self.of_method)
            latent += _normal(random, shape, (0, 1), variance) + of_all
            right.append(latent + level * np.sqrt(1 + variance) > 0)
        return right[1].astype("float64") - right[0]


@dataclasses.dataclass(frozen=True)
class MeanLosses:
    """Perplexities: the loss of each piece of text, in nats.

    Attributes:
        gain: mean loss that the method takes away.
        moved: standard deviation of a method's mean loss over seeds.
        of_method: standard deviation, over examples, of a method's own part.
        of_training: the same of each training's own.
    """

    gain: float
    moved: float = 0.0
    of_method: float = 0.05
    of_training: float = 0.1

    def __str__(self):
        return (
            f"perplexity {100 * np.expm1(self.gain):.2g} % better, seeds move "
            f"{100 * self.moved:.2g} %"
        )

    @property
    def truth(self):
        """The expected difference of an example."""
        return self.gain

    def differences(self, random, shape):
        """[repetitions, seeds, examples] differences."""
        # Some pieces differ several times as much as others.
        size = np.exp(_normal(random, shape, (0, 2), 0.5))
        of_examples = _normal(random, shape, (0, 2), 2 * self.of_method**2)
        of_training = _normal(random, shape, (0, 1, 2), 2 * self.of_training**2)
        of_seeds = _normal(random, shape, (0, 1), 2 * self.moved**2)
        values = size * (of_examples + of_training) + of_seeds + self.gain
        return values.astype("float64")


REGIMES = (
    Accuracies(0.60, 0.03),
    Accuracies(0.60, 0.03, moved=0.01),
    Accuracies(0.75, 0.0, moved=0.002),
    Accuracies(0.75, 0.02, moved=0.005),
    Accuracies(0.75, 0.01, of_method=0.2, of_training=0.05),
    Accuracies(0.90, 0.01),
    Accuracies(0.90, 0.01, moved=0.01),
    Accuracies(0.97, 0.01, moved=0.002),
    Accuracies(0.989, 0.002),
    Accuracies(0.989, 0.002, moved=0.001),
    Accuracies(0.993, 0.0),
    MeanLosses(0.02),
    MeanLosses(0.0, moved=0.01),
)


def coverage(regime, seeds, examples, repetitions, random):
    """How often intervals hold the truth.

    Args:
        regime: `Accuracies` or `MeanLosses`.
        seeds: number of seeds.
        examples: number of test examples.
        repetitions: number of simulated attributions.
        random: `numpy.random.Generator`.

    Returns:
        Two shares: of the intervals over seeds and examples, and of Student's
        over seeds alone.
    """
    covered = np.zeros(2)
    chunk = max(1, _CHUNK // (seeds * examples))
    quantile = scipy.stats.t.isf(0.025, seeds - 1)
    for first in range(0, repetitions, chunk):
        number = min(chunk, repetitions - first)
        differences = regime.differences(random, (number, seeds, examples))
        parts = Parts.of(differences)
        error = np.abs(parts.mean - regime.truth)
        means = differences.mean(-1)
        alone = quantile * means.std(-1, ddof=1) / np.sqrt(seeds)
        for i, half in enumerate((parts.half_width(0.95), alone)):
            covered[i] += (error <= half + 1e-12).sum()
    return covered / repetitions


@click.command(context_settings={"show_default": True})
@click.option("--repetitions", type=click.IntRange(min=1), default=2000)
@click.option("--seed", type=int, default=0)
def main(repetitions, seed):
    """Prints a table of coverages, in Markdown."""
    rows = []
    cases = list(itertools.product(REGIMES, EXAMPLES))
    for regime, examples in rich.progress.track(cases, "Simulating"):
        row = {"regime": str(regime), "examples": f"{examples:,}"}
        for seeds in SEEDS:
            random = np.random.default_rng([seed, seeds, examples])
            both, alone = coverage(regime, seeds, examples, repetitions, random)
            row[f"{seeds} seeds"] = f"{100 * both:.1f} ({100 * alone:.1f})"
        rows.append(row)
    click.echo(tables.markdown(rows))


def _normal(random, shape, axes, variance):
    """Normal numbers that are the same along the axes not named."""
    own = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    values = random.standard_normal(own, dtype="float32")
    return values * np.float32(np.sqrt(variance))


if __name__ == "__main__":
    main()
