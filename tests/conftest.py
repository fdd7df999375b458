"""Logical CPU devices, so that several replicas can be held against one.

The tests run on the backend that KERAS_BACKEND names; those of TensorFlow's
own features are collected there alone.
"""

import gc
import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compile without what makes programs fast that run for long.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
# There is a process for each core already; PyTorch's further threads would wait
# for each other, at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# JAX's programs are compiled once for all tests and processes.
_PROGRAMS = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _deals_out_tests(config):
    """Whether this process runs no test, but hands them to others."""
    is_worker = hasattr(config, "workerinput")
    return bool(config.getoption("numprocesses", None)) and not is_worker


def pytest_configure(config):
    # The processes that run the tests wait for this one, which would import
    # TensorFlow for seconds.
    if not _deals_out_tests(config):
        _set_up()


def _set_up():
    # Tracing makes so many objects that by default a tenth of the time goes
    # into looking for those to collect.
    gc.set_threshold(50_000, 20, 100)
    if _backend() == "tensorflow":
        _set_up_tensorflow()


def _backend():
    import keras

    return keras.backend.backend()


def _set_up_tensorflow():
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 4,
    )

    # When an iterator is deleted, TensorFlow at times waits for the thread that
    # tunes it, the longer the older it is: minutes over a whole run.
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    iterator = tf.data.Dataset.__iter__
    tf.data.Dataset.__iter__ = lambda self: iterator(self.with_options(untuned))


# What only TensorFlow has.
_TENSORFLOW_ALONE = ("test_distribution", "test_logs", "test_multiworker")


def pytest_ignore_collect(collection_path):
    is_tensorflows = collection_path.stem in _TENSORFLOW_ALONE
    return True if is_tensorflows and _backend() != "tensorflow" else None


# Files that take longest, which come first: begun last, they would keep one
# process busy after all others have ended.
_LONGEST = ("multiworker", "student_trainer", "ptb_lstm", "in_memory")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.stem.endswith(_LONGEST))


def pytest_collection_finish():
    _freeze()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    yield
    _freeze()


def _freeze():
    """Exempts what stays from later searches, which would take ever longer."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def floatx():
    """Sets Keras's default dtype, until the test ends."""
    import keras

    before = keras.config.floatx()
    yield keras.config.set_floatx
    keras.config.set_floatx(before)


@pytest.fixture
def float64():
    """float64, which JAX has to be told to compute in."""
    if _backend() != "jax":
        yield
        return
    import jax

    # In old releases it was experimental.
    if not hasattr(jax, "enable_x64"):
        from jax.experimental import enable_x64
    else:
        enable_x64 = jax.enable_x64
    with enable_x64(True):
        yield


@pytest.fixture
def functions_run_eagerly(request):
    """Runs eagerly what TensorFlow compiles; a test may ask for `traced`.

    To trace a function takes longer than to run it for a few batches.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly("traced" not in request.fixturenames)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def traced():
    """Asks for what users run."""


# One of each for all: TensorFlow tells the collectives of strategies apart by a
# key that each counts from where its class says.


@pytest.fixture(scope="session")
def two_replicas():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def four_replicas():
    import tensorflow as tf

    class OtherStrategy(tf.distribute.MirroredStrategy):
        _collective_key_base = 1_000_000

    return OtherStrategy([f"CPU:{i}" for i in range(4)])
