"""JAX: two devices end where one does."""

import os

import numpy as np
from test_agreement import run


def test_two_devices_end_where_one_does(tmp_path):
    results = []
    for count in (1, 2):
        path = tmp_path / f"{count}.npz"
        flags = f"--xla_force_host_platform_device_count={count}"
        flags = f"{os.environ['XLA_FLAGS']} {flags}"
        run("data_parallel.py", "jax", path, XLA_FLAGS=flags)
        with np.load(path) as file:
            results.append(dict(file))
    one, two = results
    assert (one.pop("devices"), two.pop("devices")) == (1, 2)
    for key, weight in one.items():
        np.testing.assert_allclose(two[key], weight, 1e-5, 1e-5, err_msg=key)
