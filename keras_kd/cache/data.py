"""A data set as the teacher sees it: views, class ids, checksums.

All of it is on the host, in NumPy: a cache has the same checksums whatever
library reads the data. TensorFlow makes the views of a `tf.data.Dataset`, and
is not needed otherwise.
"""

import dataclasses
import itertools
import math
import zlib

import keras
import numpy as np

from keras_kd import data as any_data
from keras_kd.batch import UNLABELLED, labels_of
from keras_kd.data_errors import DataError
from keras_kd.logits import output_tensor


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
class Examples:
    """A batch of examples, as NumPy arrays.

    Attributes:
        x: the input, an array or a structure of them.
        ids: [batch, *label_shape] int64 class ids; of soft labels those of
            the largest shares, and -1 where there are no labels.
        weight: sample weights, or `None`.
        y: what the data give as labels, a dict where something is beside them.
        checksums: [batch] int32.
        position: of the first one in the data set.
    """

    x: object
    ids: np.ndarray
    weight: object
    y: object
    checksums: np.ndarray
    position: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as the teacher sees it.

    Attributes:
        data: `keras_kd.data.Data` of (x, labels[, sample_weight]).
        views: `Views`.
        batch_size: integer.
        label_shape: tuple, of one example's labels.
        output: name of the output whose labels they are, of several.
    """

    data: object
    views: Views
    batch_size: int
    label_shape: tuple
    output: object = None

    def batches(self, view=0, skipped=0):
        """Batches of one view of the data set.

        Args:
            view: integer.
            skipped: integer, how many of the first batches are left out.

        Returns:
            An iterator of `Examples`.
        """
        if any_data.is_tf_data(getattr(self.data, "dataset", None)):
            batches = self._batches_of_tf(view, skipped)
        else:
            batches = itertools.islice(
                self.data.batches(self.batch_size), skipped, None
            )
        for number, batch in enumerate(batches, skipped):
            yield self._examples(batch, number * self.batch_size)

    def _batches_of_tf(self, view, skipped):
        """Those of a `tf.data.Dataset`, which makes views in parallel."""
        import tensorflow as tf

        batched = self.data.batched
        step = self.batch_size if batched else 1
        first = skipped if batched else skipped * self.batch_size
        dataset = tf.data.Dataset.zip(
            tf.data.Dataset.counter(0, step), self.data.dataset
        ).skip(first)

        def view_of(position, element):
            x, *rest = element
            if self.views.augment is not None:
                x = self.views.of(x, view, position, batched)
            return (x, *rest)

        dataset = dataset.map(view_of, num_parallel_calls=tf.data.AUTOTUNE)
        if not batched:
            dataset = dataset.batch(self.batch_size)
        return dataset.prefetch(2).as_numpy_iterator()

    def _examples(self, element, position):
        x, y, *weight = element
        y = part_of(y, self.output)
        weight = [part_of(each, self.output) for each in weight]
        ids = class_ids(y, self.label_shape)
        if labels_of(y) is None:
            ids = np.repeat(ids, any_data.num_rows(x), axis=0)
        (weight,) = weight or (None,)
        checksums = example_checksums(x, kept_labels(y, self.label_shape))
        return Examples(x, ids, weight, y, checksums, position)


def is_batched(dataset, teacher, output=None):
    """Whether the elements of a `tf.data.Dataset` are batches for a teacher.

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
    labels = labels_of(part_of(spec[1], output))
    tensor = None if teacher is None else output_tensor(teacher, output)
    if labels is None:
        return tensor is None or _inputs_are_batched(spec[0], teacher)
    labels = labels.shape
    if tensor is None or labels.rank is None:
        return labels.rank != 0
    rank, classes = len(tensor.shape), tensor.shape[-1]
    if labels.rank and labels[-1] == classes != 1:
        # Perhaps soft labels, with an axis more.
        if labels.rank in (rank, rank - 1) and _inputs_tell(spec[0], teacher):
            return _inputs_are_batched(spec[0], teacher)

    def fits(wanted):
        return labels.rank == wanted or (
            labels.rank == wanted + 1 and labels[-1] == 1
        )

    batched, single = fits(rank - 1), fits(rank - 2)
    if batched and single:
        # One label of a batch of one, or of one example: the inputs tell.
        return _inputs_are_batched(spec[0], teacher)
    if not (batched or single):
        raise ValueError(
            "Labels must be class ids, one for each vector of logits, or have "
            f"a share for each of the teacher's {classes} classes. "
            f"Received: labels of shape {labels} for logits of shape "
            f"{tuple(tensor.shape)}. Pass class ids, of a batch or of one "
            "example."
        )
    return batched


