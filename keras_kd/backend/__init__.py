"""What differs between TensorFlow, JAX and PyTorch, a module a backend.

Each has a `Trainer`, the part of the Distiller that runs a step, and two
functions: `custom_gradient`, as `tf.custom_gradient`, and `compiled`, which
runs models outside the gradient. Keras's own choice of backend decides which
module is used; the rest of the package knows none of them.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_kd.backend.tensorflow import Trainer, compiled, custom_gradient
elif keras.backend.backend() == "jax":
    from keras_kd.backend.jax import Trainer, compiled, custom_gradient
elif keras.backend.backend() == "torch":
    from keras_kd.backend.torch import Trainer, compiled, custom_gradient
else:
    raise ImportError(
        "keras_kd trains on TensorFlow, JAX and PyTorch. Received: Keras "
        f"backend {keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND to tensorflow, jax or torch before Keras is imported."
    )

__all__ = ["Trainer", "compiled", "custom_gradient"]
