"""A study's folder and a `DataLoader` in whose data one label changes."""

import functools

import pytest
from test_student_trainer import (
    BATCH,
    LABELS,
    X,
    assert_another_study,
    make,
)
from torch.utils.data import DataLoader


def loader(x, labels, shuffle):
    pairs = list(zip(x, labels, strict=True))
    return DataLoader(pairs, BATCH, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [False, True])
def test_one_other_label_makes_another_study(shuffle, tmp_path):
    make_data = functools.partial(loader, shuffle=shuffle)
    assert_another_study(make_data, "train", tmp_path)


def test_examples_without_an_order_are_refused():
    trainer = make(test=loader(X, LABELS, shuffle=True))
    with pytest.raises(ValueError, match="a DataLoader .* in another order"):
        trainer("plain", 0)
