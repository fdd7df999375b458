"""A cache that is not of these data, this teacher or this loss is refused."""

import concurrent.futures
import contextlib
import errno
import json
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from caches import batches, compiled, crop, lstm, text, write
from keras import layers
from models import CLASSES, FEATURES, assert_same_weights, data, mlp, weights_of

import keras_kd as kd
from keras_kd import data_errors, fingerprint
from keras_kd.batch import TEACHER_FINGERPRINT
from keras_kd.cache import storage, teacher_pass, writer

TAIL = r" Received: .*\. (Pass|Write|Choose|Remove|Free|Leave|Return|Say)"


def sliced(x, labels, size=8):
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(size)


def unknown_length(dataset):
    return dataset.filter(lambda *_: True)


@pytest.fixture
def segments():
    return text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cache of 64 examples in batches of 16, with its arrays."""
    x, labels, _ = data(64)
    path = tmp_path_factory.mktemp("shared") / "cache"
    dataset = unknown_length(sliced(x, labels, 16))
    return write(path, dataset, mlp(12, seed=5), kd.KDPt()), x, labels


def trained(cache, dataset, **more):
    compiled(kd.KDPt()).fit(cache.attach(dataset, **more), verbose=0)


# -- every example is compared -------------------------------------------------


def changed_label(x, labels):
    labels = labels.copy()
    labels[40] = (labels[40] + 1) % CLASSES
    return sliced(x, labels, 16)


def changed_input(x, labels):
    x = x.copy()
    x[40, 2] = np.nextafter(x[40, 2], 9)
    return sliced(x, labels, 16)


def swapped(x, labels):
    order = np.arange(64)
    order[[40, 41]] = 41, 40
    return sliced(x[order], labels[order], 16)


def other_sizes(x, labels):
    return sliced(x, labels, 16).unbatch().take(49).batch(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_label, "1 of 16 examples .* the first at position 40 of 64"),
        (changed_input, "1 of 16 examples .* the first at position 40 of 64"),
        (swapped, "2 of 16 examples .* the first at position 40 of 64"),
        (other_sizes, "a batch of 1 examples at position 48, .* has 16"),
        (lambda x, y: sliced(x, y, 16).take(3), "must have the 4 .* only 3"),
        (
            lambda x, y: sliced(np.tile(x, (2, 1)), np.tile(y, 2), 16),
            "must have the 4 .* at least 5",
        ),
    ],
)
def test_other_data_are_refused_when_trained_on(shared, change, message):
    """The first batch is the cache's own, and the length is not known."""
    cache, x, labels = shared
    with pytest.raises(ValueError, match=message + f".*{TAIL[11:]}") as caught:
        trained(cache, unknown_length(change(x, labels)))
    assert "Traceback" not in str(caught.value)
    # What is not compared is the user's to answer for.
    if change in (changed_label, changed_input, swapped):
        trained(cache, unknown_length(change(x, labels)), check=False)


def test_a_pass_that_reshuffles_is_refused(tmp_path):
    x, labels, _ = data(64)
    # The first batch stays as it is.
    fixed = sliced(x[:16], labels[:16], 16)
    rest = sliced(x[16:], labels[16:], 16).unbatch().shuffle(48, seed=1)
    dataset = fixed.concatenate(rest.batch(16))
    cache = write(tmp_path / "cache", dataset, mlp(), kd.KDPt())
    with pytest.raises(ValueError, match="another input or label"):
        trained(cache, dataset)


def test_what_differs_at_once_is_refused_by_attach(shared):
    cache, x, labels = shared
    opened = kd.TeacherCache(cache.path)
    for dataset, message in (
        (sliced(x + 1, labels, 16), "position 0 of 64"),
        (sliced(x, labels, 16).take(2), "4 elements in the cache, 2 now"),
        (sliced(x, labels, 8), "8 now"),
        (sliced(x, labels, 16).repeat(), "an endless one now"),
        (unknown_length(sliced(x, labels, 16).take(0)), "without examples"),
    ):
        with pytest.raises(ValueError, match=message):
            opened.attach(dataset)
    with pytest.raises(ValueError, match="KD needs"):
        opened.attach(sliced(x, labels, 16), kd.KD(), check=False)


@pytest.mark.parametrize("views", [1, 2])
def test_each_view_of_a_stream_is_compared(views, tmp_path):
    x, labels, _ = data(24)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    more = {"augment": crop, "views": views} if views > 1 else {}
    cache = write(
        tmp_path / "cache", dataset, mlp(), kd.KDPt(), batch_size=4, **more
    )

    def read(dataset):
        stream = cache.epochs(dataset, batch_size=8, shuffle=4)
        with data_errors.raised_plainly():
            return list(stream.take(6))

    assert len(read(dataset)) == 6
    labels = labels.copy()
    labels[20] += 1
    changed = tf.data.Dataset.from_tensor_slices((x, labels))
    with pytest.raises(data_errors.DataError, match="position 20 of 24"):
        read(changed)
    for other in (dataset.take(20), dataset.concatenate(dataset.take(1))):
        with pytest.raises(data_errors.DataError, match="must have the 24"):
            read(unknown_length(other))
    stream = cache.epochs(changed, batch_size=8, shuffle=4)
    with pytest.raises(ValueError, match="position 20 of 24"):
        compiled(kd.KDPt()).fit(stream, steps_per_epoch=6, verbose=0)


