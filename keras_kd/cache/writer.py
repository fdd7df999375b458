"""Runs a teacher over a data set and writes what it computes."""

import base64
import dataclasses
import io
import time

import keras
import numpy as np

from keras_kd import distribution, fingerprint
from keras_kd.batch import TEACHER_RIGHT
from keras_kd.cache import stores
from keras_kd.cache.data import Source, class_ids, is_batched
from keras_kd.cache.manifest import CHECKSUM, Manifest
from keras_kd.cache.storage import Field, Table
from keras_kd.cache.teacher_pass import TeacherPass, count_right, logits_shape
from keras_kd.data_errors import raised_plainly
from keras_kd.logits import LogitReader
from keras_kd.losses import KDSampled
from keras_kd.states import assign_states, read_states, reset_states

PROGRESS = "writing.json"
_CHUNK_EXAMPLES, _CHUNK_BYTES = 8192, 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is decided before a teacher runs.

    Attributes:
        source: `Source`.
        teacher_pass: `TeacherPass`.
        manifest: `Manifest`, not whole yet.
    """

    source: Source
    teacher_pass: TeacherPass
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
):
    """The `Plan` of a cache; for arguments see `TeacherCache.write`."""
    _check_arguments(dataset, views, dtype, teacher, batch_size, losses)
    batched = is_batched(dataset, teacher)
    x, labels = _first_batch(dataset, batched)
    reader = LogitReader(teacher, teacher_output, role="teacher")
    *rest, classes = logits_shape(teacher, reader, x)
    label_shape = _label_shape(labels, len(rest) - 1)
    with raised_plainly():
        class_ids(labels, label_shape)
    if batched:
        batch_size = int(labels.shape[0])
    kept = stores.plan(losses, classes, dtype)
    fields = [each for store in kept for each in store.fields(label_shape)]
    if teacher_right:
        fields.append(Field(TEACHER_RIGHT, "uint8", label_shape))
    elements = int(dataset.cardinality())
    examples = elements * batch_size if batched else elements
    manifest = Manifest(
        teacher=fingerprint.teacher_fingerprint(teacher),
        teacher_output=reader.kind,
        stores=[store.describe() for store in kept],
        fields=[[each.name, each.dtype, each.shape] for each in fields],
        classes=classes,
        dtype=dtype,
        views=views.count,
        seed=views.seed,
        augmented=views.augment is not None,
        batched=batched,
        batch_size=batch_size,
        label_shape=label_shape,
        chunk=_chunk(fields, examples),
        elements=elements if elements >= 0 else None,
    )
    source = Source(dataset, views, batched, batch_size, label_shape)
    teacher_pass = TeacherPass(teacher, reader, kept, classes, batch_size)
    return Plan(source, teacher_pass, manifest)


def _check_arguments(dataset, views, dtype, teacher, batch_size, losses):
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            "A cache is written of a tf.data.Dataset, whose order it keeps. "
            f"Received: {type(dataset)}. Make one, as with "
            "tf.data.Dataset.from_tensor_slices((x, labels))."
        )
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "A cache is written of one pass over a data set. Received: an "
            "infinite one. Give it before `repeat`, and use `epochs` to train."
        )
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
    if distribution.spans_workers(distribution.strategy_of(teacher)):
        raise ValueError(
            "A cache is written by one process. Received: a teacher of a "
            "strategy that spans several. Load the teacher outside the scope "
            "of the strategy, on the chief, and let the others wait."
        )


def _first_batch(dataset, batched):
    """Input and labels of the first batch, or of a batch of one example."""
    for x, labels, *_ in dataset.take(1) if batched else dataset.batch(1):
        return x, labels["labels"] if isinstance(labels, dict) else labels
    raise ValueError(
        "A cache is written of the examples of a data set. Received: an "
        "empty one. Check its files and its filters."
    )


def _label_shape(labels, rank):
    """The shape of an example's class ids; a last axis of 1 may be added."""
    shape = tuple(int(size) for size in labels.shape[1:])
    return shape[:-1] if shape[-1:] == (1,) and len(shape) > rank else shape


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
    kept = read_states(teacher)
    try:
        while progress.view < manifest.views:
            _restore_states(teacher, progress)
            bar.add(progress.elements)
            view = _ViewWriter(folder, table, plan, progress)
            view.write(checkpoint_seconds, bar)
            progress = progress.of_next_view()
            folder.write_json(PROGRESS, vars(progress))
    finally:
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
        for element, checksums in self._plan.source.batches(
            progress.view, progress.elements
        ):
            self._check_size(len(checksums))
            arrays = self._run(*element)
            self._waiting.append({**arrays, CHECKSUM: checksums.numpy()})
            progress.elements += 1
            progress.examples += len(checksums)
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

    def _run(self, x, ids, weight=None):
        """What the teacher gives for a batch."""
        progress, teacher = self._progress, self._plan.teacher_pass
        stores.seek(teacher.stores, progress.view, progress.elements)
        arrays, finite = teacher.run(x, ids)
        if not finite:
            raise ValueError(
                "The teacher's logits are not finite. Received: NaN or "
                f"infinite logits from teacher {teacher.teacher.name!r} in "
                f"batch {progress.elements} of the data set. Check its "
                "weights, its input's preprocessing and its dtype (float16 "
                "overflows at 65504)."
            )
        right, labels = count_right(arrays[TEACHER_RIGHT], weight)
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
        states = read_states(self._plan.teacher_pass.teacher)
        if states:
            buffer = io.BytesIO()
            np.savez(buffer, *[a for arrays in states for a in arrays])
            progress.states = base64.b64encode(buffer.getvalue()).decode()
        self._folder.write_json(PROGRESS, vars(progress))


def _restore_states(teacher, progress):
    """The teacher's carried state as it was after what is written."""
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
