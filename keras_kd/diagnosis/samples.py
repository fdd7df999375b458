"""A few batches of the data, kept to look at their inputs again."""

import keras
import numpy as np

_BATCHES = 4
_ROWS = 256


class Samples:
    """Some of the batches, every one with the same chance.

    Memory is that of four batches, however many there are.

    Attributes:
        batches: list of the kept ones, `Examples`.
    """

    def __init__(self):
        self.batches = []
        self._seen = 0
        self._random = np.random.default_rng(0)

    def add(self, settled):
        """Adds a batch, or not.

        Args:
            settled: an `Examples`.
        """
        self._seen += 1
        if len(self.batches) < _BATCHES:
            self.batches.append(settled)
            return
        place = self._random.integers(self._seen)
        if place < _BATCHES:
            self.batches[place] = settled

    def rows(self):
        """Rows of the kept batches, in random order.

        Returns:
            (x, labels, counted): a NumPy array of 256 rows or less, and [rows,
            n] class ids and booleans, n labels a row. `None` if the models
            take several inputs, or ragged or sparse ones.
        """
        arrays = [
            [_array(each) for each in keras.tree.flatten(batch.x)]
            for batch in self.batches
        ]
        if any(len(each) != 1 or each[0] is None for each in arrays):
            return None
        parts = [
            (
                x,
                batch.labels.reshape(len(x), -1),
                batch.counted.reshape(len(x), -1),
            )
            for (x,), batch in zip(arrays, self.batches, strict=True)
        ]
        if len({part[0].shape[1:] for part in parts}) > 1:
            # Batches padded to different lengths.
            parts = parts[:1]
        joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
        order = self._random.permutation(len(joined[0]))[:_ROWS]
        return tuple(each[order] for each in joined)


def _array(tensor):
    """A tensor as a NumPy array; `None` if it is ragged or sparse."""
    array = np.asarray(tensor)
    return array if array.shape == tuple(tensor.shape) else None
