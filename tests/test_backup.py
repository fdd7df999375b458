"""Backups: whole or not there, whenever training is stopped."""

import collections
import errno
import os
import random
import types
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from models import CLASSES, FEATURES, data, mlp, uniform

import keras_kd as kd
from keras_kd import distribution, files
from keras_kd.generators import assign_generators, read_generators

EPOCHS = 3


class Killed(BaseException):
    """Nothing that runs after it is what would run after a real kill."""


def make_distiller(units=4, optimizer=None, loss=None, seed=0, dropout=1):
    """A student with dropout, whose random numbers go on after a restart."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(units, "tanh", kernel_initializer=uniform(0))(inputs)
    x = layers.BatchNormalization()(layers.Dropout(0.5, seed=dropout)(x))
    logits = layers.Dense(CLASSES, kernel_initializer=uniform(1))(x)
    distiller = kd.Distiller(
        keras.Model(inputs, logits), mlp(12, seed=5), gradient_scale=False
    )
    distiller.compile(
        optimizer=optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
        loss=loss or kd.KD(),
        run_eagerly=keras.backend.backend() != "jax",
    )
    return distiller


def train(folder, *callbacks, distiller=None, **arguments):
    """Three epochs; the student's weights, the epochs run and the callback."""
    distiller = distiller or make_distiller()
    backup = kd.callbacks.BackupAndRestore(folder, **arguments)
    x, labels, _ = data(8)
    history = distiller.fit(
        x,
        labels,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[backup, *callbacks],
    )
    return distiller.student.get_weights(), history.epoch, backup


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def interrupt(folder, epoch=2, **arguments):
    with pytest.raises(Killed):
        train(folder, StopAt(epoch), **arguments)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What training that is never stopped ends with."""
    weights, epochs, _ = train(tmp_path_factory.mktemp("whole") / "backup")
    assert epochs == [0, 1, 2]
    return weights


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_resumes_after_the_last_whole_epoch(expected, tmp_path):
    folder = tmp_path / "below" / "backup"
    interrupt(folder)
    backup = kd.callbacks.BackupAndRestore(folder)
    assert backup.epochs_done() == 2
    found, epochs, backup = train(folder)
    assert epochs == [2]
    assert_equal(found, expected)
    assert not folder.exists() and backup.epochs_done() == 0


def test_dropout_without_a_seed_goes_on_in_another_process(tmp_path):
    whole, *_ = train(
        tmp_path / "whole", distiller=make_distiller(dropout=None)
    )
    with pytest.raises(Killed):
        distiller = make_distiller(dropout=None)
        train(tmp_path, StopAt(2), distiller=distiller)
    distiller = make_distiller(dropout=None, seed=1)
    resumed, epochs, _ = train(tmp_path, distiller=distiller)
    assert epochs == [2]
    for one, other in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_classes_that_are_drawn_stay_those_of_uninterrupted_training(tmp_path):
    def make():
        return make_distiller(loss=kd.KDSampled(k=2, seed=3))

    expected, _, _ = train(tmp_path / "whole", distiller=make())
    with pytest.raises(Killed):
        train(tmp_path / "backup", StopAt(2), distiller=make())
    found, epochs, _ = train(tmp_path / "backup", distiller=make())
    assert epochs == [2]
    assert_equal(found, expected)


class Halve(keras.callbacks.Callback):
    """Halves the weight of the loss, whatever it is."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.loss.weight = self.model.loss.tunables["weight"] / 2


def test_a_loss_goes_on_with_the_weight_that_it_had(tmp_path):
    whole, *_ = train(tmp_path / "whole", Halve())
    with pytest.raises(Killed):
        train(tmp_path / "part", StopAt(2), Halve())
    distiller = make_distiller()
    found, epochs, _ = train(tmp_path / "part", Halve(), distiller=distiller)
    assert epochs == [2]
    assert distiller.loss.tunables["weight"] == 0.5 / 2**EPOCHS
    assert_equal(found, whole)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return tuple(array[rows] for array in data(16)[:2])


