"""Gradient scales against autodiff, and their streaming histogram."""

import itertools

import keras
import numpy as np
import pytest
from gradients import fewer_seeds, value_and_gradient
from models import EAGERLY, data, fit, mlp, outputs_of
from test_losses import Case, every_loss, targets

import keras_kd as kd
from keras_kd import backend
from keras_kd.metrics import GradientScale


def autodiff_ratios(case, loss, y_true):
    """Ratio of gradients on the label, and on the sum of the others."""
    hot = np.eye(case.num_classes)[case.labels]

    def plain(logits):
        log_q = keras.ops.log_softmax(logits)
        return -keras.ops.sum(keras.ops.convert_to_tensor(hot) * log_q)

    logits = case.logits.astype("float64")
    _, ours = value_and_gradient(lambda z: loss(y_true, z), logits)
    _, theirs = value_and_gradient(plain, logits)
    return (
        (ours * hot).sum(-1) / (theirs * hot).sum(-1),
        (ours * (1 - hot)).sum(-1) / (theirs * (1 - hot)).sum(-1),
    )


@every_loss
@pytest.mark.parametrize(
    ("seed", "scale"),
    list(zip(fewer_seeds(8), itertools.cycle([4.0, 1.0]), strict=False)),
)
def test_gradient_scale_is_the_ratio_that_autodiff_gives(
    name, seed, scale, float64
):
    case = Case(name, seed, scale=scale)
    exact = case.loss(reduction="sum", dtype="float64")
    y_true = targets(exact, case.labels, case.teacher_logits)
    on_label, on_others = autodiff_ratios(case, exact, y_true)
    loss = case.loss()
    y_true = targets(loss, case.labels, case.teacher_logits)
    parts = loss.parts(y_true, case.logits)
    np.testing.assert_allclose(
        parts.gradient_scale, on_label, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        parts.gradient_scale, on_others, rtol=1e-5, atol=1e-5
    )


def test_it_is_undefined_where_the_student_is_certain():
    logits = np.array([[40.0, 0, 0], [0, 40, 0], [1, 0, 0]], "float32")
    loss = kd.LabelSmoothing()
    scale = np.array(loss.parts(np.array([0, 0, 0]), logits).gradient_scale)
    assert np.isnan(scale).tolist() == [True, False, False]


def test_histogram_mean_and_shares_are_numpys():
    random = np.random.default_rng(0)
    values = random.normal(1, 3, (50, 20)).astype("float32")
    values[random.random(values.shape) < 0.1] = np.nan
    mask = random.random(values.shape) < 0.8
    metric = GradientScale(low=-2, high=4, bins=30)
    for rows in np.split(np.arange(50), 5):
        metric.update_state(values[rows], mask[rows])
    summary = metric.summary()
    counted = values[mask & ~np.isnan(values)]
    inside = np.clip(counted, -2, np.nextafter(np.float32(4), np.float32(0)))
    histogram, edges = np.histogram(inside, 30, (-2, 4))
    # A value on an edge may round to either side of it.
    assert np.abs(summary["histogram"] - histogram).sum() <= 2
    np.testing.assert_allclose(summary["edges"], edges)
    assert summary["count"] == len(counted)
    np.testing.assert_allclose(summary["mean"], counted.mean(), rtol=1e-4)
    np.testing.assert_allclose(
        summary["reversed_share"], (counted < 0).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        summary["undefined_share"],
        np.isnan(values[mask]).mean(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(metric.result(), counted.mean(), rtol=1e-4)


@pytest.mark.parametrize("value", [1, 0.5, 0, -1, 0.999999, 0.97, 5, -3])
def test_the_median_of_one_value_is_that_value(value):
    metric = GradientScale()
    metric.update_state(np.full(7, value, "float32"))
    assert metric.summary()["median"] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        [1] * 6 + [0.3, 0.4, 2, 3],
        [0] * 3 + [1] * 3,
        [0.999999, 1.000001],
        [1] * 4 + [9, 70],
        np.random.default_rng(0).normal(0.9, 0.3, 1000),
        [50, 60, 70],
    ],
)
def test_the_median_is_numpys_to_within_a_bin(values):
    metric = GradientScale()
    values = np.array(values, "float32")
    metric.update_state(values)
    expected = np.median(np.clip(values, -3, 5))
    assert metric.summary()["median"] == pytest.approx(expected, abs=0.02)