def test_other_crops_are_refused(tmp_path):
    x, labels, _ = data(24)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    arguments = {"augment": crop, "views": 2}
    write(tmp_path / "cache", dataset, mlp(), kd.KDPt(), **arguments)
    opened = kd.TeacherCache(tmp_path / "cache")

    def flip(x, seed):
        return x[::-1]

    with pytest.raises(ValueError, match="another input or label"):
        opened.attach(dataset, augment=flip)

    def late(x, seed):
        # Seeds are of a view and a position: the first view is the same.
        return tf.cond(seed[0] < 2**32, lambda: crop(x, seed), lambda: x)

    opened.attach(dataset, augment=late)
    stream = opened.attach(dataset, augment=late, epoch=1).batch(8)
    with pytest.raises(ValueError, match="another input or label"):
        compiled(kd.KDPt()).fit(stream, verbose=0)


def test_evaluating_and_plain_iteration_refuse_as_well(shared):
    cache, x, labels = shared
    attached = cache.attach(changed_label(x, labels))
    with pytest.raises(ValueError, match="position 40"):
        compiled(kd.KDPt()).evaluate(attached, verbose=0)
    with (
        pytest.raises(data_errors.DataError, match="position 40"),
        data_errors.raised_plainly(),
    ):
        list(attached)


def test_errors_of_others_stay_what_they_are():
    def broken():
        yield np.zeros(2)
        raise ValueError("the user's own")

    spec = tf.TensorSpec(2, tf.float64)
    dataset = tf.data.Dataset.from_generator(broken, output_signature=spec)
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        data_errors.raised_plainly(),
    ):
        list(dataset)


# -- the teacher and the loss --------------------------------------------------


def test_top_k_of_more_classes_than_are_kept_is_refused(tmp_path):
    dataset = batches()
    cache = write(tmp_path / "cache", dataset, mlp(), kd.KDTopK(k=3))
    with pytest.raises(ValueError, match="'k': 5.* has .*'k': 3"):
        cache.attach(dataset, kd.KDTopK(k=5))
    with pytest.raises(ValueError, match="3 classes for a loss with k=5"):
        compiled(kd.KDTopK(k=5)).fit(cache.attach(dataset), verbose=0)


def joined(how):
    """Two layers of the same shapes, in another graph each time."""
    inputs = keras.Input((CLASSES,))
    first = layers.Dense(CLASSES, kernel_initializer="ones")
    second = layers.Dense(CLASSES, kernel_initializer="ones")
    x = first(inputs)
    x = {
        "chain": lambda: second(keras.ops.relu(x)),
        "skip": lambda: second(keras.ops.relu(x)) + x,
        "other": lambda: second(keras.ops.sigmoid(x)),
        "argument": lambda: second(keras.ops.clip(x, 0, 1)),
        "argument 2": lambda: second(keras.ops.clip(x, 0, 2)),
    }[how]()
    return keras.Model(inputs, x)


class Doubled(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES, kernel_initializer="ones")

    def call(self, x):
        return 2 * self.dense(x)


class Tripled(Doubled):
    def call(self, x):
        return 3 * self.dense(x)


def test_teachers_that_compute_something_else_have_other_fingerprints():
    """Though all of them have the same weights and layers."""
    graphs = ("chain", "skip", "other", "argument", "argument 2")
    found = [fingerprint.teacher_fingerprint(joined(how)) for how in graphs]
    assert len({each["weights"] for each in found}) == 1
    assert len({each["graph"] for each in found}) == len(graphs)
    assert fingerprint.teacher_fingerprint(joined("skip")) == found[1]
    own = [Doubled(), Tripled()]
    for model in own:
        model.build((None, CLASSES))
    first, second = map(fingerprint.teacher_fingerprint, own)
    assert first["weights"] == second["weights"]
    assert first["graph"] != second["graph"]


class Scaled(keras.Model):
    """Configured: layers and weights are the same for every scale."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.dense = layers.Dense(CLASSES, kernel_initializer="ones")

    def call(self, x):
        return self.scale * self.dense(x)

    def get_config(self):
        # The layer's name, object and dtype are not the teacher's.
        return {
            **super().get_config(),
            "scale": self.scale,
            "of": self.dense.name,
            "head": keras.saving.serialize_keras_object(self.dense),
            "object": object(),
        }


class ScaledGraph(keras.Model):
    """A graph whose configuration is not that of its layers, as KerasHub's."""

    def __init__(self, scale=0.5, **kwargs):
        inputs = keras.Input((CLASSES,))
        x = layers.Dense(CLASSES, kernel_initializer="ones")(inputs)
        y = layers.Dense(CLASSES, kernel_initializer="ones")(x)
        super().__init__(inputs, scale * y - x, **kwargs)

    def get_config(self):
        return {}


