"""One way to run a teacher over a data set, for writing and for verifying."""

import keras
import numpy as np
from keras import ops

from keras_kd import backend, distribution
from keras_kd.batch import TEACHER_RIGHT
from keras_kd.cache import records
from keras_kd.outputs import to_logits
from keras_kd.states import all_variables


class TeacherPass:
    """A teacher that computes what stores keep, batch by batch.

    Args:
        dataset: `tf.data.Dataset` of (x, labels[, sample_weight]).
        teacher: a `keras.Model`.
        stores: list of stores; see `keras_kd.cache.stores`.
        augment: optional function of (x, seed).
        seed: integer, of the views.
        batched: whether the elements of `dataset` are batches.
        batch_size: integer.
    """

    def __init__(
        self, dataset, teacher, stores, augment, seed, batched, batch_size
    ):
        self.dataset = dataset
        self.teacher = teacher
        self.stores = stores
        self.augment = augment
        self.seed = seed
        self.batched = batched
        self.batch_size = batch_size
        self.strategy = distribution.strategy_of(teacher)
        self._step = self._compile_step()

    def batches(self, view, skipped):
        """Batches of one view of the data set.

        Args:
            view: integer.
            skipped: integer, how many of the first batches are left out.

        Returns:
            A `tf.data.Dataset` of (x, labels[, sample_weight]).
        """
        import tensorflow as tf

        dataset = self.dataset
        if self.augment is not None:
            step = self.batch_size if self.batched else 1
            dataset = tf.data.Dataset.zip(
                tf.data.Dataset.counter(0, step), dataset
            )
            first = skipped if self.batched else skipped * self.batch_size
            dataset = dataset.skip(first).map(
                lambda index, element: (
                    records.augmented(
                        element[0],
                        view,
                        index,
                        self.augment,
                        self.seed,
                        self.batched,
                    ),
                    *element[1:],
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            skipped = 0
        if not self.batched:
            dataset = dataset.batch(self.batch_size)
        return dataset.skip(skipped).prefetch(2)

    def run(self, x, labels):
        """What the stores keep of a batch.

        Args:
            x: the teacher's input, a batch.
            labels: [batch, ...] integer class ids.

        Returns:
            A dict of NumPy arrays by field name, with "teacher_right" (whether
            the teacher's largest logit is the label's) among them; and whether
            all logits are finite.
        """
        import tensorflow as tf

        rows = int(labels.shape[0])

        # A last batch is filled up: a stateful teacher takes no other size,
        # and replicas must share it.
        replicas = distribution.num_replicas(self.strategy)
        share = -(-self.batch_size // replicas)
        if rows < share * replicas:
            index = tf.range(share * replicas) % rows
            x, labels = keras.tree.map_structure(
                lambda values: tf.gather(values, index), (x, labels)
            )
        if replicas == 1:
            x, labels = backend.from_tf_data((x, labels))
            arrays, right, finite = self._step(x, labels)
            finite = bool(finite)
            gather = ops.convert_to_numpy
        else:

            def part_of(value):
                return (
                    self.strategy.experimental_distribute_values_from_function(
                        lambda context: value[
                            context.replica_id_in_sync_group * share :
                        ][:share]
                    )
                )

            x, labels = keras.tree.map_structure(part_of, (x, labels))
            arrays, right, finite = self._step(x, labels)
            local = self.strategy.experimental_local_results
            finite = all(bool(value) for value in local(finite))

            def gather(value):
                return np.concatenate([np.asarray(v) for v in local(value)])

        arrays[TEACHER_RIGHT] = right
        arrays = {name: gather(array)[:rows] for name, array in arrays.items()}
        return arrays, finite

    def _compile_step(self):
        def encode(x, labels):
            logits = to_logits(self.teacher, self.teacher(x, training=False))
            logits = ops.cast(logits, "float32")
            labels = ops.cast(labels, "int32")
            finite = ops.all(ops.isfinite(ops.sum(logits, axis=-1)))
            right = ops.equal(
                ops.cast(ops.argmax(logits, axis=-1), "int32"), labels
            )
            in_range = ops.clip(labels, 0, logits.shape[-1] - 1)
            arrays = {}
            for store in self.stores:
                arrays.update(store.encode(in_range, logits))
            return arrays, right, finite

        if distribution.num_replicas(self.strategy) == 1:
            return backend.compiled(encode, all_variables(self.teacher))
        return backend.compiled(
            lambda x, labels: self.strategy.run(encode, args=(x, labels))
        )


def count_right(right, sample_weight=None):
    """How many labels a teacher gets right, and of how many.

    Args:
        right: [examples, ...] booleans.
        sample_weight: optional, [examples] or [examples, ...]; what has
            weight 0, such as padding, does not count.

    Returns:
        Two floats.
    """
    counted = np.ones(right.shape)
    if sample_weight is not None:
        weighted = np.asarray(sample_weight) != 0
        counted *= weighted.reshape(
            weighted.shape + (1,) * (right.ndim - weighted.ndim)
        )
    return float((right * counted).sum()), float(counted.sum())