class Draw(keras.callbacks.Callback):
    """Draws from the global generators, an odd number of normal ones."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def on_epoch_begin(self, epoch, logs=None):
        drawn = [*np.random.normal(size=3), random.gauss(0, 1)]
        self.drawn.append((epoch, *drawn, random.random()))


@pytest.mark.parametrize("arrays", [False, True])
def test_the_order_of_examples_goes_on_in_another_process(tmp_path, arrays):
    """Of arrays it does so on TensorFlow for the same seed alone."""
    given = data(16)[:2] if arrays else (Batches(),)
    seed = int(not (arrays and keras.backend.backend() == "tensorflow"))

    def run(folder, *callbacks, seed=0):
        distiller, draw = make_distiller(seed=seed), Draw()
        distiller.fit(
            *given,
            **({"batch_size": 8} if arrays else {}),
            epochs=6,
            shuffle=True,
            verbose=0,
            callbacks=[kd.callbacks.BackupAndRestore(folder), draw, *callbacks],
        )
        return distiller.student.get_weights(), draw.drawn

    expected, drawn = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "backup", StopAt(2))
    found, drawn_since = run(tmp_path / "backup", seed=seed)
    assert drawn_since == drawn[2:]
    assert_equal(found, expected)


@pytest.mark.parametrize("drawn", [0, 1])
def test_global_generators_go_on_after_half_a_pair_of_normal_numbers(drawn):
    """They make two at a time, and keep the second one."""

    def draw():
        return [random.gauss(0, 1), *np.random.normal(size=3), random.random()]

    def seed(number):
        random.seed(number)
        np.random.seed(number)

    before = read_generators()
    seed(1)
    for _ in range(drawn):
        random.gauss(0, 1), np.random.normal()
    kept = read_generators()
    expected = draw()
    seed(2)
    draw()
    assign_generators(kept)
    found = draw()
    assign_generators(before)
    assert found == expected


def test_a_second_fit_in_a_folder_is_warned_of(tmp_path):
    with warnings.catch_warnings(record=True) as first:
        warnings.simplefilter("always")
        train(tmp_path / "backup")
    assert not [w for w in first if "backup_dir" in str(w.message)]
    with pytest.warns(UserWarning, match="Give each `fit` a folder"):
        train(tmp_path / "backup")


def test_another_fits_backup_is_warned_of_where_it_is_taken(
    tmp_path, monkeypatch
):
    folder = tmp_path / "backup"
    train(folder)
    with pytest.warns(UserWarning, match="Give each `fit` a folder"):
        interrupt(folder)
    # Within the program it is the one that goes on.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(Killed):
            train(folder, StopAt(2))
    assert not [w for w in seen if "another `fit`" in str(w.message)]
    # The program is started again, with its first one.
    monkeypatch.setattr("keras_kd.backup._DONE", collections.Counter())
    words = "number 2 in this folder.*number 1 of this"
    with pytest.warns(UserWarning, match=words):
        train(folder)


def test_seconds_are_added_up_over_interruptions(tmp_path):
    clock = iter(range(0, 1000, 10))

    class Clock:
        perf_counter = staticmethod(lambda: next(clock))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_kd.backup.time", Clock)
        interrupt(tmp_path / "backup")
        _, _, backup = train(tmp_path / "backup")
    # Each epoch begins at one tick and ends at the next.
    assert backup.seconds == EPOCHS * 10


def test_a_kept_backup_goes_on_to_more_epochs(expected, tmp_path):
    _, _, backup = train(tmp_path / "backup", delete_checkpoint=False)
    assert backup.epochs_done() == EPOCHS
    found, epochs, _ = train(tmp_path / "backup")
    assert epochs == []
    assert_equal(found, expected)


@pytest.mark.parametrize(
    "backup", [kd.callbacks.BackupAndRestore, keras.callbacks.BackupAndRestore]
)
def test_a_later_fit_starts_at_its_own_first_epoch(backup, tmp_path):
    interrupt(tmp_path / "ours")
    x, labels, _ = data(8)
    folder = tmp_path / "ours"
    if backup is keras.callbacks.BackupAndRestore:
        folder = tmp_path / "keras"
        with pytest.raises(Killed):
            make_distiller().fit(
                *(x, labels, 8),
                epochs=EPOCHS,
                verbose=0,
                callbacks=[backup(folder), StopAt(2)],
            )
    distiller = make_distiller()
    arguments = {"batch_size": 8, "epochs": EPOCHS, "verbose": 0}
    resumed = distiller.fit(x, labels, callbacks=[backup(folder)], **arguments)
    assert resumed.epoch == [2]
    assert distiller.fit(x, labels, **arguments).epoch == [0, 1, 2]


def test_a_model_that_is_not_a_distiller_starts_later_fits_too(tmp_path):
    x, labels, _ = data(8)

    def fit(model, *callbacks):
        return model.fit(
            x, labels, epochs=EPOCHS, verbose=0, callbacks=list(callbacks)
        ).epoch

    def model():
        model = mlp(seed=0)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        return model

    def backup():
        return kd.callbacks.BackupAndRestore(
            tmp_path / "backup", delete_checkpoint=False
        )

    with pytest.raises(Killed):
        fit(model(), backup(), StopAt(1))
    resumed = model()
    assert fit(resumed, backup()) == [1, 2]
    assert fit(resumed) == [0, 1, 2]
    # Also where no epoch was left.
    resumed = model()
    assert fit(resumed, backup()) == []
    assert fit(resumed) == [0, 1, 2]


class Remembers(keras.callbacks.Callback):
    """A user's own, with something of each kind."""

    def __init__(self, threshold=1):
        super().__init__()
        self.threshold = threshold
        self.function = print

    def on_train_begin(self, logs=None):
        self.best = None
        self.seen = []
        self.weights = {}
        self.constant = (1, "a")

    def on_epoch_end(self, epoch, logs=None):
        # As Keras does to `min_delta`, which a resumed `fit` does again.
        self.threshold *= -1
        self.best = np.float32(epoch + 0.1)
        self.seen.append((epoch, {"loss": float("inf")}))
        self.weights["first"] = self.model.get_weights()[0]
        self.function = max
        if epoch == 1:
            self.model.stop_training = True


