"""Backups of unfinished training that are whole or not there."""

import collections
import contextlib
import json
import os
import pathlib
import time
import warnings

import keras
import numpy as np
from keras import ops

from keras_kd import distribution, memory
from keras_kd.backend import private
from keras_kd.files import errors_naming, kept_path, lock, write_whole
from keras_kd.generators import assign_generators, read_generators
from keras_kd.states import buffers

_FILE = "backup.npz"
_ABOUT = "about"
# Before the numbers of arrays that other callbacks keep, and of generators.
_OF_CALLBACKS, _OF_GENERATORS = "callbacks-", "random-"
# The locks of the folders that this process trains in, by path. No callback is
# told that an error ends a `fit`, so the next one takes the place of its lock.
_LOCKS = {}
# How many times this process has ended a `fit` and removed its backup, by path.
_DONE = collections.Counter()


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Lets an interrupted `fit` resume after its last finished epoch.

    After each epoch it writes the model's and the optimizer's variables, the
    number of the epoch and the seconds spent as one file, which replaces the
    one before only when it is whole. A `fit` that is started again with the
    same model, data and folder reads it and trains the epochs that are left.
    After the last epoch the file is removed.

    A loss whose weights or temperature were changed while it trained has them
    again. Random numbers continue from where they were: dropout's, and those of
    Python's `random` and of NumPy's global generator, from which `fit` shuffles
    batches of a `PyDataset` and, on JAX, arrays. TensorFlow keeps its
    generators to itself: `fit` shuffles arrays there, and a `tf.data.Dataset`
    shuffles, as in the first epoch.

    `keras.callbacks.BackupAndRestore` works with a `Distiller` too, but:

    - it writes its files in place, weights before epoch. A process that is
      killed, or a disk that is full, between the two makes it train an epoch
      twice; within the first it leaves a file at which every later start
      fails (with `double_checkpoint` only if there is an earlier copy);
    - nothing tells it that bytes of a file have changed;
    - it does not keep the state of random numbers, so that dropout draws
      others than in an uninterrupted run;
    - it writes the teacher again after each epoch;
    - with a number as `save_freq` it trains the first part of an epoch twice.

    What other callbacks remember, such as the best score so far, is kept of
    those that are given as `callbacks`. The state that recurrent layers carry
    from one epoch to the next is not kept by either.

    Args:
        backup_dir: folder of the backup, of this `fit` alone; while it runs,
            no other process may use it. Where several workers train together
            all must be able to read it; the chief writes.
        delete_checkpoint: whether to remove the backup when training has
            ended. If not, it is also written after the last epoch.
        callbacks: list of callbacks of the same `fit` that come before this
            one and remember something from epoch to epoch: `EarlyStopping`,
            `ReduceLROnPlateau`, `ModelCheckpoint`, `SwapEMAWeights`, or your
            own. Of each the attributes are kept that are numbers, strings,
            arrays, or lists and dicts of these, and change while it trains.

    Raises:
        TypeError: if `delete_checkpoint` is not a boolean, or `callbacks`
            is not a list of callbacks.
        ValueError: for an empty `backup_dir`; at the start of training, if the
            backup is damaged or is that of another model.
        OSError: at the start of training, if another process trains with this
            `backup_dir`; if the backup can't be written; the one before is
            kept.

    Example:
    ```python
    backup = kd.callbacks.BackupAndRestore("runs/first/backup")
    distiller.fit(train, epochs=30, callbacks=[backup])
    print(backup.seconds)
    ```

    Attributes:
        seconds: of all epochs so far, those before an interruption included.
    """

    def __init__(self, backup_dir, delete_checkpoint=True, *, callbacks=()):
        backup_dir = kept_path(backup_dir, "backup_dir")
        _check_deletes(delete_checkpoint)
        _check_callbacks(callbacks)
        super().__init__(backup_dir, delete_checkpoint=delete_checkpoint)
        self.path = pathlib.Path(backup_dir, _FILE)
        self.seconds = 0.0
        self._remembered = [memory.Memory(each) for each in callbacks]
        self._tunables = []

    def epochs_done(self):
        """How many epochs the backup holds.

        Returns:
            An integer, 0 without a backup.

        Raises:
            ValueError: if the backup is damaged.
        """
        if not self.path.exists():
            return 0
        with self._reading() as file:
            return json.loads(str(file[_ABOUT]))["epoch"]

    def on_train_begin(self, logs=None):
        """Restores the backup, if there is one."""
        self.seconds = 0.0
        if not self.model.built:
            raise ValueError(
                "A model must be built before its training can be resumed. "
                f"Received: {self.model.name!r}, which isn't. Call it on a "
                "batch, or give it an input shape, before `fit`."
            )
        if self._writes:
            self._lock()
        for each in self._remembered:
            each.start()
        self._tunables = self._read_tunables()
        if not self.path.exists():
            self._warn_of_second_fit()
            return
        with self._reading() as file:
            about = json.loads(str(file[_ABOUT]))
            epoch, seconds = int(about["epoch"]), float(about["seconds"])
            arrays = [file[str(i)] for i in range(about["variables"])]
            # A backup of an earlier release has none of these.
            kept = about.get("callbacks", [])
            in_callbacks = _arrays_of(file, _OF_CALLBACKS)
            generators = [
                file[f"{_OF_GENERATORS}{i}"]
                for i in range(about.get("generators", 0))
            ]
        if self._writes:
            self._warn_of_other_fit(about.get("fit"))
        self._assign(arrays)
        if generators:
            assign_generators(generators)
        for each, state in zip(self._remembered, kept, strict=False):
            each.restore(state, in_callbacks)
        tunables = about.get("tunables", [])
        for loss, values in zip(self._losses(), tunables, strict=False):
            loss.assign(**values)
        self.seconds = seconds
        if about.get("has_stopped"):
            epoch = max(epoch, self.params["epochs"])
        private.set_initial_epoch(self.model, epoch)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        # It would be the start of every later `fit` of the model, too.
        private.set_initial_epoch(self.model, None)
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the backup."""
        self.seconds += time.perf_counter() - self._began
        is_last = epoch + 1 >= self.params["epochs"]
        if is_last and self.delete_checkpoint:
            return  # It would be removed at once.
        if self._writes:
            self._write(epoch + 1)

    def on_train_end(self, logs=None):
        """Removes the backup, unless it is to be kept."""
        private.set_initial_epoch(self.model, None)
        if self.delete_checkpoint:
            self.delete()
            _DONE[self._lock_path] += 1
        self._unlock()

    def delete(self):
        """Removes the backup and its folder, if nothing else is in it."""
        folder = self.path.parent
        self.path.unlink(missing_ok=True)
        self._remove_unfinished()
        if self._lock_path in _LOCKS:
            pathlib.Path(self._lock_path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        self._unlock()

    @property
    def _writes(self):
        """Whether this process writes, of several that train together."""
        return distribution.is_chief(distribution.strategy_of(self.model))

    @property
    def _lock_path(self):
        return os.path.join(os.path.realpath(self.path.parent), "lock")

    def _lock(self):
        """Keeps other processes out, whose backup would take this one's place.

        Raises:
            OSError: if one is in the folder already.
        """
        self._unlock()
        _LOCKS[self._lock_path] = lock(self.path.parent, "`backup_dir`")

    def _unlock(self):
        held = _LOCKS.pop(self._lock_path, None)
        if held is not None:
            held.close()

    @property
    def _fit(self):
        """Which `fit` of this process in this folder it is, from 1 on."""
        return _DONE[self._lock_path] + 1

    def _warn_of_other_fit(self, fit):
        """Says that a backup may be that of another `fit`.

        It may also be this one's, if the program skips what it has trained
        when it is started again.

        Args:
            fit: the number of the `fit` that wrote it, or `None`.
        """
        if fit in (None, self._fit):
            return
        warnings.warn(
            f"The backup {self.path} may be that of another `fit`. Received: "
            f"one of `fit` number {fit} in this folder of the program that "
            f"wrote it, for number {self._fit} of this one, which goes on from "
            "it. If they are not the same, remove the backup, start again, and "
            "give each `fit` a folder.",
            stacklevel=2,
        )

    def _warn_of_second_fit(self):
        if self._fit > 1:
            warnings.warn(
                "`backup_dir` must be of one `fit` alone. Received: "
                f"{str(self.path.parent)!r}, in which an earlier `fit` of this "
                "program has ended. If the program is killed and started "
                "again, the earlier one would take this one's backup for its "
                "own. Give each `fit` a folder.",
                stacklevel=2,
            )

    def _losses(self):
        """The losses of a Distiller, whose weights may change in training."""
        heads = getattr(self.model, "distilled_heads", [])
        return [head.loss for head in heads]

    def _read_tunables(self):
        return [loss.tunables for loss in self._losses()]

    def _variables(self):
        model = self.model
        variables = [*model.variables, *buffers(model)]
        # Of a Distiller, whose losses may draw.
        variables += getattr(model, "random_variables", [])
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            return variables
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        return [*variables, *optimizer.variables]

    def _write(self, epoch):
        arrays = {
            str(i): _as_array(variable)
            for i, variable in enumerate(self._variables())
        }
        in_callbacks, generators = [], read_generators()
        # What did not change is for the program to say when it starts again.
        tunables = [
            {key: now[key] for key in now if now[key] != first[key]}
            for now, first in zip(
                self._read_tunables(), self._tunables, strict=True
            )
        ]
        about = {
            "epoch": epoch,
            "fit": self._fit,
            "seconds": self.seconds,
            "variables": len(arrays),
            "generators": len(generators),
            "callbacks": [
                each.state(in_callbacks) for each in self._remembered
            ],
            "tunables": tunables,
            "has_stopped": bool(self._remembered and self.model.stop_training),
        }
        about = json.dumps(about)
        for prefix, more in (
            (_OF_CALLBACKS, in_callbacks),
            (_OF_GENERATORS, generators),
        ):
            arrays |= {f"{prefix}{i}": array for i, array in enumerate(more)}
        with errors_naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        write_whole(
            self.path,
            lambda file: np.savez(file, **{_ABOUT: np.array(about)}, **arrays),
        )

    def _remove_unfinished(self):
        """Removes what was being written when a process was killed."""
        for path in self.path.parent.glob(f"{_FILE}*.unfinished"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reading(self):
        try:
            with np.load(self.path, allow_pickle=False) as file:
                yield file
        except PermissionError:
            raise
        # What a changed byte raises depends on where it is.
        except Exception as error:
            raise ValueError(
                f"The backup {self.path} is damaged. Received: "
                f"{os.path.getsize(self.path)} bytes ({error}). Put back a "
                "copy of it, or remove it to train from the first epoch."
            ) from error

    def _assign(self, arrays):
        variables = self._variables()
        kept = [array.shape for array in arrays]
        wanted = [tuple(variable.shape) for variable in variables]
        if kept != wanted:
            raise ValueError(
                f"The backup {self.path} is that of another model or "
                f"optimizer. Received: variables of shapes {kept} for those of "
                f"shapes {wanted}. Choose another folder, or remove the backup "
                "to train from the first epoch."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def _check_deletes(delete_checkpoint):
    """Refuses what Keras's callback takes in its place."""
    if not isinstance(delete_checkpoint, bool):
        raise TypeError(
            "`delete_checkpoint` must be True or False. Received: "
            f"{delete_checkpoint!r}. This callback writes after each epoch "
            "and has no `save_freq`; leave it out."
        )


def _check_callbacks(callbacks):
    """Refuses a callback outside of a list, which `fit` accepts."""
    is_list = isinstance(callbacks, (list, tuple))
    kind = keras.callbacks.Callback
    if not (is_list and all(isinstance(each, kind) for each in callbacks)):
        raise TypeError(
            "`callbacks` of a backup is a list of callbacks of the same `fit`. "
            f"Received: {callbacks!r}. Pass a list, as in callbacks=[stopping]."
        )


def _arrays_of(file, prefix):
    """Arrays in the order in which they were written."""
    return [file[name] for name in file.files if name.startswith(prefix)]


def _as_array(variable):
    array = np.asarray(ops.convert_to_numpy(variable))
    # NumPy's files know no bfloat16, which float32 holds exactly.
    return array.astype("float32") if array.dtype.kind == "V" else array
