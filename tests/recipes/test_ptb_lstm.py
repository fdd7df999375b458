"""The language-model recipe, whole and small."""

import functools
import json
import pathlib
import re
import shutil
import socket
import subprocess
import types

import keras
import networks
import numpy as np
import processes
import ptb_lstm
import pytest
import tensorflow as tf
from data import text as text_data
from processes import losses, results
from study import language_model, options, run_folder
from tensorboard.backend.event_processing import event_accumulator

import keras_kd as kd

RECIPE = "ptb_lstm.py"
# With a teacher that is given; and with one that is trained.
STUDENT = (
    "--vocabulary 60 --student-units 4 --epochs 2 --batch-size 8 "
    "--time-steps 10 --learning-rate 3"
).split()
SMALL = (
    STUDENT
    + (
        "--teacher-units 8 --teacher-epochs 2 --teacher-dropout 0 "
        "--teacher-learning-rate 3"
    ).split()
)
LOSSES = ("plain", "kd_pt", "kd")
finish = functools.partial(processes.finish, ptb_lstm)
refused = functools.partial(processes.refused, ptb_lstm)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run with one loss of each kind, from a cache in its folder."""
    folder = tmp_path_factory.mktemp("work") / "run"
    arguments = ["--data-dir", text, "--log-dir", folder, *SMALL]
    arguments += losses(*LOSSES)
    return folder, arguments, finish(*arguments)


def test_every_loss_gives_a_row_a_model_and_logs(finished):
    folder, _, output = finished
    found = results(folder)
    assert set(found) == {"teacher", *(f"student-{n}" for n in LOSSES)}
    for name, result in found.items():
        assert 1 < result["test_perplexity"] < 60, name
        model = keras.models.load_model(folder / f"{name}.keras")
        assert model.count_params() == result["parameters"]
        assert any((folder / "tensorboard" / name).rglob("*tfevents*"))
        row = next(
            line
            for line in output.splitlines()
            if line.startswith(f"│ {name.removeprefix('student-')} ")
        )
        assert f"{result['test_perplexity']:.2f}" in row
    assert not list((folder / "unfinished").iterdir())
    assert f"tensorboard --logdir {folder}" in output.replace("\n", "")


def test_the_output_has_a_line_an_epoch_and_no_parts_of_a_plain_loss(finished):
    """Where it is not a terminal."""
    plain, distilled = (
        finished[2].split(f"\n{name}\n")[1].split("\n\n")[0].splitlines()
        for name in ("student-plain", "student-kd_pt")
    )
    # "Epoch 1/2" and its numbers.
    assert len(plain) == len(distilled) == 4
    for words in ("distillation", "gradient_scale"):
        assert words in distilled[1]
        assert words not in "".join(plain)
    folder = finished[0] / "tensorboard"
    for name, expected in (("plain", False), ("kd_pt", True)):
        events = event_accumulator.EventAccumulator(
            str(folder / f"student-{name}" / "train")
        ).Reload()
        tags = _tags(events)
        assert "epoch_loss" in tags
        assert ("distillation/weight" in tags) == expected


def _tags(events):
    return {
        tag
        for group in events.Tags().values()
        if isinstance(group, list)
        for tag in group
    }


def test_the_students_of_a_run_are_compared_in_hparams(finished):
    folder = finished[0] / "tensorboard" / "hparams"
    rows = {path.parent.name for path in folder.rglob("*tfevents*")}
    assert rows == {"hparams", *(f"student-{name}" for name in LOSSES)}
    events = event_accumulator.EventAccumulator(
        str(folder / "student-kd")
    ).Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    (perplexity,) = events.Tensors("test_perplexity")
    assert tf.make_ndarray(perplexity.tensor_proto) == pytest.approx(
        results(finished[0])["student-kd"]["test_perplexity"]
    )


def test_reported_perplexity_is_that_of_the_saved_model(finished, text):
    """Recomputed word by word from the probabilities, state carried on."""
    model = keras.models.load_model(finished[0] / "student-kd.keras")
    corpus = text_data.load(data_dir=text, vocabulary_size=60)
    surprise, count = 0.0, 0
    for x, y, weight in text_data.segments(corpus.test, 8, 10):
        logits = np.array(model(x), "float64")
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        picked = np.take_along_axis(p, y.numpy()[..., None], -1)[..., 0]
        surprise -= (np.log(picked) * weight.numpy()).sum()
        count += weight.numpy().sum()
    expected = results(finished[0])["student-kd"]["test_perplexity"]
    assert np.exp(surprise / count) == pytest.approx(expected, rel=1e-4)


def test_steps_in_one_call_and_the_cache_of_another_run_change_nothing(
    finished, text, tmp_path
):
    """The cache is read as it is, and by runs of its teacher alone."""
    cache = finished[0] / "cache-kd-kd_pt"
    written = times(cache)
    arguments = ["--data-dir", text, *STUDENT, *losses("kd"), "--cache", cache]
    output = finish(
        *(*arguments, "--teacher", finished[0] / "teacher.keras"),
        *("--log-dir", tmp_path / "run", "--steps-per-execution", 4),
    )
    assert "Teacher cache" in output and times(cache) == written
    segments = len(text_data.read_folder(text).words()["train"]) // 80
    assert segments == 30 and "3 steps in one call, not 4" in output
    found, expected = results(tmp_path / "run"), results(finished[0])
    for key in ("valid_perplexity", "test_perplexity"):
        assert found["student-kd"][key] == pytest.approx(
            expected["student-kd"][key], rel=1e-4
        )
    other = finished[0] / "student-kd.keras"
    message = refused(
        *(*arguments, "--teacher", other, "--log-dir", tmp_path / "other")
    )
    assert "teacher" in message and str(cache) in message


def times(folder):
    return {
        path: path.stat().st_mtime_ns
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


def test_a_probe_prints_how_long_the_run_would_take(text, tmp_path):
    output = finish(
        *("--data-dir", text, *SMALL, "--epochs", 300, "--teacher-epochs", 200),
        *("--probe-steps", 5, "--loss", "plain", "--log-dir", tmp_path / "run"),
    )
    for epochs in (200, 300):
        assert re.search(
            rf"{epochs} epochs of 30 steps would take [1-9]\d* (s|min)\.",
            output,
        )
    found = results(tmp_path / "run")
    assert all(0 < r["projected_hours"] < 1 for r in found.values())


def test_running_again_trains_nothing(finished):
    folder, arguments, _ = finished
    before = results(folder)
    output = finish(*arguments)
    assert "Epoch" not in output and "Teacher cache" not in output
    assert output.count("done before, kept.") == 1 + len(LOSSES)
    assert results(folder) == before


def test_another_run_in_the_same_folder_is_refused(finished):
    assert "seed: 0 there, 5 now" in refused(*finished[1], "--seed", 5)


def test_another_text_in_the_same_folder_is_refused(finished, text):
    folder, arguments, _ = finished
    before, path = results(folder), text / "ptb.test.txt"
    words = path.read_text()
    try:
        path.write_text(words.replace("w1 w2", "w2 w1"))
        message = refused(*arguments, *losses("kd_topk"))
    finally:
        path.write_text(words)
    assert "Received: another test than there" in message
    assert results(folder) == before


def test_killed_and_run_again_ends_where_an_uninterrupted_run_does(
    finished, text, tmp_path
):
    """SIGKILL in the middle of the student's training."""
    teacher = finished[0] / "teacher.keras"
    arguments = ["--data-dir", text, *STUDENT, "--teacher", teacher]
    arguments += ["--epochs", 12, "--loss", "kd_pt", "--no-cache"]
    finish(*arguments, "--log-dir", tmp_path / "whole")
    backup = tmp_path / "run" / "unfinished" / "student-kd_pt" / "backup.npz"
    processes.kill_when(
        backup.exists, RECIPE, tmp_path, *arguments, "--log-dir", "run"
    )
    assert set(results(tmp_path / "run")) == {"teacher"}
    output = finish(*arguments, "--log-dir", tmp_path / "run")
    assert "teacher: done before" in output
    assert "Epoch 1/12" not in output and "Epoch 12/12" in output
    found, expected = (
        results(tmp_path / name)["student-kd_pt"] for name in ("run", "whole")
    )
    for key in ("test_perplexity", "median_gradient_scale"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    # Those before the kill count too.
    assert found["seconds"] > 0


def test_two_replicas_without_a_cache_give_the_perplexities_of_one_with(
    finished, text, tmp_path, mirrored
):
    teacher = finished[0] / "teacher.keras"
    output = finish(
        *("--data-dir", text, "--log-dir", tmp_path / "run", *STUDENT),
        *("--teacher", teacher, "--no-cache", *mirrored),
        *losses("kd_pt"),
    )
    assert "Teacher cache" not in output
    two, one = results(tmp_path / "run"), results(finished[0])
    for name, result in two.items():
        for key in ("valid_loss", "test_perplexity"):
            assert result[key] == pytest.approx(one[name][key], rel=2e-3)


def test_two_workers_give_the_perplexities_of_one(finished, text, tmp_path):
    """Two processes of one command, as on two machines, with one cache.

    Its teacher is trained as a plain student is.
    """
    arguments = ["--data-dir", text, "--log-dir", "run", *SMALL]
    arguments += losses("kd_pt")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(probe.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    started = [
        subprocess.Popen(
            processes.command(RECIPE, *arguments, "--strategy", "multiworker"),
            cwd=tmp_path,
            env=processes.environment(
                TF_CONFIG=json.dumps(
                    {
                        "cluster": cluster,
                        "task": {"type": "worker", "index": index},
                    }
                )
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
        assert "│ kd_pt" in output
    two, one = results(tmp_path / "run"), results(finished[0])
    assert set(two) == {"teacher", "student-kd_pt"}
    for name in two:
        assert two[name]["test_perplexity"] == pytest.approx(
            one[name]["test_perplexity"], rel=2e-3
        )


def test_mixed_precision_adam_and_a_given_teacher(finished, text, tmp_path):
    teacher = finished[0] / "teacher.keras"
    finish(
        *("--data-dir", text, "--log-dir", tmp_path / "run", *STUDENT),
        *("--batch-size", 4, "--teacher", teacher, "--loss", "kd_topk"),
        *("--mixed-precision", "--optimizer", "adam", "--decay", "none"),
    )
    found = results(tmp_path / "run")
    expected = results(finished[0])["teacher"]["test_perplexity"]
    # Other streams start elsewhere in the text, so it is not quite the same.
    assert found["teacher"]["test_perplexity"] == pytest.approx(
        expected, rel=0.05
    )
    assert np.isfinite(found["student-kd_topk"]["test_perplexity"])


def study_of(monkeypatch, *arguments):
    """What a command would train, without a run folder."""
    studies = []

    def keep(recipe, about, make, strategy, chosen, *_, **__):
        studies.append(make(None, strategy, chosen))

    monkeypatch.setattr(ptb_lstm, "run_study", keep)
    finish(*arguments)
    return studies[0]


@pytest.mark.parametrize(
    ("given", "rates", "weight"),
    [
        ([], (30, 30, 0.25), 0.03),
        (["--optimizer", "adam"], (0.01, 0.01, 5), 0.1),
        (
            ["--clip-norm", 1, "--optimizer", "adam", "--learning-rate", 0],
            (0, 0.01, 1),
            0.1,
        ),
    ],
)
def test_rates_and_weights_are_those_of_the_optimizer(
    monkeypatch, text, given, rates, weight
):
    """Whatever the order of the options."""
    study = study_of(monkeypatch, "--data-dir", text, *given)
    names = ("learning_rate", "teacher_learning_rate", "clip_norm")
    assert tuple(study.options[name] for name in names) == rates
    for role, rate in zip(("student", "teacher"), rates, strict=False):
        optimizer = study.optimizer(role)
        kind = type(optimizer).__name__.lower()
        assert kind == study.options["optimizer"]
        assert float(optimizer.learning_rate) == pytest.approx(rate)
        assert optimizer.global_clipnorm == rates[2]
    assert study.loss("kd_pt").weights == pytest.approx({"weight": weight})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "kd_ptt"], "kd_ptt"),
        (["--data-dir", "absent"], "absent"),
        (["--data-dir", ""], "empty path"),
        (["--data-dir", ".", "--download"], "one source"),
        (["--data-dir", "."], "ptb.train.txt"),
        (["--weight", "2"], "2"),
        (["--replicas", "2"], "--strategy mirrored"),
        (["--temperature", "0"], "temperature"),
        (["--no-cache", "--cache", "c"], "--cache with"),
        (["--no-cache", "--attribute"], "--attribute with"),
        (["--seeds", 5], "--seeds does nothing without --attribute or --tune"),
        (["--time-budget", 3], "--time-budget does nothing without"),
        (["--attribute", "--student-budget", 3], "nothing without --tune"),
        (["--attribute", "--sampler", "random"], "nothing without --tune"),
        (["--k", 3], "--k does nothing without --loss kd_topk or kd_sampled"),
        (["--loss", "plain", "--weight", 0.5], "--weight does nothing"),
        (
            [*losses("plain", "label_smoothing"), "--temperature", 3],
            "--temperature does nothing without a --loss that has one. "
            "Received: --temperature 3.0",
        ),
        (["--loss", "plain", "--cache", "c"], "--cache does nothing"),
        (
            ["--teacher", __file__, "--teacher-units", 99],
            "--teacher-units does nothing with --teacher. Received: "
            "--teacher-units 99",
        ),
        (
            ["--no-cache", "--loss", "kd_pt_shuffled"],
            "--loss kd_pt_shuffled needs the teacher cache",
        ),
    ],
)
def test_bad_options_are_refused_in_one_message(
    text, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if "--data-dir" not in arguments:
        arguments = [*arguments, "--data-dir", text]
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_words_is_refused(finished, text, tmp_path):
    teacher = finished[0] / "teacher.keras"
    message = refused(
        *("--data-dir", text, "--log-dir", tmp_path / "run", *STUDENT),
        *("--vocabulary", 20, "--teacher", teacher),
    )
    assert "a text of 20" in message
    # Nothing was made, so the folder is open to what the message asks for.
    finish(
        *("--data-dir", text, "--log-dir", tmp_path / "run", *STUDENT),
        *("--teacher", teacher, *losses("kd")),
    )


def test_an_earlier_folder_with_options_that_do_nothing_resumes(
    finished, tmp_path
):
    folder, arguments, _ = finished
    own = tmp_path / "run"
    shutil.copytree(folder, own)
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "k": 3}))
    arguments = [own if each == folder else each for each in arguments]
    assert "student-kd: done before" in finish(*arguments, "--k", 3)
    assert "--seeds does nothing" in refused(*arguments, "--k", 3, "--seeds", 5)


