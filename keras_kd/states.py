"""The state that recurrent layers carry from batch to batch.

Keras keeps it apart from a model's other variables, so that it isn't saved. On
JAX, where a step gets its variables and gives them back, it has to be named.
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


def changing_variables(model):
    """Variables that a model's forward pass changes while it trains.

    Args:
        model: a `keras.Model`.

    Returns:
        List of variables: statistics such as those of batch normalisation,
        and carried states; not the weights of frozen layers.
    """
    statistics = [
        variable
        for layer in flatten_layers(model)
        for variable in own_statistics(layer)
    ]
    return [*statistics, *state_variables(model)]


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
    """All that a model reads or changes when it is called.

    Args:
        model: a `keras.Model`.

    Returns:
        List of variables, those of the carried state last.
    """
    return [*model.variables, *state_variables(model)]


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
