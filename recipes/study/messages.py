"""Errors as messages."""

import contextlib
import re

import click

# What a TensorFlow error says that is one of the disk.
_DISK = re.compile("No space left|Read-only file|Permission denied|quota", re.I)


@contextlib.contextmanager
def errors_as_messages():
    """Shows a refused option or file as one message, not as a traceback."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(_message(error)) from error
    except Exception as error:
        # TensorFlow writes its logs itself, and has errors of its own.
        if type(error).__module__.startswith("tensorflow") and (
            _DISK.search(str(error))
        ):
            raise click.ClickException(
                "TensorFlow could not write a file. Received: "
                f"{first_line(error)}. Free some space, or choose a --log-dir "
                "that you may write to; the same command then resumes."
            ) from error
        raise


def _message(error):
    if "Received:" in str(error) or error.filename is None:
        return str(error)
    return (
        f"{error.filename} can't be read or written. Received: "
        f"{error.strerror}. Check the path, who may use it, and the space "
        "that is left."
    )


def first_line(error):
    """The first line of an error's message, or an empty string."""
    return (str(error).strip().splitlines() or [""])[0]
