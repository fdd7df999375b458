"""Student and teacher with different class counts, as of padded vocabularies.

Everything is held against the loss written out in float64.
"""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from models import (
    EAGERLY,
    FEATURES,
    assert_same_weights,
    data,
    mlp,
    outputs_of,
    uniform,
)

import keras_kd as kd

SHARED = 5
KD, PT = "kd", "kd_pt"
RATE = 0.5


def losses_of(method):
    if method == KD:
        return kd.KD(weight=0.7, temperature=2.0)
    return kd.KDPt(weight=0.7, temperature=2.0)


def explicit(logits, teacher_logits, labels, method, weight=0.7, shared=SHARED):
    """The loss of each example: labels over all classes, the rest shared."""
    z = np.asarray(logits, "float64")
    v = np.asarray(teacher_logits, "float64")[:, :shared]
    log_q = reference.log_softmax(z)
    rows = np.arange(len(labels))
    if method == KD:
        target = reference.kd_target(v, 2.0)
    else:
        target = reference.pt_target(labels, v, 2.0)
    entropy = -(target * np.log(target)).sum(-1)
    tempered = reference.log_softmax(z[:, :shared] / 2.0)
    term = -(target * tempered).sum(-1)
    hard = -log_q[rows, labels]
    return hard, term, entropy, (1 - weight) * hard + weight * 4.0 * term


def numeric_gradient(function, at):
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-6
        gradient[index] = (function(at + step) - function(at - step)) / 2e-6
    return gradient


def linear(classes, seed):
    """Its kernel's gradient is that of the logits, by the inputs."""
    inputs = keras.Input((FEATURES,))
    initializer = keras.initializers.RandomUniform(-1, 1, seed=seed)
    dense = keras.layers.Dense(
        classes, use_bias=False, kernel_initializer=initializer
    )
    return keras.Model(inputs, dense(inputs))


@pytest.mark.parametrize("method", (KD, PT))
@pytest.mark.parametrize("counts", ((7, 6), (6, 7), (7, 5), (5, 7)))
def test_loss_and_gradient_are_those_written_out(counts, method):
    student, teacher = linear(counts[0], 0), linear(counts[1], 1)
    x, labels, _ = data(16, classes=SHARED)
    teacher_logits = outputs_of(teacher, x)
    kernel = student.get_weights()[0].astype("float64")
    distiller = kd.Distiller(student, teacher, shared_classes=SHARED)
    # Traced where neither has the shared classes alone, once for each loss.
    how = {} if counts == (7, 6) else EAGERLY
    distiller.compile(keras.optimizers.SGD(RATE), losses_of(method), **how)
    logs = distiller.train_on_batch(x, labels, return_dict=True)

    def loss(kernel):
        return explicit(x @ kernel, teacher_logits, labels, method)[3].mean()

    hard, term, entropy, _ = explicit(
        x @ kernel, teacher_logits, labels, method
    )
    np.testing.assert_allclose(logs["cross_entropy"], hard.mean(), rtol=1e-5)
    divergence = term - entropy if method == KD else term
    name = next(
        n for n in logs if n not in ("loss", "cross_entropy", "gradient_scale")
    )
    np.testing.assert_allclose(logs[name], divergence.mean(), rtol=1e-4)
    expected = kernel - RATE * numeric_gradient(loss, kernel)
    np.testing.assert_allclose(student.get_weights()[0], expected, atol=1e-5)


def test_w_is_that_of_the_shared_classes():
    student, teacher = linear(7, 0), linear(6, 1)
    x, labels, _ = data(16, classes=SHARED)
    z = outputs_of(student, x)[:, :SHARED].astype("float64")
    v = outputs_of(teacher, x)[:, :SHARED].astype("float64")
    rows = np.arange(16)
    room = 1 - reference.softmax(z)[rows, labels]
    pull = reference.softmax(v / 2) - reference.softmax(z / 2)
    expected = 0.3 + 0.7 * 2.0 * pull[rows, labels] / room
    distiller = kd.Distiller(student, teacher, shared_classes=SHARED)
    distiller.compile(keras.optimizers.SGD(0.0), losses_of(KD), **EAGERLY)
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    np.testing.assert_allclose(
        logs["gradient_scale"], expected.mean(), rtol=1e-4
    )


