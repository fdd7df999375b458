"""The language-model recipe, whole and small, as a user starts it."""

import functools
import json
import socket
import subprocess

import keras
import numpy as np
import processes
import pytest
import study
from processes import losses, results

RECIPE = "ptb_lstm.py"
SMALL = (
    "--vocabulary 60 --teacher-units 8 --student-units 4 --teacher-epochs 2 "
    "--epochs 2 --batch-size 8 --time-steps 10"
).split()
run = functools.partial(processes.run, RECIPE)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run with every loss."""
    folder = tmp_path_factory.mktemp("work")
    arguments = [
        "--data-dir",
        text,
        "--log-dir",
        "run",
        *SMALL,
        *losses(*study.LOSSES),
    ]
    return folder, arguments, run(folder, *arguments)


def test_every_loss_gives_a_row_a_model_and_logs(finished):
    folder, _, process = finished
    found = results(folder / "run")
    assert set(found) == {"teacher", *(f"student-{n}" for n in study.LOSSES)}
    for name, result in found.items():
        assert 1 < result["test_perplexity"] < 60, name
        model = keras.models.load_model(folder / "run" / f"{name}.keras")
        assert model.count_params() == result["parameters"]
        assert any((folder / "run" / "tensorboard" / name).rglob("*tfevents*"))
    for loss in study.LOSSES:
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
    folder, arguments, _ = finished
    before = results(folder / "run")
    process = run(folder, *arguments)
    assert "Epoch" not in process.stdout
    assert results(folder / "run") == before


def test_another_run_in_the_same_folder_is_refused(finished):
    folder, arguments, _ = finished
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
    backup = tmp_path / "run" / "unfinished" / "student-kd_pt"
    processes.kill_when(
        (backup / "backup.npz").exists, RECIPE, tmp_path, *arguments
    )
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


def test_two_workers_give_the_perplexities_of_one(finished, text, tmp_path):
    """Two processes of one command, as on two machines, with one cache."""
    arguments = ["--data-dir", text, "--log-dir", "run", *SMALL]
    arguments += ["--cache", "cache"]
    arguments += losses("kd_pt", "plain")
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
    outputs = [process.communicate(timeout=240)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
        assert "Perplexity" in output or "kd_pt" in output
    two, one = results(tmp_path / "run"), results(finished[0] / "run")
    assert set(two) == {"teacher", "student-kd_pt", "student-plain"}
    for name in two:
        # The teacher's dropout draws other numbers.
        assert two[name]["test_perplexity"] == pytest.approx(
            one[name]["test_perplexity"],
            rel=1e-3 if name == "student-plain" else 0.1,
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


def test_a_cache_gives_the_perplexities_of_the_teacher(
    finished, text, tmp_path
):
    """Written by one run, used by another, refused to another teacher."""
    teacher = finished[0] / "run" / "teacher.keras"
    arguments = ["--data-dir", text, *SMALL, "--teacher", teacher]
    arguments += ["--cache", "cache", *losses("kd_pt", "kd_topk", "plain")]
    output = run(tmp_path, *arguments, "--log-dir", "run").stdout
    assert "Teacher cache" in output
    found, expected = results(tmp_path / "run"), results(finished[0] / "run")
    for name in ("student-kd_pt", "student-kd_topk", "student-plain"):
        assert found[name]["test_perplexity"] == pytest.approx(
            expected[name]["test_perplexity"], rel=2e-3
        )
    written = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    run(tmp_path, *arguments, "--log-dir", "again", "--seed", 1)
    assert written == (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    process = run(
        tmp_path,
        *("--data-dir", text, *SMALL, "--log-dir", "other", "--cache", "cache"),
        # The same seed would give the same teacher, whose cache it is.
        *("--loss", "kd_pt", "--seed", 3),
        check=False,
    )
    assert "belongs to something else" in process.stderr
    assert "teacher" in process.stderr and "Traceback" not in process.stderr
