"""`--tune` in the recipes; its students are numbers of a response surface."""

import functools

import cifar100_resnet
import numpy as np
import optuna
import processes
import ptb_lstm
import pytest
from processes import losses
from study import study as studies
from surfaces import HEIGHTS, SurfaceTrainer

import keras_kd as kd

FEW = {name: HEIGHTS[name] for name in ("plain", "label_smoothing", "kd")}
ARGUMENTS = (
    *"--vocabulary 60 --teacher-units 8 --student-units 4 --epochs 3".split(),
    *"--teacher-epochs 1 --batch-size 8 --time-steps 10 --seed 3".split(),
    *("--tune", "--seeds", 2, *losses("kd")),
)
finish = functools.partial(processes.finish, ptb_lstm)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run folder, what it printed, and the trainer of each command."""
    folder = tmp_path_factory.mktemp("work") / "run"
    arguments = (*ARGUMENTS, "--data-dir", text, "--log-dir", folder)
    trainers, own = [], studies.Study.student_trainer

    def student_trainer(study, teacher, cache=None):
        real = own(study, teacher, cache)
        surface = SurfaceTrainer(heights=FEW, epochs=real.epochs)
        surface.diagnosis = real.diagnosis
        surface.learning_rate = real.learning_rate
        surface.scored_on = real.scored_on
        trainers.append(surface)
        return surface

    def run(*more):
        return finish(*arguments, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies.Study, "student_trainer", student_trainer)
        yield folder, trainers, run


def test_the_winner_is_found_within_the_budget_and_kept(trained):
    folder, trainers, run = trained
    output = run("--student-budget", 20)
    (trainer,) = trainers
    epochs = [call[3] for call in trainer.calls]
    assert 19 * 3 < sum(epochs) <= 20 * 3
    assert {call[0] for call in trainer.calls} == set(FEW)
    # The search has the seed asked for, and the comparison two others.
    assert len({call[1] for call in trainer.calls} - {3}) == 2
    rates = [call[2].get("learning_rate") for call in trainer.calls]
    rates = np.array([rate for rate in rates if rate])
    assert rates[0] == pytest.approx(trainer.learning_rate)
    assert rates.min() >= rates[0] / 4 and rates.max() <= 4 * rates[0]
    assert "On 2 fresh seeds and the test data it gains" in output
    for page in ("diagnosis.html", "tuning.html"):
        assert "data:image" in (folder / page).read_text()
    rows = list((folder / "tensorboard" / "hparams").glob("*-*"))
    assert len(rows) == len(trainer.calls) - 2 * 3

    again = run("--student-budget", 20)
    assert not trainers[-1].calls
    table = output[output.index("| on fresh seeds") :].splitlines()
    assert set(table[:5]) <= set(again.splitlines())
    assert not (folder / "diagnosis-2.html").exists()


def test_random_search_keeps_its_own_trials(trained, monkeypatch):
    folder, trainers, run = trained
    samplers, own = [], kd.tune

    def tune(*arguments, **keywords):
        samplers.append(keywords["sampler"])
        return own(*arguments, **keywords)

    monkeypatch.setattr(kd, "tune", tune)
    run("--student-budget", 12, "--sampler", "random")
    assert isinstance(samplers[0], optuna.samplers.RandomSampler)
    assert trainers[-1].calls
    assert (folder / "tuning-random" / "tuning.journal").exists()


@pytest.mark.parametrize(
    ("given", "search", "final"),
    [((), 4, 6), (losses("kd"), 4, 6), (losses("plain"), 3, 4)],
)
def test_a_budget_too_small_says_what_is_needed(
    text, tmp_path, given, search, final
):
    """Before the teacher is trained, and as much as `keras_kd.tune` wants."""
    arguments = ["--tune", "--seeds", 2, *given, "--data-dir", text]
    arguments += ["--log-dir", tmp_path / "run", "--student-budget"]
    needed = search + final
    message = processes.refused(ptb_lstm, *arguments, needed - 1)
    assert f"the search needs {search} and --seeds 2 need {final} more" in (
        message
    )
    methods = ["plain"] if "plain" in given else None
    trainer = SurfaceTrainer(heights=FEW, epochs=3)
    about = {"methods": methods, "fresh_seeds": 2, "learning_rate": (0.1, 1.0)}
    with pytest.raises(ValueError, match=f"{3 * needed} epochs in all"):
        kd.tune(trainer, epochs=3 * needed - 1, **about)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "--attribute"], "--attribute or --tune"),
        (
            "--time-budget 1 --student-budget 9".split(),
            "--time-budget or --student-budget",
        ),
        (["--tune", "--no-cache"], "--tune with --no-cache"),
        (["--tune", "--mixup", 0.2], "--tune with --mixup"),
        (["--tune", "--probe-steps", 1], "Leave --tune out to measure"),
        (
            ["--tune", "--validate-every", 9, "--epochs", 8],
            "--validate-every 9 of --epochs 8",
        ),
        (["--drop-at", 20], "--drop-at does nothing after the last epoch"),
        (["--learning-rate", -1], "-1.0 is not in the range"),
        (["--seed", -1], "-1 is not in the range"),
        (["--hold-out", 797], "0 training images"),
    ],
)
def test_bad_options_are_refused(tmp_path, arguments, message):
    arguments = ["--dataset", "digits", *arguments]
    arguments += ["--log-dir", tmp_path / "run"]
    assert message in processes.refused(cifar100_resnet, *arguments)


def test_images_to_choose_by_are_neither_trained_nor_measured_on(
    tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(
        "study.comparison.compare", lambda study, losses: made.append(study)
    )

    def study(*arguments):
        processes.finish(
            cifar100_resnet,
            *("--dataset", "digits", "--log-dir", tmp_path / str(len(made))),
            *arguments,
        )
        return made[-1]

    def pixels(dataset):
        rows = [(x, weight) for x, _, weight in dataset.as_numpy_iterator()]
        x, weight = (np.concatenate(each) for each in zip(*rows, strict=True))
        return x[weight > 0]

    usual, tuned = study(), study("--tune")
    few = study("--hold-out", 40, "--limit-train", 100)
    assert set(usual.evaluation_data()) == {"test"}
    assert usual.train_size == 797
    for one, train_size, count in ((tuned, 797 - 199, 199), (few, 100, 40)):
        parts = one.evaluation_data()
        assert list(parts) == ["held_out", "test"]
        assert one.train_size == train_size
        np.testing.assert_array_equal(
            pixels(parts["held_out"]), one.images.train[0][-count:]
        )
        np.testing.assert_array_equal(pixels(parts["test"]), one.images.test[0])
