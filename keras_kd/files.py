"""Files that are whole or not there, and messages about those that are not."""

import contextlib
import json
import os
import tempfile


def user_path(path, argument="path"):
    """A path as the user meant it.

    Args:
        path: string or `os.PathLike`; a leading `~` is the home folder.
        argument: what the user calls it, for the message.

    Returns:
        A string.

    Raises:
        ValueError: if it is empty.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path.strip():
        raise ValueError(
            f"`{argument}` must name a file or a folder. Received: an empty "
            "path. Pass one such as 'runs/first'."
        )
    return path


def write_whole(path, data):
    """Writes a file so that it is whole or as it was, whenever it is stopped.

    Args:
        path: string or `os.PathLike`, in a folder that exists.
        data: string or bytes, or a function that writes them to the binary
            file that it is given, for what should not be in memory twice.

    Raises:
        OSError: naming the file and the reason, such as a full disk.
    """
    if isinstance(data, str):
        data = data.encode()
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    unfinished = None
    with errors_naming(path):
        try:
            handle, unfinished = tempfile.mkstemp(".unfinished", name, folder)
            with os.fdopen(handle, "wb") as file:
                data(file) if callable(data) else file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # `mkstemp` lets nobody else read the file.
            os.chmod(unfinished, 0o666 & ~_umask())
            os.replace(unfinished, path)
        except BaseException:
            if unfinished is not None:
                with contextlib.suppress(OSError):
                    os.remove(unfinished)
            raise


def write_json(path, value):
    """Writes a JSON file whole or not at all; see `write_whole`.

    Args:
        path: string or `os.PathLike`.
        value: what JSON can hold.
    """
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path, remedy):
    """The value of a JSON file.

    Args:
        path: string or `os.PathLike`.
        remedy: what to do if the file is damaged, a sentence.

    Returns:
        What the file holds; `None` if there is no file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"The file {os.fspath(path)} is damaged: it must be JSON. "
            f"Received: {os.path.getsize(path)} bytes, {error}. {remedy}"
        ) from error


@contextlib.contextmanager
def errors_naming(path):
    """Says which file could not be written, and why.

    Args:
        path: string or `os.PathLike`.

    Raises:
        OSError: in place of the one raised inside, with its `errno`.
    """
    try:
        yield
    except OSError as error:
        named = type(error)(
            f"{os.fspath(path)} can't be written. Received: "
            f"{error.strerror or error}. Free some space, or choose a folder "
            "that you may write to."
        )
        named.errno = error.errno
        raise named from error


def _umask():
    # There is no way to read it without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
