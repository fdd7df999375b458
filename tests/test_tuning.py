"""The search for the best loss: optimum, budget, resuming, refusals."""

import builtins
import errno
import html.parser
import itertools
import logging
import math
import os
import time

import numpy as np
import optuna
import pytest
from surfaces import BEST, HEIGHTS, SurfaceTrainer
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

import keras_kd as kd
from keras_kd.diagnosis import Diagnosis
from keras_kd.diagnosis.finding import INFO, PROBLEM, Finding
from keras_kd.monitors import DivergedError
from keras_kd.tuning import (
    SPACES,
    Trial,
    Tuning,
    budget,
    report,
    search,
    spaces,
)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    """The journal waits for the disk after each line."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


FEW = {name: HEIGHTS[name] for name in ("plain", "label_smoothing", "kd")}


def tune(trainer, students, **arguments):
    """A budget in students, without a word."""
    epochs = students * trainer.epochs
    return kd.tune(trainer, epochs=epochs, verbose=False, **arguments)


def search_calls(trainer):
    return [call for call in trainer.calls if call[1] == 0]


# -- the search ----------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimum_is_found(seed):
    trainer = SurfaceTrainer(heights={**FEW, "kd_topk": 0.78}, epochs=3)
    trainer.learning_rate = BEST["learning_rate"]
    result = tune(trainer, 60, seed=seed)
    assert result.method == "kd_topk"
    truth = trainer.truth(result.method, result.settings)
    default = trainer.truth("kd_topk", {})
    assert 0.78 - truth < 0.2 * (0.78 - default)
    assert result.winner.score == pytest.approx(truth, abs=1e-12)
    for name, value in result.settings.items():
        assert result.loss.get_config()[name] == pytest.approx(value)
    assert isinstance(result.loss, kd.KDTopK)


def test_less_is_better_where_the_trainer_says_so():
    trainer = SurfaceTrainer(heights=FEW, epochs=3, sign=-1)
    result = tune(trainer, 30)
    assert result.method == "kd"
    finished = [t.score for t in result.trials if t.score is not None]
    assert result.winner.score == min(finished)
    assert result.gain().mean == pytest.approx(
        trainer.truth("plain", {}) - trainer.truth("kd", result.settings)
    )


def test_the_same_seed_finds_the_same():
    def results():
        for seed in (0, 0, 1):
            trainer = SurfaceTrainer(0.01, heights=FEW, epochs=3)
            found = tune(trainer, 24, seed=seed).to_dict()
            for trial in found["trials"]:
                del trial["seconds"]
            yield found["trials"]

    first, again, other = results()
    assert first == again != other


def test_every_method_begins_with_its_defaults():
    trainer = SurfaceTrainer()
    result = tune(trainer, 9 + 9)
    assert {trial.method for trial in result.trials} == set(SPACES)
    for trial in result.trials:
        assert trial.why == "default"
        if trial.method != "plain":
            own = kd.losses.get(trial.method).get_config()
            assert trial.settings.items() <= own.items()
    assert [t.method for t in result.trials[:3]] == list(FEW)


def test_numbers_of_numpy(tmp_path):
    one, two = (
        tune(
            SurfaceTrainer(heights=FEW, epochs=1),
            np.int64(20),
            folder=tmp_path / kind.__name__,
            learning_rate=(kind(1e-3), kind(0.5)),
            seed=np.int64(1),
        )
        for kind in (np.float32, lambda number: float(np.float32(number)))
    )
    assert one.settings == two.settings


def test_methods_that_the_budget_leaves_out_are_named():
    result = tune(SurfaceTrainer(), 6 + 9)
    tried = {trial.method for trial in result.trials}
    left_out = [name for name in HEIGHTS if name not in tried]
    (said,) = [each for each in result.findings if "left no student" in each]
    assert said.endswith(f" for {', '.join(left_out)}.") and len(left_out) == 3
    everything = tune(SurfaceTrainer(), 9 + 9).findings
    assert not any("left no student" in each for each in everything)


def test_defaults_of_the_trainer_are_told_in_what_is_searched():
    """Smoothing by its product, and a number of classes as their share."""

    class Trainer(SurfaceTrainer):
        def loss(self, method, settings):
            own = {
                "label_smoothing": {"smoothing": 1.0, "weight": 0.2},
                "kd_topk": {"k": 5},
            }
            return super().loss(method, {**own.get(method, {}), **settings})

    heights = {name: HEIGHTS[name] for name in (*FEW, "kd_topk")}
    trainer = Trainer(heights=heights, epochs=1)
    trainer.diagnosis = diagnosed
    starts = {
        trial.method: trial.settings
        for trial in tune(trainer, 16).trials
        if trial.why == "default"
    }
    smoothing = starts["label_smoothing"]
    assert smoothing == {"smoothing": pytest.approx(0.2), "weight": 1.0}
    assert starts["kd_topk"]["k"] == 5 / 20


def test_the_sampler_is_the_callers():
    first, second, third = (
        tune(SurfaceTrainer(heights=FEW, epochs=3), 24, sampler=sampler)
        for sampler in (
            optuna.samplers.RandomSampler(seed=1),
            optuna.samplers.RandomSampler(seed=1),
            optuna.samplers.RandomSampler(seed=2),
        )
    )
    chosen = [
        [trial.settings for trial in each.trials if trial.why == "search"]
        for each in (first, second, third)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    drawn = np.array([s["weight"] for s in chosen[0] if "weight" in s])
    state = np.random.RandomState(1)
    low, high = 0.05, 1.0
    # The sampler's first number, as Optuna scales it.
    assert drawn[0] == pytest.approx(low + (high - low) * state.rand())


def test_own_losses_are_searched_in_a_space_of_their_own():
    class Trainer(SurfaceTrainer):
        def loss(self, method, settings):
            return super().loss("dkd" if method == "mine" else method, settings)

        def truth(self, method, settings):
            if method == "mine":
                return 0.8 - 0.1 * abs(settings["alpha"] - 1.5)
            return super().truth(method, settings)

    trainer = Trainer(heights={**FEW, "mine": 0.8}, epochs=3)
    result = tune(trainer, 40, space={"mine": {"alpha": (0.5, 2.5)}})
    assert result.method == "mine"
    assert result.settings == {"alpha": pytest.approx(1.5, abs=0.3)}
    assert result.loss.tunables["alpha"] == pytest.approx(
        result.settings["alpha"]
    )
    # Its own default is where it starts.
    mine = [t for t in result.trials if t.method == "mine"]
    assert mine[0].settings == {"alpha": 1.0}


class Counting(kd.losses.DistillationLoss):
    """A loss of one's own with a number of things."""

    def __init__(self, n=2, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.n, self.share = n, share

    def get_config(self):
        return {**super().get_config(), "n": self.n, "share": self.share}


def test_a_number_of_things_is_whole():
    class Trainer(SurfaceTrainer):
        def loss(self, method, settings):
            if method == "mine":
                return Counting(**settings)
            return super().loss(method, settings)

        def truth(self, method, settings):
            if method == "mine":
                return 0.8 - 0.01 * abs(settings["n"] - 4)
            return super().truth(method, settings)

    trainer = Trainer(heights={**FEW, "mine": 0.8}, epochs=2)
    space = {"mine": {"n": (1, 5), "share": (1, 5)}}
    result = tune(trainer, 30, methods=["mine"], space=space)
    mine = [t.settings for t in result.trials if t.method == "mine"]
    assert {each["n"] for each in mine} <= {1, 2, 3, 4, 5}
    assert all(isinstance(each["n"], int) for each in mine)
    assert len({each["share"] for each in mine}) > 5
    assert isinstance(result.loss.n, int)


# -- tuned baselines -----------------------------------------------------------


def test_baselines_get_an_even_share():
    trainer = SurfaceTrainer(0.003, heights=FEW)
    result = tune(trainer, 60, learning_rate=(1e-4, 1e-1))
    epochs = {name: 0 for name in FEW}
    for method, _, _, trained in search_calls(trainer):
        epochs[method] += trained
    share = sum(epochs.values()) / len(FEW)
    # As long as that is not more than ten students for each setting.
    for name, settings in (("plain", 1), ("label_smoothing", 2)):
        due = min(share, 10 * settings * trainer.epochs)
        assert abs(epochs[name] - due) <= 1.5 * trainer.epochs
    rate = result.plain.settings["learning_rate"]
    assert abs(math.log(rate / BEST["learning_rate"], 4)) < 0.5
    # It began with the trainer's own.
    rates = [s["learning_rate"] for _, _, s, _ in trainer.calls[:3]]
    assert rates == [trainer.learning_rate] * 3


def test_a_learning_rate_is_not_taken_for_a_gain():
    """All methods are equal, and all that matters is the learning rate.

    Few of many students are plain; the searched ones have all the luck to hit
    upon a good rate.
    """

    class Trainer(SurfaceTrainer):
        def truth(self, method, settings):
            rate = settings.get("learning_rate", self.learning_rate)
            return 0.7 - 0.05 * abs(math.log(rate / 3e-3, 4))

    gains = []
    for seed in range(0, 80, 10):
        trainer = Trainer(0.002, epochs=2)
        result = tune(trainer, 40 + 9, seed=seed, learning_rate=(2.5e-4, 4e-3))
        gain = result.gain()
        gains.append(0.0 if gain is None else gain.mean)
        tried = [
            (trial.why, trial.settings["learning_rate"])
            for trial in result.trials
            if trial.method == "plain"
        ]
        first, second, *_ = [rate for why, rate in tried if why == "spread"]
        assert {first, second} == {2.5e-4, 4e-3}
        assert result.settings["learning_rate"] in [rate for _, rate in tried]
    assert abs(np.mean(gains)) < 0.002


def test_plain_training_without_settings_is_not_repeated():
    trainer = SurfaceTrainer(heights=FEW, epochs=3)
    tune(trainer, 40)
    assert [call[0] for call in search_calls(trainer)].count("plain") == 1


# -- early stopping ------------------------------------------------------------


def test_bad_students_are_stopped_early():
    trainer = SurfaceTrainer(heights=FEW)
    result = tune(trainer, 60)
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    assert len(stopped) > 5
    for trial in stopped:
        assert trainer.epochs // 2 <= len(trial.curve) < trainer.epochs
        assert trial.score is None
    finished = [t for t in result.trials if t.state == "finished"]
    truths = [
        np.mean([trainer.truth(t.method, t.settings) for t in some])
        for some in (finished, stopped)
    ]
    assert truths[0] > truths[1]
    # What that saves trains more students.
    whole = SurfaceTrainer(heights=FEW)
    unstopped = tune(whole, 60, pruner=optuna.pruners.NopPruner())
    assert len(result.trials) > len(unstopped.trials)
    assert all(len(trial.curve) == 9 for trial in unstopped.trials)


@pytest.mark.parametrize("how", ["raised", "not a number"])
def test_a_student_that_diverges_does_not_end_the_search(how):
    class Trainer(SurfaceTrainer):
        def train(self, method, seed, settings=None, report=None):
            if method == "kd" and settings["weight"] > 0.7:
                self.diverged += 1
                if how == "raised":
                    raise DivergedError("The student's loss is not finite.")
                assert report(0, math.nan)
                history = {"val_accuracy": [math.nan]}
                return {"accuracy": math.nan, "history": history}
            return super().train(method, seed, settings, report)

        diverged = 0

    trainer = Trainer(heights=FEW, epochs=3)
    result = tune(trainer, 40)
    states = [
        trial.state
        for trial in result.trials
        if trial.method == "kd" and trial.settings["weight"] > 0.7
    ]
    assert states == ["stopped"] * trainer.diverged and states
    assert result.winner.settings["weight"] <= 0.7


def test_a_method_that_always_diverges_uses_up_the_budget():
    class Trainer(SurfaceTrainer):
        def train(self, method, *arguments):
            if method == "label_smoothing":
                raise DivergedError("The student's loss is not finite.")
            return super().train(method, *arguments)

    result = tune(Trainer(heights=FEW, epochs=3), 30)
    states = {t.state for t in result.trials if t.method == "label_smoothing"}
    assert states == {"stopped"} and result.method == "kd"
    assert result.spent["epochs"] <= 30 * 3


def test_other_errors_are_the_callers():
    def fail(trainer):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        tune(SurfaceTrainer(each_epoch=fail), 40)


# -- the comparison ------------------------------------------------------------


def test_the_comparison_is_on_seeds_that_the_search_did_not_use():
    trainer = SurfaceTrainer(0.01, heights=FEW, epochs=3)
    result = tune(trainer, 40, fresh_seeds=4, seed=5)
    used = {call[1] for call in trainer.calls[: len(result.trials)]}
    fresh = trainer.calls[len(result.trials) :]
    assert used == {5}
    assert len({call[1] for call in fresh}) == 4
    assert 5 not in {call[1] for call in fresh}
    kd_default = {"weight": 0.5, "temperature": 2.0}
    wanted = [("plain", {}), ("kd", kd_default), ("kd", result.settings)]
    for _, calls in itertools.groupby(fresh, key=lambda call: call[1]):
        assert [(call[0], call[2]) for call in calls] == wanted

    def score(method, seed, settings, _):
        luck = trainer.luck([method, seed, settings, 0])
        return trainer.truth(method, settings) + luck

    scores = [
        {call[1]: score(*call) for call in fresh[place::3]}
        for place in range(3)
    ]
    for name, expected in zip(("plain", "kd", "tuned"), scores, strict=True):
        assert result.final.scores[name] == pytest.approx(expected)
    gains = [scores[2][s] - scores[0][s] for s in scores[0]]
    assert result.gain().mean == pytest.approx(np.mean(gains))
    gains = [scores[2][s] - scores[1][s] for s in scores[0]]
    assert result.gain("kd").mean == pytest.approx(np.mean(gains))


@pytest.mark.parametrize("seeds", [{1001}, {1000, 1001}])
def test_a_fresh_seed_that_diverges_is_a_missing_one(seeds, tmp_path):
    class Trainer(SurfaceTrainer):
        def train(self, method, seed, settings=None, report=None):
            if method == "kd" and seed in seeds and settings["weight"] != 0.5:
                self.calls.append([method, seed, settings, 0])
                raise DivergedError("The student's loss is not finite.")
            return super().train(method, seed, settings, report)

        __call__ = train

    trainer = Trainer(0.01, heights=FEW, epochs=2)
    result = tune(trainer, 20, folder=tmp_path / "search")
    assert set(result.final.scores["tuned"]) == {1000, 1001, 1002} - seeds
    assert len(result.final.scores["kd"]) == 3
    gain = result.gain()
    assert gain.seeds == 3 - len(seeds)
    if gain.seeds == 2:
        assert "On 2 fresh seeds" in result.findings[1]
    else:
        assert "not known: fresh seeds that both ended: 1 of" in str(result)
    assert "training diverged: tuned with seed" in result.findings[-1]
    assert "nan" not in str(result)
    result.save(tmp_path / "tuning.html")
    before = len(trainer.calls)
    again = tune(trainer, 20, folder=tmp_path / "search")
    assert len(trainer.calls) == before
    assert again.findings[1:] == result.findings[1:]


def test_the_luckiest_trial_is_not_taken_for_a_gain():
    """All students are equal but for their luck."""
    equal = dict.fromkeys(FEW, 0.7)
    in_search, fresh, verdicts = [], [], []
    for seed in range(0, 120, 10):
        trainer = SurfaceTrainer(0.01, steepness=0, heights=equal, epochs=2)
        result = tune(trainer, 24, seed=seed)
        in_search.append(result.winner.score - result.plain.score)
        if (gain := result.gain()) is not None:
            fresh.append(gain.mean)
            verdicts.append(gain.verdict)
    assert np.mean(in_search) > 0.01
    assert abs(np.mean(fresh)) < 0.005
    assert verdicts.count("inconclusive") >= len(verdicts) - 2


def test_test_scores_choose_nothing():
    trainer = SurfaceTrainer(heights=FEW, epochs=3, test=lambda score: -score)
    result = tune(trainer, 30)
    assert result.method == "kd" and result.winner.score > 0
    assert result.gain().mean < 0
    mean = np.mean(list(result.final.scores["tuned"].values()))
    assert mean == pytest.approx(-result.winner.score)


def test_intervals_hold_seeds_and_examples():
    random = np.random.default_rng(0)
    difficulty = random.uniform(size=400)

    class Trainer(SurfaceTrainer):
        def train(self, method, seed, settings=None, report=None):
            result = super().train(method, seed, settings, report)
            luck = np.random.default_rng([seed, len(method)])
            right = difficulty < result["accuracy"] + luck.normal(0, 0.1, 400)
            examples = right.astype(float).tolist()
            return {**result, "accuracy": right.mean(), "examples": examples}

        __call__ = train

    trainer = Trainer(heights=FEW, epochs=3)
    result = tune(trainer, 20)
    gain = result.gain()
    rights = [
        np.array([run["examples"] for run in result.final.results[n].values()])
        for n in ("tuned", "plain")
    ]
    expected = kd.attribution.paired_interval(rights[0] - rights[1])
    assert (gain.seeds, gain.examples) == (3, 400)
    assert (gain.mean, gain.low, gain.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert "over seeds and examples" in str(result)


@pytest.mark.parametrize("scored_on", ["test", "validation"])
def test_it_says_what_the_gain_was_measured_on(scored_on):
    trainer = SurfaceTrainer(0.003, heights=FEW, epochs=3)
    trainer.scored_on = scored_on
    text = str(tune(trainer, 20))
    assert f"fresh seeds and the {scored_on} data it gains" in text
    assert ("no `test` data" in text) == (scored_on == "validation")


def test_results_that_a_trainer_had_kept_count_by_their_history():
    class Trainer(SurfaceTrainer):
        def train(self, method, seed, settings=None, report=None):
            return super().train(method, seed, settings)

    trainer = Trainer(heights=FEW, epochs=3, test=lambda score: -score)
    result = tune(trainer, 20)
    for trial in result.trials:
        truth = trainer.truth(trial.method, trial.settings)
        assert trial.score == pytest.approx(truth)
        assert len(trial.curve) == 3


def tuning_of(trials, final, **chosen):
    """A search that ended with these trials, each of one epoch and second."""
    return Tuning(
        trials,
        final,
        metric=final.metric,
        higher_is_better=final.higher_is_better,
        importance={},
        spent={"epochs": len(trials), "seconds": float(len(trials))},
        verdict=[],
        **chosen,
    )


def test_findings_tables_and_pictures_agree():
    """Both gains exclude 0 by themselves, and not among three."""
    steps = np.array([0.64, 1.0, 1.36])  # p = 0.041 with two degrees.
    gains = {"plain": 0.0, "kd": 0.01, "tuned": 0.015}
    scores = {
        name: dict(enumerate(0.9 + gain * steps))
        for name, gain in gains.items()
    }
    trials = [
        Trial(number, method, {}, score, "finished", [score], 1.0, "default", 1)
        for number, (method, score) in enumerate(
            (("plain", 0.9), ("dkd", 0.95))
        )
    ]
    result = tuning_of(
        trials,
        kd.Attribution(scores, "accuracy"),
        winner=trials[1],
        winner_name="tuned",
        loss=kd.DKD(),
        plain=trials[0],
    )
    assert result.gain().verdict == "gain"
    _, over_plain, over_kd = result.findings
    for finding in over_plain, over_kd:
        assert ": inconclusive, a gain by itself that does not" in finding
        assert "for 3 comparisons" in finding
    *_, row = result.final_rows()
    assert (row["p, Holm"], row["verdict"]) == (
        "0.122",
        "gain before correction",
    )
    (axes,) = report.draw(result)["gains"][0].to_matplotlib().axes
    assert all(bar.get_alpha() < 1 for bar in axes.patches)
    final = result.to_dict()["final"]
    told = [*final["gains"].values(), *final["levels"], *final["pairs"]]
    assert [each["verdict"] for each in told] == ["inconclusive"] * 4


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_leaders_are_the_best_of_each_method_from_the_best_on(higher_is_better):
    given = [("kd", 3.0), ("plain", 5.0), ("dkd", 1.0), ("kd", 7.0)]
    trials = [
        Trial(number, method, {}, score, "finished", [score], 1.0, "search", 1)
        for number, (method, score) in enumerate(given)
    ]
    trials.append(Trial(4, "dkd", {}, None, "stopped", [9.0], 1.0, "search", 1))
    scores = {"plain": {1: 5.0}, "kd": {1: 3.0}}
    result = tuning_of(
        trials,
        kd.Attribution(scores, higher_is_better=higher_is_better),
        winner=trials[0],
        winner_name="kd",
        loss=kd.KD(),
        plain=trials[1],
    )
    found = [(trial.method, trial.score) for trial in result.leaders]
    best_first = [("kd", 7.0), ("plain", 5.0), ("dkd", 1.0)]
    least_first = [("dkd", 1.0), ("kd", 3.0), ("plain", 5.0)]
    assert found == (best_first if higher_is_better else least_first)
    rows = {row["best of each method"]: row for row in result.method_rows()}
    assert list(rows) == [method for method, _ in found]
    assert (rows["dkd"]["students"], rows["dkd"]["stopped"]) == ("2", "1")


@pytest.mark.parametrize("rates", [None, (1e-4, 1e-2)])
@pytest.mark.parametrize("best", ["plain", "kd"])
def test_a_winner_that_is_a_baseline_is_trained_once(best, rates):
    heights = {**FEW, best: 0.9}
    trainer = SurfaceTrainer(steepness=0, heights=heights, epochs=3)
    kept = {"weight": 0.5, "temperature": 2.0}
    result = tune(trainer, 20, space={"kd": kept}, learning_rate=rates)
    assert result.method == best
    assert set(result.final.scores) == {"plain", "kd"}
    assert len(result.final.comparisons) == 1
    fresh = [(call[0], call[1]) for call in trainer.calls if call[1] > 0]
    assert len(fresh) == len(set(fresh)) == 6
    assert result.gain(best) is None
    if best == "kd":
        assert result.gain().mean == pytest.approx(0.2)
    else:
        assert "No loss beat plain training" in str(result)


# -- the budget ----------------------------------------------------------------


def trained(trainer):
    return sum(call[3] for call in trainer.calls)


@pytest.mark.parametrize("students", [18, 25, 40.5])
def test_a_budget_of_epochs_covers_everything(students):
    trainer = SurfaceTrainer(heights=FEW)
    epochs = int(students * trainer.epochs)
    result = kd.tune(trainer, epochs=epochs, verbose=False)
    assert epochs - trainer.epochs < trained(trainer) <= epochs
    assert result.spent["epochs"] == trained(trainer)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("epochs", [5, 9])
def test_epochs_without_an_evaluation_cost_as_well(epochs, kept):
    """Also where the trainer had kept results, and reports nothing."""

    class Trainer(SurfaceTrainer):
        def train(self, method, seed, settings=None, report=None):
            report = None if kept else report
            return super().train(method, seed, settings, report)

    trainer = Trainer(heights=FEW, epochs=epochs, validation_freq=2)
    result = tune(trainer, 24)
    assert 23 * epochs < trained(trainer) <= 24 * epochs
    assert result.spent["epochs"] == trained(trainer)
    calls = search_calls(trainer)
    assert [trial.epochs for trial in result.trials] == [c[3] for c in calls]
    for trial in result.trials:
        assert len(trial.curve) == trial.epochs // 2
        if trial.state == "stopped":
            assert epochs // 2 < trial.epochs < epochs


def test_a_trainer_that_evaluates_no_epoch_is_refused_at_once():
    trainer = SurfaceTrainer(epochs=3, validation_freq=5)
    with pytest.raises(ValueError, match="none of its 3.*`validation_freq`"):
        tune(trainer, 60)
    assert not trainer.calls


class Clock:
    """A second an epoch, and ten for the first student's teacher."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def epoch(self, trainer):
        is_first = trainer.calls[-1][0] == "kd" and not self.paid
        self.now += 11.0 if is_first else 1.0
        self.paid = self.paid or is_first

    paid = False


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget.time, "perf_counter", clock)
    return clock


def test_a_budget_of_seconds_covers_everything(clock):
    trainer = SurfaceTrainer(heights=FEW, each_epoch=clock.epoch)
    result = kd.tune(trainer, seconds=300, verbose=False)
    assert 300 - trainer.epochs < clock.now - 100 <= 300
    assert result.spent["seconds"] == clock.now - 100
    seconds = [t.seconds for t in result.trials if t.state == "finished"]
    assert sorted(set(seconds)) == [9.0, 19.0]


def test_a_budget_too_small_is_refused_after_one_student(clock, tmp_path):
    trainer = SurfaceTrainer(heights=FEW, each_epoch=clock.epoch)
    with pytest.raises(ValueError, match=r"seconds=100,.*takes 9 s") as caught:
        kd.tune(trainer, seconds=100, folder=tmp_path, verbose=False)
    assert "108 s in all" in str(caught.value)
    assert "plain, label_smoothing, kd" in str(caught.value)
    assert len(trainer.calls) == 1
    # With enough, the one student is not trained again.
    result = kd.tune(trainer, seconds=120, folder=tmp_path, verbose=False)
    assert [call[0] for call in search_calls(trainer)] == list(FEW)
    assert result.spent["seconds"] == clock.now - 100


def test_a_trainer_that_knows_its_time_is_refused_at_once():
    trainer = SurfaceTrainer(heights=FEW)
    trainer.seconds_per_student = 300.0
    with pytest.raises(ValueError, match=r"one student takes 5 min"):
        kd.tune(trainer, seconds=3599)
    assert not trainer.calls


def test_too_few_epochs_are_refused_at_once(tmp_path):
    trainer = SurfaceTrainer()
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="9 epochs.*9 more: 108 epochs"):
        kd.tune(trainer, epochs=107, folder=folder)
    assert not trainer.calls and not folder.exists()
    kd.tune(trainer, epochs=108, folder=folder, verbose=False)
    # The winner is KD at its defaults, which is compared once.
    assert len(trainer.calls) == 9


# -- resuming ------------------------------------------------------------------


class KillAt:
    """Ends the process, as it were, at one epoch of the whole study."""

    def __init__(self, epoch):
        self.left = epoch

    def __call__(self, trainer):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 12, 41, 100])
def test_a_killed_search_resumes(tmp_path, epoch):
    whole = SurfaceTrainer(heights=FEW, epochs=3)
    unbroken = tune(whole, 36)
    killed = SurfaceTrainer(heights=FEW, epochs=3, each_epoch=KillAt(epoch))
    with pytest.raises(KeyboardInterrupt):
        tune(killed, 36, folder=tmp_path)
    resumed = SurfaceTrainer(heights=FEW, epochs=3)
    result = tune(resumed, 36, folder=tmp_path)

    # Nothing that was finished is trained again, and nothing left out.
    finished, lost = killed.calls[:-1], killed.calls[-1]
    for call in finished:
        assert call not in resumed.calls
    assert lost[:3] in [call[:3] for call in resumed.calls]
    by_method = [
        {call[0] for call in search_calls(t)} for t in (whole, resumed, killed)
    ]
    assert by_method[1] | by_method[2] == by_method[0]
    # The lost epochs are paid for, but for those of a comparison.
    total = trained(killed) + trained(resumed)
    unknown = lost[3] if lost[1] else 0
    assert result.spent["epochs"] == total - unknown
    assert 35 * 3 < result.spent["epochs"] <= 36 * 3
    failed = [t for t in result.trials if t.state == "failed"]
    assert len(failed) == (lost[1] == 0)
    assert set(result.final.scores) == set(unbroken.final.scores)


class Killed(BaseException):
    """Ends the process, as it were."""


def few(each_epoch=lambda trainer: None):
    return SurfaceTrainer(heights=FEW, epochs=3, each_epoch=each_epoch)


@pytest.mark.parametrize("writes", range(6))
def test_killed_again_while_it_resumes_a_search_loses_no_student(
    writes, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        tune(few(KillAt(1)), 12, folder=tmp_path)
    append, left = search._Journal.append_logs, [writes]

    def killed(self, logs):
        if not left[0]:
            raise Killed
        left[0] -= 1
        append(self, logs)

    with monkeypatch.context() as patched:
        patched.setattr(search._Journal, "append_logs", killed)
        with pytest.raises(Killed):
            tune(few(), 12, folder=tmp_path)
    result = tune(few(), 12, folder=tmp_path)
    started = [t for t in result.trials if t.why == "default"]
    finished = [t.method for t in started if t.state == "finished"]
    assert sorted(finished) == sorted(FEW)
    failed = {t.method for t in started if t.state == "failed"}
    assert failed == {"plain"}


def test_a_process_that_was_killed_while_writing_is_not_waited_for(
    tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        tune(few(KillAt(8)), 12, folder=tmp_path)

    def sleep(seconds):
        raise AssertionError("It waits for nobody.")

    # What Optuna itself leaves there.
    journal = tmp_path / "tuning.journal"
    (tmp_path / "tuning.journal.lock").symlink_to(journal)
    monkeypatch.setattr(time, "sleep", sleep)
    result = tune(few(), 12, folder=tmp_path)
    assert [t.state for t in result.trials].count("failed") == 1


def test_one_call_searches_in_a_folder(tmp_path):
    def search_as_well(trainer):
        if not refused:
            refused.append(True)
            with pytest.raises(OSError, match="is in use. Received: process"):
                tune(few(), 12, folder=tmp_path)

    refused = []
    result = tune(few(search_as_well), 12, folder=tmp_path)
    assert refused
    assert {t.state for t in result.trials} == {"finished"}
    # It is nobody's afterwards.
    tune(few(), 12, folder=tmp_path)


def test_a_line_that_was_not_finished_is_dropped(tmp_path):
    trainer = SurfaceTrainer(heights=FEW, epochs=3, each_epoch=KillAt(20))
    with pytest.raises(KeyboardInterrupt):
        tune(trainer, 20, folder=tmp_path / "a")
    journal = (tmp_path / "a" / "tuning.journal").read_bytes()
    last = journal[:-1].rfind(b"\n") + 1
    for cut in (last + 1, last + 20, len(journal) - 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "tuning.journal").write_bytes(journal[:cut])
        resumed = SurfaceTrainer(heights=FEW, epochs=3)
        result = tune(resumed, 20, folder=folder)
        assert len(resumed.calls) < 20
        assert result.method == "kd"


def test_a_larger_budget_continues(tmp_path):
    first = SurfaceTrainer(0.005, epochs=3)
    before = tune(first, 24, folder=tmp_path)
    again = SurfaceTrainer(0.005, epochs=3)
    same = tune(again, 24, folder=tmp_path)
    assert not again.calls
    assert same.to_dict()["final"] == before.to_dict()["final"]
    assert again.diagnoses == 0
    more = SurfaceTrainer(0.005, epochs=3)
    after = tune(more, 48, folder=tmp_path)
    kept = [t for t in after.trials[: len(before.trials)]]
    assert kept == before.trials
    assert len(after.trials) > len(before.trials)
    chosen = [(t.method, str(t.settings)) for t in after.trials]
    assert len(set(chosen)) == len(chosen)


def test_random_numbers_are_not_repeated_when_a_search_continues(tmp_path):
    for students in (18, 34):
        sampler = optuna.samplers.RandomSampler(seed=0)
        trainer = SurfaceTrainer(heights=FEW, epochs=3)
        result = tune(trainer, students, folder=tmp_path, sampler=sampler)
    chosen = [str(t.settings) for t in result.trials if t.method == "kd"]
    assert len(set(chosen)) == len(chosen) > 5


def test_another_search_is_refused(tmp_path):
    tune(SurfaceTrainer(heights=FEW, epochs=3), 13, folder=tmp_path)

    def refused(trainer=None, **arguments):
        trainer = trainer or SurfaceTrainer(heights=FEW, epochs=3)
        with pytest.raises(ValueError, match="another search") as caught:
            tune(trainer, 13, folder=tmp_path, **arguments)
        assert not trainer.calls
        return str(caught.value)

    other = SurfaceTrainer(heights=FEW, epochs=3)
    other.study = {"data": "other"}
    assert "{'data': 'other'}" in refused(other)
    other = SurfaceTrainer(heights=FEW, epochs=3)
    other.metric = "top5"
    assert "top5" in refused(other)
    assert "epochs" in refused(SurfaceTrainer(heights=FEW, epochs=4))
    assert "learning_rate" in refused(learning_rate=(1e-3, 1e-2))
    assert "space" in refused(space={"kd": {"weight": 0.5}})
    assert "seed" in refused(seed=1)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    trainer = SurfaceTrainer(heights=FEW, epochs=3)

    def full(file):
        if len(trainer.calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"tuning\.journal.*No space") as caught:
        tune(trainer, 20, folder=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "fsync", lambda file: None)
    resumed = SurfaceTrainer(heights=FEW, epochs=3)
    tune(resumed, 20, folder=tmp_path)
    assert not any(call in resumed.calls for call in trainer.calls[:4])


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "tuning.journal").write_text("not a journal\nat all\n")
    with pytest.raises(ValueError, match=r"tuning\.journal is damaged.*Remove"):
        tune(SurfaceTrainer(), 12, folder=tmp_path)


# -- what is searched ----------------------------------------------------------


def test_spaces_are_the_callers():
    trainer = SurfaceTrainer(epochs=3)
    space = {
        "kd": {"temperature": (2, 8), "weight": 0.9},
        "kd_topk": {"k": [10, 20], "weight": (0.6, 0.7)},
        "kd_sampled": {"k": (3, 30)},
    }
    result = tune(trainer, 60, methods=[*space], space=space)
    assert {t.method for t in result.trials} == {*space, *FEW}
    for trial in result.trials:
        settings = trial.settings
        if trial.method == "kd":
            assert settings["weight"] == 0.9
            assert 2 <= settings["temperature"] <= 8
        if trial.method == "kd_topk":
            assert settings["k"] in (10, 20)
            assert 0.6 <= settings["weight"] <= 0.7
        if trial.method == "kd_sampled":
            assert 3 <= settings["k"] <= 30 and isinstance(settings["k"], int)
    chosen = {t.settings["k"] for t in result.trials if t.method == "kd_topk"}
    assert len(chosen) == 2


@pytest.mark.parametrize("method", SPACES)
def test_losses_take_every_corner_of_their_space(method):
    (space,) = spaces.spaces([method]).values()
    ends = [spaces._ends(each) for each in space.values()]
    for corner in itertools.product(*ends):
        if method != "plain":
            kd.losses.get(method, **dict(zip(space, corner, strict=True)))
    loss = {} if method == "plain" else kd.losses.get(method).get_config()
    for name, each in space.items():
        low, high = (spaces._ends(each)[place] for place in (0, -1))
        assert low <= loss[name] <= high


def diagnosed(codes=(), suggested=(3, 12), k=4, relations=True):
    """A diagnosis of 20 classes."""
    numbers = {
        "data": {"classes": 20, "examples": 10, "tokens": False},
        "teacher": {
            "accuracy": 0.9,
            "confidence": 0.9,
            "label_probability_deviation": 0.2,
        },
        "temperature": {"suggested": list(suggested)},
        "class_relations": {
            "tail": {"suggested_k": k},
            "measured_share": 1.0,
        }
        if relations
        else None,
    }
    findings = [
        Finding(
            code,
            INFO if code in ("no_class_relations", "hard_task") else PROBLEM,
            "",
            {},
            "",
            "Do it.",
        )
        for code in codes
    ]
    return Diagnosis(numbers, findings)


@pytest.mark.parametrize(
    ("diagnosis", "method", "settings"),
    [
        (diagnosed(), "kd", {"temperature": 6, "weight": 0.5}),
        (diagnosed(["noisy_labels"]), "kd", {"temperature": 6, "weight": 0.2}),
        (diagnosed(["weak_teacher"]), "kd", {"temperature": 6, "weight": 0.2}),
        (diagnosed(["hard_task"]), "kd", {"temperature": 6, "weight": 0.5}),
        (
            diagnosed(["noisy_tail"]),
            "kd_topk",
            {"temperature": 6, "k": 0.2, "weight": 0.5},
        ),
        (
            diagnosed(["no_class_relations"]),
            "kd_pt",
            {"temperature": 6, "weight": 0.5},
        ),
        (
            diagnosed(relations=False, suggested=(0.5, 0.5)),
            "kd_pt",
            {"temperature": 0.5, "weight": 0.5},
        ),
        (
            diagnosed(suggested=(24, 64)),
            "kd",
            {"temperature": 32, "weight": 0.5},
        ),
    ],
)
def test_the_search_starts_from_the_diagnosis(diagnosis, method, settings):
    trainer = SurfaceTrainer(epochs=1)
    trainer.diagnosis = lambda: diagnosis
    result = tune(trainer, 22)
    advised = [t for t in result.trials if t.why == "diagnosis"]
    assert (advised[0].method, advised[0].settings) == (method, settings)
    # After what every search needs, ahead of other defaults.
    assert advised[0].number == 3
    assert result.verdict == diagnosis.verdict


def test_a_teacher_that_cannot_be_diagnosed_is_searched_without(tmp_path):
    """A diagnosis takes fewer kinds of data than training does."""

    class Trainer(SurfaceTrainer):
        def diagnosis(self):
            self.diagnoses += 1
            raise ValueError("Labels must be class ids. Received: soft ones.")

    trainer = Trainer(heights=FEW, epochs=2)
    result = tune(trainer, 20, folder=tmp_path / "search")
    told = (
        "No diagnosis of the teacher advised the search: Labels must be class "
        "ids."
    )
    assert result.findings[-1] == told and f"- {told}" in str(result)
    again = tune(trainer, 20, folder=tmp_path / "search")
    assert trainer.diagnoses == 1 and again.findings[-1] == told
    untaught = tune(SurfaceTrainer(heights=FEW, epochs=2), 20)
    assert "No diagnosis" not in str(untaught)


def test_a_vocabulary_may_keep_a_few_classes():
    for classes, low in ((10, 1), (100, 5), (10_000, 16)):
        advice = {"classes": classes, "starts": []}
        space = spaces.spaces(["kd_topk"], advice=advice)["kd_topk"]
        assert space["k"].low * classes == pytest.approx(low)


def test_without_a_teacher_label_smoothing_is_tuned():
    heights = {n: HEIGHTS[n] for n in ("plain", "label_smoothing")}
    trainer = SurfaceTrainer(heights=heights, epochs=3)
    trainer.teacher = None
    result = tune(trainer, 24)
    assert result.method == "label_smoothing"
    assert set(result.final.scores) == {"plain", "tuned"}
    assert result.gain("kd") is None
    assert len(result.final.comparisons) == 1
    assert result.gain().mean > 0
    smoothing = result.settings["smoothing"]
    assert abs(math.log(smoothing / BEST["smoothing"], 4)) < 0.5


# -- refusals ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["kd", "kdd"]}, "Received: the method 'kdd'"),
        ({"methods": "kd"}, r"Pass \['kd'\]"),
        ({"space": {"kdd": {}}}, "Received: 'kdd'"),
        ({"space": {"kd": {"k": (1, 5)}}}, "does not have such a setting"),
        ({"space": {"kd": {"weight": (0.5, 2.0)}}}, "Received: weight=2.0"),
        ({"space": {"kd": {"weight": (0.5, 0.2)}}}, r"\(0.5, 0.2\)"),
        ({"space": {"kd": {"temperature": (0, 5)}}}, r"above 0.*\(0, 5\)"),
        ({"space": {"kd": {"weight": (0.5,)}}}, r"Received: \(0.5,\)"),
        (
            {"space": {"kd_pt_sim": {"pt_weight": (0.5, 0.9)}}},
            "sum to more than 1",
        ),
        ({"space": {"kd": {"temperature": []}}}, "at least one choice"),
        ({"fresh_seeds": 1}, "fresh_seeds=1"),
        ({"learning_rate": 1e-3}, "Received: 0.001"),
        ({"learning_rate": (0.0, 1e-3)}, r"\(0.0, 0.001\)"),
        ({"seconds": 10}, "seconds=10, epochs=1000"),
        ({"epochs": None}, "seconds=None, epochs=None"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    arguments, message, tmp_path
):
    trainer = SurfaceTrainer()
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match=message):
        kd.tune(trainer, **{"epochs": 1000, "folder": folder, **arguments})
    assert not trainer.calls and not folder.exists()


def test_a_function_is_sent_to_attribute():
    with pytest.raises(TypeError, match="Received.*keras_kd.attribute"):
        kd.tune(lambda method, seed: 0.5, epochs=1000)


def test_a_method_without_its_teacher_is_refused():
    heights = {n: HEIGHTS[n] for n in ("plain", "label_smoothing")}
    trainer = SurfaceTrainer(heights=heights)
    trainer.teacher = None
    with pytest.raises(ValueError, match=r"needs a teacher.*'kd'"):
        tune(trainer, 30, methods=["kd"])


def test_a_metric_that_is_not_logged_is_refused_after_one_student():
    class Trainer(SurfaceTrainer):
        def train(self, *arguments):
            result = super().train(*arguments)
            return {"loss": 1.0, "history": result["history"]}

    trainer = Trainer()
    with pytest.raises(ValueError, match=r"Received: 'accuracy'.*'loss'"):
        tune(trainer, 30)
    assert len(trainer.calls) == 1


def test_without_optuna_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'keras_kd\[tune\]'"):
        tune(SurfaceTrainer(), 30)


# -- what is said --------------------------------------------------------------


def test_it_is_silent_if_told_so(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        before = optuna.logging.get_verbosity()
        tune(SurfaceTrainer(heights=FEW, epochs=3), 20)
        assert optuna.logging.get_verbosity() == before
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_each_student_has_a_line(capsys):
    trainer = SurfaceTrainer(heights=FEW)
    result = kd.tune(trainer, epochs=30 * 9)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(trainer.calls)
    assert lines[0] == "  3% plain: accuracy 0.6874, the best"
    assert any("stopped after 5 of 9 epochs" in line for line in lines)
    assert lines[-1].startswith("fresh seed 3/3 tuned: accuracy")
    assert len(result.trials) == len(lines) - 9


def test_the_page_says_what_the_table_says(tmp_path):
    trainer = SurfaceTrainer(0.005)
    trainer.diagnosis = diagnosed
    result = tune(trainer, 50, learning_rate=(1e-4, 1e-1))
    path = tmp_path / "tuning.html"
    result.save(path)
    with pytest.raises(FileExistsError):
        result.save(path)
    text, images = read_page(path)
    for sentence in (*result.findings, *result.verdict):
        assert sentence in text
    for row in (*result.final_rows(), *result.method_rows()):
        for cell in row.values():
            assert cell in text
    for trial in result.trials:
        assert f"{trial}\n" in text
    for setting in result.settings:
        assert any(f"by {setting.replace('_', ' ')}" in each for each in images)
    assert {"gains", "methods", "history", "curves"} <= set(report.draw(result))


def read_page(path):
    """The text of a page, and the captions of its images."""

    class Reader(html.parser.HTMLParser):
        def handle_data(self, data):
            text.append(data)

        def handle_starttag(self, tag, attributes):
            if tag == "img":
                images.append(dict(attributes)["alt"])

    text, images = [], []
    Reader().feed(path.read_text())
    return "\n".join(text), images


def test_importance_tells_what_matters():
    """Of two settings one is without effect."""

    class Trainer(SurfaceTrainer):
        def truth(self, method, settings):
            if method != "kd":
                return super().truth(method, settings)
            return 0.9 - 0.1 * (settings["weight"] - 0.8) ** 2

    trainer = Trainer(heights=FEW, epochs=3)
    pruner = optuna.pruners.NopPruner()
    shares = tune(trainer, 60, pruner=pruner).importance
    assert set(shares) == {"kd"}
    assert list(shares["kd"]) == ["weight", "temperature"]
    assert shares["kd"]["weight"] > 0.8
    assert sum(shares["kd"].values()) == pytest.approx(1)


def test_tensorboard_has_a_row_for_each_student(tmp_path):
    larger = tune(SurfaceTrainer(epochs=3), 30)
    larger.to_tensorboard(tmp_path)
    result = tune(SurfaceTrainer(heights=FEW, epochs=3), 20)
    # In place of a table with more students.
    assert len(result.trials) < len(larger.trials)
    result.to_tensorboard(tmp_path)
    files = (tmp_path / "hparams").glob("*-*/*")
    rows = sorted(path.parent for path in files)
    assert len(rows) == len(result.trials)
    for row, trial in zip(rows, result.trials, strict=True):
        events = event_accumulator.EventAccumulator(str(row))
        events.Reload()
        (value,) = events.Tensors("accuracy")
        score = tensor_util.make_ndarray(value.tensor_proto)
        assert score == pytest.approx(trial.curve[-1])
        content = events.SummaryMetadata("_hparams_/session_start_info")
        told = plugin_data_pb2.HParamsPluginData.FromString(
            content.plugin_data.content
        ).session_start_info.hparams
        assert told["method"].string_value == trial.method
        for name, setting in trial.settings.items():
            assert told[name].number_value == pytest.approx(setting)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tuning"))
    events.Reload()
    images = [tag for tag in events.Tags()["tensors"] if "tuning/" in tag]
    assert len(images) == len(report.draw(result))
