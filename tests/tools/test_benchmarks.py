"""The benchmarks, small, as a maintainer starts them."""

import importlib
import re

import pytest
from click.testing import CliRunner

import keras_kd as kd

RATIO = re.compile(r"\d+\.\d+")


@pytest.mark.parametrize("tool", ["benchmark_losses", "benchmark_steps"])
def test_benchmarks_know_every_loss(tool):
    """By rows such as "kd_topk, k = 25"."""
    named = {row.split(",")[0] for row in importlib.import_module(tool).LOSSES}
    assert named - {"keras.distillation"} == set(kd.losses.NAMES)


def measure_plain_here(module, monkeypatch):
    """One loss has a process for its memory; of two, the other measures less.

    A process takes seconds to start, and what it prints is read alike.
    """
    in_process = module.memory_in_process

    def memory(name, *size):
        if name == module.PLAIN:
            return f"{module.peak_arrays(name, *size):.1f}"
        return in_process(name, *size)

    monkeypatch.setattr(module, "memory_in_process", memory)


@pytest.mark.parametrize(
    ("tool", "arguments", "rows"),
    [
        (
            "benchmark_cache",
            "--pair mlp --rounds 2 --scale 0.01",
            ("kd_pt", "kd_topk", "kd_sampled", "kd "),
        ),
        (
            "benchmark_pipeline",
            "--depth 8 --images 64 --batch-size 8 --rounds 2 "
            "--pipeline-batches 2 --steps 1",
            ("pipeline with a cache", "ResNet-8 step"),
        ),
        (
            "benchmark_losses",
            "--classes 50 --examples 4 --rounds 2 --loss kd_pt --markdown",
            ("| kd_pt | 50 | 4 |", "Keras sparse cross-entropy"),
        ),
        (
            "benchmark_steps",
            "--pair mlp --small --rounds 2 --steps 1 --markdown "
            "--loss kd_pt --loss kd_sampled",
            (
                "cached kd_sampled",
                "online kd_sampled",
                "keras.distillation",
                "histogram",
            ),
        ),
    ],
)
def test_a_benchmark_prints_a_ratio_for_each_case(
    tool, arguments, rows, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    module = importlib.import_module(tool)
    if tool == "benchmark_losses":
        measure_plain_here(module, monkeypatch)
    result = CliRunner().invoke(
        module.main, arguments.split(), catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    for row in rows:
        line = next(x for x in result.output.splitlines() if row in x)
        ratios = [float(ratio) for ratio in RATIO.findall(line)]
        assert ratios and all(ratio >= 0 for ratio in ratios), line
