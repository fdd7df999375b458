"""Run folder, resuming and result table."""

import json
import time

import common
import pytest


def test_the_same_options_find_their_folder_and_others_do_not(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = common.RunFolder("study", {"seed": 1})
    assert common.RunFolder("study", {"seed": 1}).folder == first.folder
    assert common.RunFolder("study", {"seed": 2}).folder != first.folder
    config = json.loads((first.folder / "config.json").read_text())
    assert config == {"recipe": "study", "seed": 1}


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path):
    common.RunFolder("study", {"seed": 1, "units": 5}, tmp_path)
    with pytest.raises(ValueError, match="seed: 1 there, 2 now") as caught:
        common.RunFolder("study", {"seed": 2, "units": 5}, tmp_path)
    assert "units" not in str(caught.value)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        common.RunFolder("study", {}, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="a file"):
        common.RunFolder("study", {}, tmp_path / "thesis.tex")


def test_a_finished_model_is_not_trained_again(tmp_path):
    run = common.RunFolder("study", {}, tmp_path)
    calls = []

    def train():
        calls.append(None)
        return {"accuracy": 0.5}

    run.train_once("student", train)
    again = common.RunFolder("study", {}, tmp_path)
    again.train_once("student", train)
    assert len(calls) == 1
    assert run.results == again.results == {"student": {"accuracy": 0.5}}


def test_the_stopwatch_goes_on_after_an_interruption(tmp_path):
    path = tmp_path / "a.seconds"
    for epoch in range(3):
        watch = common.make_stopwatch(path)
        watch.on_epoch_begin(epoch)
        time.sleep(0.02)
        watch.on_epoch_end(epoch)
    assert 0.06 <= watch.seconds() < 1
    again = common.make_stopwatch(path)
    again.on_epoch_begin(0)
    assert again.seconds() == 0
    again.on_epoch_end(0)
