"""Errors in data that a backend finds, raised as a user understands them.

TensorFlow turns an exception of a pipeline's Python function into an error of
its own, the text in the middle of a traceback. JAX speaks of shardings where a
batch can't be shared by the devices.
"""

import contextlib
import re

_RAISED = re.compile(r"DataError: (.*?)\n\s*Traceback", re.DOTALL)
_LENGTH = re.compile(
    r"Input dataset was expected to contain (\d+) elements? but contained "
    r"(at least|only) (\d+) element"
)
_UNEVEN = re.compile(
    r"spec=P\('batch'.*array axis 0 is partitioned (\d+) times, but the "
    r"dimension size is (\d+)"
)


class DataError(ValueError):
    """The data are not what they must be; found while they are read."""


@contextlib.contextmanager
def raised_plainly():
    """Raises a `DataError` in place of the backend's error.

    Raises:
        DataError: if the error raised inside comes from one.

    Example:
    >>> with raised_plainly():
    ...     model.fit(cache.attach(train))
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        message = _message(str(error))
        if message is None:
            raise
        # The backend's traceback names operations, none of them the user's.
        raise DataError(message) from None


def _message(text):
    found = _RAISED.search(text)
    if found:
        return found.group(1)
    found = _UNEVEN.search(text)
    if found:
        return _uneven(*found.groups())
    found = _LENGTH.search(text)
    if found is None:
        return None
    wanted, more_or_less, received = found.groups()
    return (
        f"The data set must have the {wanted} elements that the teacher cache "
        f"was written with. Received: {more_or_less} {received}. Pass the data "
        "set that `write` was given, or write another cache."
    )


def _uneven(devices, examples):
    """What to say of a batch that JAX's devices can't share."""
    return (
        f"Each batch is shared evenly by the {devices} devices of the "
        f"distribution. Received: a batch of {examples} examples. Use a batch "
        "size that the number of devices divides, and leave out a last batch "
        "that is smaller, as with dataset.batch(size, drop_remainder=True)."
    )
