"""What importing the package and training load on JAX and PyTorch."""

import pytest
from test_agreement import run


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_does_not_load_tensorflow(backend):
    run("train_without_tensorflow.py", backend)


def test_the_recipe_of_one_gpu_does_not_need_tensorflow():
    run("gpu_without_tensorflow.py", "jax")
