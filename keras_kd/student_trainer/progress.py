"""What is recorded and shown after each epoch."""

import json
import time

import keras
import numpy as np

from keras_kd.backend import private
from keras_kd.files import read_json, write_whole
from keras_kd.states import reset_states

_REMEDY = "Remove its folder; the student is trained from the first epoch."


class Record(keras.callbacks.Callback):
    """Records learning curves and histograms of w, through interruptions.

    Args:
        path: of the file that keeps them while the student is trained, or
            `None`. It is written before the backup of the same epoch.
        epochs_done: how many epochs the backup holds.
    """

    def __init__(self, path, epochs_done):
        super().__init__()
        self._path = path
        kept = read_json(path, _REMEDY) if path and epochs_done else None
        kept = kept or {"history": {}, "counts": [], "seconds": []}
        # By epoch, `None` where there is none, such as without validation.
        self._history = {
            name: values[:epochs_done]
            for name, values in kept["history"].items()
        }
        self._epochs = epochs_done
        self.counts = kept["counts"][:epochs_done]
        self._seconds = kept["seconds"][:epochs_done]
        self.seconds_before = sum(self._seconds)
        self._since = time.perf_counter()

    @property
    def history(self):
        """Dict by name of lists of a number for each epoch that has one."""
        return {
            name: [value for value in values if value is not None]
            for name, values in self._history.items()
        }

    def values(self, name):
        """List of (epoch, value) of one of the logs, where it was logged."""
        values = enumerate(self._history.get(name, []))
        return [(epoch, value) for epoch, value in values if value is not None]

    def on_epoch_end(self, epoch, logs=None):
        """Adds the epoch."""
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        for name, value in (logs or {}).items():
            self._history.setdefault(name, [None] * self._epochs)
            self._history[name].append(float(value))
        self._epochs += 1
        for values in self._history.values():
            values += [None] * (self._epochs - len(values))
        scale = self.model.gradient_scales.get("all")
        if scale is not None:
            histogram = np.asarray(scale.summary()["histogram"], "float64")
            self.counts.append(np.round(histogram, 3).tolist())
        if self._path is not None:
            kept = {
                "history": self._history,
                "counts": self.counts,
                "seconds": self._seconds,
            }
            write_whole(self._path, json.dumps(kept))


class Report(keras.callbacks.Callback):
    """Tells a function the score of each epoch, and stops if it says so.

    It comes after the backup, so that this holds no decision of the function:
    a later call may have another one, or none, which is asked instead.

    Args:
        report: function of (epoch, value) to a boolean.
        key: of the logs.
        before: list of (epoch, value) of an interrupted call.
    """

    def __init__(self, report, key, before=()):
        super().__init__()
        self._report = report
        self._key = key
        self._before = before
        self.has_stopped = False

    def on_train_begin(self, logs=None):
        """Asks about the epochs of the interrupted call."""
        self.has_stopped = any(self._report(*each) for each in self._before)
        if self.has_stopped:
            private.set_initial_epoch(self.model, self.params["epochs"])

    def on_epoch_end(self, epoch, logs=None):
        """Asks."""
        if self._key in logs and self._report(epoch, float(logs[self._key])):
            self.has_stopped = self.model.stop_training = True


class StartFromZero(keras.callbacks.Callback):
    """Starts every epoch and evaluation with the carried state at zero.

    Args:
        *models: models, of which recurrent layers may carry state from batch
            to batch; `None` is passed over.
    """

    def __init__(self, *models):
        super().__init__()
        self._models = [model for model in models if model is not None]

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the states to zero."""
        for model in self._models:
            reset_states(model)

    def on_test_begin(self, logs=None):
        """Sets the states to zero."""
        self.on_epoch_begin(0)


class Bar(keras.callbacks.Callback):
    """On a terminal a bar of a student's epochs.

    Args:
        title: what is trained.
        epochs: integer.
        key: of the logs that is shown.
        verbose: 0 for nothing.
    """

    def __init__(self, title, epochs, key, verbose):
        super().__init__()
        from rich import console, progress

        screen = console.Console()
        self._key = key
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[shown]}"),
            progress.TimeRemainingColumn(),
            console=screen,
            # A line that says what came out takes its place.
            transient=True,
            disable=not (verbose and screen.is_terminal),
        )
        self._task = self._bar.add_task(title, total=epochs, shown="")

    def on_train_begin(self, logs=None):
        """Shows the bar."""
        self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        """Where training resumes, the epochs before it count."""
        self._bar.update(self._task, completed=epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Moves the bar."""
        value = (logs or {}).get(self._key)
        shown = "" if value is None else f"{self._key} {float(value):.4g}"
        self._bar.update(self._task, completed=epoch + 1, shown=shown)

    def close(self):
        """Removes the bar, whatever happened."""
        self._bar.stop()
