"""JAX: two devices end where one would, which NumPy's float64 says."""

import os

import inputs
import numpy as np
from test_agreement import assert_close, run, trained_by_numpy


def test_two_devices_end_where_one_would(tmp_path):
    path = tmp_path / "two.npz"
    flags = "--xla_force_host_platform_device_count=2"
    flags = f"{os.environ['XLA_FLAGS']} {flags}"
    run("data_parallel.py", "jax", path, XLA_FLAGS=flags)
    with np.load(path) as file:
        found = dict(file)
    assert found.pop("devices") == 2
    message = str(found.pop("uneven"))
    assert "2 devices" in message and "a batch of 3 examples" in message
    for name in inputs.LOSSES:
        for i, expected in enumerate(trained_by_numpy(name, inputs.WHOLE)):
            assert_close(found.pop(f"{name} {i}"), expected, f"{name} {i}")
    assert not found
