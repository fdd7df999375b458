"""Unbiased top-k: what is drawn, against the teacher's distribution."""

import keras
import numpy as np
import pytest
import reference
import scipy.optimize
import scipy.stats
from gradients import value_and_gradient
from models import data, fit, mlp, weights_of

import keras_kd as kd
from keras_kd import backend
from keras_kd.losses.sampled import sample

numpy = keras.ops.convert_to_numpy
DRAWS = 20_000
# (classes, k); of the largest, where draws are slow, there are fewer.
SIZES = [(10, 1), (10, 3), (10, 9), (100, 25), (2_000, 16), (50_000, 64)]


def zipf(classes, seed=0):
    """Logits of words: 16 of 2,000 leave 35 % of the mass."""
    ranks = np.random.default_rng(seed).permutation(classes)
    return -1.25 * np.log1p(ranks)


def inclusion(probabilities, k):
    """The threshold's probabilities of being kept, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        tau = (low + high) / 2
        if np.minimum(1, probabilities / tau).sum() > k:
            low = tau
        else:
            high = tau
    return np.minimum(1, probabilities / tau)


def draws(logits, k, number, seed=0):
    """(classes, masses) of many draws from one distribution."""
    size = min(number, max(20, 1_000_000 // len(logits)))
    weights = np.exp(logits - logits.max())
    weights = np.repeat(weights[None], size, 0).astype("float32")
    weights = keras.ops.convert_to_tensor(weights)
    draw = backend.compiled(lambda w, u: sample(w, k, u))
    random = np.random.default_rng(seed)
    for _ in range(-(-number // size)):
        uniform = random.random(size, dtype="float32")
        uniform = keras.ops.convert_to_tensor(uniform)
        yield map(numpy, draw(weights, uniform))


@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_the_mean_of_the_masses_is_the_teachers_distribution(num_classes, k):
    logits = zipf(num_classes)
    expected = reference.softmax(logits)
    total, number = np.zeros(num_classes), 0
    wanted = min(DRAWS, 200_000_000 // num_classes)
    for classes, masses in draws(logits, k, wanted):
        assert classes.shape == masses.shape == (len(classes), k)
        assert (np.diff(np.sort(classes, axis=-1), axis=-1) > 0).all()
        assert classes.min() >= 0 and classes.max() < num_classes
        np.testing.assert_allclose(masses.sum(-1), 1, atol=1e-6)
        total += np.bincount(classes.ravel(), masses.ravel(), num_classes)
        number += len(classes)
    assert number >= wanted
    assert_within_4_standard_errors(total, number, expected, k)


def assert_within_4_standard_errors(total, number, expected, k):
    """Of rare classes, which few draws hit, also by how often they were hit.

    Args:
        total: [classes], the sum of masses.
        number: of draws.
        expected: [classes], probabilities.
        k: classes of a draw.
    """
    kept = inclusion(expected, k)
    variance = expected**2 * (1 / kept - 1)
    # What is certain is exact to the digits of a float32.
    tolerance = 4 * np.sqrt(variance / number) + 1e-6 * expected
    is_rare = number * kept < 1_000
    error = np.abs(total / number - expected)
    assert (error <= tolerance)[~is_rare].all()
    if not is_rare.any():
        return
    # A class is hit as a coin shows heads: 4 standard errors of all of them.
    hits = np.round(total * kept / expected)[is_rare]
    coin = scipy.stats.binom(number, kept[is_rare])
    chance = 2 * scipy.stats.norm.sf(4) / is_rare.sum()
    assert (coin.cdf(hits) > chance / 2).all()
    assert (coin.sf(hits - 1) > chance / 2).all()
    # And in groups of many.
    groups = np.array_split(np.flatnonzero(is_rare), 40)
    for group in groups:
        error = abs(total[group].sum() / number - expected[group].sum())
        assert error <= 4 * np.sqrt(variance[group].sum() / number)


@pytest.mark.parametrize(("k", "share"), [(16, 0.6), (32, 0.5), (64, 0.4)])
def test_variance_is_about_half_of_multinomial_sampling(k, share):
    """At equal bytes: with replacement until k classes are distinct."""
    num_classes = 2_000
    logits = zipf(num_classes)
    probabilities = reference.softmax(logits)

    def distinct(number):
        return (1 - (1 - probabilities) ** number).sum()

    number = scipy.optimize.brentq(lambda n: distinct(n) - k, k, 1e6)
    multinomial = (probabilities * (1 - probabilities)).sum() / number
    found = []
    for classes, masses in draws(logits, k, 2_000):
        dense = np.zeros((len(classes), num_classes))
        np.put_along_axis(dense, classes, masses, -1)
        found += list(((dense - probabilities) ** 2).sum(-1))
    assert np.mean(found) <= share * multinomial


def test_classes_above_the_threshold_are_exact_and_the_rest_equal():
    logits = zipf(50)
    p = reference.softmax(logits)
    kept = inclusion(p, 8)
    certain = np.flatnonzero(kept > 0.9999)
    for classes, masses in draws(logits, 8, 200):
        for row, mass in zip(classes, masses, strict=True):
            assert set(certain) <= set(row)
            by_class = dict(zip(row, mass, strict=True))
            for each, value in by_class.items():
                np.testing.assert_allclose(
                    value, p[each] / kept[each], rtol=1e-5
                )


@pytest.mark.parametrize("k", [1, 2, 7, 19, 20])
@pytest.mark.parametrize("kind", ["equal", "ties", "confident", "ruled out"])
def test_k_distinct_classes_whatever_the_teacher(kind, k):
    logits = np.zeros((2_000, 20), "float32")
    if kind == "ties":
        logits[:, :6] = 3.0
    elif kind == "confident":
        logits[:, 4] = 100.0
    elif kind == "ruled out":
        logits[:, 10:] = -np.inf
    loss = kd.KDSampled(k=k, temperature=1.0, seed=1)
    made = loss.teacher_statistics(None, keras.ops.convert_to_tensor(logits))
    classes, masses = (numpy(made[name]) for name in loss.statistics)
    assert (np.diff(np.sort(classes, axis=-1), axis=-1) > 0).all()
    np.testing.assert_allclose(masses.sum(-1), 1, atol=1e-6)
    dense = np.zeros(logits.shape)
    np.put_along_axis(dense, classes, masses, -1)
    p = reference.softmax(logits[0])
    error = np.sqrt(p**2 * (1 / np.maximum(inclusion(p, k), 1e-30) - 1) / 2_000)
    assert (np.abs(dense.mean(0) - p) <= 4 * error + 1e-6).all()


def test_the_gradients_mean_is_that_of_kd():
    random = np.random.default_rng(3)
    logits, teacher = random.normal(0, 2, (2, 1, 12)).astype("float32")
    many = np.repeat(teacher, DRAWS, 0)
    labels = np.zeros(DRAWS, "int32")
    loss = kd.KDSampled(k=4, weight=0.7, temperature=2.0, reduction=None)
    statistics = loss.teacher_statistics(
        labels, keras.ops.convert_to_tensor(many)
    )
    y_true = {"labels": labels, **statistics}
    _, gradient = value_and_gradient(
        lambda z: keras.ops.sum(loss(y_true, z)), np.repeat(logits, DRAWS, 0)
    )
    target = reference.kd_target(teacher, 2.0)
    terms = [(0.7, target)]
    expected = reference.per_example_gradient(logits, labels[:1], terms, 2.0)
    gradient = gradient.astype("float64")
    error = gradient.std(0) / np.sqrt(DRAWS)
    assert (np.abs(gradient.mean(0) - expected[0]) <= 4 * error + 1e-5).all()
    # The value's mean, and w's, are those of the cross-entropy with all.
    parts = loss.parts(y_true, np.repeat(logits, DRAWS, 0))
    for found, mean in (
        (
            parts.loss,
            reference.per_example_loss(logits, labels[:1], terms, 2.0),
        ),
        (
            parts.gradient_scale,
            reference.gradient_scale(logits, labels[:1], terms, 2.0),
        ),
    ):
        found = numpy(found).astype("float64")
        error = found.std() / np.sqrt(DRAWS)
        assert np.abs(found.mean() - mean) <= 4 * error + 1e-4


def test_loss_and_gradient_are_those_of_the_drawn_distribution():
    random = np.random.default_rng(5)
    logits, teacher = random.normal(0, 3, (2, 6, 40)).astype("float32")
    labels = random.integers(0, 40, 6).astype("int32")
    loss = kd.KDSampled(k=9, weight=0.6, temperature=3.0, reduction="sum")
    made = loss.teacher_statistics(labels, keras.ops.convert_to_tensor(teacher))
    dense = np.zeros((6, 40))
    classes, masses = (numpy(made[name]) for name in loss.statistics)
    np.put_along_axis(dense, classes, masses, -1)
    explicit = logits, labels, [(0.6, dense)], 3.0
    value, gradient = value_and_gradient(
        lambda z: loss({"labels": labels, **made}, z), logits
    )
    np.testing.assert_allclose(
        value, reference.per_example_loss(*explicit).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        gradient, reference.per_example_gradient(*explicit), atol=1e-5
    )


class Drawn(keras.callbacks.Callback):
    """Keeps the logged loss of every step."""

    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def trained(seed):
    """The losses of steps on one batch, and the student's weights."""
    x, labels, _ = data(8)
    student = mlp(seed=1)
    distiller = kd.Distiller(student, mlp(seed=5))
    loss = kd.KDSampled(k=2, weight=1.0, temperature=1.0, seed=seed)
    # The student stands still: what changes is drawn.
    distiller.compile(keras.optimizers.SGD(0.0), loss)
    drawn = Drawn()
    for _ in range(4):
        fit(distiller, x, labels, callbacks=[drawn])
        yield drawn.losses[-1]
    yield weights_of(student)


