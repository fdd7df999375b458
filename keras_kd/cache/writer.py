"""Runs a teacher over a data set and writes what it computes."""

import base64
import dataclasses
import io
import time

import keras
import numpy as np

from keras_kd import distribution
from keras_kd.cache import fingerprint, stores
from keras_kd.cache.data import Source, class_ids, is_batched
from keras_kd.cache.manifest import CHECKSUM, Manifest
from keras_kd.cache.storage import Field, Table
from keras_kd.cache.teacher_pass import TeacherPass, count_classes, count_right
from keras_kd.data_errors import raised_plainly
from keras_kd.distiller import TEACHER_RIGHT
from keras_kd.logits import LogitReader
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
    """What will be written, of what, and how; see `TeacherCache.write`.

    Args:
        dataset: a `tf.data.Dataset`.
        teacher: a `keras.Model`.
        teacher_output: what it gives, or `None`.
        losses: list of `DistillationLoss`.
        views: `Views`.
        dtype: "float16" or "float32".
        batch_size: integer, used for a data set of examples.
        teacher_right: boolean.

    Returns:
        A `Plan`.

    Raises:
        ValueError: for bad arguments.
    """
    _check_arguments(dataset, views, dtype, teacher, batch_size)
    batched = is_batched(dataset, teacher)
    x, labels = _first_batch(dataset, batched)
    reader = LogitReader(teacher, teacher_output, role="teacher")
    classes = count_classes(teacher, reader, x)
    label_shape = _label_shape(labels, teacher)
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


