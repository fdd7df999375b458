"""Imported EfficientNet-Lites, against the same network written out."""

import sys

import import_efficientnet_lite as tool
import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

# A small one in the same layout: blocks and filters of each stage.
REPEATS, FILTERS, SIZE = (1, 2, 1, 1, 1, 1, 1), (8, 8, 8, 16, 16, 8, 24), 32
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(
        networks, "LITE", {"EfficientNetLite0": (REPEATS, FILTERS, SIZE, 0.2)}
    )


def blocks(repeats=REPEATS, filters=FILTERS):
    """Of each block (kernel, stride, expansion, filters in, filters out)."""
    wide_in = 32
    for stage, (count, wide_out) in enumerate(
        zip(repeats, filters, strict=True)
    ):
        for i in range(count):
            stride = STRIDES[stage] if i == 0 else 1
            yield KERNELS[stage], stride, 6 if stage else 1, wide_in, wide_out
            wide_in = wide_out


def random_arrays(repeats=REPEATS, filters=FILTERS, classes=7):
    """A trained network's arrays, by PyTorch's names and in its order."""
    random = np.random.default_rng(0)
    arrays = {}

    def convolution(name, wide_out, wide_in, size):
        shape = (wide_out, wide_in, size, size)
        spread = np.sqrt(2 / (wide_in * size * size))
        arrays[f"{name}.weight"] = random.normal(0, spread, shape)

    def batch_norm(name, width):
        arrays[f"{name}.weight"] = random.uniform(0.5, 1.5, width)
        arrays[f"{name}.bias"] = random.normal(0.5, 0.5, width)
        arrays[f"{name}.running_mean"] = random.normal(0, 0.2, width)
        arrays[f"{name}.running_var"] = random.uniform(0.5, 2, width)
        arrays[f"{name}.num_batches_tracked"] = np.array(9)

    convolution("_conv_stem", 32, 3, 3)
    batch_norm("_bn0", 32)
    for i, (size, _, expansion, wide_in, wide_out) in enumerate(
        blocks(repeats, filters)
    ):
        name, width = f"_blocks.{i}.", wide_in * expansion
        if expansion > 1:
            convolution(f"{name}_expand_conv", width, wide_in, 1)
            batch_norm(f"{name}_bn0", width)
        convolution(f"{name}_depthwise_conv", width, 1, size)
        batch_norm(f"{name}_bn1", width)
        convolution(f"{name}_project_conv", wide_out, width, 1)
        batch_norm(f"{name}_bn2", wide_out)
    convolution("_conv_head", 1280, filters[-1], 1)
    batch_norm("_bn1", 1280)
    arrays["_fc.weight"] = random.normal(0, 0.05, (classes, 1280))
    arrays["_fc.bias"] = random.normal(0, 0.1, classes)
    return {k: v.astype("float32") if v.ndim else v for k, v in arrays.items()}


