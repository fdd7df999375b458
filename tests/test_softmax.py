"""The stable log-odds and their hand-written gradient."""

import numpy as np
import pytest
import reference
from gradients import seeds, value_and_gradient
from keras import ops

from keras_kd import backend
from keras_kd.softmax import (
    label_softmax,
    plain_and_tempered,
    softmax_of_largest,
)


def random_case(seed, scale, dtype="float64"):
    random = np.random.default_rng(seed)
    # Few shapes: some backends compile every operation for each.
    num_classes = int(random.choice([2, 3, 29]))
    shape = [(1,), (5,), (4, 3)][random.integers(3)]
    logits = (scale * random.normal(size=(*shape, num_classes))).astype(dtype)
    return logits, random.integers(0, num_classes, shape)


def explicit(logits, labels, temperature):
    """The three numbers by the backend's own operations, in float64."""
    scaled = logits / temperature
    hot = ops.one_hot(labels, logits.shape[-1], dtype="float64")
    others = ops.where(hot > 0, -np.inf, scaled)
    label = ops.sum(hot * scaled, -1)
    log_odds = label - ops.logsumexp(others, -1)
    shift = ops.stop_gradient(ops.max(scaled, -1))
    normaliser = ops.logsumexp(scaled, -1) - shift
    gap_sum = ops.sum(shift[..., None] - scaled, -1)
    return log_odds, normaliser, gap_sum


@pytest.fixture(autouse=True, params=["kept", "recomputed"])
def way(request, monkeypatch):
    """Each backend has one of the two; both must be right on all."""
    monkeypatch.setattr(
        backend, "fuses_operations", lambda: request.param == "recomputed"
    )


