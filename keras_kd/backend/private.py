"""Keras's private names that the package uses, each with the reason.

Everything that is imported from `keras.src`, or starts with an underscore in
Keras, is listed here, so that one place has to change with Keras. The backends'
modules override the methods that are listed here. A Keras that lacks any of
it is refused when the package is imported.
"""

import types
import weakref

import keras
import numpy as np
from keras import ops

# Releases that the tests have passed on.
OLDEST_KERAS, NEWEST_KERAS = "3.14", "3.15"


def _refusal(name):
    """The error for a Keras that lacks a name."""
    return ImportError(
        f"keras_kd works with Keras {OLDEST_KERAS} to {NEWEST_KERAS}. "
        f"Received: Keras {keras.__version__}, which lacks {name}. Install "
        f'one of these releases, as in pip install "keras=={NEWEST_KERAS}.*".'
    )


# What is imported "as" its own name is for other modules alone.
try:
    # The padding mask that a layer leaves on its output; only layers have it
    # handed to them, a training step and a loss don't.
    from keras.src.backend import get_keras_mask as get_keras_mask
    from keras.src.backend import set_keras_mask as set_keras_mask

    # The base of the convolutions, whose `activation` comes last.
    from keras.src.layers.convolutional.base_conv import BaseConv as BaseConv

    # What `keras.Model.compile` makes of a function that is given as a loss.
    from keras.src.losses.losses import (
        LossFunctionWrapper as LossFunctionWrapper,
    )

    # Tells a model that runs the graph it was made of.
    from keras.src.models.functional import Functional

    # What `keras.ops.softmax` and its like leave in a functional model's
    # graph; Keras exports the functions alone.
    from keras.src.ops.core import Cast
    from keras.src.ops.nn import LogSoftmax, Sigmoid, Softmax
    from keras.src.ops.numpy import (
        Add,
        Clip,
        Divide,
        ExpandDims,
        Maximum,
        Minimum,
        Multiply,
        Negative,
        Reshape,
        Squeeze,
        Subtract,
        Tanh,
        TrueDivide,
    )

    # What holds the metrics that a model is compiled with.
    from keras.src.trainers.compile_utils import CompileMetrics, MetricsList

    # Attributes of a model that Keras must not list among its own parts.
    from keras.src.utils.tracking import DotNotTrackScope
except ImportError as error:
    raise _refusal(str(error)) from error

SOFTMAX_OPERATIONS = (Softmax, keras.layers.Softmax)
LOG_SOFTMAX_OPERATIONS = (LogSoftmax,)
SIGMOID_OPERATIONS = (Sigmoid,)
# Those that give their input's values in another shape or dtype.
RESHAPING_OPERATIONS = (Cast, ExpandDims, Reshape, Squeeze)
# Those of which scales and soft caps are made.
ELEMENTWISE_OPERATIONS = (
    Add,
    Clip,
    Divide,
    Maximum,
    Minimum,
    Multiply,
    Negative,
    Subtract,
    Tanh,
    TrueDivide,
)

# Methods of `keras.Model` that the backends' trainers override. Were one gone,
# Keras would never call the override.
OVERRIDDEN = {
    "tensorflow": (
        # Averages the batches of several replicas, class ids among them, and
        # fails for several workers.
        "_maybe_symbolic_build",
    ),
    "jax": (
        # Where a step gets beside the data what else it reads; `make_*` make
        # and compile in one.
        "_make_function",
        # Both lose the outputs' mask, which goes from one to the other.
        "compute_loss_and_updates",
        "_update_metrics_variables",
        # Looks at the last step once the values are back in the variables;
        # public, but not documented.
        "jax_state_sync",
    ),
    "torch": (),
}


def made_in_strategy(model):
    """Whether a model was made in the scope of a strategy of TensorFlow.

    Args:
        model: a `keras.Model`.

    Returns:
        A boolean. `distribute_strategy` names one in any case.
    """
    return model._distribute_strategy is not None


# -- a model's graph ---------------------------------------------------------


def is_reversible_embedding(layer):
    """Whether a layer is an embedding that also makes logits.

    Keras's and KerasHub's are different classes; both have this flag.
    """
    return hasattr(layer, "tie_weights")