class Row(keras.Sequential):
    """A chain with a setting of its own."""

    def __init__(self, scale):
        super().__init__([keras.Input((CLASSES,)), layers.Dense(CLASSES)])
        self.scale = scale

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def around(make):
    """A model that holds the one that is made."""

    def outer(scale):
        inputs = keras.Input((CLASSES,))
        return keras.Model(inputs, make(scale)(inputs))

    return outer


@pytest.mark.parametrize(
    "make",
    [Scaled, ScaledGraph, Row, around(ScaledGraph)],
    ids=["subclass", "graph", "sequential", "within"],
)
def test_what_configures_a_subclass_is_in_the_fingerprint(make):
    def graph(scale):
        model = make(scale)
        model(np.ones((1, CLASSES), "float32"))
        return fingerprint.teacher_fingerprint(model)["graph"]

    assert graph(1.0) == graph(1.0)
    assert graph(1.0) != graph(0.1)


def test_a_saved_subclass_keeps_its_fingerprint(tmp_path):
    teacher = ScaledGraph(0.5)
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.models.load_model(
        tmp_path / "teacher.keras", {"ScaledGraph": ScaledGraph}
    )
    assert fingerprint.teacher_fingerprint(
        loaded
    ) == fingerprint.teacher_fingerprint(teacher)


def double(x):
    return 2 * x


def triple(x):
    return 3 * x


@pytest.mark.parametrize(
    "layer",
    [layers.Lambda, lambda function: layers.Dense(5, activation=function)],
    ids=["lambda", "activation"],
)
def test_the_body_of_a_users_function_is_in_the_fingerprint(layer):
    def graph(function):
        function.__name__ = "scaled"
        inputs = keras.Input((CLASSES,))
        model = keras.Model(inputs, layer(function)(inputs))
        return fingerprint.teacher_fingerprint(model)["graph"]

    assert graph(double) == graph(double)
    assert graph(double) != graph(triple)


def test_preprocessing_and_names_in_the_fingerprint(tmp_path):
    """Another scaling is another teacher; another name is not."""

    def scaled(scale):
        inputs = keras.Input((FEATURES,))
        x = layers.Rescaling(scale)(inputs)
        return keras.Model(inputs, mlp(12, seed=5)(x))

    write(tmp_path / "cache", batches(), scaled(2.0), kd.KDPt())
    write(tmp_path / "cache", batches(), scaled(2.0), kd.KDPt())
    with pytest.raises(ValueError, match="'graph'"):
        write(tmp_path / "cache", batches(), scaled(3.0), kd.KDPt())


def test_a_saved_teacher_keeps_its_fingerprint(tmp_path):
    teacher = mlp(12, seed=5)
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.models.load_model(tmp_path / "teacher.keras")
    cache = write(tmp_path / "cache", batches(), teacher, kd.KDPt())
    cache.check(batches(), loaded)
    with pytest.raises(ValueError, match="teacher: .*weights"):
        cache.check(batches(), mlp(12, seed=6))


def test_batches_tell_whose_statistics_they_carry(tmp_path):
    """So that a Distiller with another teacher can refuse them."""
    teacher = mlp(12, seed=5)
    cache = write(tmp_path / "cache", batches(), teacher, kd.KDPt())
    number = fingerprint.teacher_number(
        fingerprint.teacher_fingerprint(teacher)
    )
    for _, y, _ in cache.attach(batches()):
        found = y[TEACHER_FINGERPRINT]
        assert found.dtype == tf.int32
        np.testing.assert_array_equal(found, [number] * len(y["labels"]))
    other = fingerprint.teacher_fingerprint(mlp(12, seed=6))
    assert fingerprint.teacher_number(other) != number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": mlp(12, seed=6)}, "weights"),
        ({"dataset": batches(seed=1)}, "another input or label"),
        ({"dataset": batches().shuffle(30, seed=2)}, "same order"),
        ({"dataset": batches(22)}, "elements: 4 in the cache, 3 now"),
        ({"losses": kd.KDPt(temperature=4.0)}, "'temperature': 4.0"),
        ({"losses": kd.KDTopK(k=2)}, "KDTopK needs"),
        ({"dtype": "float32"}, "dtype: float16 in the cache, float32 now"),
        ({"augment": crop}, "augmented: False in the cache, True now"),
        ({"teacher_output": "log_probabilities"}, "teacher_output: logits"),
    ],
)
def test_another_cache_is_refused_with_the_difference_named(
    change, message, tmp_path
):
    arguments = {
        "dataset": batches(),
        "teacher": mlp(12, seed=5),
        "losses": kd.KDPt(),
    }
    write(tmp_path / "cache", **arguments)
    write(tmp_path / "cache", **arguments)
    before = contents(tmp_path / "cache")
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "cache", **{**arguments, **change})
    assert contents(tmp_path / "cache") == before


def contents(path):
    return {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file()
    }


# -- what a teacher gives, and labels ------------------------------------------


