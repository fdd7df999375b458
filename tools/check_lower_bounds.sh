#!/usr/bin/env bash
# Runs the tests of losses, metrics and the Distiller, on each backend, with
# the lowest version of every dependency that pyproject.toml allows:
#
#     pip install uv
#     tools/check_lower_bounds.sh [ENVIRONMENT]
#
# ENVIRONMENT is a folder for the virtual environment, kept if it is given. On
# Linux, PyTorch's old releases bring CUDA (3 GB) from the default index; set
# UV_TORCH_BACKEND=cpu where PyTorch's own index can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=${1:-}
if [ -z "$environment" ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
fi
uv venv --allow-existing "$environment"
export VIRTUAL_ENV=$environment TF_CPP_MIN_LOG_LEVEL=3
uv pip install --resolution lowest-direct --requirements pyproject.toml \
    --extra jax --extra torch
uv pip install pytest
uv pip list

failed=()
for backend in tensorflow jax torch; do
    echo "== $backend"
    KERAS_BACKEND=$backend "$environment/bin/python" -m pytest -q \
        --override-ini addopts= tests/test_losses.py tests/test_metrics.py \
        tests/test_distiller*.py || failed+=("$backend")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "The lowest versions fail on: ${failed[*]}. Raise the bounds in" \
        "pyproject.toml." >&2
    exit 1
fi
