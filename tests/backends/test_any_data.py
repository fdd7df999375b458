"""Data of every kind that `fit` takes: caches, diagnoses, and indices.

Runs on every backend; TensorFlow's own data sets are tested where it is the
backend.
"""

import functools

import keras
import numpy as np
import pytest
import torch
from models import (
    CLASSES,
    EAGERLY,
    assert_same_weights,
    assert_weights_differ,
    data,
    mlp,
    weights_of,
)

import keras_kd as kd
from keras_kd import fingerprint

EXAMPLES, BATCH = 30, 8
LOSSES = {
    "kd_pt": lambda: kd.KDPt(temperature=3.0),
    "kd_topk": lambda: kd.KDTopK(k=3, temperature=2.0),
    "kd": lambda: kd.KD(temperature=4.0),
}


class Batches(keras.utils.PyDataset):
    """Batches of arrays; in another order after each epoch, if told."""

    def __init__(self, *arrays, reshuffles=False):
        super().__init__()
        self.arrays = arrays
        self.reshuffles = reshuffles
        self.order = np.arange(len(arrays[0]))

    @property
    def num_batches(self):
        return -(-len(self.order) // BATCH)

    def __getitem__(self, number):
        rows = self.order[number * BATCH : (number + 1) * BATCH]
        return tuple(array[rows] for array in self.arrays)

    def on_epoch_end(self):
        if self.reshuffles:
            self.order = self.order[::-1]


def loader(*arrays, **more):
    tensors = [torch.from_numpy(array) for array in arrays]
    dataset = torch.utils.data.TensorDataset(*tensors)
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, **more)


def tf_data(*arrays):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


KINDS = {
    "arrays": lambda *arrays: arrays,
    "py_dataset": Batches,
    "loader": loader,
    "tf_data": tf_data,
}


def write(path, dataset, losses, teacher=None, **more):
    teacher = teacher or mlp(12, seed=5)
    return kd.TeacherCache.write(
        path, dataset, teacher, losses, verbose=0, dtype="float32", **more
    )


# JAX takes longer where it compiles one operation after another.
FASTEST = EAGERLY if keras.backend.backend() == "tensorflow" else {}


def compiled_as(name):
    """By one loss as users train, by the others as is fastest."""
    return {} if name == "kd_pt" else FASTEST


def trained(loss, *arguments, teacher=None, compiled=FASTEST, **more):
    """The student's weights after two epochs in order."""
    distiller = kd.Distiller(mlp(), teacher)
    optimizer = keras.optimizers.SGD(0.1)
    distiller.compile(optimizer=optimizer, loss=loss, **compiled)
    distiller.fit(*arguments, epochs=2, verbose=0, shuffle=False, **more)
    return weights_of(distiller.student)


