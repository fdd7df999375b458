"""The image recipe, whole and small."""

import functools
import shutil

import cifar100_resnet
import keras
import networks
import numpy as np
import processes
import pytest
from data import images
from models import one_block
from processes import losses, results
from study import study

# With a teacher that is given; and with one that is trained.
STUDENT = (
    "--dataset digits --limit-train 128 --epochs 2 --batch-size 32"
).split()
SMALL = [*STUDENT, "--teacher-depth", "8", "--views", "3"]
finish = functools.partial(processes.finish, cifar100_resnet)
refused = functools.partial(processes.refused, cifar100_resnet)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, what it printed, and what it would leave if it were killed."""
    work = tmp_path_factory.mktemp("work")
    folder, killed = work / "run", work / "killed"
    arguments = [*SMALL, "--log-dir", folder, *losses("kd_pt")]
    with processes.copied_after_an_epoch(
        cifar100_resnet.ImageStudy, folder, killed
    ):
        return folder, finish(*arguments), killed


def test_a_loss_gives_a_row_a_model_and_logs(finished):
    folder, output, _ = finished
    found = results(folder)
    assert set(found) == {"teacher", "student-kd_pt"}
    test = images.digits().test
    for name, result in found.items():
        model = keras.models.load_model(folder / f"{name}.keras")
        logits = np.asarray(model(test[0].astype("float32")))
        right = np.argsort(-logits, axis=1)[:, :5] == test[1][:, None]
        assert result["test_accuracy"] == pytest.approx(right[:, 0].mean())
        assert result["test_top5_accuracy"] == pytest.approx(
            right.any(axis=1).mean(), abs=0.006
        )
        assert any((folder / "tensorboard" / name).rglob("*tfevents*"))
        row = next(
            line
            for line in output.splitlines()
            if line.startswith(f"│ {name.removeprefix('student-')} ")
        )
        for key in ("test_accuracy", "test_top5_accuracy"):
            assert f"{100 * result[key]:.2f}" in row
    assert "3 views, 2 bytes each" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--views", 2, "--mixup", 1],
            "--views does nothing without a teacher",
        ),
        (["--views", 2, "--no-augment"], "--views does nothing with --no-aug"),
        (["--teacher", __file__, "--teacher-depth", 8], "nothing with --teac"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, arguments, message):
    assert message in refused(
        *("--dataset", "digits", "--log-dir", tmp_path / "run", *arguments)
    )
    assert not (tmp_path / "run").exists()


def test_killed_and_run_again_ends_where_an_uninterrupted_run_does(finished):
    """The second epoch sees the views and the order that it would have."""
    whole, _, killed = finished
    assert set(results(killed)) == {"teacher"}
    output = finish(*SMALL, "--log-dir", killed, *losses("kd_pt"))
    assert "teacher: done before" in output and "Epoch 1/2" not in output
    found, expected = (
        keras.models.load_model(folder / "student-kd_pt.keras")
        for folder in (killed, whole)
    )
    for one, other in zip(
        found.get_weights(), expected.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_removed_student_is_trained_again_from_the_cache(finished, tmp_path):
    """So is one that alone is missing: whatever the order of the losses."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    arguments = [*SMALL, "--log-dir", folder, *losses("kd_pt_shuffled")]
    finish(*arguments)
    expected = results(folder)["student-kd_pt_shuffled"]["test_loss"]
    (folder / "student-kd_pt_shuffled.keras").unlink()
    assert "was removed, so it is trained again" in finish(*arguments)
    found = results(folder)["student-kd_pt_shuffled"]["test_loss"]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "ends, expected",
    [
        ([1], 100),
        ([10], 10),  # In one call.
        ([5, 10], 0.2),
        (range(1, 11), 1),
    ],
)
def test_a_probe_of_few_calls_counts_what_there_is(ends, expected, monkeypatch):
    clock = iter([0.0, *(100.0 + n for n in range(10))])
    monkeypatch.setattr(study.time, "perf_counter", lambda: next(clock))
    timer = study.StepTimer(max(ends))
    timer.on_train_begin()
    for end in ends:
        timer.on_train_batch_end(end - 1)
    assert timer.seconds == pytest.approx(expected)


def test_every_other_option_runs_on_two_replicas(
    finished, tmp_path, mirrored, monkeypatch
):
    monkeypatch.setattr(networks, "cifar_resnet", one_block)
    teacher = finished[0] / "teacher.keras"
    finish(
        *(*STUDENT, "--log-dir", tmp_path / "run", "--teacher", teacher),
        *losses("kd_topk"),
        *(*mirrored, "--mixed-precision", "--no-cache"),
        *("--steps-per-execution", 2, "--validate-every", 2, "--no-augment"),
        *("--drop-at", 1, "--drop-factor", 0.2, "--momentum", 0.8),
        *("--weight-decay", 0, "--learning-rate", 0.02),
        *("--weight", 0.3, "--temperature", 3, "--seed", 4, "--mixup", 0.4),
    )
    found = results(tmp_path / "run")
    expected = results(finished[0])["teacher"]
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
    networks.with_weight_decay(model, 0.3)
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
            "--dataset digits --mixup 0.2 --attribute".split(),
            "--attribute with --mixup",
        ),
        (
            "--dataset digits --mixup 0.2 --cutmix 1".split(),
            "--mixup 0.2 and --cutmix 1.0",
        ),
        (
            [*"--dataset digits --strategy multiworker".split()],
            "neither TF_CONFIG",
        ),
    ],
)
def test_bad_options_are_refused_in_one_message(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert message in refused(*arguments)
    assert not list(tmp_path.glob("runs/*/teacher.keras"))


def test_a_batch_that_replicas_cannot_share_is_refused(tmp_path, mirrored):
    message = refused(
        *("--dataset", "digits", "--batch-size", 7, *mirrored),
        *("--log-dir", tmp_path / "run"),
    )
    assert "--batch-size 7 for 2 replicas" in message


def test_a_teacher_of_other_images_is_refused(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Dense(100)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, x).save(tmp_path / "teacher.keras")
    arguments = [*STUDENT, "--log-dir", tmp_path / "run"]
    message = refused(*arguments, "--teacher", tmp_path / "teacher.keras")
    assert "(32, 32, 3) and 100 classes" in message


def test_a_damaged_teacher_is_refused_in_one_message(finished, tmp_path):
    path = tmp_path / "teacher.keras"
    path.write_bytes((finished[0] / "teacher.keras").read_bytes()[:-50])
    arguments = [*STUDENT, "--log-dir", tmp_path / "run"]
    message = refused(*arguments, "--teacher", path)
    assert "is damaged" in message and "Save it again" in message
