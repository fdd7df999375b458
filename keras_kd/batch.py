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
TEACHER_CLASSES = "teacher_classes"
# That number where no teacher is given.
UNKNOWN_TEACHER = -1
# The class id of an example without a label, as in scikit-learn.
UNLABELLED = -1
# What reads labels where the loss does not.
EVALUATION = "Evaluation, validation included,"
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
        labels: [...] int32 class ids, all inside [0, classes); or soft
            labels, [..., classes] floats, that sum to 1 in each row, or are 0
            where a label is missing or can't be used.
        given_labels: the labels as they came, for messages and metrics; class
            ids of an integer dtype. `None` for data without labels.
        is_valid: [...] booleans, false for a label that can't be used (and is
            neither ignored nor missing where it may be); nothing may be
            trained on such a batch.
        is_labelled: [...] booleans, false for an example without a label;
            `None` where all must have one.
        counted: [...], how much of an example counts: false under a mask and
            on the ignored class. Booleans, or for soft labels, of which a
            share may be ignored, floats.
        weights: [...] float32, or `None` where every example weighs the same.
        row_weights: of several units that a row's weight is for, [...] without
            their axis, as metrics of whole rows ask; else `None`.
        y: dict of what the data and the teacher give, labels as they came.
        outside: [...], what classes of the student's that are not compared
            add to the cross-entropy on the labels; `None` if there are none.
    """

    logits: object
    labels: object
    given_labels: object
    is_valid: object
    is_labelled: object
    counted: object
    weights: object
    y: dict
    outside: object = None
    row_weights: object = None

    @property
    def num_classes(self):
        """Number of classes, a Python integer."""
        return self.logits.shape[-1]

    @property
    def is_soft(self):
        """Whether the labels are shares of the classes."""
        return are_soft(self.labels)

    @property
    def given_shares(self):
        """[..., classes], soft labels before class weights."""
        shares = ops.cast(self.given_labels, self.labels.dtype)
        return ops.where(self.labels > 0, shares, 0.0)

    def counted_part(self, values):
        """[...] values, 0 where an example doesn't count.

        Also where a value of such an example is not finite.
        """
        if not self.is_soft:
            return ops.where(self.counted, values, 0.0)
        counted = ops.cast(self.counted, values.dtype)
        return ops.where(counted > 0, values * counted, 0.0)

    def over_all_classes(self, cross_entropy):
        """[...], the cross-entropy over all classes that the student has."""
        if self.outside is None:
            return cross_entropy
        return cross_entropy + self.outside

    def of_labelled(self, values):
        """[...] values, 0 where an example has no label."""
        if self.is_labelled is None:
            return values
        return ops.where(self.is_labelled, values, 0.0)


def are_soft(labels):
    """Whether settled labels are shares of the classes, not class ids."""
    return "float" in keras.backend.standardize_dtype(labels.dtype)


def as_dict(y):
    """Labels and what comes beside them, as a dict.

    Args:
        y: labels, a dict that may have "labels", or `None`.

    Returns:
        A dict, without "labels" for data that have none.
    """
    if y is None:
        return {}
    return y if isinstance(y, dict) else {LABELS: y}


def labels_of(y):
    """The labels among what data give as y, `None` without any."""
    return y.get(LABELS) if isinstance(y, dict) else y


def settle(
    y,
    logits,
    sample_weight=None,
    mask=None,
    ignore_class=None,
    class_weight=None,
    label_reader="A loss",
    binary=False,
):
    """Settles what a batch is, as far as losses and metrics care.

    Args:
        y: labels, or a dict of labels and what comes beside them.
        logits: [..., classes], of the student.
        sample_weight: optional weights whose shape is that of the labels (of
            soft labels, without their last axis), or of their leading axes,
            with or without a last axis of size 1.
        mask: optional [...] booleans, such as the model's padding mask.
        ignore_class: optional integer, a label that doesn't count.
        class_weight: optional [classes] array that multiplies the weights.
        label_reader: what reads the label of every example, for messages;
            `None` if examples may be without one (class id -1, or a row of
            zeros).
        binary: whether logits are the (0, z) of units whose labels are 0 or 1.

    Returns:
        A `Batch`.

    Raises:
        ValueError: if labels or weights don't fit the logits, or are missing.
    """
    y = as_dict(y)
    num_classes = logits.shape[-1]
    check_several_classes(num_classes)
    given = y.get(LABELS)
    if given is None:
        given = _no_labels(y, logits, label_reader)
    elif binary:
        given = _of_units(given, logits.shape, ignore_class)
    if _looks_soft(given, logits.shape):
        given = ops.convert_to_tensor(given)
        labels, is_valid = _shares(given)
        unlabelled = ops.all(ops.equal(given, 0), axis=-1)
        is_labelled = ops.logical_not(unlabelled)
    else:
        given = class_ids(given, logits.shape)
        # Clipped before it is narrowed: 2**32 + 1 is not class 1.
        labels = ops.cast(ops.clip(given, 0, num_classes - 1), "int32")
        is_valid = ops.logical_and(given >= 0, given < num_classes)
        is_labelled = ops.not_equal(given, UNLABELLED)
    counted = ops.ones_like(is_valid)
    if LABELS in y and ignore_class is not None and not are_soft(labels):
        counted = ops.not_equal(given, ignore_class)
        if ignore_class == UNLABELLED:
            # Then -1 is an ignored label like others, which metrics see.
            is_labelled = ops.ones_like(is_labelled)
        is_valid = ops.logical_or(is_valid, ops.logical_not(counted))
    elif ignore_class is not None and 0 <= ignore_class < num_classes:
        ignored = ops.arange(num_classes) == ignore_class
        labels, counted = _reweighted(labels, ops.where(ignored, 0.0, 1.0))
        counted = ops.where(is_labelled, counted, 1.0)
    elif ignore_class is not None and binary:
        # Labels of a float dtype, of which this is neither 0 nor 1.
        counted = ops.not_equal(given[..., 1], ignore_class)
        is_valid = ops.logical_or(is_valid, ops.logical_not(counted))
    if label_reader is None:
        is_valid = ops.logical_or(is_valid, ops.logical_not(is_labelled))
    if mask is not None:
        mask = with_axes_of(ops.cast(mask, "bool"), is_valid, "mask")
        counted = ops.where(mask, counted, ops.zeros_like(counted))
    weights = None
    if sample_weight is not None:
        weights = with_axes_of(ops.cast(sample_weight, "float32"), is_valid)
        ones = ops.ones_like(is_valid, dtype="float32")
        weights = weights * ones if weights.shape != ones.shape else weights
    if class_weight is not None:
        if are_soft(labels):
            labels, of_class = _reweighted(labels, class_weight)
        else:
            of_class = ops.take(class_weight, labels, axis=0)
        if label_reader is None:
            of_class = ops.where(is_labelled, of_class, 1.0)
        weights = of_class if weights is None else weights * of_class
    return Batch(
        logits,
        labels,
        given if LABELS in y else None,
        is_valid,
        is_labelled if label_reader is None else None,
        counted,
        weights,
        y,
    )


def weights_of_rows(sample_weight, units):
    """Weights of whole rows of units.

    Args:
        sample_weight: as it was given.
        units: [..., units], of which only the shape is looked at.

    Returns:
        [...]; `None` where each unit has a weight of its own.
    """
    weights = with_axes_of(ops.cast(sample_weight, "float32"), units)
    if weights.shape[-1] != 1:
        return None
    return weights[..., 0] * ops.ones_like(units[..., 0], dtype="float32")


def lack_labels(x, y, output=None, unnamed=None):
    """Whether data are known to have no labels, before they are read.

    Args:
        x: what `keras.Model.fit` takes as x.
        y: what it takes as y.
        output: name of the output whose labels they are, of several.
        unnamed: optional function that takes the labels of a student's only
            output from the dict that they may be in by its name.

    Returns:
        A boolean, false where only reading the data would tell.

    Raises:
        ValueError: for labels that are text.
    """
    spec = getattr(x, "element_spec", None)
    if spec is not None:
        y = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    elif y is None and not _are_arrays(x):
        return False
    if output is not None and y is not None:
        if not isinstance(y, dict):
            return False
        y = y.get(output)
    elif unnamed is not None:
        y = unnamed(y)
    y = as_dict(y)
    labels = y.get(LABELS)
    if _are_text(labels):
        _refuse_text(labels.shape)
    return LABELS not in y


def _are_text(labels):
    """Whether an array, or the spec of one, is of strings."""
    dtype = getattr(labels, "dtype", None)
    name = getattr(dtype, "name", str(dtype))
    if name == "object" and len(labels):
        return isinstance(np.asarray(labels).flat[0], str | bytes)
    return name.startswith(("str", "bytes"))


def _refuse_text(shape):
    raise ValueError(
        "Labels must be class ids of an integer dtype. Received: strings, of "
        f"shape {tuple(shape)}. Number the names of the classes, as "
        "keras.layers.StringLookup does, in the order of the teacher's outputs."
    )


def _are_arrays(x):
    leaves = [each for each in keras.tree.flatten(x) if each is not None]
    return bool(leaves) and all(hasattr(each, "shape") for each in leaves)


def refuse_missing_labels(label_reader, y=None):
    """Raises for data without labels.

    Args:
        label_reader: what reads them.
        y: dict of what the data have in their place.

    Raises:
        ValueError: always.
    """
    beside = f", with {sorted(y)} in place of them" if y else ""
    other = ", or train with a loss that reads none, such as KD"
    raise ValueError(
        f"{label_reader} reads the label of every example. Received: data "
        f"without labels{beside}. Pass (x, labels)"
        f"{'' if label_reader == EVALUATION else other}."
    )


def _no_labels(y, logits, label_reader):
    """[...] class ids of examples that have none."""
    if label_reader is not None:
        refuse_missing_labels(label_reader, y)
    like = ops.argmax(logits, axis=-1)
    return ops.full_like(ops.cast(like, "int32"), UNLABELLED)


def _of_units(labels, logits_shape, ignore_class=None):
    """Labels 0 and 1 of units as class ids, or as shares of the two classes.

    Args:
        labels: [...] or [..., 1], integers or booleans, or floats in [0, 1];
            -1 where unlabelled, `ignore_class` where ignored.
        logits_shape: [..., 2].
        ignore_class: see `settle`.

    Returns:
        [...] int32, or of floats [..., 2].
    """
    labels = ops.convert_to_tensor(labels)
    labels = without_column(labels, len(logits_shape) - 1)
    if not may_match(tuple(labels.shape), tuple(logits_shape[:-1])):
        raise ValueError(
            "A sigmoid's labels are 0 or 1, one for each unit, here of shape "
            f"{tuple(logits_shape[:-1])}. Received: labels of shape "
            f"{tuple(labels.shape)}. Give one label for each output."
        )
    if "float" not in keras.backend.standardize_dtype(labels.dtype):
        return ops.cast(labels, "int32")
    missing = ops.equal(labels, UNLABELLED)
    shares = ops.stack([1.0 - labels, labels], axis=-1)
    if ignore_class == UNLABELLED:
        # Then -1 is an ignored label like others.
        return shares
    return ops.where(ops.expand_dims(missing, -1), 0.0, shares)


def _looks_soft(labels, logits_shape):
    """Whether labels have a share for each class."""
    shape = tuple(getattr(labels, "shape", np.shape(labels)))
    wanted = tuple(logits_shape)
    same_rank = len(shape) == len(wanted)
    return same_rank and shape[-1] != 1 and may_match(shape, wanted)


def _shares(given):
    """Soft labels that sum to 1 in each row, and which of them do so.

    Args:
        given: [..., classes].

    Returns:
        [..., classes] floats, 0 in rows that are not valid; and [...]
        booleans.
    """
    dtype = keras.backend.standardize_dtype(given.dtype)
    tolerance = 2e-2 if dtype in ("float16", "bfloat16") else 1e-3
    given = ops.cast(given, "float64" if dtype == "float64" else "float32")
    total = ops.sum(given, axis=-1)
    sums_to_1 = ops.abs(total - 1.0) <= tolerance
    is_valid = ops.logical_and(ops.all(given >= 0, axis=-1), sums_to_1)
    safe = ops.expand_dims(ops.where(is_valid, total, 1.0), -1)
    shares = ops.where(ops.expand_dims(is_valid, -1), given / safe, 0.0)
    return shares, is_valid


def _reweighted(shares, class_weight):
    """Soft labels whose shares are weighed, as those of class ids are.

    A soft label is a bag of class ids, each weighed by its share and by its
    class.

    Args:
        shares: [..., classes].
        class_weight: [classes].

    Returns:
        [..., classes] shares that sum to 1 again, and [...] their sums before.
    """
    weighed = shares * ops.cast(class_weight, shares.dtype)
    total = ops.sum(weighed, axis=-1)
    is_empty = ops.equal(total, 0)
    safe = ops.expand_dims(ops.where(is_empty, 1.0, total), -1)
    return weighed / safe, ops.cast(total, "float32")


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
    elif not may_match(shape, wanted):
        raise ValueError(
            "Labels must be class ids, one for each vector of logits, here of "
            f"shape {wanted}, or have a share for each class, of shape "
            f"{tuple(logits_shape)}. Received: labels of shape {shape} and "
            f"dtype {dtype}. Check that labels and inputs are of the same "
            "batch, and the shape of the model's output."
        )
    if "int" in dtype:
        return ops.cast(labels, _WIDENED.get(dtype, dtype))
    if dtype == "string":
        _refuse_text(shape)
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
    _refuse_wide(labels_of(y))


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
    values = without_column(values, len(wanted))
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


def without_column(values, rank):
    """Values without a last axis of size 1, as a column of a table has.

    Args:
        values: a tensor.
        rank: number of axes that it is to have; one that does not have one
            more than that is left alone.
    """
    if len(values.shape) == rank + 1 and values.shape[-1] == 1:
        return ops.squeeze(values, -1)
    return values


def has_known_rank(tensor):
    """Whether a tensor's number of axes is known, as it may not be in tf.data.

    Args:
        tensor: of any backend.
    """
    return getattr(tensor.shape, "rank", 0) is not None


def may_match(shape, other):
    """Whether two shapes are the same as far as both are known."""
    return len(shape) == len(other) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, other, strict=True)
    )
