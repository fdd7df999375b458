"""Writes a teacher cache, and goes on with one that was cut short."""

import io
import time
import zlib

import keras
import numpy as np

from keras_kd import distribution
from keras_kd.batch import TEACHER_RIGHT
from keras_kd.cache import fingerprint, records, stores
from keras_kd.cache.teacher_pass import TeacherPass, count_right
from keras_kd.outputs import to_logits
from keras_kd.states import assign_states, read_states, reset_states

_LARGEST_PART = 64 * 2**20


class CacheWriter:
    """Runs a teacher over a data set, part by part.

    A part is a file of records and what is needed to go on after it. The list
    of parts is written anew after each of them, the manifest after the last.

    Args:
        path: string.
        dataset: see `TeacherCache.write`, as the following.
        teacher: a `keras.Model`.
        losses: list of `DistillationLoss`.
        augment: optional function.
        views: integer.
        seed: integer.
        dtype: "float16" or "float32".
        batch_size: integer, used for a data set of examples.
        teacher_right: boolean.
        checkpoint_seconds: number.
        verbose: 0 or 1.
    """

    def __init__(
        self,
        path,
        dataset,
        teacher,
        losses,
        augment,
        views,
        seed,
        dtype,
        batch_size,
        teacher_right,
        checkpoint_seconds,
        verbose,
    ):
        self.path = path
        self.dataset = dataset
        self.teacher = teacher
        self.views = views
        self.seed = seed
        self.checkpoint_seconds = checkpoint_seconds
        self.verbose = verbose
        _check_arguments(dataset, views, augment, dtype, teacher)
        self.batched = records.is_batched(dataset, teacher)
        x, labels, *_ = self._first_element()
        label_shape = tuple(labels.shape)
        if self.batched:
            batch_size, *label_shape = label_shape
        self.batch_size = batch_size
        self.label_shape = tuple(label_shape)
        self.classes = self._count_classes(x)
        self.stores = stores.plan(losses, self.classes, dtype)
        self.fields = [
            field
            for store in self.stores
            for field in store.fields(self.label_shape)
        ]
        if teacher_right:
            self.fields.append(
                stores.Field(TEACHER_RIGHT, "uint8", self.label_shape)
            )
        self.identity = self._identity(dtype, augment)
        self._pass = TeacherPass(
            dataset,
            teacher,
            self.stores,
            augment,
            seed,
            self.batched,
            self.batch_size,
        )

    def run(self):
        """Writes what is missing, then the manifest."""
        progress = self._progress()
        records.gfile().makedirs(self.path)
        self._save(progress)
        bar = self._progress_bar()
        kept = read_states(self.teacher)
        try:
            for view in range(self.views):
                self._write_view(view, progress, bar)
        finally:
            assign_states(self.teacher, kept)
        if self.verbose:
            bar.update(bar.target or bar._seen_so_far, finalize=True)
        self._finish(progress)

    # -- before ----------------------------------------------------------------

    def _first_element(self):
        for element in self.dataset.take(1):
            return element
        raise ValueError(
            "A cache is written of the examples of a data set. Received: an "
            "empty one. Check its files and its filters."
        )

    def _count_classes(self, x):
        outputs = getattr(self.teacher, "outputs", None)
        if outputs:
            return outputs[0].shape[-1]
        return to_logits(self.teacher, self.teacher(x, training=False)).shape[
            -1
        ]

    def _identity(self, dtype, augment):
        """All that decides what is in the cache, in JSON's types."""
        return {
            "format": records.FORMAT,
            "teacher": fingerprint.teacher_fingerprint(self.teacher),
            "stores": [store.describe() for store in self.stores],
            "fields": [[f.name, f.dtype, list(f.shape)] for f in self.fields],
            "classes": self.classes,
            "dtype": dtype,
            "views": self.views,
            "seed": self.seed,
            "augmented": augment is not None,
            "batched": self.batched,
            "batch_size": int(self.batch_size),
            "label_shape": list(self.label_shape),
            "samples": records.compared_samples(
                self.dataset,
                self.batched,
                self.batch_size,
                self.seed,
                augment,
            ),
        }

    def _progress(self):
        """What is written already; refuses what someone else wrote."""
        found = records.read_json(records.join(self.path, records.PROGRESS))
        if found is None:
            names = (
                records.gfile().listdir(self.path)
                if records.gfile().isdir(self.path)
                else []
            )
            if names:
                raise ValueError(
                    "A cache is written to a new folder. Received: "
                    f"{self.path} with {sorted(names)[:5]}. Choose another "
                    "path."
                )
            return {"identity": self.identity, "parts": [], "done": []}
        differences = identity_differences(found["identity"], self.identity)
        if differences:
            raise ValueError(
                f"{self.path} holds the beginning of another cache. Received: "
                f"{'; '.join(differences)}. Choose another path, or remove "
                "the folder."
            )
        return found

    def _progress_bar(self):
        batches = int(self.dataset.cardinality())
        if not self.batched and batches > 0:
            batches = -(-batches // self.batch_size)
        target = batches * self.views if batches > 0 else None
        return keras.utils.Progbar(
            target, unit_name="batch", verbose=self.verbose
        )

    # -- one view --------------------------------------------------------------

    def _write_view(self, view, progress, bar):
        mine = [part for part in progress["parts"] if part["view"] == view]
        done = sum(part["batches"] for part in mine)
        self._restore_state(mine)
        if view in progress["done"]:
            bar.update(bar._seen_so_far + done)
            return
        part = _Part(view, len(mine))
        last = None
        bar.update(bar._seen_so_far + done)
        for number, element in enumerate(
            self._pass.batches(view, done), start=done
        ):
            rows = self._keep(part, element, number)
            if last is not None and last < self.batch_size:
                raise ValueError(
                    "All batches but the last must be of one size. Received: "
                    f"batch {number - 1} with {last} examples, the others with "
                    f"{self.batch_size}. Batch the data set once, at the end."
                )
            last = rows
            bar.update(bar._seen_so_far + 1)
            if (
                part.bytes > _LARGEST_PART
                or part.seconds > self.checkpoint_seconds
            ):
                self._close(part, progress)
                part = _Part(view, part.number + 1)
        if part.batches:
            self._close(part, progress)
        progress["done"].append(view)
        self._save(progress)

    def _keep(self, part, element, number):
        """Runs the teacher on a batch; returns its number of examples."""
        x, labels, *weight = element
        rows = int(labels.shape[0])
        arrays, finite = self._pass.run(x, labels)
        if not finite:
            raise ValueError(
                "The teacher's logits are not finite. Received: NaN or "
                f"infinite logits from teacher {self.teacher.name!r} in batch "
                f"{number} of the data set. Check its weights, its input's "
                "preprocessing and its dtype (float16 overflows at 65504)."
            )
        right, labels = count_right(arrays[TEACHER_RIGHT], *weight)
        part.right += right
        part.labels += labels
        part.add(pack(arrays, self.fields), rows)
        return rows

    # -- files -----------------------------------------------------------------

    def _close(self, part, progress):
        """Writes a part's records and state, then that it is there."""
        data = b"".join(part.chunks)
        records.write_whole(records.join(self.path, part.file), data)
        states = read_states(self.teacher)
        if states:
            buffer = io.BytesIO()
            np.savez(buffer, *[a for arrays in states for a in arrays])
            records.write_whole(
                records.join(self.path, part.state_file), buffer.getvalue()
            )
        progress["parts"].append(part.describe(zlib.crc32(data)))
        self._save(progress)

    def _save(self, progress):
        path = records.join(self.path, records.PROGRESS)
        records.write_whole(path, progress)

    def _restore_state(self, parts):
        """The teacher's carried state as it was after these parts."""
        states = read_states(self.teacher)
        if not states:
            return
        if not parts:
            reset_states(self.teacher)
            return
        name = _Part(parts[-1]["view"], len(parts) - 1).state_file
        path = records.join(self.path, name)
        with records.gfile().GFile(path, "rb") as file:
            loaded = np.load(io.BytesIO(file.read()))
        flat = iter([loaded[key] for key in loaded.files])
        kept = [[next(flat) for _ in arrays] for arrays in states]
        assign_states(self.teacher, kept)

    def _finish(self, progress):
        parts = progress["parts"]
        sizes = [
            sum(p["examples"] for p in parts if p["view"] == view)
            for view in range(self.views)
        ]
        if len(set(sizes)) > 1:
            raise ValueError(
                "Every pass over the data set must give the same examples. "
                f"Received: views of {sizes} examples. Remove what is random "
                f"in the data set, and the folder {self.path}."
            )
        first = [p for p in parts if p["view"] == 0]
        manifest = {
            **self.identity,
            "examples": sizes[0],
            "batches": sum(p["batches"] for p in first),
            "teacher_accuracy": sum(p["right"] for p in parts)
            / max(sum(p["labels"] for p in parts), 1),
            "parts": parts,
        }
        # The empty file fills up the shorter lists of views' files.
        records.write_whole(records.join(self.path, records.EMPTY), b"")
        records.write_whole(records.join(self.path, records.MANIFEST), manifest)
        records.gfile().remove(records.join(self.path, records.PROGRESS))
        for name in records.gfile().glob(records.join(self.path, "*.state")):
            records.gfile().remove(name)


class _Part:
    """Records that are not in a file yet."""

    def __init__(self, view, number):
        self.view = view
        self.number = number
        self.file = f"view-{view:05d}-{number:05d}.records"
        self.state_file = f"view-{view:05d}-{number:05d}.state"
        self.chunks = []
        self.batches = self.examples = self.bytes = 0
        self.right = self.labels = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self):
        return time.monotonic() - self._began

    def add(self, chunk, examples):
        self.chunks.append(chunk)
        self.batches += 1
        self.examples += examples
        self.bytes += len(chunk)

    def describe(self, checksum):
        return {
            "file": self.file,
            "view": self.view,
            "batches": self.batches,
            "examples": self.examples,
            "right": self.right,
            "labels": self.labels,
            "checksum": checksum,
        }