def part_of(y, output):
    """What is of one output, of labels or weights given by output."""
    if output is None or not isinstance(y, dict):
        return y
    return y.get(output, {})


def _missing_axes(x, teacher):
    """How many axes inputs have fewer than the teacher's, which are batches."""
    pairs = zip(
        keras.tree.flatten(x), keras.tree.flatten(teacher.inputs), strict=False
    )
    return [len(model.shape) - given.shape.rank for given, model in pairs]


def _inputs_are_batched(x, teacher):
    """Whether inputs have the batch's axis that the teacher's have."""
    return all(missing == 0 for missing in _missing_axes(x, teacher))


def _inputs_tell(x, teacher):
    """Whether the number of the inputs' axes says if they are batched."""
    return all(missing in (0, 1) for missing in _missing_axes(x, teacher))


def are_soft(labels, label_shape):
    """Whether labels have a share for each class.

    Args:
        labels: array of a batch.
        label_shape: tuple, of one example's class ids.
    """
    shape = np.shape(labels)[1:]
    return len(shape) == len(label_shape) + 1 and shape[-1] != 1


def kept_labels(y, label_shape):
    """What a checksum holds of an example's labels.

    Args:
        y: as for `class_ids`.
        label_shape: likewise.

    Returns:
        [batch, ...] array: class ids or shares; `None` without labels.
    """
    labels = labels_of(y)
    if labels is None:
        return None
    if are_soft(labels, label_shape):
        return np.asarray(labels)
    return class_ids(y, label_shape)


def class_ids(y, label_shape):
    """Labels as int64 class ids.

    Args:
        y: labels, [batch, ...] or [batch, ..., 1], whole numbers of any dtype,
            or soft ones, [batch, ..., classes], a NumPy array; or a dict with
            these as "labels", or without any.
        label_shape: tuple, of one example's ids.

    Returns:
        [batch, *label_shape]; of soft labels the class with the largest
        share, -1 where there is none; -1 (of one example, which stands for
        all) without labels.

    Raises:
        DataError: if they are not whole numbers, or of another shape.
    """
    labels = labels_of(y)
    if labels is None:
        return np.full((1, *label_shape), UNLABELLED)
    labels = np.asarray(labels)
    soft = are_soft(labels, label_shape)
    shape = labels.shape[1:-1] if soft else labels.shape[1:]
    if math.prod(shape) != math.prod(label_shape):
        raise DataError(
            "All examples of a cache have labels of one shape. Received: "
            f"{shape} in a batch, {tuple(label_shape)} in the first one. Pad "
            "sequences to one length in all batches."
        )
    if soft:
        return np.where(labels.any(-1), labels.argmax(-1), UNLABELLED)
    if labels.dtype.kind == "f" and (labels != np.trunc(labels)).any():
        found = labels[labels != np.trunc(labels)].flat[0]
        raise DataError(
            "Labels beside a cache must be class ids, which are whole numbers "
            "(of a sigmoid's units 0 or 1), or have a share for each class. "
            f"Received: {found}. Pass class ids, or train without a cache."
        )
    return labels.astype("int64").reshape(-1, *label_shape)


def example_checksums(x, ids):
    """A checksum of each example's input and labels.

    Args:
        x: input of a batch, an array or a structure of them.
        ids: [batch, ...] class ids or shares, or `None`.

    Returns:
        [batch] int32.

    Raises:
        DataError: if they are of different lengths.
    """
    arrays = [*keras.tree.flatten(x), *([] if ids is None else [ids])]
    parts = [_row_bytes(part) for part in arrays]
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise DataError(
            "A batch must have a row of labels for each of input. Received: "
            f"inputs of {lengths[:-1]} rows and labels of {lengths[-1]}. Check "
            "the shape of the labels."
        )
    found = np.empty(lengths[0], "uint32")
    for row, (first, *others) in enumerate(zip(*parts, strict=True)):
        value = zlib.crc32(first)
        for part in others:
            value = zlib.crc32(part, value)
        found[row] = value
    return found.view("int32")


def _row_bytes(values):
    """What each row of an array holds, as a list of bytes or buffers."""
    values = np.asarray(values)
    if not len(values):
        return []
    if values.dtype.kind in "OSU":
        # Text: with the lengths, so that "ab", "c" is not "a", "bc".
        rows = values.reshape(len(values), -1).tolist()
        return ["\0".join(map(_text, row)).encode() for row in rows]
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return list(rows.view("uint8"))


def _text(value):
    text = value.decode(errors="replace") if type(value) is bytes else value
    return f"{len(text)} {text}"
