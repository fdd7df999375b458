"""An epoch as one program against `fit`, the recipe that trains by it, the
memory of compiled losses, and the benchmark of a GPU.

Run by name, where Keras is on JAX.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import json

import benchmark_chunks
import benchmark_gpu
import keras
import measure_memory_jax
import networks
import numpy as np
import one_gpu
import pytest
from click.testing import CliRunner
from data import text
from keras import layers
from models import one_block
from study.epoch_program import EpochProgram, Outputs, crop_and_flip, shuffled
from study.gpu_images import Images

import keras_kd as kd
from keras_kd.states import state_variables
from keras_kd.student_trainer.progress import StartFromZero

EPOCHS, BATCH = 3, 8


def image_model(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(9, "relu")(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def text_model(seed):
    keras.utils.set_random_seed(seed)
    return networks.lstm_language_model(11, 6, 2, 0.2, (4, 5))


def compiled(make, loss):
    distiller = kd.Distiller(make(1), make(2))
    distiller.compile(keras.optimizers.SGD(0.2, momentum=0.9), loss)
    return distiller


def by_fit(distiller, batches):
    """Trains on batches in order, from state zero in each epoch."""
    models = distiller.student, distiller.teacher
    history = distiller.fit(
        Batches(batches),
        epochs=EPOCHS,
        verbose=0,
        shuffle=False,
        callbacks=[StartFromZero(*models)],
    )
    return history.history


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches[0])

    def __getitem__(self, index):
        return tuple(each[index] for each in self._batches)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("image", kd.KDPtSim()), ("text", kd.KDPt())],
)
def test_epochs_end_where_those_of_fit_do(kind, loss):
    rng = np.random.default_rng(0)
    if kind == "image":
        make = image_model
        x = rng.normal(size=(4, BATCH, 6)).astype("float32")
        batches = x, rng.integers(0, 5, (4, BATCH))
    else:
        make = text_model
        x, y = rng.integers(0, 11, (2, 6, 4, 5)).astype("int32")
        batches = x, y, (rng.random((6, 4, 5)) < 0.8).astype("float32")
    expected = compiled(make, type(loss).from_config(loss.get_config()))
    history = by_fit(expected, batches)

    distiller = compiled(make, loss)
    arrays = dict(enumerate(batches))
    order = np.arange(len(x))

    def draw(arrays, epoch, index):
        del epoch
        return tuple(arrays[i][index] for i in range(len(arrays)))

    program = EpochProgram(distiller, arrays, draw, 0)
    for epoch in range(EPOCHS):
        logs = program.train(epoch, order)
        for name, value in logs.items():
            np.testing.assert_allclose(
                value, history[name][epoch], rtol=2e-5, err_msg=name
            )
    for mine, theirs in zip(
        distiller.student.get_weights(),
        expected.student.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    histograms = [
        each.gradient_scales["all"].summary()["histogram"]
        for each in (distiller, expected)
    ]
    np.testing.assert_array_equal(*histograms)


def test_invalid_examples_are_refused():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, BATCH, 6)).astype("float32")
    x[1, 3] = np.nan
    distiller = compiled(image_model, kd.KD())

    def draw(arrays, epoch, index):
        return arrays["x"][index], arrays["y"][index]

    arrays = {"x": x, "y": np.zeros((2, BATCH), "int32")}
    program = EpochProgram(distiller, arrays, draw, 0)
    with pytest.raises(ValueError, match="not finite"):
        program.train(0, np.arange(2))


def test_outputs_are_those_of_the_model_from_state_zero():
    model = text_model(3)
    x = np.random.default_rng(0).integers(0, 11, (3, 4, 5)).astype("int32")
    outputs = Outputs(
        model, lambda z, batch: z, lambda arrays, i: (arrays["x"][i],)
    )
    for variable in state_variables(model):
        variable.assign(np.ones(variable.shape))
    found = outputs({"x": x}, np.arange(3))
    for variable in state_variables(model):
        variable.assign(np.zeros(variable.shape))
    for batch, expected in zip(x, found, strict=True):
        np.testing.assert_allclose(
            model(batch, training=False), expected, atol=1e-5
        )


def test_crops_are_parts_of_the_padded_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (4, 12, 12, 3), "uint8")
    places = np.array([[0, 8, 0], [3, 1, 1], [8, 8, 0], [0, 0, 1]], "uint8")
    found = np.asarray(crop_and_flip(images, places, 4))
    assert found.dtype == "float32"
    for image, (top, left, flip), crop in zip(
        images, places, found, strict=True
    ):
        expected = image[top : top + 4, left : left + 4]
        if flip:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(crop, expected)


def test_an_order_has_each_position_once():
    orders = shuffled(11, 3, seed=0)
    first, second = next(orders), next(orders)
    assert first.shape == (3, 3)
    assert len(np.unique(first)) == 9
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, next(shuffled(11, 3, seed=0)))


# -- the recipe ----------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Paths of packed images of 8 by 8 pixels and of a teacher."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "cifar100.npz",
        train_x=rng.integers(0, 256, (64, 8, 8, 3), "uint8"),
        train_y=np.arange(64, dtype="int32") % 7,
        test_x=rng.integers(0, 256, (20, 8, 8, 3), "uint8"),
        test_y=np.arange(20, dtype="int32") % 7,
        superclasses=np.arange(100, dtype="int32") // 5,
    )
    keras.utils.set_random_seed(0)
    networks.cifar_resnet(
        8, (8, 8, 3), 100, networks.CIFAR100_MEAN, networks.CIFAR100_DEVIATION
    ).save(folder / "teacher.keras")
    return folder


@pytest.fixture
def small_networks(monkeypatch):
    monkeypatch.setattr(networks, "cifar_resnet", one_block)


def run(*arguments):
    result = CliRunner().invoke(one_gpu.main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def small_texts(folder):
    """Options of language models of 8 words that are written to a folder."""
    rng = np.random.default_rng(0)
    for part in ("train", "valid", "test"):
        words = " ".join(f"w{i}" for i in rng.integers(0, 9, 130))
        (folder / f"{part}.txt").write_text(f"{words}\n")
    return (
        *("--data-dir", folder, "--vocabulary", 8, "--learning-rate", 1),
        *("--teacher-units", 4, "--student-units", 4, "--teacher-epochs", 1),
        *("--batch-size", 4, "--time-steps", 5),
    )


def refusal(*arguments):
    result = CliRunner().invoke(one_gpu.main, [str(a) for a in arguments])
    assert result.exit_code
    return " ".join(result.output.split())


def test_bad_options_are_refused_before_anything_is_made(images, tmp_path):
    arguments = [
        *("cifar100", tmp_path / "study", "--data", images / "cifar100.npz"),
        *("--teacher", images / "teacher.keras", "--batch-size", 16),
    ]
    for more, words in (
        (("--part", "5/4"), "Received: '5/4'"),
        (("--method", "kd_seen", "--method", "kt"), "Received: ['kt']"),
        (("--batch-size", 33), "Received: --batch-size 33 for 64 images"),
        (("--prepare", "--part", "1/2"), "--prepare and --part 1/2"),
    ):
        assert words in refusal(*arguments, *more)
    one_word = "ptb", tmp_path / "study", "--vocabulary", 1
    assert "1 is not in the range x>=2" in refusal(*one_word)
    assert not (tmp_path / "study").exists()
    run(*arguments, "--prepare", "--method", "plain")
    assert "another study" in refusal(*arguments, "--epochs", 29, "--prepare")


@pytest.mark.usefixtures("small_networks")
def test_parts_of_a_study_make_its_report(images, tmp_path):
    arguments = [
        *("cifar100", tmp_path, "--data", images / "cifar100.npz"),
        *("--teacher", images / "teacher.keras", "--seeds", 2, "--epochs", 2),
        *("--views", 1, "--depth", 8, "--half-depth", 8, "--batch-size", 16),
        *("--method", "plain", "--method", "kd_held_out"),
    ]
    run(*arguments, "--prepare")
    assert not list(tmp_path.glob("attribution/run-*"))
    # Students in turn: of each seed both methods.
    first, second = (run(*arguments, "--part", f"{i}/3") for i in (1, 2))
    assert "plain, seed 0: " in first and "kd_held_out, seed 1: " in first
    assert "kd_held_out-0, epoch 2: accuracy 0." in second
    assert "plain, seed 1: " in run(*arguments, "--part", "3/3")
    trained = sorted(
        path.stat().st_mtime_ns for path in tmp_path.glob("attribution/run-*")
    )
    assert len(trained) == 4
    assert "| kd_held_out |" in run(*arguments)
    assert trained == sorted(
        path.stat().st_mtime_ns for path in tmp_path.glob("attribution/run-*")
    )
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["gain"] == "top-1 %"
    for method, row in study["rows"].items():
        for seed, score in enumerate(row["top-1 %"]):
            path = tmp_path / "attribution" / f"run-{method}-{seed}.json"
            found = json.loads(path.read_text())["results"]["examples"]
            assert score == pytest.approx(100 * np.mean(found), abs=1e-3)
    _check_halves(images, tmp_path)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("command", ["cifar100", "ptb"])
def test_a_killed_student_is_that_of_an_undisturbed_run(
    command, images, tmp_path, monkeypatch
):
    options = ["--method", "plain", "--method", "kd_pt"]
    options += ["--seeds", 2, "--epochs", 3]
    if command == "ptb":
        options += small_texts(tmp_path)
    else:
        options += ["--data", images / "cifar100.npz", "--batch-size", 16]
        options += ["--teacher", images / "teacher.keras", "--depth", 8]
    undisturbed, killed = (
        [command, tmp_path / name, *options] for name in ("whole", "killed")
    )
    for arguments in (undisturbed, killed):
        run(*arguments, "--prepare")
    run(*undisturbed, "--part", "2/4")
    train, epochs = EpochProgram.train, []

    def train_until_killed(self, *given):
        epochs.append(given)
        if len(epochs) == 3:
            raise SystemExit(9)
        return train(self, *given)

    monkeypatch.setattr(EpochProgram, "train", train_until_killed)
    refusal(*killed, "--part", "2/4")
    assert "kd_pt-0, epoch 3: " in run(*killed, "--part", "2/4")
    assert len(epochs) == 4
    expected, found = (
        json.loads((folder / "attribution" / "run-kd_pt-0.json").read_text())[
            "results"
        ]
        for _, folder, *_ in (undisturbed, killed)
    )
    assert len(expected["history"]["loss"]) == 3
    assert found == expected
    assert not list(tmp_path.glob("killed/shared/*-backup"))


def test_all_networks_but_the_teacher_have_the_dtype(
    images, tmp_path, monkeypatch
):
    """Of two halves the second is trained as the first is."""
    of_half = Images._half
    monkeypatch.setattr(Images, "_half", lambda images, _: of_half(images, 0))
    run(
        *("cifar100", tmp_path, "--data", images / "cifar100.npz"),
        *("--teacher", images / "teacher.keras", "--epochs", 1),
        *("--half-depth", 8, "--batch-size", 16, "--prepare"),
        *("--dtype", "mixed_bfloat16", "--method", "kd_seen"),
    )
    assert keras.config.dtype_policy().name == "float32"
    for path, expected in (
        (images / "teacher.keras", {"float32"}),
        # The logits are float32 all the same.
        (tmp_path / "shared/half-0.keras", {"float32", "mixed_bfloat16"}),
    ):
        layers_ = keras.models.load_model(path).layers
        assert {each.dtype_policy.name for each in layers_} == expected


def _check_halves(images, folder):
    """Images of a half have the logits of the other half's teacher."""
    packed = np.load(images / "cifar100.npz")
    padded = np.pad(packed["train_x"], [(0, 0), (4, 4), (4, 4), (0, 0)])
    places = np.random.default_rng(0).integers(0, 9, (1, 64, 3), "uint8")
    kept = np.load(folder / "shared" / "logits_held_out.npy")
    assert kept.shape == (1, 64, 100)
    for half in (0, 1):
        teacher = keras.models.load_model(folder / f"shared/half-{half}.keras")
        others = np.arange(1 - half, 64, 2)
        # With and without the mirror, of which one is the view.
        crops = np.stack(
            [
                padded[i, top : top + 8, left : left + 8]
                for i in others
                for top, left, _ in [places[0, i]]
            ]
        )
        found = []
        for view in (crops, crops[:, :, ::-1]):
            logits = teacher.predict(view.astype("float32"), verbose=0)
            found.append(logits - logits.max(-1, keepdims=True))
        distances = [np.abs(z - kept[0, others]).max(-1) for z in found]
        assert np.min(distances, 0).max() < 5e-3
        assert np.max(distances, 0).max() > 5e-3


