"""Attribution: controls, intervals, resuming, time budget, what it says."""

import errno
import html.parser
import io
import itertools
import json
import math
import os
import sys
import time

import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

import keras_kd as kd
from keras_kd import attribution
from keras_kd.attribution import Attribution, attribute, pictures, runs
from keras_kd.monitors import DivergedError


def flat(scores):
    """A `train` that returns `scores[method]`, plus a share of the seed."""
    calls = []

    def train(method, seed):
        calls.append((method, seed))
        return scores[method] + seed * 10

    train.calls = calls
    return train


EVEN = dict.fromkeys(attribution.DEFAULT_METHODS, 1.0)
ALL = dict.fromkeys(attribution.METHODS, 1.0)
# Runs of the default methods with two seeds.
BOTH_SEEDS = 2 * len(EVEN)


# -- controls ------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 50])
def test_permuted_rows_are_the_rows_with_none_in_its_place(classes):
    rows = np.random.default_rng(0).normal(size=(classes, 4))
    for seed in range(20):
        permuted = attribution.permuted_logit_weights(rows, seed)
        source = [np.flatnonzero((rows == r).all(-1))[0] for r in permuted]
        assert sorted(source) == list(range(classes))
        assert all(a != b for a, b in enumerate(source))


def test_permuted_classes_smooth_as_much_with_other_relations():
    rows = np.random.default_rng(0).normal(size=(20, 4))
    permuted = attribution.permuted_logit_weights(rows, 1)
    labels = np.arange(20)
    targets, controls = (
        np.array(kd.KDSim(logit_layer=w).class_similarity.target(labels, 20)[0])
        for w in (rows, permuted)
    )
    ordered = [
        sorted(map(tuple, np.sort(t, axis=-1).round(5)))
        for t in (targets, controls)
    ]
    np.testing.assert_allclose(*ordered, atol=2e-5)
    off_diagonal = ~np.eye(20, dtype=bool)
    correlation = np.corrcoef(targets[off_diagonal], controls[off_diagonal])
    assert abs(correlation[0, 1]) < 0.3


def test_a_shuffle_stays_in_the_class_and_loses_the_example():
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 700)
    values = np.stack([np.arange(700), labels], axis=-1)
    shuffled = attribution.shuffle_within_labels(values, labels, seed=3)
    np.testing.assert_array_equal(shuffled[:, 1], labels)
    np.testing.assert_array_equal(np.sort(shuffled[:, 0]), np.arange(700))
    # Of a random permutation about one value a class stays where it was.
    assert (shuffled[:, 0] == values[:, 0]).sum() < 30
    again = attribution.shuffle_within_labels(values, labels, seed=3)
    np.testing.assert_array_equal(shuffled, again)
    other = attribution.shuffle_within_labels(values, labels, seed=4)
    assert (shuffled != other).any()


def test_a_shuffle_reaches_every_place_of_the_class():
    labels = np.array([1, 0, 1, 0, 1])
    seen = {
        tuple(attribution.shuffle_within_labels(np.arange(5), labels, seed))
        for seed in range(200)
    }
    assert len(seen) == math.factorial(3) * math.factorial(2)


def test_bad_data_of_controls_are_refused():
    with pytest.raises(ValueError, match=r"Received: shape \(3,\)"):
        attribution.permuted_logit_weights(np.zeros(3))
    with pytest.raises(ValueError, match=r"\(4,\) and labels of shape \(3,\)"):
        attribution.shuffle_within_labels(np.zeros(4), np.zeros(3, int))


def test_levels_of_decoupled_distillation_are_alone_whatever_is_set():
    settings = {"alpha": 0.7, "beta": 3.0, "temperature": 5.0}
    for method, expected in (
        ("dkd_tckd", (0.7, 0.0)),
        ("dkd_nckd", (0.0, 3.0)),
        ("dkd", (0.7, 3.0)),
    ):
        loss = attribution.make_loss(method, settings)
        found = loss.get_config()
        assert (found["alpha"], found["beta"]) == pytest.approx(expected)
        assert found["temperature"] == 5.0


# -- running -------------------------------------------------------------------


def test_gains_are_paired_by_seed():
    # Seeds differ by 10, methods by 0.5: unpaired, nothing could be told.
    outcome = attribute(flat({**EVEN, "kd": 1.5}), range(3), verbose=False)
    gain = outcome.gain("kd")
    assert (gain.mean, gain.seeds, gain.over) == (0.5, 3, "seeds")


def test_runs_go_seed_by_seed():
    train = flat(EVEN)
    attribute(train, [4, 2], methods=["plain", "kd"], verbose=False)
    assert train.calls == [("plain", 4), ("kd", 4), ("plain", 2), ("kd", 2)]


def test_a_killed_call_goes_on_without_repeating_a_run(tmp_path):
    train = flat(EVEN)

    def killed(method, seed):
        if (method, seed) == ("kd_pt", 1):
            raise KeyboardInterrupt
        return train(method, seed)

    with pytest.raises(KeyboardInterrupt):
        attribute(killed, range(2), folder=tmp_path, verbose=False)
    before = len(train.calls)
    assert before == len(EVEN) + 3
    outcome = attribute(train, range(2), folder=tmp_path, verbose=False)
    assert len(train.calls) == len(set(train.calls)) == BOTH_SEEDS
    unbroken = attribute(flat(EVEN), range(2), verbose=False)
    assert outcome.to_dict() == unbroken.to_dict()


def test_seeds_and_methods_can_be_added(tmp_path):
    first, second = flat(EVEN), flat(EVEN)
    attribute(first, range(2), ["plain"], folder=tmp_path, verbose=False)
    attribute(second, range(3), ["plain", "kd"], tmp_path, verbose=False)
    assert set(second.calls) == {("plain", 2), ("kd", 0), ("kd", 1), ("kd", 2)}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        '{"method": "kd", "se',
        "[]",
        "null",
        '{"method": "kd", "seed": 1}',
        '{"method": "kd", "seed": 1, "score": null, "seconds": 1}',
        '{"method": "kd", "seed": 1, "score": NaN, "seconds": 1}',
        # That of another run.
        '{"method": "kd", "seed": 0, "score": 1.0, "seconds": 1.0}',
    ],
)
def test_a_damaged_run_file_is_named_with_what_to_do(tmp_path, damage):
    attribute(flat(EVEN), range(2), folder=tmp_path, verbose=False)
    path = tmp_path / "run-kd-1.json"
    path.write_text(damage)
    train = flat(EVEN)
    with pytest.raises(ValueError, match=r"run-kd-1\.json.*Received") as caught:
        attribute(train, range(2), folder=tmp_path, verbose=False)
    assert "Remove it" in str(caught.value)
    assert not train.calls
    path.unlink()
    outcome = attribute(train, range(2), folder=tmp_path, verbose=False)
    assert train.calls == [("kd", 1)]
    assert outcome.scores["kd"] == {0: 1.0, 1: 11.0}


