"""The Distiller's step on TensorFlow, on one device and under tf.distribute."""

import keras
import tensorflow as tf

from keras_kd import distribution
from keras_kd.backend import private
from keras_kd.states import changing_variables, num_rows

# Up to this many, zeros for all of them cost less than a scatter.
_FEW_CLASSES = 1000

# What these functions are for, and their arguments: see `keras_kd.backend`.


def custom_gradient(function):
    """TensorFlow's own, of the tensor alone."""

    def with_gradient(tensor, *constants):
        of_tensor = tf.custom_gradient(lambda each: function(each, *constants))
        return of_tensor(tensor)

    return with_gradient


def compiled(function, variables, signature):
    """As a `tf.function`, which finds the variables by itself."""
    del variables
    return tf.function(function, autograph=False, input_signature=signature)


def refuse_where(condition, message, values):
    """By an assertion in the graph."""
    if tf.executing_eagerly():
        if condition:
            raise ValueError(message)
        return values
    holds = tf.debugging.Assert(tf.logical_not(condition), [message])
    with tf.control_dependencies([holds]):
        nan = tf.constant(float("nan"), values.dtype)
        return tf.where(condition, nan, values)


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


def product(first, second, transposed):
    """By a flag of the product."""
    return tf.matmul(first, second, transpose_b=transposed)


def add_product(total, first, second):
    """In two steps, as there is no operation for both."""
    added = tf.matmul(first, second, transpose_a=True)
    return total + tf.cast(added, total.dtype)


def take_rows(values, start, size):
    """By a slice whose size XLA can tell."""
    zeros = [0] * (len(values.shape) - 1)
    rows = tf.slice(values, [start, *zeros], [size, *(-1 for _ in zeros)])
    # Which TensorFlow loses where the start is not known.
    known = size if isinstance(size, int) else None
    rows.set_shape((known, *values.shape[1:]))
    return rows


def put_rows(values, start, rows):
    """By a scatter, which is in place where nothing else reads the values."""
    at = start + tf.range(tf.shape(rows)[0])
    return tf.tensor_scatter_nd_update(values, tf.expand_dims(at, -1), rows)


def repeat(function, state, count):
    """By a loop that runs one iteration at a time."""
    _, state = tf.while_loop(
        lambda i, state: i < count,
        lambda i, state: (i + 1, function(i, state)),
        (tf.constant(0), state),
        parallel_iterations=1,
    )
    return state


def takes_any_size(jit_compile):
    """Unless XLA compiles."""
    return not jit_compile


def fuses_operations():
    """Not unless XLA is asked for."""
    return False


def is_on_gpu():
    """As TensorFlow lists its devices."""
    devices = tf.config.list_logical_devices()
    return any(device.device_type != "CPU" for device in devices)


def stored_values(values):
    """Of a `tf.SparseTensor` its values."""
    return values.values if isinstance(values, tf.SparseTensor) else values


