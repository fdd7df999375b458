"""What differs between TensorFlow, JAX and PyTorch, a module a backend.

Each has a `Trainer`, the part of the Distiller that runs a step, and functions:
`custom_gradient`, as `tf.custom_gradient`; `compiled`, which runs models
outside the gradient; and `take_classes`, `add_to_classes` and `add_to_rows`,
for which `keras.ops` has nothing that is fast on TensorFlow. Keras's own choice
of backend decides which module is used; the rest of the package knows none of
them.
"""

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    from keras_kd.backend.tensorflow import (
        Trainer,
        add_to_classes,
        add_to_rows,
        compiled,
        custom_gradient,
        take_classes,
    )
elif keras.backend.backend() == "jax":
    from keras_kd.backend.jax import (
        Trainer,
        add_to_classes,
        add_to_rows,
        compiled,
        custom_gradient,
        take_classes,
    )
elif keras.backend.backend() == "torch":
    from keras_kd.backend.torch import (
        Trainer,
        add_to_classes,
        add_to_rows,
        compiled,
        custom_gradient,
        take_classes,
    )
else:
    raise ImportError(
        "keras_kd trains on TensorFlow, JAX and PyTorch. Received: Keras "
        f"backend {keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND to tensorflow, jax or torch before Keras is imported."
    )

__all__ = [
    "Trainer",
    "add_to_classes",
    "add_to_rows",
    "compiled",
    "custom_gradient",
    "from_tf_data",
    "take_classes",
]


def from_tf_data(element):
    """An element of a `tf.data.Dataset` as tensors of the backend.

    Args:
        element: TensorFlow's tensors, or a nested structure of them.

    Returns:
        The same structure.
    """
    if keras.backend.backend() == "tensorflow":
        return element
    return keras.tree.map_structure(
        lambda value: keras.ops.convert_to_tensor(np.asarray(value)), element
    )
