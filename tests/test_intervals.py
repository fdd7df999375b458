"""Intervals: their numbers, how often they cover, and what survives Holm."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import simulate_coverage

from keras_kd import attribution
from keras_kd.attribution.intervals import Parts, holm, paired_interval

# -- over seeds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "table"),
    [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)],
)
def test_intervals_have_the_width_of_a_printed_t_table(count, table):
    """The two-sided 5 % points that textbooks print, to their digits."""
    differences = np.arange(count) % 2.0
    interval = paired_interval(differences)
    mean = sum(differences) / count
    squares = sum((each - mean) ** 2 for each in differences)
    error = math.sqrt(squares / (count - 1) / count)
    assert interval.mean == pytest.approx(mean, rel=1e-12)
    assert (interval.high - mean) / error == pytest.approx(table, abs=5e-4)
    assert (mean - interval.low) / error == pytest.approx(table, abs=5e-4)


def test_an_interval_with_one_degree_of_freedom_is_cauchys():
    """There the quantile has a closed form: tan(pi * (p - 1/2))."""
    interval = paired_interval([1.0, 3.0], confidence=0.9)
    half = math.tan(math.pi * 0.45)
    assert interval.low == pytest.approx(2 - half, rel=1e-9)
    assert interval.high == pytest.approx(2 + half, rel=1e-9)


def test_paired_intervals_are_those_of_the_t_test():
    differences = np.random.default_rng(0).normal(0.3, 1, 8)
    ours = paired_interval(differences)
    test = scipy.stats.ttest_1samp(differences, 0)
    theirs = test.confidence_interval(0.95)
    np.testing.assert_allclose(
        (ours.mean, ours.low, ours.high, ours.p_value),
        (differences.mean(), theirs.low, theirs.high, test.pvalue),
        rtol=1e-7,
    )
    assert (ours.seeds, ours.examples, ours.over) == (8, None, "seeds")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.1, 0.9], "gain"),
        ([-1.0, -1.1, -0.9], "loss"),
        ([1.0, -1.1, 0.9], "inconclusive"),
        ([-1.0, 1.1, -0.9], "inconclusive"),
        ([0.0, 0.0, 0.0], "inconclusive"),
        ([5.0], "inconclusive"),
        # They say nothing of how far apart other seeds are.
        ([0.00278, 0.00278], "inconclusive"),
    ],
)
def test_verdicts(differences, verdict):
    assert paired_interval(differences).verdict == verdict


# -- over seeds and examples ---------------------------------------------------


def sums_of_squares(d):
    """Mean squares of seeds, examples and residual, number by number."""
    seeds, examples = len(d), len(d[0])
    cells = list(itertools.product(range(seeds), range(examples)))
    mean = math.fsum(d[s][e] for s, e in cells) / len(cells)
    of_seed = [math.fsum(row) / examples for row in d]
    of_example = [
        math.fsum(row[e] for row in d) / seeds for e in range(examples)
    ]
    by_seed = examples * math.fsum((m - mean) ** 2 for m in of_seed)
    by_example = seeds * math.fsum((m - mean) ** 2 for m in of_example)
    whole = math.fsum((d[s][e] - mean) ** 2 for s, e in cells)
    residual = whole - by_seed - by_example
    return (
        by_seed / (seeds - 1),
        by_example / (examples - 1),
        residual / (seeds - 1) / (examples - 1),
    )


@pytest.mark.parametrize(("seeds", "examples"), [(2, 40), (3, 50), (6, 80)])
@pytest.mark.parametrize("moved", [0.0, 0.3, 3.0])
def test_the_interval_is_the_sum_of_both_parts(seeds, examples, moved):
    """From textbook sums of squares and SciPy's quantiles."""
    random = np.random.default_rng(seeds)
    d = (
        moved * random.normal(size=(seeds, 1))
        + random.normal(size=(1, examples))
        + random.normal(size=(seeds, examples))
    )
    by_seed, by_example, residual = sums_of_squares(d.tolist())
    cells = seeds * examples
    for confidence in (0.8, 0.95, 0.999):
        tail = (1 - confidence) / 2
        of_seeds = scipy.stats.t.isf(tail, seeds - 1) ** 2
        of_examples = scipy.stats.t.isf(tail, examples - 1) ** 2
        test_set = of_examples * (by_example - residual) / cells
        counted = 0.1 * (scipy.stats.t.isf(0.025, seeds - 1) / 1.96) ** 2
        other_seeds = of_seeds * by_seed / cells - counted * test_set
        least = of_examples * residual / cells / 4
        half = math.sqrt(test_set + max(other_seeds, least))
        interval = paired_interval(d, confidence)
        assert interval.mean == pytest.approx(d.mean(), rel=1e-12)
        assert interval.high - interval.mean == pytest.approx(half, rel=1e-9)
        assert interval.mean - interval.low == pytest.approx(half, rel=1e-9)
    assert (interval.seeds, interval.examples) == (seeds, examples)
    assert interval.over == "seeds and examples"