def subclassed_teacher(activation):
    """Its graph does not tell what it gives."""

    class Teacher(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(CLASSES)

        def call(self, x):
            return activation(self.dense(x))

    return Teacher()


def test_a_teacher_that_gives_something_else_is_refused(tmp_path):
    dataset = batches()
    softmax = subclassed_teacher(tf.nn.softmax)
    with pytest.raises(ValueError, match="teacher_output='probabilities'"):
        write(tmp_path / "cache", dataset, softmax, kd.KDPt())
    said = write(
        tmp_path / "said",
        dataset,
        softmax,
        kd.KDPt(),
        teacher_output="probabilities",
        dtype="float32",
    )
    p = np.concatenate([np.array(softmax(x)) for x, *_ in dataset])
    labels = np.concatenate([y for _, y, _ in dataset])
    p = p ** (1 / 2.0)
    p = (p / p.sum(-1, keepdims=True))[np.arange(30), labels]
    found = np.concatenate(
        [y["label_log_odds"] for _, y, _ in said.attach(dataset)]
    )
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-3, atol=1e-4)
    logits = subclassed_teacher(lambda x: x)
    logits(np.zeros((1, FEATURES)))
    with pytest.raises(ValueError, match="teacher_output='logits'"):
        said.verify(dataset, logits, teacher_output="probabilities")


def as_dataset(batched, *arrays):
    made = tf.data.Dataset.from_tensor_slices(arrays)
    return made.batch(8) if batched else made


@pytest.fixture(scope="module")
def flat_labels(tmp_path_factory):
    """By whether data are batched: a cache, and what it serves."""
    x, labels, _ = data(30)
    path, loss = tmp_path_factory.mktemp("flat"), kd.KDTopK(k=3)

    def made(batched):
        dataset = as_dataset(batched, x, labels)
        cache = write(path / f"{batched}", dataset, mlp(12, seed=5), loss)
        return cache, cache.attach(dataset)

    return {batched: made(batched) for batched in (True, False)}


@pytest.fixture(scope="module")
def trained_on_flat_labels(flat_labels):
    _, attached = flat_labels[True]
    return trained_for_an_epoch(attached)


def trained_for_an_epoch(dataset):
    distiller = compiled(kd.KDTopK(k=3))
    distiller.fit(dataset, verbose=0)
    return weights_of(distiller.student)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_labels_with_a_last_axis_are_those_without(
    batched, dtype, flat_labels, trained_on_flat_labels, tmp_path
):
    x, labels, weights = data(30)
    column = labels[:, None].astype(dtype)
    dataset = as_dataset(batched, x, column, weights[:, None])
    cache = write(tmp_path, dataset, mlp(12, seed=5), kd.KDTopK(k=3))
    flat, of_flat = flat_labels[batched]
    assert cache.record_bytes == flat.record_bytes == 3 * 4 + 4
    assert cache.teacher_accuracy == pytest.approx(flat.teacher_accuracy)
    attached = cache.attach(dataset)
    for (_, y, _), (_, other) in zip(attached, of_flat, strict=True):
        for key in set(other) - {"labels"}:
            np.testing.assert_array_equal(y[key], other[key])
    if batched and dtype != "float32":
        found = trained_for_an_epoch(attached.map(lambda x, y, w: (x, y)))
        assert_same_weights(found, trained_on_flat_labels, 0)


def test_labels_of_text_with_a_last_axis(segments, tmp_path):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(CLASSES, 4)(inputs)
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(x))
    flat = write(tmp_path / "flat", segments, teacher, kd.KDPt())
    longer = segments.map(lambda x, labels: (x, labels[..., None]))
    cache = write(tmp_path / "longer", longer, teacher, kd.KDPt())
    assert cache.record_bytes == flat.record_bytes == 6 * 2
    for (_, y), (_, other) in zip(
        cache.attach(longer), flat.attach(segments), strict=True
    ):
        np.testing.assert_array_equal(
            y["label_log_odds"], other["label_log_odds"]
        )


def test_a_label_beyond_32_bits_is_not_another_class(tmp_path):
    x, labels, _ = data(16)
    teacher = mlp(12, seed=5)
    right = keras.ops.convert_to_numpy(teacher(x)).argmax(-1).astype("int64")
    assert write(
        tmp_path / "one", sliced(x, right), teacher, kd.KDPt()
    ).teacher_accuracy == pytest.approx(1)
    assert (
        write(
            tmp_path / "two", sliced(x, right + 2**32), teacher, kd.KDPt()
        ).teacher_accuracy
        == 0
    )


def test_an_edited_loss_of_ones_own_is_another_one(tmp_path):
    class Own(kd.losses.DistillationLoss):
        statistics = ("largest",)

        def teacher_statistics(self, labels, teacher_logits):
            return {"largest": keras.ops.max(teacher_logits, axis=-1)}

    first = Own

    class Own(kd.losses.DistillationLoss):
        statistics = ("largest",)

        def teacher_statistics(self, labels, teacher_logits):
            return {"largest": -keras.ops.max(teacher_logits, axis=-1)}

    (x, labels, _), teacher = data(8), mlp()
    write(tmp_path, (x, labels), teacher, first())
    write(tmp_path, (x, labels), teacher, first())
    with pytest.raises(ValueError, match="Own needs"):
        write(tmp_path, (x, labels), teacher, Own())


