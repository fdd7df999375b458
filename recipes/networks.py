"""Networks: CIFAR ResNets, LSTMs, and those of Keras and KerasHub."""

import pathlib
import sys

import keras
import numpy as np
from keras import layers

# Of the channels of CIFAR-100's training images.
CIFAR100_MEAN = 255 * np.array([0.5070, 0.4865, 0.4409])
CIFAR100_DEVIATION = 255 * np.array([0.2673, 0.2564, 0.2761])

# Networks of keras.applications that end in a dense layer and whose ImageNet
# weights are for 224 pixels: teachers.
PRETRAINED = (
    *("ResNet50", "ResNet101", "ResNet152"),
    *("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "MobileNetV2",
)
_MODULES = {
    "convnext": "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge "
    "ConvNeXtXLarge",
    "densenet": "DenseNet121 DenseNet169 DenseNet201",
    "efficientnet": "EfficientNetB0 EfficientNetB1 EfficientNetB2 "
    "EfficientNetB3 EfficientNetB4 EfficientNetB5 EfficientNetB6 "
    "EfficientNetB7",
    "efficientnet_v2": "EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 "
    "EfficientNetV2B3 EfficientNetV2S EfficientNetV2M EfficientNetV2L",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small MobileNetV3Large",
    "nasnet": "NASNetMobile NASNetLarge",
    "resnet": "ResNet50 ResNet101 ResNet152",
    "resnet_v2": "ResNet50V2 ResNet101V2 ResNet152V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}
# Networks of keras.applications, by the module with their preprocessing.
NETWORKS = {
    name: module for module, names in _MODULES.items() for name in names.split()
}
# EfficientNet-Lite: of each stage the number of blocks and of filters; image
# size; dropout before the logits. Stem and head are never scaled.
LITE = {
    "EfficientNetLite0": (
        (1, 2, 2, 3, 3, 4, 1),
        (16, 24, 40, 80, 112, 192, 320),
        224,
        0.2,
    ),
    "EfficientNetLite1": (
        (1, 3, 3, 4, 4, 5, 1),
        (16, 24, 40, 80, 112, 192, 320),
        240,
        0.2,
    ),
    "EfficientNetLite2": (
        (1, 3, 3, 4, 4, 5, 1),
        (16, 24, 48, 88, 120, 208, 352),
        260,
        0.3,
    ),
}


def cifar_resnet(
    depth,
    input_shape,
    classes,
    mean,
    standard_deviation,
    width=16,
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
        width: of the first stage, if another one; each doubles it.
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
    x = _convolution(x, width, "conv1")
    x = layers.ReLU()(_batch_norm(x, "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            filters = width * 2 ** (stage - 1)
            x = _block(x, filters, stride, f"layer{stage}_{block}")
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


def with_weight_decay(model, weight_decay):
    """Adds weight decay to a model that is to be trained.

    It is the L2 penalty of SGD's classical form, whose gradient passes through
    the momentum; Keras's optimizers' own `weight_decay` does not. The
    regularisers are not saved with the model.

    Args:
        model: a built `keras.Model`.
        weight_decay: float; its half times the sum of squares of every
            trainable weight joins the loss.

    Returns:
        The model.
    """
    if weight_decay:
        for variable in model.trainable_variables:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2)
    return model


def check_teacher(model, shape, classes):
    """Refuses a teacher of other images or classes.

    Args:
        model: a `keras.Model`.
        shape: (height, width, channels).
        classes: number of classes.

    Raises:
        ValueError: naming both.
    """
    found = tuple(model.input_shape[1:]), model.output_shape[-1]
    if found != (shape, classes):
        raise ValueError(
            "The teacher must take these images and know these classes. "
            f"Received: a teacher of images {found[0]} and {found[1]} "
            f"classes for images {shape} and {classes} classes. "
            "Choose another --teacher."
        )


def lstm_language_model(words, units, depth, dropout, input_shape, name=None):
    """Embedding, stateful LSTMs with dropout between, logits.

    Args:
        words: number of words.
        units: integer, of the embedding and of each LSTM.
        depth: number of LSTMs.
        dropout: share that is dropped, of the embedding and of each LSTM's
            output.
        input_shape: (batch, time steps).
        name: optional name.

    Returns:
        A functional `keras.Model` from ids of words to logits of the next.

    Source: Zaremba et al. 2014, "Recurrent Neural Network Regularization"
    (arXiv 1409.2329).
    """
    inputs = keras.Input(batch_shape=input_shape, dtype="int32")
    x = layers.Embedding(words, units)(inputs)
    x = layers.Dropout(dropout)(x)
    for _ in range(depth):
        x = layers.LSTM(units, return_sequences=True, stateful=True)(x)
        x = layers.Dropout(dropout)(x)
    logits = layers.Dense(words, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=name)


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


# -- KerasHub ------------------------------------------------------------------


def efficientnet_lite(network, classes=1000):
    """An untrained EfficientNet-Lite, as a classifier of KerasHub.

    It has neither squeeze-and-excitation nor swish, which small devices are
    slow at. As in TensorFlow, strided convolutions pad an even image on the
    right and below alone; of KerasHub's blocks the "unfused" ones do. With an
    expansion of 1 these would project by 3×3 convolutions, so the first stage,
    which has no stride, is made of "v1" blocks.

    Args:
        network: key of `LITE`.
        classes: number of classes.

    Returns:
        A `keras_hub.models.EfficientNetImageClassifier`, from images of which
        its preprocessor makes (pixels - 127) / 128, to logits.

    Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for
    Convolutional Neural Networks" (arXiv 1905.11946), and the Lite variants in
    TensorFlow's repository `tpu`.
    """
    import keras_hub

    repeats, filters, image_size, dropout = LITE[network]
    backbone = keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 7,
        stackwise_depth_coefficients=[1.0] * 7,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=list(repeats),
        stackwise_input_filters=[32, *filters[:-1]],
        stackwise_output_filters=list(filters),
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0] * 7,
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1", *["unfused"] * 6],
        activation="relu6",
        include_stem_padding=False,
        stem_conv_padding="same",
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
    )
    converter = keras_hub.layers.EfficientNetImageConverter(
        image_size=(image_size, image_size), scale=1 / 128, offset=-127 / 128
    )
    return keras_hub.models.EfficientNetImageClassifier(
        backbone,
        num_classes=classes,
        preprocessor=keras_hub.models.EfficientNetImageClassifierPreprocessor(
            converter
        ),
        dropout=dropout,
    )


def is_hub_classifier(model):
    """Whether a model is an image classifier of KerasHub."""
    # Whoever has loaded one has imported it.
    keras_hub = sys.modules.get("keras_hub")
    return keras_hub is not None and isinstance(
        model, keras_hub.models.ImageClassifier
    )


def on_pixels(classifier, image_size=None, name=None):
    """A classifier of KerasHub with its preprocessing built in.

    Args:
        classifier: a `keras_hub.models.ImageClassifier`.
        image_size: height and width in pixels; `None` for those that its
            preprocessor makes.
        name: optional name.

    Returns:
        A `keras.Model` from pixels in [0, 255] to what the classifier gives.

    Raises:
        ValueError: if the network is made for images of another size, or for
            what its preprocessor doesn't say.
    """
    converter = getattr(classifier.preprocessor, "image_converter", None)
    if converter is None:
        raise ValueError(
            "A classifier of KerasHub must say what it makes of pixels. "
            f"Received: {classifier.name!r} without an image converter in its "
            "preprocessor. Give it one, as "
            "keras_hub.layers.ImageConverter(scale=1 / 255)."
        )
    size = (image_size,) * 2 if image_size else converter.image_size
    fixed = classifier.input_shape[1:3]
    if size is None or any(
        its not in (None, asked) for its, asked in zip(fixed, size, strict=True)
    ):
        raise ValueError(
            "A network that is made for one image size takes no other. "
            f"Received: {classifier.name!r}, which takes {fixed}, for images "
            f"of {size}. Choose that --image-size, or another network."
        )
    inputs = keras.Input((*size, 3))
    pixels = layers.Rescaling(
        1.0 if converter.scale is None else converter.scale,
        0.0 if converter.offset is None else converter.offset,
        # A teacher computes as it was trained, whatever the student does.
        dtype="float32",
    )(inputs)
    return keras.Model(inputs, classifier(pixels), name=name)


def check_network(network):
    """Refuses a name that `untrained` does not know.

    Args:
        network: see `untrained`.

    Raises:
        ValueError: naming what may be chosen.
    """
    if network in NETWORKS or network in LITE or _is_preset(network):
        return
    raise ValueError(
        "A network is one of keras.applications, such as ResNet50, "
        "MobileNetV3Small or EfficientNetB0; one of "
        f"{', '.join(LITE)}; or a preset of keras_hub.models.ImageClassifier: "
        f"its name or its folder. Received: {network!r}. Choose one of them."
    )


def _is_preset(network):
    import keras_hub

    return (
        network in keras_hub.models.ImageClassifier.presets
        or "://" in network
        or (pathlib.Path(network) / "config.json").is_file()
    )


def untrained(network, image_size, classes, name=None):
    """A network with random weights and with its preprocessing built in.

    Args:
        network: key of `NETWORKS` or of `LITE`, or a preset of
            `keras_hub.models.ImageClassifier`: its name, or its folder.
        image_size: height and width in pixels.
        classes: number of classes.
        name: optional name.

    Returns:
        A `keras.Model` from pixels in [0, 255] to logits.

    Raises:
        OSError: if a preset can't be read or downloaded.
    """
    if network in NETWORKS:
        return application(network, image_size, classes, name=name)
    if network in LITE:
        return on_pixels(efficientnet_lite(network, classes), image_size, name)
    import keras_hub

    try:
        classifier = keras_hub.models.ImageClassifier.from_preset(
            network, load_weights=False, num_classes=classes, activation=None
        )
    except Exception as error:
        raise OSError(
            f"The preset {network} could not be read. Received: "
            f"{type(error).__name__}: {error}. Download it where there is "
            "internet and give its folder, or choose a network of "
            "keras.applications."
        ) from error
    return on_pixels(classifier, image_size, name)
