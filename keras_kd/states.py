"""What a model's state is, beside the variables that Keras lists.

Recurrent layers carry state from batch to batch. Keras keeps it apart from a
model's other variables, so that it isn't saved. On JAX, where a step gets its
variables and gives them back, it has to be named.

PyTorch's modules have buffers, such as the statistics of batch normalisation,
of which Keras makes no variables.
"""

import keras
import numpy as np
from keras import ops

from keras_kd import distribution
from keras_kd.backend.private import flatten_layers, own_statistics


def state_variables(model):
    """Variables of recurrent layers that carry state from batch to batch.

    Args:
        model: a `keras.Model`.

    Returns:
        List of variables; empty for a model without stateful layers.
    """
    return [
        variable
        for layer in flatten_layers(model)
        if getattr(layer, "stateful", False)
        for variable in keras.tree.flatten(getattr(layer, "states", None))
        if variable is not None
    ]


class Buffer:
    """A buffer of a PyTorch module, with what variables are used for.

    Args:
        layer: a `keras.layers.TorchModuleWrapper`.
        name: of the buffer.
    """

    def __init__(self, layer, name):
        self._module = layer.module
        self._name = name
        self.path = f"{layer.path}/{name}"

    @property
    def value(self):
        """The tensor; looked up, since a module may put another in place."""
        return self._module.get_buffer(self._name)

    @property
    def shape(self):
        """A tuple of integers."""
        return tuple(self.value.shape)

    def assign(self, value):
        """Sets it to an array or tensor."""
        self.value.detach().copy_(ops.convert_to_tensor(value))

    def __array__(self, dtype=None, copy=None):
        return np.asarray(ops.convert_to_numpy(self.value), dtype)


def wrappers(model):
    """The layers of a model that are PyTorch modules.

    Args:
        model: a `keras.Model`.

    Returns:
        List of `keras.layers.TorchModuleWrapper`s, which Keras also makes of
        modules that are attributes of a layer.
    """
    return [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.TorchModuleWrapper)
    ]


def buffers(model):
    """What PyTorch modules in a model keep beside their parameters.

    Args:
        model: a `keras.Model`.

    Returns:
        List of `Buffer`s, those that PyTorch would save; empty without
        modules. Any of them may change when the model is called to train,
        also where the module is frozen.
    """
    return [
        Buffer(layer, name)
        for layer in wrappers(model)
        for name in _saved_buffers(layer.module)
    ]


def _saved_buffers(module):
    saved = module.state_dict(keep_vars=True)
    return [name for name, _ in module.named_buffers() if name in saved]


def changing_variables(model):
    """Variables that a model's forward pass changes while it trains.

    Args:
        model: a `keras.Model`.

    Returns:
        List of variables and `Buffer`s: statistics such as those of batch
        normalisation, and carried states; not the weights of frozen layers.
    """
    statistics = [
        variable
        for layer in flatten_layers(model)
        for variable in own_statistics(layer)
    ]
    return [*statistics, *state_variables(model), *buffers(model)]


def num_rows(x):
    """Number of examples of a batch.

    Args:
        x: a tensor, or a nested structure of them.

    Returns:
        A scalar.
    """
    first = next(each for each in keras.tree.flatten(x) if each is not None)
    return ops.shape(first)[0]


def all_variables(model):
    """All variables that a model reads or changes when it is called.

    Args:
        model: a `keras.Model`.

    Returns:
        List of variables, those of the carried state last; not `buffers`.
    """
    return [*model.variables, *state_variables(model)]


def in_both(variables, others):
    """Those of some variables that are among others, too.

    Args:
        variables: list of variables and `Buffer`s.
        others: another one.

    Returns:
        List of the first ones.
    """
    # Kept in a dict, so that what is made for a comparison isn't taken for one
    # of them.
    theirs = {id(each): each for each in map(_held, others)}
    return [each for each in variables if id(_held(each)) in theirs]


def _held(variable):
    """What tells a variable from others."""
    # Each wrapper makes variables of its own of its module's parameters.
    on_torch = keras.backend.backend() == "torch"
    return variable.value if on_torch else variable


def read_states(model):
    """A model's carried states.

    Args:
        model: a `keras.Model`.

    Returns:
        List by variable of lists by replica of arrays; empty for a model
        without stateful layers.
    """
    strategy = distribution.strategy_of(model)
    return [
        [
            np.array(ops.convert_to_numpy(value))
            for value in distribution.local_values(variable.value, strategy)
        ]
        for variable in state_variables(model)
    ]


def assign_states(model, states):
    """Sets a model's carried states.

    Args:
        model: a `keras.Model`.
        states: from `read_states`.
    """
    strategy = distribution.strategy_of(model)
    variables = state_variables(model)
    for variable, arrays in zip(variables, states, strict=True):
        if strategy is None:
            variable.assign(arrays[0])
            continue
        local = strategy.experimental_local_results(variable.value)
        for value, array in zip(local, arrays, strict=True):
            value.assign(array)


def reset_states(model):
    """Sets a model's carried states to zero.

    Args:
        model: a `keras.Model`.
    """
    states = read_states(model)
    assign_states(model, [[np.zeros_like(a) for a in s] for s in states])
