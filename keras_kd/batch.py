"""What a batch is: logits, labels, teacher statistics and weights.

Keras hands a step whatever the user's data hold. `settle` turns it into a
`Batch` once; losses, metrics and monitors only read that.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_kd.logits import check_several_classes

LABELS = "labels"
# Beside labels and statistics, y may carry these of each example: the teacher's
# logits, whether the largest of them is the label's, the temperature at which
# the statistics were computed, and the `teacher_number` of the teacher.
TEACHER_LOGITS = "teacher_logits"
TEACHER_RIGHT = "teacher_right"
STATISTICS_TEMPERATURE = "statistics_temperature"
TEACHER_FINGERPRINT = "teacher_fingerprint"
# Stands for a label that is not a whole number.
NOT_WHOLE = -(2**31)

# Dtypes of labels that could not hold the number of classes, or that kernels
# lack. JAX has no 64 bits unless it is told to.
_WIDE = "int32" if keras.backend.backend() == "jax" else "int64"
_WIDENED = {
    **dict.fromkeys(("int8", "int16", "uint8", "uint16"), "int32"),
    **dict.fromkeys(("uint32", "uint64"), _WIDE),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch as losses and metrics read it.

    Attributes:
        logits: [..., classes], of the student.
        labels: [...] int32 class ids, all inside [0, classes).
        given_labels: [...], the labels as they came, of an integer dtype, for
            messages.
        is_class: [...] booleans, false for a label that is neither a class id
            nor the ignored one; nothing may be trained on such a batch.
        counted: [...] booleans, false under a mask and on the ignored class.
        weights: [...] float32, or `None` where every example weighs the same.
        y: dict of what the data or the teacher give beside the labels.
    """

    logits: object
    labels: object
    given_labels: object
    is_class: object
    counted: object
    weights: object
    y: dict

    @property
    def num_classes(self):
        """Number of classes, a Python integer."""
        return self.logits.shape[-1]


def as_dict(y):
    """Labels and what comes beside them, as a dict.

    Args:
        y: labels, or a dict with "labels".

    Returns:
        A dict.

    Raises:
        ValueError: for no labels, or a dict without them.
    """
    if y is None:
        raise ValueError(
            "Distillation needs labels. Received: data without them. Pass "
            "(x, labels) with integer class ids."
        )
    if not isinstance(y, dict):
        return {LABELS: y}
    if LABELS not in y:
        raise ValueError(
            f'Labels given as a dict must have the key "{LABELS}". Received: '
            f"keys {sorted(y)}. Rename the key of the class ids."
        )
    return y


def settle(
    y,
    logits,
    sample_weight=None,
    mask=None,
    ignore_class=None,
    class_weight=None,
):
    """Settles what a batch is, as far as losses and metrics care.

    Args:
        y: labels, or a dict of labels and what comes beside them.
        logits: [..., classes], of the student.
        sample_weight: optional weights whose shape is that of the labels, or
            of their leading axes, with or without a last axis of size 1.
        mask: optional [...] booleans, such as the model's padding mask.
        ignore_class: optional integer, a label that doesn't count.
        class_weight: optional [classes] array that multiplies the weights.

    Returns:
        A `Batch`.

    Raises:
        ValueError: if labels or weights don't fit the logits.
    """
    y = as_dict(y)
    check_several_classes(logits.shape[-1])
    given = class_ids(y[LABELS], logits.shape)
    num_classes = logits.shape[-1]
    is_class = ops.logical_and(given >= 0, given < num_classes)
    # Clipped before it is narrowed: 2**32 + 1 is not class 1.
    labels = ops.cast(ops.clip(given, 0, num_classes - 1), "int32")
    counted = ops.ones_like(is_class)
    if ignore_class is not None:
        counted = ops.not_equal(given, ignore_class)
        is_class = ops.logical_or(is_class, ops.logical_not(counted))
    if mask is not None:
        mask = with_axes_of(ops.cast(mask, "bool"), labels, "mask")
        counted = ops.logical_and(counted, mask)
    weights = _weights(sample_weight, labels, class_weight)
    return Batch(logits, labels, given, is_class, counted, weights, y)