@pytest.mark.parametrize("soft", [False, True])
def test_batches_of_several_lengths_are_refused(soft, tmp_path):
    class Padded(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, number):
            x = np.ones((4, 6 - 2 * number), "int32")
            return x, keras.utils.to_categorical(x, CLASSES) if soft else x

    inputs = keras.Input((None,), dtype="int32")
    teacher = keras.Model(inputs, keras.layers.Embedding(CLASSES, 7)(inputs))
    with pytest.raises(ValueError, match=r"\(4,\) in a batch, \(6,\) in the"):
        write(tmp_path, Padded(), teacher, kd.KD())


def test_labels_that_are_not_whole_are_refused(tmp_path):
    x, labels, _ = data(16)
    labels = labels.astype("float32")
    labels[12] += 0.5
    with pytest.raises(ValueError, match=r"whole numbers .* Received: \d\.5"):
        write(tmp_path / "cache", sliced(x, labels), mlp(), kd.KDPt())


def test_inputs_may_be_dicts_and_tuples(tmp_path):
    x, labels, _ = data(24)
    text = np.array([f"text {n}" for n in range(24)])
    inputs = {"a": keras.Input((FEATURES,), name="a")}
    inputs["b"] = keras.Input((FEATURES,), name="b")
    joined = layers.Concatenate()([inputs["a"], inputs["b"]])
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(joined))
    named = tf.data.Dataset.from_tensor_slices(({"a": x, "b": 2 * x}, labels))
    changed = tf.data.Dataset.from_tensor_slices(
        ({"a": x, "b": 2 * np.roll(x, 1, 0)}, labels)
    )
    cache = write(tmp_path / "cache", named.batch(8), teacher, kd.KDPt())
    ((found, y), *_) = cache.attach(named.batch(8))
    np.testing.assert_array_equal(found["b"], 2 * x[:8])
    with pytest.raises(ValueError, match="another input"):
        cache.attach(changed.batch(8))
    pairs = named.map(lambda x, y: ((x["a"], x["b"]), y)).batch(8)
    teacher = keras.Model(list(inputs.values()), teacher.outputs)
    cache = write(tmp_path / "pairs", pairs, teacher, kd.KDPt())
    assert isinstance(next(iter(cache.attach(pairs)))[0], tuple)

    class Reader(keras.Model):
        def call(self, x):
            lengths = tf.strings.length(x[:, None] + [""] * CLASSES)
            return keras.ops.cast(lengths, "float32")

    words = sliced(text, labels)
    cache = write(tmp_path / "text", words, Reader(), kd.KDPt())
    with pytest.raises(ValueError, match="another input"):
        cache.attach(sliced(text[::-1].copy(), labels))


# -- controls ------------------------------------------------------------------


def backwards(labels):
    return np.arange(len(labels))[::-1]


def rolled(labels):
    return np.roll(np.arange(len(labels)), 1)


def test_a_control_is_not_taken_for_another_cache(tmp_path):
    teacher, dataset = mlp(12, seed=5), batches()
    cache = write(tmp_path / "cache", dataset, teacher, kd.KDPt())
    control = cache.shuffled(tmp_path / "control", dataset, backwards)
    cache.shuffled(tmp_path / "control", dataset, backwards)
    with pytest.raises(ValueError, match="order: .* None now"):
        write(tmp_path / "control", dataset, teacher, kd.KDPt())
    with pytest.raises(ValueError, match="order: "):
        control.check(teacher=teacher)
    for path, order in (("control", rolled), ("cache", backwards)):
        with pytest.raises(ValueError, match="order: "):
            cache.shuffled(tmp_path / path, dataset, order)
    changed = dataset.map(lambda x, y, w: (x, (y + 1) % CLASSES, w))
    with pytest.raises(ValueError, match="another input or label"):
        cache.shuffled(tmp_path / "other", changed, backwards)
    for order in (lambda y: y[:3], lambda y: y + 30, lambda y: y * 1.0):
        with pytest.raises(ValueError, match="a position for each label"):
            cache.shuffled(tmp_path / "other", dataset, order)


@pytest.mark.parametrize("order", [rolled, backwards])
def test_a_control_is_not_written_over_another_that_begins_meanwhile(
    order, tmp_path, monkeypatch
):
    cache = write(tmp_path / "cache", batches(), mlp(12, seed=5), kd.KDPt())
    path, labels_of = tmp_path / "control", kd.TeacherCache._labels

    def labels_meanwhile(self, dataset):
        monkeypatch.undo()
        cache.shuffled(path, dataset, backwards)
        return labels_of(self, dataset)

    monkeypatch.setattr(kd.TeacherCache, "_labels", labels_meanwhile)
    if order is rolled:
        with pytest.raises(ValueError, match="order: "):
            cache.shuffled(path, batches(), order)
    else:
        cache.shuffled(path, batches(), order)
    expected = cache.shuffled(tmp_path / "alone", batches(), backwards)
    assert contents(path) == contents(tmp_path / "alone")
    assert expected.examples == 30


