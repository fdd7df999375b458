"""A PyTorch `DataLoader` of raw text, beside lists of the same."""

import torch
from test_kerashub import BATCH, assert_same_weights, compiled, text_pair


def test_a_loader_of_raw_text_trains_as_lists_do():
    student, teacher, x, y = text_pair()
    distiller = compiled(student, teacher)
    start = student.get_weights()
    given = {"epochs": 2, "shuffle": False, "verbose": 0}
    distiller.fit(x, y, batch_size=BATCH, **given)
    expected, _, _, _ = text_pair()
    expected.set_weights(student.get_weights())
    student.set_weights(start)
    pairs = list(zip(x, y, strict=True))
    distiller.fit(torch.utils.data.DataLoader(pairs, BATCH), **given)
    assert_same_weights(student, expected, 1e-5)
