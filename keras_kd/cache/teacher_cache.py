"""The teacher cache: what losses need from a teacher, computed once.

A cache is a folder. Its statistics are in files of records of one size, one
record an example, which `tf.data.FixedLengthRecordDataset` reads from local
disks and remote paths alike. Of the formats at hand that one alone adds no
byte to an example: TFRecord adds 16 and an `Example` more, and
`Dataset.save` can resume only a pipeline that runs inside tf.data, which a
teacher under a distribution strategy does not. A manifest, written last, says
what is kept, of which teacher and data, with a checksum of every file.
"""

import os
import zlib

import keras
import numpy as np

from keras_kd.batch import LABELS, STATISTICS_TEMPERATURE, TEACHER_RIGHT
from keras_kd.cache import fingerprint, records, stores, verification
from keras_kd.cache.reader import RecordReader
from keras_kd.cache.writer import CacheWriter, identity_differences, pack
from keras_kd.distribution import shard_by_example


class TeacherCache:
    """A teacher's statistics of a data set, kept in a folder.

    Opens a cache that `TeacherCache.write` has made.

    Args:
        path: the folder, local or remote.
        check_files: whether to read all files and compare their checksums;
            sizes are compared in any case.

    Raises:
        FileNotFoundError: if there is no cache, or writing did not end.
        ValueError: if files are missing or damaged.

    Example:
    ```python
    cache = kd.TeacherCache.write("cache", train, teacher, kd.KDPt())
    distiller = kd.Distiller(student)  # No teacher from here on.
    distiller.compile(optimizer="adam", loss=kd.KDPt())
    distiller.fit(cache.attach(train), epochs=10)
    ```
    """

    def __init__(self, path, check_files=True):
        self.path = os.fspath(path)
        self._manifest = _read_manifest(self.path)
        self._stores = [
            stores.read_store(description, self._manifest["dtype"])
            for description in self._manifest["stores"]
        ]
        self._fields = [
            stores.Field(name, dtype, tuple(shape))
            for name, dtype, shape in self._manifest["fields"]
        ]
        self._augment = None
        self._reader = RecordReader(self.path, self._manifest, self._fields)
        self._reader.check_files(check_files)

    # -- what is in it ---------------------------------------------------------

    @property
    def examples(self):
        """Number of examples of the data set."""
        return self._manifest["examples"]

    @property
    def views(self):
        """Number of augmented views of each example."""
        return self._manifest["views"]

    @property
    def teacher_accuracy(self):
        """Share of labels (of all views) that the teacher got right."""
        return self._manifest["teacher_accuracy"]

    @property
    def record_bytes(self):
        """Bytes kept of an example (with all its tokens) in each view."""
        return self._reader.record_bytes

    # -- writing ---------------------------------------------------------------

    @classmethod
    def write(
        cls,
        path,
        dataset,
        teacher,
        losses,
        augment=None,
        views=1,
        seed=0,
        dtype="float16",
        batch_size=256,
        teacher_right=False,
        checkpoint_seconds=30,
        verbose=1,
    ):
        """Runs a teacher over a data set and keeps what losses need.

        Writing that was cut short goes on where it stood; a whole cache that
        fits is used as it is, and one that does not is refused, never
        overwritten.

        Args:
            path: folder of the cache.
            dataset: a finite `tf.data.Dataset` of (x, labels[,
                sample_weight]) in an order that is the same every time, of
                examples or of batches, all but the last of one size. Shuffle
                after `attach`, or by `epochs`.
            teacher: a `keras.Model`; under its strategy, if it was made in
                the scope of one. A stateful one starts from the state zero.
            losses: a `DistillationLoss` or a list of them.
            augment: optional function of (x, seed) to the teacher's and the
                student's input, made of stateless random ops; x is one
                example, seed two int64.
            views: how many augmented views of each example are kept.
            seed: integer, of the views.
            dtype: "float16", exact enough for training (the loss keeps three
                digits), or "float32".
            batch_size: for the teacher, where `dataset` is of examples.
            teacher_right: whether to keep also, in one byte, if the teacher's
                largest logit is the label's, for the histograms of w by group.
            checkpoint_seconds: after how many seconds at most what was
                computed is safe.
            verbose: 0 for no progress bar.

        Returns:
            A `TeacherCache`.

        Raises:
            ValueError: for an infinite or empty data set, one of batches of
                several sizes, teacher logits that are not finite (naming the
                batch), or a cache of something else at `path`, naming the
                difference.
        """
        losses = keras.tree.flatten(losses)
        writer = CacheWriter(
            path=os.fspath(path),
            dataset=dataset,
            teacher=teacher,
            losses=losses,
            augment=augment,
            views=views,
            seed=seed,
            dtype=dtype,
            batch_size=batch_size,
            teacher_right=teacher_right,
            checkpoint_seconds=checkpoint_seconds,
            verbose=verbose,
        )
        if not _is_whole(writer.path):
            writer.run()
        cache = cls(path)
        cache._augment = augment
        identity = writer.identity
        # What is kept may be more than what these losses need.
        for key in ("stores", "fields"):
            identity[key] = cache._manifest[key]
        cache._refuse(
            identity_differences(cache._manifest, identity)
            + cache._loss_differences(losses)
            + cache._size_differences(dataset)
        )
        return cache

    # -- reading ---------------------------------------------------------------

    def check(self, dataset=None, teacher=None, losses=(), augment=None):
        """Refuses what this cache does not belong to.

        Args:
            dataset: optional, as given to `write`; its size and its first
                batches are compared, in order.
            teacher: optional `keras.Model`.
            losses: a `DistillationLoss` or a list of them.
            augment: optional, as given to `write`.

        Raises:
            ValueError: naming every difference.
        """
        manifest, found = self._manifest, {}
        if teacher is not None:
            found["teacher"] = fingerprint.teacher_fingerprint(teacher)
        if dataset is not None:
            found["samples"] = records.compared_samples(
                dataset,
                manifest["batched"],
                manifest["batch_size"],
                manifest["seed"],
                augment or self._augment,
            )
        self._refuse(
            identity_differences(manifest, found)
            + self._loss_differences(keras.tree.flatten(losses))
            + ([] if dataset is None else self._size_differences(dataset))
        )

    def _refuse(self, differences):
        if differences:
            raise ValueError(
                f"The cache at {self.path} belongs to something else. "
                f"Received: {'; '.join(differences)}. Write another cache at "
                "another path, or use what this one was written with."
            )

    def _size_differences(self, dataset):
        size = int(dataset.cardinality())
        manifest = self._manifest
        kept = manifest["batches" if manifest["batched"] else "examples"]
        if size < 0 or size == kept:
            return []
        return [f"a data set of {kept} elements in the cache, {size} now"]

    def attach(self, dataset, loss=None, epoch=0, augment=None, check=True):
        """One pass over the data set, with the statistics.

        Args:
            dataset: as given to `write`.
            loss: the `DistillationLoss` to train with; may be left out where
                the cache keeps the statistics of one.
            epoch: integer; which view, `epoch % views`.
            augment: as given to `write`, where the cache was opened anew.
            check: whether to compare the data set with the cache first.

        Returns:
            A `tf.data.Dataset` of (x, y[, sample_weight]), y a dict of the
            labels and the statistics, in batches if `dataset` is.

        Raises:
            ValueError: if the data set or the loss is not the cache's.
        """
        import tensorflow as tf

        self._prepare(dataset, loss, augment, check)
        store, wanted = self._store_for(loss)
        dataset = self._augmented(self._reader.one_pass(dataset, epoch))
        dataset = dataset.map(
            lambda element, record: self._merge(element, record, store, wanted),
            num_parallel_calls=_autotune(),
        )
        kept = self._manifest
        size = kept["batches"] if kept["batched"] else kept["examples"]
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
        return shard_by_example(dataset)

    def epochs(
        self,
        dataset,
        loss=None,
        first_epoch=0,
        batch_size=None,
        shuffle=None,
        seed=0,
        augment=None,
        check=True,
    ):
        """Endless passes over the data set, each epoch with the next view.

        Args:
            dataset: as given to `write`.
            loss: see `attach`.
            first_epoch: integer, so that interrupted training goes on with
                what it would have seen.
            batch_size: for a data set of examples: batches of so many, those
                left over in each epoch dropped. `None` leaves it as it is.
            shuffle: optional size of a shuffle buffer, of examples that are
                not augmented yet.
            seed: integer, of the order.
            augment: see `attach`.
            check: see `attach`.

        Returns:
            A `tf.data.Dataset` for `fit(..., steps_per_epoch=...)`.
        """
        import tensorflow as tf

        self._prepare(dataset, loss, augment, check)
        store, wanted = self._store_for(loss)

        def one_epoch(epoch):
            passed = self._reader.one_pass(dataset, epoch)
            if shuffle:
                # The seed of this function's graph, in place of the global
                # one: the order depends on seed and epoch alone.
                tf.compat.v1.set_random_seed(1 + seed)
                passed = passed.shuffle(shuffle, seed=epoch)
            if batch_size:
                used = self.examples // batch_size * batch_size
                passed = passed.take(used)
            return passed

        numbers = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
        stream = self._augmented(numbers.flat_map(one_epoch))
        if batch_size:
            stream = stream.batch(batch_size, drop_remainder=True)
        stream = stream.map(
            lambda element, record: self._merge(element, record, store, wanted),
            num_parallel_calls=_autotune(),
        )
        return shard_by_example(stream.prefetch(_autotune()))

    def verify(self, dataset, teacher, batches=8, losses=(), augment=None):
        """Computes a sample anew and compares it with what is kept.

        Args:
            dataset: as given to `write`.
            teacher: the teacher, or another one to see how far it is.
            batches: how many batches of each of the first and the last view;
                spread over the data set, or the first ones for a teacher
                that carries state.
            losses: of your own, whose statistics the cache keeps.
            augment: see `attach`.

        Returns:
            A `Verification`.

        Raises:
            ValueError: if the data set is not the cache's.
        """
        self._prepare(dataset, None, augment, True)
        computable = verification.computable_stores(
            self._manifest, keras.tree.flatten(losses)
        )
        return verification.verify(
            self._reader, computable, dataset, teacher, batches, self._augment
        )

    def shuffled(self, path, dataset, order):
        """A cache in which examples have each other's statistics.

        It is the control that tells what a teacher knows of each example from
        what it does to all: with an order that stays within the classes, each
        example keeps a statistic of its class.

        Args:
            path: new folder of the other cache; one that is there already is
                opened.
            dataset: as given to `write`.
            order: function of all labels ([labels], token after token for
                text) to the positions ([labels]) whose statistics they get.

        Returns:
            A `TeacherCache`.

        Raises:
            ValueError: if the data set is not the cache's, or what is at
                `path` was made of another cache.

        Example:
        >>> def order(labels):
        ...     return shuffle_within_labels(np.arange(len(labels)), labels)
        >>> control = cache.shuffled("control", train, order)
        """
        path = os.fspath(path)
        if not _is_whole(path):
            self.check(dataset)
            self._write_shuffled(path, dataset, order)
        control = TeacherCache(path)
        mine = {k: v for k, v in self._manifest.items() if k != "parts"}
        control._refuse(identity_differences(control._manifest, mine))
        control._augment = self._augment
        return control

    def _write_shuffled(self, path, dataset, order):
        batched = self._manifest["batched"]
        labels = [np.asarray(element[1]) for element in dataset]
        labels = np.concatenate(labels) if batched else np.stack(labels)
        sources = order(labels.ravel())
        records.gfile().makedirs(path)
        records.write_whole(records.join(path, records.EMPTY), b"")
        parts = []
        for view in range(self.views):
            arrays = {
                name: values.reshape(labels.size, *values.shape[labels.ndim :])[
                    sources
                ].reshape(values.shape)
                for name, values in self._reader.arrays(view).items()
            }
            data = pack(arrays, self._fields)
            name = f"view-{view:05d}.records"
            records.write_whole(records.join(path, name), data)
            parts.append(
                {
                    "file": name,
                    "view": view,
                    "examples": self.examples,
                    "checksum": zlib.crc32(data),
                }
            )
        manifest = {**self._manifest, "parts": parts, "shuffled": True}
        records.write_whole(records.join(path, records.MANIFEST), manifest)

    def _prepare(self, dataset, loss, augment, check):
        self._augment = augment or self._augment
        if self._manifest["augmented"] and self._augment is None:
            raise ValueError(
                f"The cache at {self.path} was written with augmented views. "
                "Received: no `augment`. Pass the function that `write` was "
                "given."
            )
        if check:
            self.check(dataset, losses=[] if loss is None else [loss])

    def _store_for(self, loss):
        """The store that serves a loss, and what it wants of it."""
        if loss is None:
            if len(self._stores) > 1:
                raise ValueError(
                    f"The cache at {self.path} keeps the statistics of several "
                    f"losses: {self._manifest['stores']}. Received: no loss. "
                    "Pass the one to train with, as in attach(dataset, loss)."
                )
            store = self._stores[0]
            if isinstance(store, stores.OwnStore) or (
                isinstance(store, stores.TopStore)
                and len(store.temperatures) > 1
            ):
                raise ValueError(
                    "Which statistics to attach depends on the loss. Received: "
                    "no loss. Pass the one to train with, as in "
                    "attach(dataset, loss)."
                )
            return store, store
        wanted = stores.make_store(loss, self._manifest["classes"])
        for store in self._stores:
            if wanted is not None and store.serves(wanted):
                return store, wanted
        return None, wanted

    def _augmented(self, passed):
        """The data set, its elements augmented where there are views."""
        if self._augment is None:
            return passed
        manifest = self._manifest

        def view_of(element, record):
            x, *rest = element
            view, index, _ = record
            x = records.augmented(
                x,
                view,
                index,
                self._augment,
                manifest["seed"],
                manifest["batched"],
            )
            return (x, *rest), record

        return passed.map(view_of, num_parallel_calls=_autotune())

    def _merge(self, element, record, store, wanted):
        """(x, y[, sample_weight]) with y a dict."""
        import tensorflow as tf

        x, labels, *rest = element
        y = {LABELS: labels}
        if store is None:
            return (x, y, *rest)
        arrays = self._reader.decode(record[-1])
        y.update(store.decode(arrays, wanted))
        temperature = wanted.temperature
        if temperature is not None:
            leading = labels.shape.rank - len(self._manifest["label_shape"])
            rows = tf.shape(labels)[:leading]
            y[STATISTICS_TEMPERATURE] = tf.fill(rows, np.float32(temperature))
        right = _teacher_right(y, arrays)
        if right is not None:
            y[TEACHER_RIGHT] = right
        return (x, y, *rest)

    # -- checks ----------------------------------------------------------------

    def _loss_differences(self, losses):
        differences = []
        for loss in losses:
            wanted = stores.make_store(loss, self._manifest["classes"])
            if wanted is None or any(s.serves(wanted) for s in self._stores):
                continue
            differences.append(
                f"{type(loss).__name__} needs {wanted.describe()}, the cache "
                f"has {self._manifest['stores']}"
            )
        return differences


def _teacher_right(y, arrays):
    """Which examples the teacher gets right, where what is kept tells."""
    import tensorflow as tf

    if TEACHER_RIGHT in arrays:
        return tf.cast(arrays[TEACHER_RIGHT], tf.bool)
    if "top_classes" in y:
        return y["top_classes"][..., 0] == tf.cast(y[LABELS], tf.int32)
    return None


def _is_whole(path):
    return records.gfile().exists(records.join(path, records.MANIFEST))


def _read_manifest(path):
    manifest = records.read_json(records.join(path, records.MANIFEST))
    if manifest is not None:
        return manifest
    begun = records.read_json(records.join(path, records.PROGRESS))
    found = (
        f"the beginning of one, {len(begun['parts'])} files"
        if begun
        else "no cache"
    )
    raise FileNotFoundError(
        f"There must be a whole teacher cache at {path}. Received: {found}. "
        "Write it with `TeacherCache.write`, which goes on where it stood."
    )


def _autotune():
    import tensorflow as tf

    return tf.data.AUTOTUNE
