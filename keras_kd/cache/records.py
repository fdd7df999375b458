"""Files and elements of a teacher cache, for its writer and its reader."""

import json
import os

import keras
import numpy as np

from keras_kd.cache import fingerprint

FORMAT = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
# A file without records.
EMPTY = "empty"
# Batches whose first example is compared when a cache is used.
COMPARED_BATCHES = 4


def gfile():
    """TensorFlow's file system: local disks and remote paths alike."""
    import tensorflow as tf

    return tf.io.gfile


def join(folder, name):
    """A path below a folder, which may be remote."""
    return os.path.join(folder, name)


def read_json(path):
    """The content of a JSON file, `None` if there is none."""
    if not gfile().exists(path):
        return None
    with gfile().GFile(path) as file:
        return json.loads(file.read())


def write_whole(path, content):
    """Writes a file whole or not at all.

    Args:
        path: of the file.
        content: bytes, or something to be written as JSON.
    """
    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=1) + "\n").encode()
    unfinished = f"{path}.unfinished"
    with gfile().GFile(unfinished, "wb") as file:
        file.write(content)
    gfile().rename(unfinished, path, overwrite=True)


def augmented(x, view, index, augment, seed, batched):
    """The view of an example, or of every example of a batch.

    Args:
        x: input of one example, or of a batch.
        view: integer, which view.
        index: integer, the position in the data set of x or of its first
            example.
        augment: function of one example and its seed.
        seed: integer, of all views.
        batched: whether x is a batch.

    Returns:
        What `augment` makes of x.
    """
    import tensorflow as tf

    # Two int64 that no other view of any example has.
    key = tf.cast(seed, tf.int64) + tf.bitwise.left_shift(
        tf.cast(view, tf.int64), tf.constant(32, tf.int64)
    )
    index = tf.cast(index, tf.int64)
    if not batched:
        return augment(x, tf.stack([key, index]))
    rows = tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[0]

    def one(element):
        example, position = element
        return augment(example, tf.stack([key, index + position]))

    shapes = keras.tree.map_structure(lambda t: t[0], x)
    spec = tf.nest.map_structure(
        tf.TensorSpec.from_tensor, augment(shapes, tf.stack([key, index]))
    )
    return tf.map_fn(one, (x, tf.range(rows)), fn_output_signature=spec)


def compared_samples(dataset, batched, batch_size, seed, augment=None):
    """Samples of the first batches' first examples, plain and augmented.

    Args:
        dataset: `tf.data.Dataset` of (x, labels, ...).
        batched: whether its elements are batches.
        batch_size: integer.
        seed: integer, of the views.
        augment: optional function.

    Returns:
        List, one entry per batch, of dicts with lists of floats.
    """
    step = 1 if batched else batch_size
    dataset = dataset.take((COMPARED_BATCHES - 1) * step + 1)
    found = []
    for number, (x, labels, *_) in enumerate(dataset):
        if number % step:
            continue
        entry = {"plain": _sample(x, labels, batched)}
        if augment is not None:
            first = number // step * batch_size
            view = augmented(x, 0, first, augment, seed, batched)
            entry["augmented"] = _sample(view, labels, batched)
        found.append(entry)
    return found


def _sample(x, labels, batched):
    x, labels = keras.tree.map_structure(np.asarray, (x, labels))
    if batched:
        x, labels = keras.tree.map_structure(lambda a: a[0], (x, labels))
    return fingerprint.sample(x, labels)


def is_batched(dataset, teacher):
    """Whether a data set's elements are batches for a teacher.

    Args:
        dataset: `tf.data.Dataset` of (x, labels, ...).
        teacher: a `keras.Model`; of a subclassed one, which does not tell the
            shape of its outputs, batches are assumed.

    Returns:
        A boolean.

    Raises:
        ValueError: if elements are not (x, labels, ...), or the labels fit
            neither way.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) < 2:
        raise ValueError(
            "A teacher cache is written of (x, labels) or (x, labels, "
            f"sample_weight). Received: a data set of {spec}. Map it to such "
            "tuples."
        )
    outputs = getattr(teacher, "outputs", None)
    if not outputs or spec[1].shape.rank is None:
        return True
    rank, labels_rank = len(outputs[0].shape), spec[1].shape.rank
    if labels_rank not in (rank - 1, rank - 2):
        raise ValueError(
            "Labels must be class ids, one for each vector of logits. "
            f"Received: labels of shape {spec[1].shape} for logits of shape "
            f"{tuple(outputs[0].shape)}. Pass class ids, of a batch or of one "
            "example."
        )
    return labels_rank == rank - 1
