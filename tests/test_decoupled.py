"""Decoupled distillation: its two levels, and what they are of KD."""

import keras
import numpy as np
import pytest
import reference
from gradients import seeds, value_and_gradient
from models import data, fit, mlp

import keras_kd as kd

numpy = keras.ops.convert_to_numpy


def case(seed=0, scale=3.0, examples=6, num_classes=7, dtype="float64"):
    random = np.random.default_rng(seed)
    shape = (2, examples, num_classes)
    logits, teacher = random.normal(0, scale, shape).astype(dtype)
    labels = random.integers(0, num_classes, examples).astype("int32")
    return logits, labels, teacher


def y_of(labels, teacher):
    return {"labels": labels, "teacher_logits": teacher}


def test_the_references_gradient_is_the_differences_of_its_values():
    logits, labels, teacher = case()
    settings = (teacher, 0.7, 1.3, 4.0, 2.0, True)
    step, found = 1e-6, np.zeros(logits.shape)
    for at in np.ndindex(logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[at] += sign * step
            ends.append(reference.dkd_loss(moved, labels, *settings)[at[0]])
        found[at] = (ends[0] - ends[1]) / (2 * step)
    expected = reference.dkd_gradient(logits, labels, *settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("squared", [True, False])
def test_loss_gradient_w_and_both_terms_in_float64(scale, squared, float64):
    logits, labels, teacher = case(scale=scale)
    loss = kd.DKD(
        alpha=1.5,
        beta=6.0,
        weight=0.4,
        temperature=3.0,
        temperature_squared=squared,
        dtype="float64",
        reduction="sum",
    )
    settings = (teacher, 0.4, 1.5, 6.0, 3.0, squared)
    value, gradient = value_and_gradient(
        lambda z: loss(y_of(labels, teacher), z), logits
    )
    expected = reference.dkd_loss(logits, labels, *settings)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-10)
    slope = reference.dkd_gradient(logits, labels, *settings)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-10)
    parts = loss.parts(y_of(labels, teacher), logits)
    assert list(parts.terms) == ["tckd", "nckd"] == list(loss.term_names)
    terms = reference.dkd_terms(logits, labels, teacher, 3.0)
    for found, term in zip(parts.terms.values(), terms, strict=True):
        np.testing.assert_allclose(numpy(found), term, rtol=1e-10, atol=1e-12)
    plain = reference.per_example_gradient(logits, labels, [], 1.0)
    at = np.arange(len(labels)), labels
    w = numpy(parts.gradient_scale)
    defined = np.isfinite(w)
    assert defined.any() and (defined.all() or scale > 1)
    np.testing.assert_allclose(
        w[defined], (slope[at] / plain[at])[defined], rtol=1e-6
    )


