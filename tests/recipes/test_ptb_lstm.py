"""The language-model recipe, whole and small, as a user starts it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

RECIPE = pathlib.Path(__file__).parents[2] / "recipes" / "ptb_lstm.py"
SMALL = (
    "--vocabulary 60 --teacher-units 8 --student-units 4 --teacher-epochs 2 "
    "--epochs 2 --batch-size 8 --time-steps 10"
).split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder in Mikolov's form, of a language that can be learnt."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    for part, lines in (("train", 300), ("valid", 40), ("test", 40)):
        starts = random.integers(0, 40, lines)
        (folder / f"ptb.{part}.txt").write_text(
            "".join(
                " " + " ".join(f"w{(s + i) % 50}" for i in range(7)) + " \n"
                for s in starts
            )
        )
    return folder


def command(*arguments):
    return [sys.executable, str(RECIPE), *map(str, arguments)]


def run(folder, *arguments, check=True):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=check,
    )


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run with every loss."""
    folder = tmp_path_factory.mktemp("work")
    losses = "plain label_smoothing kd_pt kd_sim kd_pt_sim kd_topk kd".split()
    arguments = [
        "--data-dir",
        text,
        "--log-dir",
        "run",
        *SMALL,
        *(word for loss in losses for word in ("--loss", loss)),
    ]
    return folder, arguments, run(folder, *arguments), losses


def test_every_loss_gives_a_row_a_model_and_logs(finished):
    folder, _, process, losses = finished
    found = results(folder / "run")
    assert set(found) == {"teacher", *(f"student-{n}" for n in losses)}
    for name, result in found.items():
        assert 1 < result["test_perplexity"] < 60, name
        model = keras.models.load_model(folder / "run" / f"{name}.keras")
        assert model.count_params() == result["parameters"]
        assert any((folder / "run" / "tensorboard" / name).rglob("*tfevents*"))
    for loss in losses:
        assert loss in process.stdout
    assert "tensorboard --logdir" in process.stdout
    assert not list((folder / "run" / "unfinished").glob("*/"))


def test_reported_perplexity_is_that_of_the_saved_model(finished, text):
    """Recomputed word by word from the probabilities, state carried on."""
    folder = finished[0]
    model = keras.models.load_model(folder / "run" / "student-kd.keras")
    import text_data

    corpus = text_data.load(data_dir=text, vocabulary_size=60)
    surprise, count = 0.0, 0
    for x, y, weight in text_data.segments(corpus.test, 8, 10):
        logits = np.array(model(x), "float64")
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        picked = np.take_along_axis(p, y.numpy()[..., None], -1)[..., 0]
        surprise -= (np.log(picked) * weight.numpy()).sum()
        count += weight.numpy().sum()
    expected = results(folder / "run")["student-kd"]["test_perplexity"]
    assert np.exp(surprise / count) == pytest.approx(expected, rel=1e-4)


def test_running_again_trains_nothing(finished):
    folder, arguments, _, _ = finished
    before = results(folder / "run")
    process = run(folder, *arguments)
    assert "Epoch" not in process.stdout
    assert results(folder / "run") == before


def test_another_run_in_the_same_folder_is_refused(finished):
    folder, arguments, _, _ = finished
    process = run(folder, *arguments, "--seed", 5, check=False)
    assert process.returncode != 0
    assert "seed: 0 there, 5 now" in process.stderr
    assert "Traceback" not in process.stderr


def test_killed_and_run_again_ends_where_an_uninterrupted_run_does(
    finished, text, tmp_path
):
    """SIGKILL in the middle of the first student's training."""
    arguments = ["--data-dir", text, "--log-dir", "run", *SMALL]
    arguments += ["--loss", "kd_pt"]
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    backup = tmp_path / "run" / "unfinished" / "student-kd_pt"
    deadline = time.monotonic() + 120
    while not (backup / "training_metadata.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    teacher = results(tmp_path / "run")["teacher"]
    output = run(tmp_path, *arguments).stdout
    assert "teacher: done before" in output
    assert "Epoch 1/2" not in output
    found, expected = results(tmp_path / "run"), results(finished[0] / "run")
    assert found["teacher"] == teacher
    assert found["student-kd_pt"]["test_perplexity"] == pytest.approx(
        expected["student-kd_pt"]["test_perplexity"], rel=1e-4
    )


def test_two_replicas_give_the_perplexities_of_one(finished, text, tmp_path):
    run(
        tmp_path,
        *("--data-dir", text, "--log-dir", "run", *SMALL),
        *("--loss", "kd_pt", "--loss", "plain"),
        *("--teacher-dropout", 0, "--strategy", "mirrored", "--replicas", 2),
    )
    run(
        tmp_path,
        *("--data-dir", text, "--log-dir", "one", *SMALL),
        *("--loss", "kd_pt", "--loss", "plain", "--teacher-dropout", 0),
    )
    two, one = results(tmp_path / "run"), results(tmp_path / "one")
    for name, result in one.items():
        assert two[name]["test_perplexity"] == pytest.approx(
            result["test_perplexity"], rel=1e-3
        )


def test_mixed_precision_sgd_and_a_given_teacher(finished, text, tmp_path):
    teacher = finished[0] / "run" / "teacher.keras"
    run(
        tmp_path,
        *("--data-dir", text, "--log-dir", "run", *SMALL),
        *("--batch-size", 4, "--teacher", teacher, "--loss", "kd_topk"),
        *("--mixed-precision", "--optimizer", "sgd", "--decay", "none"),
    )
    found = results(tmp_path / "run")
    expected = results(finished[0] / "run")["teacher"]["test_perplexity"]
    # Other streams start elsewhere in the text, so it is not quite the same.
    assert found["teacher"]["test_perplexity"] == pytest.approx(
        expected, rel=0.05
    )
    assert np.isfinite(found["student-kd_topk"]["test_perplexity"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "kd_ptt"], "kd_ptt"),
        (["--data-dir", "absent"], "absent"),
        (["--data-dir", ".", "--download"], "one source"),
        (["--data-dir", "."], "ptb.train.txt"),
        (["--weight", "2"], "2"),
        (["--replicas", "2", "--tokens", "500"], "--strategy mirrored"),
        (["--temperature", "0", "--tokens", "500"], "temperature"),
    ],
)
def test_bad_options_are_refused_in_one_message(tmp_path, arguments, message):
    process = run(tmp_path, *arguments, check=False)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert "Epoch" not in process.stdout


def test_a_teacher_of_other_words_is_refused(finished, text, tmp_path):
    teacher = finished[0] / "run" / "teacher.keras"
    process = run(
        tmp_path,
        *("--data-dir", text, *SMALL, "--vocabulary", 20),
        *("--teacher", teacher),
        check=False,
    )
    assert "a text of 20" in process.stderr
    assert "Traceback" not in process.stderr
