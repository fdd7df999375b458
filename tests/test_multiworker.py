"""The same student from one replica, two replicas and two processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_kd as kd

WORKER = pathlib.Path(__file__).parent / "worker.py"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environments(workers):
    """One environment per process; TF_CONFIG where there are several."""
    common = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    common.pop("TF_CONFIG", None)
    if workers == 1:
        return [common]
    cluster = {"worker": [f"localhost:{p}" for p in free_ports(workers)]}
    tasks = [{"type": "worker", "index": i} for i in range(workers)]
    return [
        {**common, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
        for task in tasks
    ]


def start(kind, folder, *options, workers=1, last_options=()):
    """Starts the processes of a training; returns them and their output."""
    folder.mkdir(exist_ok=True)
    processes = []
    for index, environment in enumerate(environments(workers)):
        more = last_options if index == workers - 1 else ()
        with open(folder / f"output-{index}", "w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, WORKER, kind, folder, *options, *more],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def finish(processes, folder):
    """Waits for processes and returns their results."""
    for index, process in enumerate(processes):
        code = process.wait(timeout=240)
        assert code == 0, (folder / f"output-{index}").read_text()[-3000:]
    return [
        json.loads((folder / f"result-{index}.json").read_text())
        for index in range(len(processes))
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return finish(start("one", folder), folder)[0]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return folder, finish(start("multiworker", folder, workers=2), folder)


def assert_same(found, expected, tolerance=1e-5):
    assert found["iterations"] == expected["iterations"] == 20
    assert found["counts"] == expected["counts"]
    for one, other in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        found["predict"], expected["predict"], rtol=tolerance, atol=tolerance
    )
    assert set(found["history"]) == set(expected["history"])
    # The mean of w is a mean over few, some of them huge.
    for key, values in expected["history"].items():
        np.testing.assert_allclose(
            found["history"][key], values, rtol=10 * tolerance, err_msg=key
        )
    for key, value in expected["evaluate"].items():
        assert found["evaluate"][key] == pytest.approx(value, rel=tolerance)


def test_two_replicas_end_where_one_does(alone, tmp_path):
    assert_same(finish(start("mirrored", tmp_path), tmp_path)[0], alone)


def test_two_workers_end_where_one_process_does(alone, workers):
    for result in workers[1]:
        assert_same(result, alone)


def test_only_the_chief_writes_and_what_it_writes_is_whole(workers, alone):
    folder = workers[0]
    assert len(list((folder / "tensorboard").rglob("*tfevents*"))) == 2
    assert len((folder / "log.csv").read_text().splitlines()) == 5
    assert not (folder / "backup").exists()
    assert {path.name for path in folder.glob("*.keras")} == {
        *(f"{epoch}.keras" for epoch in (1, 2, 3, 4)),
        "distiller.keras",
    }
    loaded = keras.models.load_model(folder / "distiller.keras")
    assert isinstance(loaded, kd.Distiller)
    found = loaded.student.get_weights()
    for one, other in zip(found, alone["weights"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_several_steps_in_a_call_and_half_precision(alone, tmp_path):
    options = ("--steps-per-execution", "2", "--unknown-length")
    first = tmp_path / "steps"
    processes = start("multiworker", first, *options, workers=2)
    assert_same(finish(processes, first)[0], alone)
    results = []
    for kind, count in (("one", 1), ("multiworker", 2)):
        folder = tmp_path / kind
        processes = start(kind, folder, "--mixed-precision", workers=count)
        results.append(finish(processes, folder)[0])
    for one, other in zip(*(r["weights"] for r in results), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)


def test_a_killed_worker_ends_the_other_and_both_go_on_later(alone, tmp_path):
    """SIGKILL in the middle of the third epoch."""
    processes = start(
        "multiworker", tmp_path, workers=2, last_options=("--die-at", "12")
    )
    processes[1].wait(timeout=240)
    began = time.monotonic()
    assert processes[0].wait(timeout=240) != 0
    assert time.monotonic() - began < 60
    output = (tmp_path / "output-0").read_text()
    assert "Another worker does not answer" in output
    assert (tmp_path / "backup" / "training_metadata.json").exists()

    again = finish(start("multiworker", tmp_path, workers=2), tmp_path)
    for result in again:
        # Only what was left to do is in the history.
        expected = {
            **alone,
            "history": {k: v[2:] for k, v in alone["history"].items()},
        }
        assert_same(result, expected)
