"""CIFAR ResNets, against the same network written out in tf.nn."""

import pathlib
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tools"))
import import_cifar_teacher  # noqa: E402

MEAN, DEVIATION = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)


def random_arrays(blocks=9):
    """A trained ResNet-56's arrays, by the names of the array file."""
    random = np.random.default_rng(0)
    arrays = {}

    def convolution(name, size, wide_in, wide_out):
        spread = np.sqrt(2 / (size * size * wide_in))
        shape = (size, size, wide_in, wide_out)
        arrays[f"{name}.weight"] = random.normal(0, spread, shape)

    def batch_norm(name, width):
        arrays[f"{name}.weight"] = random.uniform(0.5, 1, width)
        arrays[f"{name}.bias"] = random.normal(0, 0.1, width)
        arrays[f"{name}.running_mean"] = random.normal(0, 0.1, width)
        arrays[f"{name}.running_var"] = random.uniform(0.5, 2, width)

    convolution("conv1", 3, 3, 16)
    batch_norm("bn1", 16)
    wide_in = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if wide_in != width:
                convolution(f"{name}.downsample.0", 1, wide_in, width)
                batch_norm(f"{name}.downsample.1", width)
            convolution(f"{name}.conv1", 3, wide_in, width)
            batch_norm(f"{name}.bn1", width)
            convolution(f"{name}.conv2", 3, width, width)
            batch_norm(f"{name}.bn2", width)
            wide_in = width
    arrays["fc.weight"] = random.normal(0, 0.1, (64, 100))
    arrays["fc.bias"] = random.normal(0, 0.1, 100)
    return {k: v.astype("float32") for k, v in arrays.items()}


def written_out(arrays, images, blocks=9):
    """Logits of images in [0, 1]; strides pad a pixel on each side."""

    def convolution(x, name, stride=1):
        kernel = arrays[f"{name}.weight"]
        pad = [kernel.shape[0] // 2] * 2
        return tf.nn.conv2d(
            x, kernel, stride, padding=[[0, 0], pad, pad, [0, 0]]
        )

    def batch_norm(x, name):
        return tf.nn.batch_normalization(
            x,
            arrays[f"{name}.running_mean"],
            arrays[f"{name}.running_var"],
            arrays[f"{name}.bias"],
            arrays[f"{name}.weight"],
            1e-5,
        )

    x = (images - np.float32(MEAN)) / np.float32(DEVIATION)
    x = tf.nn.relu(batch_norm(convolution(x, "conv1"), "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride, shortcut = 1, x
            if f"{name}.downsample.0.weight" in arrays:
                stride = 2
                shortcut = convolution(x, f"{name}.downsample.0", 2)
                shortcut = batch_norm(shortcut, f"{name}.downsample.1")
            x = convolution(x, f"{name}.conv1", stride)
            x = tf.nn.relu(batch_norm(x, f"{name}.bn1"))
            x = batch_norm(convolution(x, f"{name}.conv2"), f"{name}.bn2")
            x = tf.nn.relu(x + shortcut)
    x = tf.reduce_mean(x, axis=(1, 2))
    return x @ arrays["fc.weight"] + arrays["fc.bias"]


def run_tool(*arguments):
    return CliRunner().invoke(
        import_cifar_teacher.main, [str(a) for a in arguments]
    )


def test_the_imported_teacher_is_the_network_of_the_array_file(tmp_path):
    arrays = random_arrays()
    np.savez(tmp_path / "teacher.npz", **arrays)
    done = run_tool(tmp_path / "teacher.npz", tmp_path / "teacher.keras")
    assert done.exit_code == 0, done.output
    model = keras.models.load_model(tmp_path / "teacher.keras")
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (4, 32, 32, 3)).astype("float32")
    expected = written_out(arrays, pixels / 255)
    np.testing.assert_allclose(
        model.predict(pixels, verbose=0), expected, rtol=1e-3, atol=1e-3
    )
    again = run_tool(tmp_path / "teacher.npz", tmp_path / "teacher.keras")
    assert "is there already" in again.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layer2.3.bn1.running_var"), "layer2.3.bn1"),
        (lambda a: a.update(extra=np.zeros(3)), "1 arrays too many"),
        (lambda a: a.update({"fc.bias": np.zeros(10)}), "10"),
    ],
)
def test_another_array_file_is_refused(tmp_path, change, message):
    arrays = random_arrays()
    change(arrays)
    np.savez(tmp_path / "teacher.npz", **arrays)
    done = run_tool(tmp_path / "teacher.npz", tmp_path / "teacher.keras")
    assert done.exit_code != 0 and message in done.output
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "teacher.keras").exists()


@pytest.mark.parametrize("depth", [2, 6, 18, 51])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth of {depth}"):
        networks.cifar_resnet(depth, (32, 32, 3), 100, MEAN, DEVIATION)


def test_depth_counts_the_layers_with_weights_on_the_longest_path():
    model = networks.cifar_resnet(20, (32, 32, 3), 100, MEAN, DEVIATION)
    on_path = [
        layer
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        and "downsample" not in layer.name
    ]
    assert len(on_path) == 20
