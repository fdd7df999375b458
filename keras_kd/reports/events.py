"""Event files for TensorBoard."""

import contextlib
import errno
import os
import pathlib

from keras_kd.files import errors_naming, user_path


@contextlib.contextmanager
def writing(log_dir):
    """A context in which TensorFlow's summaries go to a new event file.

    Args:
        log_dir: folder of the event file; a leading `~` is the home folder.

    Raises:
        ValueError: if the path is empty.
        OSError: if the file can't be written, such as on a full disk.
    """
    import tensorflow as tf

    log_dir = user_path(log_dir, "log_dir")
    with errors_naming(log_dir):
        os.makedirs(log_dir, exist_ok=True)
        before = _own_files(log_dir)
        try:
            writer = tf.summary.create_file_writer(log_dir)
            # A `fit` that was interrupted leaves Keras's own condition behind.
            with writer.as_default(), tf.summary.record_if(True):
                yield
            writer.close()
            for name in _own_files(log_dir) - before:
                _check_whole(os.path.join(log_dir, name))
        except tf.errors.OpError as error:
            # TensorFlow gives the operating system's reason as text alone.
            raise OSError(errno.EIO, error.message) from error


def remove(folder):
    """Removes the event files in a folder, not those of folders in it.

    Args:
        folder: path, of which there may be none.
    """
    for path in pathlib.Path(folder).glob("events.out.tfevents.*"):
        path.unlink()


def _own_files(log_dir):
    """Names of the event files that this process has written."""
    ours = f".{os.getpid()}."
    return {
        name
        for name in os.listdir(log_dir)
        if ".tfevents." in name and ours in name
    }


def _check_whole(path):
    """Reads an event file, of which a full disk may have taken a part only.

    TensorFlow does not always say so: its buffers are lost without a word.

    Raises:
        tf.errors.OpError: if a record is not whole.
    """
    import tensorflow as tf

    for _ in tf.data.TFRecordDataset(path):
        pass
