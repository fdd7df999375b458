"""Two logical CPU devices, so that two replicas can be held against one.

The tests run on the backend that KERAS_BACKEND names; those of TensorFlow's
own features are collected there alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import pytest  # noqa: E402

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
else:
    collect_ignore = ["test_distribution.py", "test_multiworker.py"]


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64():
    """float64, which JAX has to be told to compute in."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def two_replicas():
    # One for all: TensorFlow mixes up the collectives of two strategies over
    # the same devices in one process.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
