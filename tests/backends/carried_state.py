"""A student and a teacher that carry state, on one backend, as an .npz file.

`compared.py` calls it. A teacher cache is written beside the file.
"""

import inputs
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_kd as kd

BATCH, TIME_STEPS = 4, 6


def main(path):
    tokens = np.random.default_rng(0).integers(
        0, inputs.CLASSES, (7 * BATCH, TIME_STEPS + 1), "int32"
    )
    segments = tf.data.Dataset.from_tensor_slices(
        (tokens[:, :-1], tokens[:, 1:])
    ).batch(BATCH)
    found = {}
    for name, data in {
        "online": lambda teacher, loss: segments,
        "cached": lambda teacher, loss: kd.TeacherCache.write(
            path.with_suffix(""),
            segments,
            teacher,
            loss,
            dtype="float32",
            verbose=0,
        ).attach(segments),
    }.items():
        student, teacher = lstm(4, 1), lstm(5, 2)
        loss = kd.KDPt(weight=0.5)
        distiller = kd.Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.5), loss)
        losses = []
        for x, y in data(teacher, loss).as_numpy_iterator():
            losses.append(float(distiller.train_on_batch(x, y)[0]))
        found[f"{name} losses"] = losses
        for i, weight in enumerate(student.get_weights()):
            found[f"{name} weights {i}"] = weight
        found[f"{name} student state"] = state(student)
        # Both go on from where training left the state.
        for x, _ in segments.take(3):
            found[f"{name} outputs"] = distiller.predict_on_batch(x.numpy())
        found[f"{name} state after predict"] = state(student)
        distiller.evaluate(segments.skip(1).take(4), verbose=0)
        found[f"{name} state after evaluate"] = state(student)
        if name == "online":
            found["teacher state"] = state(teacher)
            found["student state before refusal"] = state(student)
            try:
                distiller.train_on_batch(x.numpy(), np.full_like(x, 99))
            except ValueError:
                found["student state after refusal"] = state(student)
    np.savez(path, **found)


def lstm(units, seed):
    inputs_ = keras.Input(batch_shape=(BATCH, TIME_STEPS), dtype="int32")
    x = layers.Embedding(inputs.CLASSES, units)(inputs_)
    x = layers.LSTM(units, return_sequences=True, stateful=True)(x)
    model = keras.Model(inputs_, layers.Dense(inputs.CLASSES)(x))
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(random.normal(0, 0.8, weight.shape))
    return model


def state(model):
    return np.stack([np.array(s.value) for s in model.layers[2].states])