def identity_differences(kept, found):
    """What differs between two caches' identities, in words.

    Args:
        kept: dict.
        found: dict.

    Returns:
        List of strings.
    """
    differences = []
    for key in found:
        if key == "samples":
            same = len(kept[key]) == len(found[key]) and all(
                fingerprint.same_sample(one[kind], other[kind])
                for one, other in zip(kept[key], found[key], strict=True)
                for kind in one
                if kind in other
            )
            if not same:
                differences.append(
                    "inputs or labels of the first batches (another data set, "
                    "order, preprocessing or `augment`)"
                )
        elif kept.get(key) != found[key]:
            differences.append(
                f"{key}: {kept.get(key)} in the cache, {found[key]} now"
            )
    return differences


def _check_arguments(dataset, views, augment, dtype, teacher):
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
    if views < 1 or (views > 1 and augment is None):
        raise ValueError(
            "Several views of an example differ by their augmentation. "
            f"Received: views={views}, augment={augment}. Pass a function of "
            "(x, seed) as `augment`, or views=1."
        )
    if dtype not in (stores.COMPACT, stores.EXACT):
        raise ValueError(
            f"Statistics are kept as {stores.COMPACT} or {stores.EXACT}. "
            f"Received: dtype={dtype!r}. Leave it out for {stores.COMPACT}."
        )
    if distribution.spans_workers(distribution.strategy_of(teacher)):
        raise ValueError(
            "A cache is written by one process. Received: a teacher of a "
            "strategy that spans several. Load the teacher outside the scope "
            "of the strategy, on the chief, and let the others wait."
        )


def pack(arrays, fields):
    """Records of examples.

    Args:
        arrays: dict by field name of [examples, ...] arrays.
        fields: list of `Field`s, in the order of a record.

    Returns:
        Bytes.
    """
    columns = []
    for field in fields:
        array = np.ascontiguousarray(arrays[field.name].astype(field.dtype))
        columns.append(array.view(np.uint8).reshape(len(array), field.size))
    return np.concatenate(columns, axis=1).tobytes()
