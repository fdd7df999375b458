"""Soft labels, each a bag of class ids; and examples without a label.

What is right is the sum over classes of what the class id would give, by its
share, in float64 NumPy.
"""

import functools

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from gradients import fewer_seeds, value_and_gradient
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    data,
    fit,
    mlp,
    outputs_of,
    weights_of,
)
from test_distiller_correctness import get_loss
from test_losses import Case

import keras_kd as kd
from keras_kd.batch import class_weight_array, settle

every_soft_loss = pytest.mark.parametrize("name", kd.losses.NAMES)
LABEL_FREE = [
    name for name in kd.losses.NAMES if not kd.losses.get(name).reads_labels
]
label_free_loss = pytest.mark.parametrize("name", LABEL_FREE)


class SoftCase(Case):
    """A case with a share for each class instead of class ids."""

    def __post_init__(self):
        super().__post_init__()
        random = np.random.default_rng(self.seed + 100)
        shares = random.dirichlet(
            np.full(self.num_classes, 0.5), self.labels.shape
        )
        shares[..., 0] = 0
        self.shares = shares / shares.sum(-1, keepdims=True)

    def over_classes(self, make):
        """[..., classes] of what each class id gives."""
        labels = self.labels
        results = []
        for label in range(self.num_classes):
            self.labels = np.full_like(labels, label)
            results.append(make())
        self.labels = labels
        return results

    def expected(self, divergence=None):
        losses = self.over_classes(lambda: Case.expected(self, divergence))
        return (np.stack(losses, -1) * self.shares).sum(-1)

    def expected_gradient(self):
        gradients = self.over_classes(lambda: Case.expected_gradient(self))
        return sum(
            share[..., None] * gradient
            for share, gradient in zip(
                np.moveaxis(self.shares, -1, 0), gradients, strict=True
            )
        )

    def expected_scale(self):
        """[..., classes], w of each pair of an example and a class."""
        return np.stack(
            self.over_classes(
                lambda: self.hard_weight() + self.pull() / self.room()
            ),
            -1,
        )

    def terms(self):
        if self.name != "dkd":
            return super().terms()
        # What moves the label's probability; beta's term does not.
        target = reference.kd_target(self.teacher_logits, self.temperature)
        return [(self.alpha * self.weight, target)]

    def hard_weight(self):
        if self.name == "dkd":
            return 1 - self.weight
        return 1 - sum(weight for weight, _ in self.terms())

    def room(self):
        hot = reference.one_hot(self.labels, self.num_classes)
        return (reference.softmax(self.logits) * (1 - hot)).sum(-1)

    def pull(self):
        hot = reference.one_hot(self.labels, self.num_classes)
        tempered = reference.softmax(
            np.asarray(self.logits, "float64") / self.temperature
        )
        kappa = self.temperature**2 if self.squared else 1.0
        return sum(
            weight
            * kappa
            / self.temperature
            * ((tempered - target) * (1 - hot)).sum(-1)
            for weight, target in self.terms()
        )


def soft_targets(loss, labels, teacher_logits):
    """y_true as the Distiller makes it."""
    logits = keras.ops.cast(teacher_logits, loss.dtype)
    settled = settle(labels, logits, label_reader=loss.label_reader)
    return {
        "labels": labels,
        **loss.teacher_statistics(settled.labels, logits),
    }


