"""Class similarity, and where its logit layer is found."""

import keras
import numpy as np
import pytest
import reference
from keras import layers

import keras_kd as kd
from keras_kd.similarity import class_similarity, logit_weights

WORDS, UNITS = 11, 4


def kernel_rows(layer):
    return layer.get_weights()[0].T


def functional(end=None):
    inputs = keras.Input((5,))
    dense = layers.Dense(WORDS)
    x = dense(layers.Dense(UNITS)(inputs))
    return keras.Model(inputs, end(x) if end else x), kernel_rows(dense)


def sequential():
    dense = layers.Dense(WORDS)
    model = keras.Sequential([layers.Dense(UNITS), dense, layers.Softmax()])
    model.build((None, 5))
    return model, kernel_rows(dense)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(UNITS)
        self.classifier = layers.Dense(WORDS)

    def call(self, inputs):
        return self.classifier(self.hidden(inputs))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 5), "float32"))
    return model, kernel_rows(model.classifier)


def nested():
    inner, rows = functional()
    inputs = keras.Input((5,))
    return keras.Model(inputs, inner(inputs)), rows


def wrapped():
    dense = layers.Dense(WORDS)
    inputs = keras.Input((3, 5))
    x = layers.LSTM(UNITS, return_sequences=True)(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(dense)(x))
    return model, kernel_rows(dense)


def tied(tie_weights=True):
    embedding = layers.ReversibleEmbedding(
        WORDS, UNITS, tie_weights=tie_weights
    )
    inputs = keras.Input((3,), dtype="int32")
    x = layers.LSTM(UNITS, return_sequences=True)(embedding(inputs))
    model = keras.Model(inputs, embedding(x, reverse=True))
    first, *rest = embedding.get_weights()
    return model, first if tie_weights else rest[0].T


@pytest.mark.parametrize(
    "make",
    [
        functional,
        lambda: functional(layers.Activation("softmax")),
        lambda: functional(lambda x: keras.ops.softmax(x / 2)),
        sequential,
        subclassed,
        nested,
        wrapped,
        tied,
        lambda: tied(tie_weights=False),
    ],
)
def test_the_logit_layer_is_found(make):
    model, rows = make()
    found = logit_weights(model)
    assert found.shape[0] == WORDS
    np.testing.assert_allclose(found, rows)


def test_the_logit_layer_is_named():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(WORDS, 1, name="head")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, x)
    with pytest.raises(ValueError, match="'head'.*logit_layer='head'"):
        logit_weights(model)
    rows = logit_weights(model, "head")
    kernel = model.get_layer("head").get_weights()[0]
    np.testing.assert_allclose(rows, kernel[0, 0].T)


