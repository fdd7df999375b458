"""The README's Python, block after block, as a reader would type it."""

import keras
import numpy as np
import readme
import tensorflow as tf
from models import data, mlp

import keras_kd as kd


def batches(seed):
    x, labels, _ = data(64, seed)
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = readme.blocks()
    trained = []

    def train_student(self, method, seed):
        trained.append((method, seed))
        return {"accuracy": float(np.random.default_rng(seed).uniform())}

    # Ten epochs of every method and seed: test_student_trainer.py trains.
    monkeypatch.setattr(kd.StudentTrainer, "__call__", train_student)

    names = {
        "student": mlp(seed=1),
        "teacher": mlp(12, seed=2),
        "train": batches(0),
        "test": batches(1),
        "validation": batches(2),
        "make_student": mlp,
    }
    assert len(code) == 5
    x = data(8)[0]
    for number, block in enumerate(code):
        exec(block, names)
        if number == 0:
            saved = keras.models.load_model(tmp_path / "student.keras")
            np.testing.assert_array_equal(saved(x), names["student"](x))

    # Its own loss trains, and what it says it writes is there.
    names["distiller"] = names["kd"].Distiller(mlp(seed=1), names["teacher"])
    names["distiller"].compile("adam", names["KDTop1"]())
    history = names["distiller"].fit(names["train"], verbose=0)
    assert np.isfinite(history.history["distillation"]).all()
    assert list((tmp_path / "logs" / "train").iterdir())
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert ("plain", 4) in trained and ("kd_sim_permuted", 0) in trained
    assert "inconclusive" in str(names["attribution"])


def test_it_is_no_longer_than_a_newcomer_reads():
    assert len(readme.PATH.read_text().splitlines()) <= 200