def written_out(arrays, pixels):
    """Logits in float64."""
    arrays = {k: np.asarray(v, "float64") for k, v in arrays.items()}

    def convolution(x, name, stride=1):
        kernel = arrays[f"{name}.weight"].transpose(2, 3, 1, 0)
        # What strides leave over is padded, its smaller half first.
        pads = [[0, 0]]
        for length in x.shape[1:3]:
            covered = (-(-length // stride) - 1) * stride + len(kernel)
            missing = max(covered - length, 0)
            pads.append([missing // 2, missing - missing // 2])
        x = tf.pad(x, [*pads, [0, 0]])
        if kernel.shape[2] < x.shape[-1]:  # One filter a channel.
            kernel = kernel.transpose(0, 1, 3, 2)
            strides = [1, stride, stride, 1]
            return tf.nn.depthwise_conv2d(x, kernel, strides, "VALID")
        return tf.nn.conv2d(x, kernel, stride, "VALID")

    def batch_norm(x, name):
        of = {k: arrays[f"{name}.{k}"] for k in tool._BATCH_NORM}
        scale = of["weight"] / np.sqrt(of["running_var"] + 1e-3)
        return (x - of["running_mean"]) * scale + of["bias"]

    x = tf.constant((pixels.astype("float64") - 127) / 128)
    x = tf.nn.relu6(batch_norm(convolution(x, "_conv_stem", 2), "_bn0"))
    for i, (_, stride, expansion, wide_in, wide_out) in enumerate(blocks()):
        name, start = f"_blocks.{i}.", x
        if expansion > 1:
            x = batch_norm(convolution(x, f"{name}_expand_conv"), f"{name}_bn0")
            x = tf.nn.relu6(x)
        x = convolution(x, f"{name}_depthwise_conv", stride)
        x = tf.nn.relu6(batch_norm(x, f"{name}_bn1"))
        x = batch_norm(convolution(x, f"{name}_project_conv"), f"{name}_bn2")
        if stride == 1 and wide_in == wide_out:
            x += start
    x = tf.nn.relu6(batch_norm(convolution(x, "_conv_head"), "_bn1"))
    features = x.numpy().mean((1, 2))
    return features @ arrays["_fc.weight"].T + arrays["_fc.bias"]


def test_the_saved_classifier_is_the_network_of_the_arrays(small, tmp_path):
    """By its own preprocessor, and as a part of a network of other images."""
    arrays = random_arrays()
    tool.import_classifier(arrays).save(tmp_path / "lite.keras")
    loaded = keras.models.load_model(tmp_path / "lite.keras", compile=False)
    assert loaded.name == "EfficientNetLite0"
    random = np.random.default_rng(1)
    for size, model in ((SIZE, loaded), (37, networks.on_pixels(loaded, 37))):
        pixels = random.integers(0, 256, (3, size, size, 3)).astype("uint8")
        expected = written_out(arrays, pixels)
        assert expected.std() > 0.1
        np.testing.assert_allclose(
            model.predict(pixels, verbose=0), expected, atol=1e-4
        )


@pytest.mark.parametrize(
    ("number", "repeats", "filters"),
    # Two stages wider and deeper by the paper's factors, rounded to eights.
    [
        (0, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
        (1, (1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
        (2, (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
    ],
)
def test_which_network_it_is_shows_in_the_arrays(number, repeats, filters):
    name = f"EfficientNetLite{number}"
    assert networks.LITE[name][:2] == (repeats, filters)
    assert tool.network_of(random_arrays(repeats, filters, 2)) == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("_blocks.3._bn1.running_var"), "no array"),
        (lambda a: a.update(extra=np.zeros(3)), "1 arrays too many"),
        (
            lambda a: a.update({"_bn1.bias": np.zeros(10)}),
            "'_bn1.bias' of shape (10,)",
        ),
        (lambda a: a.pop("_fc.bias"), "no array '_fc.bias'"),
        (
            lambda a: a.update({"_blocks.8._bn0.bias": np.zeros(3)}),
            "9 blocks and a head of 24",
        ),
        (lambda a: a.clear(), "0 arrays, of 0 blocks"),
    ],
)
def test_other_arrays_are_refused(small, change, message):
    arrays = random_arrays()
    change(arrays)
    with pytest.raises(ValueError) as refusal:
        tool.import_classifier(arrays)
    assert message in str(refusal.value)
    assert "Give the file of one of the packages" in str(refusal.value)


def refused(*arguments):
    done = CliRunner().invoke(tool.main, [str(a) for a in arguments])
    assert done.exit_code != 0 and isinstance(done.exception, SystemExit)
    return " ".join(done.output.split())


def test_a_file_that_is_there_and_another_format_are_refused(tmp_path):
    weights, model = tmp_path / "lite.pth", tmp_path / "lite.keras"
    weights.write_bytes(b"")
    model.write_bytes(b"mine")
    assert "is there already. Remove it" in refused(weights, model)
    assert model.read_bytes() == b"mine"
    assert "Let it end in .keras" in refused(weights, tmp_path / "lite.h5")


def test_without_pytorch_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    weights = tmp_path / "lite.pth"
    weights.write_bytes(b"")
    assert "pip install torch" in refused(weights, tmp_path / "lite.keras")
