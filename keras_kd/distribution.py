"""Several devices and machines: what Keras leaves to do under `tf.distribute`.

Other backends have no such strategy, which is `None` here; then a process is
alone with one device, as far as this package is concerned.
"""

import contextlib
import itertools
import types

import keras
from keras import ops

from keras_kd.backend.private import made_in_strategy

# Callbacks that write files from what every worker knows anyway.
_CHIEF_ONLY = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)


def strategy_of(model):
    """The strategy that a model belongs to.

    Args:
        model: a `keras.Model`.

    Returns:
        A `tf.distribute.Strategy`; `None` on backends other than TensorFlow.
    """
    return getattr(model, "distribute_strategy", None)


def scope(strategy):
    """The scope in which variables of a strategy are made.

    Args:
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        A context manager.
    """
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def check_scope(distiller, student):
    """Refuses models on both sides of a strategy's scope.

    Args:
        distiller: a `keras.Model`.
        student: the `keras.Model` that is trained as a part of it.

    Raises:
        ValueError: if one of them was made in the scope of a strategy of
            several replicas, and the other one outside of it.
    """
    if strategy_of(distiller) is None:
        return
    places = [made_in_strategy(model) for model in (distiller, student)]
    replicas = max(map(num_replicas, map(strategy_of, (distiller, student))))
    if replicas > 1 and places[0] != places[1]:
        words = ["in" if inside else "outside" for inside in places]
        raise ValueError(
            "The student and its Distiller must be made in the scope of one "
            f"strategy. Received: a student made {words[1]} the scope of a "
            f"strategy and a Distiller made {words[0]} it. Make both under "
            "`with strategy.scope():`."
        )


def num_replicas(strategy):
    """How many replicas of a model are trained in sync.

    Args:
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        An integer.
    """
    return 1 if strategy is None else strategy.num_replicas_in_sync


def local_values(value, strategy):
    """The values that a variable or a result has on this process's replicas.

    Args:
        value: a tensor or variable of the backend.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        A sequence with one of them for each replica.
    """
    if strategy is None:
        return (value,)
    return strategy.experimental_local_results(value)


def _context_of_several():
    """TensorFlow's context of one of several replicas, inside of a step.

    Returns:
        A `tf.distribute.ReplicaContext`; `None` where there is one replica, or
        outside of a step.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def sum_over_replicas(value):
    """The sum of what all replicas have, inside of a step.

    Args:
        value: a tensor, or a list of them.

    Returns:
        The same of the same shapes; the value itself where there is one
        replica, or outside of a step.
    """
    context = _context_of_several()
    return value if context is None else context.all_reduce("SUM", value)


def replica_id():
    """The number of this replica among all, inside of a step.

    Returns:
        A scalar; `None` where there is one replica, or outside of a step.
    """
    context = _context_of_several()
    return None if context is None else context.replica_id_in_sync_group


def run_either(condition, then, otherwise, arguments):
    """Runs one of two functions that update variables, inside of a step.

    Args:
        condition: boolean scalar, the same on all replicas.
        then: function of the arguments that returns nothing.
        otherwise: likewise.
        arguments: tuple of structures of this replica's tensors.
    """
    import tensorflow as tf

    def choose(condition, *arguments):
        def run(function):
            def body():
                function(*arguments)
                return 0

            return body

        tf.cond(condition, run(then), run(otherwise))

    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        choose(condition, *arguments)
        return

    # Variables of several replicas can't be updated in a branch of one of
    # them: the branch is taken for all, and the replicas run inside of it.
    def choose_for_all(strategy, condition, *arguments):
        def run(function):
            def body():
                strategy.extended.call_for_each_replica(
                    function, args=arguments
                )
                return 0

            return body

        condition = strategy.experimental_local_results(condition)[0]
        tf.cond(condition, run(then), run(otherwise))

    tf.distribute.get_replica_context().merge_call(
        choose_for_all, args=(condition, *arguments)
    )


def spans_workers(strategy):
    """Whether a strategy trains in several processes.

    Args:
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        A boolean.
    """
    if num_replicas(strategy) == 1:
        return False
    own = len(strategy.extended.worker_devices)
    return strategy.num_replicas_in_sync > own


def is_chief(strategy):
    """Whether this process is the one that writes files.

    Args:
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        `True` for worker 0 (or a task called chief), and always where there
        is one process.
    """
    return strategy is None or strategy.extended.should_checkpoint


def step_logs(logs, strategy):
    """Logs of a step in a form that Keras averages over workers.

    Keras averages them along an axis that scalars do not have.

    Args:
        logs: dict of scalars.
        strategy: a `tf.distribute.Strategy`.

    Returns:
        The dict, of tensors of shape (1,) if the strategy spans workers.
    """
    if not spans_workers(strategy):
        return logs
    return keras.tree.map_structure(lambda v: ops.reshape(v, (1,)), logs)


def inner_optimizer(optimizer):
    """The optimizer whose loss another one scales, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def check_optimizer(optimizer, strategy):
    """Refuses an update that only some steps make, where Keras fails at it.

    Args:
        optimizer: a `keras.Optimizer`.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Raises:
        ValueError: naming what it asks for.
    """
    if num_replicas(strategy) == 1:
        return
    import tensorflow as tf

    with strategy.scope():
        if tf.__internal__.distribute.strategy_supports_no_merge_call():
            return
    optimizer = inner_optimizer(optimizer)
    for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        value = getattr(optimizer, name, None)
        if value:
            raise ValueError(
                "Keras can't update the variables of several replicas in some "
                f"steps alone. Received: an optimizer with {name}={value} and "
                f"a strategy of {strategy.num_replicas_in_sync} replicas. "
                f"Leave {name} out, or train on one device."
            )


