"""Checksums of data, which tell them from others."""

import hashlib

import keras
import numpy as np

from keras_kd import data as any_data


def of_all(read, begin_again=lambda: None):
    """A checksum of all data, as far as two readings give the same.

    Args:
        read: function without arguments that begins a reading: an iterable of
            batches.
        begin_again: function that is called between the two.

    Returns:
        A dict with one key, or none: "sha256" of the batches in their order;
        "rows", of those in any order; or "first", of the first batch.
    """
    one = _checksums(read())
    begin_again()
    other = _checksums(read())
    for name, checksum in one.items():
        if checksum == other[name]:
            return {name: checksum}
    return {}


def digest(values):
    """SHA-256 of a structure of arrays, in hexadecimal digits."""
    return _of_leaves(_leaves(values))


def _checksums(batches):
    """All checksums of one reading, what they tell the most first."""
    whole, rows, first = hashlib.sha256(), 0, None
    for batch in batches:
        leaves = _leaves(batch)
        of_batch = _of_leaves(leaves)
        first = first or of_batch
        whole.update(of_batch.encode())
        # A sum, since it is the same in any order.
        rows += sum(int(_of_leaves(row), 16) for row in _rows(leaves))
    return {
        "sha256": whole.hexdigest(),
        "rows": f"{rows % 2**256:064x}",
        "first": first,
    }


def _leaves(values):
    return keras.tree.flatten(any_data.as_numpy(values))


def _rows(leaves):
    """The rows of a batch; one for all of a batch that has none."""
    if len({leaf.shape[:1] for leaf in leaves}) > 1 or not leaves[0].shape:
        return [leaves]
    return zip(*leaves, strict=True)


def _of_leaves(leaves):
    digest = hashlib.sha256()
    for leaf in map(np.asarray, leaves):
        digest.update(f"{leaf.shape}{leaf.dtype}".encode())
        if leaf.dtype.kind in "OSU":
            digest.update(repr(leaf.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
