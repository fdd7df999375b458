"""Runs a teacher over a data set and writes what it computes."""

import base64
import dataclasses
import io
import time

import keras
import numpy as np

from keras_kd import data as any_data
from keras_kd import distribution, fingerprint
from keras_kd.batch import TEACHER_RIGHT, labels_of, refuse_missing_labels
from keras_kd.cache import stores
from keras_kd.cache.data import (
    Source,
    class_ids,
    is_batched,
    part_of,
)
from keras_kd.cache.manifest import CHECKSUM, Manifest
from keras_kd.cache.precomputed_pass import (
    PrecomputedPass,
    outputs_fingerprint,
    precomputed_shape,
)
from keras_kd.cache.storage import Field, Table
from keras_kd.cache.teacher_pass import TeacherPass, count_right, logits_shape
from keras_kd.data import num_rows
from keras_kd.logits import LogitReader
from keras_kd.losses import KD, KDSampled
from keras_kd.precomputed import carried
from keras_kd.states import assign_states, read_states, reset_states

PROGRESS = "writing.json"
_CHUNK_EXAMPLES, _CHUNK_BYTES = 8192, 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is decided before a teacher runs.

    Attributes:
        source: `Source`.
        teacher_pass: `TeacherPass`, or `PrecomputedPass` without a teacher.
        manifest: `Manifest`, not whole yet.
    """

    source: Source
    teacher_pass: object
    manifest: Manifest


def plan(
    dataset,
    teacher,
    teacher_output,
    losses,
    views,
    dtype,
    batch_size,
    teacher_right,
    num_classes=None,
    output=None,
):
    """The `Plan` of a cache; for arguments see `TeacherCache.write`."""
    _check_arguments(views, dtype, teacher, batch_size, losses)
    data = as_data(dataset, teacher, views, batch_size, output)
    x, y = _first_batch(data)
    if not (output is None or isinstance(y, dict)):
        raise ValueError(
            "Labels are a dict by output where one of the teacher's is named. "
            f"Received: output={output!r} and labels of type "
            f"{type(y).__name__}. Pass {{{output!r}: labels}}."
        )
    y = part_of(y, output)
    if teacher is None:
        *rest, classes = precomputed_shape(y, num_classes)
        kind, which = carried(y), outputs_fingerprint(y)
    else:
        reader = LogitReader(teacher, teacher_output, "teacher", output)
        *rest, classes = logits_shape(teacher, reader, x)
        kind, which = reader.kind, fingerprint.teacher_fingerprint(teacher)
    label_shape = _label_shape(labels_of(y), (*rest, classes), losses)
    class_ids(y, label_shape)
    if data.batched:
        batch_size = num_rows(x)
    kept = stores.plan(losses, classes, dtype)
    if teacher is None:
        teacher_pass = PrecomputedPass(kept, losses, y, classes)
    else:
        teacher_pass = TeacherPass(teacher, reader, kept, classes, batch_size)
    fields = [each for store in kept for each in store.fields(label_shape)]
    if teacher_right:
        fields.append(Field(TEACHER_RIGHT, "uint8", label_shape))
    examples = -1
    if data.elements is not None:
        examples = data.elements * (batch_size if data.batched else 1)
    manifest = Manifest(
        teacher=which,
        teacher_output=kind,
        stores=[store.describe() for store in kept],
        fields=[[each.name, each.dtype, each.shape] for each in fields],
        classes=classes,
        dtype=dtype,
        views=views.count,
        seed=views.seed,
        augmented=views.augment is not None,
        batched=data.batched,
        batch_size=batch_size,
        label_shape=label_shape,
        chunk=_chunk(fields, examples),
        elements=data.elements,
        output=output,
    )
    source = Source(data, views, batch_size, label_shape, output)
    return Plan(source, teacher_pass, manifest)


def as_data(dataset, teacher, views, batch_size, output=None):
    """The data set as `keras_kd.data.Data`, refused where it can't be kept."""
    data = any_data.of(dataset, batch_size, "The data of a cache")
    if any_data.is_tf_data(dataset):
        if data.is_infinite:
            raise ValueError(
                "A cache is written of one pass over a data set. Received: an "
                "infinite one. Give it before `repeat`, and use `epochs` to "
                "train."
            )
        dataset = data.dataset
        return any_data.TfData(dataset, is_batched(dataset, teacher, output))
    if views.augment is not None:
        raise ValueError(
            "Augmented views are made by a tf.data.Dataset. Received: "
            f"`augment` with {type(dataset).__name__}. Pass "
            "tf.data.Dataset.from_tensor_slices((x, labels)), or leave "
            "`augment` out."
        )
    return data


