"""Trains, caches and diagnoses on one backend, and nothing loads TensorFlow.

    KERAS_BACKEND=jax python tests/backends/without_tensorflow.py FOLDER

`test_import.py` starts it; the folder is empty. On JAX the recipe of one GPU
trains as well.
"""

import pathlib
import sys

import inputs
import keras
from compute import make_loss
from compute import mlp as mlp_of
from models import assert_same_weights, data, mlp, weights_of

import keras_kd as kd

ROOT = pathlib.Path(__file__).parents[2]


def main(folder):
    train_beside_tensorflow()
    # From here on importing it fails.
    sys.modules["tensorflow"] = None
    train_from_a_cache_of_arrays(f"{folder}/cache")
    if keras.backend.backend() == "jax":
        train_by_the_recipe_of_one_gpu(pathlib.Path(folder))
    assert not [name for name in sys.modules if name.startswith("tensorflow.")]


def train_beside_tensorflow():
    """It is installed, but neither the package nor training loads it."""
    given = inputs.arrays()
    assert "tensorflow" not in sys.modules
    student, teacher = (mlp_of(given[role]) for role in ("student", "teacher"))
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", make_loss("kd_pt", given))
    distiller.fit(given["x"], given["labels"], verbose=0)
    distiller.evaluate(given["x"], given["labels"], verbose=0)
    distiller.predict(given["x"], verbose=0)
    assert "tensorflow" not in sys.modules


def train_from_a_cache_of_arrays(path):
    """From what is attached, and looked up, as with the teacher at hand."""
    x, labels, _ = data(30)
    teacher = mlp(12, seed=5)
    loss = kd.KDTopK(k=3)
    kd.TeacherCache.write(
        path, (x, labels), teacher, [loss, kd.KDPt()], dtype="float32"
    )
    opened = kd.TeacherCache(path)
    errors = opened.verify((x, labels), teacher).largest_errors
    assert errors["top_gaps"] < 1e-5
    trained = []
    for given in (
        (opened.attach((x, labels), loss, batch_size=8),),
        (x, {"labels": labels, **opened.statistics(slice(None), loss)}),
        (x, labels),
    ):
        distiller = kd.Distiller(mlp(), teacher)
        distiller.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
        more = {} if len(given) == 1 else {"batch_size": 8}
        distiller.fit(*given, epochs=2, shuffle=False, verbose=0, **more)
        trained.append(weights_of(distiller.student))
    assert_same_weights(trained[0], trained[2], 1e-5)
    assert_same_weights(trained[1], trained[2], 1e-5)
    diagnosis = kd.diagnose(teacher, (x, labels))
    assert diagnosis.numbers["data"]["examples"] == 30


def train_by_the_recipe_of_one_gpu(folder):
    """Small, on a text; the benchmark of a GPU can be imported too."""
    sys.path += [str(ROOT / "recipes"), str(ROOT / "tools")]
    import benchmark_gpu  # noqa: F401
    import one_gpu

    (folder / "ptb").mkdir()
    for part in ("train", "valid", "test"):
        text = f" {part} is a text of words \n" * 30
        (folder / "ptb" / f"ptb.{part}.txt").write_text(text)
    arguments = ["ptb", f"{folder}/study", "--data-dir", f"{folder}/ptb"]
    for role in ("student", "teacher"):
        arguments += [f"--{role}-units", "4", f"--{role}-layers", "1"]
    arguments += ["--epochs", "1", "--teacher-epochs", "1", "--seeds", "2"]
    arguments += ["--time-steps", "5", "--batch-size", "2"]
    arguments += ["--method", "plain", "--method", "kd_pt"]
    one_gpu.main(arguments, standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1])
