"""Files that are whole or not there, and messages about those that are not."""

import contextlib
import errno
import json
import os
import pathlib
import re
import socket
import stat
import struct
import tempfile
import weakref

# How the names of what is being written end.
UNFINISHED = ".unfinished"
# The open files of this process's locks.
_LOCKED = weakref.WeakSet()


def path_text(path, argument="path"):
    """A path as a string.

    Args:
        path: string, bytes or `os.PathLike`.
        argument: what the user calls it, for the message.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(
            f"`{argument}` must name a file or a folder. Received: an object "
            f"of type {type(path).__name__}. Pass a path such as 'runs/first'."
        )
    return os.fsdecode(path)


def kept_path(path, argument="path"):
    """The same place whatever the working folder will be when it is used.

    Args:
        path: as for `user_path`; an address such as gs://bucket/logs stays.
        argument: what the user calls it, for the message.

    Returns:
        A string.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is empty.
    """
    path = user_path(path, argument)
    return path if "://" in path else os.path.abspath(path)


def user_path(path, argument="path"):
    """A path as the user meant it.

    Args:
        path: string or `os.PathLike`; a leading `~` is the home folder.
        argument: what the user calls it, for the message.

    Returns:
        A string.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is empty.
    """
    path = os.path.expanduser(path_text(path, argument))
    if not path.strip():
        raise ValueError(
            f"`{argument}` must name a file or a folder. Received: an empty "
            "path. Pass one such as 'runs/first'."
        )
    return path


def is_file_name(name):
    """Whether a name can be part of a file's: letters, digits and _ . + -."""
    return re.fullmatch(r"[\w.+-]+", name) is not None


def write_whole(path, data):
    """Writes a file so that it is whole or as it was, whenever it is stopped.

    Args:
        path: string or `os.PathLike`, in a folder that exists.
        data: string or bytes, or a function that writes them to the binary
            file that it is given, for what should not be in memory twice.

    Raises:
        OSError: naming the file and the reason, such as a full disk.
    """
    with _written(path, data) as unfinished:
        os.replace(unfinished, path)


def write_new(path, data):
    """Writes a file whole, unless there is one, which stays as it is.

    Args:
        path: see `write_whole`, as the following.
        data: string, bytes or function.

    Returns:
        Whether it was written. Of several that write it at once one has.

    Raises:
        OSError: as `write_whole`.
    """
    with _written(path, data) as unfinished:
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return False
        except OSError:
            # Some disks have no links.
            if os.path.exists(path):
                return False
            os.replace(unfinished, path)
    return True


@contextlib.contextmanager
def _written(path, data):
    """Yields the path of a whole file, which is removed if it is left there."""
    if isinstance(data, str):
        data = data.encode()
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    unfinished = None
    with errors_naming(path):
        try:
            handle, unfinished = tempfile.mkstemp(UNFINISHED, name, folder)
            with os.fdopen(handle, "wb") as file:
                data(file) if callable(data) else file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # `mkstemp` lets nobody else read the file.
            os.chmod(unfinished, 0o666 & ~_umask())
            yield unfinished
        finally:
            if unfinished is not None:
                with contextlib.suppress(OSError):
                    os.remove(unfinished)


def write_json(path, value):
    """Writes a JSON file whole or not at all; see `write_whole`.

    Args:
        path: string or `os.PathLike`.
        value: what JSON can hold.
    """
    write_whole(path, _json(value))


def write_new_json(path, value):
    """Writes a JSON file unless there is one; see `write_new`.

    Args:
        path: string or `os.PathLike`.
        value: what JSON can hold.

    Returns:
        Whether it was written.
    """
    return write_new(path, _json(value))


def _json(value):
    return json.dumps(value, indent=2) + "\n"


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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"The file {os.fspath(path)} is damaged: it must be JSON. "
            f"Received: {os.path.getsize(path)} bytes, {error}. {remedy}"
        ) from error


def save_model(model, path):
    """Saves a model whole or not at all.

    Args:
        model: a `keras.Model`.
        path: string or `os.PathLike`, of a file that ends in `.keras`, in a
            folder that exists.

    Raises:
        OSError: naming the file and the reason, such as a full disk.
    """
    path = pathlib.Path(path)
    # Keras asks for its own ending.
    unfinished = path.with_name(f"{path.stem}{UNFINISHED}.keras")
    with errors_naming(path):
        model.save(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def lock(folder, argument="folder"):
    """Takes a folder for this process, until the file is closed.

    Args:
        folder: path of a folder, made if it is missing.
        argument: what the user calls the folder, for the message.

    Returns:
        An open file; closing it, or the end of the process, lets others use
        the folder.

    Raises:
        OSError: if another process uses it, or it can't be written.
    """
    path = pathlib.Path(folder, "lock")
    file = _open_lock(path)
    try:
        _lock_file(file)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise OSError(
            f"The folder {folder} is in use. Received: {holder}, which runs in "
            f"it. Wait for its end, or choose another {argument}."
        ) from error
    if not _is_at(file, path):
        # Its holder has removed the folder, as at the end of its work.
        file.close()
        return lock(folder, argument)
    with errors_naming(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    _LOCKED.add(file)
    return file


def _leave_locks():
    """Closes, in a process that was forked, what its parent has locked.

    A lock is held until all have closed it, and processes that read data may
    outlive the `fit` that they were made for.
    """
    for file in list(_LOCKED):
        file.close()


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_leave_locks)


def check_folder(folder, name, about, argument):
    """Refuses a folder that is not new, and not of the same work as before.

    Args:
        folder: `pathlib.Path`, which may not exist yet.
        name: of the JSON file in it that says whose the folder is.
        about: dict in JSON's types that the file must hold, if it is there.
        argument: what the user calls the folder, for the message.

    Raises:
        ValueError: if the folder holds something else, naming what differs.
    """
    check_is_folder(folder, argument)
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir())
    others = [n for n in names if n != "lock" and UNFINISHED not in n]
    # After the list: a process that begins in the folder writes it first, so
    # that what is listed without it is not a run's.
    before = read_dict(
        folder / name, f"Choose another {argument}, or remove this folder."
    )
    if before is None and others:
        raise ValueError(
            f"{argument} must be new, empty, or an earlier run's. Received: "
            f"{folder} with {others[:5]}. Choose another {argument}."
        )
    if before is None:
        return
    differing = [
        f"{key}: {before.get(key)!r} there, {about.get(key)!r} now"
        for key in differing_keys(before, about)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another run. Received different options "
            f"({'; '.join(differing)}). Choose another {argument}, or leave it "
            "out."
        )


