"""The teacher cache: what losses need from a teacher, computed once.

A cache is a folder of zarr arrays, one for each number that is kept of an
example, and one of a checksum of the input and the labels that the teacher
saw. Every example is compared with its checksum when it is trained on. The
attributes of the array group say what is kept, of which teacher and data.
"""

import dataclasses
import hashlib

import numpy as np

from keras_kd import data as any_data
from keras_kd import fingerprint, preprocessing
from keras_kd.batch import TEACHER_RIGHT
from keras_kd.cache import attached, stores, verification, writer
from keras_kd.cache.data import Source, Views
from keras_kd.cache.manifest import CHECKSUM, read_manifest
from keras_kd.cache.reading import Reading
from keras_kd.cache.storage import Folder, Table
from keras_kd.cache.teacher_pass import TeacherPass, weighted
from keras_kd.data_errors import raised_plainly
from keras_kd.distribution import shard_by_example
from keras_kd.logits import LogitReader, check_model
from keras_kd.losses.names import get as get_loss
from keras_kd.losses.names import get_all as get_losses


class TeacherCache:
    """A teacher's statistics of a data set, kept in a folder.

    Opens a cache that `TeacherCache.write` has made.

    Args:
        path: the folder: a local path (`~` is the home folder), or a URL that
            TensorStore knows, such as gs://bucket/cache.
        check_files: whether to read all chunks and compare their checksums
            now; otherwise each is compared when it is read.

    Raises:
        FileNotFoundError: if there is no cache, or it was never finished.
        ValueError: if files are missing, damaged, or of an earlier format.

    Example:
    ```python
    cache = kd.TeacherCache.write("cache", train, teacher, kd.KDPt())
    distiller = kd.Distiller(student)  # No teacher from here on.
    distiller.compile(optimizer="adam", loss=kd.KDPt())
    distiller.fit(cache.attach(train), epochs=10)
    ```
    """

    def __init__(self, path, check_files=True):
        self._folder = Folder(path)
        self.path = self._folder.path
        manifest = read_manifest(self._folder)
        if manifest is None or manifest.examples is None:
            found = "no cache" if manifest is None else "the beginning of one"
            raise FileNotFoundError(
                f"There must be a whole teacher cache at {self.path}. "
                f"Received: {found}. Write it with `TeacherCache.write`, which "
                "resumes what was begun."
            )
        self._manifest = manifest
        self._stores = manifest.read_stores
        self._augment = None
        self._own_reading = None  # Of statistics by index.
        self._table = Table(self._folder, manifest.arrays, manifest.chunk)
        if check_files:
            self._table.check(manifest.examples)

    # -- what is in it ---------------------------------------------------------

    @property
    def examples(self):
        """Number of examples of the data set."""
        return self._manifest.examples

    @property
    def views(self):
        """Number of augmented views of each example."""
        return self._manifest.views

    @property
    def teacher_fingerprint(self):
        """Dict of hashes that tell the teacher from another one."""
        return self._manifest.teacher

    @property
    def batched(self):
        """Whether it was written of a `tf.data.Dataset` of batches."""
        return self._manifest.batched

    @property
    def teacher_accuracy(self):
        """Share of labels (of all views) that the teacher got right.

        Labels that are not classes, such as missing or ignored ones, don't
        count, nor do those of weight 0.
        """
        return self._manifest.teacher_accuracy

    @property
    def record_bytes(self):
        """Bytes of statistics of an example (with all its tokens) in a view.

        Beside them the cache keeps four bytes an example, its checksum.
        """
        return sum(field.size for field in self._manifest.statistics)

    # -- writing ---------------------------------------------------------------

    @classmethod
    def write(
        cls,
        path,
        dataset,
        teacher=None,
        losses=(),
        augment=None,
        views=1,
        seed=0,
        dtype="float16",
        batch_size=256,
        teacher_right=False,
        checkpoint_seconds=30,
        verbose=1,
        teacher_output=None,
        num_classes=None,
        output=None,
    ):
        """Runs a teacher over a data set and keeps what losses need.

        Without a teacher it keeps what losses need of a teacher's outputs that
        the data carry beside the labels; see `keras_kd.precomputed`. The data
        that are trained on later need not carry them any more.

        Writing that was cut short resumes where it stopped; a whole cache that
        fits is used as it is, and one that does not is refused, never
        overwritten. Two processes that write the same cache at once both end
        with it.

        A teacher that is a KerasHub task gets raw strings or images by its
        own preprocessor, whatever that of the student is. Attach the cache to
        the raw data; of a language model, whose labels are tokens, to
        `dataset.map(preprocessor)`.

        Args:
            path: folder of the cache; see `TeacherCache`.
            dataset: (x, labels[, sample_weight]) in an order that is the
                same every time: a tuple of arrays, a finite
                `tf.data.Dataset` of examples or of batches, a
                `keras.utils.PyDataset`, or a PyTorch `DataLoader` that does
                not shuffle. All batches but the last must be of one size.
                Shuffle after `attach`, by `epochs`, or by `cache[indices]`.
            teacher: a `keras.Model`; under its strategy, if it was made in
                the scope of one. A stateful one starts from the state zero.
                `None` where the data carry its outputs.
            losses: a `DistillationLoss` or its name, or a list of them.
            augment: optional function of (x, seed) to the teacher's and the
                student's input, made of stateless random ops; x is one
                example, seed two int64.
            views: how many augmented views of each example are kept.
            seed: integer, of the views.
            dtype: "float16", exact enough for training (the loss keeps three
                digits), or "float32".
            batch_size: for the teacher, where `dataset` is of examples, as
                arrays are.
            teacher_right: whether to keep also, in one byte, if the teacher's
                largest logit is the label's, for the histograms of w by group.
            checkpoint_seconds: after how many seconds at most what was
                computed is safe.
            verbose: 0 for no progress bar.
            teacher_output: "logits", "probabilities" or "log_probabilities",
                where the teacher's graph does not tell.
            num_classes: integer, needed where the data carry lists of the
                largest log-probabilities.
            output: of a teacher with several outputs, the name of the one
                that is kept. Labels are then a dict by output; a cache for
                each is attached one after the other.

        Returns:
            A `TeacherCache`.

        Raises:
            TypeError: for data that can't be read twice in one order, or a
                teacher that is not a `keras.Model`.
            OSError: if the disk is full or the folder can't be written.
            ValueError: for an infinite or empty data set, one of batches of
                several sizes, teacher logits that are not finite (naming the
                batch), outputs in the data that are not valid (naming the
                row) or that a loss can't be made of, or a cache of something
                else at `path`, naming the difference.

        Example:
        >>> cache = kd.TeacherCache.write(
        ...     "cache", (images, labels), teacher, kd.KDPt()
        ... )
        >>> y = {"labels": labels, **cache[:]}
        >>> distiller.fit(images, y, batch_size=64)
        """
        folder = Folder(path)
        begun = read_manifest(folder)
        losses = get_losses(losses)
        if teacher is not None:
            check_model("teacher", teacher)
            dataset = preprocessing.labelled(teacher, dataset)
        plan = writer.plan(
            dataset,
            teacher,
            teacher_output,
            losses,
            Views(views, seed, augment),
            dtype,
            batch_size,
            teacher_right,
            num_classes,
            output,
        )
        begun = begun or plan.manifest.claim(folder)
        whole = begun.examples is not None
        # What is kept may be more than what these losses need.
        ignored = ("stores", "fields") if whole else ()
        differences = begun.differences(plan.manifest, ignored)
        names = {field.name for field in begun.statistics}
        # From the others it is known as well.
        telling = {TEACHER_RIGHT, "gaps", "top_classes"}
        if whole and teacher_right and not names & telling:
            differences.append("no teacher_right in the cache, True now")
        _refuse(folder.path, differences)
        if not whole:
            plan = dataclasses.replace(plan, manifest=begun)
            with raised_plainly():
                writer.write(folder, plan, checkpoint_seconds, verbose)
        cache = cls(path)
        cache.check(dataset, losses=losses, augment=augment)
        return cache

    # -- checking --------------------------------------------------------------

    def check(self, dataset=None, teacher=None, losses=(), augment=None):
        """Refuses what this cache does not belong to.

        Args:
            dataset: optional, as given to `write`; its size and its first
                batch are compared. All others are when they are trained on.
            teacher: optional `keras.Model`.
            losses: a `DistillationLoss` or its name, or a list of them.
            augment: optional, as given to `write`.

        Raises:
            ValueError: naming every difference.
        """
        self._take_augment(augment)
        differences = self._loss_differences(get_losses(losses))
        if teacher is not None:
            differences += self._manifest.differences(
                dataclasses.replace(
                    self._manifest,
                    teacher=fingerprint.teacher_fingerprint(teacher),
                    order=None,
                )
            )
        data = None if dataset is None else self._data(dataset)
        if data is not None:
            differences += self._size_differences(data)
        _refuse(self.path, differences)
        if data is not None:
            self._compare_first(data)

    def _size_differences(self, data):
        kept = self._manifest
        if getattr(data, "is_infinite", False):
            return [
                f"a data set of {kept.elements} elements in the cache, an "
                "endless one now"
            ]
        if data.elements is None:
            return []
        if any_data.is_tf_data(getattr(data, "dataset", None)):
            size, wanted, unit = data.elements, kept.elements, "elements"
        elif data.batched:
            rows = any_data.num_rows(data.first()[0])
            size, wanted = data.elements, -(-kept.examples // rows)
            unit = f"batches of {rows}"
        else:
            size, wanted, unit = data.elements, kept.examples, "examples"
        if size == wanted:
            return []
        hint = ""
        if unit == "elements":
            kind = (
                f"batches of {kept.batch_size}" if kept.batched else "examples"
            )
            hint = f" (its elements must be {kind} here: "
            hint += "batch it so" if kept.batched else "batch what is attached"
            hint += ", or attach arrays)"
        return [f"a data set of {wanted} {unit} in the cache, {size} now{hint}"]

    def _loss_differences(self, losses):
        return [
            f"{type(loss).__name__} needs {wanted.describe()}, the cache has "
            f"{self._manifest.stores}"
            for loss in losses
            if (wanted := stores.make_store(loss, self._manifest.classes))
            and not any(store.serves(wanted) for store in self._stores)
        ]

    def _compare_first(self, data):
        """Compares the first batch with what the teacher saw."""
        reading = self._reading()
        with raised_plainly():
            for batch in self._source(data).batches():
                rows = min(len(batch.ids), self.examples)
                kept = self._table.read(0, 0, rows, [CHECKSUM])
                reading.compare(
                    batch.x, batch.y, kept[CHECKSUM], np.arange(rows)
                )
                return
        raise reading.not_these_data("a data set without examples")

    def _views(self):
        kept = self._manifest
        return Views(kept.views, kept.seed, self._augment)

    def _data(self, dataset, batch_size=None):
        """The data set as `keras_kd.data.Data`, as it was written."""
        data = any_data.of(dataset, batch_size, "The data of a cache")
        if any_data.is_tf_data(dataset):
            return any_data.TfData(dataset, self._manifest.batched)
        if self._augment is not None:
            raise ValueError(
                "Augmented views are made by a tf.data.Dataset. Received: a "
                f"{type(dataset).__name__} for the cache at {self.path}, which "
                "was written with views. Pass the data set that `write` was "
                "given."
            )
        return data

    def _source(self, data):
        kept = self._manifest
        return Source(
            data,
            self._views(),
            kept.batch_size,
            tuple(kept.label_shape),
            kept.output,
        )

    def _take_augment(self, augment):
        self._augment = augment or self._augment
        if self._manifest.augmented and self._augment is None:
            raise ValueError(
                f"The cache at {self.path} was written with augmented views. "
                "Received: no `augment`. Pass the function that `write` was "
                "given."
            )
        if self._augment is not None and not self._manifest.augmented:
            raise ValueError(
                f"The cache at {self.path} was written of examples as they "
                f"are. Received: augment={self._augment}. Leave it out, or "
                "write another cache with it."
            )

    # -- reading ---------------------------------------------------------------

    def attach(
        self,
        dataset,
        loss=None,
        epoch=0,
        augment=None,
        check=True,
        batch_size=None,
        shuffle=False,
        seed=0,
    ):
        """One pass over the data set, with the statistics.

        Args:
            dataset: as given to `write`. It may also be of another kind, with
                the same examples in the same order; a `tf.data.Dataset` then
                of examples, or of batches of the cache's size where it was
                written of batches.
            loss: the `DistillationLoss` to train with, or its name; may be
                left out where the cache keeps the statistics of one.
            epoch: integer; which view, `epoch % views`. Of arrays, which can
                be passed over again and again, that of the first pass.
            augment: as given to `write`, where the cache was opened again.
            check: whether to compare the data set's size and first batch now,
                and every example when it is read. Inputs are compared bit for
                bit; where they are decoded by another version of a library,
                the last bits may differ.
            batch_size: of arrays; 32 by default, as in `fit`.
            shuffle: of arrays, whether each epoch has the examples in another
                order, which depends on `seed` and the number of the epoch.
            seed: integer, of the orders of arrays.

        Returns:
            Data for `fit` of (x, y[, sample_weight]), y a dict of the labels
            and the statistics: of a `tf.data.Dataset` another one, in batches
            if `dataset` is; of a PyTorch `DataLoader` another one; of arrays
            or of a `keras.utils.PyDataset` a PyDataset.

        Raises:
            TypeError: if `dataset` is not data that `write` takes.
            ValueError: if the data set or the loss is not the cache's.
        """
        self._take_augment(augment)
        reading = self._reading(check, *self._store_for(loss))
        data = self._data(dataset, batch_size)
        is_arrays = isinstance(data, any_data.ArrayData)
        if not is_arrays and (batch_size is not None or shuffle):
            raise ValueError(
                "`batch_size` and `shuffle` make batches of arrays. Received: "
                f"batch_size={batch_size}, shuffle={shuffle} with "
                f"{type(dataset).__name__}. Leave them out, or use `epochs`."
            )
        if check:
            self.check(dataset)
        if any_data.is_tf_data(dataset):
            return shard_by_example(self._attached(dataset, epoch, reading))
        return attached.of(data, reading, epoch, shuffle, seed)

    def __getitem__(self, indices):
        """The statistics of some examples; see `statistics`."""
        return self.statistics(indices)

    def __len__(self):
        """Number of examples."""
        return self.examples

    def statistics(self, indices, loss=None, view=0):
        """The statistics of some examples, for data in an order of their own.

        They are what `attach` adds to the labels. Nothing is compared here:
        the caller sees to it that index and example belong together.
        `cache[indices]` is the short form. It is faster to ask for the
        examples of a batch together.

        Args:
            indices: what NumPy takes as an index of one axis: an integer,
                negative ones counting from the end, a slice, an array of
                integers of any shape, or one boolean for each example.
            loss: see `attach`.
            view: integer; which view, `view % views`.

        Returns:
            Dict by name of NumPy arrays, the axes of the indices first (none
            for an integer): what the loss names in `statistics`, whether the
            teacher is right where that is kept, and, for the Distiller to
            compare, "statistics_temperature" and "teacher_fingerprint".

        Raises:
            IndexError: for an index out of bounds.
            ValueError: if the loss is not the cache's, or must be said.

        Example:
        A PyTorch `Dataset` with labels and statistics:

        ```python
        class Joined(torch.utils.data.Dataset):
            def __len__(self):
                return len(labels)

            def __getitem__(self, i):
                return images[i], {"labels": labels[i], **cache[i]}


        loader = torch.utils.data.DataLoader(Joined(), 64, shuffle=True)
        distiller.fit(loader)
        ```
        """
        reading = self._own_reading
        if reading is None or loss is not None:
            reading = self._reading(False, *self._store_for(loss))
        if loss is None:
            self._own_reading = reading
        positions = self._positions_of(indices)
        found = reading.statistics(view % self.views, positions.ravel())
        return {
            name: values.reshape(positions.shape + values.shape[1:])
            for name, values in found.items()
        }

    def _positions_of(self, indices):
        """[...] integers in [0, examples), as NumPy reads an index."""
        is_axis = not isinstance(indices, tuple) and indices is not None
        try:
            if is_axis and indices is not Ellipsis:
                return np.asarray(np.arange(self.examples)[indices])
            received = f"{indices!r}, an index of several axes"
        except (IndexError, TypeError) as error:
            received = str(error)
        raise IndexError(
            f"The cache at {self.path} has the statistics of {self.examples} "
            f"examples, numbered from 0. Received: {received}. Give positions "
            "in the data that it was written with."
        )

    def _reading(self, check=True, store=None, wanted=None):
        return Reading(
            self.path,
            self._manifest,
            self._table,
            self._views(),
            check,
            store,
            wanted,
        )

    def _attached(self, dataset, epoch, reading):
        import tensorflow as tf

        view = tf.cast(epoch, tf.int64) % self.views
        dataset = self._data(dataset).dataset
        passed = reading.augmented(reading.one_pass(dataset, view))
        passed = reading.merged(passed, self._manifest.batched)
        size = int(dataset.cardinality())
        if size < 0:
            # Unknown: it is read to its end, so that one too long is noticed.
            return passed
        return passed.apply(tf.data.experimental.assert_cardinality(size))

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
            first_epoch: integer, so that interrupted training resumes with
                what it would have seen.
            batch_size: for a data set of examples: batches of this many; those
                left over in each epoch are dropped. `None` leaves it as it is.
            shuffle: optional size of a shuffle buffer, of examples that are
                not augmented yet.
            seed: integer, of the order.
            augment: see `attach`.
            check: see `attach`.

        Returns:
            A `tf.data.Dataset` for `fit(..., steps_per_epoch=...)`.

        Raises:
            TypeError: if `dataset` is not a `tf.data.Dataset`.
            ValueError: if the data set or the loss is not the cache's, or
                there are fewer examples than `batch_size`.
        """
        import tensorflow as tf

        if not any_data.is_tf_data(dataset):
            raise TypeError(
                "`epochs` makes a stream of a tf.data.Dataset. Received: "
                f"{type(dataset).__name__}. Use attach(dataset), which other "
                "data can pass over again and again, or make it one with "
                "tf.data.Dataset.from_tensor_slices((x, labels))."
            )
        dataset = self._data(dataset).dataset
        self._take_augment(augment)
        self._check_batch_size(batch_size)
        reading = self._reading(check, *self._store_for(loss))
        if check:
            self.check(dataset)

        def one_epoch(epoch):
            passed = reading.one_pass(dataset, epoch % self.views)
            if shuffle:
                # The seed of this function's graph, in place of the global
                # one: the order depends on seed and epoch alone.
                tf.compat.v1.set_random_seed(1 + seed)
                passed = passed.shuffle(shuffle, seed=epoch)
            if batch_size:
                # Not `take`, which would leave the end of the data unread.
                passed = passed.batch(batch_size, drop_remainder=True)
                if self._augment is not None:
                    passed = passed.unbatch()
            return passed

        numbers = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max)
        stream = reading.augmented(numbers.flat_map(one_epoch))
        if batch_size and self._augment is not None:
            stream = stream.batch(batch_size, drop_remainder=True)
        stream = reading.merged(stream, self._manifest.batched or batch_size)
        return shard_by_example(stream.prefetch(tf.data.AUTOTUNE))

    def _check_batch_size(self, batch_size):
        if batch_size is None:
            return
        if self._manifest.batched:
            raise ValueError(
                "`batch_size` makes batches of a data set of examples. "
                f"Received: batch_size={batch_size} for the cache at "
                f"{self.path}, of batches of {self._manifest.batch_size}. "
                "Leave it out, or write the cache before `batch`."
            )
        if not 1 <= batch_size <= self.examples:
            raise ValueError(
                "A batch holds at least one example, and at most those of an "
                f"epoch. Received: batch_size={batch_size} for "
                f"{self.examples} examples. Choose a smaller one."
            )

    def verify(
        self,
        dataset,
        teacher,
        batches=8,
        losses=(),
        augment=None,
        teacher_output=None,
    ):
        """Computes a sample again and compares it with what is kept.

        Args:
            dataset: as given to `write`.
            teacher: the teacher, or another one to see how far it is.
            batches: how many batches of each of the first and the last view;
                spread over the data set, or the first ones for a teacher
                that carries state.
            losses: of your own, whose statistics the cache keeps.
            augment: see `attach`.
            teacher_output: see `write`.

        Returns:
            A `Verification`.

        Raises:
            TypeError: if the teacher is not a `keras.Model`.
            ValueError: if the data set is not the cache's, or `batches` below
                1.
        """
        check_model("teacher", teacher)
        if batches < 1:
            raise ValueError(
                "A sample is of one batch or more. Received: batches="
                f"{batches}. Leave it out for 8 of each view."
            )
        dataset = preprocessing.labelled(teacher, dataset)
        self.check(dataset, augment=augment)
        manifest = self._manifest
        computable = verification.computable_stores(
            manifest, get_losses(losses)
        )
        teacher_pass = TeacherPass(
            teacher,
            LogitReader(teacher, teacher_output, "teacher", manifest.output),
            computable,
            manifest.classes,
            manifest.batch_size,
        )
        return verification.verify(
            self._table,
            manifest,
            self._source(self._data(dataset, manifest.batch_size)),
            teacher_pass,
            batches,
        )

    # -- a control -------------------------------------------------------------

    def shuffled(self, path, dataset, order):
        """A cache in which examples have each other's statistics.

        It is the control that tells what a teacher knows of each example from
        what it does to all: with an order that stays within the classes, each
        example keeps a statistic of its class.

        Args:
            path: folder of the other cache: a new one, or one where this very
                control is already.
            dataset: as given to `write`. If it has views and the cache was
                opened again, `check(augment=augment)` comes first.
            order: function of all labels ([labels], token after token for
                text) to the positions ([labels]) whose statistics they get.
                Labels of weight 0, such as padding, are not among them.

        Returns:
            A `TeacherCache`.

        Raises:
            ValueError: if the data set is not the cache's, or what is at
                `path` is not this control.

        Example:
        >>> def order(labels):
        ...     return shuffle_within_labels(np.arange(len(labels)), labels)
        >>> control = cache.shuffled("control", train, order)
        """
        folder = Folder(path)
        begun = read_manifest(folder)
        self.check(dataset)
        labels, counted = self._labels(dataset)
        sources, places = np.arange(labels.size), np.flatnonzero(counted)
        sources[places] = places[_positions(order, labels[counted])]
        digest = hashlib.sha256(sources.tobytes()).hexdigest()
        whole = dataclasses.replace(self._manifest, order=digest)
        begun = begun or dataclasses.replace(whole, examples=None).claim(folder)
        _refuse(folder.path, begun.differences(whole))
        if begun.examples is None:
            self._write_shuffled(folder, sources.reshape(labels.shape))
            whole.save(folder)
        control = TeacherCache(path)
        control._augment = self._augment
        return control

    def _labels(self, dataset):
        """The data set, which is compared, as two arrays [examples, ...].

        They are the labels, and which of them have a weight other than 0.
        """
        reading, found, counted = self._reading(), [], []
        with raised_plainly():
            for batch in self._source(self._data(dataset)).batches():
                stop = batch.position + len(batch.ids)
                kept = self._table.read(
                    0, batch.position, min(stop, self.examples), [CHECKSUM]
                )
                positions = np.arange(batch.position, stop)
                reading.compare(batch.x, batch.y, kept[CHECKSUM], positions)
                found.append(batch.ids)
                counted.append(weighted(batch.ids.shape, batch.weight))
        return np.concatenate(found), np.concatenate(counted)

    def _write_shuffled(self, folder, sources):
        manifest = self._manifest
        table = Table(folder, manifest.arrays, manifest.chunk, create=True)
        names = [field.name for field in manifest.arrays]
        for view in range(self.views):
            arrays = self._table.read(view, 0, self.examples, names)
            for name in set(names) - {CHECKSUM}:
                kept = arrays[name]
                own = kept.reshape(sources.size, *kept.shape[sources.ndim :])
                arrays[name] = own[sources.ravel()].reshape(kept.shape)
            # Chunk by chunk, of which each is whole or not there.
            for start in range(0, self.examples, manifest.chunk):
                rows = slice(start, start + manifest.chunk)
                part = {name: each[rows] for name, each in arrays.items()}
                table.write(view, start, part)

    def _store_for(self, loss):
        """The store that serves a loss, and what it wants of it."""
        kept = self._manifest
        if loss is not None:
            loss = get_loss(loss)
            _refuse(self.path, self._loss_differences([loss]))
            wanted = stores.make_store(loss, kept.classes)
            for store in self._stores:
                if wanted is not None and store.serves(wanted):
                    return store, wanted
            return None, None  # It needs nothing.
        (store, *others) = self._stores
        if others:
            raise ValueError(
                f"The cache at {self.path} keeps the statistics of several "
                f"losses: {kept.stores}. Received: no loss. Pass the one to "
                "train with, as in attach(dataset, loss)."
            )
        if isinstance(store, stores.OwnStore) or (
            isinstance(store, stores.TopStore) and len(store.temperatures) > 1
        ):
            raise ValueError(
                "Which statistics to attach depends on the loss. Received: no "
                "loss. Pass the one to train with, as in attach(dataset, "
                "loss)."
            )
        return store, store


def _positions(order, labels):
    """What a function makes of labels, checked to be positions of them."""
    sources = np.asarray(order(labels))
    if (
        sources.shape != labels.shape
        or sources.dtype.kind not in "iu"
        or sources.min(initial=0) < 0
        or sources.max(initial=-1) >= labels.size
    ):
        raise ValueError(
            "`order` must return a position for each label, an integer in "
            f"[0, {labels.size}). Received: {sources.dtype} of shape "
            f"{sources.shape}. Return the positions whose statistics the "
            "labels get, as numpy.random.permutation does."
        )
    return sources.astype("int64")


def _refuse(path, differences):
    if differences:
        raise ValueError(
            f"The cache at {path} belongs to something else. Received: "
            f"{'; '.join(differences)}. Write another cache at another path, "
            "or use what this one was written with."
        )
