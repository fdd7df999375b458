"""Small models and data for the tests."""

import keras
import numpy as np
from keras import layers

CLASSES, FEATURES = 7, 5

# Arguments of `compile` where tests look at what a few steps compute: tracing
# takes longer than running them. That a traced step computes the same is tested
# for each loss in `test_distiller_correctness`. On JAX it is compiled anyway.
EAGERLY = {"run_eagerly": True}


def mlp(units=6, classes=CLASSES, seed=0, name=None, **dense):
    """A classifier that starts from the same numbers for the same seed."""
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(units, "tanh", kernel_initializer=uniform(seed), **dense)(
        inputs
    )
    logits = layers.Dense(classes, kernel_initializer=uniform(seed + 1))(x)
    return keras.Model(inputs, logits, name=name)


def uniform(seed):
    return keras.initializers.RandomUniform(-1, 1, seed=seed)


def data(examples=32, seed=0, classes=CLASSES):
    random = np.random.default_rng(seed)
    x = random.normal(size=(examples, FEATURES)).astype("float32")
    labels = random.integers(0, classes, examples).astype("int32")
    weights = random.uniform(0, 2, examples).astype("float32")
    return x, labels, weights


def outputs_of(model, x):
    """A model's outputs in inference, as a NumPy array."""
    return keras.ops.convert_to_numpy(model(x))


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


def assert_same_weights(first, second, tolerance=1e-5):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_weights_differ(first, second):
    assert any(
        not np.allclose(one, other, atol=1e-6)
        for one, other in zip(first, second, strict=True)
    )


def fit(distiller, x, y, weights=None, batch_size=8, **kwargs):
    """One epoch in order, quietly."""
    return distiller.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        **kwargs,
    )


def one_block(depth, shape, classes, mean, deviation, width=16, name=None):
    """Stands in for `networks.cifar_resnet`, whose layers take long to compile.

    It has each kind of layer that a ResNet has.
    """
    assert depth % 6 == 2
    inputs = keras.Input(shape)
    x = layers.Normalization(mean=mean, variance=np.square(deviation))(inputs)
    x = layers.Conv2D(width // 2, 3, strides=2, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(classes, dtype="float32")(x)
    return keras.Model(inputs, logits, name=name)
