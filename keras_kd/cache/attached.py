"""Data other than a `tf.data.Dataset`, with what a cache keeps of them."""

import keras
import numpy as np

from keras_kd import data as any_data


def of(data, reading, epoch, shuffle=False, seed=0):
    """Data for `fit`, each batch compared and joined when it is read.

    Args:
        data: `keras_kd.data.Data`.
        reading: `Reading`.
        epoch: integer, number of the first epoch, which decides on the view.
        shuffle: of arrays, whether each epoch has another order.
        seed: integer, of these orders.

    Returns:
        A `keras.utils.PyDataset`, or a PyTorch `DataLoader` for one.
    """
    if isinstance(data, any_data.ArrayData):
        return _AttachedArrays(data, reading, epoch, shuffle, seed)
    view = epoch % reading.manifest.views
    if isinstance(data, any_data.PyData):
        return _AttachedPyDataset(data, reading, view)
    return _attached_loader(data, reading, view)


class _AttachedArrays(any_data.EpochsOfArrays):
    """Batches of arrays; each epoch has the next view."""

    def __init__(self, data, reading, epoch, shuffle, seed):
        self._reading = reading
        super().__init__(data, shuffle, seed, epoch)

    def __getitem__(self, number):
        rows = self.rows(number)
        batch = any_data.take(self._data.arrays, rows)
        view = self.epoch % self._reading.manifest.views
        return self._reading.joined(batch, view, rows)


class _AttachedPyDataset(keras.utils.PyDataset):
    """The batches of another PyDataset."""

    def __init__(self, data, reading, view):
        given = data.dataset
        # In threads: a process of its own would need a reader of its own.
        super().__init__(given.workers, False, given.max_queue_size)
        self._data = data
        self._reading = reading
        self._view = view
        self._rows = any_data.num_rows(data.first()[0])

    def on_epoch_begin(self):
        """As of the other one."""
        self._data.dataset.on_epoch_begin()

    def on_epoch_end(self):
        """As of the other one; an order that changes here is noticed."""
        self._data.dataset.on_epoch_end()

    @property
    def num_batches(self):
        """Number of batches."""
        return self._data.elements

    def __getitem__(self, number):
        batch = self._data[number]
        start = number * self._rows
        positions = np.arange(start, start + any_data.num_rows(batch[0]))
        return self._reading.joined(batch, self._view, positions)


def _attached_loader(data, reading, view):
    """The batches of another DataLoader."""
    import torch

    class Joined(torch.utils.data.IterableDataset):
        """Reads the other loader, which may have workers, in this process."""

        def __len__(self):
            return len(data.loader)

        def __iter__(self):
            start = 0
            for batch in data.batches():
                stop = start + any_data.num_rows(batch[0])
                yield reading.joined(batch, view, np.arange(start, stop))
                start = stop
            if start != reading.manifest.examples:
                raise reading.not_these_data(f"{start} examples in all")

    # Its elements are batches already.
    return torch.utils.data.DataLoader(Joined(), batch_size=None)
