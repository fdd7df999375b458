"""Imported first: loads TensorFlow without what it reports about itself.

A user can't act on it, and it buries what a recipe says. It shows with
TF_CPP_MIN_LOG_LEVEL=0 in the environment. Errors in Python show in any case.
"""

import os


def _load_tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    # Some of it is written to the process's error output before TensorFlow
    # has read the variable.
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


_load_tensorflow()