@every_soft_loss
@pytest.mark.parametrize("seed", fewer_seeds(6))
def test_a_soft_label_is_a_bag_of_class_ids(name, seed, float64):
    case = SoftCase(name, seed, dtype="float64")
    loss = case.loss(reduction="sum")
    y_true = soft_targets(loss, case.shares, case.teacher_logits)
    value, gradient = value_and_gradient(lambda z: loss(y_true, z), case.logits)
    np.testing.assert_allclose(value, case.expected().sum(), rtol=1e-9)
    np.testing.assert_allclose(
        gradient, case.expected_gradient(), rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(
        loss.parts(y_true, case.logits).gradient_scale,
        case.expected_scale(),
        rtol=1e-7,
        atol=1e-9,
    )


@every_soft_loss
@pytest.mark.parametrize(
    ("scale", "dtype"), [(1.0, "float32"), (8.0, "int32"), (50.0, "float32")]
)
def test_a_one_hot_label_is_its_class_id(name, scale, dtype):
    case = Case(name, seed=4, scale=scale)
    hot = np.eye(case.num_classes)[case.labels].astype(dtype)
    loss = case.loss()
    of_ids = soft_targets(loss, case.labels, case.teacher_logits)
    of_shares = soft_targets(loss, hot, case.teacher_logits)
    for found, expected in zip(
        value_and_gradient(lambda z: loss(of_shares, z), case.logits),
        value_and_gradient(lambda z: loss(of_ids, z), case.logits),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    found = loss.parts(of_shares, case.logits)
    expected = loss.parts(of_ids, case.logits)
    scales = keras.ops.convert_to_numpy(found.gradient_scale)
    at_label = np.take_along_axis(scales, case.labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        at_label, expected.gradient_scale, rtol=2e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        found.cross_entropy, expected.cross_entropy, rtol=1e-5, atol=1e-6
    )


@label_free_loss
@pytest.mark.parametrize("soft", [False, True])
def test_an_example_without_a_label_has_the_teachers_term(name, soft, float64):
    case = SoftCase(name, seed=2, dtype="float64")
    loss = case.loss(reduction=None)
    rows = np.arange(case.labels.size).reshape(case.labels.shape)
    without = rows % 2 == 1
    if soft:
        labels = np.where(without[..., None], 0, case.shares)
        with_label = case.expected()
    else:
        labels = np.where(without, -1, case.labels)
        with_label = Case.expected(case)
    y_true = soft_targets(loss, labels, case.teacher_logits)
    terms = [(w, t) for w, t in case.terms()]
    kappa = case.temperature**2 if case.squared else 1.0
    alone = sum(
        weight
        * kappa
        * (
            -(
                target * reference.log_softmax(case.logits / case.temperature)
            ).sum(-1)
            - reference.entropy(target)
        )
        for weight, target in terms
    )
    np.testing.assert_allclose(
        loss(y_true, case.logits),
        np.where(without, alone, with_label),
        rtol=1e-9,
        atol=1e-12,
    )


# -- what a batch is ----------------------------------------------------------


def settled(labels, reader=None, **arguments):
    """A batch of logits that don't matter, as NumPy arrays by name."""
    logits = np.zeros((len(labels), CLASSES), "float32")
    found = settle(labels, logits, label_reader=reader, **arguments)
    return {
        name: keras.ops.convert_to_numpy(value)
        for name, value in vars(found).items()
        if name not in ("y", "outside") and value is not None
    }


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [("float32", 9e-4, 2e-3), ("float16", 1.5e-2, 3e-2)],
)
def test_shares_that_nearly_sum_to_1_are_made_to(dtype, near, far):
    """As rounding to the dtype leaves them; others are refused."""
    rows = np.full((4, CLASSES), 1 / CLASSES)
    rows *= np.array([[1 + near], [1 - near], [1 + far], [1 - far]])
    found = settled(rows.astype(dtype))
    np.testing.assert_array_equal(found["is_valid"], [True, True, False, False])
    sums = found["labels"].sum(-1)
    np.testing.assert_allclose(sums, [1, 1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_what_has_no_label_has_the_weight_1_of_no_class(soft):
    """And counts, also where a class doesn't; but not under a mask."""
    ids = np.array([-1, 0, 2, -1, 1])
    hot = reference.one_hot(np.maximum(ids, 0), CLASSES)
    hot = np.where((ids < 0)[:, None], 0, hot).astype("float32")
    found = settled(
        hot if soft else ids,
        sample_weight=np.array([2.0, 3.0, 5.0, 7.0, 11.0]),
        mask=np.array([True, True, True, False, True]),
        ignore_class=2,
        class_weight=class_weight_array({0: 10.0, 2: 100.0}, CLASSES),
    )
    assert found["is_valid"].all()
    np.testing.assert_array_equal(found["is_labelled"], ids >= 0)
    np.testing.assert_array_equal(found["counted"], [1, 1, 0, 0, 1])
    counted = found["counted"] > 0
    np.testing.assert_allclose(found["weights"][counted], [2.0, 30.0, 11.0])


@every_soft_loss
def test_the_share_of_an_ignored_class_counts_for_nothing(name, float64):
    case = SoftCase(name, seed=2, dtype="float64")
    loss = case.loss(reduction="sum", ignore_class=1)
    y_true = soft_targets(loss, case.shares, case.teacher_logits)
    losses = case.over_classes(lambda: Case.expected(case))
    counted = case.shares * (np.arange(case.num_classes) != 1)
    np.testing.assert_allclose(
        loss(y_true, case.logits),
        (np.stack(losses, -1) * counted).sum(),
        rtol=1e-6,
    )


def test_what_does_not_count_is_0_also_where_it_is_infinite():
    mask = np.array([False, True, True])
    batch = settle(
        np.eye(3, CLASSES, dtype="float32"),
        np.zeros((3, CLASSES), "float32"),
        mask=mask,
        ignore_class=2,
    )
    losses = np.array([np.inf, 5.0, np.nan], "float32")
    found = batch.counted_part(keras.ops.convert_to_tensor(losses))
    np.testing.assert_array_equal(found, [0.0, 5.0, 0.0])


# -- trained by a Distiller ---------------------------------------------------

EXAMPLES = 18
random = np.random.default_rng(0)
x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
ids = random.integers(0, CLASSES, EXAMPLES).astype("int32")
weights = random.uniform(0, 2, EXAMPLES).astype("float32")
shares = random.dirichlet(np.ones(CLASSES), EXAMPLES).astype("float32")
hot = np.eye(CLASSES, dtype="float32")[ids]


def assert_same(student, expected, tolerance=1e-6):
    assert_same_weights(weights_of(student), weights_of(expected), tolerance)


def trained(student, loss, labels, data=x, how=EAGERLY, **options):
    distiller = kd.Distiller(student, mlp(seed=9))
    distiller.compile(
        keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **how
    )
    history = distiller.fit(
        data,
        labels,
        batch_size=10,
        shuffle=False,
        verbose=0,
        **options,
    ).history
    return distiller, history


# Each kind of target: KDPt's is one of KDPtSim's, KDSampled's is KDTopK's.
@pytest.mark.parametrize(
    "name", ["label_smoothing", "kd_sim", "kd_pt_sim", "kd_topk", "kd", "dkd"]
)
def test_one_hot_labels_train_as_class_ids(name):
    options = {
        "sample_weight": weights,
        "class_weight": {0: 2.0, 2: 0.5},
    }
    expected, student = mlp(seed=1), mlp(seed=1)
    by_ids, their_logs = trained(
        expected, get_loss(name, ignore_class=1), ids, **options
    )
    how = {} if name == "kd_pt_sim" else EAGERLY
    by_shares, logs = trained(
        student, get_loss(name, ignore_class=1), hot, how=how, **options
    )
    assert_same(student, expected)
    assert logs.keys() == their_logs.keys()
    for key, values in their_logs.items():
        np.testing.assert_allclose(logs[key], values, rtol=1e-4, err_msg=key)
    for group, scale in by_ids.gradient_scales.items():
        found = by_shares.gradient_scales[group].summary()
        wanted = scale.summary()
        assert found["count"] == wanted["count"]
        assert found["mean"] == pytest.approx(wanted["mean"], rel=1e-4)
    np.testing.assert_allclose(
        by_shares.evaluate(x, hot, verbose=0),
        by_ids.evaluate(x, ids, verbose=0),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "chunks"),
    [("label_smoothing", None), ("kd", None), ("kd_pt", 3), ("kd_sim", 3)],
)
def test_one_hot_labels_of_64_bits_train_as_others(name, chunks):
    """As `keras.utils.to_categorical` makes them; Keras casts arrays alone."""
    x, labels, weights = data(8 if chunks else 16)
    one_hot = keras.utils.to_categorical(labels, CLASSES)
    assert one_hot.dtype == "float64"
    ended = []
    for y in (one_hot.astype("float32"), one_hot):
        distiller = kd.Distiller(mlp(), mlp(seed=1), logit_chunks=chunks)
        distiller.compile(
            keras.optimizers.SGD(0.5),
            name,
            metrics=["accuracy"],
            run_eagerly=name != "kd" or y is not one_hot,
        )
        batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8)
        given = {"class_weight": {0: 2.0}, "verbose": 0}
        history = distiller.fit(batches, validation_data=batches, **given)
        ended.append((history.history, distiller.student.get_weights()))
    (logs, first), (logs_64, second) = ended
    assert_same_weights(first, second, 1e-6)
    assert logs_64.keys() == logs.keys()
    for key, values in logs.items():
        assert logs_64[key] == pytest.approx(values), key


def test_soft_labels_train_as_by_plain_keras():
    plain, student = mlp(seed=1), mlp(seed=1)
    plain.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **EAGERLY,
    )
    theirs = plain.fit(
        x,
        shares,
        sample_weight=weights,
        batch_size=10,
        shuffle=False,
        verbose=0,
    ).history
    loss = kd.LabelSmoothing(weight=0.0)
    distiller, logs = trained(student, loss, shares, sample_weight=weights)
    assert_same(student, plain)
    np.testing.assert_allclose(logs["accuracy"], theirs["accuracy"])
    np.testing.assert_allclose(
        distiller.evaluate(x, shares, verbose=0),
        plain.evaluate(x, shares, verbose=0),
        rtol=1e-5,
    )


