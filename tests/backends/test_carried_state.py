"""JAX: recurrent layers carry their state as they do on TensorFlow.

Keras itself does not carry it there, and trains no such layer on PyTorch.
"""

import numpy as np
import pytest
from test_agreement import assert_close, run

BACKENDS = ("tensorflow", "jax")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried_state")
    results = []
    for backend in BACKENDS:
        path = folder / f"{backend}.npz"
        run("carried_state.py", backend, path, folder / backend)
        with np.load(path) as file:
            results.append(dict(file))
    return results


def test_state_is_carried_as_on_tensorflow(found):
    one, other = found
    assert one.keys() == other.keys()
    for key in one:
        assert_close(one[key], other[key], key)


@pytest.mark.parametrize("place", range(len(BACKENDS)))
def test_every_kind_of_step_changes_the_state(found, place):
    states = [
        found[place][f"online {when}"]
        for when in (
            "student state",
            "state after predict",
            "state after evaluate",
        )
    ]
    for i, state in enumerate(states):
        assert np.abs(state).max() > 0.01
        assert not any(np.array_equal(state, s) for s in states[:i])


@pytest.mark.parametrize("place", range(len(BACKENDS)))
def test_a_refused_batch_leaves_the_state_as_it_was(found, place):
    before, after = (
        found[place][f"student state {when} refusal"]
        for when in ("before", "after")
    )
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("place", range(len(BACKENDS)))
def test_a_cache_follows_the_state(found, place):
    online, cached = (
        found[place][f"{kind} losses"] for kind in ("online", "cached")
    )
    assert_close(online, cached, "losses")