def test_each_step_draws_again_and_a_seed_repeats_it():
    *first, _ = trained(seed=1)
    *second, _ = trained(seed=1)
    *third, _ = trained(seed=2)
    assert len(set(first)) > 1
    assert first == second
    assert first != third


def test_examples_without_a_label_have_the_distillation_term_alone():
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 2, (2, 4, 9)).astype("float32")
    loss = kd.KDSampled(k=4, weight=0.3, temperature=2.0, reduction=None)
    made = loss.teacher_statistics(None, keras.ops.convert_to_tensor(teacher))
    dense = np.zeros((4, 9))
    classes, masses = (numpy(made[name]) for name in loss.statistics)
    np.put_along_axis(dense, classes, masses, -1)
    found = loss({"labels": np.array([-1, 3, -1, 0]), **made}, logits)
    labels = np.array([0, 3, 0, 0])
    expected = reference.per_example_loss(logits, labels, [(0.3, dense)], 2.0)
    hard = 0.7 * reference.per_example_loss(logits, labels, [], 1.0)
    expected[[0, 2]] -= hard[[0, 2]]
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-5)


def test_a_copy_has_draws_of_its_own():
    loss = kd.KDSampled(k=2, seed=4)
    twin = loss.copy()
    assert not {id(v) for v in loss.variables} & {id(v) for v in twin.variables}
    logits = keras.ops.convert_to_tensor(np.zeros((50, 9), "float32"))
    one, other = (
        numpy(each.teacher_statistics(None, logits)["sampled_classes"])
        for each in (loss, twin)
    )
    np.testing.assert_array_equal(one, other)
    again = kd.KDSampled.from_config(loss.get_config())
    assert (again.k, again.seed) == (2, 4)


def test_statistics_of_another_k_are_refused():
    logits = np.zeros((1, 6), "float32")
    made = kd.KDSampled(k=2).teacher_statistics(
        None, keras.ops.convert_to_tensor(logits)
    )
    with pytest.raises(ValueError, match="KDSampled .* 2 classes .* k=3"):
        kd.KDSampled(k=3)({"labels": np.array([0]), **made}, logits)
    with pytest.raises(ValueError, match="KDSampled .* k=7 for 6 classes"):
        kd.KDSampled(k=7).teacher_statistics(
            None, keras.ops.convert_to_tensor(logits)
        )
