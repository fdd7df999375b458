"""A data set beside what a cache keeps of it, compared example by example.

Of a `tf.data.Dataset` this is another one; of other data, batch after batch of
NumPy arrays.
"""

import dataclasses

import keras
import numpy as np

from keras_kd.batch import (
    LABELS,
    STATISTICS_TEMPERATURE,
    TEACHER_CLASSES,
    TEACHER_FINGERPRINT,
    TEACHER_RIGHT,
    labels_of,
)
from keras_kd.cache.data import (
    Views,
    class_ids,
    example_checksums,
    kept_labels,
    part_of,
)
from keras_kd.cache.manifest import CHECKSUM, Manifest
from keras_kd.cache.storage import Table
from keras_kd.cache.stores import LogitsStore, OwnStore, Store
from keras_kd.data import num_rows
from keras_kd.data_errors import DataError
from keras_kd.fingerprint import teacher_number

# What is read with the statistics of each example, and not passed on.
_POSITION, _VIEW = "position", "view"
_OWN = {CHECKSUM, _POSITION, _VIEW}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a data set is read with a cache.

    Attributes:
        path: of the cache, for messages.
        manifest: `Manifest`.
        table: `Table`.
        views: `Views`.
        check: whether every example is compared.
        store: the `Store` that is read; `None` for none.
        wanted: the `Store` that the loss would have for itself.
    """

    path: str
    manifest: Manifest
    table: Table
    views: Views
    check: bool = True
    store: Store | None = None
    wanted: Store | None = None

    def __post_init__(self):
        # Now, as a store of a user's own loss runs the loss to name them.
        names = [CHECKSUM]
        if self.store is not None:
            store = self.store
            if isinstance(store, OwnStore):
                store = store.with_loss_of(self.wanted)
            fields = store.fields(tuple(self.manifest.label_shape))
            names += [field.name for field in fields]
        if TEACHER_RIGHT in [each.name for each in self.manifest.statistics]:
            names.append(TEACHER_RIGHT)
        object.__setattr__(self, "_names", names)

    def one_pass(self, dataset, view):
        """The data set beside what the cache keeps, for one epoch.

        Args:
            dataset: `tf.data.Dataset`, as it was when the cache was written.
            view: int64 scalar tensor.

        Returns:
            A `tf.data.Dataset` of (element, kept), kept a dict by name of
            what `merged` takes.
        """
        import tensorflow as tf

        manifest = self.manifest
        elements = dataset.apply(
            tf.data.experimental.assert_cardinality(manifest.elements)
        )
        # A block is a chunk: none is read twice.
        blocks = tf.data.Dataset.range(-(-manifest.examples // manifest.chunk))
        blocks = blocks.map(lambda number: self._block(number, view))
        blocks = blocks.prefetch(1)
        if manifest.batched:
            records = blocks.rebatch(manifest.batch_size)
        else:
            records = blocks.unbatch()
        return tf.data.Dataset.zip(elements, records)

    def _block(self, number, view):
        """What is kept of the examples of a chunk, as tensors."""
        import tensorflow as tf

        chunk, examples = self.manifest.chunk, self.manifest.examples
        empty = self._read(0, 0, 0)

        def read(number, view):
            start = int(number) * chunk
            stop = min(start + chunk, examples)
            return list(self._read(int(view), start, stop).values())

        dtypes = [array.dtype for array in empty.values()]
        arrays = tf.numpy_function(read, [number, view], dtypes)
        kept = dict(zip(empty, arrays, strict=True))
        for name, array in kept.items():
            array.set_shape((None, *empty[name].shape[1:]))
        rows = tf.range(tf.size(kept[CHECKSUM], tf.int64))
        kept[_POSITION] = number * chunk + rows
        kept[_VIEW] = tf.zeros_like(rows) + view
        return kept

    def _read(self, view, start, stop):
        """Dict of NumPy arrays, decoded."""
        return self._decoded(self.table.read(view, start, stop, self._names))

    def _decoded(self, arrays):
        found = {CHECKSUM: arrays[CHECKSUM]}
        if self.store is not None:
            found.update(self.store.decode(arrays, self.wanted))
        if TEACHER_RIGHT in arrays:
            found[TEACHER_RIGHT] = arrays[TEACHER_RIGHT].astype(bool)
        return found

    def augmented(self, passed):
        """The passed data, inputs augmented where there are views."""
        import tensorflow as tf

        if self.views.augment is None:
            return passed
        batched = self.manifest.batched

        def view_of(element, kept):
            x, *rest = element
            view, position = kept[_VIEW], kept[_POSITION]
            if batched:
                view, position = view[0], position[0]
            return (self.views.of(x, view, position, batched), *rest), kept

        return passed.map(view_of, num_parallel_calls=tf.data.AUTOTUNE)

    def merged(self, passed, batched):
        """The passed data as (x, y[, sample_weight]), y a dict.

        Args:
            passed: `tf.data.Dataset` of (element, kept).
            batched: whether these are batches.
        """
        import tensorflow as tf

        def of_one(element, kept):
            batch = tf.nest.map_structure(lambda t: t[None], (element, kept))
            return tf.nest.map_structure(lambda t: t[0], self._merge(*batch))

        merge = self._merge if batched else of_one
        return passed.map(merge, num_parallel_calls=tf.data.AUTOTUNE)

    def _merge(self, element, kept):
        import tensorflow as tf

        x, given, *weight = element
        labels = part_of(given, self.manifest.output)
        if self.check:
            x = self._compared(x, labels, kept)
        y = labels if isinstance(labels, dict) else {LABELS: labels}
        y = {**y, **{k: v for k, v in kept.items() if k not in _OWN}}
        rows = tf.shape(kept[CHECKSUM])
        for name, value in self.marks.items():
            y[name] = tf.fill(rows, value)
        if TEACHER_RIGHT not in y and "top_classes" in y:
            best = y["top_classes"][..., 0]
            ids = self._ids_of(y, best)
            if ids is not None:
                y[TEACHER_RIGHT] = tf.cast(best, tf.int64) == ids
        return (x, self._of_all_outputs(given, y), *weight)

    def _of_all_outputs(self, given, y):
        """Labels by output, with what is kept of one of them."""
        output = self.manifest.output
        return y if output is None else {**given, output: y}

    def _ids_of(self, y, like):
        """[batch, *label_shape] int64 class ids, or `None` without labels."""
        import tensorflow as tf

        labels = y.get(LABELS)
        if labels is None:
            return None
        if labels.shape.rank == like.shape.rank + 1 and labels.shape[-1] != 1:
            return tf.argmax(labels, axis=-1)
        return tf.cast(tf.reshape(labels, tf.shape(like)), tf.int64)

    def _compared(self, x, labels, kept):
        """The input, once the host has compared it with what is kept."""
        import tensorflow as tf

        labels = labels_of(labels)
        labels = [] if labels is None else [labels]
        flat = keras.tree.flatten(x)

        def compare(wanted, positions, *arrays):
            given, inputs = arrays[: len(labels)], arrays[len(labels) :]
            y = given[0] if given else {}
            self.compare(list(inputs), y, wanted, positions)
            return np.bool_(True)

        arguments = [kept[CHECKSUM], kept[_POSITION], *labels, *flat]
        compared = tf.numpy_function(compare, arguments, tf.bool)
        with tf.control_dependencies([compared]):
            flat[0] = tf.identity(flat[0])
        return keras.tree.pack_sequence_as(x, flat)

    @property
    def marks(self):
        """What is the same for all examples: whose statistics, and of what."""
        number = teacher_number(self.manifest.teacher)
        marks = {TEACHER_FINGERPRINT: np.int32(number)}
        # The number of logits is seen.
        if self.store is not None and not isinstance(self.store, LogitsStore):
            marks[TEACHER_CLASSES] = np.int32(self.manifest.classes)
        if self.wanted is not None and self.wanted.temperature is not None:
            temperature = np.float32(self.wanted.temperature)
            marks[STATISTICS_TEMPERATURE] = temperature
        return marks

    def statistics(self, view, positions):
        """What is kept of some examples, as entries of y.

        Args:
            view: integer.
            positions: [n] integers in [0, examples).

        Returns:
            Dict of [n, ...] NumPy arrays.
        """
        kept = self._decoded(self.table.read_at(view, positions, self._names))
        return self._entries(kept)

    def joined(self, element, view, positions):
        """A batch with what is kept of its examples.

        Args:
            element: (x, labels[, sample_weight]), NumPy arrays.
            view: integer.
            positions: [n] integers, of the batch's examples.

        Returns:
            (x, y[, sample_weight]), y a dict.

        Raises:
            DataError: if the batch is not what the teacher saw.
        """
        x, given, *weight = element
        labels = part_of(given, self.manifest.output)
        inside = positions[positions < self.manifest.examples]
        kept = self._decoded(self.table.read_at(view, inside, self._names))
        if self.check or len(inside) < num_rows(x):
            self.compare(x, labels, kept[CHECKSUM], positions)
        y = labels if isinstance(labels, dict) else {LABELS: labels}
        y = {**y, **self._entries(kept)}
        known = TEACHER_RIGHT in y or LABELS not in y
        if not known and "top_classes" in y:
            ids = class_ids(labels, tuple(self.manifest.label_shape))
            y[TEACHER_RIGHT] = y["top_classes"][..., 0] == ids
        return (x, self._of_all_outputs(given, y), *weight)

    def _entries(self, kept):
        y = {k: v for k, v in kept.items() if k not in _OWN}
        rows = kept[CHECKSUM].shape
        return y | {k: np.full(rows, v) for k, v in self.marks.items()}

    def compare(self, x, labels, wanted, positions):
        """Refuses a batch that is not what the teacher saw.

        Args:
            x: input of a batch, NumPy arrays.
            labels: its labels.
            wanted: checksums of what the teacher saw.
            positions: of these examples in the data set.

        Raises:
            DataError: naming the first example that differs.
        """
        found = example_checksums(
            x, kept_labels(labels, tuple(self.manifest.label_shape))
        )
        if not np.array_equal(found, wanted):
            self._refuse(found, wanted, positions)

    def _refuse(self, found, wanted, positions):
        rows = min(len(found), len(wanted))
        differ = np.flatnonzero(found[:rows] != wanted[:rows])
        if len(differ):
            received = (
                f"{len(differ)} of {rows} examples with another input or "
                f"label, the first at position {positions[differ[0]]} of "
                f"{self.manifest.examples}"
            )
        else:
            received = (
                f"a batch of {len(found)} examples at position "
                f"{positions[0]}, where the cache has {len(wanted)}"
            )
        raise self.not_these_data(received)

    def not_these_data(self, received):
        """The error that says that the data differ."""
        return DataError(
            "The data must be what the teacher saw when the cache was written, "
            f"in the same order. Received: {received}, for the cache at "
            f"{self.path}. Pass the data set that `write` was given, "
            "unshuffled (shuffle after `attach`, or by `epochs`), or write "
            "another cache."
        )
