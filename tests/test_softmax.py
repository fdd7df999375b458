"""The stable log-odds and their hand-written gradient."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from keras_kd.softmax import label_softmax


def random_case(seed, scale, dtype="float64"):
    random = np.random.default_rng(seed)
    num_classes = int(random.integers(2, 30))
    shape = tuple(random.integers(1, 6, size=random.integers(1, 3)))
    logits = (scale * random.normal(size=(*shape, num_classes))).astype(dtype)
    return logits, random.integers(0, num_classes, shape)


def explicit(logits, labels, temperature):
    """The three numbers by TensorFlow's own operations, in float64."""
    scaled = logits / temperature
    hot = tf.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    others = tf.where(hot > 0, -np.inf, scaled)
    label = tf.reduce_sum(hot * scaled, -1)
    log_odds = label - tf.reduce_logsumexp(others, -1)
    shift = tf.stop_gradient(tf.reduce_max(scaled, -1))
    normaliser = tf.reduce_logsumexp(scaled, -1) - shift
    gap_sum = tf.reduce_sum(shift[..., None] - scaled, -1)
    return log_odds, normaliser, gap_sum


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_values_and_gradients_are_those_of_autodiff(seed, scale):
    logits, labels = random_case(seed, scale)
    logits = tf.constant(logits)
    upstream = np.random.default_rng(seed).normal(size=(3, *labels.shape))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        softmax = label_softmax(logits, labels, 1.7)
        ours = (softmax.log_odds, softmax.log_normaliser, softmax.gap_sum)
        theirs = explicit(logits, labels, 1.7)
        our_sum = tf.reduce_sum(upstream * tf.stack(ours))
        their_sum = tf.reduce_sum(upstream * tf.stack(theirs))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        tape.gradient(our_sum, logits),
        tape.gradient(their_sum, logits),
        rtol=1e-8,
        atol=1e-10,
    )


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


def test_a_label_outside_the_classes_gives_finite_numbers():
    logits = tf.constant(np.zeros((2, 3), "float32"))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        softmax = label_softmax(logits, np.array([-1, 255]))
        total = tf.reduce_sum(softmax.cross_entropy + softmax.log_normaliser)
    assert np.isfinite(total)
    assert np.isfinite(tape.gradient(total, logits)).all()
