"""`--attribute` in the recipes, whole and small."""

import functools
import json
import re

import keras
import numpy as np
import processes
import ptb_lstm
import pytest
import tensorstore
from data import text as text_data
from processes import losses

from keras_kd.attribution.methods import SHUFFLED

ARGUMENTS = (
    *"--vocabulary 60 --teacher-units 8 --student-units 4 --epochs 1".split(),
    *"--teacher-epochs 2 --batch-size 8 --time-steps 10 --seed 3".split(),
    *("--attribute", *losses(SHUFFLED)),
)
finish = functools.partial(processes.finish, ptb_lstm)


def students(folder):
    """By method and seed the results of the students."""
    found = {}
    for path in (folder / "students").glob("*.result.json"):
        method, seed = path.name.split("-")[:2]
        found[method, int(seed.split(".")[0][4:])] = json.loads(
            path.read_text()
        )
    return found


def test_a_student_is_measured_on_the_test_text(finished, text):
    """Recomputed word by word, each row of a segment an example."""
    folder = finished[0]
    (path,) = (folder / "students").glob(f"{SHUFFLED}-seed4*.keras")
    model = keras.models.load_model(path, compile=False)
    corpus = text_data.load(data_dir=text, vocabulary_size=60)
    surprise, count = [], []
    for x, y, weight in text_data.segments(corpus.test, 8, 10):
        logits = np.array(model(x), "float64")
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logits, y.numpy()[..., None], -1)[..., 0]
        surprise += (-picked * weight.numpy()).sum(1).tolist()
        count += weight.numpy().sum(1).tolist()
    result = students(folder)[SHUFFLED, 4]
    mean = sum(surprise) / sum(count)
    assert result["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
    counted = np.array(count) > 0
    np.testing.assert_allclose(
        np.array(result["examples"]) * np.mean(np.array(count)[counted]),
        np.array(surprise)[counted],
        rtol=1e-3,
    )
    logs = folder / "tensorboard" / path.stem
    assert any(logs.rglob("*tfevents*"))


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "run"
    arguments = (*ARGUMENTS, "--data-dir", text, "--log-dir", folder)
    return folder, arguments, finish(*arguments, "--seeds", 2)


def test_every_method_has_each_seed_and_gains_are_their_differences(finished):
    folder, _, output = finished
    found = students(folder)
    methods_run = ("plain", SHUFFLED)
    assert set(found) == {(name, s) for name in methods_run for s in (3, 4)}
    gains = [
        found["plain", seed]["perplexity"] - found[SHUFFLED, seed]["perplexity"]
        for seed in (3, 4)
    ]
    row, *_ = re.findall(rf"\| {SHUFFLED} +\|.*", output)
    (shown,) = re.findall(r"([+-][\d.]+) \[", row)
    digits = len(shown.partition(".")[2])
    assert float(shown) == pytest.approx(np.mean(gains), abs=0.51 * 10**-digits)
    assert "inconclusive" in output
    page = (folder / "attribution.html").read_text()
    assert "kd_pt_shuffled" in page and "svg" in page
    assert (folder / "diagnosis.html").exists()
    for name in ("hparams", "diagnosis"):
        logs = folder / "tensorboard" / name
        assert any(logs.rglob("*tfevents*"))


def test_more_seeds_are_added_and_finished_runs_kept(finished):
    folder, arguments, _ = finished
    before = students(folder)
    output = finish(*arguments, "--seeds", 3)
    after = students(folder)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert "seed 4" not in output and "plain, seed 5" in output
    assert (folder / "attribution.html").exists()
    assert (folder / "attribution-2.html").exists()
    assert not (folder / "diagnosis-2.html").exists()


def test_nothing_is_started_that_does_not_fit_the_time(finished):
    folder, arguments, _ = finished
    before = students(folder)
    output = finish(*arguments, "--seeds", 9, "--time-budget", 0.001)
    assert students(folder) == before
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
    one, other = (
        statistics(finished[0] / each)
        for each in (f"cache-{SHUFFLED}", "students/cache-shuffled")
    )
    assert not np.array_equal(one, other)
    for label in np.unique(labels):
        np.testing.assert_array_equal(
            np.sort(one[labels == label]), np.sort(other[labels == label])
        )