@pytest.mark.parametrize("seed", seeds(8))
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_values_and_gradients_are_those_of_autodiff(seed, scale, float64):
    logits, labels = random_case(seed, scale)
    upstream = np.random.default_rng(seed).normal(size=(3, *labels.shape))

    def closed(logits):
        softmax = label_softmax(logits, labels, 1.7)
        return softmax.log_odds, softmax.log_normaliser, softmax.gap_sum

    def weighed(numbers):
        return lambda logits: ops.sum(
            ops.convert_to_tensor(upstream) * ops.stack(numbers(logits))
        )

    def by_autodiff(logits):
        return explicit(logits, labels, 1.7)

    tensor = ops.convert_to_tensor(logits)
    for our, their in zip(closed(tensor), by_autodiff(tensor), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        value_and_gradient(weighed(closed), logits)[1],
        value_and_gradient(weighed(by_autodiff), logits)[1],
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_two_temperatures_at_once_are_those_of_autodiff(
    temperature, scale, float64
):
    """One softmax serves both where they are the same."""
    random = np.random.default_rng(0)
    logits, labels = scale * random.normal(size=(4, 5)), np.array([0, 1, 4, 2])
    upstream = ops.convert_to_tensor(random.normal(size=(6, 4)))

    def ours(logits):
        both = plain_and_tempered(logits, labels, temperature)
        return ops.stack(
            [
                number
                for each in both
                for number in (each.log_odds, each.log_normaliser, each.gap_sum)
            ]
        )

    def by_autodiff(logits):
        both = [explicit(logits, labels, t) for t in (1.0, temperature)]
        return ops.stack([number for each in both for number in each])

    tensor = ops.convert_to_tensor(logits)
    np.testing.assert_allclose(
        ours(tensor), by_autodiff(tensor), rtol=1e-9, atol=1e-12
    )

    def gradient(numbers):
        def total(logits):
            return ops.sum(upstream * numbers(logits))

        return value_and_gradient(total, logits)[1]

    np.testing.assert_allclose(
        gradient(ours), gradient(by_autodiff), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("gap", [1e3, 1e6])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_a_label_far_above_all_others_keeps_its_log_odds(gap, temperature):
    logits = np.array([[0.0, -gap, -2 * gap]], "float32")
    softmax = label_softmax(logits, np.array([0]), temperature)
    np.testing.assert_allclose(softmax.log_odds, [gap / temperature], rtol=1e-6)


@pytest.mark.parametrize("num_classes", [6, 1500])
@pytest.mark.parametrize("beforehand", [True, False])
def test_gaps_are_those_of_autodiff_asked_beforehand_or_not(
    num_classes, beforehand, float64
):
    """The label is among the classes in the first example alone."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, num_classes))
    labels = np.array([[0, 1, 2], [3, 4, 5]])
    classes = random.permuted(
        np.tile(np.arange(num_classes), (2, 3, 1)), axis=-1
    )[..., :4].astype("int32")
    classes[0, 0] = [3, 0, 2, 1]
    mixture = random.dirichlet(np.ones(num_classes), (2, 3))
    upstream = random.normal(size=(2, 3, 4))
    classes, mixture, upstream = (
        ops.convert_to_tensor(v) for v in (classes, mixture, upstream)
    )

    def total(gaps, expected, log_odds):
        return ops.sum(upstream * gaps) + ops.sum(
            upstream[..., 0] * (expected + log_odds)
        )

    def ours(logits):
        asked = {"classes": [classes], "mixtures": [mixture]}
        _, softmax = plain_and_tempered(
            logits, labels, 1.7, **(asked if beforehand else {})
        )
        gaps = softmax.gaps(classes), softmax.expected_gap(mixture)
        return total(*gaps, softmax.log_odds)

    def by_autodiff(logits):
        gaps = ops.max(logits, -1, keepdims=True) - logits
        # The largest logit is a constant to the gradient.
        gaps = ops.stop_gradient(gaps + logits) - logits
        hot = ops.one_hot(classes, num_classes, dtype="float64")
        picked = ops.sum(hot * gaps[..., None, :], -1)
        expected = ops.sum(mixture * gaps, -1)
        odds = explicit(logits, labels, 1.7)[0]
        return total(picked / 1.7, expected / 1.7, odds)

    for our, their in zip(
        value_and_gradient(ours, logits),
        value_and_gradient(by_autodiff, logits),
        strict=True,
    ):
        np.testing.assert_allclose(our, their, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("confidence", [5.0, 12.0, 30.0, 60.0])
def test_float32_keeps_the_digits_of_a_confident_student(confidence):
    logits = np.array([[confidence, 0.3, -0.2, 1.0]], "float32")
    softmax = label_softmax(logits, np.array([0]))
    expected = reference.softmax(logits)[0, 1:].sum()
    np.testing.assert_allclose(
        softmax.off_label_probability, [expected], rtol=1e-5
    )
    np.testing.assert_allclose(
        softmax.cross_entropy, [-np.log1p(-expected)], rtol=1e-5
    )
    others = np.exp(logits[0, 1:].astype("float64") - confidence).sum()
    np.testing.assert_allclose(
        softmax.log_normaliser, [np.log1p(others)], rtol=1e-5
    )


@pytest.mark.parametrize("confidence", [0.5, 5.0, 12.0, 30.0, 60.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_float32_keeps_the_digits_of_every_class(confidence, temperature):
    """Of the largest class 1 - q too, and the log-odds of all."""
    logits = np.array([[0.3, confidence, -0.2, 0.1]], "float32")
    softmax = softmax_of_largest(logits, temperature)
    q = reference.softmax(logits.astype("float64") / temperature)
    rest = (1 - np.eye(4)) @ q[0]
    np.testing.assert_allclose(softmax.complements[0], rest, rtol=1e-5)
    np.testing.assert_allclose(
        softmax.all_log_odds[0], np.log(q[0]) - np.log(rest), rtol=1e-5
    )


def test_a_label_outside_the_classes_gives_finite_numbers():
    def total(logits):
        softmax = label_softmax(logits, np.array([-1, 255]))
        return ops.sum(softmax.cross_entropy + softmax.log_normaliser)

    logits = np.zeros((2, 3), "float32")
    for number in value_and_gradient(total, logits):
        assert np.isfinite(number).all()
