"""What must not be trained on, counted within a step.

A compiled step can't raise. It counts, and `InvalidExamples` keeps the counts
for the host.
"""

import functools

import keras
from keras import ops

from keras_kd import backend
from keras_kd.head import number
from keras_kd.states import num_rows


def counts(distiller, index, y_pred, settled, values, training):
    """Counts what must not be trained on in a head's batch.

    Args:
        distiller: the `Distiller`.
        index: integer, which head.
        y_pred: the student's outputs.
        settled: what the batch is to the head.
        values: [...], the loss of each example.
        training: whether it is trained on.

    Returns:
        List of the roles of the models whose outputs were looked at, and
        a dict of scalars; see `InvalidExamples.update_state`.
    """
    head = distiller.heads[index]
    found = head.counts(settled, training, distiller.teacher_number)
    infinite = not_finite(values)
    found["student"], found["teacher"] = ops.cond(
        infinite > 0,
        lambda: _origins(head, settled, infinite),
        lambda: (_zero(), _zero()),
    )
    roles = []
    for reader, outputs in head.outputs_to_check(settled, y_pred):
        roles.append(reader.role)
        if not reader.is_certain:
            found[f"{reader.role}_output"] = _contradicted(
                distiller.invalid_examples, reader, outputs, index
            )
    return roles, found


def _contradicted(invalid_examples, reader, outputs, index):
    """1 if the first batch shows that a model gives something else."""
    return ops.cond(
        invalid_examples.is_first_batch(reader.role, index),
        lambda: ops.cast(reader.contradicted(outputs), "float32"),
        _zero,
    )


def not_finite(values):
    """How many values are infinite or NaN, a float32 scalar."""
    return number(ops.logical_not(ops.isfinite(values)))


def with_weights(counts, loss):
    """Counts of a head, and whether its weights made the loss not finite.

    Args:
        counts: dict of scalars, those of single examples.
        loss: the head's loss, reduced over the batch.

    Returns:
        A dict of scalars.
    """
    of_examples = counts["student"] + counts["teacher"]
    bad = ops.where(of_examples > 0, 0.0, not_finite(loss))
    return {**counts, "weights": bad}


def of_gradients(gradients, optimizer):
    """How many of the student's gradients are not finite.

    Args:
        gradients: iterable of tensors, `None` for weights without.
        optimizer: what is to apply them. One that scales the loss looks by
            itself; and one that clips values makes infinite ones finite.

    Returns:
        A float32 scalar.
    """
    gradients = [_real(each) for each in gradients if each is not None]
    looks = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if looks or not gradients:
        return _zero()
    clips = optimizer.clipvalue is not None

    def exactly():
        found = map(_not_a_number if clips else not_finite, gradients)
        return sum(found, _zero())

    # One pass, where all is well.
    total = sum(
        (ops.cast(ops.sum(each), "float32") for each in gradients), _zero()
    )
    return ops.cond(ops.isfinite(total), _zero, exactly)


def _real(values):
    """Numbers that are finite where complex ones are."""
    dtype = keras.backend.standardize_dtype(values.dtype)
    return ops.abs(values) if "complex" in dtype else values


def _not_a_number(values):
    return number(ops.isnan(values))


def of_layers(loss, y_pred):
    """Whether the losses of the student's layers are finite.

    Args:
        loss: scalar, their sum.
        y_pred: the student's outputs, on a replica perhaps of no examples.

    Returns:
        Dict of scalars, 1 if not: "layers" of examples, "empty" of none.
    """
    bad = not_finite(loss)
    has_rows = num_rows(y_pred) > 0
    return {
        "layers": ops.where(has_rows, bad, 0.0),
        "empty": ops.where(has_rows, 0.0, bad),
    }


def bad_inputs(x):
    """How many inputs are not finite; not every layer passes a NaN on.

    Args:
        x: a batch's inputs.

    Returns:
        A float32 scalar.
    """
    inputs = _floats(x)
    total = sum((ops.sum(each) for each in inputs), _zero())
    return ops.cond(
        ops.isfinite(total),
        _zero,
        lambda: sum(map(not_finite, inputs), _zero()),
    )


def _origins(head, settled, infinite):
    """Where losses that are not finite come from.

    A sound teacher's statistics may meet sound logits at which the loss is too
    large for a number: that is the student's.

    Returns:
        Numbers of examples if it is the student's logits, and if it is what
        the teacher gave.
    """
    # Outputs that are not logits have no teacher.
    logits = getattr(settled, "logits", None)
    names = getattr(head.loss, "statistics", ())
    given = [settled.y[name] for name in names if name in settled.y]
    if logits is None or not given:
        return infinite, _zero()
    are_given_sound = functools.reduce(
        ops.logical_and, map(_is_sound, map(ops.convert_to_tensor, given))
    )
    is_teachers = ops.logical_and(
        _is_sound(logits), ops.logical_not(are_given_sound)
    )
    student = ops.where(is_teachers, 0.0, infinite)
    return student, infinite - student


def _is_sound(values):
    """Whether no value is NaN or infinite; -inf may rule a class out."""
    if "float" not in keras.backend.standardize_dtype(values.dtype):
        return ops.convert_to_tensor(True)
    values = ops.cast(values, "float32")
    is_number = ops.logical_not(ops.any(ops.isnan(values)))
    largest = ops.max(values, axis=-1)
    return ops.logical_and(is_number, ops.all(ops.isfinite(largest)))


def _floats(x):
    """The inputs of a float dtype, in float32."""
    stored = [
        backend.stored_values(values)
        for values in keras.tree.flatten(x)
        if values is not None
    ]
    return [
        ops.cast(values, "float32")
        for values in stored
        if "float" in keras.backend.standardize_dtype(values.dtype)
    ]


def _zero():
    """0 in float32, as `number` counts, whatever Keras's default dtype."""
    return ops.zeros((), dtype="float32")