def runs_kerass_call(operation):
    """Whether an operation computes what its class of Keras's does.

    Args:
        operation: a layer, or one of `keras.ops`.

    Returns:
        A boolean, false for a subclass with a `call` of its own. KerasHub's
        are Keras's.
    """
    call = getattr(operation.call, "__func__", operation.call)
    return call.__module__.split(".")[0] in ("keras", "keras_hub")


def made_by(tensor):
    """What made a tensor of a functional model.

    Keras shows a graph's inputs and outputs, not what lies between them.

    Args:
        tensor: a `keras.KerasTensor`, such as one of `model.outputs`.

    Returns:
        A tuple of the operation (a layer, a model, or one of `keras.ops`), the
        list of its input tensors, and the position of the tensor among its
        outputs.
    """
    operation, node, position = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors, position


def call_of(tensor):
    """The call that made a tensor of a functional model.

    Args:
        tensor: a `keras.KerasTensor`, such as one of `model.outputs`.

    Returns:
        A tuple of the operation, a pair of the arguments that it was called
        with (a tuple and a dict), and the tensor's position among its outputs.
    """
    operation, node, position = tensor._keras_history
    arguments = operation._inbound_nodes[node].arguments
    return operation, (arguments.args, arguments.kwargs), position


def runs_its_graph(model):
    """Whether a model's `call` does what its graph says.

    Args:
        model: a `keras.Model`.

    Returns:
        A boolean, false for a subclass with a `call` of its own.
    """
    if not getattr(model, "outputs", None):
        return False
    known = (Functional.call, keras.Sequential.call)
    return type(model).call in known


def input_structure(model):
    """The inputs of a functional model as its callers pass them.

    `keras.Model.inputs` is a flat list, whatever the model takes.

    Args:
        model: a functional or sequential `keras.Model`.

    Returns:
        A `keras.KerasTensor`, or a structure of them.
    """
    structure = getattr(model, "_inputs_struct", model.inputs)
    is_single = isinstance(structure, list) and len(structure) == 1
    return structure[0] if is_single else structure


def flatten_layers(model):
    """A model and all the layers inside of it, at any depth.

    `keras.Model.layers` lists the outermost ones alone.

    Args:
        model: a `keras.Model` or layer.

    Returns:
        List of layers, itself among them.
    """
    return list(model._flatten_layers())


def symbolic_build(model, batch):
    """Makes the variables of a compiled model's metrics and optimizer.

    Keras does so by itself on JAX, on PyTorch and under a strategy, but on a
    single device of TensorFlow leaves it to the trace of the first step.

    Args:
        model: a compiled `keras.Model`.
        batch: (x, y[, sample_weight]) of `keras.KerasTensor`s.
    """
    model._symbolic_build(data_batch=batch)


def own_statistics(layer):
    """Variables that a layer was built with as not trainable.

    `non_trainable_variables` would add the weights of a frozen layer.

    Args:
        layer: a `keras.Layer`.

    Returns:
        List of variables.
    """
    return list(layer._non_trainable_variables)


# -- a training step ---------------------------------------------------------


def kept_logits(outputs):
    """The logits that Keras's softmax or sigmoid leaves on what it makes.

    Taking the logarithm instead costs digits. Keras's own cross-entropies read
    them; there is no other way to do so.

    Args:
        outputs: a tensor.

    Returns:
        A tensor of the same shape, or `None`.
    """
    return getattr(outputs, "_keras_logits", None)


def specs_of_replica(iterator):
    """What one replica gets of each batch.

    Args:
        iterator: the `EpochIterator` that Keras makes under a strategy of
            TensorFlow's.

    Returns:
        Structure of `tf.TypeSpec`s.
    """

    def of_first(spec):
        is_of_each = type(spec).__name__ == "PerReplicaSpec"
        return spec._component_specs[0] if is_of_each else spec

    specs = iterator._distributed_dataset.element_spec
    return keras.tree.map_structure(of_first, specs)


def compiled_metrics(model):
    """The one that holds what a model is compiled with among its metrics.

    Args:
        model: a compiled `keras.Model`.

    Returns:
        A `keras.metrics.Metric`, or `None`.
    """
    return model._compile_metrics


