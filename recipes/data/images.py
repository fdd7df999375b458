"""Labelled images: CIFAR-100 by TFDS, or scikit-learn's digits offline."""

import dataclasses

import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds
from networks import CIFAR100_DEVIATION, CIFAR100_MEAN
from study.messages import first_line

from data import batches


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set of small images, in memory.

    Attributes:
        train: ([images, height, width, channels] uint8, [images] int32
            labels).
        test: the same.
        classes: number of classes.
        mean: [channels] means of the training pixels, in [0, 255].
        deviation: [channels] standard deviations.
        superclasses: [classes] integers, the superclass of each class, or
            `None`.
        flips: whether an image and its mirror image are of one class.
    """

    train: tuple
    test: tuple
    classes: int
    mean: np.ndarray
    deviation: np.ndarray
    superclasses: np.ndarray | None
    flips: bool

    @property
    def shape(self):
        """(height, width, channels)."""
        return self.train[0].shape[1:]

    @property
    def class_order(self):
        """List of class ids in which related ones are neighbours."""
        if self.superclasses is None:
            return list(range(self.classes))
        return np.argsort(self.superclasses, kind="stable").tolist()


def digits():
    """Scikit-learn's handwritten digits: 797 to train with, 1,000 to test.

    A difference between two students shows on many test images alone.
    """
    data = sklearn.datasets.load_digits()
    images = np.round(data.images * (255 / 16)).astype("uint8")[..., None]
    labels = data.target.astype("int32")
    # The writers come one after the other in the file.
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[797:], order[:797]
    pixels = images[train]
    return Images(
        train=(pixels, labels[train]),
        test=(images[test], labels[test]),
        classes=10,
        mean=np.array([pixels.mean()]),
        deviation=np.array([pixels.std()]),
        superclasses=None,
        flips=False,
    )


def cifar100(data_dir=None):
    """CIFAR-100.

    Args:
        data_dir: folder of TFDS data sets; `None` for TFDS's own, below the
            home directory.

    Returns:
        `Images`.

    Raises:
        OSError: if it is neither there nor can be downloaded, with the three
            ways to go on.
        ValueError: if its folder is not complete.
    """
    builder = prepared_builder(
        "cifar100",
        data_dir,
        "use scikit-learn's digits instead: --dataset digits",
    )

    train, test = (
        tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        for split in ("train", "test")
    )
    superclasses = np.zeros(100, dtype="int32")
    superclasses[train["label"]] = train["coarse_label"]
    return Images(
        train=(train["image"], train["label"].astype("int32")),
        test=(test["image"], test["label"].astype("int32")),
        classes=100,
        mean=CIFAR100_MEAN,
        deviation=CIFAR100_DEVIATION,
        superclasses=superclasses,
        flips=True,
    )


def prepared_builder(name, data_dir, third_way):
    """A TFDS builder whose files are all there.

    Args:
        name: of the data set.
        data_dir: folder of TFDS data sets, or `None` for TFDS's own.
        third_way: what else a user can do if the download fails.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        OSError: if the data set can't be prepared.
        ValueError: if it is only partly prepared.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:
        raise OSError(
            f"{name} could not be prepared. Received: {type(error).__name__}: "
            f"{first_line(error)}. Continue in one of three ways: pass "
            f"--data-dir, the folder where TFDS keeps a prepared {name} (the "
            f"one that holds {name}/); prepare it on a machine with internet "
            f"by `tfds build {name}` and copy its folder here; or {third_way}."
        ) from error
    missing = [
        path
        for split in builder.info.splits.values()
        for path in split.filepaths
        if not path.exists()
    ]
    if missing:
        raise ValueError(
            f"{name} is only partly prepared. Received: {builder.data_path} "
            f"without {missing[0].name} and {len(missing) - 1} other files. "
            "Remove the folder and prepare it again, or copy it again."
        )
    return builder


def training_stream(images, size, batch_size, seed, first_epoch, augment):
    """Endless shuffled batches, each a function of seed, epoch and position.

    Args:
        images: `Images`.
        size: how many of the training images to use.
        batch_size: integer; images that fill no batch are left out, different
            ones in each epoch.
        seed: integer.
        first_epoch: epoch to start with, so that interrupted training sees
            what it would have seen.
        augment: see `view_function`.

    Returns:
        A `tf.data.Dataset` of (x, labels), float32 [batch_size, height,
        width, channels] in [0, 255] and int32 [batch_size].
    """
    view = view_function(images, augment)
    # Of the seed's two parts the second is the position, so that no two
    # images of any epoch get the same.
    order_seed, image_seed = np.random.default_rng(seed).integers(2**31, size=2)

    def seen(position, example):
        image, label = example
        return view(image, tf.stack([image_seed, position])), label

    return batches.shuffled(
        images.train, size, batch_size, order_seed, first_epoch, seen
    )


def view_function(images, augment):
    """What makes the network's input of an image.

    Args:
        images: `Images`.
        augment: whether to crop from a padded image, an eighth of its size on
            each side, and to flip it where that keeps the class.

    Returns:
        A function of (image, seed), uint8 [height, width, channels] and two
        integers, to float32 of the same shape in [0, 255].
    """
    pad = images.shape[0] // 8

    def view(image, seed):
        if augment:
            image = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
            image = tf.image.stateless_random_crop(image, images.shape, seed)
            if images.flips:
                image = tf.image.stateless_random_flip_left_right(image, seed)
        return tf.cast(image, tf.float32)

    return view


def evaluation_batches(arrays, batch_size):
    """Batches in order.

    Args:
        arrays: (images, labels).
        batch_size: integer.

    Returns:
        A `tf.data.Dataset` of (x, labels, sample_weight); see
        `batches.full_batches`.
    """

    def example(image, label):
        return tf.cast(image, tf.float32), label

    dataset = tf.data.Dataset.from_tensor_slices(arrays).map(example)
    return batches.full_batches(dataset, len(arrays[0]), batch_size)


def with_shares(dataset, classes):
    """The data with labels as shares of the classes.

    Args:
        dataset: `tf.data.Dataset` of (x, labels, ...), int [batch_size].
        classes: number of classes.

    Returns:
        A `tf.data.Dataset` of (x, labels, ...), float32 [batch_size, classes].
    """
    return dataset.map(
        lambda x, labels, *others: (x, tf.one_hot(labels, classes), *others)
    )


def mixed(dataset, classes, layer):
    """Batches in which a layer of Keras mixes images and labels.

    Args:
        dataset: `tf.data.Dataset` of (x, labels), int [batch_size].
        classes: number of classes.
        layer: `keras.layers.MixUp` or `keras.layers.CutMix`.

    Returns:
        A `tf.data.Dataset` of (x, labels), float32 [batch_size, classes].
    """

    def mix(x, labels):
        both = layer({"images": x, "labels": labels}, training=True)
        return both["images"], both["labels"]

    # One batch after the other, as the layer's random numbers come in turn.
    return with_shares(dataset, classes).map(mix).prefetch(2)