def test_a_teacher_to_which_ids_mean_other_words_is_refused(
    finished, text, tmp_path
):
    """As many words; and wherever the teacher's file is."""
    teacher = tmp_path / "teacher.keras"
    shutil.copy(finished[0] / "teacher.keras", teacher)
    own = tmp_path / "text"
    shutil.copytree(text, own)
    path = own / "ptb.train.txt"
    path.write_text(path.read_text().replace(" w1 ", " v1 "))
    message = refused(
        *("--data-dir", own, "--log-dir", tmp_path / "run", *STUDENT),
        *("--teacher", teacher),
    )
    assert "at least one of the 48 ids means another word" in message


def test_what_ids_mean_is_told_by_a_file_or_by_its_run_folder(tmp_path):
    def known(model):
        model.save(tmp_path / "teacher.keras")
        loaded = run_folder.load_model(tmp_path / "teacher.keras")
        return language_model.known_vocabularies(
            loaded, tmp_path / "teacher.keras"
        )

    def model(name):
        inputs = keras.Input((2,))
        return keras.Model(inputs, keras.layers.Dense(3)(inputs), name=name)

    digests = ["0" * 12, "1" * 12]
    members = [model(f"teacher_words_{digest}") for digest in digests]
    assert known(members[0]) == {digests[0]}
    assert known(kd.ensemble(members)) == set(digests)
    assert known(kd.ensemble([members[0], members[0]])) == {digests[0]}
    assert known(model("teacher")) == set()
    (tmp_path / "data.json").write_text(json.dumps({"vocabulary": "2" * 64}))
    assert known(model("teacher")) == {"2" * 12}
    assert known(members[0]) == {digests[0]}