def test_what_callbacks_remember_is_kept(tmp_path):
    def fit_in_order(folder, *callbacks):
        one = Remembers()
        x, labels, _ = data(8)
        history = make_distiller().fit(
            *(x, labels, 8),
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[
                one,
                kd.callbacks.BackupAndRestore(
                    folder, delete_checkpoint=False, callbacks=[one]
                ),
                *callbacks,
            ],
        )
        return one, history.epoch

    expected, epochs = fit_in_order(tmp_path / "whole")
    assert epochs == [0, 1]
    with pytest.raises(Killed):
        fit_in_order(tmp_path / "part", StopAt(1))
    found, epochs = fit_in_order(tmp_path / "part")
    assert epochs == [1]
    # It had stopped.
    again, epochs = fit_in_order(tmp_path / "part")
    assert epochs == []
    for one in (found, again):
        assert one.best == expected.best and one.best.dtype == "float32"
        assert one.seen == expected.seen
        assert_equal([one.weights["first"]], [expected.weights["first"]])
        assert one.constant == (1, "a")
    assert found.threshold == -1 and again.threshold == 1


# -- killed and full -----------------------------------------------------------


class Disk:
    """Stands in for `os` and `tempfile` where a file is written whole.

    Args:
        moment: after how many changes of the disk the process is killed.
        error: what is raised then, and by every later change if it is a kill.
    """

    def __init__(self, moment, error=Killed):
        self.left, self.error, self.reached = moment, error, False

    def change(self, function):
        def change(*arguments, **keywords):
            if self.reached and self.error is Killed:
                raise Killed  # Nothing is cleaned up either.
            if not self.reached and self.left == 0:
                self.reached = True
                raise self.error
            self.left -= 1
            return function(*arguments, **keywords)

        return change

    def fdopen(self, handle, mode):
        return _Counted(os.fdopen(handle, mode, buffering=0), self)

    def install(self, patch):
        changes = ("chmod", "fsync", "remove", "replace")
        members = {name: getattr(os, name) for name in dir(os)}
        members |= {name: self.change(members[name]) for name in changes}
        patch.setattr(
            files,
            "os",
            types.SimpleNamespace(**{**members, "fdopen": self.fdopen}),
        )
        make = self.change(files.tempfile.mkstemp)
        patch.setattr(files, "tempfile", types.SimpleNamespace(mkstemp=make))