def test_a_damaged_study_file_is_named(tmp_path):
    attribute(flat(EVEN), range(2), folder=tmp_path, verbose=False)
    (tmp_path / "study.json").write_text("")
    with pytest.raises(ValueError, match=r"study\.json is damaged"):
        attribute(flat(EVEN), range(2), folder=tmp_path)
    (tmp_path / "study.json").unlink()
    train = flat(EVEN)
    attribute(train, range(2), folder=tmp_path, verbose=False)
    assert not train.calls


@pytest.mark.parametrize("functions", [["fsync"], ["link", "replace"]])
@pytest.mark.parametrize("killed_at", range(4))
def test_killed_at_any_write_nothing_is_lost(
    tmp_path, monkeypatch, functions, killed_at
):
    """study.json and two runs are written, whole or not at all."""
    calls = []

    def dying(real):
        def call(*args):
            calls.append(args)
            if len(calls) > killed_at:
                raise KeyboardInterrupt
            return real(*args)

        return call

    first = flat(EVEN)
    with monkeypatch.context() as patched:
        for name in functions:
            patched.setattr(os, name, dying(getattr(os, name)))
        # A kill removes nothing.
        patched.setattr(os, "remove", lambda path: None)
        with pytest.raises(KeyboardInterrupt):
            attribute(first, range(2), ["plain", "kd"], tmp_path, verbose=False)
    second = flat(EVEN)
    outcome = attribute(
        second, range(2), ["plain", "kd"], tmp_path, verbose=False
    )
    assert len(second.calls) == 4 - max(killed_at - 1, 0)
    assert outcome.scores["plain"] == {0: 1.0, 1: 11.0}


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"study\.json can't be.*No space left"):
        attribute(flat(EVEN), range(2), folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder. .*file/runs"):
        attribute(flat(EVEN), range(2), folder=tmp_path / "file" / "runs")


def test_folders_may_start_with_a_tilde_and_not_be_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = attribute(flat(EVEN), range(2), folder="~/runs", verbose=False)
    assert len(list((tmp_path / "runs").glob("run-*.json"))) == BOTH_SEEDS
    outcome.save("~/report.html")
    outcome.to_tensorboard("~/logs")
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "logs" / "hparams" / "levels").exists()
    for call in (
        lambda: attribute(flat(EVEN), range(2), folder=""),
        lambda: outcome.save(""),
        lambda: outcome.to_tensorboard(""),
    ):
        with pytest.raises(ValueError, match="an empty path"):
            call()


@pytest.mark.parametrize(
    ("result", "received"),
    [
        (None, "None for 'plain' with seed 0"),
        ([0.3, 0.5], r"\[0.3, 0.5\] of type list"),
        ("good", "'good' of type str"),
        ({"score": None}, "None for 'plain'"),
    ],
)
def test_a_train_that_returns_no_score_is_refused(result, received):
    with pytest.raises(ValueError, match=f"must return.*Received: {received}"):
        attribute(lambda method, seed: result, range(2))


def test_a_folder_of_another_study_is_refused(tmp_path):
    train = flat(EVEN)
    attribute(
        train, range(2), folder=tmp_path, study={"epochs": 3}, verbose=False
    )
    for other in (
        {"study": {"epochs": 4}},
        {"study": {"epochs": 3}, "metric": "loss"},
        {"study": {"epochs": 3}, "higher_is_better": False},
    ):
        with pytest.raises(ValueError, match="another study"):
            attribute(train, range(2), folder=tmp_path, **other)
    assert len(train.calls) == BOTH_SEEDS


@pytest.mark.parametrize("moment", ["_has_other_files", "link"])
def test_of_two_calls_that_begin_in_a_folder_none_takes_the_other_for_foreign(
    tmp_path, monkeypatch, moment
):
    """The other begins, or is done, as this one looks at the folder."""
    owner = os if moment == "link" else runs.Runs
    real = getattr(owner, moment)

    def meanwhile(folder, train, **study):
        def call(*args):
            monkeypatch.setattr(owner, moment, real)
            attribute(train, range(2), folder=folder, verbose=False, **study)
            return real(*args)

        monkeypatch.setattr(owner, moment, call)

    equal, other = tmp_path / "equal", tmp_path / "other"
    equal.mkdir()
    other.mkdir()
    first, second = flat(EVEN), flat(EVEN)
    meanwhile(equal, first)
    attribute(second, range(2), folder=equal, verbose=False)
    assert len(first.calls) == BOTH_SEEDS and not second.calls
    meanwhile(other, first, study={"epochs": 4})
    with pytest.raises(ValueError, match="another study"):
        attribute(second, range(2), folder=other, verbose=False)
    assert not second.calls


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="other files"):
        attribute(flat(EVEN), range(2), folder=tmp_path)


