"""Classes that a model rules out by the logit -inf."""

import itertools

import keras
import numpy as np
import pytest
import reference
from gradients import value_and_gradient
from keras import layers, ops

import keras_kd as kd

CLASSES, WEIGHT, TEMPERATURE = 7, 0.4, 2.5
RULED_OUT = [2, 6]
LEFT = [0, 1, 3, 4, 5]
LOSSES = {
    "kd": kd.KD,
    "dkd": kd.DKD,
    "kd_topk": lambda **kwargs: kd.KDTopK(k=5, **kwargs),
    "kd_topk_of_all": lambda **kwargs: kd.KDTopK(k=1.0, **kwargs),
    "kd_sampled": lambda **kwargs: kd.KDSampled(k=6, **kwargs),
    "kd_sampled_of_all": lambda **kwargs: kd.KDSampled(k=1.0, **kwargs),
}
losses = pytest.mark.parametrize("name", LOSSES)


def case():
    """Logits of both models, with classes ruled out, and labels."""
    logits, teacher = np.random.default_rng(0).normal(0, 2, (2, 6, CLASSES))
    logits[:, RULED_OUT] = teacher[:, RULED_OUT] = -np.inf
    return logits, teacher, np.array(LEFT + [0], "int32")


def made(name, **kwargs):
    settings = {"weight": WEIGHT, "temperature": TEMPERATURE, **kwargs}
    return LOSSES[name](reduction="sum", **settings)


def targets(loss, labels, teacher):
    labels = ops.convert_to_tensor(labels)
    teacher = ops.cast(teacher, loss.dtype)
    statistics = loss.teacher_statistics(labels, teacher)
    return {"labels": labels, **statistics}


def expected(name, logits, teacher, labels, temperature=TEMPERATURE):
    """Sum and gradient of a loss, from models without these classes."""
    logits, teacher = logits[:, LEFT], teacher[:, LEFT]
    labels = np.searchsorted(LEFT, labels)
    if name == "dkd":
        settings = teacher, WEIGHT, 1.0, 8.0, temperature, True
        value = reference.dkd_loss(logits, labels, *settings)
        slope = reference.dkd_gradient(logits, labels, *settings)
    else:
        terms = [(WEIGHT, reference.kd_target(teacher, temperature))]
        given = logits, labels, terms, temperature
        is_divergence = not name.startswith("kd_sampled")
        value = reference.per_example_loss(*given, divergence=is_divergence)
        slope = reference.per_example_gradient(*given)
    gradient = np.zeros((len(labels), CLASSES))
    gradient[:, LEFT] = slope
    return value.sum(), gradient


def assert_as_expected(name, given_labels, temperature=TEMPERATURE):
    """The loss of labels in any form, and its gradient."""
    logits, teacher, labels = case()
    loss = made(name, temperature=temperature)
    y_true = targets(loss, given_labels, teacher)
    value, gradient = value_and_gradient(
        lambda z: loss(y_true, z), logits.astype("float32")
    )
    right, slope = expected(name, logits, teacher, labels, temperature)
    np.testing.assert_allclose(value, right, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


# Near an even distribution a divergence is computed in another way.
DIVERGENCES = ["kd", "dkd", "kd_topk", "kd_topk_of_all"]


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        *((name, TEMPERATURE) for name in LOSSES),
        *((name, 100.0) for name in DIVERGENCES),
    ],
)
def test_a_class_without_mass_adds_nothing(name, temperature):
    assert_as_expected(name, case()[-1], temperature)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_soft_labels_of_one_class_are_its_id(name):
    soft = reference.one_hot(case()[-1], CLASSES).astype("float32")
    assert_as_expected(name, soft)


# What DKD is compared with depends on the label's form.
@pytest.mark.parametrize(
    ("name", "is_soft", "temperature"),
    [
        *itertools.product(
            ["kd", "dkd", "kd_topk", "kd_sampled"], [False, True], [TEMPERATURE]
        ),
        *((name, False, 100.0) for name in ("kd", "dkd", "kd_topk")),
        ("dkd", True, 100.0),
    ],
)
def test_a_class_of_the_teachers_costs_infinitely_much(
    name, is_soft, temperature
):
    logits, _, labels = case()
    teacher = np.random.default_rng(1).normal(0, 1, logits.shape)
    loss = made(name, temperature=temperature)
    if is_soft:
        labels = reference.one_hot(labels, CLASSES).astype("float32")
    y_true = targets(loss, labels, teacher)
    assert float(loss(y_true, logits.astype("float32"))) == np.inf


@pytest.mark.parametrize("make", [kd.LabelSmoothing, kd.KDPt])
def test_an_even_spread_costs_infinitely_much(make):
    logits, teacher, labels = case()
    loss = make()
    y_true = targets(loss, labels, teacher)
    assert float(loss(y_true, logits.astype("float32"))) == np.inf


@losses
def test_a_label_ruled_out_costs_nothing_at_weight_0(name):
    """Its cross-entropy is infinite, and the teacher gives it no mass."""
    logits, teacher, labels = case()
    labels[0] = RULED_OUT[0]
    loss = made(name, weight=1.0)
    y_true = targets(loss, labels, teacher)
    value, gradient = value_and_gradient(
        lambda z: loss(y_true, z), logits.astype("float32")
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    loss = made(name)
    assert float(loss(y_true, logits.astype("float32"))) == np.inf


def masked_model(seed):
    """A model that rules out the last of its classes."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    logits = layers.Dense(5)(inputs)
    is_last = np.arange(5) == 4
    return keras.Model(
        inputs,
        layers.Lambda(lambda z: ops.where(is_last, -float("inf"), z))(logits),
    )


@pytest.mark.parametrize("make", [kd.KD, kd.DKD, kd.KDSampled])
def test_fit(make):
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    distiller = kd.Distiller(masked_model(1), masked_model(2))
    distiller.compile("sgd", make())
    before = distiller.student.get_weights()
    history = distiller.fit(x, np.arange(16) % 4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for now, then in zip(distiller.student.get_weights(), before, strict=True):
        assert np.isfinite(now).all() and (now != then).any()
