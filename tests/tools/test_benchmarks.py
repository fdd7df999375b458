"""The benchmarks, small, as a maintainer starts them."""

import os
import pathlib
import subprocess
import sys

import pytest

TOOLS = pathlib.Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        (
            "benchmark_cache.py",
            "--pair mlp --rounds 2 --scale 0.01",
            ("kd_pt", "write / predict", "200"),
        ),
        (
            "benchmark_pipeline.py",
            "--depth 8 --images 64 --batch-size 8 --rounds 2 "
            "--pipeline-batches 2 --steps 1",
            ("pipeline with a cache", "ResNet-8 step", "1.0"),
        ),
        (
            "benchmark_losses.py",
            "--classes 50 --examples 4 --rounds 2 --loss kd_pt --markdown",
            ("| kd_pt | 50 | 4 |", "Keras sparse cross-entropy", "1.00"),
        ),
        (
            "benchmark_steps.py",
            "--pair mlp --small --rounds 2 --steps 1 --markdown",
            (
                "cached kd_topk",
                "online kd |",
                "keras.distillation",
                "histogram",
            ),
        ),
    ],
)
def test_a_benchmark_prints_its_table(tool, arguments, words):
    process = subprocess.run(
        [sys.executable, TOOLS / tool, *arguments.split()],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    for word in words:
        assert word in process.stdout