def test_perplexities_are_those_of_the_whole_text(tmp_path):
    folder = tmp_path / "study"
    run(
        *("ptb", folder, *small_texts(tmp_path), "--epochs", 2),
        *("--seeds", 2, "--method", "plain", "--method", "kd"),
    )
    teacher = keras.models.load_model(folder / "shared" / "teacher.keras")
    about = json.loads((folder / "shared" / "teacher.json").read_text())
    corpus = text.load(tmp_path, False, None, 8)
    x, y, weight = text.streams(corpus.test, 4, 5)
    assert weight.sum() == len(corpus.test) - 1
    logits = np.stack([np.asarray(teacher(each)) for each in x])
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    expected = np.exp(-(chosen * weight).sum() / weight.sum())
    assert about["test_perplexity"] == pytest.approx(expected, rel=1e-4)
    runs = folder.glob("attribution/run-*.json")
    for results in (json.loads(path.read_text())["results"] for path in runs):
        mean = np.mean(results["examples"])
        assert results["test_perplexity"] == pytest.approx(np.exp(mean))
        assert len(results["history"]["val_perplexity"]) == 2


# -- what compiled programs need ----------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["label_smoothing", "kd_pt", "kd_pt, T = 2", "kd_topk, k = 25"],
)
def test_a_loss_makes_no_array_of_all_classes_but_its_gradient(name):
    arrays = measure_memory_jax.temporary_arrays(name, 3000, 64)
    assert arrays < 1.1


