"""Neither importing the package nor training loads TensorFlow elsewhere."""

import pytest
from test_agreement import run


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_and_caches_of_arrays_need_no_tensorflow(backend, tmp_path):
    """And on JAX the recipe of one GPU."""
    run("without_tensorflow.py", backend, tmp_path)
