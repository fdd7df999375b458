"""Soft, missing and binary labels and several outputs on two replicas."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    EAGERLY,
    FEATURES,
    assert_same_weights,
    uniform,
    weights_of,
)

import keras_kd as kd

# The last batch is uneven: 2 examples on one replica, 1 on the other.
EXAMPLES, BATCH, CLASSES = 13, 10, 4
random = np.random.default_rng(0)
x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
ids = random.integers(0, CLASSES, EXAMPLES).astype("int32")
weights = random.uniform(0, 2, EXAMPLES).astype("float32")
shares = random.dirichlet(np.ones(CLASSES), EXAMPLES).astype("float32")
units = random.integers(0, 2, (EXAMPLES, CLASSES)).astype("int32")
age = random.normal(size=(EXAMPLES, 1)).astype("float32")
some = np.where(np.arange(EXAMPLES) % 3, ids, -1)

# By case: the outputs' activation, whether there is a second one, the loss,
# and labels.
CASES = {
    "soft": (None, False, lambda: kd.KDPt(), shares),
    "unlabelled": (None, False, lambda: kd.KD(), None),
    "some labelled": (None, False, lambda: kd.KD(), some),
    "binary": ("sigmoid", False, lambda: kd.KDPt(), units),
    "outputs": (
        None,
        True,
        lambda: {"species": kd.KDPtSim(), "age": "mse"},
        {"species": ids, "age": age},
    ),
}


def model(seed, activation, with_age):
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(6, "tanh", kernel_initializer=uniform(seed))(inputs)
    species = layers.Dense(
        CLASSES,
        activation,
        kernel_initializer=uniform(seed + 1),
        name="species",
    )(hidden)
    if not with_age:
        return keras.Model(inputs, species)
    start = uniform(seed + 2)
    years = layers.Dense(1, kernel_initializer=start, name="age")(hidden)
    return keras.Model(inputs, {"species": species, "age": years})


def trained(case, scope, **how):
    activation, with_age, loss, labels = CASES[case]
    with scope:
        student = model(1, activation, with_age)
        distiller = kd.Distiller(student, model(5, activation, with_age))
        distiller.compile(keras.optimizers.SGD(0.1), loss(), **how)
    history = distiller.fit(
        x,
        labels,
        sample_weight=None if with_age else weights,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
    ).history
    summaries = {
        group: scale.summary()
        for group, scale in distiller.gradient_scales.items()
    }
    return student, history, summaries


# These are traced, as a user's are; the others share their code, and run
# eagerly, which takes less time.
TRACED = ("some labelled", "outputs")


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_train_as_one_does(case, two_replicas):
    expected, logs, scales = trained(case, contextlib.nullcontext(), **EAGERLY)
    how = {} if case in TRACED else EAGERLY
    student, found, others = trained(case, two_replicas.scope(), **how)
    assert_same_weights(weights_of(student), weights_of(expected), 1e-5)
    assert found.keys() == logs.keys()
    for key, values in logs.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4, err_msg=key)
    for group, summary in scales.items():
        for key in ("count", "mean", "unlabelled"):
            assert others[group][key] == pytest.approx(
                summary[key], rel=1e-4, abs=1e-5
            )


def test_a_sum_of_a_single_batch_is_refused(two_replicas):
    """Keras gives the whole batch to each replica, which a mean allows."""
    for reduction in ("sum_over_batch_size", "sum"):
        with two_replicas.scope():
            distiller = kd.Distiller(model(1, None, False))
            loss = kd.LabelSmoothing(reduction=reduction)
            distiller.compile(keras.optimizers.SGD(0.1), loss, **EAGERLY)
        if reduction != "sum":
            distiller.train_on_batch(x[:4], ids[:4])
            continue
        for run in (distiller.train_on_batch, distiller.test_on_batch):
            with pytest.raises(ValueError, match="strategy of 2 replicas"):
                run(x[:4], ids[:4])