# -- the benchmark of a GPU, whose steps are programs too ----------------------


def benchmarked(*arguments):
    """Rows of the table, by step and chunks; it says where it ran."""
    sizes = "--classes", 300, "--tokens", 64, "--features", 8, "--rounds", 2
    arguments = [str(each) for each in (*sizes, "--markdown", *arguments)]
    result = CliRunner().invoke(benchmark_gpu.main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("jax on cpu\n")
    lines = [line for line in result.output.splitlines() if line[:1] == "|"]
    cells = [[each.strip() for each in row.split("|")[1:-1]] for row in lines]
    return {
        tuple(row[:2]): dict(zip(cells[0], row, strict=True))
        for row in cells[2:]
    }


def test_the_benchmark_of_a_gpu_has_memory_and_times():
    case = "cached kd_pt"
    rows = benchmarked("--case", case, "--chunks", 0, "--chunks", 8)
    assert list(rows) == [
        (benchmark_chunks.PLAIN, "none"),
        (case, "none"),
        (case, "8"),
    ]
    peaks = [
        benchmark_chunks.memory_in_process(name, chunks, (300, 64, 8))
        for name, chunks in ((None, 0), (case, 0), (case, 8))
    ]
    for row, peak in zip(rows.values(), peaks, strict=True):
        assert float(row["of plain's"]) == pytest.approx(
            peak / peaks[0], abs=0.01
        )
        assert float(row["ms"]) > 0


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    make = benchmark_gpu.make_step

    def make_step(name, *arguments):
        if name == "online kd":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return make(name, *arguments)

    monkeypatch.setattr(benchmark_gpu, "make_step", make_step)
    rows = benchmarked("--case", "online kd", "--chunks", 0)
    assert rows["online kd", "none"]["GB"] == "out of memory"


def test_the_steps_of_the_benchmark_train():
    """Each begins where the last one ended."""
    sizes = 300, 64, 8
    trainer, x, y = benchmark_chunks.make_trainer("cached kd_pt", 4, sizes)
    program, state, data = benchmark_chunks.compiled_step(trainer, x, y)
    weights = [np.array(state[0][0])]
    for _ in range(2):
        _, state = program(state, data)
        weights.append(np.array(state[0][0]))
    expected, x, y = benchmark_chunks.make_trainer("cached kd_pt", 4, sizes)
    for after in weights[1:]:
        expected.train_on_batch(x, y)
        kernel = expected.student.get_weights()[0]
        np.testing.assert_allclose(after, kernel, atol=1e-6)
    assert np.abs(weights[2] - weights[1]).max() > 1e-6