class Clock:
    """A clock that training moves."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_time_budget_ends_with_whole_seeds(clock, tmp_path, capsys):
    done = []

    def train(method, seed):
        clock.now += 10
        done.append((method, seed))
        return 1.0

    def run(budget):
        return attribute(
            train, range(5), ["plain", "kd"], tmp_path, time_budget=budget
        )

    # Of 20 seconds a seed, two whole ones fit into 59.
    run(59)
    assert done == [("plain", 0), ("kd", 0), ("plain", 1), ("kd", 1)]
    assert "no time for 6 runs" in capsys.readouterr().out
    outcome = run(1000)
    assert len(done) == len(set(done)) == 10
    assert outcome.gain("kd").seeds == 5


def test_nothing_is_started_after_a_run_that_does_not_fit(clock):
    done = []

    def train(method, seed):
        clock.now += 50 if method == "kd" else 1
        done.append((method, seed))
        return 1.0

    # Without experience the first seed starts, and stops on the way.
    attribute(train, range(3), ["plain", "kd"], time_budget=1.5)
    assert done == [("plain", 0)]


def test_an_unfinished_seed_is_left_out_of_the_pairs():
    outcome = Attribution({"plain": {0: 1.0, 1: 2.0}, "kd": {0: 3.0}})
    assert outcome.gain("kd").seeds == 1
    assert outcome.gain("kd").verdict == "inconclusive"
    assert "inconclusive, paired seeds: 1 of the two" in str(outcome)


def test_a_dict_of_scores_needs_the_metric():
    outcome = attribute(
        lambda method, seed: {"accuracy": 0.5, "loss": 9},
        range(2),
        ["plain"],
        metric="accuracy",
        verbose=False,
    )
    assert outcome.scores == {"plain": {0: 0.5, 1: 0.5}}
    with pytest.raises(ValueError, match=r"Received: \['loss'\] for 'plain'"):
        attribute(lambda *_: {"loss": 9}, range(2), metric="accuracy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [1]}, "at least two"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"methods": ["kd"]}, '"plain" among them'),
        ({"methods": "kd"}, r"Pass \['plain', 'kd'\]"),
        ({"methods": ["plain", "kd", "kd"]}, "different names"),
        ({"methods": ["plain", "a/b"]}, r"Received: \['a/b'\]"),
        ({"time_budget": 0}, "above 0"),
        ({"seeds": 1}, "at least two"),
        (
            {"seeds": True},
            "must be a number of seeds or a list.*Received.*5 or",
        ),
        ({"seeds": 2.5}, "must be a number of seeds or a list.*Received.*5 or"),
        ({"seeds": [0, 1.5]}, "must be a number of seeds or a list.*Received"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(arguments, message):
    train = flat(EVEN)
    with pytest.raises(ValueError, match=message):
        attribute(train, **{"seeds": range(2), **arguments})
    assert not train.calls


@pytest.mark.parametrize("seeds", [np.arange(2), np.int64(2), [0, 1]])
def test_seeds_of_numpy(seeds):
    outcome = attribute(flat(EVEN), seeds, ["plain"], verbose=False)
    assert list(outcome.scores["plain"]) == [0, 1]


def test_what_cannot_train_is_refused():
    for train in (None, 0.9, {"accuracy": 0.9}):
        with pytest.raises(
            TypeError, match="must be a function.*Received.*Pass"
        ):
            attribute(train, range(2))


@pytest.mark.parametrize("how", ["raised", "not a number"])
def test_a_diverged_run_is_a_missing_seed(how, tmp_path, capsys):
    calls = []

    def train(method, seed):
        calls.append((method, seed))
        if (method, seed) != ("kd", 1):
            return 1.0 + 10 * seed + (method == "kd") * (1 + 0.1 * seed)
        if how == "raised":
            raise DivergedError("The student's loss is not finite.")
        return math.nan

    def run():
        return attribute(train, 3, ["plain", "kd"], tmp_path)

    outcome = run()
    assert len(calls) == 6
    printed = capsys.readouterr().out
    assert "seed 2/3 kd: left out, as it diverged" in printed
    assert "time budget" not in printed
    assert outcome.scores["kd"] == {0: 2.0, 2: pytest.approx(22.2)}
    assert outcome.gain("kd") == attribution.paired_interval(
        [1.0, outcome.scores["kd"][2] - 21.0]
    )
    assert "training diverged: kd with seed 1. Gains" in outcome.findings[-1]
    assert outcome.findings[-1] in str(outcome)
    assert "finite" in outcome.to_dict()["diverged"]["kd"]["1"]
    # A seed that did once would do so again.
    assert run().to_dict() == outcome.to_dict() and len(calls) == 6
    path = tmp_path / "run-kd-1.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": "1"'))
    with pytest.raises(ValueError, match="run-kd-1.*Received.*Remove it"):
        run()


def test_where_all_diverges_it_says_so():
    outcome = attribute(lambda *_: math.inf, 2, ["plain", "kd"], verbose=False)
    assert outcome.scores == {"plain": {}, "kd": {}}
    (finding,) = outcome.findings
    assert "plain with seeds 0, 1; kd with seeds 0, 1" in finding
    assert "No two methods have two seeds in common" in str(outcome)


# -- trainers, and all that they return ----------------------------------------


class Trainer:
    """As `StudentTrainer` is, for `attribute`."""

    metric = "accuracy"
    higher_is_better = True
    study = {"epochs": 3}
    methods = ("plain", "kd", "dkd", "my_loss")
    teacher_similarity = np.eye(3)
    superclasses = np.array([0, 0, 1])

    def __init__(self):
        self.calls = []

    def __call__(self, method, seed):
        self.calls.append((method, seed))
        right = np.arange(20) < 12 + (method == "kd") * 4 + seed
        return {
            "accuracy": np.float32(right.mean()),
            "loss": 0.5,
            "examples": right.astype("float32"),
            "history": {"val_accuracy": np.array([0.3, 0.5])},
            "gradient_scale": {"edges": [0, 1, 2], "counts": [[3, 1], [2, 2]]},
            "class_similarity": np.eye(3),
            "object": object(),
        }


def test_a_trainer_brings_what_is_not_given(tmp_path):
    trainer = Trainer()
    outcome = attribute(trainer, 2, folder=tmp_path, verbose=False)
    assert trainer.calls == [
        (method, seed)
        for seed in range(2)
        # Decoupled distillation is no part of the default.
        for method in ("plain", "kd", "my_loss")
    ]
    assert (outcome.metric, outcome.higher_is_better) == ("accuracy", True)
    assert outcome.teacher_similarity is Trainer.teacher_similarity
    assert outcome.superclasses is Trainer.superclasses
    study = json.loads((tmp_path / "study.json").read_text())
    assert study == {
        "metric": "accuracy",
        "higher_is_better": True,
        "study": {"epochs": 3},
    }


def test_what_is_given_comes_before_what_a_trainer_brings(tmp_path):
    class Other(Trainer):
        def __call__(self, method, seed):
            return {"loss": 0.5 + seed, "accuracy": 0.5}

    outcome = attribute(
        Other(),
        range(4, 6),
        methods=["plain", "dkd"],
        metric="loss",
        higher_is_better=False,
        study={"epochs": 4},
        folder=tmp_path,
        verbose=False,
    )
    assert outcome.scores["dkd"] == {4: 4.5, 5: 5.5}
    assert (outcome.metric, outcome.higher_is_better) == ("loss", False)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["study"] == {"epochs": 4}


def test_all_that_a_run_returns_is_kept(tmp_path):
    first = attribute(Trainer(), 2, folder=tmp_path, verbose=False)
    again = Trainer()
    second = attribute(again, 2, folder=tmp_path, verbose=False)
    assert not again.calls
    assert second.results == first.results
    kept = second.results["kd"][1]
    assert kept["examples"] == [1.0] * 17 + [0.0] * 3
    assert kept["history"] == {"val_accuracy": [0.3, 0.5]}
    assert kept["gradient_scale"]["counts"] == [[3, 1], [2, 2]]
    assert kept["class_similarity"] == np.eye(3).tolist()
    assert kept["loss"] == 0.5 and "object" not in kept
    assert second.to_dict() == first.to_dict()
    assert second.gain("kd").over == "seeds and examples"


def test_runs_of_before_there_were_examples_are_read(tmp_path):
    attribute(Trainer(), 2, folder=tmp_path, verbose=False)
    for path in tmp_path.glob("run-*.json"):
        run = json.loads(path.read_text())
        del run["results"]
        path.write_text(json.dumps(run, indent=2))
    again = Trainer()
    old = attribute(again, 2, folder=tmp_path, verbose=False)
    assert not again.calls
    assert old.gain("kd").over == "seeds"
    assert "over seeds alone" in str(old) or "exactly" in str(old)
    more = attribute(again, 3, folder=tmp_path, verbose=False)
    # Some have examples and some do not.
    assert more.gain("kd").over == "seeds"


def test_a_gain_of_examples_is_their_paired_interval():
    outcome = attribute(Trainer(), 3, verbose=False)
    differences = [
        np.float64(np.arange(20) < 16 + seed) - (np.arange(20) < 12 + seed)
        for seed in range(3)
    ]
    assert outcome.gain("kd") == attribution.paired_interval(differences)


def test_perplexities_are_compared_by_their_logarithms():
    random = np.random.default_rng(0)
    pieces = random.normal(4.5, 0.3, 200)

    def train(method, seed):
        own = np.random.default_rng([seed, len(method)])
        losses = pieces - 0.2 * (method == "kd") + own.normal(0, 0.05, 200)
        losses += seed  # Far apart, so that the kinds of means are as well.
        return {
            "perplexity": np.exp(losses.mean()),
            "history": {"val_perplexity": [np.exp(losses.mean())]},
            "examples": losses,
            "examples_of": "exp_mean",
        }

    outcome = attribute(
        train,
        3,
        ["plain", "kd"],
        metric="perplexity",
        higher_is_better=False,
        verbose=False,
    )
    logs = {
        method: np.array([train(method, seed)["examples"] for seed in range(3)])
        for method in ("plain", "kd")
    }
    nats = attribution.paired_interval(logs["plain"] - logs["kd"])
    gain, baseline = outcome.gain("kd"), np.exp(logs["plain"].mean())
    for found, each in (
        (gain.mean, nats.mean),
        (gain.low, nats.low),
        (gain.high, nats.high),
    ):
        assert found == pytest.approx(baseline - baseline / np.exp(each))
    # The geometric means over the seeds differ by it.
    means = {
        method: np.exp(np.mean(np.log(list(by_seed.values()))))
        for method, by_seed in outcome.scores.items()
    }
    assert gain.mean == pytest.approx(means["plain"] - means["kd"])
    for row in outcome.method_rows():
        shown = float(row["geometric mean perplexity"])
        assert shown == pytest.approx(means[row["method"]], abs=0.06)
    assert "differences of geometric means" in outcome.note
    figure, caption = pictures.of_training(outcome)["learning_curves"]
    (axes,) = figure.to_matplotlib().axes
    for line, method in zip(axes.lines, ("plain", "kd"), strict=True):
        assert line.get_ydata() == pytest.approx([means[method]])
    assert ": geometric means of the seeds" in caption
    assert gain.verdict == "gain" and gain.p_value == nats.p_value


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"examples": [1.0, math.nan]}, '"examples" must be .examples. finite'),
        ({"examples": [[1.0]]}, '"examples" must be .examples. finite'),
        ({"examples": "many"}, '"examples" must be .examples. finite'),
        ({"examples": []}, '"examples" must be .examples. finite'),
        (
            {"examples": [1.0, 0.0]},
            "must follow.*0.6 for.* 0, where mean of the examples is 0.5",
        ),
        ({"examples": [0.6013]}, "must follow.*examples is 0.6013"),
        (
            {"examples": [0.6], "examples_of": "median"},
            '"examples_of" must be "mean" or "exp_mean"',
        ),
        (
            {"examples": [0.6], "examples_of": "exp_mean"},
            "must follow.*seed 0, where exp_mean of the examples is 1.82",
        ),
        ({"history": [0.5]}, '"history" must be a dict of lists'),
        ({"history": {"loss": 0.5}}, '"history" must be a dict of lists'),
        (
            {"gradient_scale": {"edges": [0, 1], "counts": [1]}},
            '"gradient_scale" must be a dict of "edges"',
        ),
        (
            {"gradient_scale": {"edges": [0, 1], "counts": [[1, 2]]}},
            '"gradient_scale" must be a dict of "edges"',
        ),
        ({"class_similarity": [[1.0, 0.5]]}, '"class_similarity" must be'),
    ],
)
def test_results_of_another_shape_are_refused(results, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        attribute(
            lambda *_: {"score": 0.6, **results}, range(2), folder=tmp_path
        )
    assert "Received: " in str(error.value)
    assert "'plain' with seed 0" in str(error.value)
    assert not list(tmp_path.glob("run-*"))


def test_students_must_be_tested_on_the_same_examples(tmp_path):
    def train(method, seed):
        return {"score": 1.0, "examples": [1.0] * (5 + (method == "kd"))}

    with pytest.raises(ValueError, match="Received: 6 for 'kd' with seed 0"):
        attribute(train, 2, ["plain", "kd"], tmp_path, verbose=False)
    assert [p.name for p in tmp_path.glob("run-*")] == ["run-plain-0.json"]


def test_a_run_with_damaged_results_is_named(tmp_path):
    attribute(Trainer(), 2, folder=tmp_path, verbose=False)
    path = tmp_path / "run-kd-1.json"
    whole = json.loads(path.read_text())
    for damage in ({"examples": [1.0, 1.0]}, {"class_similarity": 3}):
        results = {**whole["results"], **damage}
        path.write_text(json.dumps({**whole, "results": results}))
        with pytest.raises(ValueError, match="run-kd-1.*Received.*Remove it"):
            attribute(Trainer(), 2, folder=tmp_path, verbose=False)


def test_progress_is_told_in_the_scores_unit(capsys):
    attribute(Trainer(), 2, methods=["plain", "kd"])
    assert "seed 1/2 kd: accuracy 80.0 %" in capsys.readouterr().out


# -- what it says --------------------------------------------------------------


def outcome_of(means, seeds=5, noise=0.01, **kwargs):
    random = np.random.default_rng(0)
    return Attribution(
        {
            method: {s: mean + random.normal(0, noise) for s in range(seeds)}
            for method, mean in {**ALL, **means}.items()
        },
        **kwargs,
    )


def comparison(outcome, method, baseline):
    (found,) = [
        c
        for c in outcome.levels
        if (c.level.method, c.baseline) == (method, baseline)
    ]
    return found


def test_each_level_is_the_difference_that_defines_it():
    outcome = outcome_of(
        {
            "plain": 0.0,
            "label_smoothing": 1.0,
            "kd_sim_permuted": 2.0,
            "kd_sim": 4.0,
            "kd_pt_shuffled": 8.0,
            "kd_pt": 16.0,
            "kd_pt_sim": 32.0,
            "kd_topk": 64.0,
            "kd": 128.0,
            "kd_sampled": 256.0,
            "dkd_tckd": 512.0,
            "dkd_nckd": 1024.0,
            "dkd": 2048.0,
        },
        noise=0.0,
    )
    found = {
        (c.level.name, c.baseline): c.interval.mean for c in outcome.levels
    }
    assert found == {
        ("regularisation", "plain"): 1.0,
        ("class relations", "label_smoothing"): 3.0,
        ("class relations", "kd_sim_permuted"): 2.0,
        ("rescaling", "label_smoothing"): 15.0,
        ("rescaling", "kd_pt_shuffled"): 8.0,
        ("both together", "kd_pt"): 16.0,
        ("the tail", "kd_topk"): 64.0,
        ("the tail as it is", "kd_topk"): 192.0,
        ("the label's probability", "plain"): 512.0,
        ("the other classes", "plain"): 1024.0,
        ("decoupled", "kd"): 1920.0,
        ("all", "plain"): 128.0,
    }


def test_both_together_is_held_against_the_better_of_the_two():
    better = outcome_of({"kd_sim": 2.0, "kd_pt": 1.5, "kd_pt_sim": 1.8})
    found = comparison(better, "kd_pt_sim", "kd_sim")
    assert found.interval.verdict == "loss"


@pytest.mark.parametrize("lonely", [{}, {2: 99.0}])
def test_the_better_of_the_two_is_the_one_that_gains_more(lonely):
    """Less is better here; a seed that plain has not counts for nothing."""
    scores = {
        "kd_sim": {0: 9.0, 1: 8.0, **lonely},
        "kd_pt": {0: 10.0, 1: 9.0},
        "kd_pt_sim": {0: 7.0, 1: 7.0},
        "plain": {0: 11.0, 1: 12.0},
    }
    outcome = Attribution(scores, higher_is_better=False)
    found = comparison(outcome, "kd_pt_sim", "kd_sim")
    assert found.interval.mean == pytest.approx(1.5)


def test_gains_are_of_the_seeds_that_both_have():
    ours, theirs = {0: 1.0, 1: 5.0, 3: 7.0, 4: 9.0}, {4: 2.0, 2: 0.0, 1: 4.0}
    gain = Attribution({"kd": ours, "plain": theirs}).gain("kd")
    assert gain == attribution.paired_interval([5.0 - 4.0, 9.0 - 2.0])


@pytest.mark.parametrize(
    ("spread", "verdict"), [(0.36, "inconclusive"), (0.25, "gain")]
)
def test_a_corrected_p_value_of_at_most_5_percent_survives(spread, verdict):
    """Of two comparisons, which a third without an interval isn't one of."""
    steps = np.array([1 - spread, 1.0, 1 + spread])
    scores = {
        method: dict(enumerate(0.5 + gain * steps))
        for method, gain in {"plain": 0.0, "kd": 0.1, "mine": 0.2}.items()
    }
    outcome = Attribution({**scores, "lonely": {0: 0.9}})
    p = 2 * 2 * scipy.stats.t.sf(math.sqrt(3) / spread, 2)
    assert (p <= 0.05) == (verdict == "gain") and p < 0.1
    for found in (outcome.comparison("kd"), outcome.comparison("mine")):
        assert found.interval.verdict == "gain"
        assert found.adjusted_p_value == pytest.approx(p)
        assert (found.verdict, found.comparisons) == (verdict, 2)
    assert outcome.to_dict()["comparisons"] == 2