def test_the_parts_are_those_that_the_differences_were_made_of():
    """Unbiased: means over many simulations are the true variances."""
    random = np.random.default_rng(0)
    seeds, examples = shape = 4, 60
    found = Parts.of(
        0.2 * random.normal(size=(3000, seeds, 1))
        + 0.5 * random.normal(size=(3000, 1, examples))
        + 1.0 * random.normal(size=(3000, *shape))
    )
    residual = 1.0 / (seeds * examples)
    np.testing.assert_allclose(found.residual.mean(), residual, rtol=0.01)
    np.testing.assert_allclose(
        found.seeds.mean(), 0.04 / seeds + residual, rtol=0.05
    )
    np.testing.assert_allclose(
        found.examples.mean(), 0.25 / examples, rtol=0.03
    )
    # And what they say of the mean is how far it strays.
    np.testing.assert_allclose(
        found.mean.var(),
        (found.seeds + found.examples).mean(),
        rtol=0.06,
    )


def test_a_bootstrap_over_seeds_and_examples_agrees():
    """It counts the residual three times, which is known (Owen 2007)."""
    random = np.random.default_rng(1)
    seeds, examples = 30, 200
    d = (
        0.1 * random.normal(size=(seeds, 1))
        + 0.3 * random.normal(size=(1, examples))
        + random.normal(size=(seeds, examples))
    )
    means = []
    for _ in range(2000):
        rows = random.integers(seeds, size=seeds)
        columns = random.integers(examples, size=examples)
        means.append(d[rows][:, columns].mean())
    parts = Parts.of(d)
    expected = parts.seeds + parts.examples + 2 * parts.residual
    assert np.var(means) == pytest.approx(expected, rel=0.1)


def test_many_seeds_and_examples_of_one_kind_give_the_t_test():
    """Where only one of both varies, the interval is Student's over it."""
    random = np.random.default_rng(2)
    rows = random.normal(0.3, 1, (12, 1))
    one = paired_interval(rows + 1e-9 * random.normal(size=(12, 50)))
    other = scipy.stats.ttest_1samp(rows[:, 0], 0)
    assert one.p_value == pytest.approx(other.pvalue, rel=1e-6)
    columns = random.normal(0.2, 1, (1, 90))
    one = paired_interval(columns + 1e-9 * random.normal(size=(12, 90)))
    other = scipy.stats.ttest_1samp(columns[0], 0)
    assert one.p_value == pytest.approx(other.pvalue, rel=1e-6)


@pytest.mark.parametrize(
    ("right", "verdict"),
    [(0, "inconclusive"), (1, "inconclusive"), (9, "gain")],
)
def test_seeds_that_agree_to_the_last_example_are_not_certain(right, verdict):
    differences = np.zeros((2, 360))
    differences[:, :right] = 1
    interval = paired_interval(differences)
    assert interval.mean == right / 360
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low > 2 / 360
    assert interval.verdict == verdict


def test_two_examples_are_enough_and_one_is_seeds_alone():
    differences = np.array([[3.0, 3.2], [3.1, 3.3], [3.2, 3.1]])
    both = paired_interval(differences)
    assert (both.seeds, both.examples) == (3, 2)
    assert both.low < both.mean == pytest.approx(differences.mean())
    alone = paired_interval(differences[:, :1])
    assert alone == paired_interval(differences[:, 0])


def test_one_example_alone_is_never_a_gain():
    for seeds in (2, 3, 10):
        differences = np.zeros((seeds, 300))
        # Another one for each seed.
        differences[np.arange(seeds), np.arange(seeds)] = 1
        assert paired_interval(differences).verdict == "inconclusive"