def test_evaluation_is_over_all_classes_of_the_student():
    student, teacher = mlp(classes=7), mlp(classes=6, seed=5)
    x, labels, _ = data(16, classes=SHARED)
    shared = kd.Distiller(student, teacher, shared_classes=SHARED)
    alone = kd.Distiller(student)
    for distiller in (shared, alone):
        distiller.compile("sgd", kd.KD(), metrics=["accuracy"], **EAGERLY)
    found, expected = (
        distiller.evaluate(x, labels, verbose=0)
        for distiller in (shared, alone)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("counts", ((7, 5), (5, 7)))
def test_true_stands_for_the_smaller_count(counts):
    weights = []
    for shared in (True, 5):
        student, teacher = linear(counts[0], 0), linear(counts[1], 1)
        x, labels, _ = data(16, classes=SHARED)
        distiller = kd.Distiller(student, teacher, shared_classes=shared)
        distiller.compile(keras.optimizers.SGD(RATE), "kd", **EAGERLY)
        distiller.fit(x, labels, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    assert_same_weights(*weights, tolerance=0)


def test_probabilities_are_renormalised_over_the_shared_classes():
    student, teacher = linear(7, 0), linear(6, 1)
    x, labels, _ = data(16, classes=SHARED)
    softened = keras.Model(
        teacher.inputs, keras.layers.Softmax()(teacher.outputs[0])
    )
    weights = []
    start = student.get_weights()
    for each in (teacher, softened):
        student.set_weights(start)
        distiller = kd.Distiller(student, each, shared_classes=SHARED)
        distiller.compile(keras.optimizers.SGD(RATE), losses_of(KD), **EAGERLY)
        distiller.fit(x, labels, shuffle=False, verbose=0)
        weights.append(student.get_weights())
    assert_same_weights(*weights)


@pytest.mark.parametrize("given", ("found", "named", "layer", "matrix"))
@pytest.mark.parametrize("counts", ((7, 6), (5, 7)))
def test_class_relations_of_the_shared_rows(counts, given):
    student, teacher = linear(counts[0], 0), linear(counts[1], 1)
    x, labels, _ = data(16, classes=SHARED)
    rows = teacher.get_weights()[0].T[:SHARED]
    layer = teacher.layers[-1]
    logit_layer = {"named": layer.name, "layer": layer, "matrix": rows}
    distiller = kd.Distiller(student, teacher, shared_classes=SHARED)
    loss = kd.KDSim(logit_layer=logit_layer.get(given), alpha=0.5)
    distiller.compile("sgd", loss, **EAGERLY)
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    z = outputs_of(linear(counts[0], 0), x)[:, :SHARED]
    target = reference.sim_target(
        labels, rows, 0.5, distiller.loss.class_similarity.beta
    )
    term = -(
        target
        * reference.log_softmax(z / distiller.loss.tunables["temperature"])
    ).sum(-1)
    np.testing.assert_allclose(logs["distillation"], term.mean(), rtol=1e-4)


def top_three():
    return kd.KDTopK(k=3)


@pytest.mark.parametrize(
    ("as_arrays", "shared", "chunks", "loss"),
    [
        (True, None, None, kd.KDPt),
        (True, SHARED, 2, top_three),
        (False, SHARED, None, kd.KDPt),
        (False, None, 2, top_three),
    ],
)
def test_kept_statistics_of_other_classes_are_refused(
    as_arrays, shared, chunks, loss, tmp_path
):
    """The teacher's p of a label is another one; its ids may not be there."""
    x, labels, _ = data(16, classes=SHARED)
    given = x, labels
    if not as_arrays:
        given = tf.data.Dataset.from_tensor_slices(given).batch(8)
    teacher = mlp(classes=7, seed=5)
    cache = kd.TeacherCache.write(
        tmp_path / "whole", given, teacher, loss(), verbose=0
    )
    student = mlp(classes=6)
    before = student.get_weights()
    distiller = kd.Distiller(
        student, shared_classes=shared, logit_chunks=chunks
    )
    # Traced where there is the most to trace.
    how = {} if shared and chunks else EAGERLY
    distiller.compile(keras.optimizers.SGD(RATE), loss(), **how)
    count = shared or 6
    with pytest.raises(ValueError, match=f"number of classes than the {count}"):
        distiller.fit(cache.attach(given), verbose=0)
    assert_same_weights(student.get_weights(), before, 0)

    # Those of a teacher that was cut are those of a teacher beside it.
    online = kd.Distiller(mlp(classes=6), teacher, shared_classes=count)
    online.compile(keras.optimizers.SGD(RATE), loss(), **EAGERLY)
    online.fit(x, labels, batch_size=16, shuffle=False, verbose=0)
    cut = keras.Model(teacher.inputs, teacher.outputs[0][..., :count])
    cache = kd.TeacherCache.write(
        tmp_path / "cut", (x, labels), cut, loss(), verbose=0
    )
    distiller.fit(cache.attach((x, labels), batch_size=16), verbose=0)
    assert_same_weights(student.get_weights(), online.student.get_weights())


def test_without_a_teacher_the_smaller_count_is_not_known(tmp_path):
    """Only its statistics are there, of fewer classes than the student's."""
    x, labels, _ = data(16, classes=SHARED)
    teacher = mlp(classes=6, seed=5)
    cache = kd.TeacherCache.write(
        tmp_path, (x, labels), teacher, kd.KDPt(), verbose=0
    )

    def trained(shared, teacher=None):
        student = mlp(classes=7)
        distiller = kd.Distiller(student, teacher, shared_classes=shared)
        distiller.compile(keras.optimizers.SGD(RATE), kd.KDPt(), **EAGERLY)
        given = cache.attach((x, labels), batch_size=16)
        distiller.fit(given, verbose=0)
        return student.get_weights()

    with pytest.raises(ValueError, match="than the 7 .* shared_classes=n"):
        trained(True)
    assert_same_weights(trained(6), trained(True, teacher))


def test_it_is_saved(tmp_path):
    x, labels, _ = data(16, classes=SHARED)
    distiller = kd.Distiller(
        mlp(classes=7), mlp(classes=6, seed=5), shared_classes=SHARED
    )
    distiller.compile("sgd", "kd", **EAGERLY)
    distiller.fit(x, labels, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    assert again.shared_classes == SHARED
    for each in (distiller, again):
        each.fit(x, labels, shuffle=False, verbose=0)
    assert_same_weights(
        again.student.get_weights(), distiller.student.get_weights()
    )


def test_a_label_beyond_the_shared_classes_is_refused():
    x, labels, _ = data(16, classes=SHARED)
    labels[3] = SHARED
    distiller = kd.Distiller(
        mlp(classes=7), mlp(classes=6), shared_classes=SHARED
    )
    distiller.compile("sgd", "kd", **EAGERLY)
    with pytest.raises(ValueError, match=f"label {SHARED}"):
        distiller.fit(x, labels, verbose=0)


@pytest.mark.parametrize(
    ("shared", "words"),
    (
        (None, "say `shared_classes`"),
        (8, "Give at most 6"),
        (1, "at least 2"),
        (2.5, "at least 2"),
        ([0, 1, 2], "at least 2"),
        ("small", "at least 2"),
    ),
)
def test_what_cannot_be_shared_is_refused(shared, words):
    with pytest.raises(ValueError, match=words):
        kd.Distiller(mlp(classes=7), mlp(classes=6), shared_classes=shared)
    distiller = kd.Distiller(mlp(classes=6), shared_classes=6)
    with pytest.raises(ValueError, match="Give at most 5"):
        distiller.teacher = mlp(classes=5)


class NoGraph(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(7)

    def call(self, x):
        return self.dense(x)


def test_a_model_without_a_graph_needs_a_number():
    with pytest.raises(ValueError, match="unknown number of classes"):
        kd.Distiller(NoGraph(), mlp(classes=6), shared_classes=True)
    x, labels, _ = data(16, classes=SHARED)
    distiller = kd.Distiller(NoGraph(), mlp(classes=6), shared_classes=SHARED)
    distiller.compile("sgd", "kd")
    distiller.fit(x, labels, verbose=0)


def two_outputs(classes, seed):
    inputs = keras.Input((FEATURES,))
    outputs = {
        name: keras.layers.Dense(
            classes + 2 * index, kernel_initializer=uniform(seed), name=name
        )(inputs)
        for index, name in enumerate(("small", "large"))
    }
    return keras.Model(inputs, outputs)


def test_each_output_shares_its_own_number():
    student, teacher = two_outputs(7, 0), two_outputs(6, 1)
    x, labels, _ = data(16, classes=SHARED)
    names = ("small", "large")
    distiller = kd.Distiller(
        student, teacher, shared_classes={"small": SHARED, "large": True}
    )
    distiller.compile(
        keras.optimizers.SGD(0.0),
        {name: losses_of(KD) for name in names},
        **EAGERLY,
    )
    logs = distiller.train_on_batch(
        x, dict.fromkeys(names, labels), return_dict=True
    )
    for name, shared in zip(names, (SHARED, 8), strict=True):
        z, v = (
            keras.ops.convert_to_numpy(model(x)[name])
            for model in (student, teacher)
        )
        hard, term, entropy, _ = explicit(z, v, labels, KD, shared=shared)
        expected = 0.3 * hard + 0.7 * 4.0 * (term - entropy)
        np.testing.assert_allclose(
            logs[f"{name}_loss"], expected.mean(), rtol=1e-4
        )