def test_a_control_never_overwrites_other_files(tmp_path):
    cache = write(tmp_path / "cache", batches(), mlp(), kd.KDPt())
    (tmp_path / "mine").mkdir()
    for name in ("text.txt", "zarr.json"):
        file = tmp_path / "mine" / name
        file.write_text('{"attributes": {}}')
        for made in (
            lambda: cache.shuffled(tmp_path / "mine", batches(), backwards),
            lambda: write(tmp_path / "mine", batches(), mlp(), kd.KDPt()),
        ):
            with pytest.raises(ValueError, match=f"{name}.*Choose another"):
                made()
        assert file.read_text() == '{"attributes": {}}'
        file.unlink()


# -- files ---------------------------------------------------------------------


def test_a_damaged_chunk_is_named(tmp_path):
    path = tmp_path / "cache"
    write(path, batches(), mlp(seed=5), kd.KDPt())
    for name in ("label_log_odds_2/c/0/0", "example_checksum/c/0/0"):
        file = path / name
        content = file.read_bytes()
        for damaged in (
            content[:-1],
            bytes([content[0] ^ 1]) + content[1:],
            b"",
        ):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name}.*write the cache"):
                kd.TeacherCache(path)
            opened = kd.TeacherCache(path, check_files=False)
            with pytest.raises(ValueError, match=f"{name}.*write the cache"):
                trained(opened, batches())
        file.unlink()
        with pytest.raises(ValueError, match=f"{name}.* is missing"):
            kd.TeacherCache(path)
        opened = kd.TeacherCache(path, check_files=False)
        with pytest.raises(ValueError, match=f"{name}.* is missing"):
            trained(opened, batches())
        file.write_bytes(content)
    with pytest.raises(FileNotFoundError, match="no cache"):
        kd.TeacherCache(tmp_path / "absent")


def test_no_changed_character_of_the_manifest_goes_unnoticed(tmp_path):
    path = tmp_path / "cache"
    cache = write(path, batches(), mlp(seed=5), kd.KDPt(temperature=2.0))
    expected = cache[:]["label_log_odds"]
    for name in ("zarr.json", "label_log_odds_2/zarr.json"):
        file = path / name
        content = file.read_text()
        noticed = 0
        for position in range(0, len(content)):
            old = content[position]
            new = "7" if old != "7" else "8"
            file.write_text(content[:position] + new + content[position + 1 :])
            try:
                found = kd.TeacherCache(path)
            except ValueError as error:
                assert str(path) in str(error)
                noticed += 1
            else:
                # A space, or what no reader looks at.
                assert found.record_bytes == 2
                y = found.statistics(slice(None), kd.KDPt(temperature=2.0))
                np.testing.assert_array_equal(y["label_log_odds"], expected)
        assert noticed > len(content) / 2
        file.write_text(content[: len(content) // 2])
        with pytest.raises(ValueError, match="zarr.json.*write the cache"):
            kd.TeacherCache(path)
        file.write_text(content)


def test_a_former_format_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "view-00000-00000.records").write_bytes(b"1234")
    for opened in (
        lambda: kd.TeacherCache(tmp_path),
        lambda: write(tmp_path, batches(), mlp(), kd.KDPt()),
    ):
        with pytest.raises(
            ValueError, match="another version of keras_kd.*write the cache"
        ):
            opened()


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_refused(path):
    with pytest.raises(ValueError, match="empty path"):
        write(path, batches(), mlp(), kd.KDPt())
    with pytest.raises(ValueError, match="empty path"):
        kd.TeacherCache(path)


def test_the_home_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/cache", batches(), mlp(), kd.KDPt())
    assert (tmp_path / "cache" / "zarr.json").exists()
    assert kd.TeacherCache("~/cache").examples == 30


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "cache"
    with pytest.raises(OSError, match=f"{path} can't be .*Choose") as e:
        write(path, batches(), mlp(), kd.KDPt())
    assert e.value.errno == errno.ENOTDIR


def test_a_full_disk_is_named_and_writing_resumes(tmp_path):
    """A limit on the size of files stands for it."""
    x = np.zeros((3000, FEATURES), "float32")
    dataset = sliced(x, np.zeros(3000, "int32"), 500)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="can't be written.*Free some") as e:
            write(tmp_path / "cache", dataset, mlp(), kd.KDPt())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.errno == errno.EFBIG
    cache = write(tmp_path / "cache", dataset, mlp(), kd.KDPt())
    assert cache.examples == 3000


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stateful", [False, True])
def test_writing_killed_at_any_moment_resumes(
    stateful,
    segments,
    tmp_path,
    monkeypatch,
):
    """Killed before or after each write, of a chunk or of a JSON file."""
    teacher = lstm(6, 5) if stateful else mlp(12, seed=5)
    dataset = segments if stateful else batches()
    views = {} if stateful else {"augment": crop, "views": 2}
    arguments = dict(checkpoint_seconds=0, **views)
    write(tmp_path / "whole", dataset, teacher, kd.KDPt(), **arguments)
    expected = contents(tmp_path / "whole")

    path, moments, ran = tmp_path / "cut", 0, []
    writes = {}

    def dying(original):
        def write(self, *args, **kwargs):
            # Each time a write further, once before and once after it.
            calls = writes["calls"] = writes["calls"] + 1
            if calls == writes["last"] and not writes["after"]:
                raise Killed
            result = original(self, *args, **kwargs)
            if calls == writes["last"] and writes["after"]:
                raise Killed
            return result

        return write

    for kind, name in (
        (storage.Folder, "write_json"),
        (storage.Folder, "remove"),
        (storage.Table, "write"),
    ):
        monkeypatch.setattr(kind, name, dying(getattr(kind, name)))
    run = teacher_pass.TeacherPass.run
    monkeypatch.setattr(
        teacher_pass.TeacherPass,
        "run",
        lambda *args: ran.append(1) or run(*args),
    )
    # At the first write, at the second, and so on, each resumed at once.
    for last in range(1, 40):
        for after in (False, True):
            writes.update(calls=0, last=min(last, 3), after=after)
            try:
                write(path, dataset, teacher, kd.KDPt(), **arguments)
            except Killed:
                moments += 1
                continue
            break
        else:
            continue
        break
    assert moments > 8
    batches_in_all = 7 if stateful else 8
    # What was safe is not computed again: at most one batch a kill.
    assert len(ran) <= batches_in_all + moments
    monkeypatch.undo()
    write(path, dataset, teacher, kd.KDPt(), **arguments)
    assert contents(path) == expected