def update_compiled_metrics(model, labels, outputs, weights, kept):
    """Updates what a model is compiled with among its metrics.

    Keras gives no weights to those that are not weighted, and not every kind
    reads a mask.

    Args:
        model: a compiled `keras.Model`.
        labels: a tensor, or a dict by output.
        outputs: likewise.
        weights: likewise, with `None` where there are none.
        kept: likewise, 0 for what all metrics are to leave out, 1 for the rest.
    """
    metrics = compiled_metrics(model)
    if metrics is None:
        return
    if not metrics.built:
        metrics.build(labels, outputs)
    # Keras 3.14.0 has no other order than that of its trees.
    flatten = getattr(metrics, "_flatten_y", keras.tree.flatten)
    labels, outputs, weights, kept = map(
        flatten, (labels, outputs, weights, kept)
    )
    for kinds, used in (
        (metrics._flat_metrics, kept),
        (metrics._flat_weighted_metrics, weights),
    ):
        for each, y, y_pred, weight, all_kept in zip(
            kinds, labels, outputs, used, kept, strict=True
        ):
            for metric in each.metrics if each else ():
                # Of the user's own weights it is to say that they don't fit.
                by_kept = weight is not None and weight is all_kept
                if by_kept and _is_of_batch(metric, y, y_pred):
                    _update_of_batch(metric, y, y_pred, all_kept)
                    continue
                counts = weight
                if by_kept and "int" in str(metric.dtype):
                    # Such as MeanIoU, which warns of weights of floats.
                    counts = ops.cast(weight, "int32")
                metric.update_state(y, y_pred, sample_weight=counts)


# Whether metrics are functions that give one number for a batch.
_of_batch = weakref.WeakKeyDictionary()


def _is_of_batch(metric, labels, outputs):
    """Whether a metric is a function that gives one number for a batch."""
    if type(metric) is not keras.metrics.MeanMetricWrapper:
        return False
    if metric not in _of_batch:
        value = values_of_examples(metric)(labels, outputs)
        _of_batch[metric] = len(np.shape(value)) == 0
    return _of_batch[metric]


def _update_of_batch(metric, labels, outputs, kept):
    """Updates such a metric, which can't leave examples out.

    It is NaN where some are to be left out.
    """
    value = values_of_examples(metric)(labels, outputs)
    value = ops.cast(value, metric.dtype)
    value = ops.where(ops.all(kept > 0), value, float("nan"))
    keras.metrics.Mean.update_state(metric, value)


def values_of_examples(metric):
    """What gives a metric's value of each example.

    Keras's metrics are made of functions, which they keep to themselves.

    Args:
        metric: a `keras.metrics.Metric`.

    Returns:
        A function of labels and outputs to [...], or `None` where the metric
        is not a mean over examples.
    """
    if not isinstance(metric, keras.metrics.MeanMetricWrapper):
        return None
    function, arguments = wrapped_function(metric)
    return lambda labels, outputs: function(labels, outputs, **arguments)


def wrapped_function(metric):
    """The function that a metric is the mean of, and its further arguments.

    Args:
        metric: a `keras.metrics.MeanMetricWrapper`.

    Returns:
        A function of labels and outputs, and a dict.
    """
    return metric._fn, metric._fn_kwargs


def loss_tracker(model):
    """The metric that a step adds a batch's loss to.

    It is one of `model.metrics`, but at no fixed place.

    Args:
        model: a compiled `keras.Model`.

    Returns:
        A `keras.metrics.Metric`.
    """
    return model._loss_tracker


def set_loss_tracker(model, tracker):
    """Replaces the metric that Keras's steps add a batch's loss to.

    Keras makes it in `compile`, out of sight of the tracking that would list
    it among a model's own metrics as well.

    Args:
        model: a compiled `keras.Model`.
        tracker: a `keras.metrics.Metric`.
    """
    with DotNotTrackScope():
        model._loss_tracker = tracker


def set_initial_epoch(model, epoch):
    """Makes a `fit` that has begun start at an epoch.

    Keras's `BackupAndRestore` says it this way; `fit` takes `initial_epoch`
    only before its callbacks have read anything.

    Args:
        model: a `keras.Model` in `on_train_begin`.
        epoch: integer; `None`, at any time, for the one that `fit` is given.
    """
    model._initial_epoch = epoch


def set_batches_before(board, executions, steps):
    """Lets a `TensorBoard` callback count batches on from an earlier `fit`.

    Args:
        board: a `keras.callbacks.TensorBoard`, in `on_epoch_begin`.
        executions: how many times it would have been told that a batch ends.
        steps: how many steps the optimizer has made.
    """
    board._global_train_batch = executions
    board._previous_epoch_iterations = steps