def test_accuracies_in_percent_are_shown_as_they_are():
    scores = {"plain": {0: 71.0, 1: 71.5}, "kd": {0: 72.0, 1: 72.25}}
    outcome = Attribution(scores, "accuracy")
    rows = {row["method"]: row for row in outcome.method_rows()}
    assert rows["kd"]["gain over plain"].startswith("+0.9 [")
    assert float(rows["kd"]["mean accuracy"]) == pytest.approx(72.1, abs=0.05)


def test_means_have_the_digits_of_the_narrowest_interval():
    gains = {"plain": (0.0, 0.0), "kd": (0.01, 0.0101), "mine": (0.1, 0.3)}
    outcome = Attribution(
        {m: {0: 0.5 + a, 1: 0.5 + b} for m, (a, b) in gains.items()}
    )
    rows = {row["method"]: row for row in outcome.method_rows()}
    assert rows["kd"]["mean score"] == "0.51005"
    assert rows["mine"]["mean score"] == "0.70000"


def test_a_gain_of_a_control_too_is_not_laid_to_the_knowledge():
    outcome = outcome_of(
        {"kd_sim": 2.0, "kd_sim_permuted": 2.0, "kd_pt": 2.0}, noise=0.001
    )
    relations = next(f for f in outcome.findings if "Class rel" in f)
    rescaling = next(f for f in outcome.findings if "Rescal" in f)
    assert "whether the knowledge is why is inconclusive" in relations
    assert "shows that the knowledge is why" in rescaling