def test_a_killed_writer_has_left_the_beginning_of_a_cache(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(storage.Table, "write", lambda *_: exec("raise Killed"))
    monkeypatch.setitem(__builtins__, "Killed", Killed)
    with pytest.raises(Killed):
        write(tmp_path / "cache", batches(), mlp(seed=5), kd.KDPt())
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="beginning"):
        kd.TeacherCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="weights"):
        write(tmp_path / "cache", batches(), mlp(seed=6), kd.KDPt())
    progress = tmp_path / "cache" / "writing.json"
    progress.write_text(progress.read_text()[:-20] if progress.exists() else "")
    with pytest.raises(ValueError, match="writing.json.*write the cache"):
        write(tmp_path / "cache", batches(), mlp(seed=5), kd.KDPt())


def test_two_writers_of_one_cache_both_end_with_it(tmp_path):
    teacher, dataset = mlp(12, seed=5), batches(200)
    expected = write(
        tmp_path / "one", dataset, teacher, kd.KDPt(), checkpoint_seconds=0
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(
                lambda _: write(
                    tmp_path / "cache",
                    unknown_length(dataset),
                    teacher,
                    kd.KDPt(),
                    checkpoint_seconds=0,
                ),
                range(3),
            )
        )
    for cache in found:
        for one, other in zip(
            cache.attach(dataset), expected.attach(dataset), strict=True
        ):
            np.testing.assert_array_equal(
                one[1]["label_log_odds"], other[1]["label_log_odds"]
            )
    manifest = json.loads((tmp_path / "cache" / "zarr.json").read_text())
    assert manifest["attributes"]["keras_kd"]["examples"] == 200