@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_logits_of_100_keep_value_and_gradient(gap):
    logits, labels, teacher = case(dtype="float32")
    for own in (logits, teacher):
        np.put_along_axis(own, labels[:, None], gap, -1)
        gap = -gap
        loss = kd.DKD(2.0, 3.0, 0.5, 1.0, reduction="sum")
        value, gradient = value_and_gradient(
            lambda z, loss=loss: loss(y_of(labels, teacher), z), logits
        )
        settings = (teacher, 0.5, 2.0, 3.0, 1.0, True)
        expected = reference.dkd_loss(logits, labels, *settings).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(
            gradient,
            reference.dkd_gradient(logits, labels, *settings),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_class_that_the_teacher_rules_out_has_no_mass():
    logits, labels, teacher = case(dtype="float32")
    labels[:] = 0
    teacher[:3, 0], teacher[3:, 1] = -np.inf, -np.inf
    loss = kd.DKD(1.0, 2.0, 1.0, 2.0, reduction=None)
    value, gradient = value_and_gradient(
        lambda z: keras.ops.sum(loss(y_of(labels, teacher), z)), logits
    )
    # A logit of -1,000 is as good as none.
    teacher = np.where(np.isinf(teacher), -1_000.0, teacher)
    settings = (teacher, 1.0, 1.0, 2.0, 2.0, True)
    expected = reference.dkd_loss(logits, labels, *settings).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = reference.dkd_gradient(logits, labels, *settings)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gap", [100.0, -100.0, -np.inf])
def test_soft_labels_keep_their_digits_at_the_extremes(gap):
    logits, labels, teacher = case(dtype="float32")
    shares = np.random.default_rng(1).dirichlet(np.ones(7), len(labels))
    np.put_along_axis(teacher, labels[:, None], gap, -1)
    np.put_along_axis(logits, labels[:, None], np.clip(-gap, -100, 100), -1)
    loss = kd.DKD(2.0, 3.0, 0.5, 1.0, reduction="sum")
    value, gradient = value_and_gradient(
        lambda z: loss(y_of(shares.astype("float32"), teacher), z), logits
    )
    # A logit of -1,000 is as good as none.
    settings = (np.maximum(teacher, -1_000.0), 0.5, 2.0, 3.0, 1.0, True)
    each = [np.full_like(labels, label) for label in range(7)]
    expected = [
        share @ reference.dkd_loss(logits, label, *settings)
        for share, label in zip(shares.T, each, strict=True)
    ]
    np.testing.assert_allclose(value, sum(expected), rtol=1e-5, atol=1e-4)
    slopes = [
        share[:, None] * reference.dkd_gradient(logits, label, *settings)
        for share, label in zip(shares.T, each, strict=True)
    ]
    np.testing.assert_allclose(gradient, sum(slopes), rtol=1e-5, atol=1e-5)


def test_a_soft_label_keeps_the_digits_of_1_less_p():
    # 1 - p of a label of logit 18 has no digits in p of float32.
    logits = np.array([[18.0, 0.0, -1.0]], "float32")
    teacher = np.array([[19.0, 0.0, 0.5]], "float32")
    loss = kd.DKD(1.0, 0.0, 1.0, 1.0)
    share = np.array([[1.0, 0.0, 0.0]], "float32")
    _, gradient = value_and_gradient(
        lambda z: loss(y_of(share, teacher), z), logits
    )
    expected = reference.dkd_gradient(
        logits.astype("float64"),
        np.array([0]),
        *(teacher.astype("float64"), 1.0, 1.0, 0.0, 1.0, True),
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_a_sequence_is_its_tokens(soft):
    logits, labels, teacher = case(dtype="float32")
    if soft:
        labels = np.random.default_rng(1).dirichlet(np.ones(7), 6)
        labels = labels.astype("float32")
    loss = kd.DKD(1.5, 6.0, 0.4, 3.0, reduction=None)
    tokens = numpy(loss(y_of(labels, teacher), logits))
    logits, labels, teacher = (
        each.reshape(2, 3, *each.shape[1:])
        for each in (logits, labels, teacher)
    )
    found = numpy(loss(y_of(labels, teacher), logits))
    np.testing.assert_allclose(found, tokens.reshape(2, 3), rtol=1e-6)


@pytest.mark.parametrize("seed", seeds(3))
def test_with_beta_of_1_less_p_t_it_is_kd(seed, float64):
    """Example by example, since each has a beta of its own."""
    logits, labels, teacher = case(seed)
    p = reference.kd_target(teacher, 4.0)[np.arange(len(labels)), labels]
    kd_loss = kd.KD(0.7, 4.0, reduction="sum", dtype="float64")
    for i, p_t in enumerate(p):
        dkd_loss = kd.DKD(
            1.0, 1 - p_t, 0.7, 4.0, reduction="sum", dtype="float64"
        )
        one = slice(i, i + 1)
        y_true = y_of(labels[one], teacher[one])
        found, expected = (
            value_and_gradient(lambda z, e=each, y=y_true: e(y, z), logits[one])
            for each in (dkd_loss, kd_loss)
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
        scales = [
            numpy(each.parts(y_true, logits[one]).gradient_scale)
            for each in (dkd_loss, kd_loss)
        ]
        np.testing.assert_allclose(*scales, rtol=1e-9)


def test_a_student_that_agrees_has_nothing_left_to_learn():
    logits, labels, _ = case(dtype="float32")
    loss = kd.DKD(1.0, 8.0, 1.0, 4.0, reduction="sum")
    value, gradient = value_and_gradient(
        lambda z: loss(y_of(labels, logits), z), logits
    )
    np.testing.assert_allclose(value, 0, atol=2e-3)
    assert value >= 0
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_logs_hold_both_levels_and_alpha_may_change_while_training():
    x, labels, _ = data()
    teacher = mlp(seed=5)
    distiller = kd.Distiller(mlp(seed=1), teacher)
    distiller.compile(keras.optimizers.SGD(0.0), kd.DKD(1.0, 2.0, 1.0, 2.0))
    schedule = kd.callbacks.LossSchedule(
        alpha=lambda epoch: 1.0 - epoch, beta=lambda epoch: 2.0 + epoch
    )
    history = fit(distiller, x, labels, epochs=2, callbacks=[schedule]).history
    tckd, nckd = np.array(history["tckd"]), np.array(history["nckd"])
    assert tckd.min() > 0 and nckd.min() > 0
    weighed = np.array([1, 0]) * tckd + np.array([2, 3]) * nckd
    np.testing.assert_allclose(history["loss"], 4.0 * weighed, rtol=1e-4)
    assert distiller.loss.tunables == pytest.approx(
        {"weight": 1.0, "temperature": 2.0, "alpha": 0.0, "beta": 3.0}
    )
    config = keras.saving.serialize_keras_object(distiller.loss)
    again = keras.saving.deserialize_keras_object(config)
    assert again.tunables == pytest.approx(distiller.loss.tunables)
