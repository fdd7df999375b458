"""All that one backend computes to be held against others, in one process.

    KERAS_BACKEND=jax python tests/backends/compared.py FOLDER

`test_agreement.py` starts it once for each backend, which takes seconds to
import.
"""

import importlib
import pathlib
import sys

import keras

# What each script writes. In this order, as the later ones load TensorFlow and
# the last one leaves Keras distributing what it trains.
FILES = {
    "compute": "compute.npz",
    "students": "students.json",
    "diagnosis": "diagnosis.json",
    "carried_state": "carried_state.npz",
    "data_parallel": "data_parallel.npz",
}
# Keras trains no layer that carries state on PyTorch.
NOT_ON = {
    "tensorflow": {"data_parallel"},
    "torch": {"carried_state", "data_parallel"},
}


def main(folder):
    for script, file in FILES.items():
        if script not in NOT_ON.get(keras.backend.backend(), ()):
            importlib.import_module(script).main(pathlib.Path(folder, file))


if __name__ == "__main__":
    main(sys.argv[1])
