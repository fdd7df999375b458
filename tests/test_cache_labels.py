"""Caches of soft labels, of no labels, and of one output of several.

Training from a cache gives the weights of training with the teacher.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    mlp,
    weights_of,
)

import keras_kd as kd

EXAMPLES, BATCH = 12, 8
random = np.random.default_rng(0)
x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
ids = random.integers(0, CLASSES, EXAMPLES).astype("int32")
shares = random.dirichlet(np.ones(CLASSES), EXAMPLES).astype("float32")


def teacher():
    return mlp(seed=9)


def trained(data, loss, with_teacher):
    student = mlp(seed=1)
    distiller = kd.Distiller(student, teacher() if with_teacher else None)
    distiller.compile(keras.optimizers.SGD(0.1), loss, **EAGERLY)
    distiller.fit(data, verbose=0, shuffle=False)
    return weights_of(student)


@functools.cache
def trained_online(name, soft):
    """With the teacher, on soft labels or on none."""
    arrays = (x, shares) if soft else (x,)
    return trained(of_kind("batches", *arrays), kd.losses.get(name), True)


def of_kind(kind, *arrays):
    """(x, y) or x alone as data of a kind."""
    if kind == "arrays":
        return arrays
    arrays = arrays if len(arrays) > 1 else arrays[0]
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    return dataset.batch(BATCH) if kind == "batches" else dataset


def attached(cache, data, kind, loss):
    if kind == "arrays":
        return cache.attach(data, loss, batch_size=BATCH)
    dataset = cache.attach(data, loss)
    return dataset if kind == "batches" else dataset.batch(BATCH)


kinds = pytest.mark.parametrize("kind", ["arrays", "batches", "examples"])


@pytest.mark.parametrize(
    "name, kind",
    [
        ("kd", "arrays"),
        ("kd", "batches"),
        ("kd", "examples"),
        ("kd_topk", "examples"),
        ("kd_pt", "arrays"),
    ],
)
def test_soft_labels(tmp_path, kind, name):
    """KD-pt of soft labels is made of what is kept for KD."""
    kept = kd.losses.get("kd_topk" if name == "kd_topk" else "kd")
    data = of_kind(kind, x, shares)
    cache = kd.TeacherCache.write(
        tmp_path / "cache", data, teacher(), kept, dtype="float32", verbose=0
    )
    loss = kd.losses.get(name)
    found = trained(attached(cache, data, kind, loss), loss, False)
    assert_same_weights(found, trained_online(name, soft=True), 1e-5)


@pytest.mark.parametrize(
    "kind, labels",
    [
        ("arrays", ids),
        ("arrays", ids[:, None]),
        ("batches", ids[:, None]),
        ("examples", ids[:, None]),
        ("arrays", shares),
        ("batches", shares),
        ("examples", shares),
    ],
)
def test_the_largest_class_tells_where_the_teacher_is_right(
    tmp_path, kind, labels
):
    model, loss = teacher(), kd.KDTopK(k=2)
    data = of_kind(kind, x, labels)
    cache = kd.TeacherCache.write(
        tmp_path / "cache", data, model, loss, batch_size=BATCH, verbose=0
    )
    joined = attached(cache, data, kind, loss)
    batches = (joined[i] for i in range(2)) if kind == "arrays" else joined
    found = np.concatenate([batch[1]["teacher_right"] for batch in batches])
    best = keras.ops.convert_to_numpy(model(x)).argmax(-1)
    wanted = shares.argmax(-1) if labels is shares else ids
    assert 0 < (best == wanted).sum() < EXAMPLES
    np.testing.assert_array_equal(found, best == wanted)
    assert cache.teacher_accuracy == pytest.approx((best == wanted).mean())


def test_other_shares_are_noticed(tmp_path):
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, shares), teacher(), kd.KD(), verbose=0
    )
    with pytest.raises(ValueError, match="what the teacher saw"):
        cache.attach((x, shares[::-1].copy()), kd.KD())


@kinds
@pytest.mark.parametrize("arrays", [(x, shares), (x,)])
def test_a_shuffled_cache_of_soft_labels_and_of_none(tmp_path, kind, arrays):
    """In the order of the largest shares; or of -1 for all."""
    data, seen = of_kind(kind, *arrays), []
    cache = kd.TeacherCache.write(
        tmp_path / "cache", data, teacher(), kd.KD(), verbose=0
    )

    def order(labels):
        seen.append(labels)
        return np.arange(EXAMPLES)[::-1]

    control = cache.shuffled(tmp_path / "control", data, order)
    soft = len(arrays) > 1
    expected = shares.argmax(-1) if soft else np.full(EXAMPLES, -1)
    np.testing.assert_array_equal(seen, [expected])
    np.testing.assert_array_equal(
        control[:]["teacher_logits"], cache[::-1]["teacher_logits"]
    )
    other = of_kind(kind, *(each[::-1].copy() for each in arrays))
    with pytest.raises(ValueError, match="what the teacher saw"):
        cache.shuffled(tmp_path / "other", other, order)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("kd", "examples"),
        ("kd_topk", "arrays"),
        ("kd_topk", "batches"),
        ("kd_topk", "examples"),
    ],
)
def test_no_labels(tmp_path, kind, name):
    data = of_kind(kind, x)
    cache = kd.TeacherCache.write(
        tmp_path / "cache",
        data,
        teacher(),
        kd.losses.get(name),
        dtype="float32",
        verbose=0,
    )
    loss = kd.losses.get(name)
    found = trained(attached(cache, data, kind, loss), loss, False)
    assert_same_weights(found, trained_online(name, soft=False), 1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_the_teachers_accuracy_is_of_the_labels_that_there_are(soft, tmp_path):
    """Not of missing or ignored ones, nor of those of weight 0."""
    model, weights = teacher(), np.ones(EXAMPLES, "float32")
    best = keras.ops.convert_to_numpy(model(x)).argmax(-1)
    right = np.arange(EXAMPLES) % 3 > 0
    labels = np.where(right, best, (best + 1) % CLASSES)
    labels[:3], labels[3:5], weights[5:7] = -1, 255, 0
    if soft:
        labels = (labels[:, None] == np.arange(CLASSES)).astype("float32")
    data = x, labels, weights
    cache = kd.TeacherCache.write(
        tmp_path / "cache", data, model, kd.KD(), batch_size=BATCH, verbose=0
    )
    expected = pytest.approx(right[7:].mean())
    assert cache.teacher_accuracy == expected
    assert cache.verify(data, model).teacher_accuracy == expected


def test_losses_that_need_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="KDPt reads the label"):
        kd.TeacherCache.write(
            tmp_path / "a", (x,), teacher(), kd.KDPt(), verbose=0
        )
    with pytest.raises(ValueError, match="KDPt needs a number for each class"):
        kd.TeacherCache.write(
            tmp_path / "b", (x, shares), teacher(), kd.KDPt(), verbose=0
        )


def of_two(seed):
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(
        6, "tanh", kernel_initializer=keras.initializers.GlorotUniform(seed)
    )(inputs)
    return keras.Model(
        inputs,
        {
            name: layers.Dense(
                units,
                name=name,
                kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
            )(hidden)
            for name, units in (("species", CLASSES), ("colour", 3))
        },
    )


@kinds
def test_a_cache_for_each_output(tmp_path, kind):
    y = {"species": ids, "colour": ids % 3}
    losses = {"species": kd.KDPt(), "colour": kd.KD()}
    data = of_kind(kind, x, y)
    joined = data
    for name, loss in losses.items():
        cache = kd.TeacherCache.write(
            tmp_path / name,
            data,
            of_two(5),
            loss,
            dtype="float32",
            verbose=0,
            output=name,
        )
        if kind != "arrays":
            joined = cache.attach(joined, loss)
        else:
            statistics = {"labels": y[name], **cache[:]}
            joined = (x, {**joined[1], name: statistics})
    if kind == "examples":
        joined = joined.batch(BATCH)
    student = of_two(1)
    cached = kd.Distiller(student)
    # One kind is traced.
    how = {} if kind == "batches" else EAGERLY
    cached.compile(keras.optimizers.SGD(0.1), losses, **how)
    if kind == "arrays":
        cached.fit(*joined, batch_size=BATCH, shuffle=False, verbose=0)
    else:
        cached.fit(joined, verbose=0)
    assert_same_weights(weights_of(student), two_outputs_online(), 1e-5)


@functools.cache
def two_outputs_online():
    student = of_two(1)
    distiller = kd.Distiller(student, of_two(5))
    losses = {"species": kd.KDPt(), "colour": kd.KD()}
    distiller.compile(keras.optimizers.SGD(0.1), losses, **EAGERLY)
    y = {"species": ids, "colour": ids % 3}
    distiller.fit(of_kind("batches", x, y), verbose=0)
    return weights_of(student)


@pytest.mark.parametrize("units", [1, 3])
def test_sigmoid_outputs(tmp_path, units):
    def model(seed):
        inputs = keras.Input((FEATURES,))
        start = keras.initializers.GlorotUniform(seed)
        outputs = layers.Dense(units, "sigmoid", kernel_initializer=start)
        return keras.Model(inputs, outputs(inputs))

    labels = random.integers(0, 2, (EXAMPLES, units)).astype("int32")
    data = of_kind("batches", x, labels)
    for name in ("kd_pt", "kd"):
        loss = kd.losses.get(name)
        cache = kd.TeacherCache.write(
            tmp_path / name, data, model(5), loss, dtype="float32", verbose=0
        )
        students = model(1), model(1)
        for student, source, given in (
            (students[0], None, cache.attach(data, loss)),
            (students[1], model(5), data),
        ):
            distiller = kd.Distiller(student, source)
            distiller.compile(
                keras.optimizers.SGD(0.1), kd.losses.get(name), **EAGERLY
            )
            distiller.fit(given, verbose=0)
        assert_same_weights(*map(weights_of, students), 1e-5)


@pytest.mark.parametrize(
    ("metrics", "made_again"), [(None, False), (["accuracy"], True)]
)
def test_arrays_have_the_order_of_each_epochs_number(
    metrics, made_again, tmp_path
):
    """Also where Keras reads a batch before the first one, to build metrics.

    And in a training that goes on, with its data or in another process.
    """
    cache = kd.TeacherCache.write(
        tmp_path / "cache",
        (x, ids),
        teacher(),
        kd.KD(),
        dtype="float32",
        verbose=0,
    )

    def compiled(with_teacher):
        student = mlp(seed=1)
        distiller = kd.Distiller(student, teacher() if with_teacher else None)
        distiller.compile(
            keras.optimizers.SGD(0.5), kd.KD(), metrics=metrics, **EAGERLY
        )
        return distiller

    found, expected = compiled(False), compiled(True)
    attach = functools.partial(
        cache.attach, (x, ids), batch_size=BATCH, shuffle=True, seed=3
    )
    data = attach()
    for first, last in ((0, 2), (2, 3)):
        data = attach() if made_again else data
        # Keras would shuffle the batches as well.
        found.fit(
            data, initial_epoch=first, epochs=last, shuffle=False, verbose=0
        )
    for epoch in range(3):
        order = np.arange(EXAMPLES)
        np.random.default_rng([3, epoch]).shuffle(order)
        expected.fit(
            x[order], ids[order], batch_size=BATCH, shuffle=False, verbose=0
        )
    assert_same_weights(
        weights_of(found.student), weights_of(expected.student), 1e-5
    )