def _check_arguments(views, dtype, teacher, batch_size, losses):
    drawn = any(isinstance(loss, KDSampled) for loss in losses)
    differ = views.augment is not None or drawn
    if views.count < 1 or (views.count > 1 and not differ):
        raise ValueError(
            "Several views of an example differ by their augmentation, or by "
            f"the draws of KDSampled. Received: views={views.count}, augment="
            f"{views.augment}, losses={losses}. Pass a function of (x, seed) "
            "as `augment`, or views=1."
        )
    if dtype not in (stores.COMPACT, stores.EXACT):
        raise ValueError(
            f"Statistics are kept as {stores.COMPACT} or {stores.EXACT}. "
            f"Received: dtype={dtype!r}. Leave it out for {stores.COMPACT}."
        )
    if batch_size < 1:
        raise ValueError(
            "The teacher runs on batches of at least one example. Received: "
            f"batch_size={batch_size}. Leave it out for 256."
        )
    if teacher is not None and distribution.spans_workers(
        distribution.strategy_of(teacher)
    ):
        raise ValueError(
            "A cache is written by one process. Received: a teacher of a "
            "strategy that spans several. Load the teacher outside the scope "
            "of the strategy, on the chief, and let the others wait."
        )


def _first_batch(data):
    """Input and labels of the first batch, or of a batch of one example."""
    first = data.first()
    if first is None:
        raise ValueError(
            "A cache is written of the examples of a data set. Received: an "
            "empty one. Check its files and its filters."
        )
    if len(first) < 2:
        raise ValueError(
            "A teacher cache is written of dense (x, labels) or (x, labels, "
            "sample_weight). Received: data without labels. Map them to such "
            "tuples."
        )
    return first[:2]


def _label_shape(labels, logits_shape, losses):
    """The shape of an example's class ids; a last axis of 1 may be added.

    Soft labels have one of the number of classes.
    """
    rank = len(logits_shape) - 2
    for loss in losses:
        if labels is None and loss.label_reader is not None:
            refuse_missing_labels(loss.label_reader)
    if labels is None:
        return tuple(int(size) for size in logits_shape[1:-1])
    shape = tuple(int(size) for size in labels.shape[1:])
    if len(shape) == rank + 1 and shape[-1] == logits_shape[-1] != 1:
        _check_soft(losses)
        return shape[:-1]
    if shape[-1:] == (1,) and len(shape) > rank:
        shape = shape[:-1]
    if len(shape) != rank:
        raise ValueError(
            "Labels must be class ids, one for each vector of logits, or have "
            f"a share for each of the teacher's {logits_shape[-1]} classes. "
            f"Received: labels of shape {tuple(labels.shape)} for logits of "
            f"shape {tuple(logits_shape)}. Pass class ids."
        )
    return shape


def _check_soft(losses):
    """Refuses losses that need a number for each class of a soft label."""
    for loss in losses:
        if loss.statistics and loss.reads_labels and not _keeps_logits(loss):
            name = type(loss).__name__
            raise ValueError(
                f"{name} needs a number for each class of a soft label, as KD "
                "does. Received: soft labels and a cache for "
                f"{name}. Write it for KD, whose statistics serve every loss, "
                "or pass class ids."
            )


def _keeps_logits(loss):
    return loss.statistics == KD.statistics


