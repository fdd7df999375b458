"""Model outputs: logits, whatever the model ends in, and their classes."""

import keras
import numpy as np
from keras import ops


def to_logits(model, outputs):
    """The logits behind a model's outputs.

    Args:
        model: the `keras.Model` that made them.
        outputs: [..., classes], logits, or probabilities if the model ends in
            softmax.

    Returns:
        [..., classes]: the outputs themselves; or, after a softmax, its input
        where Keras kept it (exact), else the logarithm of the probabilities.

    Raises:
        ValueError: if the model has several outputs.
    """
    if keras.tree.is_nested(outputs):
        raise ValueError(
            f"Model {model.name!r} must have one output, the logits. Received: "
            f"{len(keras.tree.flatten(outputs))} outputs. Wrap it, as in "
            "keras.Model(model.inputs, model.outputs[0])."
        )
    # Keras's softmax activation leaves its input on its output, and Keras's
    # own cross-entropies take it from there.
    kept = getattr(outputs, "_keras_logits", None)
    if kept is not None:
        return kept
    if ends_in_softmax(model):
        dtype = keras.backend.standardize_dtype(outputs.dtype)
        wide = dtype if dtype == "float64" else "float32"
        tiny = np.finfo(wide).tiny
        return ops.log(ops.maximum(ops.cast(outputs, wide), tiny))
    return outputs


def ends_in_softmax(model):
    """Whether a model's last layer or operation is a softmax.

    Args:
        model: a `keras.Model`.

    Returns:
        A boolean. A softmax written out in the `call` of a subclassed model
        is not seen.
    """
    outputs = getattr(model, "outputs", None)
    if outputs:
        last = outputs[0]._keras_history.operation
    else:
        last = model.layers[-1] if model.layers else None
    if isinstance(last, keras.Model):
        return ends_in_softmax(last)
    if isinstance(last, keras.layers.Wrapper):
        last = last.layer
    return (
        getattr(last, "activation", None) is keras.activations.softmax
        or type(last).__name__ == "Softmax"
    )


def check_class_counts(student, teacher):
    """Refuses a pair of models with different numbers of classes.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model`.

    Raises:
        ValueError: if both are known and differ.
    """
    counts = _class_count(student), _class_count(teacher)
    if None not in counts and counts[0] != counts[1]:
        raise ValueError(class_count_message(*counts))


def class_count_message(student_classes, teacher_classes):
    """What to say of models with different numbers of classes."""
    return (
        "Student and teacher must have the same classes in the same order. "
        f"Received: a student with {student_classes} classes and a teacher "
        f"with {teacher_classes}. Give the student's last layer "
        f"{teacher_classes} units, or use a teacher of the same task."
    )


def _class_count(model):
    outputs = getattr(model, "outputs", None)
    return outputs[0].shape[-1] if outputs else None