def test_an_example_that_is_not_trained_on_is_not_reversed():
    metric = GradientScale()
    metric.update_state(np.array([0.0, -0.5, 0.0, 1.0], "float32"))
    assert metric.summary()["reversed_share"] == 0.25


@pytest.mark.parametrize(
    "arguments", [{"low": 1, "high": 1}, {"low": 2, "high": 1}, {"bins": 0}]
)
def test_bins_that_hold_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match="low < high and at least one bin"):
        GradientScale(**arguments)


def test_the_median_of_a_histogram_alone_takes_the_middle_of_a_bin():
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    median = kd.metrics.median(np.array([1, 0, 3]), edges)
    assert median == pytest.approx(2 + 1 / 3)


def test_since_a_snapshot_counts_only_what_came_after():
    metric = GradientScale()
    metric.update_state(np.array([0.5, 2.5], "float32"))
    before = metric.snapshot()
    metric.update_state(np.array([-1.0, 1.0, np.nan], "float32"))
    summary = metric.summary(before)
    assert summary["count"] == 2
    assert summary["mean"] == 0
    assert summary["reversed_share"] == 0.5
    assert summary["undefined_share"] == pytest.approx(1 / 3)


def test_reset_and_config():
    metric = GradientScale(low=0, high=2, bins=5, name="w")
    metric.update_state(np.array([0.5, 1.5], "float32"))
    metric.reset_state()
    assert metric.summary()["count"] == 0
    assert np.isnan(metric.result())
    again = GradientScale.from_config(metric.get_config())
    np.testing.assert_allclose(again.edges, metric.edges)


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="low=3"):
        GradientScale(low=3, high=1)
    with pytest.raises(ValueError, match="bins=0"):
        GradientScale(bins=0)


def test_compiled():
    metric = GradientScale()
    update = backend.compiled(metric.update_state, metric.variables)
    update(keras.ops.convert_to_tensor([0.5, -0.5, np.nan]))
    assert metric.summary()["count"] == 2


class Read(keras.callbacks.Callback):
    """Reads the histogram after validation has run."""

    def on_epoch_end(self, epoch, logs=None):
        scales = self.model.gradient_scales
        self.counts = {k: v.summary()["count"] for k, v in scales.items()}


def test_the_distiller_counts_each_training_example_by_group():
    x, labels, weights = data()
    teacher, read = mlp(seed=5), Read()
    distiller = kd.Distiller(mlp(seed=1), teacher)
    distiller.compile("sgd", kd.KDPt())
    weights[:3] = 0
    fit(
        distiller,
        x,
        labels,
        weights,
        validation_data=(x, labels),
        callbacks=[read],
    )
    right = (outputs_of(teacher, x).argmax(-1) == labels)[3:]
    assert read.counts == {
        "all": 29,
        "teacher_right": right.sum(),
        "teacher_wrong": (~right).sum(),
    }


def test_histograms_can_be_left_out_or_given_other_bins():
    x, labels, _ = data(8)
    for scale, groups in ((False, 0), (GradientScale(0, 1, 4), 3)):
        distiller = kd.Distiller(mlp(), mlp(seed=5), gradient_scale=scale)
        distiller.compile("sgd", kd.KDPt(), **EAGERLY)
        logs = fit(distiller, x, labels).history
        assert len(distiller.gradient_scales) == groups
        assert ("gradient_scale" in logs) == bool(groups)
    assert distiller.gradient_scales["all"].bins == 4