def replace_clipping(optimizer, clip):
    """Replaces what an optimizer does to clip gradients.

    It happens inside `apply`, once loss scaling and the accumulation of
    gradients are undone.

    Args:
        optimizer: a `keras.Optimizer`.
        clip: function of the optimizer's own clipping (a function of a list
            of gradients to another) and of a list of gradients.
    """

    def clip_gradients(self, gradients):
        def own(gradients):
            return type(self)._clip_gradients(self, gradients)

        return clip(own, gradients)

    optimizer._clip_gradients = types.MethodType(clip_gradients, optimizer)


def held_value(variable):
    """What a variable holds, whatever scope it is read in.

    Inside Keras's stateless scope, `variable.value` is the scope's.

    Args:
        variable: a `keras.Variable`.

    Returns:
        A tensor.
    """
    return variable._value


def set_held_value(variable, value):
    """Lets a variable hold another value, such as the argument of a trace.

    `variable.assign` would note it in Keras's stateless scope, and convert it.

    Args:
        variable: a `keras.Variable`.
        value: a tensor.
    """
    variable._value = value


def hold_state(model, state):
    """Notes the values that `jax_state_sync` is to give a model's variables.

    While JAX trains they are in no variable. Keras notes them after each
    execution, which is too late for an exception in the first one.

    Args:
        model: a `keras.Model` on JAX.
        state: dict of lists of values, by kind of variable.
    """
    model._jax_state = state
    model._jax_state_synced = False


# -- the check ---------------------------------------------------------------


def check_keras(backend):
    """Refuses a Keras that lacks any of the names above.

    Args:
        backend: name of Keras's backend.

    Raises:
        ImportError: with the releases that work.
    """
    # Named, so that the names which Keras gives to a user's models stay.
    model = keras.Model(name="probe")
    tensor = keras.Input((1,), name="probe")
    strategy = ("_distribute_strategy",) if backend == "tensorflow" else ()
    needed = [
        (keras.Model, OVERRIDDEN[backend]),
        (model, strategy),
        (
            model,
            (
                "_compile_metrics",
                "_flatten_layers",
                "_initial_epoch",
                "_loss_tracker",
                "_non_trainable_variables",
                "_symbolic_build",
            ),
        ),
        (keras.Optimizer, ("_clip_gradients",)),
        (tensor, ("_keras_history",)),
    ]
    for owner, names in needed:
        for name in names:
            if not hasattr(owner, name):
                kind = owner if isinstance(owner, type) else type(owner)
                raise _refusal(f"{kind.__name__}.{name}")
    if not hasattr(tensor._keras_history[0], "_inbound_nodes"):
        raise _refusal("Operation._inbound_nodes")
    for function, name, attributes in _uses(backend):
        for attribute in attributes:
            if attribute not in function.__code__.co_names:
                raise _refusal(f"{name}.{attribute}")


def _uses(backend):
    """Functions of Keras, and the attributes of a class that they must use.

    For what only an object has: to make a variable would start the backend,
    which users configure first, and metrics have some.
    """
    # As `update_compiled_metrics` puts them into order.
    has_order = hasattr(CompileMetrics, "_flatten_y")
    flatten = "_flatten_y" if has_order else "flatten"
    uses = [
        (keras.Variable.value.fget, "Variable", ("_value",)),
        (
            keras.metrics.MeanMetricWrapper.update_state,
            "MeanMetricWrapper",
            ("_fn", "_fn_kwargs"),
        ),
        (
            CompileMetrics.update_state,
            "CompileMetrics",
            ("_flat_metrics", "_flat_weighted_metrics", flatten),
        ),
        (MetricsList.update_state, "MetricsList", ("metrics",)),
        (
            keras.callbacks.TensorBoard.on_train_begin,
            "TensorBoard",
            ("_global_train_batch", "_previous_epoch_iterations"),
        ),
    ]
    if backend == "jax":
        held = ("_jax_state", "_jax_state_synced")
        uses.append((keras.Model.jax_state_sync, "Model", held))
    if backend == "tensorflow":
        from keras.src.backend.tensorflow.trainer import TFEpochIterator

        init = TFEpochIterator.__init__
        uses.append((init, "TFEpochIterator", ("_distributed_dataset",)))
    return uses