@functools.cache
def online(name):
    x, labels, weights = data(EXAMPLES)
    return trained(
        LOSSES[name](),
        x,
        labels,
        BATCH,
        teacher=mlp(12, seed=5),
        sample_weight=weights,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_cache_of_any_data_trains_as_the_teacher_does(name, kind, tmp_path):
    dataset, loss = KINDS[kind](*data(EXAMPLES)), LOSSES[name]()
    cache = write(tmp_path / "cache", dataset, loss)
    assert cache.examples == len(cache) == EXAMPLES
    more = {"batch_size": BATCH} if kind == "arrays" else {}
    attached = cache.attach(dataset, **more)
    found = trained(loss, attached, compiled=compiled_as(name))
    assert_same_weights(found, online(name), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_cache_serves_every_kind_of_data(kind, tmp_path):
    """Written of arrays, without their batches."""
    arrays = data(EXAMPLES)
    cache = write(tmp_path / "cache", arrays, kd.KDPt(temperature=3.0))
    if kind == "tf_data":
        dataset = tf_data(*arrays).unbatch()
        attached = cache.attach(dataset).batch(BATCH)
    elif kind == "arrays":
        attached = cache.attach(arrays, batch_size=BATCH)
    else:
        attached = cache.attach(KINDS[kind](*arrays))
    found = trained(kd.KDPt(temperature=3.0), attached)
    assert_same_weights(found, online("kd_pt"), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_diagnose_take_any_data(kind, tmp_path):
    teacher, arrays = mlp(12, seed=5), data(EXAMPLES)
    dataset = KINDS[kind](*arrays)
    cache = write(tmp_path / "cache", dataset, kd.KDPt(), teacher)
    found = cache.verify(dataset, teacher)
    assert found.examples == 2 * EXAMPLES or found.examples == EXAMPLES
    assert max(found.largest_errors.values()) < 1e-5
    other = cache.verify(dataset, mlp(12, seed=6))
    assert max(other.largest_errors.values()) > 0.1
    more = {"batch_size": BATCH} if kind == "arrays" else {}
    numbers = kd.diagnose(teacher, dataset, **more).numbers
    logits = np.asarray(keras.ops.convert_to_numpy(teacher(arrays[0])))
    right = (logits.argmax(-1) == arrays[1]).mean()
    assert numbers["data"]["examples"] == EXAMPLES
    assert numbers["data"]["batches"] == 4
    assert numbers["teacher"]["accuracy"] == pytest.approx(right, abs=1e-6)
    assert cache.teacher_accuracy == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("kind", ["arrays", "py_dataset", "loader"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1.0, 0), "position 9 of 30"),
        ((0.0, 1), "position 9 of 30"),
    ],
)
def test_other_data_are_refused_when_they_are_read(
    kind, change, message, tmp_path
):
    x, labels, weights = data(EXAMPLES)
    cache = write(tmp_path / "cache", (x, labels, weights), kd.KDPt())
    changed, others = x.copy(), labels.copy()
    changed[9] += change[0]
    others[9] = (others[9] + change[1]) % CLASSES
    distiller = kd.Distiller(mlp())
    distiller.compile(optimizer="sgd", loss=kd.KDPt())
    with pytest.raises(ValueError, match=message):
        # Arrays have all of them in the first batch that `attach` compares.
        attached = cache.attach(KINDS[kind](changed, others, weights))
        distiller.fit(attached, verbose=0)
    unchecked = cache.attach(KINDS[kind](changed, others, weights), check=False)
    distiller.fit(unchecked, verbose=0)


@pytest.mark.parametrize("kind", ["arrays", "py_dataset", "loader"])
def test_what_differs_at_once_is_refused_by_attach(kind, tmp_path):
    x, labels, weights = data(EXAMPLES)
    cache = write(tmp_path / "cache", (x, labels), kd.KDPt())
    make = KINDS[kind]
    with pytest.raises(ValueError, match="position 0 of 30"):
        cache.attach(make(x[::-1].copy(), labels))
    with pytest.raises(ValueError, match="in the cache, .* now"):
        cache.attach(make(x[:16], labels[:16]))


def test_data_without_a_fixed_order_are_refused(tmp_path):
    x, labels, _ = data(EXAMPLES)
    path = tmp_path / "cache"
    with pytest.raises(ValueError, match="RandomSampler.*shuffle=False"):
        write(path, loader(x, labels, shuffle=True), kd.KDPt())
    with pytest.raises(TypeError, match="generator"):
        write(path, ((a, b) for a, b in [(x, labels)]), kd.KDPt())
    with pytest.raises(ValueError, match=r"\[29, 30\]"):
        write(path, (x, labels[1:]), kd.KDPt())
    with pytest.raises(ValueError, match="class ids"):
        write(path, (x, np.eye(CLASSES)[labels]), kd.KDPt())
    with pytest.raises(ValueError, match="tf.data.Dataset"):
        write(path, (x, labels), kd.KDPt(), augment=lambda x, seed: x, views=2)
    with pytest.raises(ValueError, match="without labels"):
        write(path, Batches(x), kd.KDPt())
    with pytest.raises(FileNotFoundError):
        kd.TeacherCache(path)
    # One that reshuffles is noticed in its second epoch.
    shuffling = Batches(x, labels, reshuffles=True)
    cache = write(path, shuffling, kd.KDPt())
    distiller = kd.Distiller(mlp())
    distiller.compile(optimizer="sgd", loss=kd.KDPt())
    with pytest.raises(ValueError, match="unshuffled"):
        distiller.fit(cache.attach(shuffling), epochs=2, verbose=0)
    with pytest.raises(TypeError, match="attach"):
        cache.epochs((x, labels))
    with pytest.raises(ValueError, match="batch_size=4"):
        cache.attach(Batches(x, labels), batch_size=4)
    with pytest.raises(ValueError, match="batch_size=4"):
        kd.diagnose(mlp(), Batches(x, labels), batch_size=4)
    with pytest.raises(ValueError, match="without them"):
        kd.diagnose(mlp(), Batches(x))


def test_inputs_may_be_dicts_tables_and_tuples(tmp_path):
    import pandas

    x, labels, _ = data(EXAMPLES)
    inputs = {"a": keras.Input((5,), name="a"), "b": keras.Input((5,))}
    sums = keras.layers.Add()([inputs["a"], inputs["b"]])
    teacher = keras.Model(inputs, mlp(12, seed=5)(sums))
    arrays = {"a": pandas.DataFrame(x), "b": x}, pandas.Series(labels)
    cache = write(tmp_path / "cache", arrays, kd.KDPt(), teacher)
    (batch, y), *_ = cache.attach(arrays, batch_size=EXAMPLES)
    plain = write(tmp_path / "plain", (2 * x, labels), kd.KDPt())
    np.testing.assert_allclose(
        y["label_log_odds"], plain[:]["label_log_odds"], atol=1e-5
    )
    assert set(batch) == {"a", "b"}
    numbers = kd.diagnose(teacher, arrays).numbers
    assert numbers["data"]["examples"] == EXAMPLES


def test_arrays_are_shuffled_anew_each_epoch(tmp_path):
    x, labels, _ = data(EXAMPLES)
    cache = write(tmp_path / "cache", (x, labels), kd.KDPt())
    attached = cache.attach((x, labels), batch_size=BATCH, shuffle=True)

    def epoch():
        batches = [attached[i] for i in range(attached.num_batches)]
        return np.concatenate([batch[0] for batch in batches])

    first = epoch()
    attached.on_epoch_end()
    second = epoch()
    assert not np.array_equal(first, second)
    for found in (first, second):
        assert not np.array_equal(found, x)
        np.testing.assert_array_equal(np.sort(found, 0), np.sort(x, 0))


# -- statistics by index -------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache of three losses, and the arrays that it is of."""
    x, labels, _ = data(EXAMPLES)
    losses = [kd.KDPt(temperature=3.0), kd.KDTopK(k=3, temperature=2.0)]
    path = tmp_path_factory.mktemp("kept") / "cache"
    return write(path, (x, labels), losses), losses, x, labels


@pytest.mark.parametrize(
    "indices",
    [
        3,
        -1,
        np.int64(7),
        slice(None),
        slice(20, 4, -3),
        [5, 2, 2, -30],
        np.array([[1, 2], [3, 29]]),
        np.arange(EXAMPLES) % 7 == 0,
        [],
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_indices_are_numpys(kept, indices, number):
    cache, losses, x, labels = kept
    loss = losses[number]
    teacher_logits = mlp(12, seed=5)(x)
    wanted = {
        name: keras.ops.convert_to_numpy(value)
        for name, value in loss.teacher_statistics(
            labels, teacher_logits
        ).items()
    }
    if isinstance(indices, list):
        indices = np.array(indices, "int64")
    found = cache.statistics(indices, loss)
    for name in loss.statistics:
        np.testing.assert_allclose(
            found[name], wanted[name][indices], rtol=1e-5, atol=1e-5
        )
        assert found[name].dtype in (np.float32, np.int32)
    shape = labels[indices].shape
    assert found["statistics_temperature"].shape == shape
    assert (
        found["statistics_temperature"] == np.float32(loss.temperature)
    ).all()
    assert found["teacher_fingerprint"].shape == shape


def test_indices_out_of_bounds_are_refused(kept):
    cache, losses, *_ = kept
    for index, message in (
        (30, "index 30 is out of bounds"),
        (-31, "index -31"),
        ([1, 99], "99"),
        (np.zeros(4, bool), "boolean"),
        ((1, 2), "several axes"),
        (None, "several axes"),
        (1.5, "integers"),
    ):
        with pytest.raises(IndexError, match=message):
            cache.statistics(index, losses[0])
    with pytest.raises(ValueError, match="several losses"):
        cache[0]
    with pytest.raises(ValueError, match="KD needs"):
        cache.statistics(0, kd.KD())


def test_a_damaged_chunk_is_named_by_index(tmp_path):
    x, labels, _ = data(EXAMPLES)
    path = tmp_path / "cache"
    write(path, (x, labels), kd.KDPt())
    cache = kd.TeacherCache(path)
    cache[[3, 1]]
    (file,) = path.glob("label_log_odds_2/c/0/*")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    opened = kd.TeacherCache(path, check_files=False)
    with pytest.raises(ValueError, match="damaged.*label_log_odds"):
        opened[[3, 1]]


class Joined(torch.utils.data.Dataset):
    """A user's own, which looks statistics up by index."""

    def __init__(self, cache, x, labels):
        self.cache, self.x, self.labels = cache, x, labels

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], {"labels": self.labels[i], **self.cache[i]}


class JoinedBatches(Batches):
    """Likewise, as a PyDataset."""

    def __init__(self, cache, x, labels, order):
        super().__init__(x, labels)
        self.cache, self.order = cache, order

    def __getitem__(self, number):
        rows = self.order[number * BATCH : (number + 1) * BATCH]
        x, labels = (array[rows] for array in self.arrays)
        return x, {"labels": labels, **self.cache[rows]}


@pytest.mark.parametrize("name", ["kd_pt", "kd"])
def test_data_of_a_users_own_order_train_as_attached_ones(name, tmp_path):
    x, labels, _ = data(EXAMPLES)
    loss = LOSSES[name]()
    cache = write(tmp_path / "cache", (x, labels), loss)
    order = np.random.default_rng(3).permutation(EXAMPLES)
    other = write(tmp_path / "other", (x[order], labels[order]), loss)
    attached = other.attach((x[order], labels[order]), batch_size=BATCH)
    expected = trained(loss, attached)
    in_order = trained(loss, cache.attach((x, labels), batch_size=BATCH))
    assert_weights_differ(expected, in_order)
    joined = {
        "loader": [
            torch.utils.data.DataLoader(
                Joined(cache, x, labels), BATCH, sampler=order.tolist()
            )
        ],
        "py_dataset": [JoinedBatches(cache, x, labels, order)],
        "arrays": [x[order], {"labels": labels[order], **cache[order]}, BATCH],
    }
    for kind, given in joined.items():
        found = trained(loss, *given, compiled=compiled_as(name))
        print(kind)  # Shown if it fails.
        assert_same_weights(found, expected, 1e-6)


def test_statistics_in_arrays_take_sample_weights(tmp_path):
    x, labels, weights = data(EXAMPLES)
    loss = LOSSES["kd_pt"]()
    cache = write(tmp_path / "cache", (x, labels), loss)
    y = {"labels": labels, **cache[:]}
    found = trained(loss, x, y, BATCH, sample_weight=weights)
    assert_same_weights(found, online("kd_pt"), 1e-5)


def joined_arrays(cache, x, labels):
    """Statistics in arrays, which `fit` takes as x and y."""
    return {"x": x, "y": {"labels": labels, **cache[:]}, "batch_size": BATCH}


CARRYING = {
    **{
        kind: lambda cache, *arrays, make=make: {
            "x": cache.attach(make(*arrays))
        }
        for kind, make in KINDS.items()
        if kind != "tf_data"
    },
    "joined loader": lambda *given: {
        "x": torch.utils.data.DataLoader(Joined(*given), BATCH)
    },
    "joined arrays": joined_arrays,
    "generator": lambda cache, x, labels: {
        "x": ((x, {"labels": labels, **cache[:]}) for _ in range(9)),
        "steps_per_epoch": 4,
    },
}
OTHER = "not the one whose statistics"


@pytest.mark.parametrize("kind", CARRYING)
def test_statistics_of_another_teacher_are_refused(kind, tmp_path, monkeypatch):
    x, labels, _ = data(EXAMPLES)
    teacher = mlp(12, seed=5)
    # Shared with the student, so that Keras takes its values while it trains.
    shared = teacher.layers[1]
    shared.trainable = False
    student = keras.Sequential([shared, keras.layers.Dense(CLASSES)])
    student.build(x.shape)
    cache = write(tmp_path / "cache", (x, labels), kd.KDPt(), teacher)
    distiller = kd.Distiller(student, teacher, save_teacher=False)
    distiller.compile(optimizer="sgd", loss=kd.KDPt(), **FASTEST)
    before, computed = weights_of(student), []
    of_teacher = fingerprint.teacher_fingerprint

    def counted(teacher):
        computed.append(teacher)
        return of_teacher(teacher)

    monkeypatch.setattr(fingerprint, "teacher_fingerprint", counted)

    def fit(bias):
        teacher.layers[-1].bias.assign(np.full(CLASSES, bias, "float32"))
        given = CARRYING[kind](cache, x, labels)
        distiller.fit(**given, epochs=2, verbose=0)

    with pytest.raises(ValueError, match=OTHER):
        fit(bias=1)
    assert_same_weights(weights_of(student), before, 0)
    fit(bias=0)
    assert_weights_differ(weights_of(student), before)
    with pytest.raises(ValueError, match=OTHER):
        fit(bias=1)
    # Once in each training.
    assert len(computed) == 3


def test_a_teacher_that_changes_between_batches_is_another(tmp_path):
    x, labels, _ = data(EXAMPLES)
    teacher = mlp(12, seed=5)
    cache = write(tmp_path / "cache", (x, labels), kd.KDPt(), teacher)
    y = {"labels": labels, **cache[:]}
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile(optimizer="sgd", loss=kd.KDPt())
    distiller.train_on_batch(x, y)
    kernel = teacher.layers[-1].kernel
    kept = keras.ops.convert_to_numpy(kernel).copy()
    kernel.assign(2 * kept)
    with pytest.raises(ValueError, match=OTHER):
        distiller.train_on_batch(x, y)
    kernel.assign(kept)
    distiller.train_on_batch(x, y)


def test_statistics_of_another_temperature_are_refused(tmp_path):
    x, labels, _ = data(EXAMPLES)
    cache = write(tmp_path / "cache", (x, labels), kd.KDPt())
    y = {"labels": labels, **cache[:]}
    distiller = kd.Distiller(mlp())
    distiller.compile(optimizer="sgd", loss=kd.KDPt(temperature=3.0))
    with pytest.raises(ValueError, match="belong to a temperature"):
        distiller.fit(x, y, verbose=0)
