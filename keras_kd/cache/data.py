"""A data set as the teacher sees it: views, class ids, checksums."""

import dataclasses

import keras
import numpy as np

from keras_kd.batch import LABELS
from keras_kd.data_errors import DataError


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
        ids = refused_unless(whole, ids, _not_whole, labels)
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


def refused_unless(condition, value, refuse, *arguments):
    """A tensor, once a function has had the chance to refuse the data.

    Args:
        condition: boolean scalar tensor.
        value: a tensor.
        refuse: function that raises a `DataError`, called if not `condition`.
        *arguments: tensors, which it gets as NumPy arrays.
    """
    import tensorflow as tf

    def refused():
        tf.numpy_function(refuse, arguments, [])
        return False

    with tf.control_dependencies([tf.cond(condition, lambda: True, refused)]):
        return tf.identity(value)
