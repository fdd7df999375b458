"""Distribution strategies of the recipes: one device, many GPUs, many machines.

A strategy is made before TensorFlow is used for anything else. JAX and PyTorch
have none, which is `None`.
"""

import contextlib
import os
import shutil
import socket

import keras
import tensorflow as tf

from keras_kd import distribution
from study.messages import counted

KINDS = ("one", "mirrored", "multiworker")


def make_strategy(kind, replicas=None):
    """A distribution strategy.

    Args:
        kind: "one" for the default device; "mirrored" for a replica on each
            GPU, or, where there is none, on each of several logical CPU
            devices; "multiworker" for every GPU of several processes, each
            started with the same command, as `TF_CONFIG` or Slurm says.
        replicas: how many replicas "mirrored" uses; `None` for every GPU, or
            two CPU replicas.

    Returns:
        A `tf.distribute.Strategy`; `None` for "one" on a backend other
        than TensorFlow.

    Raises:
        ValueError: if there are fewer devices than replicas, the cluster is
            badly described, or the backend has no such strategy.
        OSError: if this worker's port is taken.
    """
    _check_backend(kind)
    if kind == "mirrored":
        return _mirrored(replicas)
    if replicas is not None and (kind == "multiworker" or replicas > 1):
        raise ValueError(
            "--replicas belongs to --strategy mirrored; one device holds one "
            "replica, and a worker uses all its GPUs. Received: --strategy "
            f"{kind} with --replicas {replicas}. Use --strategy mirrored, or "
            "leave --replicas out."
        )
    if kind == "multiworker":
        return _multiworker()
    if keras.backend.backend() != "tensorflow":
        return None
    return tf.distribute.get_strategy()


def _check_backend(kind):
    backend = keras.backend.backend()
    if kind != "one" and backend != "tensorflow":
        raise ValueError(
            "Only TensorFlow has the strategies mirrored and multiworker. "
            f"Received: --strategy {kind} with KERAS_BACKEND={backend}. Leave "
            "--strategy out, or set KERAS_BACKEND=tensorflow."
        )


def check_batch_size(batch_size, strategy):
    """Refuses a global batch that the replicas can't share evenly.

    Args:
        batch_size: integer.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Raises:
        ValueError: if the replicas do not divide the batch.
    """
    replicas = distribution.num_replicas(strategy)
    if batch_size % replicas:
        raise ValueError(
            "The replicas must share each batch evenly. Received: --batch-size "
            f"{batch_size} for {replicas} replicas. Use a multiple of "
            f"{replicas}."
        )


def _mirrored(replicas):
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return tf.distribute.MirroredStrategy(_logical_cpus(replicas or 2))
    replicas = replicas or len(gpus)
    if replicas > len(gpus):
        raise ValueError(
            "There must be a GPU for each replica. Received: --replicas "
            f"{replicas} with {counted(len(gpus), 'GPU')}. Lower --replicas."
        )
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])


def _logical_cpus(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    configuration = tf.config.LogicalDeviceConfiguration()
    # Refused once TensorFlow runs; then what is there must do.
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(cpu, [configuration] * count)
    devices = [d.name for d in tf.config.list_logical_devices("CPU")]
    if len(devices) < count:
        raise ValueError(
            f"{count} CPU replicas need {count} logical CPU devices. Received: "
            f"{len(devices)}. Start a new process, or lower --replicas."
        )
    return devices[:count]


def _multiworker():
    if os.environ.get("TF_CONFIG"):
        resolver, address = _described_by_tf_config()
    elif "SLURM_PROCID" in os.environ:
        resolver = _slurm_resolver()
        spec = resolver.cluster_spec()
        address = spec.task_address(*resolver.get_task_info())
    else:
        raise ValueError(
            "--strategy multiworker must be told who the workers are. "
            "Received: neither TF_CONFIG nor Slurm's variables. Start every "
            f"worker with its own TF_CONFIG, such as {_EXAMPLE}, or with srun."
        )
    _check_port(address)
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


_EXAMPLE = (
    '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def _described_by_tf_config():
    """TensorFlow's resolver, and this worker's "host:port"."""
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        spec = resolver.cluster_spec()
        address = spec.task_address(resolver.task_type, resolver.task_id)
        # The resolver takes any string, and each worker waits for all others.
        for other in [a for job in spec.as_dict().values() for a in job]:
            host, port = other.rsplit(":", 1)
            if not host or not 0 < int(port) < 65536:
                raise ValueError(f"address {other!r}")
    # What the resolver raises depends on what is missing.
    except Exception as error:
        raise ValueError(
            "TF_CONFIG must name the addresses of all workers and which of "
            f"them this is. Received: {os.environ['TF_CONFIG']} ({error}). Set "
            f"it to something like {_EXAMPLE}."
        ) from error
    return resolver, address


def _slurm_resolver():
    arguments = {}
    if shutil.which("nvidia-smi") is None:
        # The resolver divides by the GPUs of a task; without any, each task
        # has its processor.
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        arguments = {
            "gpus_per_node": tasks,
            "gpus_per_task": 1,
            "auto_set_gpu": False,
        }
    try:
        return tf.distribute.cluster_resolver.SlurmClusterResolver(**arguments)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            "Slurm's variables do not describe the workers. Received: "
            f"{error}. Start the recipe with srun, one task per worker."
        ) from error


def _check_port(address):
    port = int(address.rsplit(":", 1)[1])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise OSError(
                f"This worker's port is taken. Received: {address} "
                f"({error.strerror}). End the process that uses it, or give "
                "every worker another port for this one."
            ) from error