def test_findings_rest_on_what_survives_the_correction():
    """One of 20 comparisons excludes 0 by itself, and not after Holm."""
    random = np.random.default_rng(0)
    noise = random.normal(size=5)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    # t = 3 with 4 degrees of freedom: p is 0.040; t = 40: 2e-6.
    gains = {"label_smoothing": 3.0, "kd": 40.0}
    outcome = Attribution(
        {
            method: {
                seed: 50.0
                + noise[seed] * (method != "plain")
                + gains.get(method, 0.0) / math.sqrt(5)
                for seed in range(5)
            }
            for method in ("plain", "label_smoothing", "kd", "mine", "yours")
        }
    )
    smoothing = comparison(outcome, "label_smoothing", "plain")
    assert smoothing.interval.verdict == "gain"
    p = 2 * scipy.stats.t.sf(3, 4)
    assert smoothing.interval.p_value == pytest.approx(p)
    assert smoothing.adjusted_p_value == pytest.approx(3 * p)
    assert smoothing.verdict == "inconclusive"
    assert comparison(outcome, "kd", "plain").verdict == "gain"
    first, second = outcome.findings
    assert (
        "inconclusive, a gain by itself that does not survive the correction "
        "for 4 comparisons"
    ) in first
    assert "helped" in second
    rows = {row["method"]: row for row in outcome.method_rows()}
    assert rows["label_smoothing"]["verdict"] == "gain before correction"
    assert rows["label_smoothing"]["p"] == "0.040"
    assert rows["label_smoothing"]["p, Holm"] == "0.120"
    assert rows["kd"]["verdict"] == "gain"
    assert rows["kd"]["p"] == rows["kd"]["p, Holm"] == "<0.001"
    for words in (
        "Comparisons: 4; ",
        "each by itself: 2",
        "Holm's correction for 4: 1.",
        "another seed would change, and not another test set",
    ):
        assert words in outcome.note
    assert outcome.to_dict()["comparisons"] == 4


