"""What a cache keeps of a teacher's outputs that the data carry."""

import hashlib

import numpy as np
from keras import ops

from keras_kd import backend
from keras_kd.batch import TEACHER_LOGITS, TEACHER_RIGHT, UNLABELLED
from keras_kd.cache.teacher_pass import inside, weighted
from keras_kd.logits import with_finite_ruled_out
from keras_kd.precomputed import (
    TOP_IDS,
    TOP_LOG_PROBABILITIES,
    TopList,
    carried,
    check_can_be_made,
    check_outputs,
    check_shapes,
    check_size,
    check_width,
)


class PrecomputedPass:
    """In the place of a `TeacherPass`, where the data carry its outputs.

    Args:
        stores: list of stores; see `keras_kd.cache.stores`.
        losses: list of the `DistillationLoss`es that they are for.
        y: what the data's first batch gives as labels.
        classes: integer.

    Raises:
        ValueError: for a loss that can't be made of the outputs.
    """

    teacher = None
    name = "the data"

    def __init__(self, stores, losses, y, classes):
        self.stores = stores
        self.classes = classes
        self._kind = carried(y)
        self._ignored = {loss.ignore_class for loss in losses} - {None}
        self._needs_no_label = any(loss.label_reader is None for loss in losses)
        self._names = [self._kind]
        self._checked = False
        encode = self._encode_all
        if self._kind == TOP_LOG_PROBABILITIES:
            self._names.append(TOP_IDS)
            encode = self._encode_list
            for loss in losses:
                if loss.statistics:
                    width = y[TOP_IDS].shape[-1]
                    check_can_be_made(loss, width, classes)
        self._step = backend.compiled(encode)

    def run(self, examples):
        """As `TeacherPass.run`.

        Raises:
            ValueError: for outputs that are not valid, naming the row.
        """
        given = {name: examples.y[name] for name in self._names}
        if self._kind == TEACHER_LOGITS:
            check_size(given[TEACHER_LOGITS].shape[-1], self.classes)
        ids = inside(examples.ids, self.classes)
        counted = ids >= 0
        if self._needs_no_label:
            counted |= examples.ids == UNLABELLED
        counted &= weighted(ids.shape, examples.weight)
        counted &= ~np.isin(examples.ids, list(self._ignored))
        # A few logits may sum to 1, as those of a small batch among many.
        if self._kind != TEACHER_LOGITS or not self._checked:
            check_outputs(given, self.classes, examples.position, counted)
        self._checked = True
        arrays, finite = self._step(*backend.from_tf_data((ids, given)))
        arrays = {k: ops.convert_to_numpy(v) for k, v in arrays.items()}
        return arrays, bool(finite)

    def _encode_all(self, ids, given):
        logits = ops.cast(given[self._kind], "float32")
        logits, finite = with_finite_ruled_out(logits)
        best = ops.cast(ops.argmax(logits, axis=-1), "int32")
        arrays = {TEACHER_RIGHT: ops.equal(best, ids)}
        for store in self.stores:
            arrays.update(store.encode(ops.maximum(ids, 0), logits))
        return arrays, ops.all(finite)

    def _encode_list(self, ids, given):
        top = TopList.of(given, self.classes)
        arrays = {TEACHER_RIGHT: ops.equal(top.best, ids)}
        for store in self.stores:
            arrays.update(store.encode_list(ops.maximum(ids, 0), top))
        return arrays, True


def precomputed_shape(y, num_classes):
    """The shape of the logits that a teacher's outputs stand for.

    Args:
        y: what the data's first batch gives as labels.
        num_classes: integer or `None`, as given to `TeacherCache.write`.

    Returns:
        A tuple, [batch, ..., classes].

    Raises:
        ValueError: if the data carry none, or the number of classes is not
            known or another one.
    """
    kind = carried(y)
    if kind is None:
        found = sorted(y) if isinstance(y, dict) else "labels alone"
        raise ValueError(
            "A cache is written of a teacher, or of data that carry its "
            f"outputs. Received: teacher=None and {found}. Pass the teacher, "
            'or y with "teacher_logits", "teacher_log_probabilities", or '
            '"top_log_probabilities" and "top_ids".'
        )
    *rest, size = y[kind].shape
    if kind != TOP_LOG_PROBABILITIES:
        check_size(size, num_classes or size)
        return (*rest, size)
    check_shapes(y[TOP_IDS], y[kind])
    if num_classes is None:
        raise ValueError(
            "A list of the largest log-probabilities does not tell how many "
            f"classes there are. Received: lists of {size} and no "
            "`num_classes`. Pass the number of the student's classes."
        )
    check_width(size, num_classes)
    return (*rest, num_classes)


def outputs_fingerprint(y):
    """What tells one teacher's outputs from another's, as a fingerprint.

    Args:
        y: what the data's first batch gives as labels.

    Returns:
        A dict, as `teacher_fingerprint` gives of a teacher; its "weights" are
        a hash of the outputs of that batch.
    """
    digest = hashlib.sha256()
    kind = carried(y)
    names = [kind, TOP_IDS] if kind == TOP_LOG_PROBABILITIES else [kind]
    for name in names:
        values = np.ascontiguousarray(y[name])
        values = values.astype("float32" if name == kind else "int64")
        digest.update(f"{name}{values.shape[1:]}".encode())
        digest.update(values.tobytes())
    return {"weights": digest.hexdigest(), "graph": f"outputs: {kind}"}
