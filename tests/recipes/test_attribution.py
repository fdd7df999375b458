"""`--attribute` in the recipes, whole and small."""

import functools

import numpy as np
import processes
import ptb_lstm
import pytest
import tensorstore
from data import text as text_data
from processes import losses, results
from study import methods

from keras_kd.attribution import paired_interval
from keras_kd.reports import numbers

METHODS = ("kd_pt", "kd_sim", *methods.CONTROLS)
ARGUMENTS = (
    *"--vocabulary 60 --teacher-units 8 --student-units 4 --epochs 1".split(),
    *"--teacher-epochs 2 --batch-size 8 --time-steps 10 --seed 3".split(),
    *("--attribute", *losses(*METHODS)),
)
finish = functools.partial(processes.finish, ptb_lstm)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "run"
    arguments = (*ARGUMENTS, "--data-dir", text, "--log-dir", folder)
    return folder, arguments, finish(*arguments, "--seeds", 2)


def test_every_method_has_each_seed_and_gains_are_their_differences(finished):
    folder, _, output = finished
    found = results(folder)
    names = {
        f"student-{name}-seed{seed}"
        for name in ("plain", *METHODS)
        for seed in (3, 4)
    }
    assert set(found) == {"teacher", *names}
    for name in METHODS:
        gains = [
            found[f"student-plain-seed{seed}"]["test_perplexity"]
            - found[f"student-{name}-seed{seed}"]["test_perplexity"]
            for seed in (3, 4)
        ]
        gain = paired_interval(gains)
        shown = numbers.PLAIN.span(gain.mean, gain.low, gain.high)
        assert f"| {shown} " in output, name
    assert "inconclusive" in output
    page = (folder / "attribution.html").read_text()
    assert "kd_pt_shuffled" in page and "svg" in page
    assert (folder / "diagnosis.html").exists()
    for name in ("hparams", "diagnosis"):
        logs = folder / "tensorboard" / name
        assert any(logs.rglob("*tfevents*"))


def test_more_seeds_are_added_and_finished_runs_kept(finished):
    folder, arguments, _ = finished
    before = results(folder)
    output = finish(*arguments, "--seeds", 3)
    after = results(folder)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1 + len(METHODS)
    assert "seed4" not in output and "seed5" in output
    assert (folder / "attribution.html").exists()
    assert (folder / "attribution-2.html").exists()
    assert not (folder / "diagnosis-2.html").exists()


def test_nothing_is_started_that_does_not_fit_the_time(finished):
    folder, arguments, _ = finished
    before = results(folder)
    output = finish(*arguments, "--seeds", 9, "--time-budget", 0.001)
    assert results(folder) == before
    assert "time budget" in output


def statistics(cache):
    """[segments, time]: the one number that a cache keeps of each token."""
    (path,) = cache.glob("label_log_odds_*")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.array(tensorstore.open(spec).result())[0]


def test_the_shuffled_control_has_the_same_confidences_in_each_class(
    finished, text
):
    corpus = text_data.load(data_dir=text, vocabulary_size=60)
    segments = text_data.segments(corpus.train, 8, 10)
    labels = np.concatenate([y for _, y, _ in segments])
    name = "-".join(["cache", *sorted({"kd_pt", methods.SHUFFLED})])
    one, other = (
        statistics(finished[0] / each) for each in (name, f"{name}-shuffled")
    )
    assert not np.array_equal(one, other)
    for label in np.unique(labels):
        np.testing.assert_array_equal(
            np.sort(one[labels == label]), np.sort(other[labels == label])
        )
