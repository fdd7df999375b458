"""Each method's loss, built as the studies build it."""

import keras
import numpy as np
import pytest
from study.methods import METHODS, TEXT_ARGUMENTS, settings_of

import keras_kd as kd
from keras_kd.attribution import make_loss
from keras_kd.attribution.methods import (
    CONTROLS,
    LEVEL_SETTINGS,
    PERMUTED,
    CrossEntropy,
)

CLASSES = {
    "plain": CrossEntropy,
    "label_smoothing": kd.LabelSmoothing,
    "kd_pt": kd.KDPt,
    "kd_sim": kd.KDSim,
    "kd_pt_sim": kd.KDPtSim,
    "kd_topk": kd.KDTopK,
    "kd_sampled": kd.KDSampled,
    "kd": kd.KD,
    "dkd": kd.DKD,
    "dkd_tckd": kd.DKD,
    "dkd_nckd": kd.DKD,
    "kd_sim_permuted": kd.KDSim,
    "kd_pt_shuffled": kd.KDPt,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_loss_with_the_settings_of_its_own(name):
    loss = make_loss(name, settings_of(name, TEXT_ARGUMENTS))
    assert type(loss) is CLASSES[name]
    assert loss.reduction == "mean_with_sample_weight"
    own = "dkd" if name.startswith("dkd") else CONTROLS.get(name, name)
    settings = {**TEXT_ARGUMENTS.get(own, {}), **LEVEL_SETTINGS.get(name, {})}
    for key, value in settings.items():
        found = loss.tunables.get(key, getattr(loss, key, None))
        assert found == pytest.approx(value), key


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_is_shared_and_a_temperature_given_to_those_that_have_one(
    name,
):
    loss = make_loss(
        name, settings_of(name, TEXT_ARGUMENTS, weight=0.3, temperature=7)
    )
    if name == "plain":
        assert loss.weights == {}
        return
    assert sum(loss.weights.values()) == pytest.approx(0.3)
    if name == "kd_pt_sim":
        pt, sim = loss.weights.values()
        assert pt / sim == pytest.approx(0.1 / 0.5)
    expected = 1 if name == "label_smoothing" else 7
    assert loss.tunables["temperature"] == expected


def test_the_permuted_control_has_the_rows_of_other_classes():
    teacher = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    loss = make_loss(PERMUTED, teacher=teacher)
    rows = teacher.weights[0].numpy().T
    expected = kd.attribution.permuted_logit_weights(rows)
    np.testing.assert_allclose(
        loss.class_similarity.weights, expected, rtol=1e-6
    )


def test_a_plain_student_has_the_cross_entropy_on_the_labels_alone():
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 5)).astype("float32")
    labels = random.integers(0, 5, 6)
    exp = np.exp(logits.astype("float64"))
    expected = -np.log(exp / exp.sum(-1, keepdims=True))[range(6), labels]
    loss = make_loss("plain")
    parts = loss.parts(labels, logits)
    np.testing.assert_allclose(parts.loss, expected, rtol=1e-5)
    assert not parts.terms and not loss.term_names and not loss.statistics
    shares = np.eye(5, dtype="float32")[labels]
    np.testing.assert_allclose(loss(shares, logits), expected.mean(), rtol=1e-5)
