"""KDSampled from a cache: one draw for each view, in four bytes a class."""

import functools

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from caches import batches, compiled, write
from keras import layers
from models import CLASSES, data, mlp

import keras_kd as kd

K = 3


def loss(**arguments):
    return kd.KDSampled(k=K, temperature=2.0, **arguments)


def kept(cache, dataset, epoch=0):
    """Classes and masses of all examples."""
    attached = cache.attach(dataset, epoch=epoch).as_numpy_iterator()
    y = [element[1] for element in attached]
    return tuple(
        np.concatenate([part[name] for part in y])
        for name in kd.KDSampled.statistics
    )


def test_a_view_is_one_draw_and_views_differ_without_augmentation(tmp_path):
    teacher, dataset = mlp(seed=5), batches()
    cache = write(tmp_path / "cache", dataset, teacher, loss(), views=2)
    assert cache.record_bytes == 4 * K
    first, again, second, third = (
        kept(cache, dataset, epoch) for epoch in (0, 0, 1, 2)
    )
    for classes, masses in (first, second):
        assert (np.diff(np.sort(classes, -1), axis=-1) > 0).all()
        np.testing.assert_allclose(masses.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[0], third[0])
    assert (first[0] != second[0]).any()


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    @property
    def num_batches(self):
        return 3

    def __getitem__(self, number):
        return tuple(each[4 * number : 4 * number + 4] for each in self.arrays)


def test_views_of_other_data_follow_the_epochs_too(tmp_path):
    """Arrays are passed over again and again, other data once."""
    arrays = data(12)[:2]
    cache = write(
        tmp_path / "cache", arrays, mlp(seed=5), loss(), batch_size=4, views=2
    )
    views = [cache.statistics(range(12), view=view) for view in (0, 1)]
    views = [statistics["sampled_classes"] for statistics in views]
    assert (views[0] != views[1]).any()

    def drawn(attached):
        y = [attached[number][1] for number in range(3)]
        return np.concatenate([part["sampled_classes"] for part in y])

    attached = cache.attach(arrays, batch_size=4, epoch=1)
    for epoch in (1, 2, 3):
        np.testing.assert_array_equal(drawn(attached), views[epoch % 2])
        attached.on_epoch_end()
    for epoch in (1, 2):
        attached = cache.attach(Batches(*arrays), epoch=epoch)
        np.testing.assert_array_equal(drawn(attached), views[epoch % 2])


def test_views_of_other_losses_need_an_augmentation(tmp_path):
    with pytest.raises(ValueError, match="or by the draws of KDSampled"):
        write(tmp_path / "cache", batches(), mlp(), kd.KDTopK(k=3), views=2)


def test_the_mean_of_many_cached_draws_is_the_teachers_distribution(tmp_path):
    examples = 20_000
    logits = np.linspace(3, -3, 12).astype("float32")
    x = np.repeat(logits[None], examples, 0)
    dataset = tf.data.Dataset.from_tensor_slices(
        (x, np.zeros(examples, "int32"))
    ).batch(1_000)
    inputs = keras.Input((12,))
    teacher = keras.Model(inputs, layers.Activation("linear")(inputs))
    cache = write(tmp_path / "cache", dataset, teacher, loss())
    classes, masses = kept(cache, dataset)
    dense = np.zeros((examples, 12))
    np.put_along_axis(dense, classes, masses, -1)
    expected = reference.kd_target(logits, 2.0)
    error = dense.std(0) / np.sqrt(examples)
    # Masses are kept to three digits.
    allowed = 4 * error + 1e-3 * expected
    assert (np.abs(dense.mean(0) - expected) <= allowed).all()


def test_what_is_written_again_or_verified_is_drawn_as_before(tmp_path):
    teacher, dataset = mlp(seed=5), batches()
    caches = [
        write(tmp_path / str(i), dataset, teacher, loss(), views=2)
        for i in range(2)
    ]
    for epoch in range(2):
        for one, other in zip(
            *(kept(c, dataset, epoch) for c in caches), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    found = caches[0].verify(dataset, teacher, losses=loss())
    assert max(found.largest_errors.values()) < 1e-3
    assert found.examples == 2 * 30  # Of the first and the last view.
    other = write(tmp_path / "other", dataset, teacher, loss(seed=9))
    assert (kept(other, dataset)[0] != kept(caches[0], dataset)[0]).any()


@pytest.mark.parametrize("batched", [True, False])
def test_an_interrupted_cache_goes_on_with_the_same_draws(batched, tmp_path):
    """Also of examples, of which those of whole batches are there already."""
    teacher, dataset = mlp(seed=5), batches()
    if not batched:
        dataset = dataset.unbatch()
        size = int(dataset.reduce(0, lambda count, *_: count + 1))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
    write_again = functools.partial(
        write, teacher=teacher, losses=loss(), batch_size=8
    )
    whole = write_again(tmp_path / "whole", dataset)

    def fail_at(number, element):
        def check(number, x):
            if number == (2 if batched else 20):
                raise RuntimeError("interrupted")
            return x

        x, *rest = element
        checked = tf.numpy_function(check, [number, x], tf.float32)
        return (tf.ensure_shape(checked, x.shape), *rest)

    with pytest.raises(Exception, match="interrupted"):
        write_again(
            tmp_path / "cache",
            dataset.enumerate().map(fail_at),
            checkpoint_seconds=0,
        )
    cache = write_again(tmp_path / "cache", dataset)
    for one, other in zip(
        kept(whole, dataset), kept(cache, dataset), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_no_chunk_of_a_batch_has_the_draws_of_another(tmp_path, monkeypatch):
    """Where all logits are many, a batch draws once for each chunk."""
    module = "keras_kd.cache.teacher_pass"
    monkeypatch.setattr(f"{module}.are_many", lambda *_: True)
    monkeypatch.setattr(f"{module}.most_tokens", lambda *_: 4)
    inputs = keras.Input((3,))
    teacher = keras.Model(inputs, layers.Dense(40)(inputs))
    data = np.ones((48, 3), "float32"), np.zeros(48, "int32")
    cache = write(tmp_path / "cache", data, teacher, loss(), batch_size=12)
    classes = cache[:]["sampled_classes"].reshape(12, -1)
    assert len(np.unique(classes, axis=0)) == 12


def test_all_logits_serve_draws_that_differ_in_each_step(tmp_path):
    teacher, dataset = mlp(seed=5), batches(8)
    cache = write(tmp_path / "cache", dataset, teacher, [kd.KD(), loss()])
    assert cache.record_bytes == 2 * CLASSES
    distiller = compiled(loss(weight=1.0))
    distiller.optimizer.learning_rate = 0.0
    data = cache.attach(dataset, distiller.loss).repeat(4)
    found = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: found.append(logs["loss"])
    )
    distiller.fit(data, verbose=0, callbacks=[note])
    assert len(set(np.round(found, 5))) == 4


def test_another_k_or_temperature_is_refused(tmp_path):
    dataset = batches()
    cache = write(tmp_path / "cache", dataset, mlp(), loss())
    for other in (kd.KDSampled(k=2, temperature=2.0), kd.KDSampled(k=K)):
        if other.k == K:
            other.temperature = 3.0
        with pytest.raises(ValueError, match="KDSampled"):
            cache.attach(dataset, other)
