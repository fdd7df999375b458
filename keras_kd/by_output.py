"""What is given for each of a student's outputs.

Losses, labels and weights of several outputs come as a dict by their names, or
as a list in the order of those that the student gives; of a single output, as
they are, by its name or in a list.
"""

from keras_kd import batch
from keras_kd.logits import output_names


def by_name(student, argument, entries):
    """What is given as a list in the outputs' order, by their names.

    Keras reads a list of metrics in the order of the labels that it gets later,
    which come sorted by name.

    Args:
        student: a `keras.Model`.
        argument: of `compile`, for the message.
        entries: list with an entry for each output; or anything else.

    Returns:
        A dict by name, or the entry of a student's only output; anything but a
        list as it is.

    Raises:
        ValueError: if the list does not fit the outputs.
    """
    if not isinstance(entries, (list, tuple)):
        return entries
    outputs = getattr(student, "output", None)
    in_order = isinstance(outputs, (list, tuple)) and len(outputs) > 1
    if len(entries) == 1 and not in_order:
        return entries[0]
    names = output_names(student)
    if names is None:
        raise ValueError(
            f"`{argument}` are given by output, and the student's outputs have "
            f"no names. Received: {len(entries)} entries for a model without a "
            "graph. Let its `call` return a dict by name, or name the last "
            "layers of a functional model around it."
        )
    if not in_order or len(entries) != len(names):
        raise ValueError(
            f"`{argument}` of several outputs are a dict by their names, "
            "or a list with an entry for each output of a student that "
            f"gives a list. Received: {len(entries)} entries for the "
            f"outputs {names}. Pass a dict, as in {argument}={{name: ...}}."
        )
    return {
        name: each
        for name, each in zip(names, entries, strict=True)
        if each is not None and each != []
    }


def check_names(student, argument, by_output):
    """Refuses names of outputs that the student is known not to have.

    Args:
        student: a `keras.Model`.
        argument: of `compile`, for the message.
        by_output: dict by name.

    Raises:
        ValueError: naming those that it has.
    """
    names = output_names(student)
    unknown = [name for name in by_output if name not in (names or by_output)]
    if unknown or not by_output and argument == "loss":
        raise ValueError(
            f"`{argument}` by output must name outputs of the student. "
            f"Received: {list(by_output)} for a student with the outputs "
            f"{names}. Correct the names."
        )


def check_metrics(loss, *metrics):
    """Refuses metrics of outputs that have no loss, and so no labels.

    Args:
        loss: dict of losses by output.
        *metrics: what `compile` takes as metrics.

    Raises:
        ValueError: naming the outputs of both.
    """
    for each in metrics:
        if isinstance(each, dict) and not set(each) <= set(loss):
            raise ValueError(
                "Metrics by output must be of outputs that have a loss. "
                f"Received: metrics of {list(each)} and losses of "
                f"{list(loss)}. Leave the others out."
            )


def parts(student, heads, values, what="labels"):
    """What is given for each head.

    Args:
        student: a `keras.Model`.
        heads: list of what each of its outputs is trained on.
        values: labels or sample weights.
        what: what they are, for the message.

    Returns:
        List of pairs of a head and its part, or `None`.

    Raises:
        ValueError: if they don't fit the outputs.
    """
    if any(head.name is None for head in heads):
        values = of_only_output(student, values)
        return [(head, values) for head in heads]
    names = [head.name for head in heads]
    if isinstance(values, (list, tuple)):
        known = output_names(student) or []
        if len(known) != len(values):
            raise ValueError(
                f"A list of {what} has one entry for each output. "
                f"Received: {len(values)} entries for the outputs "
                f"{known or names}. Pass a dict with {names}."
            )
        values = dict(zip(known, values, strict=True))
    if values is None:
        values = {}
    if names == output_names(student) and len(names) == 1:
        values = _under_the_only_name(names[0], values)
    if not isinstance(values, dict):
        if what == "labels":
            raise ValueError(
                "A student with several outputs takes labels by output. "
                "Received: labels without names. Pass a dict with "
                f"{names}."
            )
        return [(head, values) for head in heads]
    known = output_names(student) or names
    unknown = [name for name in values if name not in {*known, *names}]
    if unknown:
        raise ValueError(
            f"There are {what} of an output that does not exist. Received: "
            f"{unknown}, and a student with the outputs {list(known)}. "
            "Correct the names, or leave them out."
        )
    return [(head, values.get(head.name)) for head in heads]


def of_only_output(student, values):
    """What is given for a student's only output, without name or list.

    Args:
        student: a `keras.Model`.
        values: labels or sample weights.

    Raises:
        ValueError: if a list holds anything else.
    """
    if isinstance(values, (list, tuple)):
        return _only_entry(values)
    if not isinstance(values, dict) or len(values) != 1:
        return values
    (name,) = values
    is_named = [name] == output_names(student)
    return values[name] if is_named and name != batch.LABELS else values


def for_each_entry(y, sample_weight):
    """Weights of arrays as Keras takes them: one array for each array of y.

    To Keras, what comes beside labels is another output.

    Args:
        y: labels, or a dict that may be nested.
        sample_weight: as it was given.

    Returns:
        A structure like that of y, where the weights come from one array.
    """
    if not isinstance(y, dict) or sample_weight is None:
        return sample_weight
    if isinstance(sample_weight, dict):
        return {
            name: for_each_entry(y.get(name), each)
            for name, each in sample_weight.items()
        }
    if batch.LABELS not in y:
        return sample_weight
    return dict.fromkeys(y, sample_weight)


def one_of(sample_weight):
    """Sample weights; of arrays, Keras gives each entry of y the same ones."""
    while isinstance(sample_weight, dict):
        first = next(iter(sample_weight.values()), None)
        sample_weight = sample_weight.get(batch.LABELS, first)
    return sample_weight


def _only_entry(values):
    """What a list holds of the only output."""
    are_arrays = all(len(getattr(each, "shape", ())) for each in values)
    if are_arrays and len(values) == 1:
        return values[0]
    raise ValueError(
        "A list of labels or weights has one entry, an array, for each output. "
        f"Received: a {type(values).__name__} of {len(values)} "
        f"{'arrays, and one loss' if are_arrays else 'numbers'}. Pass "
        "numpy.asarray(labels), or losses by output, as in "
        "compile(loss={name: KD()})."
    )


def _under_the_only_name(name, values):
    """What is given without the name of the only output, by that name."""
    has_no_names = not isinstance(values, dict) or batch.LABELS in values
    return {name: values} if has_no_names else values