def rows_of_head(layer, *shape):
    """What is read of a layer that is named, and its kernel as it was made."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    return logit_weights(model, layer.name), layer.get_weights()[0]


def einsum(equation, *output):
    return layers.EinsumDense(equation, output)


# With as many classes as features no shape tells them apart.
@pytest.mark.parametrize(
    "layer, shape, rows_of",
    [
        (einsum("bf,fc->bc", 4), (4,), np.transpose),
        (einsum("bf,cf->bc", 4), (4,), lambda kernel: kernel),
        (
            einsum("bgf,cgf->bc", 4),
            (2, 4),
            lambda kernel: kernel.reshape(4, 8),
        ),
        (
            layers.Conv2DTranspose(4, 1),
            (2, 2, 4),
            lambda kernel: kernel[0, 0],
        ),
        (
            layers.Conv1D(4, 2),
            (2, 4),
            lambda kernel: kernel.reshape(8, 4).T,
        ),
    ],
)
def test_rows_are_those_of_classes(layer, shape, rows_of):
    found, kernel = rows_of_head(layer, *shape)
    np.testing.assert_array_equal(found, rows_of(kernel))


def test_a_layer_without_known_classes_is_refused():
    refused = {
        "DepthwiseConv2D": (layers.DepthwiseConv2D(1), (2, 2, 4)),
        "'bhf,fg->bgh'": (einsum("bhf,fg->bgh", 4, 2), (2, 4)),
    }
    for named, (layer, shape) in refused.items():
        with pytest.raises(ValueError, match=f"{named}.*, features. matrix"):
            rows_of_head(layer, *shape)


# Two groups of an int4 layer, each with scales of its own.
MANY = 256
HEADS = {
    "Dense": lambda: layers.Dense(WORDS, "softmax", bias_initializer="normal"),
    "EinsumDense": lambda: einsum("btf,fc->btc", None, WORDS),
    "tied": lambda: layers.ReversibleEmbedding(WORDS, MANY, logit_soft_cap=2.0),
    "untied": lambda: layers.ReversibleEmbedding(
        WORDS, MANY, tie_weights=False, logit_soft_cap=2.0
    ),
}
STEPS = {"int8": 255, "int4": 15, "float8": np.inf}


@pytest.mark.parametrize(
    "head, mode",
    [
        (head, mode)
        for head in HEADS
        for mode in STEPS
        # Keras has no embedding in float8.
        if mode != "float8" or "tied" not in head
    ],
)
def test_rows_of_a_quantized_layer_are_what_it_computes_with(head, mode):
    layer = HEADS[head]()
    is_embedding = "tied" in head
    random = np.random.default_rng(0)
    rows = random.normal(size=(WORDS, MANY)).astype("float32")
    rows[:, : MANY // 2] *= 20
    shape = (None, 1, MANY) if head == "EinsumDense" else (None, MANY)
    layer.build(shape)
    if head == "tied":
        layer.embeddings.assign(rows)
    elif head == "untied":
        layer.reverse_embeddings.assign(rows.T)
    else:
        layer.kernel.assign(rows.T)
    layer.quantize(mode)
    groups = rows.reshape(WORDS, -1, MANY // 2 if mode == "int4" else MANY)
    step = 2 * np.abs(groups).max(-1, keepdims=True) / STEPS[mode]
    found = logit_weights(None, layer).reshape(groups.shape)
    assert np.all(np.abs(found - groups) <= step)
    # What follows the product is still there.
    if is_embedding:
        assert layer.logit_soft_cap == 2.0
    elif head == "Dense":
        assert layer.activation is keras.activations.softmax


@pytest.mark.parametrize("mode", [None, "int4"])
def test_rows_have_what_lora_adds(mode):
    layer = layers.Dense(WORDS)
    layer.build((None, MANY))
    kernel = layer.get_weights()[0]
    if mode:
        layer.quantize(mode)
    layer.enable_lora(2, lora_alpha=6.0)
    random = np.random.default_rng(0)
    first, second = (
        random.normal(size=size) for size in ((MANY, 2), (2, WORDS))
    )
    layer.lora_kernel_a.assign(first)
    layer.lora_kernel_b.assign(second)
    step = 2 * np.abs(kernel).max() / 15 if mode else 1e-4
    added = logit_weights(None, layer).T - 3.0 * first @ second
    np.testing.assert_allclose(added, kernel, atol=step)


def test_class_similarity_is_the_cosine_of_rows():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    similarity = class_similarity(rows)
    for i in range(6):
        for j in range(6):
            cosine = rows[i] @ rows[j]
            cosine /= np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            assert similarity[i, j] == pytest.approx(cosine)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_targets_per_batch_are_those_of_the_table(beta):
    rows = np.random.default_rng(1).normal(size=(20, 6))
    labels = np.array([[3, 0], [19, 3]])
    logits = np.random.default_rng(2).normal(size=(2, 2, 20)).astype("float32")
    values = [
        kd.KDSim(beta=beta, alpha=0.3, logit_layer=rows, table_bytes=limit)(
            labels, logits
        )
        for limit in (20 * 20 * 4, 20 * 20 * 4 - 1)
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)
    target = reference.sim_target(labels, rows, 0.3, beta)
    expected = reference.per_example_loss(logits, labels, [(0.5, target)], 1.0)
    np.testing.assert_allclose(values[0], expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("classes", [10, 100, 1500])
@pytest.mark.parametrize("label_mass", [0.6, 0.9])
def test_alpha_is_chosen_for_the_mass_on_the_label(classes, label_mass):
    rows = np.random.default_rng(3).normal(size=(classes, 32))
    loss = kd.KDSim(logit_layer=rows, label_mass=label_mass)
    alpha = loss.class_similarity.fitted_alpha
    labels = np.arange(classes)
    target = reference.sim_target(labels, rows, alpha, 1.0)
    assert target[labels, labels].mean() == pytest.approx(label_mass, abs=0.01)


def test_changed_teacher_weights_are_read_at_the_next_compile():
    model, _ = functional()
    student, _ = functional()
    loss = kd.KDSim()
    distiller = kd.Distiller(student, model)
    distiller.compile("sgd", loss)
    model.layers[-1].kernel.assign(np.ones((UNITS, WORDS)))
    distiller.compile("sgd", loss)
    np.testing.assert_allclose(loss.class_similarity.weights, 1)


def test_a_matrix_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        kd.KDSim(logit_layer=np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        kd.KDSim(logit_layer=np.full((3, 2), np.nan))


def test_the_layer_that_is_named_where_none_is_found_can_be_read():
    inputs = keras.Input((3,))
    logits = layers.Dense(4, name="head")(inputs)
    model = keras.Model(inputs, layers.LayerNormalization(name="norm")(logits))
    with pytest.raises(ValueError, match="'norm'.*logit_layer='head'"):
        logit_weights(model)
    assert logit_weights(model, "head").shape == (4, 3)
    model = keras.Model(inputs, layers.LayerNormalization()(inputs))
    with pytest.raises(ValueError, match=r"\. Pass its .classes, features."):
        logit_weights(model)
