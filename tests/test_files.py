"""Folders that two processes begin to use at once, and files written once."""

import errno
import multiprocessing
import os
import pathlib
import shutil

import pytest
from models import mlp

import keras_kd as kd
from keras_kd import files

ABOUT = {"epochs": 3}


def between(monkeypatch, owner, name, other, after=False):
    """Lets another process act just before a call, or just after it.

    Args:
        monkeypatch: the fixture.
        owner: of the function.
        name: of the function, whose first call it is.
        other: function without arguments.
        after: whether it acts after the call.
    """
    real = getattr(owner, name)

    def call(*args, **kwargs):
        monkeypatch.setattr(owner, name, real)
        if not after:
            other()
        result = real(*args, **kwargs)
        if after:
            other()
        return result

    monkeypatch.setattr(owner, name, call)


def share(folder, about=ABOUT):
    files.share_folder(folder, "study.json", about, "`folder`")


# -- one name, once ------------------------------------------------------------


def test_a_new_file_never_replaces_another(tmp_path):
    path = tmp_path / "study.json"
    assert files.write_new(path, "first")
    assert not files.write_new(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o600 == 0o600


def test_a_new_file_on_a_disk_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    test_a_new_file_never_replaces_another(tmp_path)


# -- what a path may be --------------------------------------------------------


def test_a_path_may_be_bytes(tmp_path):
    assert files.user_path(b"runs/first") == "runs/first"
    kd.attribute(score, 2, ["plain"], os.fsencode(tmp_path / "x"), verbose=0)
    assert (tmp_path / "x" / "study.json").exists()


@pytest.mark.parametrize("kind", ["file", "file/within", "link to nowhere"])
def test_what_is_no_folder_is_said(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "link to nowhere").symlink_to(tmp_path / "nowhere")
    folder = tmp_path / kind
    for use in (share, lambda path: kd.attribute(score, 2, folder=path)):
        with pytest.raises(ValueError, match=f"must be a folder.*{folder}"):
            use(folder)
    logs = kd.callbacks.KDTensorBoard(folder)
    with pytest.raises(OSError, match=f"{folder} can't be written"):
        logs.set_model(distiller())


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(OSError, match="too long. Choose a shorter name"):
        share(tmp_path / ("x" * 300))


def test_a_folder_stays_where_it_was_when_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = kd.attribution.runs.Runs("runs", {})
    backup = kd.callbacks.BackupAndRestore("backup")
    logs = kd.callbacks.KDTensorBoard("logs")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    runs.add("plain", 0, 0.5, 1.0, {})
    assert (tmp_path / "runs" / "run-plain-0.json").exists()
    assert backup.path.parent == tmp_path / "backup"
    assert logs.log_dir == str(tmp_path / "logs")
    assert kd.callbacks.KDTensorBoard("gs://bucket/x").log_dir.startswith("gs:")


def score(method, seed):
    return float(seed)


def distiller():
    student = mlp()
    made = kd.Distiller(student, mlp(seed=3))
    made.compile("sgd", kd.KDPt())
    return made


# -- two at once ---------------------------------------------------------------


def test_a_folder_in_which_another_process_begins_is_not_foreign(
    tmp_path, monkeypatch
):
    """A list that is made meanwhile may have the later of two files alone."""
    study, result = tmp_path / "study.json", tmp_path / "kd-seed0.result.json"

    def listed(folder):
        files.write_json(study, ABOUT)
        files.write_json(result, {})
        return [result]

    monkeypatch.setattr(pathlib.Path, "iterdir", listed)
    share(tmp_path)
    monkeypatch.undo()
    study.unlink()
    with pytest.raises(ValueError, match="kd-seed0.result.json"):
        share(tmp_path)


@pytest.mark.parametrize("moment", ["mkdir", "link"])
def test_of_two_that_begin_in_a_folder_one_has_it(
    tmp_path, monkeypatch, moment
):
    owner = os if moment == "link" else pathlib.Path
    folder = tmp_path / "study"
    between(monkeypatch, owner, moment, lambda: share(folder))
    share(folder)
    shutil.rmtree(folder)
    between(monkeypatch, owner, moment, lambda: share(folder, {"epochs": 4}))
    with pytest.raises(ValueError, match="epochs: 4 there, 3 now"):
        share(folder)
    assert files.read_json(folder / "study.json", "") == {"epochs": 4}


def test_a_lock_that_its_holder_has_removed_is_nobodys(tmp_path, monkeypatch):
    folder = tmp_path / "unfinished"
    held = files.lock(folder)

    def end():
        shutil.rmtree(folder)
        held.close()

    between(monkeypatch, files, "_lock_file", end)
    with files.lock(folder):
        # The other's was a file without a name, which excludes nobody.
        with pytest.raises(OSError, match=f"in use.*process {os.getpid()}"):
            files.lock(folder)


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch
):
    folder = tmp_path / "unfinished"
    between(
        monkeypatch,
        pathlib.Path,
        "mkdir",
        lambda: shutil.rmtree(folder),
        after=True,
    )
    with files.lock(folder):
        assert (folder / "lock").exists()


def test_a_holder_that_ends_while_it_is_named_is_still_named(
    tmp_path, monkeypatch
):
    folder = tmp_path / "unfinished"
    real = files._lock_file

    def refused_and_removed(file):
        try:
            real(file)
        finally:
            shutil.rmtree(folder)

    with files.lock(folder):
        monkeypatch.setattr(files, "_lock_file", refused_and_removed)
        with pytest.raises(OSError, match=f"in use.*process {os.getpid()}"):
            files.lock(folder)


def test_a_process_that_was_forked_does_not_keep_its_parents_lock(tmp_path):
    """Such as those that read a `PyDataset`, after its `fit` has ended."""
    fork = multiprocessing.get_context("fork")
    has_begun, has_ended = fork.Event(), fork.Event()

    def read():
        has_begun.set()
        has_ended.wait()

    with files.lock(tmp_path):
        reader = fork.Process(target=read)
        reader.start()
        has_begun.wait()
        with pytest.raises(OSError, match="in use"):
            files.lock(tmp_path)
    try:
        files.lock(tmp_path).close()
    finally:
        has_ended.set()
        reader.join()