def test_class_weights_act_on_each_class_share():
    by_class = np.array([2.0, 0.5, 1.0, *np.ones(CLASSES - 3)], "float32")
    class_weight = dict(enumerate(by_class.tolist()))
    student = mlp(seed=1)
    trained(
        student,
        kd.LabelSmoothing(weight=0.0),
        shares,
        class_weight=class_weight,
    )
    plain = mlp(seed=1)

    def weighted(shares, logits):
        logs = keras.ops.log_softmax(logits)
        return -keras.ops.sum(shares * by_class * logs, axis=-1)

    plain.compile(keras.optimizers.SGD(0.1), weighted, **EAGERLY)
    plain.fit(x, shares, batch_size=10, shuffle=False, verbose=0)
    assert_same(student, plain)


def test_histograms_count_the_classes_of_a_soft_label_by_their_shares():
    distiller, _ = trained(mlp(seed=1), kd.KDPt(), shares)
    summary = distiller.gradient_scales["all"].summary()
    assert summary["count"] == pytest.approx(EXAMPLES, rel=1e-5)


def test_histograms_leave_out_the_share_of_a_class_that_does_not_count():
    distiller, _ = trained(mlp(seed=1), kd.KDPt(ignore_class=2), shares)
    summary = distiller.gradient_scales["all"].summary()
    expected = np.delete(shares, 2, axis=-1).sum()
    assert summary["count"] == pytest.approx(expected, rel=1e-5)


