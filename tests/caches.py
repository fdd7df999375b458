"""Data and models for the tests of the teacher cache."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from models import CLASSES, EAGERLY, FEATURES, data, mlp, uniform

import keras_kd as kd


def batches(examples=30, size=8, seed=0):
    x, labels, weights = data(examples, seed)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels, weights))
    return dataset.batch(size)


def write(path, dataset, teacher, losses, **more):
    return kd.TeacherCache.write(
        path, dataset, teacher, losses, verbose=0, **more
    )


def compiled(loss, teacher=None, student=None, **arguments):
    distiller = kd.Distiller(student or mlp(), teacher)
    distiller.compile(
        keras.optimizers.SGD(0.1), loss, **{**EAGERLY, **arguments}
    )
    return distiller


def crop(x, seed):
    """A part of a padded vector, as a crop is of an image."""
    x = tf.pad(x, [[2, 2]])
    return tf.image.stateless_random_crop(x, (FEATURES,), seed)


def lstm(units, seed, batch=4):
    inputs = keras.Input(batch_shape=(batch, 6), dtype="int32")
    x = layers.Embedding(CLASSES, units, embeddings_initializer=uniform(seed))(
        inputs
    )
    x = layers.LSTM(
        units,
        return_sequences=True,
        stateful=True,
        kernel_initializer=uniform(seed + 1),
        recurrent_initializer=uniform(seed + 2),
    )(x)
    logits = layers.Dense(CLASSES, kernel_initializer=uniform(seed + 3))(x)
    return keras.Model(inputs, logits)


def text():
    """Text whose rows go on from batch to batch."""
    tokens = np.random.default_rng(1).integers(0, CLASSES, (28, 7), "int32")
    dataset = tf.data.Dataset.from_tensor_slices(
        (tokens[:, :-1], tokens[:, 1:])
    )
    return dataset.batch(4)
