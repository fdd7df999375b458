"""Run folder: whose it is, what is done, and what was damaged or cut."""

import errno
import json
import multiprocessing
import os
import shlex

import click
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from study import messages, options, run_folder

from keras_kd import files


def open_run(folder, **config):
    return run_folder.RunFolder("study", config, folder)


def tiny_model():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])


def test_the_same_options_find_their_folder_and_others_do_not(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with open_run(None, seed=1) as first:
        pass
    with open_run(None, seed=1) as again, open_run(None, seed=2) as other:
        assert again.folder == first.folder != other.folder
    config = json.loads((first.folder / "config.json").read_text())
    assert config == {"recipe": "study", "seed": 1}


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path):
    open_run(tmp_path, seed=1, units=5).close()
    with pytest.raises(ValueError, match="seed: 1 there, 2 now") as caught:
        open_run(tmp_path, seed=2, units=5)
    assert "units" not in str(caught.value)


def test_what_differs_is_called_as_the_user_does(tmp_path):
    """And not by the configuration's own names."""

    @click.command()
    @click.option("--teacher-units")
    @click.option("--delta", "deltas", multiple=True)
    @click.option("--cache")
    @click.option("--quick", is_flag=True)
    def command(cache, **config):
        with open_run(tmp_path, cached=cache is not None, **config):
            pass

    def said(*arguments):
        result = CliRunner().invoke(command, arguments)
        return str(result.exception)

    assert said("--delta", "0.5") == "None"
    assert "(--delta: ['0.5'] there, [] now)" in said()
    assert (
        "(teacher cache (--no-cache, --cache): no there, yes now; --quick: no "
        "there, yes now; --teacher-units: none there, 3 now)"
    ) in said("--delta", "0.5", *"--cache c --quick --teacher-units 3".split())


def test_the_printed_command_is_one_of_a_shell(tmp_path, capsys):
    with open_run(tmp_path / "run a") as run:
        run.echo_tensorboard()
    program, option, path = shlex.split(capsys.readouterr().out)
    assert (program, option) == ("tensorboard", "--logdir")
    assert path == str(tmp_path / "run a" / "tensorboard")


def test_who_interrupts_a_run_is_told_where_it_resumes(tmp_path):
    @click.command()
    @click.option("--epochs", type=int)
    @messages.errors_as_messages()
    def command(epochs):
        if epochs is None:
            raise KeyboardInterrupt  # There is nothing to resume.
        run = run_folder.open_run("study", {}, tmp_path)

        def train():
            if epochs:
                model = tiny_model()
                model.compile("sgd", "mse")
                backup = run.backup("student")
                backup.set_model(model)
                backup.set_params({"epochs": 5})
                backup.on_epoch_begin(epochs - 1)
                backup.on_epoch_end(epochs - 1)
            raise KeyboardInterrupt

        run.train_once("student", train)

    def said(*arguments):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 1
        return result.output

    assert "resumes" not in said()
    assert "The same command resumes with student." in said("--epochs", "0")
    assert "resumes student after epoch 2." in said("--epochs", "2")


def test_other_data_are_refused(tmp_path):
    data = {"train": "5d41", "test": "9ae0"}
    with open_run(tmp_path) as run:
        run.check_data(data)  # As in a folder of an earlier version.
    with open_run(tmp_path) as run:
        run.check_data(data)
        with pytest.raises(ValueError, match="Received: another test than"):
            run.check_data({**data, "test": "0000"})


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        open_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="not a folder"):
        open_run(tmp_path / "thesis.tex")


def test_a_finished_model_is_not_trained_again(tmp_path, capsys):
    calls = []

    def train():
        calls.append(None)
        return {"accuracy": 0.5}

    for _ in range(2):
        with open_run(tmp_path) as run:
            run.train_once("student", train)
            assert run.results == {"student": {"accuracy": 0.5}}
    assert len(calls) == 1
    assert "student: done before, kept." in capsys.readouterr().out


def test_the_home_folder_is_found_and_an_empty_path_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_run("~/runs/first") as run:
        assert run.folder == tmp_path / "runs" / "first"
    with pytest.raises(ValueError, match="`--log-dir` must name.*empty path"):
        open_run("")
    kind = options.UserPath(exists=True)
    option = click.Option(["--teacher"], type=kind)
    assert option.type_cast_value(None, "~/runs") == str(tmp_path / "runs")
    context = click.Context(click.Command("study"))
    with pytest.raises(click.BadParameter, match="`--teacher` must name"):
        option.type_cast_value(context, " ")


# -- two at once ---------------------------------------------------------------


def hold(folder, pipe):
    with open_run(folder):
        pipe.send("ready")
        pipe.recv()


