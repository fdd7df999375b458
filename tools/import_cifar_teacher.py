"""Turns a trained CIFAR-100 ResNet-56 from an array file into a .keras model.

    python tools/import_cifar_teacher.py teacher.npz teacher.keras

The file holds `layerL.B.conv1.weight`, `layerL.B.bn1.running_mean`, ...,
`fc.weight`, with convolutions as height×width×in×out. The model takes pixels
in [0, 255] and is the recipe's own ResNet-56.
"""

import pathlib
import sys

import click
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

# Keras's order of a layer's weights, in the array file's names.
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@click.command()
@click.argument("arrays", type=click.Path(exists=True, dir_okay=False))
@click.argument("model", type=click.Path(dir_okay=False))
def main(arrays, model):
    """Writes the network in the file ARRAYS to the new file MODEL."""
    if pathlib.Path(model).exists():
        raise click.ClickException(
            "The model must be a new file. Received: "
            f"{model}, which is there already. Remove it, or choose another "
            "name."
        )
    try:
        teacher = import_teacher(np.load(arrays))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    teacher.save(model)
    click.echo(f"{model}: {teacher.count_params():,} parameters.")


def import_teacher(arrays):
    """A ResNet-56 with the weights of an array file.

    Args:
        arrays: mapping from names to arrays.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if arrays are missing, left over or of another shape.
    """
    import networks
    from data import images

    model = networks.cifar_resnet(
        56,
        (32, 32, 3),
        100,
        images.CIFAR100_MEAN,
        images.CIFAR100_DEVIATION,
        name="resnet56",
    )
    unused = set(arrays)
    for layer in model.layers:
        if layer.name == "normalization" or not layer.weights:
            continue
        kinds = _BATCH_NORM[: len(layer.weights)]
        # `layer1_0_conv1` here is `layer1.0.conv1` there.
        names = [f"{layer.name.replace('_', '.')}.{kind}" for kind in kinds]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(
                "The file must hold a CIFAR ResNet-56. Received: no array "
                f"{missing[0]!r} for layer {layer.name}. Give a "
                "file of the form that this script's docstring describes."
            )
        layer.set_weights([arrays[name] for name in names])
        unused -= set(names)
    if unused:
        raise ValueError(
            "The file must hold a CIFAR ResNet-56 and nothing else. Received: "
            f"{len(unused)} arrays too many, such as {min(unused)!r}. Leave "
            "them out of the file."
        )
    return model


if __name__ == "__main__":
    main()
