"""The image recipe, whole and small, as a user starts it."""

import functools

import cifar100_resnet
import images
import keras
import numpy as np
import processes
import pytest
import study
from processes import losses, results

RECIPE = "cifar100_resnet.py"
SMALL = (
    "--dataset digits --limit-train 128 --epochs 2 --teacher-depth 8 "
    "--batch-size 32"
).split()
run = functools.partial(processes.run, RECIPE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    arguments = [*SMALL, "--log-dir", "run", *losses(*study.LOSSES)]
    return folder, arguments, run(folder, *arguments)


def test_every_loss_gives_a_row_a_model_and_logs(finished):
    folder, _, process = finished
    found = results(folder / "run")
    assert set(found) == {"teacher", *(f"student-{n}" for n in study.LOSSES)}
    test = images.digits().test
    for name, result in found.items():
        model = keras.models.load_model(folder / "run" / f"{name}.keras")
        logits = model.predict(test[0].astype("float32"), verbose=0)
        right = np.argsort(-logits, axis=1)[:, :5] == test[1][:, None]
        assert result["test_accuracy"] == pytest.approx(right[:, 0].mean())
        assert result["test_top5_accuracy"] == pytest.approx(
            right.any(axis=1).mean(), abs=0.006
        )
        assert any((folder / "run" / "tensorboard" / name).rglob("*tfevents*"))
    for word in (*study.LOSSES, "teacher", "top-1 %", "top-5 %", "median w"):
        assert word in process.stdout
    assert "tensorboard --logdir" in process.stdout


def test_killed_and_run_again_ends_where_an_uninterrupted_run_does(
    finished, tmp_path
):
    """The second epoch sees the images that it would have seen."""
    arguments = [*SMALL, "--log-dir", "run", *losses("kd_pt")]
    backup = tmp_path / "run" / "unfinished" / "student-kd_pt"
    processes.kill_when(
        (backup / "backup.npz").exists, RECIPE, tmp_path, *arguments
    )
    output = run(tmp_path, *arguments).stdout
    assert "teacher: done before" in output and "Epoch 1/2" not in output
    found, expected = (
        keras.models.load_model(folder / "run" / "student-kd_pt.keras")
        for folder in (tmp_path, finished[0])
    )
    for one, other in zip(
        found.get_weights(), expected.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_probe_prints_how_long_the_run_would_take(tmp_path):
    arguments = "--dataset digits --probe-steps 5 --loss plain".split()
    output = run(tmp_path, *arguments, "--log-dir", "run").stdout
    assert "20 epochs of 22 steps would take" in output
    found = results(tmp_path / "run")
    assert all(0 < r["projected_hours"] < 1 for r in found.values())


def test_every_other_option_runs_on_two_replicas(finished, tmp_path):
    teacher = finished[0] / "run" / "teacher.keras"
    run(
        tmp_path,
        *(*SMALL, "--log-dir", "run", "--teacher", teacher),
        *losses("kd_topk"),
        *("--strategy", "mirrored", "--replicas", 2, "--mixed-precision"),
        *("--steps-per-execution", 2, "--validate-every", 2, "--no-augment"),
        *("--drop-at", 1, "--drop-factor", 0.2, "--momentum", 0.8),
        *("--weight-decay", 0, "--learning-rate", 0.02),
        *("--weight", 0.3, "--temperature", 3, "--seed", 4),
    )
    found = results(tmp_path / "run")
    expected = results(finished[0] / "run")["teacher"]
    # The teacher given computes in its own float32.
    assert found["teacher"]["test_accuracy"] == pytest.approx(
        expected["test_accuracy"]
    )
    assert np.isfinite(found["student-kd_topk"]["test_loss"])


def test_the_rate_falls_at_the_epochs_asked_for():
    options = {"learning_rate": 1.0, "drop_factor": 0.1, "momentum": 0.9}

    class Schedule(cifar100_resnet.ImageStudy):
        def __init__(self, **more):
            self.options = {**options, **more}

        def steps_per_epoch(self, role):
            return 10

    usual = Schedule(epochs=240, drop_at=()).optimizer("student")
    other = Schedule(epochs=5, drop_at=(4, 2)).optimizer("student")
    for optimizer, drops in ((usual, (150, 180, 210)), (other, (2, 4))):
        for i, drop in enumerate(drops):
            rate = optimizer._learning_rate
            before, after = float(rate(10 * drop)), float(rate(10 * drop + 1))
            assert before == pytest.approx(0.1**i)
            assert after == pytest.approx(0.1 ** (i + 1))


def test_weight_decay_is_the_classical_one():
    """Its gradient is weight_decay times the weight."""
    import tensorflow as tf

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    study.with_weight_decay(model, 0.3)
    with tf.GradientTape() as tape:
        penalty = sum(model.losses)
    kernel = model.trainable_variables[0]
    np.testing.assert_allclose(
        tape.gradient(penalty, kernel.value), 0.3 * kernel.numpy(), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar10"], "cifar10"),
        (["--dataset", "digits", "--data-dir", "."], "come with scikit-learn"),
        (["--data-dir", "absent"], "absent"),
        (["--dataset", "digits", "--student-depth", "9"], "depth of 9"),
        (["--dataset", "digits", "--limit-train", "9"], "--batch-size 64"),
        (
            [*"--dataset digits --strategy mirrored --batch-size 7".split()],
            "--batch-size 7 for 2 replicas",
        ),
        (
            [*"--dataset digits --strategy multiworker".split()],
            "neither TF_CONFIG",
        ),
    ],
)
def test_bad_options_are_refused_in_one_message(tmp_path, arguments, message):
    process = run(tmp_path, *arguments, check=False)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert "Epoch" not in process.stdout


def test_a_teacher_of_other_images_is_refused(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Dense(100)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, x).save(tmp_path / "teacher.keras")
    process = run(tmp_path, *SMALL, "--teacher", "teacher.keras", check=False)
    assert "(32, 32, 3) and 100 classes" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_cache_of_views_is_written_once_and_resumed_from(finished, tmp_path):
    """Killed after an epoch, the second epoch sees the second view."""
    teacher = finished[0] / "run" / "teacher.keras"
    arguments = [*SMALL, "--teacher", teacher, "--cache", tmp_path / "cache"]
    arguments += ["--views", 3, *losses("kd_pt")]
    folders = tmp_path / "whole", tmp_path / "cut"
    for folder in folders:
        folder.mkdir()
    whole, cut = folders
    output = run(whole, *arguments, "--log-dir", "run").stdout
    assert "3 views, 2 bytes each" in output
    backup = cut / "run" / "unfinished" / "student-kd_pt"
    processes.kill_when(
        (backup / "backup.npz").exists,
        *(RECIPE, cut, *arguments, "--log-dir", "run"),
    )
    run(cut, *arguments, "--log-dir", "run")
    found, expected = (
        keras.models.load_model(folder / "run" / "student-kd_pt.keras")
        for folder in (cut, whole)
    )
    for one, other in zip(
        found.get_weights(), expected.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
