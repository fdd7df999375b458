"""The Distiller's step on TensorFlow, on one device and under tf.distribute."""

import keras
import tensorflow as tf

from keras_kd import distribution
from keras_kd.backend.checked import CheckedFunctions

# Up to so many, zeros for all of them cost less than a scatter.
_FEW_CLASSES = 1000

# What these functions are for, and their arguments: see `keras_kd.backend`.


custom_gradient = tf.custom_gradient


def compiled(function, variables, signature):
    """As a `tf.function`, which finds the variables by itself."""
    del variables
    return tf.function(function, autograph=False, input_signature=signature)


def take_classes(values, classes):
    """By `tf.gather`, which is faster than Keras's `take_along_axis`."""
    return tf.gather(values, classes, batch_dims=1)


def add_to_classes(values, classes, added):
    """By a scatter, or a sum by position where there are few classes."""
    num_classes = values.shape[-1]
    rows = tf.expand_dims(tf.range(tf.shape(values)[0]), -1)
    added = tf.reshape(added, [-1])
    if num_classes > _FEW_CLASSES:
        at = tf.stack([tf.broadcast_to(rows, tf.shape(classes)), classes], -1)
        return tf.tensor_scatter_nd_add(values, tf.reshape(at, [-1, 2]), added)
    # Several times as fast as a scatter where there are not many classes.
    positions = tf.reshape(rows * num_classes + classes, [-1])
    size = tf.size(values)
    spread = tf.math.unsorted_segment_sum(added, positions, size)
    return values + tf.reshape(spread, tf.shape(values))


def add_to_rows(variable, rows, values):
    """In place: nothing is done for the other rows."""
    variable.value.scatter_add(tf.IndexedSlices(values, rows))


class Trainer(CheckedFunctions):
    """The part of a Distiller that runs a step."""

    def train_step(self, data):
        """One step: the teacher, outside the gradient, then the student.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            Dict of metric results.
        """
        # The rest of the step (forward pass, loss scaling, regularisation,
        # update, metrics) is Keras's own, on the targets made here.
        logs = super().train_step(self.with_teacher(data))
        return distribution.step_logs(logs, self.distribute_strategy)

    def test_step(self, data):
        """One step of evaluation: the student alone, on the labels."""
        with self.evaluation():
            logs = super().test_step(data)
        return distribution.step_logs(logs, self.distribute_strategy)

    def _checked(self, step):
        strategy = self.distribute_strategy
        spans_workers = distribution.spans_workers(strategy)
        replicas = strategy.num_replicas_in_sync

        def checked_step(iterator):
            if spans_workers or (replicas > 1 and self.steps_per_execution > 1):
                iterator = distribution.local_iterator(
                    iterator, self.steps_per_execution
                )
            logs = step(iterator)
            self.faults.check(self)
            return logs

        return checked_step

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Learns the shapes of a batch from one replica's share of it.

        Keras averages the replicas' shares, and class ids become floats.
        """
        if iterator is not None and self._distribute_strategy is not None:
            local = self._distribute_strategy.experimental_local_results
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(
                    lambda value: local(value)[0], next(batches)
                )
                break
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)