@pytest.mark.parametrize(("seeds", "examples"), [(2, 300), (3, 300), (5, 1000)])
def test_p_is_where_the_interval_ends_at_zero(seeds, examples):
    random = np.random.default_rng(3)
    d = random.choice([-1.0, 0, 1], p=[0.1, 0.7, 0.2], size=(seeds, examples))
    p = paired_interval(d).p_value
    assert 0 < p < 1
    assert paired_interval(d, 1 - p).low == pytest.approx(0, abs=1e-9)
    assert paired_interval(-d).p_value == pytest.approx(p, rel=1e-9)
    assert (paired_interval(d).low > 0) == (p < 0.05)


def test_p_is_one_without_a_difference_and_none_is_exactly_zero():
    assert paired_interval(np.zeros((3, 100))).p_value == 1
    sure = paired_interval(np.ones((10, 500)))
    assert 0 < sure.p_value <= 1e-10


@pytest.mark.parametrize(
    "differences", [np.zeros((2, 3, 4)), 1.0, [math.nan, 1.0], [[math.inf, 0]]]
)
def test_other_differences_are_refused(differences):
    with pytest.raises(ValueError, match="Received: shape .* Pass one for"):
        paired_interval(differences)


# -- coverage ------------------------------------------------------------------

REGIMES = (
    # Seeds that hardly matter, of students that agree on most examples.
    (simulate_coverage.Accuracies(0.75, 0.02), 2, 300),
    (simulate_coverage.Accuracies(0.90, 0.01, moved=0.01), 2, 300),
    (simulate_coverage.Accuracies(0.989, 0.002), 3, 300),
    (simulate_coverage.Accuracies(0.90, 0.01), 10, 300),
    (simulate_coverage.MeanLosses(0.02, moved=0.01), 5, 300),
)


@pytest.mark.parametrize(("regime", "seeds", "examples"), REGIMES)
def test_intervals_cover_as_often_as_they_say(regime, seeds, examples):
    random = np.random.default_rng(0)
    both, _ = simulate_coverage.coverage(regime, seeds, examples, 1500, random)
    # 0.56 points of standard error, at 95 %.
    assert 0.94 - 0.01 < both < 0.97 + 0.01


def test_seeds_alone_leave_out_what_another_test_set_would_change():
    """What intervals were before, on test sets that differ."""
    regime = simulate_coverage.Accuracies(
        0.75, 0.01, of_method=0.2, of_training=0.05
    )
    random = np.random.default_rng(0)
    both, alone = simulate_coverage.coverage(regime, 10, 300, 1000, random)
    assert alone < 0.75
    assert 0.93 < both < 0.97


def test_the_simulated_truth_is_what_students_gain():
    random = np.random.default_rng(0)
    for regime in simulate_coverage.REGIMES:
        d = regime.differences(random, (200, 2, 500))
        means = d.mean((1, 2))
        error = means.std() / math.sqrt(len(means))
        assert abs(means.mean() - regime.truth) < 4 * error, regime


# -- corrections ---------------------------------------------------------------


def test_holm_is_the_closed_test_of_bonferronis():
    """A hypothesis survives if every set that it is in is rejected."""
    random = np.random.default_rng(0)
    for _ in range(50):
        p = random.uniform(0, 0.3, 5) ** 2
        closed = [
            max(
                min(1, len(group) * min(p[i] for i in group))
                for size in range(1, 6)
                for group in itertools.combinations(range(5), size)
                if one in group
            )
            for one in range(5)
        ]
        np.testing.assert_allclose(holm(p), closed, rtol=1e-12)


def test_holm_leaves_out_what_is_no_test():
    assert holm([]) == []
    first, missing, second = holm([0.02, math.nan, 0.03])
    assert (first, second) == (0.04, 0.04) and math.isnan(missing)
    assert attribution.holm([0.6, 0.7]) == [1.0, 1.0]


def test_of_equals_one_in_twenty_attributions_has_a_survivor():
    random = np.random.default_rng(0)
    alone = survivors = 0
    for _ in range(1000):
        p = [paired_interval(random.normal(size=4)).p_value for _ in range(12)]
        alone += min(p) < 0.05
        survivors += min(holm(p)) < 0.05
    assert alone / 1000 > 0.4
    assert 0.03 < survivors / 1000 < 0.07
