"""What the tests of the recipes share."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder in Mikolov's form, of a language that can be learnt."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    for part, lines in (("train", 300), ("valid", 40), ("test", 40)):
        starts = random.integers(0, 40, lines)
        (folder / f"ptb.{part}.txt").write_text(
            "".join(
                " " + " ".join(f"w{(s + i) % 50}" for i in range(7)) + " \n"
                for s in starts
            )
        )
    return folder


@pytest.fixture
def mirrored(two_replicas, monkeypatch):
    """Recipes in this process train on the one strategy that it may have."""
    from study import strategies

    monkeypatch.setattr(strategies, "make_strategy", lambda *_: two_replicas)
    return ("--strategy", "mirrored", "--replicas", 2)
