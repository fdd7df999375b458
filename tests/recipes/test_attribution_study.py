"""`--attribute` in the recipes, whole and small, as a user starts it."""

import functools

import numpy as np
import processes
import pytest
import study
import tensorstore
from processes import losses, results

RECIPE = "ptb_lstm.py"
METHODS = ("label_smoothing", "kd_pt", "kd_sim", *study.CONTROLS)
ARGUMENTS = (
    *"--vocabulary 60 --teacher-units 8 --student-units 4 --epochs 1".split(),
    *"--teacher-epochs 2 --batch-size 8 --time-steps 10".split(),
    *"--log-dir run --attribute".split(),
    *losses(*METHODS),
)
run = functools.partial(processes.run, RECIPE)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    arguments = (*ARGUMENTS, "--data-dir", text, "--seed", 3)
    return folder, arguments, run(folder, *arguments, "--seeds", 2)


def test_every_method_has_each_seed_and_gains_are_their_differences(finished):
    folder, _, process = finished
    found = results(folder / "run")
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
        assert f"{np.mean(gains):+.3g} [" in process.stdout, name
    assert "inconclusive" in process.stdout
    page = (folder / "run" / "attribution.html").read_text()
    assert "kd_pt_shuffled" in page and "<svg" in page
    assert (folder / "run" / "diagnosis.html").exists()
    for name in ("hparams", "diagnosis"):
        logs = folder / "run" / "tensorboard" / name
        assert any(logs.rglob("*tfevents*"))


def test_more_seeds_are_added_and_finished_runs_kept(finished):
    folder, arguments, _ = finished
    before = results(folder / "run")
    process = run(folder, *arguments, "--seeds", 3)
    after = results(folder / "run")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1 + len(METHODS)
    assert "seed4" not in process.stdout and "seed5" in process.stdout
    assert (folder / "run" / "attribution.html").exists()
    assert (folder / "run" / "attribution-2.html").exists()
    assert not (folder / "run" / "diagnosis-2.html").exists()


def test_nothing_is_started_that_does_not_fit_the_time(finished):
    folder, arguments, _ = finished
    before = results(folder / "run")
    process = run(folder, *arguments, "--seeds", 9, "--time-budget", 0.001)
    assert results(folder / "run") == before
    assert "time budget ended" in process.stdout


def statistics(cache):
    """[segments, time]: the one number that a cache keeps of each token."""
    (path,) = cache.glob("label_log_odds_*")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.array(tensorstore.open(spec).result())[0]


def test_the_shuffled_control_has_the_same_confidences_in_each_class(
    finished, text
):
    folder, _, _ = finished
    import text_data

    corpus = text_data.load(data_dir=text, vocabulary_size=60)
    segments = text_data.segments(corpus.train, 8, 10)
    labels = np.concatenate([y for _, y, _ in segments])
    one, other = (
        statistics(folder / "run" / name)
        for name in ("cache", "cache-shuffled")
    )
    assert not np.array_equal(one, other)
    for label in np.unique(labels):
        np.testing.assert_array_equal(
            np.sort(one[labels == label]), np.sort(other[labels == label])
        )


def test_the_shuffled_control_needs_a_cache(text, tmp_path):
    process = run(
        tmp_path,
        *("--data-dir", text, "--loss", study.SHUFFLED),
        check=False,
    )
    assert process.returncode != 0
    assert "Pass a folder for it" in process.stderr
    assert "Traceback" not in process.stderr