@pytest.fixture
def holder(tmp_path):
    """Another process that uses a folder."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "run", theirs))
    process.start()
    assert ours.recv() == "ready"
    yield process
    process.kill()
    process.join()


def test_a_folder_in_use_is_refused_until_its_process_ends(holder, tmp_path):
    with pytest.raises(OSError) as caught:
        open_run(tmp_path / "run")
    for words in ("in use", f"process {holder.pid}", "--log-dir"):
        assert words in str(caught.value)
    holder.kill()
    holder.join()
    open_run(tmp_path / "run").close()


def test_a_refused_run_does_not_keep_the_folder(tmp_path):
    open_run(tmp_path, seed=1).close()
    with pytest.raises(ValueError, match="another run"):
        open_run(tmp_path, seed=2)
    open_run(tmp_path, seed=1).close()


# -- damaged and cut -----------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"student": {"accu', "[1]", "\0"])
@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, content):
    with open_run(tmp_path) as run:
        run.train_once("student", lambda: {"accuracy": 0.5})
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        with open_run(tmp_path) as run:
            run.train_once("student", dict)
    for words in (str(tmp_path / name), "damaged", "Received", "remove"):
        assert words in str(caught.value)
    assert (tmp_path / name).read_text() == content


def test_a_result_that_is_not_a_dict_is_named(tmp_path):
    open_run(tmp_path).close()
    (tmp_path / "results.json").write_text('{"student": 3}')
    with open_run(tmp_path) as run:
        with pytest.raises(ValueError, match="3 for 'student'"):
            run.train_once("student", dict)


def finish(folder):
    with open_run(folder) as run:

        def train():
            run.save(tiny_model(), "student")
            return {"accuracy": 0.5}

        run.train_once("student", train)
        return run


def test_a_finished_model_is_kept_only_as_it_was_written(tmp_path, capsys):
    path = finish(tmp_path).model("student")
    whole = path.read_bytes()
    for content in (b"", whole[:-100], b"x" + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            finish(tmp_path)
        for words in (str(path), f"{len(content)} bytes", "remove it"):
            assert words in str(caught.value)
    path.unlink()
    capsys.readouterr()
    finish(tmp_path)
    assert "was removed, so it is trained again" in capsys.readouterr().out
    assert keras.models.load_model(path).output_shape == (None, 3)


def test_a_given_teacher_counts_only_as_it_was(tmp_path):
    teacher = tmp_path / "teacher.keras"
    teacher.write_bytes(b"one")
    for _ in range(2):
        with open_run(tmp_path / "run") as run:
            run.train_once("teacher", lambda: {"accuracy": 0.5}, teacher)
    teacher.write_bytes(b"other")
    with open_run(tmp_path / "run") as run:
        with pytest.raises(ValueError, match="was replaced"):
            run.train_once("teacher", dict, teacher)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_damaged_teacher_is_not_called_missing(tmp_path, size):
    path = tmp_path / "teacher.keras"
    tiny_model().save(path)
    np.testing.assert_equal(run_folder.load_model(path).output_shape, (None, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="it is damaged.*Received") as caught:
        run_folder.load_model(path)
    assert str(path) in str(caught.value)
    assert "not found" not in str(caught.value).lower()


def test_a_changed_byte_in_a_teacher_is_found(tmp_path):
    path = tmp_path / "teacher.keras"
    tiny_model().save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        run_folder.load_model(path)


class Killed(BaseException):
    pass


def test_killed_while_a_result_is_written_nothing_is_lost(
    tmp_path, monkeypatch
):
    """Before the model's file, before the result, and before the clean-up."""
    replace, steps = os.replace, []
    for moment in range(4):
        folder = tmp_path / str(moment)
        open_run(folder).close()
        calls = iter(range(100))

        def dying(source, target, calls=calls, moment=moment):
            if next(calls) == moment + 1:  # The first is config.json's.
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                finish(folder)
                steps.append("whole")
            except Killed:
                steps.append("killed")
        run = finish(folder)
        assert run.results["student"]["accuracy"] == 0.5
        assert run_folder.load_model(run.model("student"))
        assert not list(folder.glob("*.unfinished*"))
    assert steps == ["killed", "killed", "whole", "whole"]


# -- messages ------------------------------------------------------------------


def shown(error):
    with pytest.raises(click.ClickException) as caught:
        with messages.errors_as_messages():
            raise error
    return caught.value.message


def test_an_error_of_the_disk_is_one_message():
    import tensorflow as tf

    full = tf.errors.ResourceExhaustedError(
        None, None, "runs/x/events.out; No space left on device\nand a trace"
    )
    message = shown(full)
    assert "Received: runs/x/events.out; No space left on device" in message
    assert "resumes" in message and "a trace" not in message
    message = shown(PermissionError(errno.EACCES, "Permission denied", "a/b"))
    assert message.startswith("a/b can't be read or written. Received: Perm")
    with pytest.raises(tf.errors.InvalidArgumentError):
        with messages.errors_as_messages():
            raise tf.errors.InvalidArgumentError(None, None, "a shape")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be made.*file/run .Not a dir"):
        open_run(tmp_path / "file" / "run")


def test_a_full_disk_while_a_result_is_written_keeps_what_was(
    tmp_path, monkeypatch
):
    with open_run(tmp_path) as run:
        run.train_once("teacher", lambda: {"accuracy": 0.7})
        with monkeypatch.context() as patch:

            def full(descriptor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(files.os, "fsync", full)
            with pytest.raises(OSError, match="No space left.*Free some"):
                run.train_once("student", lambda: {"accuracy": 0.5})
        assert set(run.results) == {"teacher"}
        run.train_once("student", lambda: {"accuracy": 0.5})
        assert set(run.results) == {"teacher", "student"}