class _Counted:
    """A file each of whose writes changes the disk."""

    def __init__(self, file, disk):
        self._file, self.write = file, disk.change(file.write)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def backed_up(backup, moment, error=Killed):
    """Writes two backups, of other values, to a disk that gives way.

    Returns:
        Whether the moment was reached.
    """
    disk = Disk(moment, error)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        try:
            for epoch in (0, 1):
                for variable in backup._variables():
                    variable.assign(np.full(variable.shape, epoch + 1))
                backup.on_epoch_begin(epoch)
                backup.on_epoch_end(epoch)
        except Killed:
            pass
    return disk.reached


@pytest.fixture(scope="module")
def small():
    """A model of few variables, each of which is written in several pieces."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    return model


def attached(model, folder):
    """The callback of a `fit` that is about to begin."""
    backup = kd.callbacks.BackupAndRestore(folder)
    backup.set_model(model)
    backup.set_params({"epochs": EPOCHS})
    return backup


def test_killed_at_any_write_a_backup_is_whole_or_not_there(small, tmp_path):
    """After each change of the disk during the first two backups."""
    found = []
    for moment in range(1000):
        folder = tmp_path / str(moment)
        reached = backed_up(attached(small, folder), moment)
        backup = attached(small, folder)
        done = backup.epochs_done()
        found.append(done)
        backup.on_train_begin()
        if done:
            # Variables and epoch are of one moment.
            for variable in backup._variables():
                assert (np.array(variable) == done).all()
        # What the kill left behind goes with the next backup.
        backup.on_epoch_begin(done)
        backup.on_epoch_end(0)
        names = {path.name for path in folder.iterdir()}
        assert names == {"backup.npz", "lock"}
        backup.on_train_end()
        assert not folder.exists()
        if not reached:
            break
    assert len(found) > 50
    assert sorted(found) == found and set(found) == {0, 1, 2}


def test_a_full_disk_is_said_and_the_backup_before_is_kept(small, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    moments = 0
    for moment in range(0, 1000, 5):
        folder = tmp_path / str(moment)
        try:
            if not backed_up(attached(small, folder), moment, full):
                break
        except OSError as error:
            moments += 1
            assert error.errno == errno.ENOSPC
            for words in (str(folder), "No space left", "Free some space"):
                assert words in str(error)
            backup = attached(small, folder)
            left = [p.name for p in folder.iterdir()]
            assert left == ["backup.npz"] * (backup.epochs_done() > 0)
            backup.on_train_begin()
    assert moments > 10


# -- damaged -------------------------------------------------------------------


def test_a_changed_or_missing_byte_is_never_trained_on(small, tmp_path):
    """Every changed byte is named, or belongs to nothing that is read."""
    backup = attached(small, tmp_path / "backup")
    assert not backed_up(backup, 10**6)
    backup.on_train_begin()
    states = [np.array(v) for v in backup._variables()]
    whole = backup.path.read_bytes()
    damaged = [whole[:size] for size in (0, 1, 100, len(whole) // 2, -1)]
    damaged += [
        whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :]
        for i in range(0, len(whole), 11)
    ]
    named = 0
    for content in damaged:
        backup.path.write_bytes(content)
        try:
            backup.on_train_begin()
        except ValueError as error:
            named += 1
            for words in (str(backup.path), "damaged", "Received", "remove it"):
                assert words in str(error)
        else:
            assert_equal([np.array(v) for v in backup._variables()], states)
    assert named > len(damaged) / 2
    backup.path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        backup.epochs_done()


@pytest.mark.parametrize(
    "other", [{"units": 5}, {"optimizer": keras.optimizers.Adam}]
)
def test_the_backup_of_another_model_is_refused(other, tmp_path):
    interrupt(tmp_path / "backup")
    other = {k: v() if callable(v) else v for k, v in other.items()}
    with pytest.raises(ValueError, match="another model or optimizer"):
        train(tmp_path / "backup", distiller=make_distiller(**other))


def test_what_cannot_be_written_or_resumed_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match="empty path"):
        kd.callbacks.BackupAndRestore("")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be written"):
        train(tmp_path / "file")
    model = keras.Sequential([layers.Dense(2)])
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    backup.set_model(model)
    with pytest.raises(ValueError, match="must be built"):
        backup.on_train_begin()


@pytest.mark.parametrize("save_freq", ["epoch", 100])
def test_a_save_freq_in_place_of_delete_checkpoint_is_refused(save_freq):
    with pytest.raises(TypeError, match="no `save_freq`"):
        kd.callbacks.BackupAndRestore("backup", save_freq)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    backup = kd.callbacks.BackupAndRestore("~/runs/backup")
    assert backup.path == tmp_path / "runs" / "backup" / "backup.npz"


def test_half_precision_is_kept_exactly(tmp_path):
    values = np.array([1 / 3, 1e-30, -2.5], "float32")
    kernel = keras.Variable(values, dtype="bfloat16")
    array = kd.backup._as_array(kernel)
    assert array.dtype == "float32"
    again = keras.Variable(array, dtype="bfloat16")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(again, "float32")),
        keras.ops.convert_to_numpy(keras.ops.cast(kernel, "float32")),
    )


# -- several workers -----------------------------------------------------------


def test_a_worker_restores_what_the_chief_wrote_and_writes_nothing(
    tmp_path, monkeypatch
):
    interrupt(tmp_path / "backup")
    written = (tmp_path / "backup" / "backup.npz").read_bytes()
    monkeypatch.setattr(distribution, "is_chief", lambda strategy: False)
    backup = kd.callbacks.BackupAndRestore(tmp_path / "backup")
    (kept,) = distribution.worker_callbacks([backup], None)
    distiller = make_distiller()
    x, labels, _ = data(8)
    history = distiller.fit(
        x, labels, batch_size=8, epochs=4, verbose=0, callbacks=[kept]
    )
    assert history.epoch == [2, 3]
    assert (tmp_path / "backup" / "backup.npz").read_bytes() == written
    # Nor does it where Keras's own `fit` calls it on every worker.
    backup.set_model(distiller)
    backup.set_params({"epochs": 9})
    backup.on_epoch_begin(3)
    backup.on_epoch_end(3)
    assert (tmp_path / "backup" / "backup.npz").read_bytes() == written


def test_another_process_in_the_folder_keeps_its_backup(tmp_path):
    """Its weights would be restored, and its backup be written over."""
    folder = tmp_path / "backup"
    with files.lock(folder):
        with pytest.raises(OSError, match="in use.*another `backup_dir`"):
            train(folder)
    interrupt(folder, epoch=1)
    # What was interrupted goes on in the same process, too.
    assert train(folder)[1] == [1, 2]
    assert not folder.exists()
