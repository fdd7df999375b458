"""Networks: residual ones for small images, and those of keras.applications."""

import keras
import numpy as np
from keras import layers

# Networks of keras.applications that end in a dense layer, by their module.
NETWORKS = {
    "ResNet50": "resnet",
    "ResNet101": "resnet",
    "ResNet152": "resnet",
    "ResNet50V2": "resnet_v2",
    "ResNet101V2": "resnet_v2",
    "ResNet152V2": "resnet_v2",
    "MobileNetV2": "mobilenet_v2",
}


def cifar_resnet(
    depth,
    input_shape,
    classes,
    mean,
    standard_deviation,
    name=None,
):
    """A ResNet of depth 6n + 2: three stages of n blocks, 16, 32, 64 wide.

    The shortcut is a 1×1 convolution with batch normalisation where width or
    size change. Strided convolutions pad one pixel on each side.

    Args:
        depth: integer, 6n + 2.
        input_shape: (height, width, channels).
        classes: number of classes.
        mean: sequence of the channels' means, of pixels in [0, 255].
        standard_deviation: sequence of their standard deviations.
        name: optional name.

    Returns:
        A functional `keras.Model` from pixels in [0, 255] to logits. Its
        layers are called `conv1`, `bn1`, `layer2_0_conv1`,
        `layer2_0_downsample_0`, ..., `fc`.

    Raises:
        ValueError: if there is no network of that depth.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition"
    (arXiv 1512.03385).
    """
    blocks = blocks_per_stage(depth)
    inputs = keras.Input(input_shape)
    x = layers.Normalization(
        mean=mean, variance=np.square(standard_deviation), name="normalization"
    )(inputs)
    x = _convolution(x, 16, "conv1")
    x = layers.ReLU()(_batch_norm(x, "bn1"))
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _block(x, width, stride, f"layer{stage}_{block}")
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(classes, dtype="float32", name="fc")(x)
    return keras.Model(inputs, logits, name=name)


def blocks_per_stage(depth):
    """Blocks in each stage of a ResNet of depth 6n + 2.

    Args:
        depth: integer.

    Returns:
        An integer.

    Raises:
        ValueError: if there is no network of that depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "A CIFAR ResNet has 6n + 2 layers. Received: a depth of "
            f"{depth}. Choose among 8, 14, 20, 32, 44, 56 and 110."
        )
    return (depth - 2) // 6


def _block(x, width, stride, name):
    shortcut = x
    if x.shape[-1] != width:
        shortcut = _convolution(
            x, width, f"{name}_downsample_0", size=1, stride=stride
        )
        shortcut = _batch_norm(shortcut, f"{name}_downsample_1")
    x = _convolution(x, width, f"{name}_conv1", stride=stride)
    x = layers.ReLU()(_batch_norm(x, f"{name}_bn1"))
    x = _convolution(x, width, f"{name}_conv2")
    x = _batch_norm(x, f"{name}_bn2")
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _convolution(x, filters, name, size=3, stride=1):
    padding = "same"
    if stride > 1 and size > 1:
        # "same" would pad an even image on the right and below alone.
        x = layers.ZeroPadding2D(size // 2)(x)
        padding = "valid"
    return layers.Conv2D(
        filters,
        size,
        stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _batch_norm(x, name):
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def application(network, image_size, classes, weights=None, name=None):
    """A network of keras.applications with its preprocessing built in.

    Args:
        network: key of `NETWORKS`.
        image_size: height and width in pixels.
        classes: number of classes.
        weights: as in keras.applications.
        name: optional name.

    Returns:
        A `keras.Model` from pixels in [0, 255] to logits.
    """
    module = getattr(keras.applications, NETWORKS[network])
    inputs = keras.Input((image_size, image_size, 3))
    model = getattr(keras.applications, network)(
        input_tensor=module.preprocess_input(inputs),
        input_shape=(image_size, image_size, 3),
        weights=weights,
        classes=classes,
        classifier_activation=None,
    )
    if name:
        model.name = name
    return model


def pretrained(network, image_size):
    """A network with its ImageNet weights.

    Args:
        network: key of `NETWORKS`.
        image_size: height and width in pixels.

    Returns:
        A `keras.Model`, as `application`.

    Raises:
        OSError: if the weights can't be downloaded.
    """
    try:
        model = application(network, 224, 1000, weights="imagenet")
    except Exception as error:
        raise OSError(
            f"The weights of {network} could not be downloaded. Received: "
            f"{error}. Download them where there is internet (Keras keeps them "
            "in its models folder) and copy them, or pass --teacher "
            "model.keras."
        ) from error
    if image_size == 224:
        return model
    # Keras gives the weights for 224 pixels alone, but no layer depends on it.
    resized = application(network, image_size, 1000)
    resized.set_weights(model.get_weights())
    return resized
