"""The same student from one process and from two.

Two replicas of one process are in test_distribution.py and test_logs.py.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import trainings
from models import EAGERLY, assert_same_weights

import keras_kd as kd

WORKER = pathlib.Path(__file__).parent / "worker.py"
# Cases with weights, masks and ignored labels; others are in test_logs.py.
LOGGED = ("tokens",)


@contextlib.contextmanager
def free_ports(count):
    """Ports that nothing else takes; servers that share ports can."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(("localhost", 0))
        yield [each.getsockname()[1] for each in sockets]


class Workers:
    """Two processes that train together, once they have ended."""

    def __init__(self, folder, *names):
        """Runs trainings in two processes and waits until both have ended."""
        self.folder = folder
        with free_ports(2) as ports, contextlib.ExitStack() as stack:
            cluster = {"worker": [f"localhost:{port}" for port in ports]}
            processes = [
                self._start(stack, index, cluster, names) for index in range(2)
            ]
            self.codes = [process.wait() for process in processes]

    def _start(self, stack, index, cluster, names):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        output = open(self.folder / f"output-{index}", "a")
        process = subprocess.Popen(
            [sys.executable, WORKER, self.folder, *names],
            env={**os.environ, "TF_CONFIG": config},
            stdout=stack.enter_context(output),
            stderr=subprocess.STDOUT,
        )
        # Whatever ends the test, no process of it stays.
        stack.callback(process.kill)
        return process

    def output(self, index):
        """What a worker has printed."""
        return (self.folder / f"output-{index}").read_text()

    def results(self, name):
        """What each worker's training led to."""
        results = []
        for index in range(2):
            path = self.folder / name / f"result-{index}.json"
            assert path.exists(), self.output(index)[-3000:]
            results.append(json.loads(path.read_text()))
        return results


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """All trainings that one pair of processes can do, the last interrupted.

    A process takes longer to start than to train.
    """
    folder = tmp_path_factory.mktemp("workers")
    return Workers(folder, "half", *LOGGED, "interrupted")


@pytest.fixture(scope="module")
def resumed(workers):
    """Another pair of processes, which ends what was interrupted."""
    return Workers(workers.folder, "resumed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    keras.utils.set_random_seed(0)
    return trainings.train(
        tf.distribute.get_strategy(),
        tmp_path_factory.mktemp("alone"),
        **EAGERLY,
    )


def assert_same(found, expected, tolerance=1e-5):
    assert found["iterations"] == expected["iterations"] == 10
    assert found["counts"] == expected["counts"]
    assert_same_weights(found["weights"], expected["weights"], tolerance)
    np.testing.assert_allclose(
        found["predict"], expected["predict"], rtol=tolerance, atol=tolerance
    )
    # The mean of w is a mean over few, some of them huge.
    assert_same_logs(found["history"], expected["history"], 10 * tolerance)
    assert_same_logs(found["evaluate"], expected["evaluate"], tolerance)


def assert_same_logs(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(
            found[key], values, rtol=tolerance, err_msg=key
        )


def test_a_killed_worker_ends_the_other(workers):
    """SIGKILL in the middle of the second epoch; two steps run in a call."""
    chief, other = workers.codes
    assert other == -signal.SIGKILL and chief not in (0, -signal.SIGKILL)
    assert "Another worker does not answer" in workers.output(0)
    backup = workers.folder / "interrupted" / "backup"
    assert (backup / "training_metadata.json").exists()


def test_two_workers_that_resumed_end_where_one_process_does(alone, resumed):
    # Only what was left to do is in the history.
    left = {key: values[1:] for key, values in alone["history"].items()}
    for result in resumed.results("resumed"):
        assert_same(result, {**alone, "history": left})


def test_only_the_chief_writes_and_what_it_writes_is_whole(resumed, alone):
    """In both of its runs, each an epoch of training and of validation."""
    folder = resumed.folder / "interrupted"
    for name in ("tensorboard", "keras_tensorboard"):
        assert len(list((folder / name).rglob("*tfevents*"))) == 4
    tables = [path.read_text() for path in folder.glob("*.csv")]
    assert [len(table.splitlines()) for table in tables] == [2, 2]
    assert not (folder / "backup").exists()
    assert {path.name for path in folder.glob("*.keras")} == {
        *(f"{epoch}.keras" for epoch in (1, 2)),
        "distiller.keras",
    }
    loaded = keras.models.load_model(folder / "distiller.keras")
    assert isinstance(loaded, kd.Distiller)
    assert_same_weights(loaded.student.get_weights(), alone["weights"])


def test_overflow_on_one_worker_skips_the_step_on_both(workers, tmp_path):
    one = trainings.train_in_half_precision(
        tf.distribute.get_strategy(), tmp_path, **EAGERLY
    )
    # The examples that overflow are left out, the others are trained on.
    assert 0 < one["steps"] < 10 and one["scale"] < 1
    for result in workers.results("half"):
        assert result["steps"] == one["steps"]
        assert result["scale"] == one["scale"]
        assert_same_weights(result["weights"], one["weights"], 0.02)


@pytest.mark.parametrize("case", LOGGED)
def test_two_workers_log_what_one_process_does(case, workers):
    expected = trainings.log(tf.distribute.get_strategy(), case, **EAGERLY)
    for result in workers.results(case):
        assert_same_logs(result["fit"], expected["fit"])
        assert_same_logs(result["evaluate"], expected["evaluate"])