# -- without labels -----------------------------------------------------------


@functools.cache
def trained_on_labels_of_no_weight(name):
    student = mlp(seed=1)
    trained(student, get_loss(name, weight=1.0), ids)
    return student


def test_losses_that_read_no_label():
    assert set(LABEL_FREE) == {"kd", "kd_topk", "kd_sampled"}


# What form labels are missing in is known before the loss comes in.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("kd", form) for form in ("array", "data set", "marked", "zeros")),
        ("kd_topk", "marked"),
        ("kd_sampled", "array"),
    ],
)
def test_a_data_set_without_labels(name, form):
    """As a data set with any labels, where these have no weight."""
    student = mlp(seed=1)
    labels, data = None, x
    if form == "marked":
        labels = np.full_like(ids, -1)
    elif form == "zeros":
        labels = np.zeros_like(hot)
    loss = get_loss(name, weight=1.0)
    if form == "data set":
        import tensorflow as tf

        distiller = kd.Distiller(student, mlp(seed=9))
        distiller.compile(keras.optimizers.SGD(0.1), loss)
        batches = tf.data.Dataset.from_tensor_slices(x).batch(10)
        logs = distiller.fit(batches, verbose=0).history
    else:
        distiller, logs = trained(student, loss, labels, data)
    assert_same(student, trained_on_labels_of_no_weight(name))
    summary = distiller.gradient_scales["all"].summary()
    assert summary["unlabelled"] == EXAMPLES
    assert summary["count"] == 0
    # Known to have no labels, or found to have none: not a perfect 0.
    for key in ("cross_entropy", "gradient_scale"):
        if labels is None:
            assert key not in logs
        else:
            assert np.isnan(logs[key]).all()


