"""A batch as a survey takes it: class ids, and which examples count.

Labels and weights are settled here, on the host, in the shapes and types that
`keras.Model.fit` takes, so that the compiled step meets one form of them.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from keras_kd.batch import labels_of
from keras_kd.logits import with_finite_ruled_out
from keras_kd.states import num_rows

# Stands for a label that is not a class id.
NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a batch; the tokens where it is text.

    Attributes:
        x: the models' inputs.
        given: [examples] the labels as they came.
        labels: [examples] int32 class ids, `NO_CLASS` where a label is not one.
        counted: [examples] booleans, false for weight 0 and ignored labels.
    """

    x: object
    given: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


def settle(element, logits_shape, ignore_class=None):
    """Settles the labels and weights of a batch.

    Args:
        element: (x, labels) or (x, labels, sample_weight). Labels are [...] or
            [..., 1] class ids, of an integer dtype or integer-valued floats,
            or one-hot, [..., classes]; or a dict with "labels". Weights are
            [batch], [...] or [..., 1].
        logits_shape: tuple, [..., classes], `None` where unknown.
        ignore_class: optional number, the label of examples to leave out.

    Returns:
        `Examples`.

    Raises:
        ValueError: if labels are not class ids, or shapes don't fit.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(element)
    labels = labels_of(y)
    if labels is None:
        raise ValueError(
            "A diagnosis compares the teacher with labels. Received: data "
            "without them. Give (x, labels) or (x, labels, sample_weight)."
        )
    labels = np.asarray(labels)
    if labels.dtype == bool:
        labels = labels.astype("int32")
    if labels.dtype.kind not in "iuf":
        raise ValueError(
            "Labels must be class ids. Received: labels of dtype "
            f"{labels.dtype}. Map them to integers from 0, as "
            "keras.layers.StringLookup does."
        )
    labels = _without_last_1(labels, logits_shape)
    counted = _counts(weight, labels.shape)
    if ignore_class is not None:
        counted &= labels != ignore_class
    labels, counted = labels.reshape(-1), counted.reshape(-1)
    _check_whole(labels, counted)
    # Compared in their own dtype: in int32, 2 ** 32 + 1 would be class 1.
    is_class = (labels >= 0) & (labels < logits_shape[-1])
    ids = np.where(is_class, labels, 0).astype("int32")
    return Examples(x, labels, np.where(is_class, ids, NO_CLASS), counted)


def _without_last_1(labels, logits_shape):
    """Labels with the rank of their logits' examples."""
    wanted = logits_shape[:-1]
    if labels.ndim == len(logits_shape) and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if _fits(labels.shape, wanted):
        return labels
    if _fits(labels.shape, logits_shape) and _are_one_hot(labels):
        return labels.argmax(axis=-1)
    received = f"labels of shape {labels.shape} and dtype {labels.dtype}"
    if _fits(labels.shape, logits_shape):
        found, remedy = _of_all_classes(labels)
        received += f", which look {found}"
    else:
        remedy = (
            "Check that labels and inputs are of the same batch, and the "
            "shape of the model's output."
        )
    raise ValueError(
        "Labels must be class ids, one for each vector of logits, here of "
        f"shape {wanted}. Received: {received}. {remedy}"
    )


def _fits(shape, known):
    """Whether a shape fits a known one, whatever its batch size."""
    return len(shape) == len(known) and all(
        size is None or size == own
        for own, size in zip(shape[1:], known[1:], strict=True)
    )


def _are_one_hot(labels):
    return np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all()


def _of_all_classes(labels):
    """What labels with a number for each class are, and what to do."""
    sums_to_1 = np.allclose(labels.sum(-1), 1, atol=1e-3)
    if np.isin(labels, (0, 1)).all():
        return "multi-hot", (
            "Several classes of one example can't be diagnosed together: "
            "diagnose one class at a time, as a problem of two classes, with "
            "its column of the labels."
        )
    if sums_to_1 and labels.min() >= 0:
        return "like distributions over the classes", (
            "Diagnose with the hard labels that they were made from."
        )
    return "like scores of the classes", "Pass the class ids."


def _counts(weight, shape):
    """[...] booleans: which labels have a weight other than 0."""
    if weight is None:
        return np.ones(shape, "bool")
    given = weight = np.asarray(weight)
    while weight.ndim > len(shape) and weight.shape[-1] == 1:
        weight = weight[..., 0]
    while weight.ndim < len(shape):
        weight = weight[..., None]
    try:
        counted = np.broadcast_to(weight != 0, shape).copy()
    except ValueError as error:
        raise ValueError(
            "Sample weights must be one for each example, or for each label. "
            f"Received: weights of shape {given.shape} with labels of shape "
            f"{shape}. Give weights of shape {shape[:1]} or {shape}."
        ) from error
    if weight.dtype.kind == "f" and not np.isfinite(weight).all():
        raise ValueError(
            "Sample weights must be finite. Received: "
            f"{np.count_nonzero(~np.isfinite(weight))} that are NaN or "
            "infinite. Give weight 0 to examples that are not to count."
        )
    return counted


def _check_whole(labels, counted):
    """Refuses floats that are not integers."""
    if labels.dtype.kind != "f":
        return
    broken = counted & (labels != np.floor(labels))
    if broken.any():
        raise ValueError(
            "Labels must be class ids. Received: label "
            f"{labels[broken][0]:g}, which is not an integer. Pass class ids "
            "from 0, not values to regress or scores."
        )


def logits_of(reader, outputs):
    """[examples, classes] logits in float32, and whether they are finite."""
    logits = ops.cast(reader.logits(outputs), "float32")
    logits = ops.reshape(logits, (-1, logits.shape[-1]))
    return with_finite_ruled_out(logits)


def where_kept(keep, logits):
    """The logits, with 0 for examples not kept, which may be NaN."""
    return ops.where(ops.expand_dims(keep, -1), logits, 0.0)


def known_before(x, mask, labels, counted):
    """What is known of each example without the logits.

    Args:
        x: the models' inputs.
        mask: [...] booleans of the teacher's outputs, or `None`.
        labels: [examples].
        counted: [examples] booleans.

    Returns:
        [examples] booleans: which ones count, and which have inputs that are
        not finite.
    """
    rows = num_rows(x)
    if mask is not None:
        mask = ops.reshape(ops.cast(mask, "bool"), (rows, -1))
        counted = counted & spread(mask, labels)
    finite = ops.ones((rows,), "bool") & _finite_inputs(x)
    return counted, ~spread(ops.expand_dims(finite, -1), labels)


def _finite_inputs(x):
    """[batch] booleans: whether an example's inputs are all finite."""
    flags = [
        ops.isfinite(ops.sum(_rows(each), axis=-1))
        for each in map(ops.convert_to_tensor, keras.tree.flatten(x))
        if "float" in keras.backend.standardize_dtype(each.dtype)
    ]
    return functools.reduce(ops.logical_and, flags, True)


def _rows(values):
    """[batch, n] in float32, in which a sum of float16 does not overflow."""
    values = ops.cast(values, "float32")
    return ops.reshape(values, (ops.shape(values)[0], -1))


def spread(flags, labels):
    """Flags of rows, or of parts of rows, for every example.

    Args:
        flags: [rows, 1] or [rows, n] booleans.
        labels: [examples], n of each row.

    Returns:
        [examples] booleans.
    """
    rows = ops.shape(flags)[0]
    whole = ops.ones_like(ops.reshape(labels, (rows, -1)), dtype="bool")
    return ops.reshape(ops.logical_and(flags, whole), (-1,))
