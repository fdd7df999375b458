"""Order and batches of examples that are in memory."""

import numpy as np
import tensorflow as tf

from keras_kd import distribution


def epoch_orders(size, batch_size, seed, first_epoch):
    """Endless epochs, each a new order of the examples.

    Args:
        size: number of examples.
        batch_size: integer; examples that fill no batch are left out,
            different ones in each epoch.
        seed: integer; the order is a function of it and of the epoch.
        first_epoch: epoch to start with, so that interrupted training sees
            what it would have seen.

    Returns:
        A `tf.data.Dataset` of (index of an example, position in the stream
        from epoch 0 on), two integers.
    """
    used = size // batch_size * batch_size

    def order_of_epoch(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(size), seed=[seed, epoch]
        )
        positions = epoch * used + tf.range(used, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((order[:used], positions))

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
    return epochs.flat_map(order_of_epoch)


def shuffled(arrays, size, batch_size, seed, first_epoch, view=None):
    """Endless shuffled batches of examples that are in memory.

    Args:
        arrays: nested tuple or dict of arrays.
        size: how many of the examples to use, and the following: see
            `epoch_orders`.
        batch_size: integer.
        seed: integer.
        first_epoch: integer.
        view: optional function of (position in the stream, an example) to what
            is trained on.

    Returns:
        A `tf.data.Dataset`, shared by several workers by example.
    """
    arrays = tf.nest.map_structure(lambda a: tf.constant(a[:size]), arrays)

    def example(index, position):
        chosen = tf.nest.map_structure(lambda a: a[index], arrays)
        return chosen if view is None else view(position, chosen)

    dataset = epoch_orders(size, batch_size, seed, first_epoch)
    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    return distribution.shard_by_example(dataset)


def full_batches(dataset, size, batch_size):
    """Batches that are all full, so that no replica has an empty share.

    Not every kernel takes an empty batch (convolutions on processors do not).

    Args:
        dataset: `tf.data.Dataset` of (x, label) or (x, labels,
            sample_weight), one example each.
        size: how many examples it has.
        batch_size: integer.

    Returns:
        A `tf.data.Dataset` of (x, labels, sample_weight), with weight 0 for
        what fills up the last batch; for other examples it is their own, or
        1. Several workers share it by example.
    """

    def weighted(factor):
        return lambda x, labels, weight=1.0: (x, labels, factor * weight)

    filling = dataset.take(1).repeat(-size % batch_size).map(weighted(0.0))
    dataset = dataset.map(weighted(1.0)).concatenate(filling)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
    # Else files are dealt out, and the filling once per worker.
    return distribution.shard_by_example(dataset)


def untuned(dataset):
    """A data set whose iterators end at once.

    When an iterator is deleted, TensorFlow at times waits for the thread that
    tunes its parallelism, the longer the older it is: a third of a run.

    Args:
        dataset: a `tf.data.Dataset`.

    Returns:
        The same data, with a fixed parallelism.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
