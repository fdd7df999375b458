"""Sigmoid outputs: one unit, or one a class, each a choice between two."""

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    EAGERLY,
    FEATURES,
    assert_same_weights,
    outputs_of,
    uniform,
    weights_of,
)

import keras_kd as kd

EXAMPLES, UNITS = 32, 3
random = np.random.default_rng(0)
x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
weights = random.uniform(0, 2, EXAMPLES).astype("float32")


def model(units=1, activation=None, seed=0, scale=1.0):
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(6, "tanh", kernel_initializer=uniform(seed))(inputs)
    outputs = layers.Dense(
        units, activation, kernel_initializer=uniform(seed + 1)
    )(scale * hidden)
    return keras.Model(inputs, outputs)


class Subclassed(keras.Model):
    """The same without a graph."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def labels_of(units):
    return random.integers(0, 2, (EXAMPLES, units)).astype("int32")


def fit(distiller, labels, data=x, **options):
    options = {"batch_size": 16, "shuffle": False, **options}
    return distiller.fit(data, labels, verbose=0, **options).history


def trained(student, teacher, loss, labels, names=(None, None), **options):
    distiller = kd.Distiller(
        student, teacher, student_output=names[0], teacher_output=names[1]
    )
    distiller.compile(
        keras.optimizers.SGD(0.5), loss, metrics=["accuracy"], **EAGERLY
    )
    return distiller, fit(distiller, labels, **options)


def of_plain_keras(student, labels, from_logits, **options):
    student.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.BinaryCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
        **EAGERLY,
    )
    return fit(student, labels, **options)


def said(units, activation):
    """What has to be said of such a model."""
    return "binary_logits" if units > 1 and activation is None else None


@pytest.mark.parametrize("units", [1, UNITS])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_weight_0_is_plain_keras(units, activation):
    labels = labels_of(units)
    plain = model(units, activation, seed=1)
    theirs = of_plain_keras(
        plain,
        labels.astype("float32"),
        activation is None,
        sample_weight=weights,
    )
    evaluated = plain.evaluate(x, labels.astype("float32"), verbose=0)
    # Labels are read by the units, before what is behind them.
    more = [] if activation else ["float32", "bool"]
    for dtype in ("int32", *more):
        student = model(units, activation, seed=1)
        distiller, ours = trained(
            student,
            None,
            kd.LabelSmoothing(weight=0.0),
            labels.astype(dtype),
            (said(units, activation), None),
            sample_weight=weights,
        )
        assert_same_weights(weights_of(student), weights_of(plain), 1e-6)
        for key in ("loss", "accuracy"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)
        np.testing.assert_allclose(
            distiller.evaluate(x, labels.astype(dtype), verbose=0)[:2],
            evaluated,
            rtol=1e-5,
        )


def test_one_unit_takes_labels_of_either_shape_and_class_weights():
    labels = labels_of(1)
    plain, student, flat = (model(seed=1) for _ in range(3))
    class_weight = {0: 0.5, 1: 3.0}
    plain.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.BinaryCrossentropy(from_logits=True),
        **EAGERLY,
    )
    fit(plain, labels[:, 0], class_weight=class_weight)
    loss = kd.LabelSmoothing(weight=0.0)
    trained(student, None, loss, labels, class_weight=class_weight)
    loss = kd.LabelSmoothing(weight=0.0)
    trained(flat, None, loss, labels[:, 0], class_weight=class_weight)
    assert_same_weights(weights_of(student), weights_of(plain), 1e-6)
    assert_same_weights(weights_of(flat), weights_of(plain), 1e-6)


def sigmoid(z):
    return np.exp(-np.logaddexp(0, -np.asarray(z, "float64")))


def expected(name, z, v, labels, weight, temperature):
    """Loss of each unit, and w, in float64."""
    z, v = np.asarray(z, "float64"), np.asarray(v, "float64")
    sign = np.where(labels == 1, 1.0, -1.0)
    hard = np.logaddexp(0, -sign * z)
    if name == "label_smoothing":
        on_label = np.full(z.shape, 0.95)
        temperature = 1.0
    else:
        on_label = sigmoid(sign * v / temperature)
    u = sign * z / temperature
    soft = on_label * np.logaddexp(0, -u) + (1 - on_label) * np.logaddexp(0, u)
    if name == "kd":
        p, rest = on_label, sigmoid(-sign * v / temperature)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = [np.where(a > 0, a * np.log(a), 0.0) for a in (p, rest)]
        soft = soft + sum(logs)
    kappa = temperature**2
    loss = (1 - weight) * hard + weight * kappa * soft
    pull = on_label - sigmoid(u)
    scale = (1 - weight) + weight * kappa / temperature * pull / sigmoid(
        -sign * z
    )
    return loss, scale


@pytest.mark.parametrize("name", ["kd", "kd_pt", "label_smoothing"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_are_those_of_each_unit(name, scale):
    labels = labels_of(UNITS)
    student = model(UNITS, seed=1, scale=scale)
    teacher = model(UNITS, "sigmoid", seed=2)
    arguments = {"weight": 0.3}
    if name != "label_smoothing":
        arguments["temperature"] = 2.0
    loss = kd.losses.get(name, **arguments)
    z = outputs_of(student, x)
    logits_of_teacher = keras.Model(
        teacher.inputs, layers.Dense(UNITS)(teacher.layers[-1].input)
    )
    logits_of_teacher.layers[-1].set_weights(teacher.layers[-1].get_weights())
    v = outputs_of(logits_of_teacher, x)
    losses, scales = expected(name, z, v, labels, 0.3, 2.0)
    distiller = kd.Distiller(student, teacher, student_output="binary_logits")
    how = {} if name == "kd" and scale == 1 else EAGERLY
    distiller.compile(keras.optimizers.SGD(0.0), loss, **how)
    logs = fit(distiller, labels, batch_size=EXAMPLES)
    assert logs["loss"][0] == pytest.approx(losses.mean(), rel=1e-4)
    summary = distiller.gradient_scales["all"].summary()
    room = sigmoid(-np.where(labels == 1, z, -z))
    defined = room > np.finfo("float32").epsneg
    assert summary["count"] == defined.sum()
    if scale == 1:
        assert summary["mean"] == pytest.approx(scales.mean(), rel=1e-4)


@pytest.mark.parametrize("z", [100.0, -100.0])
@pytest.mark.parametrize("label", [0, 1])
def test_exact_at_logits_of_100(z, label):
    inputs = keras.Input((1,))
    student = keras.Model(inputs, layers.Dense(1, use_bias=False)(inputs))
    student.set_weights([np.array([[z]], "float32")])
    distiller = kd.Distiller(student)
    distiller.compile(
        keras.optimizers.SGD(0.1), kd.LabelSmoothing(weight=0.0), **EAGERLY
    )
    one = np.ones((1, 1), "float32")
    logs = fit(distiller, np.array([label]), one)
    sign = 1 if label else -1
    assert logs["loss"][0] == pytest.approx(np.logaddexp(0, -sign * z))
    # The gradient is sigmoid(z) - label.
    after = z - 0.1 * (sigmoid(z) - label)
    assert student.get_weights()[0][0, 0] == pytest.approx(after, rel=1e-7)


def test_kd_pt_and_kd_are_the_same_thing():
    labels = labels_of(UNITS)
    students = [model(UNITS, "sigmoid", seed=1) for _ in range(2)]
    for student, name in zip(students, ("kd", "kd_pt"), strict=True):
        trained(
            student, model(UNITS, "sigmoid", 5), kd.losses.get(name), labels
        )
    assert_same_weights(*map(weights_of, students), 1e-6)


def test_subclassed_models_are_said_or_refused():
    labels = labels_of(UNITS)
    known = model(UNITS, "sigmoid", seed=1)
    trained(known, model(UNITS, "sigmoid", 5), kd.KD(), labels)
    hidden = Subclassed(model(UNITS, "sigmoid", seed=1))
    teacher = Subclassed(model(UNITS, "sigmoid", 5))
    hidden(x[:1]), teacher(x[:1])
    names = ("binary_probabilities", "binary_probabilities")
    trained(hidden, teacher, kd.KD(), labels, names)
    assert_same_weights(weights_of(hidden), weights_of(known), 1e-6)
    with pytest.raises(ValueError, match="binary_probabilities"):
        trained(hidden, None, kd.LabelSmoothing(), labels[:, 0])


@pytest.mark.parametrize("name", ["kd_sim", "kd_pt_sim", "kd_topk"])
def test_class_relations_and_top_k_do_not_exist(name):
    pair = model(seed=1), model(seed=2)
    with pytest.raises(ValueError, match="compares many classes"):
        trained(*pair, kd.losses.get(name), labels_of(1))


def test_a_teacher_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"both a sigmoid's units"):
        trained(
            model(UNITS, "sigmoid"),
            model(UNITS, "softmax"),
            kd.KD(),
            labels_of(3),
        )


@pytest.mark.parametrize("labels", [labels_of(1) + 1, labels_of(1) + 0.5])
def test_labels_other_than_0_and_1_are_refused(labels):
    student, before = model(seed=1), model(seed=1)
    with pytest.raises(ValueError, match="Received"):
        trained(student, None, kd.LabelSmoothing(), labels)
    assert_same_weights(weights_of(student), weights_of(before), 0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (255, "label 255 among 1 label .* ignore_class=255"),
        (1.5, "label 1.5 among 1 label "),
        (-1, "label -1 among 1 label .* reads the label"),
    ],
)
def test_a_share_that_is_none_is_named(label, message):
    labels = np.full((EXAMPLES, UNITS), 0.5, "float32")
    labels[3, 1] = label
    student, teacher = (model(UNITS, "sigmoid", seed) for seed in (1, 5))
    with pytest.raises(ValueError, match=message):
        trained(student, teacher, kd.KDPt(), labels)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_unlabelled_units_have_the_teachers_term(dtype):
    labels = labels_of(UNITS).astype(dtype)
    labels[::2] = -1
    student = model(UNITS, "sigmoid", seed=1)
    distiller, _ = trained(student, model(UNITS, "sigmoid", 5), kd.KD(), labels)
    summary = distiller.gradient_scales["all"].summary()
    assert summary["unlabelled"] == EXAMPLES // 2 * UNITS


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("mark", [-1, 255])
def test_ignored_units_are_as_if_they_were_left_out(mark, dtype):
    labels = labels_of(UNITS).astype(dtype)
    ignored = labels.copy()
    ignored[::2] = mark
    found = []
    for rows, given in ((slice(None), ignored), (slice(1, None, 2), labels)):
        student = model(UNITS, "sigmoid", seed=1)
        distiller = kd.Distiller(student, model(UNITS, "sigmoid", 5))
        loss = kd.KD(ignore_class=mark)
        distiller.compile(keras.optimizers.SGD(0.5), loss, **EAGERLY)
        losses = distiller.train_on_batch(x[rows], given[rows])
        evaluated = distiller.test_on_batch(x[rows], given[rows])
        found.append([*weights_of(student), losses, evaluated])
    assert_same_weights(*found)


def test_metrics_are_of_rows_in_which_every_unit_has_a_label():
    labels = labels_of(UNITS)
    labels[::2, 0] = -1
    student = model(UNITS, "sigmoid", seed=1)
    distiller = kd.Distiller(student, model(UNITS, "sigmoid", 5))
    options = {"metrics": ["binary_accuracy"], **EAGERLY}
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **options)
    right = (outputs_of(student, x) > 0.5) == labels
    logs = fit(distiller, labels)
    expected = pytest.approx(right[1::2].mean(), rel=1e-5)
    assert logs["binary_accuracy"] == [expected]


@pytest.mark.parametrize("by_unit", [False, True])
@pytest.mark.parametrize("time", [(), (UNITS,)])
def test_weighted_metrics_leave_out_rows_without_a_label(time, by_unit):
    """Batch and time are as many as units: a mask would fit any axis."""
    shape = (UNITS, *time, UNITS)
    labels = random.integers(0, 2, shape).astype("int32")
    labels[0] = -1
    weights = random.uniform(0, 2, shape if by_unit else shape[:-1])
    inputs = random.normal(size=(*shape[:-1], FEATURES))
    student = keras.Sequential(
        [keras.Input((*time, FEATURES)), layers.Dense(UNITS, "sigmoid")]
    )
    distiller = kd.Distiller(student, keras.models.clone_model(student))
    metrics = [keras.metrics.BinaryAccuracy(name="right")]
    distiller.compile(
        keras.optimizers.SGD(0.0), kd.KD(), weighted_metrics=metrics, **EAGERLY
    )
    logs = fit(distiller, labels, inputs, sample_weight=weights)
    right = (outputs_of(student, inputs) > 0.5) == labels
    weights = np.broadcast_to(weights if by_unit else weights[..., None], shape)
    expected = np.average(right[1:], weights=weights[1:])
    assert logs["right"] == [pytest.approx(expected, rel=1e-5)]


def test_weights_of_rows_suit_metrics_of_rows():
    """The "accuracy" of several units is that of the largest, one for a row."""
    labels = labels_of(UNITS)
    student = model(UNITS, "sigmoid", seed=1)
    distiller = kd.Distiller(student)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        kd.LabelSmoothing(),
        weighted_metrics=["accuracy"],
        **EAGERLY,
    )
    logs = fit(distiller, labels, sample_weight=weights)
    right = outputs_of(student, x).argmax(-1) == labels.argmax(-1)
    expected = np.average(right, weights=weights)
    assert logs["accuracy"] == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("units", [1, UNITS])
@pytest.mark.parametrize("written_for", ["KDPt", "KD"])
def test_a_cache_serves_labels_of_a_float_dtype(units, written_for, tmp_path):
    labels = labels_of(units).astype("float32")
    teacher = model(units, "sigmoid", seed=5, scale=3.0)
    loss = kd.KDPt(weight=0.7, temperature=3.0)
    online, cached = (model(units, "sigmoid", seed=1) for _ in range(2))
    _, expected = trained(online, teacher, loss, labels)

    if written_for == "KD":
        loss = kd.KD(temperature=3.0)
    data = x, labels
    path = tmp_path / "cache"
    cache = kd.TeacherCache.write(
        path, data, teacher, loss, dtype="float32", verbose=0
    )
    distiller = kd.Distiller(cached)
    loss = kd.KDPt(weight=0.7, temperature=3.0)
    distiller.compile(
        keras.optimizers.SGD(0.5), loss, metrics=["accuracy"], **EAGERLY
    )
    attached = cache.attach(data, loss, batch_size=16)
    logs = distiller.fit(attached, verbose=0, shuffle=False).history
    assert_same_weights(weights_of(cached), weights_of(online), 1e-5)
    for key in ("loss", "distillation", "gradient_scale", "accuracy"):
        np.testing.assert_allclose(logs[key], expected[key], rtol=1e-4)