@pytest.mark.parametrize("killed_after", ["write", None])
def test_another_writer_may_come_between_any_two_steps(
    killed_after, tmp_path, monkeypatch
):
    """And end there, having written a part of the cache, or all of it."""
    x, labels, _ = data(8)
    # So that no teacher need be traced.
    logits = np.random.default_rng(0).normal(size=(8, CLASSES))
    given = x, {"labels": labels, "teacher_logits": logits.astype("float32")}
    arguments = {"batch_size": 4, "checkpoint_seconds": 0}

    def run(path):
        return write(path, given, None, kd.KDPt(), **arguments)

    state = {"steps": 0, "at": None}
    expected = run(tmp_path / "whole")[:]

    def step(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            if state["at"] is None:  # The other writer.
                result = original(*args, **kwargs)
                if name == killed_after:
                    raise Killed
                return result
            state["steps"] += 1
            if state["steps"] == state["at"]:
                state["at"] = None
                with contextlib.suppress(Killed):
                    run(path)
                state["at"] = 0
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("names", "read_json", "write_json", "remove"):
        step(storage.Folder, name)
    step(storage.Table, "write")
    step(storage.ts, "open")
    for at in range(1, 100):
        path = tmp_path / str(at)
        state.update(steps=0, at=at)
        found = run(path)[:]
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
        if state["at"]:
            break  # There are fewer steps.
    assert at > 20


@pytest.mark.parametrize(
    ("name", "owner", "killed_at"),
    [
        ("zarr.json", storage.Folder, "write_json"),
        ("label_log_odds_2/zarr.json", storage.Folder, "open_array"),
        ("label_log_odds_2/zarr.json", storage.Table, "write"),
        ("writing.json", storage.Table, "write"),
    ],
)
def test_what_a_killed_writer_left_of_a_file_does_not_get_into_it(
    name, owner, killed_at, tmp_path, monkeypatch
):
    """It may be longer than what is written in its place."""

    def run(folder):
        write(tmp_path / folder, batches(), teacher, kd.KDPt())

    def killed(*_, **__):
        raise Killed

    teacher = mlp(12, seed=5)
    run("whole")
    left = tmp_path / "cut" / f"{name}.__lock"
    first = (owner, killed_at)
    # The next two are killed as well, so that what they have written is read.
    write_table = (storage.Table, "write")
    after_a_flush = (writer._Progress, "of_next_view")
    for moment in (first, write_table, after_a_flush):
        with monkeypatch.context() as patched:
            patched.setattr(*moment, killed)
            with pytest.raises(Killed):
                run("cut")
        if moment is first:
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_text("7" * 5000)
    run("cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


# -- bad input -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": batches().repeat()}, "infinite"),
        ({"dataset": batches().take(0)}, "empty"),
        ({"dataset": batches(12).concatenate(batches(12))}, "one size"),
        ({"dataset": batches(8, 4).concatenate(batches(8))}, "one size"),
        ({"dataset": [data(8)[:2]]}, "tf.data.Dataset"),
        ({"dataset": batches().map(lambda x, y, w: x)}, "labels"),
        (
            {"dataset": batches().map(lambda x, y, w: (x, tf.one_hot(y, 7)))},
            "KDPt needs a number for each class",
        ),
        ({"views": 2}, "views=2"),
        ({"dtype": "int8"}, "int8"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"losses": [kd.LabelSmoothing()]}, "need nothing"),
        ({"path": "nowhere://cache"}, "nowhere://"),
    ],
)
def test_bad_input_is_refused(arguments, message, tmp_path):
    usual = {"dataset": batches(), "teacher": mlp(), "losses": kd.KDPt()}
    usual["path"] = tmp_path / "cache"
    with pytest.raises((TypeError, ValueError), match=message):
        write(**{**usual, **arguments})
    with pytest.raises(FileNotFoundError):
        kd.TeacherCache(tmp_path / "cache")


def test_a_teacher_that_is_not_finite_is_refused_with_its_batch(tmp_path):
    x, labels, _ = data(30)
    x[20] = np.nan
    with pytest.raises(ValueError, match="in batch 2 of"):
        write(tmp_path / "cache", sliced(x, labels), mlp(), kd.KDPt())


@pytest.mark.parametrize("batch_size", [100, 0, -1])
def test_an_epoch_smaller_than_a_batch_is_refused(batch_size, tmp_path):
    x, labels, _ = data(64)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    cache = write(tmp_path / "cache", dataset, mlp(), kd.KDPt())
    with pytest.raises(ValueError, match=f"batch_size={batch_size} for 64"):
        cache.epochs(dataset, batch_size=batch_size)
    cache.epochs(dataset, batch_size=64)


def test_batches_are_not_batched_again(shared):
    cache, x, labels = shared
    with pytest.raises(ValueError, match="of batches of 16"):
        cache.epochs(sliced(x, labels, 16), batch_size=2)


def test_a_distiller_with_another_teacher_refuses_the_statistics(tmp_path):
    teacher, other = mlp(12, seed=5), mlp(12, seed=6)
    cache = write(tmp_path / "cache", batches(), teacher, kd.KDPt())
    student = mlp(seed=1)
    before = student.get_weights()
    distiller = kd.Distiller(student, other)
    distiller.compile("sgd", kd.KDPt())
    with pytest.raises(ValueError, match="not the one whose statistics"):
        distiller.fit(cache.attach(batches()), verbose=0)
    for one, weight in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, weight)
    for x, y, weight in cache.attach(batches()):
        with pytest.raises(ValueError, match="not the one whose statistics"):
            distiller.train_on_batch(x, y, weight)
    distiller.teacher = teacher
    distiller.fit(cache.attach(batches()), verbose=0)
    distiller.train_on_batch(x, y, weight)


def test_a_teacher_that_changes_between_batches_is_noticed(
    monkeypatch, tmp_path
):
    """Without working out its fingerprint again for each batch."""
    teacher = mlp(12, seed=5)
    cache = write(tmp_path / "cache", batches(), teacher, kd.KDPt())
    distiller = kd.Distiller(mlp(seed=1), teacher)
    distiller.compile("sgd", kd.KDPt())
    asked, work_out = [], fingerprint.teacher_fingerprint
    monkeypatch.setattr(
        fingerprint,
        "teacher_fingerprint",
        lambda teacher: asked.append(teacher) or work_out(teacher),
    )
    for batch in cache.attach(batches()):
        distiller.train_on_batch(*batch)
    assert asked == [teacher]
    kernel, bias = teacher.layers[-1].get_weights()
    # The same numbers in another order.
    teacher.layers[-1].set_weights([kernel[:, ::-1], bias])
    with pytest.raises(ValueError, match="not the one whose statistics"):
        distiller.train_on_batch(*batch)
    teacher.layers[-1].set_weights([kernel, bias])
    distiller.train_on_batch(*batch)