def check_reductions(losses, strategy):
    """Refuses losses of each example, of which replicas have other numbers.

    Their mean in the logs would be a sum over replicas, and collective
    operations fail, also those of later models, where a batch is uneven.

    Args:
        losses: list of losses, or functions.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Raises:
        ValueError: for one that is not reduced to a number.
    """
    replicas = num_replicas(strategy)
    kinds = [getattr(loss, "reduction", "mean") for loss in losses]
    if replicas > 1 and any(kind in (None, "none") for kind in kinds):
        raise ValueError(
            "Several replicas add up their losses. Received: a loss with "
            f"reduction=None and a strategy of {replicas} replicas. Use "
            "reduction='sum', which has the same gradient, or a mean."
        )


def check_rows(rows):
    """Refuses an empty share of a batch where Keras takes no maximum of it.

    Args:
        rows: how many examples this replica has.

    Raises:
        ValueError: if it has none while steps run eagerly.
    """
    context = _context_of_several()
    if context is None:
        return
    import tensorflow as tf

    if tf.executing_eagerly() and rows == 0:
        raise ValueError(
            "Keras fails at a replica without examples while steps run "
            "eagerly. Received: run_eagerly=True and a batch of fewer examples "
            f"than the {context.num_replicas_in_sync} replicas. Leave "
            "run_eagerly out, or leave such a batch out, with batch(size, "
            "drop_remainder=True)."
        )


def clip_sums(clip, gradients):
    """Clips what all replicas have together, inside of a step.

    Keras clips the gradients that each replica has by itself, and sums what is
    left: the steps are then longer, and of another direction.

    Args:
        clip: function of a list of gradients to another.
        gradients: list of this replica's gradients, or `None`s.

    Returns:
        A list of this replica's shares of the clipped sums.
    """
    import tensorflow as tf

    context = _context_of_several()
    if context is None:
        return clip(gradients)
    own = [each for each in gradients if each is not None]
    sums = iter(sum_over_replicas(own))
    clipped = clip([None if g is None else next(sums) for g in gradients])
    # Keras sums them up once more.
    share = 1 / context.num_replicas_in_sync
    return [
        None if each is None else tf.math.scalar_mul(share, each)
        for each in clipped
    ]


def of_examples(gradients, rows):
    """Leaves out what a replica without examples adds to the gradients.

    In a batch of fewer examples than replicas some get none. Means over none
    are 0 / 0, as in batch normalisation, whose scale then becomes NaN for all.

    Args:
        gradients: list of this replica's gradients, or `None`s.
        rows: scalar, how many examples it has.

    Returns:
        A list; without examples, of gradients that are 0 where they were not
        finite.
    """
    if _context_of_several() is None:
        return gradients
    import tensorflow as tf

    def finite(values):
        # The row numbers of sparse gradients are integers.
        if not values.dtype.is_floating:
            return values
        return tf.where(tf.math.is_finite(values), values, 0)

    def sound():
        return tf.nest.map_structure(finite, own, expand_composites=True)

    own = [each for each in gradients if each is not None]
    found = iter(tf.cond(tf.equal(rows, 0), sound, lambda: own))
    return [None if each is None else next(found) for each in gradients]


