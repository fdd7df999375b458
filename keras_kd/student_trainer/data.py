"""What students are trained on, the same for all of a seed."""

import itertools

import numpy as np

from keras_kd import data as any_data
from keras_kd import preprocessing
from keras_kd.batch import labels_of
from keras_kd.cache.data import Views, is_batched
from keras_kd.student_trainer import checksums

# Above this a cache of every logit, in bytes, isn't written unasked.
_LARGEST_CACHE = 32 * 2**30


class TrainingData:
    """Training data, read in the same order for all methods of a seed.

    Args:
        given: what `keras.Model.fit` takes and can be read again; of a
            `tf.data.Dataset` also examples, with a teacher or a cache.
        batch_size: integer, of arrays and of examples.
        shuffle: whether arrays are shuffled; of examples of a
            `tf.data.Dataset`, the size of the buffer.
        teacher: a `keras.Model`, or `None`.
        cache: a `TeacherCache`, or `None`.
        augment: as for `TeacherCache.write`.

    Raises:
        TypeError: for other data.
        ValueError: for data without an end, and for views of what are not
            single examples.
    """

    def __init__(self, given, batch_size, shuffle, teacher, cache, augment):
        self.given = given
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        # Why the teacher's statistics of them can't be kept, or `None`.
        self.why_not_cached = None
        self.of_examples = False
        try:
            self.data = any_data.of(given, batch_size, "`train`")
        except ValueError as error:
            if not any_data.is_loader(given):
                raise
            self.data, self.why_not_cached = None, _first_sentence(error)
            self._check_views(cache)
            return
        if any_data.is_tf_data(given):
            self._check_tf_data(teacher, cache)
        self._check_views(cache)
        if preprocessing.labelled(teacher, given) is not given:
            self.why_not_cached = "their labels are made by a preprocessor"
        elif not isinstance(self.data, any_data.ArrayData):
            before = self.data.first()
            _begin_again(self.data)
            if not _same(before, self.data.first()):
                self.why_not_cached = "they differ from one reading to the next"

    def _check_tf_data(self, teacher, cache):
        if self.data.is_infinite:
            raise ValueError(
                "An epoch is one pass over `train`, which must end. Received: "
                "an infinite tf.data.Dataset. Leave out `repeat`, or cut it "
                "with `take`."
            )
        if cache is not None:
            self.of_examples = not cache.batched
        else:
            self.of_examples = not is_batched(self.data.dataset, teacher)
        if self.of_examples and teacher is None and cache is None:
            raise ValueError(
                "`train` must be batches, as `fit` takes them. Received: a "
                "tf.data.Dataset of examples, and neither a teacher nor a "
                "cache, which could take those. Call dataset.batch(32)."
            )

    def _check_views(self, cache):
        """Refuses views that students would not see, or see one of."""
        kind = "batches" if self.data is None or self.data.batched else "arrays"
        if self.augment is not None and not self.of_examples:
            raise ValueError(
                "`augment` makes views of the single examples of a "
                f"tf.data.Dataset. Received: `augment` with {kind}. Pass "
                "tf.data.Dataset.from_tensor_slices((x, labels)), not in "
                "batches, or leave `augment` out."
            )
        several = cache is not None and cache.views > 1
        if several and kind == "batches" and not self.of_examples:
            raise ValueError(
                "Each epoch has the next view of a cache where `train` is "
                "arrays, or single examples of a tf.data.Dataset. Received: "
                f"batches, and a cache of {cache.views} views. Pass the same "
                "examples as arrays, or a cache of one view."
            )

    @property
    def views_description(self):
        """What tells `augment` from another: a checksum of some views."""
        if self.augment is None:
            return {}
        first = list(self.first_views().take(1))
        return {"augment": checksums.digest(first)}

    def fits_a_cache(self, classes):
        """Whether a cache of all logits has a reasonable size, or none known.

        Args:
            classes: integer.
        """
        labels = labels_of(self.data.first()[1])
        if labels is None or self.data.elements is None:
            return True
        labels = np.atleast_1d(labels)  # Of the first batch or example.
        units = len(labels) if self.data.batched else 1
        of_one = labels.size / max(len(labels), 1)
        size = 2 * classes * of_one * units * self.data.elements
        return size <= _LARGEST_CACHE

    def epochs(self, seed, first_epoch, cache=None, loss=None):
        """Arguments of `fit`: the data from an epoch on.

        Args:
            seed: integer, of the order.
            first_epoch: integer.
            cache: `TeacherCache` whose statistics are joined, or `None`.
            loss: the `DistillationLoss` that they are for.

        Returns:
            A dict.
        """
        is_arrays = isinstance(self.data, any_data.ArrayData)
        if cache is None:
            if not is_arrays:
                return {"x": self.given}
            return {
                "x": any_data.EpochsOfArrays(
                    self.data, bool(self.shuffle), seed, first_epoch
                )
            }
        if self.of_examples:
            stream = cache.epochs(
                self.given,
                loss,
                first_epoch,
                batch_size=self.batch_size,
                shuffle=self._buffer(cache),
                seed=seed,
                augment=self.augment,
            )
            steps = cache.examples // self.batch_size
            return {"x": stream, "steps_per_epoch": steps}
        arguments = {}
        if is_arrays:
            arguments = {
                "batch_size": self.batch_size,
                "shuffle": bool(self.shuffle),
                "seed": seed,
            }
        return {
            "x": cache.attach(
                self.given, loss, first_epoch, self.augment, **arguments
            )
        }

    def steps_per_execution(self, asked, cache):
        """How many steps Keras may run in one call.

        Args:
            asked: integer, at most so many.
            cache: as for `epochs`.

        Returns:
            An integer.
        """
        if cache is None or not self.of_examples:
            return asked  # Of data that end, the last call has fewer steps.
        return dividing_steps(asked, cache.examples // self.batch_size)

    def first_views(self):
        """The data as a model reads them, for one pass."""
        if not self.of_examples:
            return self.given
        examples = self.given
        if self.augment is not None:
            views = Views(augment=self.augment)

            def seen(position, example):
                x, *others = example
                return views.of(x, 0, position, batched=False), *others

            examples = examples.enumerate().map(seen)
        return examples.batch(self.batch_size)

    def _buffer(self, cache):
        """Examples of the shuffle buffer, `None` for no shuffling."""
        if self.shuffle is True:
            return cache.examples
        return min(self.shuffle, cache.examples) or None


def dividing_steps(asked, steps):
    """Steps of one call, so that calls fill an epoch exactly.

    From data without an end, Keras's last call of an epoch takes as many steps
    as the others, and so more than the epoch has.

    Args:
        asked: integer, at most so many.
        steps: integer, of an epoch.

    Returns:
        An integer, the largest that divides `steps`.
    """
    fitting = (n for n in range(min(asked, steps), 0, -1) if steps % n == 0)
    return next(fitting, 1)


def evaluation_arguments(given, batch_size):
    """Arguments of `evaluate`.

    Args:
        given: data as `fit` takes them as `validation_data`.
        batch_size: integer, of arrays.

    Returns:
        A dict.
    """
    if isinstance(given, tuple):
        names = ("x", "y", "sample_weight")
        given = dict(zip(names, given, strict=False))
        return {**given, "batch_size": batch_size}
    return {"x": given}


def described(given, batch_size):
    """What tells data from others, as JSON holds it.

    Args:
        given: data as `fit` takes them.
        batch_size: integer, of arrays.

    Returns:
        A dict with a checksum of all, as far as the data are the same whenever
        they are read; of data without an end, of the first batch.
    """
    if any_data.is_loader(given):
        about = {"kind": type(given).__name__, "batches": len(given)}
        return {**about, **checksums.of_all(lambda: given)}
    data = any_data.of(given, batch_size, "Data")
    about = {"kind": type(data).__name__, "elements": data.elements}
    if isinstance(data, any_data.ArrayData):
        return {**about, "sha256": checksums.digest(data.arrays)}
    read = data.batches
    if getattr(data, "is_infinite", False):

        def read():
            return itertools.islice(data.batches(), 1)

    return {**about, **checksums.of_all(read, lambda: _begin_again(data))}


def described_in_order(given, batch_size, what):
    """As `described`, of data that must have a fixed order.

    Args:
        given: data as `fit` takes them.
        batch_size: integer, of arrays.
        what: name of the data, for the message.

    Returns:
        A dict with a checksum of all in their order.

    Raises:
        ValueError: if two readings differ.
    """
    found = described(given, batch_size)
    if "sha256" not in found:
        order = "the same rows in another order" * ("rows" in found)
        raise ValueError(
            "Students are compared by their scores of each example, so these "
            "must be the same, in the same order, whenever they are read. "
            f"Received: {what}, a {type(given).__name__} whose second reading "
            f"has {order or 'other values than its first'}. Leave out its "
            "shuffling and whatever else is random; a tf.data.Dataset may keep "
            "one order by shuffle(..., reshuffle_each_iteration=False)."
        )
    return found


def _begin_again(data):
    """Says that an epoch is over to data that want to know."""
    if isinstance(data, any_data.PyData):
        data.dataset.on_epoch_end()


def _same(one, other):
    """Whether two batches are the same, bit for bit."""
    return (one is None) == (other is None) and (
        one is None or checksums.digest(one) == checksums.digest(other)
    )


def _first_sentence(error):
    return str(error).split(". ", 1)[0]