def test_all_that_is_told_of_a_comparison_has_one_verdict(tmp_path):
    """Each excludes 0 by itself (t = 4.81, p = 0.041), and none of two does."""
    steps = np.array([0.64, 1.0, 1.36])
    gains = {"plain": 0.0, "kd": 0.01, "mine": 0.02}
    outcome = Attribution(
        {
            method: dict(enumerate(0.9 + gain * steps))
            for method, gain in gains.items()
        },
        "accuracy",
        pairs=[("mine", "kd")],
    )
    p = 2 * scipy.stats.t.sf(math.sqrt(3) / 0.36, 2)
    assert 0.04 < p < 0.05
    assert [(c.method, c.baseline) for c in outcome.comparisons] == [
        ("kd", "plain"),
        ("mine", "plain"),
        ("mine", "kd"),
    ]
    assert outcome.comparison("mine", "kd").adjusted_p_value == pytest.approx(
        3 * p
    )
    # One that is not among them is corrected for as well.
    fewer = Attribution(outcome.scores, "accuracy")
    assert len(fewer.comparisons) == 2
    other = fewer.comparison("mine", "kd")
    assert other.comparisons == 3
    assert other.adjusted_p_value == pytest.approx(3 * p)
    whole = outcome.to_dict()
    (level,), (pair,) = whole["levels"], whole["pairs"]
    for told in (*whole["gains"].values(), level, pair):
        assert told["verdict"] == "inconclusive"
        assert told["adjusted_p_value"] == pytest.approx(3 * p)
    assert list(whole["gains"]) == ["kd", "mine"]
    assert "verdict" not in level["gain"] and "verdict" not in pair["gain"]
    outcome.to_tensorboard(tmp_path)
    events = read_events(tmp_path / "hparams" / "levels")
    tag = "all/kd_over_plain"
    assert scalars(events, f"{tag}/p_value") == [pytest.approx(p)]
    assert scalars(events, f"{tag}/adjusted_p_value") == [pytest.approx(3 * p)]


def test_two_seeds_that_agree_are_no_gain():
    """Of 360 images one more, with either seed; 32 bits hold it so."""
    scores = {
        "plain": {0: np.float32(355 / 360), 1: np.float32(353 / 360)},
        "kd": {0: np.float32(356 / 360), 1: np.float32(354 / 360)},
        "kd_topk": {0: np.float32(355 / 360), 1: np.float32(353 / 360 + 6e-8)},
    }
    outcome = Attribution(scores, "accuracy")
    assert outcome.gain("kd").verdict == "inconclusive"
    assert outcome.gain("kd_topk").mean == 0
    text = str(outcome)
    assert "kd against plain: +0.278 points with each of 2 seeds: inc" in text
    for never in ("+0 [", "e-0", "nan", "[+0.00278, +0.00278]"):
        assert never not in text


def test_what_has_no_interval_says_why():
    outcome = Attribution({"plain": {0: 0.5, 1: 0.5}, "kd": {0: 0.6, 1: 0.6}})
    assert "no intervals, as seeds agree exactly" in outcome.note
    assert "in common" not in outcome.note
    apart = Attribution({"plain": {0: 0.5, 1: 0.5}, "kd": {0: 0.6}})
    assert "No two methods have two seeds in common" in apart.note


def test_numbers_have_the_digits_that_they_deserve():
    outcome = attribute(Trainer(), 2, ["plain", "kd"], verbose=False)
    plain, kd_row = outcome.method_rows()
    gain = outcome.gain("kd")
    assert kd_row["mean accuracy, %"] in ("82", "83")
    assert kd_row["gain over plain, points"] == (
        f"+20 [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"
    )
    assert "kd against plain: +20 points (" in outcome.findings[0]