def check_is_folder(folder, argument):
    """Refuses a path at which there is something else than a folder.

    Args:
        folder: string or `os.PathLike`, of which there may be none.
        argument: what the user calls it, for the message.

    Raises:
        ValueError: if it is a file, or a link that leads nowhere.
        OSError: if it can't be the name of a folder.
    """
    with errors_naming(folder):
        try:
            is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
        except FileNotFoundError:
            is_folder = not os.path.islink(folder)
        except NotADirectoryError:
            is_folder = False
    if not is_folder:
        raise ValueError(
            f"{argument} must be a folder. Received: {os.fspath(folder)}, "
            "which is not a folder, or is inside a file. Choose another "
            f"{argument}."
        )


def differing_keys(one, other):
    """List of the keys, sorted, under which two dicts differ."""
    return [
        key for key in sorted({*one, *other}) if one.get(key) != other.get(key)
    ]


def share_folder(folder, name, about, argument):
    """Makes a folder that of some work, which several processes may do.

    Args:
        folder: see `check_folder`, as the following.
        name: string.
        about: dict.
        argument: string.

    Raises:
        ValueError: as `check_folder`.
        OSError: if it can't be written.
    """
    check_folder(folder, name, about, argument)
    with errors_naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not write_new_json(folder / name, about):
        # Another process may have been faster, with other work.
        check_folder(folder, name, about, argument)


def claim_folder(folder, name, about, argument):
    """Makes a folder that of some work, for this process alone.

    Args:
        folder: see `check_folder`, as the following.
        name: string.
        about: dict.
        argument: string.

    Returns:
        An open file; see `lock`.

    Raises:
        ValueError: as `check_folder`.
        OSError: as `lock`.
    """
    check_folder(folder, name, about, argument)  # Before a file is made.
    claimed = lock(folder, argument)
    try:
        check_folder(folder, name, about, argument)
        write_json(folder / name, about)
    except BaseException:
        claimed.close()
        raise
    return claimed


def _open_lock(path):
    """The lock of a folder, which another process may remove meanwhile."""
    with errors_naming(path):
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return open(path, "a+", encoding="utf-8")
            except FileNotFoundError:
                if path.is_symlink():
                    raise  # It leads nowhere.


def _is_at(file, path):
    """Whether an open file is still the one of a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_file(file):
    """Locks a file where the system and its disk know locks."""
    try:
        import fcntl
    except ImportError:
        return  # Windows has none of this kind.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # Some network file systems have no locks.


def read_dict(path, remedy):
    """The dict in a JSON file; see `read_json`.

    Args:
        path: string or `os.PathLike`.
        remedy: what to do if the file is damaged, a sentence.

    Returns:
        A dict; `None` if there is no file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    value = read_json(path, remedy)
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"The file {path} is damaged: it must hold a JSON object. "
            f"Received: {value!r:.60}. {remedy}"
        )
    return value


def remove_unlocked(path):
    """Removes a file, unless a program that is running has locked it.

    Args:
        path: string, of a file that programs lock as TensorStore does: by an
            open file description lock on Linux, by `flock` elsewhere. It may
            be missing. Where there are no such locks, it stays.
    """
    try:
        import fcntl
    except ImportError:
        return  # Windows has none of this kind.
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        if hasattr(fcntl, "F_OFD_SETLK"):
            whole = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, whole)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its program may have given it another name before it was locked.
        if _is_at(file, path):
            os.remove(path)


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
            f"{error.strerror or error}. {remedy(error)}"
        )
        named.errno = error.errno
        raise named from error


def remedy(error):
    """What to do about a file that could not be written.

    Args:
        error: an `OSError`.

    Returns:
        A sentence.
    """
    if isinstance(error, FileNotFoundError):
        return "Make its folder first, or choose one that exists."
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "A file has the name of a folder. Choose another."
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter name."
    return "Free some space, or choose a folder that you may write to."


def _umask():
    # There is no way to read it without setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