def keep_statistics(variables, before, rows):
    """Leaves statistics as they were on a replica without examples.

    Those of batch normalisation would become NaN, as 0 / 0, and with them what
    this replica evaluates from then on.

    Args:
        variables: list of those that the forward pass changes.
        before: list of their values before it.
        rows: scalar, how many examples this replica has.
    """
    if _context_of_several() is None:
        return
    import tensorflow as tf

    for variable, kept in zip(variables, before, strict=True):
        # The others of Keras's are the same on all replicas.
        if variable.aggregation == "none" and kept.dtype.is_floating:
            value = tf.convert_to_tensor(variable.value)
            is_spoilt = tf.math.logical_not(tf.math.is_finite(value))
            is_spoilt = tf.logical_and(tf.equal(rows, 0), is_spoilt)
            variable.assign(tf.where(is_spoilt, kept, value))


def share_overflow(optimizer):
    """Lets an optimizer that scales the loss heed all replicas' gradients.

    Keras asks whether a replica's own gradients are finite and takes them for
    those of all. Where one replica's overflow, the others would train on what
    it sends them, or wait for it without end.

    Args:
        optimizer: a `keras.optimizers.LossScaleOptimizer`.
    """

    def check_finite(self, gradients):
        finite = type(self).check_finite(self, gradients)
        overflowed = ops.cast(ops.logical_not(finite), "float32")
        return ops.equal(sum_over_replicas(overflowed), 0)

    optimizer.check_finite = types.MethodType(check_finite, optimizer)


def worker_callbacks(callbacks, strategy):
    """The callbacks of `fit` that this process runs.

    Every worker calls the same `fit`, but only the chief may write.

    Args:
        callbacks: list of Keras callbacks, or `None`.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        List of callbacks. On workers other than the chief those that only
        write are left out, and `BackupAndRestore` only restores.
    """
    callbacks = [c for c in keras.tree.flatten(callbacks) if c is not None]
    if is_chief(strategy):
        return callbacks
    kept = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            kept.append(_RestoreOnly(callback))
        elif getattr(callback, "every_worker", False):
            kept.append(callback)
        elif not isinstance(callback, _CHIEF_ONLY):
            kept.append(callback)
    return kept


class _RestoreOnly(keras.callbacks.Callback):
    """Restores what the chief backed up."""

    def __init__(self, backup):
        super().__init__()
        self._backup = backup

    def on_train_begin(self, logs=None):
        self._backup.set_model(self.model)
        self._backup.on_train_begin(logs)


def local_iterator(iterator, steps):
    """The next batches, drawn outside the compiled step.

    A compiled step that draws its batch itself does not notice the end of the
    data where several workers train together, but continues with empty ones;
    and the collective operations of several replicas fail in the loop that
    Keras compiles for `steps_per_execution`. Given any other iterator, Keras
    calls the compiled step once per batch.

    Args:
        iterator: a distributed iterator.
        steps: how many batches to draw at most.

    Returns:
        A Python iterator.

    Raises:
        StopIteration: if there is no batch left.
    """
    batches = itertools.islice(iterator, steps)
    return itertools.chain([next(batches)], batches)


def shard_by_example(dataset):
    """Lets each of several workers take its part of every global batch.

    By default TensorFlow deals out files: the batches would depend on the
    number of workers, and statistics in files of their own would be dealt out
    otherwise than the data they belong to.

    Args:
        dataset: a `tf.data.Dataset`.

    Returns:
        The data set, with that option.
    """
    import tensorflow as tf

    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(options)


@contextlib.contextmanager
def lost_worker_as_message(strategy):
    """Says clearly that another worker is gone.

    Args:
        strategy: a `tf.distribute.Strategy`, or `None`.

    Raises:
        RuntimeError: instead of what TensorFlow raises in a step when a
            worker does not answer.
    """
    if not spans_workers(strategy):
        yield
        return
    import tensorflow as tf

    lost = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    try:
        yield
    except lost as error:
        raise RuntimeError(
            "Another worker does not answer: it ended, or was killed. See its "
            "output, then start all workers again; with BackupAndRestore they "
            f"resume from the last backup. Received: {type(error).__name__} in "
            "a step."
        ) from error
