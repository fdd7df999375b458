"""Students whose data are in a GPU's memory, and what their studies share.

On the JAX backend alone; see `one_gpu.py`.
"""

import hashlib
import itertools

import keras
import numpy as np

import keras_kd as kd
from keras_kd import files
from keras_kd.attribution.methods import PLAIN

WITHOUT_TEACHER = (PLAIN, "label_smoothing")


class Students:
    """Trains students of one study, as `kd.attribute` takes it.

    A subclass has the name of its `metric`, and what it is called in a table,
    `heading`, where it is multiplied by `scale`; and the name of what it
    `validate`s after each epoch, `validated`.

    Args:
        folder: path of the study, for what its processes share.
        options: dict of the command's options.
        about: dict in JSON's types of what scores depend on beside these.
    """

    higher_is_better = True
    superclasses = None

    def __init__(self, folder, options, about):
        self.shared, self.options = folder / "shared", options
        self.study = {**options, **about}

    def check(self, methods):
        """Refuses methods that this study does not have.

        Args:
            methods: list of names.

        Raises:
            ValueError: naming those that it has.
        """
        unknown = set(methods) - set(self.methods)
        if unknown:
            raise ValueError(
                "The study must have each method. Received: "
                f"{sorted(unknown)}. Choose among {', '.join(self.methods)}."
            )

    def prepare(self, methods):
        """Makes what the students of some methods share."""

    def __call__(self, method, seed):
        """The results of a student; see `kd.attribute`."""
        raise NotImplementedError

    def validate(self, model):
        """What a model reaches after an epoch, a float."""
        raise NotImplementedError

    def train_epochs(self, name, program, epochs, inputs):
        """Trains a network, from where a killed process left it.

        Args:
            name: of the network, its own in the study.
            program: its `EpochProgram`.
            epochs: integer.
            inputs: iterator over what the program's `train` takes, by epoch.

        Returns:
            Dict of lists by name, over all epochs.
        """
        distiller, history = program.distiller, keras.callbacks.History()
        backup = kd.callbacks.BackupAndRestore(
            self.shared / f"{name}-backup", callbacks=[history]
        )
        done = backup.epochs_done()
        for callback in (history, backup):
            callback.set_model(distiller)
            callback.set_params({"epochs": epochs})
            callback.on_train_begin()
        left = itertools.islice(enumerate(inputs), done, epochs)
        for epoch, given in left:
            backup.on_epoch_begin(epoch)
            logs = program.train(*given)
            reached = self.validate(distiller.student)
            logs[f"val_{self.validated}"] = reached
            history.on_epoch_end(epoch, logs | _counts(distiller))
            backup.on_epoch_end(epoch)
            print(
                f"{name}, epoch {epoch + 1}: {self.validated} {reached:.4f}",
                flush=True,
            )
        backup.on_train_end()
        return history.history

    def kept(self, name, make):
        """An array that all processes share, from its file once it is made."""
        path = self.shared / f"{name}.npy"
        if not path.exists():
            self.shared.mkdir(parents=True, exist_ok=True)
            made = np.asarray(make())
            files.write_whole(path, lambda file: np.save(file, made))
        return np.load(path)


def bins_for(method):
    """What `Distiller` takes as `gradient_scale`, by method.

    No histogram where w is 1 for every example.
    """
    return False if method == PLAIN else None


def histogram(history):
    """Takes the histogram of w out of a history, as `kd.attribute` knows it.

    Args:
        history: what `Students.train_epochs` returned.

    Returns:
        A dict, empty if there is none.
    """
    counts = history.pop("counts", None)
    if not counts:
        return {}
    edges = kd.metrics.bin_edges().tolist()
    return {"gradient_scale": {"edges": edges, "counts": counts}}


def _counts(distiller):
    """The histogram of w of an epoch, empty if there is none."""
    scale = distiller.gradient_scales.get("all")
    if scale is None:
        return {}
    counts = np.asarray(scale.summary()["histogram"], "float64")
    return {"counts": np.round(counts, 3).tolist()}


def digest(arrays):
    """What tells one dict of arrays from another: a SHA-256."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()
