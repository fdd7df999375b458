"""Errors found inside a `tf.data` pipeline, raised as they are.

TensorFlow turns an exception of a pipeline's Python function into an error of
its own, the text in the middle of a traceback.
"""

import contextlib
import re

_RAISED = re.compile(r"DataError: (.*?)\n\s*Traceback", re.DOTALL)
_LENGTH = re.compile(
    r"Input dataset was expected to contain (\d+) elements? but contained "
    r"(at least|only) (\d+) element"
)


class DataError(ValueError):
    """The data are not what they must be; found while they are read."""


@contextlib.contextmanager
def raised_plainly():
    """Raises a `DataError` of a pipeline in place of TensorFlow's error.

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
        # TensorFlow's traceback names operations, none of them the user's.
        raise DataError(message) from None


def _message(text):
    found = _RAISED.search(text)
    if found:
        return found.group(1)
    found = _LENGTH.search(text)
    if found is None:
        return None
    wanted, more_or_less, received = found.groups()
    return (
        f"The data set must have the {wanted} elements that the teacher cache "
        f"was written with. Received: {more_or_less} {received}. Pass the data "
        "set that `write` was given, or write another cache."
    )
