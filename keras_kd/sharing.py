"""What student and teacher share, and which of it training would change."""

import keras

from keras_kd.backend.private import flatten_layers
from keras_kd.states import (
    all_variables,
    buffers,
    in_both,
    state_variables,
)


def check_sharing(student, teacher, save_teacher):
    """Refuses models that share what training changes, or a file can't hold.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model`, or `None`.
        save_teacher: whether a file is to hold both of them.

    Raises:
        ValueError: if they are one object, share variables that training
            changes, or share others and are to be saved together.
    """
    if teacher is None:
        return
    if student is teacher:
        raise ValueError(
            "The teacher must be a model of its own: training changes the "
            f"student. Received: {student.name!r} as both. To distil a model "
            "into itself give a copy with its weights, from "
            "keras.models.clone_model and set_weights."
        )
    of_teacher = all_variables(teacher)
    changed = in_both(_changed(student), of_teacher)
    if changed:
        raise ValueError(
            "Student and teacher must not share variables that training "
            f"changes. Received: {len(changed)} of them, such as "
            f"{changed[0].path!r}. Set `trainable = False` on the layers that "
            "both use, or give the teacher copies of them, from "
            "keras.models.clone_model and set_weights (of a PyTorch module "
            "from copy.deepcopy)."
        )
    changed = in_both(buffers(student), buffers(teacher))
    if changed:
        raise ValueError(
            "Student and teacher must not share buffers of PyTorch modules, "
            "which training changes in frozen layers, too. Received: "
            f"{len(changed)} of them, such as {changed[0].path!r}. Give the "
            "teacher a copy of the module, from copy.deepcopy."
        )
    shared = in_both(all_variables(student), of_teacher)
    if shared and save_teacher:
        raise ValueError(
            "A file that holds student and teacher can't hold layers that both "
            f"use. Received: {len(shared)} shared variables, such as "
            f"{shared[0].path!r}, and save_teacher=True. Pass "
            "save_teacher=False, or give the teacher copies of them, from "
            "keras.models.clone_model and set_weights."
        )


def _changed(student):
    """Variables of a student that training changes."""
    statistics = [
        variable
        for layer in flatten_layers(student)
        if _sets_statistics(layer)
        for variable in layer.non_trainable_variables
    ]
    return [
        *student.trainable_variables,
        *statistics,
        *state_variables(student),
    ]


def _sets_statistics(layer):
    """Whether a layer of Keras's changes what isn't trainable in it."""
    if isinstance(layer, keras.layers.SpectralNormalization):
        return True  # Also where it's frozen, kernel included.
    return isinstance(layer, keras.layers.BatchNormalization) and (
        layer.trainable
    )