def test_an_ignored_class_leaves_out_no_data_without_labels():
    """Labels of -1 are ignored, but there are none."""
    weights = []
    for ignored in (None, -1):
        student = mlp()
        distiller = kd.Distiller(student, mlp(seed=5))
        loss = kd.KD(ignore_class=ignored)
        distiller.compile(keras.optimizers.SGD(0.5), loss, **EAGERLY)
        distiller.fit(x, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    assert_same_weights(*weights, tolerance=0)


@pytest.mark.parametrize("name", ["kd", "kd_topk"])
def test_labelled_and_unlabelled_examples_mix(name):
    some = np.where(np.arange(EXAMPLES) % 3 == 0, -1, ids)
    student = mlp(seed=1)
    distiller, logs = trained(student, get_loss(name), some)
    summary = distiller.gradient_scales["all"].summary()
    assert summary["unlabelled"] == EXAMPLES / 3
    assert summary["count"] == EXAMPLES * 2 / 3
    # The mean over the examples that have a label.
    rows_of_zeros = np.where((some == -1)[:, None], 0, hot)
    other = mlp(seed=1)
    _, of_shares = trained(other, get_loss(name), rows_of_zeros)
    assert_same(student, other)
    for key, values in of_shares.items():
        np.testing.assert_allclose(logs[key], values, rtol=1e-4, err_msg=key)


def test_logs_of_mixed_examples_are_means_over_the_labelled():
    some = np.where(np.arange(EXAMPLES) % 3 == 0, -1, ids)
    student = mlp(seed=1)
    distiller = kd.Distiller(student, mlp(seed=9))
    # A learning rate of 0: the logs are those of the student as it is.
    options = {"metrics": ["accuracy"], **EAGERLY}
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **options)
    logs = distiller.fit(x, some, batch_size=EXAMPLES, verbose=0).history
    logits = outputs_of(student, x).astype("float64")
    has = some >= 0
    surprise = -reference.log_softmax(logits)[np.arange(EXAMPLES), ids]
    assert logs["cross_entropy"][0] == pytest.approx(
        surprise[has].mean(), rel=1e-5
    )
    right = logits.argmax(-1) == ids
    assert logs["accuracy"][0] == pytest.approx(right[has].mean(), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_no_metric_counts_an_example_without_a_label(weighted):
    """Nor those that are no means over examples, which read no mask."""
    x, ids, weights = data(EXAMPLES)
    shares = np.eye(CLASSES, dtype="float32")[ids]
    shares[::3] = 0
    student = mlp(seed=1)
    kinds = {
        "f1": lambda: keras.metrics.F1Score("macro", name="f1"),
        "iou": lambda: keras.metrics.OneHotMeanIoU(CLASSES, name="iou"),
        "best": lambda: keras.metrics.Precision(top_k=1, name="best"),
    }
    distiller = kd.Distiller(student, mlp(seed=5))
    given = [make() for make in kinds.values()]
    distiller.compile(
        keras.optimizers.SGD(0.0),
        kd.KD(),
        **{"weighted_metrics" if weighted else "metrics": given},
        **EAGERLY,
    )
    expected = outputs_of(student, x)
    logs = fit(distiller, x, shares, weights).history
    labelled = shares.any(axis=-1)
    for name, make in kinds.items():
        metric = make()
        used = weights[labelled] if weighted else None
        metric.update_state(shares[labelled], expected[labelled], used)
        assert logs[name] == [pytest.approx(float(metric.result()), abs=1e-6)]


# One asks the teacher, one doesn't.
@pytest.mark.parametrize("name", ["label_smoothing", "dkd"])
def test_losses_that_read_labels_refuse_their_absence(name):
    loss = get_loss(name)
    with pytest.raises(ValueError, match=f"{type(loss).__name__} reads the"):
        trained(mlp(), loss, None)
    with pytest.raises(ValueError, match=f"{type(loss).__name__} reads the"):
        trained(mlp(), get_loss(name), np.full_like(ids, -1))
    with pytest.raises(ValueError, match=f"{type(loss).__name__} reads"):
        trained(mlp(), get_loss(name), np.zeros_like(hot))


@pytest.mark.parametrize(
    "validation", [(x, None), (x,), x, (x, np.full_like(ids, -1))]
)
def test_validation_needs_labels_and_says_so(validation):
    with pytest.raises(ValueError, match="alidation.*label|label.*alidation"):
        trained(mlp(), kd.KD(), None, validation_data=validation)


# -- refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (2 * shares, "sum of 1.*up to 2.*Normalise"),
        (np.where(shares < 0.1, -0.1, shares), "not negative"),
        (np.where(shares < 0.1, np.nan, shares), "not negative"),
        (np.tile(np.arange(CLASSES), (EXAMPLES, 1)), "class ids as integers"),
        (shares[:, :-1], "a share for each class"),
    ],
)
def test_rows_that_are_not_shares_are_refused(rows, words):
    student, before = mlp(seed=1), mlp(seed=1)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        trained(student, kd.KDPt(), rows)
    assert_same(student, before, 0)


class OfClassIds(kd.losses.DistillationLoss):
    """A loss of a user's own that knows nothing of soft labels."""

    def target(self, labels, statistics, num_classes):
        mass = keras.ops.ones_like(labels, dtype="float32")
        return kd.losses.SparseTarget(labels[..., None], mass[..., None], 0.0)


def test_a_loss_that_reads_class_ids_says_so():
    with pytest.raises(ValueError, match="OfClassIds reads class ids"):
        trained(mlp(), OfClassIds(), shares)
