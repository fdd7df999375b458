"""Data sets on their way to the teacher, and to the student from a cache."""

import dataclasses

import keras
import numpy as np

from keras_kd.batch import LABELS
from keras_kd.cache.manifest import CHECKSUM
from keras_kd.data_errors import DataError

POSITION, VIEW = "position", "view"


@dataclasses.dataclass(frozen=True)
class Views:
    """How the views of an example are made.

    Attributes:
        count: how many there are of each example.
        seed: integer, of all of them.
        augment: function of one example and its seed, two int64; `None` if
            examples are seen as they are.
    """

    count: int = 1
    seed: int = 0
    augment: object = None

    def of(self, x, view, position, batched):
        """The view of an example, or of every example of a batch.

        Args:
            x: input of one example, or of a batch.
            view: integer, which view.
            position: integer, in the data set, of x or its first example.
            batched: whether x is a batch.

        Returns:
            What `augment` makes of x.
        """
        import tensorflow as tf

        # Two int64 that no other view of any example has.
        key = tf.cast(self.seed, tf.int64) + tf.bitwise.left_shift(
            tf.cast(view, tf.int64), tf.constant(32, tf.int64)
        )
        position = tf.cast(position, tf.int64)
        if not batched:
            return self.augment(x, tf.stack([key, position]))
        rows = tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[0]

        def one(element):
            example, at = element
            return self.augment(example, tf.stack([key, at]))

        first = keras.tree.map_structure(lambda t: t[0], x)
        spec = tf.nest.map_structure(
            tf.TensorSpec.from_tensor, one((first, position))
        )
        positions = position + tf.range(rows)
        return tf.map_fn(one, (x, positions), fn_output_signature=spec)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as the teacher sees it.

    Attributes:
        dataset: `tf.data.Dataset` of (x, labels[, sample_weight]).
        views: `Views`.
        batched: whether its elements are batches.
        batch_size: integer.
        label_shape: tuple, of one example's labels.
    """

    dataset: object
    views: Views
    batched: bool
    batch_size: int
    label_shape: tuple

    def batches(self, view=0, skipped=0):
        """Batches of one view of the data set.

        Args:
            view: integer.
            skipped: integer, how many of the first batches are left out.

        Returns:
            A `tf.data.Dataset` of ((x, ids[, sample_weight]), checksums),
            with ids the int64 class ids, [batch, *label_shape].
        """
        import tensorflow as tf

        step = self.batch_size if self.batched else 1
        first = skipped if self.batched else skipped * self.batch_size
        dataset = tf.data.Dataset.zip(
            tf.data.Dataset.counter(0, step), self.dataset
        ).skip(first)

        def view_of(position, element):
            x, *rest = element
            if self.views.augment is not None:
                x = self.views.of(x, view, position, self.batched)
            return (x, *rest)

        def with_checksums(x, labels, *weight):
            ids = class_ids(labels, self.label_shape)
            return (x, ids, *weight), example_checksums(x, ids)

        dataset = dataset.map(view_of, num_parallel_calls=tf.data.AUTOTUNE)
        if not self.batched:
            dataset = dataset.batch(self.batch_size)
        return dataset.map(
            with_checksums, num_parallel_calls=tf.data.AUTOTUNE
        ).prefetch(2)


def is_batched(dataset, teacher):
    """Whether a data set's elements are batches for a teacher.

    Of a subclassed one, which does not tell the shape of its outputs, batches
    are assumed.

    Raises:
        ValueError: if elements are not (x, labels, ...) of dense tensors, or
            the labels fit neither way.
    """
    import tensorflow as tf

    spec = dataset.element_spec
    dense = all(
        isinstance(each, tf.TensorSpec) for each in tf.nest.flatten(spec)
    )
    if not (isinstance(spec, tuple) and len(spec) >= 2 and dense):
        raise ValueError(
            "A teacher cache is written of dense (x, labels) or (x, labels, "
            f"sample_weight). Received: a data set of {spec}. Map it to such "
            "tuples."
        )
    labels = _labels(spec[1]).shape
    outputs = getattr(teacher, "outputs", None)
    if not outputs or labels.rank is None:
        return True
    rank = len(outputs[0].shape)

    def fits(wanted):
        return labels.rank == wanted or (
            labels.rank == wanted + 1 and labels[-1] == 1
        )

    batched, single = fits(rank - 1), fits(rank - 2)
    if batched and single:
        # One label of a batch of one, or of one example: the inputs tell.
        pairs = zip(
            keras.tree.flatten(spec[0]),
            keras.tree.flatten(teacher.inputs),
            strict=False,
        )
        return all(x.shape.rank == len(model.shape) for x, model in pairs)
    if not (batched or single):
        raise ValueError(
            "Labels must be class ids, one for each vector of logits. "
            f"Received: labels of shape {labels} for logits of shape "
            f"{tuple(outputs[0].shape)}. Pass class ids, of a batch or of one "
            "example."
        )
    return batched


def class_ids(labels, label_shape):
    """Labels as int64 class ids.

    Args:
        labels: [batch, ...] or [batch, ..., 1], whole numbers of any dtype; or
            a dict with these as "labels".
        label_shape: tuple, of one example's ids.

    Returns:
        [batch, *label_shape].

    Raises:
        DataError: if they are not whole numbers, when the data are read.
    """
    import tensorflow as tf

    labels = _labels(labels)
    ids = tf.cast(labels, tf.int64)
    if labels.dtype.is_floating:
        whole = tf.reduce_all(tf.equal(tf.cast(ids, labels.dtype), labels))
        ids = _refused_unless(whole, ids, _not_whole, labels)
    return tf.reshape(ids, (-1, *label_shape))


def _labels(labels):
    return labels[LABELS] if isinstance(labels, dict) else labels


def _not_whole(labels):
    found = labels[labels != np.trunc(labels)].flat[0]
    raise DataError(
        "Labels must be class ids, which are whole numbers. Received: "
        f"{found}. Pass class ids."
    )


def example_checksums(x, ids):
    """A checksum of each example's input and labels.

    Args:
        x: input of a batch, a tensor or a structure of them.
        ids: [batch, ...] int64.

    Returns:
        [batch] int32.
    """
    import tensorflow as tf

    # Fingerprint64 of FarmHash: the same on every platform, and it costs less
    # than a copy of the data.
    parts = [tf.fingerprint(part) for part in [*keras.tree.flatten(x), ids]]
    if len(parts) > 1:
        parts = [tf.fingerprint(tf.concat(parts, axis=1))]
    return tf.bitcast(parts[0][:, :4], tf.int32)


def one_pass(dataset, manifest, read, view):
    """The data set beside what the cache keeps, for one epoch.

    Args:
        dataset: `tf.data.Dataset`, as it was when the cache was written.
        manifest: `Manifest`.
        read: function of (start, stop, view) to a dict of NumPy arrays.
        view: int64 scalar tensor.

    Returns:
        A `tf.data.Dataset` of (element, kept): an element of `dataset`, and
        a dict of what was read, with each example's "position" and "view".
    """
    import tensorflow as tf

    elements = dataset.apply(
        tf.data.experimental.assert_cardinality(manifest.elements)
    )
    empty = read(0, 0, 0)
    names = list(empty)
    # A block is a chunk: none is read twice.
    chunk, examples = manifest.chunk, manifest.examples

    def block(number, view):
        start = int(number) * chunk
        found = read(start, min(start + chunk, examples), int(view))
        return [found[name] for name in names]

    def kept(number):
        dtypes = [empty[name].dtype for name in names]
        arrays = tf.numpy_function(block, [number, view], dtypes)
        for name, array in zip(names, arrays, strict=True):
            array.set_shape((None, *empty[name].shape[1:]))
        start = number * chunk
        stop = start + tf.shape(arrays[0], tf.int64)[0]
        positions = tf.range(start, stop)
        found = dict(zip(names, arrays, strict=True))
        found[POSITION] = positions
        found[VIEW] = tf.zeros_like(positions) + view
        return found

    blocks = tf.data.Dataset.range(-(-examples // chunk)).map(kept).prefetch(1)
    if manifest.batched:
        records = blocks.rebatch(manifest.batch_size)
    else:
        records = blocks.unbatch()
    return tf.data.Dataset.zip(elements, records)


def compared(x, labels, kept, manifest, path):
    """The input of a batch, refused if it is not what the teacher saw.

    Args:
        x: input of a batch.
        labels: its labels.
        kept: dict of what the cache has of these examples.
        manifest: `Manifest`.
        path: of the cache, for the message.

    Raises:
        DataError: when the data are read.
    """
    import tensorflow as tf

    ids = class_ids(labels, manifest.label_shape)
    found = example_checksums(x, ids)
    wanted, positions = kept[CHECKSUM], kept[POSITION]
    rows = tf.minimum(tf.size(found), tf.size(wanted))
    same = tf.logical_and(
        tf.equal(tf.size(found), tf.size(wanted)),
        tf.reduce_all(tf.equal(found[:rows], wanted[:rows])),
    )

    def refuse(found, wanted, positions):
        rows = min(len(found), len(wanted))
        differ = np.flatnonzero(found[:rows] != wanted[:rows])
        if len(differ):
            received = (
                f"{len(differ)} of {rows} examples with another input or "
                f"label, the first at position {positions[differ[0]]} of "
                f"{manifest.examples}"
            )
        else:
            received = (
                f"a batch of {len(found)} examples at position "
                f"{positions[0]}, where the cache has {len(wanted)}"
            )
        raise DataError(not_these_data(path, received))

    flat = keras.tree.flatten(x)
    flat[0] = _refused_unless(same, flat[0], refuse, found, wanted, positions)
    return keras.tree.pack_sequence_as(x, flat)


def not_these_data(path, received):
    """What to say of data that a cache does not belong to."""
    return (
        "The data must be what the teacher saw when the cache was written, in "
        f"the same order. Received: {received}, for the cache at {path}. Pass "
        "the data set that `write` was given, unshuffled (shuffle after "
        "`attach`, or by `epochs`), or write another cache."
    )


def _refused_unless(condition, value, refuse, *arguments):
    """A tensor, once a function had the chance to refuse the data."""
    import tensorflow as tf

    def refused():
        tf.numpy_function(refuse, arguments, [])
        return False

    with tf.control_dependencies([tf.cond(condition, lambda: True, refused)]):
        return tf.identity(value)