def _check_arguments(dataset, views, dtype, teacher, batch_size):
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
    if views.count < 1 or (views.count > 1 and views.augment is None):
        raise ValueError(
            "Several views of an example differ by their augmentation. "
            f"Received: views={views.count}, augment={views.augment}. Pass a "
            "function of (x, seed) as `augment`, or views=1."
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


def _label_shape(labels, teacher):
    """The shape of an example's class ids; a last axis of 1 may be added."""
    outputs = getattr(teacher, "outputs", None)
    shape = tuple(int(size) for size in labels.shape[1:])
    rank = len(outputs[0].shape) - 2 if outputs else 0
    return shape[:-1] if shape[-1:] == (1,) and len(shape) > rank else shape


def _chunk(fields, examples):
    """How many examples a chunk has, so that little of the last is unused."""
    largest = max(field.size for field in fields)
    limit = max(1, min(_CHUNK_EXAMPLES, _CHUNK_BYTES // largest))
    if examples <= 0:
        return limit
    return -(-examples // -(-examples // limit))


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


class CacheWriter:
    """Writes a cache, chunk by chunk.

    After each write of statistics the progress is noted, in one file with
    the teacher's carried state; the manifest is marked as whole at the end.
    Whatever is written twice is written with the same values, so that a
    writer may be killed and two may work at once.

    Args:
        folder: `Folder`.
        plan: `Plan`.
        checkpoint_seconds: number.
        verbose: 0 or 1.
    """

    def __init__(self, folder, plan, checkpoint_seconds, verbose):
        self.folder = folder
        self.source = plan.source
        self.manifest = plan.manifest
        self.checkpoint_seconds = checkpoint_seconds
        self.verbose = verbose
        self._pass = plan.teacher_pass
        self._teacher = plan.teacher_pass.teacher

    def run(self):
        """Writes what is missing, then that the cache is whole."""
        table = Table(
            self.folder,
            self.manifest.arrays,
            self.manifest.chunk,
            create=True,
        )
        progress = _Progress(**(self.folder.read_json(PROGRESS) or {}))
        bar = self._progress_bar()
        kept = read_states(self._teacher)
        try:
            while progress.view < self.manifest.views:
                progress = self._write_view(table, progress, bar)
        finally:
            assign_states(self._teacher, kept)
        if self.verbose:
            bar.update(bar.target or bar._seen_so_far, finalize=True)
        self._finish(progress)

    def _progress_bar(self):
        batches = self.manifest.elements
        if batches and not self.manifest.batched:
            batches = -(-batches // self.manifest.batch_size)
        target = batches * self.manifest.views if batches else None
        return keras.utils.Progbar(
            target, unit_name="batch", verbose=self.verbose
        )

    def _write_view(self, table, progress, bar):
        """Writes the rest of a view; returns where the next one begins."""
        self._restore_states(progress)
        block = _Block()
        bar.add(progress.elements)
        batches = self.source.batches(progress.view, progress.elements)
        for element, checksums in batches:
            self._check_size(progress, len(checksums))
            self._add(block, progress, element, checksums)
            bar.add(1)
            if (
                block.examples >= self.manifest.chunk
                or block.seconds > self.checkpoint_seconds
            ):
                self._flush(table, block, progress)
                block = _Block()
        if block.examples:
            self._flush(table, block, progress)
        done = _Progress(
            view=progress.view + 1,
            sizes=[*progress.sizes, progress.examples],
            right=progress.right,
            labels=progress.labels,
        )
        self._save(done)
        return done

    def _check_size(self, progress, rows):
        size = self.manifest.batch_size
        if progress.examples != progress.elements * size or rows > size:
            raise ValueError(
                "All batches but the last must be of one size, and that one "
                f"not larger. Received: {progress.examples} examples in the "
                f"first {progress.elements} batches, the first of {size}, then "
                f"a batch of {rows}. Batch the data set once, at the end."
            )

    def _add(self, block, progress, element, checksums):
        """Runs the teacher on a batch."""
        x, ids, *weight = element
        arrays, finite = self._pass.run(x, ids)
        if not finite:
            raise ValueError(
                "The teacher's logits are not finite. Received: NaN or "
                f"infinite logits from teacher {self._teacher.name!r} in batch "
                f"{progress.elements} of the data set. Check its weights, its "
                "input's preprocessing and its dtype (float16 overflows at "
                "65504)."
            )
        right, labels = count_right(arrays[TEACHER_RIGHT], *weight)
        progress.right += right
        progress.labels += labels
        progress.elements += 1
        progress.examples += len(checksums)
        arrays[CHECKSUM] = checksums.numpy()
        block.add({f.name: arrays[f.name] for f in self.manifest.arrays})

    def _flush(self, table, block, progress):
        start = progress.examples - block.examples
        table.write(progress.view, start, block.arrays())
        states = read_states(self._teacher)
        if states:
            buffer = io.BytesIO()
            np.savez(buffer, *[a for arrays in states for a in arrays])
            progress.states = base64.b64encode(buffer.getvalue()).decode()
        self._save(progress)

    def _save(self, progress):
        self.folder.write_json(PROGRESS, dataclasses.asdict(progress))

    def _restore_states(self, progress):
        """The teacher's carried state as it was after these batches."""
        states = read_states(self._teacher)
        if not states:
            return
        if not progress.states:
            reset_states(self._teacher)
            return
        loaded = np.load(io.BytesIO(base64.b64decode(progress.states)))
        flat = iter([loaded[key] for key in loaded.files])
        kept = [[next(flat) for _ in arrays] for arrays in states]
        assign_states(self._teacher, kept)

    def _finish(self, progress):
        examples = progress.sizes[0]
        if len(set(progress.sizes)) > 1:
            raise ValueError(
                "Every pass over the data set must give the same examples. "
                f"Received: views of {progress.sizes} examples. Remove what is "
                f"random in the data set, and the folder {self.folder.path}."
            )
        elements = examples
        if self.manifest.batched:
            elements = -(-examples // self.manifest.batch_size)
        dataclasses.replace(
            self.manifest,
            elements=elements,
            examples=examples,
            teacher_accuracy=progress.right / max(progress.labels, 1),
        ).save(self.folder)
        self.folder.remove(PROGRESS)


class _Block:
    """Batches that are not written yet."""

    def __init__(self):
        self.examples = 0
        self._batches = []
        self._began = time.monotonic()

    @property
    def seconds(self):
        return time.monotonic() - self._began

    def add(self, arrays):
        self._batches.append(arrays)
        self.examples += len(next(iter(arrays.values())))

    def arrays(self):
        return {
            name: np.concatenate([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }
