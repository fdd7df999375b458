"""What a model reads of inputs that have names.

Student and teacher get the same data, and one of them may read fewer inputs.
Of a dict with other keys than its own Keras makes a list, sorted by key, and
reads that by position: a model without "segment_ids" would take these for the
"token_ids", with no more than a warning.
"""

import re

import keras

from keras_kd.backend import private

# Names that Keras gives where the user gives none.
_DEFAULT_NAME = re.compile(r"(input_layer|keras_tensor)(_\d+)?")


def inputs_of(model, x, role="model"):
    """The inputs that a functional model names, of a batch's.

    Args:
        model: a `keras.Model`.
        x: a batch's inputs.
        role: what the model is, for the message.

    Returns:
        Inputs: of a dict, for a model whose inputs are one, those of its keys;
        else x itself.

    Raises:
        ValueError: if the dict lacks some of the model's several inputs.
    """
    own = _structure(model)
    are_named = isinstance(x, dict) and isinstance(own, dict)
    if not are_named or set(x) == set(own):
        return x
    missing = [
        name for name in own if name not in x and not _is_optional(own[name])
    ]
    if missing and len(own) > 1:
        raise ValueError(
            f"The {role} {model.name!r} reads the inputs {sorted(own)} by name."
            f" Received: inputs {sorted(x)}, without {missing}. Name the inputs"
            " in the data as the model does; they may hold more than it reads."
        )
    # A single input can't be taken for another one: Keras takes what is there.
    return x if missing else {name: x.get(name) for name in own}


def check_number_of_inputs(model, x, y=None):
    """Refuses labels that come with the inputs, in one tuple.

    Keras only warns, and reads the first of them.

    Args:
        model: a `keras.Model`.
        x: what `fit` or `evaluate` takes as x.
        y: likewise; with labels of their own, nothing is refused.

    Raises:
        ValueError: for a tuple or list of more inputs than the model has.
    """
    own = _structure(model)
    if own is None or y is not None or not isinstance(x, list | tuple):
        return
    has_shapes = all(hasattr(each, "shape") for each in x)
    number = len(keras.tree.flatten(own))
    if has_shapes and len(x) > number:
        raise ValueError(
            "Labels and weights are arguments of their own. Received: "
            f"{len(x)} arrays as the inputs of {model.name!r}, which has "
            f"{number}. Pass fit(x, labels), or a data set of (x, labels)."
        )


def outputs_of(model, x, role="model"):
    """What a model gives for a batch, in inference mode.

    Args:
        model: see `inputs_of`, as the following.
        x: a batch's inputs, of which it reads its own.
        role: string.

    Returns:
        Its outputs.
    """
    return model(inputs_of(model, x, role), training=False)


def shapes_read(model, x):
    """The shapes that a model reads inputs in.

    Args:
        model: a `keras.Model`, or `None`.
        x: a batch's inputs, arrays.

    Returns:
        List of a tuple for each array; of one that the model doesn't read, with
        all axes open. Empty without a graph.
    """
    own = getattr(model, "inputs", None)
    if not own:
        return []
    if not isinstance(x, dict):
        return [tuple(each.shape) for each in own]
    named = private.input_structure(model)
    if not isinstance(named, dict):
        named = {each.name: each for each in own}
    if not set(named) < set(x):
        return [tuple(each.shape) for each in own]
    open_shapes = keras.tree.map_structure(
        lambda array: keras.KerasTensor((None,) * len(array.shape)), x
    )
    of_all = keras.tree.flatten({**open_shapes, **named})
    return [tuple(each.shape) for each in of_all]


def check_order(student, teacher, x):
    """Refuses a list of inputs that student and teacher read in other orders.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model` that gets the same inputs.
        x: a batch's inputs.

    Raises:
        ValueError: if both have named the same inputs, in another order.
    """
    if not isinstance(x, (list, tuple)):
        return
    first, second = _names(student), _names(teacher)
    if first != second and sorted(first) == sorted(second):
        raise ValueError(
            "A list of inputs is read by position, so student and teacher must "
            f"take them in the same order. Received: a student with the inputs "
            f"{first}, and a teacher with {second}. Give the inputs as a dict "
            "by these names."
        )


def _structure(model):
    """A model's own inputs, if Keras reads them as its graph says."""
    if not private.runs_its_graph(model):
        return None
    return private.input_structure(model)


def _names(model):
    """The names that a user gave a model's inputs, in order; or no names."""
    own = _structure(model)
    if isinstance(own, dict):
        return sorted(own)
    if own is None:
        return []
    names = [tensor.name for tensor in keras.tree.flatten(own)]
    return [] if any(map(_DEFAULT_NAME.fullmatch, names)) else names


def _is_optional(tensor):
    """Whether an input may be left out."""
    is_single = isinstance(tensor, keras.KerasTensor)
    return is_single and getattr(private.made_by(tensor)[0], "optional", False)
