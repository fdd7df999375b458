"""What a callback remembers from epoch to epoch, for a backup."""

import copy
import inspect

import numpy as np

_ARRAY, _TUPLE = "__array__", "__tuple__"


class Memory:
    """The memory of a callback.

    Callbacks have no interface for it, so it is found: the attributes that
    change while it trains. Those that the constructor was given are settings,
    even where Keras changes their sign (`min_delta`).

    Args:
        callback: a `keras.callbacks.Callback`.
    """

    def __init__(self, callback):
        self._callback = callback
        self._settings = {
            name
            for each in type(callback).__mro__
            if "__init__" in vars(each)
            for name in inspect.signature(each.__init__).parameters
        }
        self._at_first = {}

    def start(self):
        """Looks at the callback once training has begun."""
        self._at_first = dict(self._attributes())

    def state(self, arrays):
        """What it remembers now.

        Args:
            arrays: list that gets the arrays.

        Returns:
            A dict of JSON's types.
        """
        attributes = {
            name: _packed(value, arrays)
            for name, value in self._attributes()
            if not _same(value, self._at_first.get(name, _Missing))
        }
        return {"class": type(self._callback).__name__, "memory": attributes}

    def restore(self, state, arrays):
        """Lets the callback remember what it did.

        Args:
            state: from `state`; that of a callback of another class is not
                for this one.
            arrays: the list that got the arrays.
        """
        if state["class"] == type(self._callback).__name__:
            vars(self._callback).update(
                {n: _unpacked(v, arrays) for n, v in state["memory"].items()}
            )

    def _attributes(self):
        """Pairs of names and copies of what can be kept."""
        for name, value in vars(self._callback).items():
            if name not in self._settings and _can_be_kept(value):
                yield name, copy.deepcopy(value)


class _Missing:
    """In place of an attribute that was not there."""


def _can_be_kept(value):
    if isinstance(value, list | tuple):
        return all(map(_can_be_kept, value))
    if isinstance(value, dict):
        return all(
            isinstance(key, str) and _can_be_kept(each)
            for key, each in value.items()
        )
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc"
    return value is None or isinstance(value, bool | int | float | str)


def _same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other


def _packed(value, arrays):
    """A structure with JSON's types in place of arrays and tuples."""
    if isinstance(value, dict):
        return {key: _packed(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        packed = [_packed(each, arrays) for each in value]
        return packed if isinstance(value, list) else {_TUPLE: packed}
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {_ARRAY: len(arrays) - 1}
    return value


def _unpacked(value, arrays):
    if isinstance(value, list):
        return [_unpacked(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_ARRAY}:
        array = arrays[value[_ARRAY]]
        return array if array.ndim else array[()]
    if value.keys() == {_TUPLE}:
        return tuple(_unpacked(each, arrays) for each in value[_TUPLE])
    return {key: _unpacked(each, arrays) for key, each in value.items()}
