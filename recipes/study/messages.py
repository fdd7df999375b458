"""Errors as messages."""

import contextlib
import re

import click

from keras_kd.reports.numbers import plural

# What a TensorFlow error says that is one of the disk.
_DISK = re.compile("No space left|Read-only file|Permission denied|quota", re.I)

# Under which a click context keeps the `RunFolder` that a command uses.
OPEN_RUN = "study.run_folder"


@contextlib.contextmanager
def errors_as_messages():
    """Shows a refused option or file as one message, not as a traceback.

    Whoever interrupts a run is told that it can be resumed.
    """
    try:
        yield
    except KeyboardInterrupt:
        context = click.get_current_context(silent=True)
        run = context.meta.get(OPEN_RUN) if context else None
        if run is not None:
            click.echo(f"\n{run.resumption()}", err=True)
        raise
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


def option_name(name):
    """An option as the user types it.

    Args:
        name: as the command takes it.

    Returns:
        A string; the name itself, if the command has no such option.
    """
    context = click.get_current_context(silent=True)
    parameters = context.command.params if context else ()
    return next((p.opts[0] for p in parameters if p.name == name), name)


def _message(error):
    if "Received:" in str(error) or error.filename is None:
        return str(error)
    return (
        f"{error.filename} can't be read or written. Received: "
        f"{error.strerror}. Check the path, who may use it, and the space "
        "that is left."
    )


def counted(count, noun):
    """A number of things: "1 view", "2,000 views"."""
    return f"{count:,} {plural(count, noun)}"


def first_line(error):
    """The first line of an error's message, or an empty string."""
    return (str(error).strip().splitlines() or [""])[0]
