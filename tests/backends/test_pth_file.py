"""EfficientNet-Lite weights from a .pth file, beside PyTorch's own layers."""

import pathlib
import sys

import keras
import numpy as np
import pytest
import torch
from torch.nn import functional

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tools"))
from test_import_efficientnet_lite import (  # noqa: E402
    SIZE,
    blocks,
    random_arrays,
    refused,
    small,  # noqa: F401
    tool,
)


def in_pytorch(arrays, pixels):
    """Logits of [examples, size, size, 3] pixels."""
    state = {k: torch.tensor(v) for k, v in arrays.items()}

    def convolution(x, name, stride=1):
        kernel = state[f"{name}.weight"]
        missing = max(kernel.shape[-1] - (1 if stride == 1 else stride), 0)
        pads = (missing // 2, missing - missing // 2)
        groups = x.shape[1] // kernel.shape[1]
        return functional.conv2d(
            functional.pad(x, pads * 2), kernel, stride=stride, groups=groups
        )

    def batch_norm(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        values = [state[f"{name}.{kind}"] for kind in kinds]
        return functional.batch_norm(x, *values, eps=1e-3)

    x = torch.tensor((pixels - 127) / 128, dtype=torch.float32)
    x = convolution(x.permute(0, 3, 1, 2), "_conv_stem", 2)
    x = functional.relu6(batch_norm(x, "_bn0"))
    for i, (_, stride, expansion, wide_in, wide_out) in enumerate(blocks()):
        name, start = f"_blocks.{i}.", x
        if expansion > 1:
            x = batch_norm(convolution(x, f"{name}_expand_conv"), f"{name}_bn0")
            x = functional.relu6(x)
        x = convolution(x, f"{name}_depthwise_conv", stride)
        x = functional.relu6(batch_norm(x, f"{name}_bn1"))
        x = batch_norm(convolution(x, f"{name}_project_conv"), f"{name}_bn2")
        if stride == 1 and wide_in == wide_out:
            x = x + start
    x = functional.relu6(batch_norm(convolution(x, "_conv_head"), "_bn1"))
    weights = state["_fc.weight"], state["_fc.bias"]
    return functional.linear(x.mean((2, 3)), *weights).numpy()


@pytest.mark.usefixtures("small")
def test_the_model_of_a_file_is_the_network_in_pytorch(tmp_path):
    arrays = random_arrays()
    weights, model = tmp_path / "lite.pth", tmp_path / "lite.keras"
    state = {k: torch.tensor(v) for k, v in arrays.items()}
    # As the packages' files are.
    torch.save(state, weights, _use_new_zipfile_serialization=False)
    done = tool.main.main([str(weights), str(model)], standalone_mode=False)
    assert done is None
    loaded = keras.models.load_model(model, compile=False)
    pixels = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3))
    np.testing.assert_allclose(
        loaded.predict(pixels.astype("float32"), verbose=0),
        in_pytorch(arrays, pixels),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {"epoch": 3},
        {"model": {"a": torch.zeros(3)}},
        "text",
        b"",
    ],
)
def test_other_files_are_refused(tmp_path, content):
    weights = tmp_path / "lite.pth"
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif isinstance(content, str):
        weights.write_text("not of PyTorch")
    else:
        torch.save(content, weights)
    message = refused(weights, tmp_path / "lite.keras")
    assert "must hold a network's weights by name. Received: " in message
    assert "Give the file of one of the packages" in message
    assert not (tmp_path / "lite.keras").exists()


@pytest.mark.parametrize("content", [b"", b"hello\n", b"a\nb\n"])
def test_a_file_that_is_not_pytorchs_is_refused(content, tmp_path):
    weights = tmp_path / "a.txt"
    weights.write_bytes(content)
    message = refused(weights, tmp_path / "lite.keras")
    assert f"weights by name. Received: {weights} (" in message