def test_a_lower_score_can_be_better():
    means = {"plain": 100.0, "kd": 90.0}
    lower = outcome_of(means, metric="perplexity", higher_is_better=False)
    assert lower.gain("kd").mean == pytest.approx(10, abs=0.1)
    assert lower.gain("kd").verdict == "gain"
    assert outcome_of(means).gain("kd").verdict == "loss"


def test_levels_without_their_methods_are_left_out():
    outcome = Attribution({"plain": {0: 1.0, 1: 2.0}, "kd": {0: 2.0, 1: 3.0}})
    assert [c.level.name for c in outcome.levels] == ["all"]
    assert [(c.method, c.baseline) for c in outcome.comparisons] == [
        ("kd", "plain")
    ]


def test_the_text_has_the_findings_and_both_tables():
    outcome = outcome_of({"kd": 3.0})
    text = outcome.to_markdown()
    assert str(outcome) == text
    findings, methods, levels, note = text.split("\n\n")
    assert note == outcome.note
    assert findings == "\n".join(f"- {each}" for each in outcome.findings)
    assert "All: kd against plain: +" in findings
    for table, rows in (
        (methods, outcome.method_rows()),
        (levels, outcome.level_rows()),
    ):
        header, rule, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in table.split("\n")
        )
        assert header == list(rows[0])
        assert all(set(cell) == {"-"} for cell in rule)
        assert lines == [list(row.values()) for row in rows]
        assert len({len(line) for line in table.split("\n")}) == 1
    assert [row["method"] for row in outcome.method_rows()] == list(
        attribution.METHODS
    )


def test_the_dict_is_json_and_has_no_nan():
    whole = outcome_of({"kd": 2.0}).to_dict()
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    lonely = Attribution({"plain": {0: 1.0}, "kd": {0: 2.0}}).to_dict()
    json.dumps(lonely, allow_nan=False)
    assert lonely["gains"]["kd"]["low"] is None
    assert lonely["gains"]["kd"]["p_value"] is None


def test_tensorboard_gets_a_row_for_each_run_and_the_levels(tmp_path):
    outcome = outcome_of({"kd": 2.0}, seeds=2, metric="accuracy")
    for _ in range(2):  # The second table replaces the first.
        outcome.to_tensorboard(tmp_path)
    runs = [p for p in (tmp_path / "hparams").iterdir() if p.is_dir()]
    assert len(runs) == 2 * len(attribution.METHODS) + 1
    events = read_events(tmp_path / "hparams" / "kd-1")
    score = outcome.scores["kd"][1]
    assert scalars(events, "accuracy") == [pytest.approx(score)]
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    content = metadata.plugin_data.content
    row = plugin_data_pb2.HParamsPluginData.FromString(content)
    hparams = row.session_start_info.hparams
    assert hparams["method"].string_value == "kd"
    assert hparams["seed"].number_value == 1
    levels = read_events(tmp_path / "hparams" / "levels")
    low = outcome.gain("kd").low
    tag = "all/kd_over_plain/low"
    assert scalars(levels, tag) == [pytest.approx(low, rel=1e-4)]


def test_the_levels_are_pictures_in_tensorboard(tmp_path):
    outcome_of({"kd": 2.0}, seeds=2).to_tensorboard(tmp_path)
    events = read_events(tmp_path / "hparams" / "levels")
    for name in ("gains_by_level", "gains_by_method"):
        width, height, png = tensor_util.make_ndarray(
            events.Tensors(name)[0].tensor_proto
        )
        assert int(width) > 100 and int(height) > 100
        assert png.startswith(b"\x89PNG")


class Reader(html.parser.HTMLParser):
    """The words of a page, and the addresses that it would load."""

    def __init__(self, page):
        super().__init__()
        self.words, self.addresses, self.open = [], [], []
        self.feed(page)
        self.words = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "srcset", "href") and value[:5] != "data:"
        ]

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_one_page_with_findings_tables_and_pictures(tmp_path):
    path = tmp_path / "report.html"
    outcome = outcome_of({"kd": 2.0, "kd_sim": 1.5}, metric="accuracy")
    outcome.save(path)
    page = Reader(path.read_text())
    assert not page.addresses
    assert page.open.count("figure") == 2
    assert page.words.index("Regularisation:") < page.words.index("Methods")
    for finding in outcome.findings:
        assert " ".join(finding.split()) in page.words
    for row in (*outcome.level_rows(), *outcome.method_rows()):
        for cell in row.values():
            assert cell in page.words
    with pytest.raises(FileExistsError):
        outcome.save(path)


def test_the_report_shows_why_where_the_runs_have_it(tmp_path):
    outcome = attribute(Trainer(), 2, ["plain", "kd"], verbose=False)
    outcome.save(tmp_path / "report.html")
    page = Reader((tmp_path / "report.html").read_text())
    assert page.open.count("figure") == 5
    for words in (
        "Learning curves, val_accuracy after each epoch",
        "How each method rescales the gradient",
        "sorted by superclass",
    ):
        assert words in page.words
    outcome.to_tensorboard(tmp_path)
    tags = read_events(tmp_path / "hparams" / "levels").Tags()["tensors"]
    assert {"learning_curves", "gradient_scale", "class_similarity"} <= set(
        tags
    )


def test_learning_curves_are_means_with_the_range_of_the_seeds():
    def train(method, seed):
        shift = 0.1 * (method == "kd")
        curve = [0.2 + shift + 0.1 * seed, 0.5 + shift, 0.6][: 3 - seed]
        return {"accuracy": 0.6, "history": {"val_accuracy": curve}}

    outcome = attribute(
        train, 2, ["plain", "kd"], metric="accuracy", verbose=False
    )
    figure, _ = pictures.of_training(outcome)["learning_curves"]
    (axes,) = figure.to_matplotlib().axes
    assert axes.get_title() == "kd"
    # Of the epochs that all seeds have.
    for line, expected in zip(axes.lines, ([25, 50], [35, 60]), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [1, 2])
        np.testing.assert_allclose(line.get_ydata(), expected)
    bands = [each.get_paths()[0].vertices[:, 1] for each in axes.collections]
    assert (bands[1].min(), bands[1].max()) == pytest.approx((30, 60))