def by_pieces(function, state, values, most, jit_compile):
    """By a loop, unless XLA fuses operations or a GPU runs one at a time."""
    rows = num_rows(values)
    if jit_compile or is_on_gpu() or (isinstance(rows, int) and rows <= most):
        return function(0, rows, state)
    pieces = -(-rows // most)
    size = -(-rows // pieces)

    def piece(i, carried):
        state, made = carried
        first = i * size
        state, result = function(first, tf.minimum(size, rows - first), state)
        return state, made.write(i, result)

    # Several times as fast as `put_rows`, which would copy all of them.
    made = tf.TensorArray(
        values.dtype,
        pieces,
        infer_shape=False,
        element_shape=(None, *values.shape[1:]),
    )
    state, made = repeat(piece, (state, made), pieces)
    return state, tf.ensure_shape(made.concat(), values.shape)


def random_states():
    """See `keras_kd.backend`."""
    return []


def set_random_states(states):
    """See `keras_kd.backend`."""
    del states


def value_and_gradient(function, tensor):
    """By a tape of its own."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensor)
        value, others = function(tensor)
    return value, others, tape.gradient(value, tensor)


def with_gradients(value, tensors, gradients):
    """By TensorFlow's custom gradient."""

    @tf.custom_gradient
    def known(*tensors):
        def gradient(up):
            return [
                tf.cast(tf.cast(up, each.dtype) * each, tensor.dtype)
                for each, tensor in zip(gradients, tensors, strict=True)
            ]

        return tf.identity(value), gradient

    # A variable would be read inside.
    return known(*map(tf.convert_to_tensor, tensors))


class Trainer(keras.Model):
    """The part of a Distiller that runs a step."""

    def train_step(self, data):
        """One step: the teacher, outside the gradient, then the student.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            Dict of metric results.
        """
        distribution.check_rows(num_rows(data))
        x, y, sample_weight = self.with_teacher(self._in_own_memory(data))
        variables = changing_variables(self.student)
        before = [tf.identity(variable.value) for variable in variables]
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            batch = self.settle(y, y_pred, sample_weight)
            loss = self.compute_loss(x, batch, y_pred)
            scaled = self.optimizer.scale_loss(loss)
        rows = num_rows(x)
        private.loss_tracker(self).update_state(loss, sample_weight=rows)
        distribution.keep_statistics(variables, before, rows)
        if self.trainable_weights:
            weights = list(self.trainable_weights)
            gradients = distribution.of_examples(
                tape.gradient(scaled, weights), rows
            )
            bad = self.count_gradients(loss, map(_values, gradients))
            # Several values with a reduction of `None`.
            is_sound = tf.reduce_all(tf.math.is_finite(loss))
            is_sound &= tf.equal(distribution.sum_over_replicas(bad), 0)
            self._apply(is_sound, gradients, variables, before)
        logs = self.compute_metrics(x, batch, y_pred)
        return distribution.step_logs(logs, self.distribute_strategy)

    def test_step(self, data):
        """One step of evaluation: the student alone, on the labels."""
        with self.evaluation():
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
                self._in_own_memory(data)
            )
            distribution.check_rows(num_rows(x))
            y_pred = self(x, training=False)
            batch = self.settle(y, y_pred, sample_weight)
            loss = self.compute_loss(x, batch, y_pred, training=False)
            private.loss_tracker(self).update_state(
                loss, sample_weight=num_rows(x)
            )
            logs = self.compute_metrics(x, batch, y_pred)
        return distribution.step_logs(logs, self.distribute_strategy)

    def predict_step(self, data):
        """The student's outputs."""
        return super().predict_step(self._in_own_memory(data))

    def _in_own_memory(self, data):
        """A batch in memory that a step may write to.

        Where nothing else needs a tensor, TensorFlow computes in its place. A
        replica's part of a batch may lie in the very array that the user's
        generator or `PyDataset` gave.
        """
        alone = distribution.num_replicas(self.distribute_strategy) == 1
        if self._draws_batches:
            data = tf.nest.map_structure(_of_any_size, data)
        if alone or self.jit_compile or is_on_gpu():
            return data
        return tf.nest.map_structure(_copy, data, expand_composites=True)

    def _apply(self, is_sound, gradients, variables, before):
        """Updates the student, or leaves it as it was before the step.

        Args:
            is_sound: boolean scalar, the same on all replicas.
            gradients: list, of the trainable weights.
            variables: list of variables that the forward pass changes.
            before: list of their values before it.
        """
        weights = list(self.trainable_weights)
        if not self.optimizer.built:
            with tf.init_scope():
                self.optimizer.build(weights)

        if distribution.num_replicas(self.distribute_strategy) > 1:
            inner = distribution.inner_optimizer(self.optimizer)
            if inner.clipnorm or inner.global_clipnorm or inner.clipvalue:
                private.replace_clipping(inner, distribution.clip_sums)

        def update(gradients, before):
            del before
            self.optimizer.apply(gradients, weights)

        def restore(gradients, before):
            del gradients
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

        distribution.run_either(is_sound, update, restore, (gradients, before))

    def sync_variables(self):
        """Nothing: variables have their current values."""

    def make_train_function(self, force=False):
        """Makes the training step, followed by the check of its data."""
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = self._checked(self.train_function)
        return self.train_function

    def make_test_function(self, force=False):
        """Makes the evaluation step, followed by the check of its data."""
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = self._checked(self.test_function)
        return self.test_function

    @property
    def _draws_batches(self):
        """Whether batches are drawn outside the compiled step."""
        strategy = self.distribute_strategy
        return distribution.spans_workers(strategy) or (
            distribution.num_replicas(strategy) > 1
            and self.steps_per_execution > 1
        )

    def _checked(self, step):
        draws_batches = self._draws_batches

        def checked_step(iterator):
            self.note_teacher_of(getattr(iterator, "element_spec", None))
            if draws_batches:
                iterator = distribution.local_iterator(
                    iterator, self.steps_per_execution
                )
            elif isinstance(iterator, tf.data.Iterator):
                self._build_before_trace(iterator.element_spec)
            logs = step(iterator)
            self.invalid_examples.check(self)
            return logs

        return checked_step

    def _build_before_trace(self, specs):
        """Makes the variables of the compiled metrics and of the optimizer.

        A step that makes variables is traced twice.

        Args:
            specs: (x, labels[, sample_weight]), structures of `tf.TypeSpec`s.
        """
        made = (private.compiled_metrics(self), self.optimizer)
        if not self.student.built or all(
            each is None or each.built for each in made
        ):
            return
        batch = _batch_of(specs)
        if batch is not None:
            private.symbolic_build(self, batch)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Learns the shapes of a batch without drawing one, if it can.

        Under a strategy Keras draws one by a second iterator, which takes it
        from a generator for good. It also averages the replicas' shares, so
        that class ids become floats.
        """
        if iterator is not None and private.made_in_strategy(self):
            data_batch = _batch_of(private.specs_of_replica(iterator))
            if data_batch is None:
                data_batch = self._drawn_batch(iterator)
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def _drawn_batch(self, iterator):
        """A replica's share of a batch, of data whose shapes say too little."""
        local = self.distribute_strategy.experimental_local_results
        for _, _, batches in iterator:
            return keras.tree.map_structure(
                lambda value: local(value)[0], next(batches)
            )


def _values(gradient):
    """A gradient as a tensor; that of an embedding is of the rows it read."""
    is_sparse = isinstance(gradient, tf.IndexedSlices)
    return gradient.values if is_sparse else gradient


def _copy(value):
    """A copy of a tensor of numbers; other values as they are."""
    numbers = tf.is_tensor(value) and (
        value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool
    )
    return tf.raw_ops.DeepCopy(x=value) if numbers else value


def _of_any_size(value):
    """A batch's tensor whose number of rows a trace does not know.

    It would know that of some replicas and not of others, and then find other
    gradients, and other collective operations, for them.
    """
    if not isinstance(value, tf.Tensor) or value.shape.rank in (None, 0):
        return value
    return tf.compat.v1.placeholder_with_default(
        value, (None, *value.shape[1:])
    )


def _batch_of(specs):
    """A batch of symbolic tensors.

    Args:
        specs: structure of `tf.TypeSpec`s.

    Returns:
        The same of `keras.KerasTensor`s; `None` where a shape is not known, or
        there is another kind of tensor.
    """
    if any(
        not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None
        for spec in keras.tree.flatten(specs)
    ):
        return None
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor(tuple(spec.shape), spec.dtype.name),
        specs,
    )
