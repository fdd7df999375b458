"""Event files for TensorBoard."""

import contextlib
import errno
import os

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
        try:
            writer = tf.summary.create_file_writer(log_dir)
            with writer.as_default():
                yield
            writer.close()
        except tf.errors.OpError as error:
            # TensorFlow gives the operating system's reason as text alone.
            raise OSError(errno.EIO, error.message) from error
