"""Strategies, and clusters that are described wrongly."""

import json
import socket

import pytest
import tensorflow as tf
from study import strategies

TASK = {"type": "worker", "index": 0}


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    return monkeypatch


def test_one_device_and_several_replicas_are_refused():
    with pytest.raises(ValueError, match="--replicas 2"):
        strategies.make_strategy("one", 2)


def test_more_replicas_than_devices_are_refused():
    there = len(tf.config.list_logical_devices("CPU"))
    with pytest.raises(ValueError, match=f"Received: {there}"):
        strategies.make_strategy("mirrored", 64)


def test_a_batch_that_the_replicas_cannot_share_is_refused(two_replicas):
    strategies.check_batch_size(8, two_replicas)
    with pytest.raises(ValueError, match="--batch-size 7 for 2 replicas"):
        strategies.check_batch_size(7, two_replicas)


def test_workers_that_are_not_described_are_refused(no_cluster):
    with pytest.raises(ValueError, match="neither TF_CONFIG nor Slurm"):
        strategies.make_strategy("multiworker")
    with pytest.raises(ValueError, match="--replicas 2"):
        strategies.make_strategy("multiworker", 2)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{worker: 0", "Expecting"),
        (json.dumps({"task": TASK}), "No such job in cluster: 'worker'"),
        (json.dumps({"cluster": {"worker": ["a:1"]}}), "cluster: None"),
        (
            json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}),
            "cluster: None",
        ),
        (
            json.dumps(
                {
                    "cluster": {"worker": ["a:1"]},
                    "task": {"type": "worker", "index": 1},
                }
            ),
            "No task with index 1 in job 'worker'",
        ),
        (json.dumps({"cluster": {"worker": ["a"]}, "task": TASK}), "unpack"),
        (
            json.dumps({"cluster": {"worker": ["a:99999"]}, "task": TASK}),
            "a:99999",
        ),
        ("[]", "cluster: None"),
    ],
)
def test_a_malformed_cluster_is_refused(no_cluster, config, problem):
    no_cluster.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=problem) as caught:
        strategies.make_strategy("multiworker")
    assert config in str(caught.value)
    assert "Set it to something like" in str(caught.value)


def test_a_port_that_is_taken_is_refused(no_cluster):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        cluster = {"worker": [address, "localhost:1"]}
        no_cluster.setenv(
            "TF_CONFIG", json.dumps({"cluster": cluster, "task": TASK})
        )
        with pytest.raises(OSError, match=f"port is taken.*{address}"):
            strategies.make_strategy("multiworker")


def test_slurm_names_the_workers(no_cluster):
    """Two nodes of two tasks each; this is the third."""
    for name, value in {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }.items():
        no_cluster.setenv(name, value)
    no_cluster.setattr(strategies.shutil, "which", lambda name: None)
    resolver = strategies._slurm_resolver()
    assert resolver.cluster_spec().as_dict() == {
        "worker": ["n1:8888", "n1:8889", "n2:8888", "n2:8889"]
    }
    assert resolver.get_task_info() == ("worker", 2)


def test_slurm_variables_that_contradict_are_refused(no_cluster):
    no_cluster.setenv("SLURM_PROCID", "0")
    no_cluster.setenv("SLURM_STEP_NUM_TASKS", "4")
    no_cluster.setenv("SLURM_STEP_NODELIST", "n1")
    no_cluster.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    with pytest.raises(ValueError, match="4 tasks.*srun"):
        strategies.make_strategy("multiworker")
