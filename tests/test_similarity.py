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