def test_a_teacher_that_may_know_other_words_is_named(
    text, tmp_path, monkeypatch, capsys
):
    study = study_of(monkeypatch, "--data-dir", text)
    words = len(study.corpus.vocabulary)
    assert words / 2 < study.guess() < words
    study.run = types.SimpleNamespace(writes=True)
    study.options["teacher"] = tmp_path / "teacher.keras"
    model = networks.lstm_language_model(words, 2, 1, 0.0, study.input_shape)
    assert study.adapted_teacher(model) is model
    said = capsys.readouterr().out
    assert "teacher.keras does not tell which words its ids mean" in said
    for perplexity, is_guessing in ((words / 2, False), (2 * words, True)):
        study.run.results = {"teacher": {"test_perplexity": perplexity}}
        study.run.train_once = lambda *_: None
        study.evaluate_teacher(model)
        said = capsys.readouterr().out
        assert ("hardly knows more than a guess" in said) == is_guessing


def test_a_cache_is_made_unless_it_would_be_huge():
    def cached(labels, classes, *losses, arguments=None, **more):
        names = ("cache", "no_cache", "attribute", "tune", "time_budget")
        chosen = dict.fromkeys((*names, "student_budget", "k"))
        settled = options.settled(
            {**chosen, **more}, losses, labels, classes, arguments
        )
        return settled["cached"]

    assert cached(929_589, 10_000)  # PTB in full, 19 GB.
    assert not cached(929_589, 50_257)
    assert not cached(929_589, 50_257, "plain", "kd_topk", "kd")  # 93 GB.
    # 89 and 2 MB.
    assert cached(929_589, 50_257, "plain", "kd_topk", "kd_sampled", k=24)
    assert cached(929_589, 50_257, "kd_pt_sim", "kd_sim_permuted")
    assert not cached(929_589, 50_257, "kd_pt", "dkd_tckd")
    assert not cached(50_000, 1000, views=1000)
    # 250 classes by default, 26 GB; 500 as in the study of ImageNet, 51 GB.
    assert cached(25_600_000, 1000, "kd_topk")
    half = {"kd_topk": {"k": 0.5}}
    assert not cached(25_600_000, 1000, "kd_topk", arguments=half)
    assert cached(929_589, 50_257, cache="here")
    assert not cached(100, 10, no_cache=True)
