"""One way to run a teacher over a data set, for writing and for verifying."""

import keras
import numpy as np
from keras import ops

from keras_kd import backend, distribution
from keras_kd.batch import TEACHER_RIGHT
from keras_kd.chunks import are_many, most_tokens
from keras_kd.data import take
from keras_kd.logit_split import split_or_none
from keras_kd.logits import with_finite_ruled_out
from keras_kd.model_inputs import outputs_of
from keras_kd.preprocessing import Preprocessing
from keras_kd.states import all_variables, assign_states, read_states


class TeacherPass:
    """A teacher that computes what stores keep, batch by batch.

    Args:
        teacher: a `keras.Model`.
        reader: the teacher's `LogitReader`.
        stores: list of stores; see `keras_kd.cache.stores`.
        classes: integer.
        batch_size: integer.
    """

    def __init__(self, teacher, reader, stores, classes, batch_size):
        self.teacher = teacher
        self.name = f"teacher {teacher.name!r}"
        self.stores = stores
        self.classes = classes
        self.batch_size = batch_size
        self._reader = reader
        self._prepare = Preprocessing(teacher)
        self._checked = False
        self._strategy = distribution.strategy_of(teacher)
        self._replicas = distribution.num_replicas(self._strategy)
        self._step = self._compile_step()
        self._by_chunks = None

    def run(self, examples):
        """What the stores keep of a batch.

        Args:
            examples: `keras_kd.cache.data.Examples`.

        Returns:
            A dict of NumPy arrays by field name, with "teacher_right" (whether
            the teacher's largest logit is the label's) among them; and whether
            all logits are finite.

        Raises:
            ValueError: if the first batch contradicts what the teacher is
                taken to give.
        """
        x, ids = examples.x, inside(examples.ids, self.classes)
        rows = len(ids)
        # A last batch is filled up: a stateful teacher takes no other size,
        # and replicas must share it.
        replicas = self._replicas
        share = -(-self.batch_size // replicas)
        if rows < share * replicas:
            x, ids = take((x, ids), np.arange(share * replicas) % rows)
        x, _, _ = self._prepare.on_batch(x)
        arrays, finite, contradicted = self._chosen_step(ids)(x, ids)
        # Logits show that they are by a single row of them.
        whole = all if self._reader.kind == "logits" else any
        if all(finite) and whole(contradicted) and not self._checked:
            self._reader.refuse()
        self._checked = True
        arrays = {name: array[:rows] for name, array in arrays.items()}
        return arrays, all(finite)

    def _compile_step(self):
        return self._compiled(
            lambda x, ids: self._encode(
                outputs_of(self.teacher, x, "teacher"), ids
            )
        )

    def _compiled(self, function):
        """A function of arrays, each replica with its share of their rows.

        Args:
            function: function of tensors that gives a nested structure of
                [rows, ...] tensors and scalars.

        Returns:
            A function of NumPy arrays with rows for every replica, that gives
            NumPy arrays of all rows, and [replicas] of scalars.
        """
        strategy, replicas = self._strategy, self._replicas
        if replicas == 1:
            step = backend.compiled(function, self._variables())

            def run(*arguments):
                results = step(*backend.from_tf_data(arguments))
                results = keras.tree.map_structure(
                    ops.convert_to_numpy, results
                )
                return keras.tree.map_structure(_rows_of, results)

            return run
        step = backend.compiled(
            lambda *arguments: strategy.run(function, args=arguments)
        )

        def part_of(value):
            share = len(value) // replicas
            return strategy.experimental_distribute_values_from_function(
                lambda context: ops.convert_to_tensor(
                    value[context.replica_id_in_sync_group * share :][:share]
                )
            )

        def gathered(value):
            local = strategy.experimental_local_results(value)
            return np.concatenate([_rows_of(np.asarray(v)) for v in local])

        def run_on_replicas(*arguments):
            results = step(*keras.tree.map_structure(part_of, arguments))
            return keras.tree.map_structure(gathered, results)

        return run_on_replicas

    def _encode(self, outputs, ids):
        """What is kept; whether all is finite, and the outputs unexpected."""
        logits = ops.cast(self._reader.logits(outputs), "float32")
        logits, finite = with_finite_ruled_out(logits)
        contradicted = self._reader.contradicted(outputs)
        best = ops.cast(ops.argmax(logits, axis=-1), "int32")
        arrays = {TEACHER_RIGHT: ops.equal(best, ids)}
        in_range = ops.maximum(ids, 0)
        for store in self.stores:
            arrays.update(store.encode(in_range, logits))
        return arrays, ops.all(finite), contradicted

    def _variables(self):
        variables = all_variables(self.teacher)
        return variables + [v for each in self.stores for v in each.variables]

    def _chosen_step(self, ids):
        """The step, by chunks of tokens where all logits are many."""
        if not are_many(ids.size // self._replicas, self.classes):
            return self._step
        if self._by_chunks is None:
            split = split_or_none(self.teacher, self._reader.output)
            self._by_chunks = self._step
            if split is not None:
                self._by_chunks = self._compile_chunks(split)
        return self._by_chunks

    def _compile_chunks(self, split):
        """The same step without all logits at once."""

        def encode(features, ids):
            outputs = split.outputs(features, split.layer.weights())
            return self._encode(outputs, split.with_axes(ids))

        body = self._compiled(lambda x: outputs_of(split.body, x, "teacher"))
        chunk = self._compiled(encode)
        size = most_tokens(self.classes) * self._replicas

        def step(x, ids):
            features = body(x)
            features = features.reshape(-1, features.shape[-1])
            found = []
            for start in range(0, ids.size, size):
                # The last chunk is filled up, so that one size is compiled.
                at = np.arange(start, start + size) % ids.size
                found.append(chunk(features[at], ids.reshape(-1)[at]))
            arrays, *flags = keras.tree.map_structure(
                lambda *values: np.concatenate(values), *found
            )
            arrays = {
                name: values[: ids.size].reshape(
                    *ids.shape, *values.shape[ids.ndim :]
                )
                for name, values in arrays.items()
            }
            return arrays, *flags

        return step


def _rows_of(value):
    """An array, with an axis if it has none."""
    return value[None] if value.ndim == 0 else value


def inside(ids, classes):
    """Class ids as int32, -1 for those outside of the classes.

    What is outside is right for no teacher; -1 is inside every int32.

    Args:
        ids: [batch, ...] int64.
        classes: integer.
    """
    return np.where((ids >= 0) & (ids < classes), ids, -1).astype("int32")


def logits_shape(teacher, reader, x):
    """The shape of a teacher's logits; an unbuilt one is built.

    Args:
        teacher: a `keras.Model`.
        reader: the teacher's `LogitReader`.
        x: input of a batch, NumPy arrays.

    Returns:
        A tuple, [batch, ..., classes].

    Raises:
        ValueError: if the teacher has several outputs, or a single class.
    """
    outputs = getattr(teacher, "outputs", None)
    if outputs:
        outputs = outputs[0] if len(outputs) == 1 else outputs
    else:
        states = read_states(teacher)
        outputs = teacher(backend.from_tf_data(x), training=False)
        if states:
            assign_states(teacher, states)
    return tuple(reader.logits(outputs).shape)


def count_right(right, examples, classes):
    """How many labels a teacher gets right, and of how many.

    Labels that are not classes (such as missing or ignored ones) don't count,
    nor do those of weight 0, such as padding.

    Args:
        right: [examples, ...] booleans.
        examples: `keras_kd.cache.data.Examples`, which these are of.
        classes: integer.

    Returns:
        Two floats.
    """
    counted = weighted(right.shape, examples.weight)
    counted = counted & (inside(examples.ids, classes) >= 0)
    return float((right * counted).sum()), float(counted.sum())


def weighted(shape, sample_weight=None):
    """[...] booleans: which labels have a weight other than 0.

    Args:
        shape: tuple, of the labels.
        sample_weight: optional, [examples], [examples, 1] or [examples, ...].
    """
    if sample_weight is None:
        return np.ones(shape, bool)
    counted = np.asarray(sample_weight) != 0
    if counted.ndim > len(shape):
        counted = counted.squeeze(-1)
    missing = (1,) * (len(shape) - counted.ndim)
    return np.broadcast_to(counted.reshape(counted.shape + missing), shape)