def _chunk(fields, examples):
    """How many examples a chunk has, so that little of the last is unused."""
    largest = max(field.size for field in fields)
    limit = max(1, min(_CHUNK_EXAMPLES, _CHUNK_BYTES // largest))
    if examples <= 0:
        return limit
    return -(-examples // -(-examples // limit))


def write(folder, plan, checkpoint_seconds, verbose):
    """Writes what is missing of a cache, then that it is whole.

    After each write of statistics the progress is recorded, in one file with
    the teacher's carried state. Whatever is written twice is written with the
    same values, so that a writer may be killed and two may work at once.

    Args:
        folder: `Folder` with the plan's manifest.
        plan: `Plan`.
        checkpoint_seconds: number.
        verbose: 0 or 1.

    Raises:
        ValueError: if batches are of several sizes, views of different ones,
            or logits not finite.
    """
    manifest, teacher = plan.manifest, plan.teacher_pass.teacher
    table = Table(folder, manifest.arrays, manifest.chunk, create=True)
    progress = _Progress(**(folder.read_json(PROGRESS) or {}))
    bar = _progress_bar(manifest, verbose)
    kept = _states_of(teacher)
    try:
        while progress.view < manifest.views:
            _restore_states(teacher, progress)
            bar.add(progress.elements)
            view = _ViewWriter(folder, table, plan, progress)
            view.write(checkpoint_seconds, bar)
            progress = progress.of_next_view()
            folder.write_json(PROGRESS, vars(progress))
    finally:
        if kept:
            assign_states(teacher, kept)
    if verbose and bar.target is None:
        print()  # A bar of unknown length does not end its line.
    _finish(folder, manifest, progress)


@dataclasses.dataclass
class _Progress:
    """What is written already.

    Attributes:
        view: the one that is being written.
        elements: batches of it that are written.
        examples: likewise.
        sizes: list of the examples of each view before it.
        right: labels that the teacher got right, of all views.
        labels: how many labels that is out of.
        states: the teacher's carried state, as text.
    """

    view: int = 0
    elements: int = 0
    examples: int = 0
    sizes: list = dataclasses.field(default_factory=list)
    right: float = 0.0
    labels: float = 0.0
    states: str = ""

    def of_next_view(self):
        return _Progress(
            view=self.view + 1,
            sizes=[*self.sizes, self.examples],
            right=self.right,
            labels=self.labels,
        )


class _ViewWriter:
    """Writes the rest of one view."""

    def __init__(self, folder, table, plan, progress):
        self._folder = folder
        self._table = table
        self._plan = plan
        self._progress = progress
        self._waiting = []  # Arrays of batches that are not written yet.
        self._written = progress.examples

    def write(self, checkpoint_seconds, bar):
        progress, manifest = self._progress, self._plan.manifest
        saved = time.monotonic()
        for examples in self._plan.source.batches(
            progress.view, progress.elements
        ):
            rows = len(examples.ids)
            self._check_size(rows)
            arrays = self._run(examples)
            self._waiting.append({**arrays, CHECKSUM: examples.checksums})
            progress.elements += 1
            progress.examples += rows
            bar.add(1)
            if (
                progress.examples - self._written >= manifest.chunk
                or time.monotonic() - saved > checkpoint_seconds
            ):
                self._flush()
                saved = time.monotonic()
        if self._waiting:
            self._flush()

    def _check_size(self, rows):
        progress, size = self._progress, self._plan.manifest.batch_size
        if progress.examples != progress.elements * size or rows > size:
            raise ValueError(
                "All batches but the last must be of one size, and that one "
                f"not larger. Received: {progress.examples} examples in the "
                f"first {progress.elements} batches, the first of {size}, then "
                f"a batch of {rows}. Batch the data set once, at the end."
            )

    def _run(self, examples):
        """What the teacher gives for a batch."""
        progress, teacher = self._progress, self._plan.teacher_pass
        stores.seek(teacher.stores, progress.view, progress.elements)
        arrays, finite = teacher.run(examples)
        if not finite:
            raise ValueError(
                "The teacher's logits are not finite. Received: NaN or "
                f"infinite logits from {teacher.name} in "
                f"batch {progress.elements} of the data set. Check its "
                "weights, its input's preprocessing and its dtype (float16 "
                "overflows at 65504)."
            )
        right, labels = count_right(
            arrays[TEACHER_RIGHT], examples, self._plan.manifest.classes
        )
        progress.right += right
        progress.labels += labels
        return arrays

    def _flush(self):
        progress, names = self._progress, list(self._waiting[0])
        arrays = {
            name: np.concatenate([batch[name] for batch in self._waiting])
            for name in names
        }
        self._table.write(progress.view, self._written, arrays)
        self._waiting, self._written = [], progress.examples
        states = _states_of(self._plan.teacher_pass.teacher)
        if states:
            buffer = io.BytesIO()
            np.savez(buffer, *[a for arrays in states for a in arrays])
            progress.states = base64.b64encode(buffer.getvalue()).decode()
        self._folder.write_json(PROGRESS, vars(progress))


def _states_of(teacher):
    return [] if teacher is None else read_states(teacher)


def _restore_states(teacher, progress):
    """The teacher's carried state as it was after what is written."""
    if teacher is None:
        return
    reset_states(teacher)
    if progress.states:
        loaded = np.load(io.BytesIO(base64.b64decode(progress.states)))
        flat = iter([loaded[key] for key in loaded.files])
        kept = [[next(flat) for _ in arrays] for arrays in read_states(teacher)]
        assign_states(teacher, kept)


def _progress_bar(manifest, verbose):
    batches = manifest.elements
    if batches and not manifest.batched:
        batches = -(-batches // manifest.batch_size)
    target = batches * manifest.views if batches else None
    return keras.utils.Progbar(target, unit_name="batch", verbose=verbose)


def _finish(folder, manifest, progress):
    examples = progress.sizes[0]
    if len(set(progress.sizes)) > 1:
        raise ValueError(
            "Every pass over the data set must give the same examples. "
            f"Received: views of {progress.sizes} examples. Remove what is "
            f"random in the data set, and the folder {folder.path}."
        )
    elements = examples
    if manifest.batched:
        elements = -(-examples // manifest.batch_size)
    dataclasses.replace(
        manifest,
        elements=elements,
        examples=examples,
        teacher_accuracy=progress.right / max(progress.labels, 1),
    ).save(folder)
    folder.remove(PROGRESS)
