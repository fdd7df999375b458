"""The image data sets and the stream of training batches."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from data import images
from study import vision


def numbered(count, size=8):
    """Random images whose labels are their positions."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, size, size, 3)).astype("uint8")
    arrays = (pixels, np.arange(count, dtype="int32"))
    return dataclasses.replace(
        images.digits(), train=arrays, test=arrays, classes=count, flips=True
    )


def batches(stream, count):
    taken = list(stream.take(count).as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*taken, strict=True)]


def test_each_epoch_has_each_image_once_in_another_order():
    data = numbered(12)
    stream = images.training_stream(data, 12, 4, 0, 0, augment=False)
    x, labels = batches(stream, 6)
    first, second = labels[:12], labels[12:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second) != sorted(second)
    np.testing.assert_array_equal(x, data.train[0][labels])


def test_images_that_fill_no_batch_are_others_in_each_epoch():
    stream = images.training_stream(numbered(11), 11, 4, 0, 0, augment=False)
    labels = batches(stream, 40)[1].reshape(20, 8)
    left_out = {frozenset(range(11)) - frozenset(epoch) for epoch in labels}
    assert all(len(out) == 3 for out in left_out) and len(left_out) > 5


def test_a_stream_that_starts_later_goes_on_as_the_first_would_have():
    data = numbered(12)
    whole = batches(images.training_stream(data, 12, 4, 3, 0, True), 9)
    later = batches(images.training_stream(data, 12, 4, 3, 2, True), 3)
    for one, other in zip(whole, later, strict=True):
        np.testing.assert_array_equal(one[24:], other)
    other_seed = batches(images.training_stream(data, 12, 4, 4, 0, True), 9)
    assert list(other_seed[1]) != list(whole[1])


def test_augmented_images_are_crops_of_the_padded_image_or_its_mirror():
    data = numbered(6)
    stream = images.training_stream(data, 6, 6, 0, 0, augment=True)
    x, labels = batches(stream, 50)
    offsets, mirrored = set(), set()
    for image, label in zip(x, labels, strict=True):
        padded = np.pad(data.train[0][label], [(1, 1), (1, 1), (0, 0)])
        found = [
            (row, column, flip)
            for row in range(3)
            for column in range(3)
            for flip in (1, -1)
            if (
                padded[row : row + 8, column : column + 8][:, ::flip] == image
            ).all()
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        mirrored.add(found[0][2])
    assert len(offsets) == 9 and mirrored == {1, -1}


def test_a_limited_stream_uses_the_first_images():
    stream = images.training_stream(numbered(12), 8, 4, 0, 0, augment=False)
    assert set(batches(stream, 8)[1]) == set(range(8))


def test_evaluation_keeps_every_image_in_order_and_fills_the_last_batch():
    data = numbered(11)
    found = list(images.evaluation_batches(data.test, 4).as_numpy_iterator())
    assert [len(labels) for _, labels, _ in found] == [4, 4, 4]
    x, labels, weights = (
        np.concatenate(parts) for parts in zip(*found, strict=True)
    )
    np.testing.assert_array_equal(weights, [1] * 11 + [0])
    np.testing.assert_array_equal(labels[:11], np.arange(11))
    np.testing.assert_array_equal(x[:11], data.test[0])


def test_digits_are_whole_and_apart():
    data = images.digits()
    (train, labels), (test, _) = data.train, data.test
    assert len(train) == 797 and len(test) == 1000
    assert train.shape[1:] == data.shape == (8, 8, 1)
    assert train.max() == 255 and set(labels) == set(range(10))
    assert data.mean[0] == pytest.approx(train.mean())
    everything = np.concatenate([train, test]).reshape(1797, -1)
    known = np.unique(everything, axis=0)
    assert len(known) == 1797


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory):
    """A folder as TFDS writes it, with 40 images, and what is in it."""
    folder = tmp_path_factory.mktemp("tfds")
    random = np.random.default_rng(0)
    examples = [
        {
            "id": f"{i}",
            "image": random.integers(0, 256, (32, 32, 3)).astype("uint8"),
            "label": i % 100,
            "coarse_label": (i % 100) * 7 % 20,
        }
        for i in range(220)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar100",
        version="3.0.2",
        features=tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=100),
                "coarse_label": tfds.features.ClassLabel(num_classes=20),
            }
        ),
        split_datasets={
            "train": list(enumerate(examples[:200])),
            "test": list(enumerate(examples[200:])),
        },
        data_dir=folder,
    )
    return folder, examples


def test_cifar100_is_read_as_it_was_written(tiny_cifar):
    folder, examples = tiny_cifar
    data = images.cifar100(folder)
    written = {
        e["image"].tobytes(): (e["label"], part)
        for part, some in (("train", examples[:200]), ("test", examples[200:]))
        for e in some
    }
    for part in ("train", "test"):
        pixels, labels = getattr(data, part)
        assert len(pixels) == (200 if part == "train" else 20)
        for image, label in zip(pixels, labels, strict=True):
            assert written[image.tobytes()] == (label, part)
    superclasses = [c * 7 % 20 for c in data.class_order]
    assert superclasses == sorted(superclasses)
    assert sorted(data.class_order) == list(range(100))


def test_a_partly_prepared_folder_is_refused(tiny_cifar, tmp_path):
    shutil.copytree(tiny_cifar[0], tmp_path / "half")
    missing = next((tmp_path / "half").rglob("*test.tfrecord*"))
    missing.unlink()
    with pytest.raises(ValueError, match=f"without {missing.name}"):
        images.cifar100(tmp_path / "half")


def test_a_failed_download_names_three_ways_to_continue(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nand a long trace")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match="no route to host") as caught:
        images.cifar100(tmp_path)
    for way in ("--data-dir", "tfds build cifar100", "--dataset digits"):
        assert way in str(caught.value)
    assert "long trace" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_pixels_are_mixed_as_the_labels_say(name):
    """Images of one shade a class: the pixels tell the shares."""
    shades = np.array([0.0, 64, 128, 192])
    labels = np.arange(64, dtype="int32") % 4
    pixels = np.ones((64, 32, 32, 3), "float32")
    pixels *= shades[labels][:, None, None, None]
    study = object.__new__(vision.VisionStudy)
    study.classes = 4
    study.options = {"seed": 1, "mixup": None, "cutmix": None, name: 1.0}
    dataset = tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(16)
    mixed, shares = (
        np.concatenate(parts)
        for parts in zip(*study.mixed(dataset, 0), strict=True)
    )
    assert mixed.dtype == shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-5)
    assert ((shares > 0).sum(-1) == 2).mean() > 0.5
    # A rectangle's edges are between pixels: at most a row and a column.
    tolerance = 1e-3 if name == "mixup" else 192 * 2 / 32
    np.testing.assert_allclose(
        mixed.mean((1, 2, 3)), shares @ shades, atol=tolerance
    )
    spread = mixed.std((1, 2, 3))
    assert spread.max() < 1e-3 if name == "mixup" else spread.max() > 10
    # Batches, and the epoch to resume from, have mixtures of their own.
    first, second = shares[:16], shares[16:32]
    assert not np.allclose(first, second)
    (_, later), *_ = study.mixed(dataset, 1)
    assert not np.allclose(first, later)
    (_, again), *_ = study.mixed(dataset, 0)
    np.testing.assert_array_equal(first, again)
