"""Losses' statistics from a teacher's outputs that came with the data.

Beside the labels, y may carry what a teacher gave, computed by any program:

- "teacher_logits", [..., classes];
- "teacher_log_probabilities", [..., classes], at temperature 1, which serve as
  logits at any temperature;
- "top_log_probabilities" and "top_ids", [..., n]: log-probabilities at
  temperature 1 of some classes, the largest ones, in any order. A row that
  lists fewer is filled up with the id -1.

Of a list one rule makes all else: **the mass that a list leaves is spread
evenly over the classes that it leaves out**. At temperature 1 this is the
target of `KDTopK` itself. At another temperature the evenly spread
distribution is tempered, which is no longer exact, as the classes left out
differ in truth. A label that is left out has the probability of any class left
out. `KD`, and whatever else needs all classes, can't be made of a list.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_kd import backend, losses
from keras_kd.batch import (
    LABELS,
    STATISTICS_TEMPERATURE,
    TEACHER_CLASSES,
    TEACHER_FINGERPRINT,
    TEACHER_LOGITS,
    TEACHER_RIGHT,
    class_ids,
)
from keras_kd.logits import CARRIED_MESSAGE, are_all_distributions
from keras_kd.reports.numbers import how_many

TEACHER_LOG_PROBABILITIES = "teacher_log_probabilities"
TOP_LOG_PROBABILITIES = "top_log_probabilities"
TOP_IDS = "top_ids"
# In y, for the Distiller: the number of what is wrong with a row, 0 if nothing.
OUTPUT_FAULT = "output_fault"
# All that y may hold, whatever the loss.
KEYS = (
    LABELS,
    TEACHER_LOGITS,
    TEACHER_LOG_PROBABILITIES,
    TOP_LOG_PROBABILITIES,
    TOP_IDS,
    TEACHER_RIGHT,
    STATISTICS_TEMPERATURE,
    TEACHER_FINGERPRINT,
    TEACHER_CLASSES,
)
# What fills up a list.
PADDING = -1

# Float16 rounds a log-probability of -11 by 0.4 %, and so the sum.
_LARGEST_LOG, _SUM_TOLERANCE = 1e-4, 1e-2
# Stand for the logarithm of 0, and for what is not there at all; finite, so
# that differences of them are numbers.
_LOG_0, _ABSENT = -1e30, -2e30
# Smallest mass whose logarithm is taken in float32, and that logarithm.
_TINY, _LOG_TINY = 1e-37, -85.2

_NOT_FINITE = "a logit that is NaN or infinite"
# What can be wrong with a row, by number; 0 is nothing.
FAULTS = (
    "",
    "a log-probability above 0, or NaN",
    "log-probabilities whose probabilities sum to more than 1",
    "log-probabilities of all classes whose probabilities do not sum to 1",
    "an id outside of the classes",
    "an id twice",
    "no class at all",
    _NOT_FINITE,
)
_EMPTY = 6
# That many tell whether all are probabilities.
_FIRST_ROWS = 1024


def carried(y):
    """Which of a teacher's outputs y carries.

    Args:
        y: labels, or a dict of labels and what comes beside them.

    Returns:
        "teacher_logits", "teacher_log_probabilities",
        "top_log_probabilities", or `None`.

    Raises:
        ValueError: for one half of a list.
    """
    if not isinstance(y, dict):
        return None
    if (TOP_IDS in y) != (TOP_LOG_PROBABILITIES in y):
        raise ValueError(
            "A list of a teacher's largest log-probabilities has two parts, "
            f'"{TOP_LOG_PROBABILITIES}" and "{TOP_IDS}". Received: y with '
            f"{sorted(y)}. Give both, of one shape."
        )
    names = (TEACHER_LOGITS, TEACHER_LOG_PROBABILITIES, TOP_LOG_PROBABILITIES)
    return next((name for name in names if name in y), None)


def with_statistics(y, loss, num_classes):
    """Adds to y what a loss needs of the teacher's outputs that y carries.

    It works inside a compiled step. Rows that are not valid have a number in
    y["output_fault"] that says why, see `FAULTS`; the step must not train on
    them.

    Args:
        y: dict of labels and what comes beside them.
        loss: a `DistillationLoss`.
        num_classes: function that gives the number of the student's classes.

    Returns:
        A dict; as it is, if it carries none or the loss needs none. Full
        log-probabilities become "teacher_logits".

    Raises:
        ValueError: if the outputs are of another number of classes, or the
            loss can't be made of a list.
    """
    kind = carried(y)
    missing = [name for name in loss.statistics if name not in y]
    if kind in (None, TEACHER_LOGITS) or not loss.statistics:
        return y
    if kind == TEACHER_LOG_PROBABILITIES:
        values = ops.cast(y[kind], loss.dtype)
        # -inf would make NaN of a difference.
        logits = ops.where(values < _LOG_0, _LOG_0, values)
        fault = _fault_of_all(values)
        return {**y, TEACHER_LOGITS: logits, OUTPUT_FAULT: fault}
    if not missing:
        return y
    top = TopList.of(y, num_classes(), loss.dtype)
    check_can_be_made(loss, top.width, top.num_classes)
    labels = _class_ids(y, loss, top)
    return {
        **y,
        **statistics_of_list(loss, labels, top),
        TEACHER_RIGHT: ops.equal(top.best, labels),
        OUTPUT_FAULT: top.fault,
    }


def _class_ids(y, loss, top):
    """[...] int32, inside of the classes; of soft labels the likeliest."""
    labels = y.get(LABELS)
    shape = (*y[TOP_IDS].shape[:-1], top.num_classes)
    if labels is None:
        return ops.zeros_like(top.ids[..., 0])
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(shape) and labels.shape[-1] != 1:
        if loss.reads_labels:
            raise ValueError(
                f"{type(loss).__name__} is made of a list for class ids. "
                f"Received: labels of shape {tuple(labels.shape)}, a share for "
                "each class. Pass class ids, or give all log-probabilities, as "
                f'"{TEACHER_LOG_PROBABILITIES}".'
            )
        labels = ops.argmax(labels, axis=-1)
    labels = class_ids(labels, shape)
    return ops.cast(ops.clip(labels, 0, top.num_classes - 1), "int32")


def statistics_of_list(loss, labels, top):
    """A loss's statistics, of a list.

    Args:
        loss: a `DistillationLoss` that `check_can_be_made` accepts.
        labels: [...] int32 class ids inside of the classes.
        top: `TopList`.

    Returns:
        Dict of tensors by name.
    """
    temperature = loss.temperature
    if _is_top_k(loss):
        return top.largest(loss.count(top.num_classes), temperature)
    return {"label_log_odds": top.log_odds(labels, temperature)}


def check_can_be_made(loss, width, num_classes):
    """Refuses a loss whose statistics can't be made of a list.

    Args:
        loss: a `DistillationLoss`.
        width: integer, how many classes the lists have at most.
        num_classes: integer.

    Raises:
        ValueError: saying what it needs.
    """
    if _is_top_k(loss):
        k = loss.count(num_classes)
        if k <= width:
            return
        raise ValueError(
            "KDTopK needs the teacher's k largest classes. Received: k="
            f"{k} for lists of at most {width}. Use KDTopK(k={width}), or "
            "longer lists."
        )
    if not _is_confidence(loss):
        raise ValueError(
            f"{type(loss).__name__} can't be made of the largest "
            f"log-probabilities alone. Received: lists of {width} classes of "
            f"{num_classes}. Use KDTopK(k={width}) or KDPt, or give all of "
            f'them, as "{TEACHER_LOG_PROBABILITIES}".'
        )


def _is_top_k(loss):
    own = losses.KDTopK.teacher_statistics
    return type(loss).teacher_statistics is own


def _is_confidence(loss):
    own = losses.KDPt.teacher_statistics
    return type(loss).teacher_statistics is own


@dataclasses.dataclass(frozen=True)
class TopList:
    """A distribution: some classes' log-probabilities, the rest even.

    Attributes:
        ids: [..., n] int32, `PADDING` where a list is shorter.
        log_p: [..., n], finite.
        listed: [..., n] booleans, false for the padding.
        num_classes: integer.
        fault: [...] int32, what is wrong; see `FAULTS`.
    """

    ids: object
    log_p: object
    listed: object
    num_classes: int
    fault: object

    @classmethod
    def of(cls, y, num_classes, dtype="float32"):
        """The lists that y carries.

        Args:
            y: dict with "top_log_probabilities" and "top_ids".
            num_classes: integer.
            dtype: of the log-probabilities.

        Raises:
            ValueError: if their shapes or dtypes don't fit.
        """
        ids, log_p = y[TOP_IDS], y[TOP_LOG_PROBABILITIES]
        check_shapes(ids, log_p)
        ids = ops.convert_to_tensor(ids)
        wide = {"uint32": "int64", "uint64": "int64"}
        dtype_of_ids = keras.backend.standardize_dtype(ids.dtype)
        if dtype_of_ids.startswith("uint"):  # Without a -1.
            ids = ops.cast(ids, wide.get(dtype_of_ids, "int32"))
        # In their own dtype: 2**32 is not class 0.
        listed = ops.not_equal(ids, PADDING)
        inside = ops.logical_and(ids >= 0, ids < num_classes)
        ids = ops.cast(ops.where(inside, ids, PADDING), "int32")
        log_p = ops.cast(log_p, dtype)
        fault = _fault_of_list(ids, log_p, listed, inside)
        known = ops.where(log_p < _LOG_0, _LOG_0, log_p)
        listed = ops.logical_and(listed, inside)
        known = ops.where(listed, known, _ABSENT)
        return cls(ids, known, listed, num_classes, fault)

    @property
    def width(self):
        """How many classes a list has at most."""
        return self.ids.shape[-1]

    @property
    def best(self):
        """[...] int32, the class with the largest log-probability."""
        place = ops.argmax(self.log_p, axis=-1, keepdims=True)
        return ops.take_along_axis(self.ids, place, axis=-1)[..., 0]

    def log_odds(self, labels, temperature):
        """[...], log(p / (1 - p)) of the labels at a temperature."""
        scaled, each, log_even, even, others = self._tempered(temperature)
        is_label = ops.equal(self.ids, ops.expand_dims(labels, -1))
        in_list = ops.any(is_label, axis=-1)
        own = ops.sum(ops.where(is_label, scaled, 0.0), axis=-1)
        own = ops.where(in_list, own, log_even)
        left = ops.where(in_list, others, others - 1)
        left = ops.where(left < 0, 0.0, left)
        rest = ops.sum(ops.where(is_label, 0.0, each), axis=-1) + left * even
        log_rest = ops.log(ops.where(rest < _TINY, _TINY, rest))
        return ops.where(own < _LOG_TINY, _LOG_TINY, own) - log_rest

    def largest(self, k, temperature):
        """The statistics of `KDTopK` at a temperature.

        Args:
            k: integer, at most `width`.
            temperature: scalar.

        Returns:
            Dict of "top_classes" ([..., k] int32, distinct),
            "top_probabilities" ([..., k]) and "tail_probability" ([...]). A
            list with fewer classes than k is filled up with others, each with
            its even share.
        """
        _, each, _, even, others = self._tempered(temperature)
        _, order = ops.top_k(self.log_p, self.width)
        classes, masses, listed = (
            ops.take_along_axis(values, order, axis=-1)
            for values in (self.ids, each, self.listed)
        )
        beyond = ops.sum(masses[..., k:], axis=-1)
        classes, masses, listed = (
            values[..., :k] for values in (classes, masses, listed)
        )
        # What is listed comes first; each place after it takes the next class
        # that is not listed.
        added = ops.cast(ops.logical_not(listed), "int32")
        place = ops.where(listed, 0, ops.cumsum(added, axis=-1) - 1)
        free = ops.take_along_axis(self._not_listed(k), place, axis=-1)
        classes = ops.where(listed, classes, free)
        masses = ops.where(listed, masses, ops.expand_dims(even, -1))
        others = others - ops.cast(ops.sum(added, axis=-1), others.dtype)
        tail = others * even + beyond
        total = ops.sum(masses, axis=-1) + tail
        return {
            "top_classes": ops.cast(classes, "int32"),
            "top_probabilities": masses / ops.expand_dims(total, -1),
            "tail_probability": tail / total,
        }

    def _tempered(self, temperature):
        """What is listed and left out at a temperature.

        Returns:
            Logarithms of the masses [..., n], the masses, and the logarithm,
            the mass and the number of the classes left out, [...], all in
            units of the largest mass.
        """
        count = ops.sum(ops.cast(self.listed, self.log_p.dtype), axis=-1)
        others = self.num_classes - count
        probabilities = ops.where(self.listed, ops.exp(self.log_p), 0.0)
        left = 1.0 - ops.sum(probabilities, axis=-1)
        is_left = ops.logical_and(left > 0, others > 0)
        share = ops.where(is_left, left, 1.0) / ops.where(is_left, others, 1.0)
        log_even = ops.where(is_left, ops.log(share), _LOG_0)
        largest = ops.max(self.log_p, axis=-1)
        largest = ops.where(log_even > largest, log_even, largest)
        scaled = (self.log_p - ops.expand_dims(largest, -1)) / temperature
        each = ops.where(self.listed, ops.exp(scaled), 0.0)
        log_even = (log_even - largest) / temperature
        even = ops.where(is_left, ops.exp(log_even), 0.0)
        return scaled, each, log_even, even, others

    def _not_listed(self, k):
        """[..., k]: the smallest class ids that are not listed, in order.

        Where there are fewer, those after them are not classes; they are not
        needed either, since a list is filled up to at most all classes.
        """
        width = self.width
        reach = min(k + width, self.num_classes)
        ids = ops.reshape(self.ids, (-1, width))
        listed = ops.reshape(self.listed, (-1, width))
        # What is out of reach is marked in a column of its own.
        within = ops.logical_and(listed, ids < reach)
        own = reach + ops.arange(width, dtype="int32")
        columns = ops.where(within, ids, own)
        zeros = ops.zeros((ops.shape(ids)[0], reach + width), "float32")
        ones = ops.ones_like(columns, dtype="float32")
        marks = backend.add_to_classes(zeros, columns, ones)[:, :reach]
        numbers = ops.arange(reach, dtype="int32")
        free = ops.sort(ops.where(marks > 0, reach, numbers), axis=-1)[:, :k]
        return ops.reshape(free, (*ops.shape(self.ids)[:-1], k))


# -- what is refused ---------------------------------------------------------


def check_outputs(y, num_classes, first=0, counted=None):
    """Refuses a teacher's outputs in data that are not valid.

    `Distiller.fit` and `TeacherCache.write` check by themselves; this one
    names the row, of arrays of any size.

    Args:
        y: dict of arrays, with one of "teacher_logits" or
            "teacher_log_probabilities" ([..., classes]), or
            "top_log_probabilities" and "top_ids" ([..., n]).
        num_classes: integer, of the student.
        first: integer, position of the first row, for the message.
        counted: optional [...] booleans, which rows or tokens count; others
            may be anything. `None` for all of them, among which a list may
            then be empty, as for padding that a mask leaves out; training
            refuses it where it counts.

    Raises:
        ValueError: for logits that are NaN or infinite, or of which all of
            the first rows are probabilities; log-probabilities above 0 or
            whose probabilities sum to more than 1; ids outside of the classes
            or twice in a row; outputs of another number of classes; and a
            `y` without any. The message names the first row.

    Example:
    >>> kd.check_outputs({"labels": labels, **lists}, num_classes=50_000)
    """
    kind = carried(y)
    if kind is None:
        found = f"a dict with {sorted(y)}" if isinstance(y, dict) else "no dict"
        raise ValueError(
            "A teacher's outputs come in a dict, under names of their own. "
            f'Received: {found}. Pass y with "{TEACHER_LOGITS}", '
            f'"{TEACHER_LOG_PROBABILITIES}", or "{TOP_LOG_PROBABILITIES}" and '
            f'"{TOP_IDS}".'
        )
    values = np.asarray(y[kind])
    wanted = "log-probabilities (natural logarithms)"
    if kind == TEACHER_LOGITS:
        wanted = "logits"
        _check_logits(values, counted)
        check_size(values.shape[-1], num_classes)
        fault = _fault_of_logits(values)
    elif kind == TEACHER_LOG_PROBABILITIES:
        check_size(values.shape[-1], num_classes)
        fault = _fault_of_all(values.astype("float64"))
    else:
        ids = np.asarray(y[TOP_IDS])
        check_shapes(ids, values)
        check_width(ids.shape[-1], num_classes)
        inside = (ids >= 0) & (ids < num_classes)
        ids = np.where(inside, ids, np.where(ids == PADDING, PADDING, -2))
        fault = _fault_of_list(
            ids, values.astype("float64"), ids != PADDING, inside
        )
    fault = keras.ops.convert_to_numpy(fault)
    if counted is None:
        fault = np.where(fault == _EMPTY, 0, fault)
    else:
        fault = np.where(counted, fault, 0)
    if not fault.any():
        return
    place = np.unravel_index(int((fault != 0).argmax()), fault.shape)
    named = [f"row {first + place[0]}", *(f"token {p}" for p in place[1:])]
    each = "row" if fault.ndim == 1 else "token"
    raise ValueError(
        f"A teacher's outputs in the data must be {wanted} of the student's "
        f"{num_classes} classes, each once. "
        f"Received: {FAULTS[fault[place]]} in {', '.join(named)}: "
        f"{_row_of(y, kind, place)} "
        f"({how_many(np.count_nonzero(fault), each)} in all). Check what wrote "
        "them, and that its vocabulary is the student's."
    )


def _check_logits(values, counted=None):
    """Refuses probabilities in the place of logits, by the first rows."""
    values = values[:_FIRST_ROWS]
    if counted is not None:
        values = values[counted[:_FIRST_ROWS]]
    # That of a single unit would be 1.
    if values.shape[-1] > 1 and bool(are_all_distributions(values)):
        raise ValueError(CARRIED_MESSAGE)


def count_faults(fault, counted, weights=None):
    """What a step has to tell the host of rows that are not valid.

    Args:
        fault: [...] int32, from `with_statistics`.
        counted: [...] booleans; what does not count may be anything.
        weights: optional [...]; likewise where they are 0.

    Returns:
        Dict of float32 scalars: how many are not valid, what is wrong with the
        first of them, and which one of the batch it is.
    """
    fault = ops.where(counted, fault, 0)
    if weights is not None:
        fault = ops.where(ops.equal(weights, 0), 0, fault)
    flat = ops.reshape(fault, (-1,))
    is_bad = ops.cast(ops.not_equal(flat, 0), "int32")
    first = ops.argmax(is_bad)
    tokens = int(np.prod(fault.shape[1:]))
    return {
        "outputs": ops.cast(ops.sum(is_bad), "float32"),
        "fault": ops.cast(flat[first], "float32"),
        "fault_row": ops.cast(first // tokens, "float32"),
    }


def fault_message(count, fault, row, num_classes):
    """What to say of a batch with rows that are not valid.

    Args:
        count: how many of the batch.
        fault: number of what is wrong with the first of them.
        row: which one of the batch it is.
        num_classes: integer.
    """
    return (
        "A teacher's outputs in the data must be log-probabilities (natural "
        f"logarithms) of the student's {num_classes} classes, each once. "
        f"Received: {FAULTS[int(fault)]} in row {int(row)} of a batch "
        f"({int(count)} rows or tokens in all). Check what wrote them, and "
        "that its vocabulary is the student's; keras_kd.check_outputs names "
        "the row of the data."
    )


def check_size(size, num_classes):
    """Refuses log-probabilities or logits of another number of classes."""
    if size != num_classes:
        raise ValueError(
            "A teacher's outputs in the data must be of the student's "
            f"classes. Received: {size} numbers a row for {num_classes} "
            "classes. Use outputs of a teacher with the student's vocabulary."
        )


def check_width(width, num_classes):
    """Refuses lists that are longer than there are classes."""
    if width > num_classes:
        raise ValueError(
            "A list holds a teacher's largest log-probabilities, of each class "
            f"at most one. Received: lists of {width} for {num_classes} "
            "classes. Check that their vocabulary is the student's."
        )


def check_shapes(ids, log_p):
    """Refuses ids and log-probabilities that are not of one shape."""
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if tuple(ids.shape) != tuple(log_p.shape) or "int" not in dtype:
        raise ValueError(
            f'"{TOP_IDS}" and "{TOP_LOG_PROBABILITIES}" must be integers and '
            f"floats of one shape. Received: shape {tuple(ids.shape)} of dtype "
            f"{dtype}, and shape {tuple(log_p.shape)}. Fill up shorter lists "
            f"with the id {PADDING}."
        )


def _row_of(y, kind, place):
    row = np.asarray(y[kind])[place]
    if kind == TOP_LOG_PROBABILITIES:
        ids = np.asarray(y[TOP_IDS])[place]
        pairs = zip(ids, row, strict=True)
        pairs = [f"{i}: {p:g}" for i, p in pairs if i != PADDING]
        return "{" + _few(pairs) + "}"
    return "[" + _few([f"{p:g}" for p in row]) + "]"


def _few(texts):
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")


def _fault_of_logits(logits):
    """[...] integers: what is wrong with logits; -inf rules a class out."""
    sound = np.isfinite(logits.max(axis=-1))
    return np.where(sound, 0, FAULTS.index(_NOT_FINITE))


def _fault_of_all(log_p):
    """[...] int32: what is wrong with log-probabilities of all classes."""
    total = ops.sum(ops.exp(log_p), axis=-1)
    return _first_fault(
        {
            1: ops.any(_above_0(log_p), axis=-1),
            3: ops.abs(total - 1.0) > _SUM_TOLERANCE,
        }
    )


def _fault_of_list(ids, log_p, listed, inside):
    """[...] int32: what is wrong with lists."""
    above = _above_0(log_p)
    # As exp(large) would be infinite.
    known = ops.where(ops.logical_and(listed, log_p <= 1.0), log_p, _LOG_0)
    total = ops.sum(ops.exp(known), axis=-1)
    # In order, those that are the same lie side by side.
    ordered = ops.sort(ids, axis=-1)
    same = ops.equal(ordered[..., 1:], ordered[..., :-1])
    same = ops.logical_and(same, ordered[..., 1:] >= 0)
    outside = ops.logical_and(listed, ops.logical_not(inside))
    return _first_fault(
        {
            4: ops.any(outside, axis=-1),
            5: ops.any(same, axis=-1),
            6: ops.logical_not(ops.any(listed, axis=-1)),
            1: ops.any(ops.logical_and(listed, above), axis=-1),
            2: total > 1.0 + _SUM_TOLERANCE,
        }
    )


def _above_0(log_p):
    """Booleans: what is above 0, or NaN, of which XLA makes no comparison."""
    return ops.logical_or(log_p > _LARGEST_LOG, ops.isnan(log_p))


def _first_fault(by_number):
    """[...] int32, the first number in order whose condition holds, or 0."""
    numbers = list(by_number)
    found = ops.zeros_like(by_number[numbers[0]], dtype="int32")
    for number in reversed(numbers):
        found = ops.where(by_number[number], number, found)
    return ops.cast(found, "int32")