def class_ids(labels, logits_shape):
    """Labels as class ids, one for each vector of logits.

    Args:
        labels: [...] or [..., 1], of an integer dtype, or whole numbers of a
            float dtype.
        logits_shape: shape of the logits, [..., classes].

    Returns:
        [...], of an integer dtype; `NOT_WHOLE` for a float that isn't a whole
        number.

    Raises:
        ValueError: for another shape or dtype.
    """
    if _WIDE == "int32":
        _refuse_wide(labels)
    labels = ops.convert_to_tensor(labels)
    shape, wanted = tuple(labels.shape), tuple(logits_shape[:-1])
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if len(shape) == len(wanted) + 1 and shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    elif not _may_match(shape, wanted):
        raise ValueError(
            "Labels must be class ids, one for each vector of logits, here of "
            f"shape {wanted}. Received: labels of shape {shape} and dtype "
            f"{dtype}. {_shape_remedy(shape, tuple(logits_shape))}"
        )
    if "int" in dtype:
        return ops.cast(labels, _WIDENED.get(dtype, dtype))
    if "float" not in dtype:
        raise ValueError(
            "Labels must be class ids of an integer dtype. Received: labels "
            f"of shape {shape} and dtype {dtype}. Cast class ids with "
            '`labels.astype("int32")`.'
        )
    whole = ops.equal(labels, ops.floor(labels))
    # Beyond this a float32 no longer tells whole numbers apart.
    in_reach = ops.abs(labels) < 2.0**24
    usable = ops.logical_and(whole, in_reach)
    return ops.where(usable, ops.cast(labels, "int32"), NOT_WHOLE)


def refuse_wide_labels(data):
    """Refuses labels that JAX would cut to 32 bits without a word.

    Args:
        data: a batch as Keras gives it, (x, labels[, sample_weight]).

    Raises:
        ValueError: if a label, still a NumPy array, needs 64 bits.
    """
    _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    _refuse_wide(y.get(LABELS) if isinstance(y, dict) else y)


def _refuse_wide(labels):
    """Refuses NumPy's integers that need 64 bits."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return
    if labels.dtype.itemsize == 8 and np.any(labels != labels.astype("int32")):
        wide = labels[labels != labels.astype("int32")][0]
        raise ValueError(
            f"A label is not a class id of the student. Received: label {wide}"
            ", which needs 64 bits. Check the labels' encoding."
        )


def _shape_remedy(shape, logits_shape):
    if _may_match(shape, logits_shape):
        return (
            "Turn one-hot labels into class ids with `labels.argmax(-1)`. "
            "Labels with several ones in a row (multi-label) or shares of "
            "several classes can't be distilled yet."
        )
    return (
        "Check that labels and inputs are of the same batch, and the shape of "
        "the model's output."
    )


def with_axes_of(values, other, what="sample_weight"):
    """Gives weights or a mask the shape of the labels.

    Args:
        values: a tensor whose shape is that of `other`, or of its leading
            axes, with or without a last axis of size 1.
        other: [...], the labels.
        what: name for the message.

    Returns:
        A tensor with as many axes as `other`, which broadcasts with it.

    Raises:
        ValueError: if the shapes don't fit.
    """
    values = ops.convert_to_tensor(values)
    shape, wanted = tuple(values.shape), tuple(other.shape)
    if len(shape) == len(wanted) + 1 and shape[-1] == 1:
        values = ops.squeeze(values, -1)
    while len(values.shape) < len(wanted):
        values = ops.expand_dims(values, -1)
    fits = len(values.shape) == len(wanted) and all(
        size in (1, None) or expected is None or size == expected
        for size, expected in zip(values.shape, wanted, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`{what}` must have the shape of the labels or of their leading "
            f"axes. Received: shape {shape} for labels of shape {wanted}. Give "
            "one value an example, or one for each label."
        )
    return values


def class_weight_array(class_weight, num_classes):
    """Class weights as an array.

    Args:
        class_weight: dict from class ids to weights; other classes weigh 1.
        num_classes: integer.

    Returns:
        [classes] float32 NumPy array.

    Raises:
        ValueError: for a key that isn't a class id.
    """
    by_class = np.ones(num_classes, dtype="float32")
    for key, weight in class_weight.items():
        is_number = isinstance(key, (int, float, np.number))
        if not is_number or key != int(key) or not 0 <= key < num_classes:
            raise ValueError(
                "`class_weight` must be a dict from class ids to weights. "
                f"Received: class id {key!r} with {num_classes} classes. "
                "Remove it, or correct the class ids."
            )
        by_class[int(key)] = weight
    return by_class


def _weights(sample_weight, labels, class_weight):
    """[...] float32, sample weights times class weights; or `None`."""
    weights = None
    if sample_weight is not None:
        weights = with_axes_of(ops.cast(sample_weight, "float32"), labels)
        ones = ops.ones_like(labels, dtype="float32")
        weights = weights * ones if weights.shape != labels.shape else weights
    if class_weight is not None:
        of_class = ops.take(class_weight, labels, axis=0)
        weights = of_class if weights is None else weights * of_class
    return weights


def _may_match(shape, other):
    """Whether two shapes are the same as far as both are known."""
    return len(shape) == len(other) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, other, strict=True)
    )