def test_histograms_of_w_are_shares_of_each_epoch_over_all_seeds():
    def train(method, seed):
        counts = [[1 + 2 * seed, 1, 0], [0, 0, 4]]
        return {
            "score": 1.0,
            "gradient_scale": {"edges": [-1, 0, 1, 2], "counts": counts},
        }

    outcome = attribute(train, 2, ["plain", "kd"], verbose=False)
    figure, _ = pictures.of_training(outcome)["gradient_scale"]
    panel = figure.to_matplotlib().axes[1]
    assert panel.get_title() == "kd"
    shown = panel.images[0].get_array()
    np.testing.assert_allclose(shown, [[4 / 6, 2 / 6, 0], [0, 0, 1]])


@pytest.mark.parametrize("unshared", [0, 2])
def test_similarities_are_sorted_means_beside_the_teachers(unshared):
    """Those of the classes that both have, of which the first are shared."""
    random = np.random.default_rng(0)
    matrices = {}

    def matrix(classes=4):
        rows = random.normal(size=(classes, 3))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    def train(method, seed):
        matrices[method, seed] = matrix()
        return {"score": 1.0, "class_similarity": matrices[method, seed]}

    train.teacher_similarity = matrix(4 + unshared)
    teacher = train.teacher_similarity[:4, :4]
    train.superclasses = [1, 0, 1, 0]
    outcome = attribute(train, 2, ["plain", "kd"], verbose=False)
    figure, caption = pictures.of_training(outcome)["class_similarity"]
    axes = figure.to_matplotlib().axes
    order = np.ix_([1, 3, 0, 2], [1, 3, 0, 2])
    mean = (matrices["kd", 0] + matrices["kd", 1]) / 2
    np.testing.assert_allclose(axes[0].images[0].get_array(), teacher[order])
    np.testing.assert_allclose(axes[2].images[0].get_array(), mean[order])
    pairs = ~np.eye(4, dtype=bool)
    r = np.corrcoef(mean[pairs], teacher[pairs])[0, 1]
    assert axes[2].get_title() == f"kd, r = {r:.2f}"
    assert "sorted by superclass" in caption


def test_of_many_classes_some_are_shown_and_all_are_correlated():
    """The student's rows are the teacher's where they are shown."""
    random = np.random.default_rng(0)
    rows, others = random.normal(size=(2, 150, 3))
    others[::2] = rows[::2]
    teacher, own = (kd.similarity.class_similarity(r) for r in (rows, others))
    results = {"plain": {0: {"class_similarity": own.tolist()}}}
    outcome = Attribution(
        {"plain": {0: 1.0}}, results=results, teacher_similarity=teacher
    )
    figure, caption = pictures.of_training(outcome)["class_similarity"]
    axes = figure.to_matplotlib().axes
    assert axes[1].images[0].get_array().shape == (75, 75)
    pairs = ~np.eye(150, dtype=bool)
    r = np.corrcoef(own[pairs], teacher[pairs])[0, 1]
    assert axes[1].get_title() == f"plain, r = {r:.2f}" and r < 0.9
    assert "over all pairs of classes" in caption


@pytest.mark.parametrize("others", [1, 4])
def test_long_names_stay_above_their_own_panel(others):
    names = [f"a_loss_of_mine_with_a_name_as_long_{n}" for n in range(others)]
    outcome = attribute(Trainer(), 2, ["plain", *names], verbose=False)
    for figure, _ in pictures.of_training(outcome).values():
        drawn = figure.to_matplotlib()
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        boxes = [
            axes.title.get_window_extent(canvas.get_renderer())
            for axes in drawn.axes
            if axes.get_title()
        ]
        assert len(boxes) >= others
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert 0 <= box.x0 and box.x1 <= drawn.bbox.x1
            assert 0 <= box.y0 and box.y1 <= drawn.bbox.y1


def test_bars_that_do_not_survive_are_pale():
    outcome = outcome_of({"kd": 2.0, "kd_sim": 1.0}, noise=0.3)
    figure, _ = pictures.of_gains(outcome)["gains_by_method"]
    (axes,) = figure.to_matplotlib().axes
    survives = {
        c.method: c.verdict != "inconclusive"
        for c in outcome.comparisons
        if c.baseline == "plain"
    }
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert set(survives.values()) == {True, False}
    for name, bar in zip(names, axes.patches, strict=True):
        assert (bar.get_alpha() == 1) == survives[name]


def test_a_report_of_one_seed_says_so(tmp_path):
    outcome = Attribution({"plain": {0: 1.0}, "kd": {0: 2.0}})
    outcome.save(tmp_path / "report.html")
    page = Reader((tmp_path / "report.html").read_text())
    assert "inconclusive" in page.words
    assert "figure" not in page.open


def read_events(folder):
    assert len(list(folder.glob("events*"))) == 1
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    return events.Reload()


def scalars(events, tag):
    """TensorFlow 2 writes scalars as tensors."""
    return [
        float(tensor_util.make_ndarray(event.tensor_proto))
        for event in events.Tensors(tag)
    ]


def test_a_name_that_the_output_has_no_letters_for_ends_nothing(monkeypatch):
    """As on Windows, where a pipe has a hundred letters."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "cp1252"))
    found = kd.attribute(
        lambda method, seed: seed, seeds=2, methods=["plain", "知識"]
    )
    sys.stdout.flush()
    assert found.scores["知識"] == {0: 0.0, 1: 1.0}
    assert rb"seed 2/2 \u77e5\u8b58: score" in raw.getvalue()


def test_a_comparison_the_other_way_round_is_the_same_test():
    """One test, which Holm's correction counts once, as SciPy has it."""
    plain, ours = [1.0, 2.0, 3.0, 4.0], [1.4, 2.7, 3.2, 4.6]
    outcome = kd.attribution.Attribution(
        {"plain": dict(enumerate(plain)), "kd": dict(enumerate(ours))}
    )
    p_value = scipy.stats.ttest_rel(ours, plain).pvalue
    there = outcome.comparison("kd")
    back = outcome.comparison("plain", "kd")
    assert there.adjusted_p_value == pytest.approx(p_value)
    assert back.adjusted_p_value == pytest.approx(p_value)
    assert back.comparisons == 1
    assert (there.verdict, back.verdict) == ("gain", "loss")
    assert back.interval.mean == pytest.approx(-there.interval.mean)
