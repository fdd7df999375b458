"""Small KerasHub tasks of random weights, and raw data for them."""

import keras
import keras_hub
import numpy as np

WORDS = "the a quick slow red blue fox dog jumps sleeps over under".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH, CLASSES = 8, 3


def texts(rows, seed=0):
    """A list of sentences of 2 to 6 words."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(rows)
    ]


def labels(rows, seed=0):
    """[rows] int32 class ids."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, CLASSES, rows).astype("int32")


def images(rows, seed=0):
    """[rows, 12, 12, 3] uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 12, 12, 3)).astype("uint8")


def causal_lm(hidden=8, tokenizer=None, classes=None, length=12):
    """A GPT-2 with its preprocessor, of words unless told otherwise.

    Splitting words into GPT-2's own byte pairs takes seconds to compile.
    """
    tokenizer = tokenizer or keras_hub.models.BertTokenizer([*SPECIAL, *WORDS])
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=classes or tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=hidden,
        intermediate_dim=8,
        dropout=0.0,
        max_sequence_length=length,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=length
    )
    return noisy(keras_hub.models.GPT2CausalLM(backbone, preprocessor))


def byte_pairs():
    """GPT-2's tokenizer of letters."""
    tokens = ["<|endoftext|>", *LETTERS, "Ġ", "th", "the"]
    return keras_hub.models.GPT2Tokenizer(
        vocabulary={token: index for index, token in enumerate(tokens)},
        merges=["t h", "th e"],
    )


def bert(hidden=8, words=WORDS, length=LENGTH):
    """A BERT classifier of words, with its preprocessor."""
    return _text_classifier("Bert", hidden, words, length)


def distilbert(hidden=8, words=WORDS, length=LENGTH):
    """A DistilBERT classifier, which takes no segment ids."""
    return _text_classifier("DistilBert", hidden, words, length)


def _text_classifier(family, hidden, words, length):
    def made(kind, *arguments, **more):
        return getattr(keras_hub.models, family + kind)(*arguments, **more)

    backbone = made(
        "Backbone",
        vocabulary_size=len(SPECIAL) + len(words),
        num_layers=1,
        num_heads=2,
        hidden_dim=hidden,
        intermediate_dim=8,
        dropout=0.0,
        max_sequence_length=length,
    )
    tokenizer = made("Tokenizer", [*SPECIAL, *words])
    preprocessor = made(
        "TextClassifierPreprocessor", tokenizer, sequence_length=length
    )
    return noisy(
        made("TextClassifier", backbone, CLASSES, preprocessor, dropout=0.0)
    )


def resnet(size=8, scale=1 / 255, offset=0.0):
    """A ResNet classifier, with a preprocessor that resizes and scales."""
    backbone = resnet_backbone((size, size, 3))
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(size, size), scale=scale, offset=offset
    )
    return noisy(
        keras_hub.models.ResNetImageClassifier(
            backbone,
            num_classes=CLASSES,
            preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(
                converter
            ),
        )
    )


def resnet_backbone(image_shape):
    """The smallest that KerasHub makes."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=image_shape,
    )


def noisy(model):
    """The model with weights that tell one input from another."""
    for variable in model.trainable_variables:
        noise = keras.random.normal(variable.shape, stddev=0.3)
        variable.assign_add(noise)
    return model
