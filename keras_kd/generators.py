"""Global generators of random numbers, of which Keras shuffles with some."""

import random

import numpy as np

from keras_kd import backend

_NUMPYS = "MT19937"


def read_generators():
    """What random numbers follow from that no `keras.Variable` holds.

    Returns:
        A list of arrays: of Python's `random`, of NumPy's global generator,
        and of PyTorch's, where it computes.
    """
    _, words, gauss = random.getstate()
    kind, key, *rest = np.random.get_state(legacy=True)
    if kind != _NUMPYS:  # A program may put another in its place.
        key, rest = [], []
    return [
        np.array(words, "uint32"),
        np.array([] if gauss is None else [gauss], "float64"),
        np.array(key, "uint32"),
        np.array(rest, "float64"),
        *backend.random_states(),
    ]


def assign_generators(arrays):
    """Lets random numbers go on from `read_generators`.

    Args:
        arrays: the list.
    """
    words, gauss, key, rest, *of_backend = arrays
    version = random.getstate()[0]
    random.setstate(
        (version, tuple(words.tolist()), *(gauss.tolist() or [None]))
    )
    if len(key):
        position, has_gauss, gauss = rest.tolist()
        np.random.set_state(
            (_NUMPYS, key, int(position), int(has_gauss), gauss)
        )
    backend.set_random_states(of_backend)
