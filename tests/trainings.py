"""Trainings that must end alike on one device, several replicas and workers.

The tests run them in their own process, `worker.py` in processes that train
together. Each gives what came out of it as numbers that JSON can hold.
"""

import os

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from models import CLASSES, FEATURES, data, mlp, uniform

import keras_kd as kd

EPOCHS, STEPS, BATCH = 2, 5, 16
# The last batch of each epoch is smaller.
EXAMPLES = STEPS * BATCH - 6
# The last batch has fewer examples than there are replicas.
UNEVEN = BATCH + 1
TOKENS = 3
IGNORED = -1
PENALTY = 0.01


def in_batches(*arrays):
    """A data set of global batches."""
    options = tf.data.Options()
    # The thread that tunes a pipeline misses most of the times that it is told
    # to end, and whoever deletes the iterator then waits for it about as long
    # as the iterator has lived. Several workers wait for each other on top.
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)
    return dataset.with_options(options)


# -- the whole of a training -------------------------------------------------


def train(
    strategy,
    folder,
    unknown_length=False,
    callbacks=(),
    **compile_arguments,
):
    """Two epochs, with callbacks that write files, and what they led to."""
    dataset = in_batches(*data(EXAMPLES))
    if unknown_length:
        dataset = dataset.filter(lambda *_: True)
    with strategy.scope():
        distiller = kd.Distiller(
            mlp(kernel_regularizer=keras.regularizers.L2(PENALTY)),
            mlp(units=12, seed=5),
        )
        distiller.compile(
            optimizer=keras.optimizers.SGD(0.2, momentum=0.9),
            loss=kd.KDPtSim(),
            metrics=["accuracy"],
            **compile_arguments,
        )
    history = distiller.fit(
        dataset,
        epochs=EPOCHS,
        validation_data=dataset,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(str(folder / "backup")),
            # A name for each process, so that those of two are seen.
            keras.callbacks.CSVLogger(str(folder / f"{os.getpid()}.csv")),
            keras.callbacks.TensorBoard(
                str(folder / "keras_tensorboard"), write_graph=False
            ),
            keras.callbacks.ModelCheckpoint(str(folder / "{epoch}.keras")),
            kd.callbacks.KDTensorBoard(
                str(folder / "tensorboard"), histogram_steps=2
            ),
            *callbacks,
        ],
    ).history
    result = {
        "history": history,
        "evaluate": distiller.evaluate(dataset, verbose=0, return_dict=True),
        "predict": np.asarray(
            distiller.predict(dataset, verbose=0), "float64"
        ).tolist(),
        "iterations": int(distiller.optimizer.iterations.numpy()),
        "counts": {
            group: scale.summary()["count"]
            for group, scale in distiller.gradient_scales.items()
        },
        "weights": [w.tolist() for w in distiller.student.get_weights()],
    }
    distiller.save(folder / "distiller.keras")
    return result


def train_in_half_precision(strategy, folder, **compile_arguments):
    """Weights after an epoch, in which the last worker's gradient overflows."""
    del folder
    x, labels, weights = data(EXAMPLES)
    weights[3 * BATCH - 1] = 1e6
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with strategy.scope():
            distiller = kd.Distiller(mlp(), mlp(units=12, seed=5))
            distiller.compile(
                keras.optimizers.SGD(0.2), kd.KDPtSim(), **compile_arguments
            )
    finally:
        keras.config.set_dtype_policy("float32")
    distiller.fit(in_batches(x, labels, weights), epochs=2, verbose=0)
    optimizer = distiller.optimizer
    return {
        "weights": [w.tolist() for w in distiller.student.get_weights()],
        "steps": int(optimizer.inner_optimizer.iterations.numpy()),
        "scale": float(optimizer.dynamic_scale.numpy())
        / optimizer.initial_scale,
    }


# -- what it logs ------------------------------------------------------------


def classifier(penalty=0.0):
    """One output an example."""
    return mlp(kernel_regularizer=keras.regularizers.L2(penalty))


def tagger(penalty=0.0):
    """One output a token, where the input is not all zeros."""
    inputs = keras.Input((TOKENS, FEATURES))
    x = layers.Masking()(inputs)
    x = layers.Dense(
        6,
        "tanh",
        kernel_initializer=uniform(0),
        kernel_regularizer=keras.regularizers.L2(penalty),
    )(x)
    logits = layers.Dense(CLASSES, kernel_initializer=uniform(1))(x)
    return keras.Model(inputs, logits)


def plain_examples():
    x, labels, _ = data(UNEVEN)
    return x, labels


def weighted_tokens():
    """Padded tokens, ignored labels, and weights of which some are 0.

    Replicas and batches differ in how many tokens count.
    """
    x, labels, weights = data(UNEVEN * TOKENS)
    x = x.reshape((UNEVEN, TOKENS, FEATURES))
    labels = labels.reshape((UNEVEN, TOKENS))
    x[::3, 1:] = 0
    x[8:12, 2:] = 0
    labels[1:7:2, 0] = IGNORED
    labels[12, :] = IGNORED
    weights = weights.reshape((UNEVEN, TOKENS))
    weights[4, :] = 0
    return x, labels, weights


# By case: student, data, arguments of the loss.
LOGGED = {
    "examples": (classifier, plain_examples, {}),
    "tokens": (tagger, weighted_tokens, {"ignore_class": IGNORED}),
    "weighted_mean": (
        tagger,
        weighted_tokens,
        {
            "ignore_class": IGNORED,
            "reduction": "mean_with_sample_weight",
        },
    ),
}


def logged_loss(case):
    """The loss whose parts are logged."""
    arguments = LOGGED[case][2]
    return kd.KDPtSim(0.4, 0.1, 2.0, alpha=0.5, beta=1.5, **arguments)


def log(strategy, case, **compile_arguments):
    """What two epochs of `fit`, and `evaluate`, log of a student at rest.

    It doesn't learn, so that every epoch and `evaluate` see the same student.
    """
    student, arrays, _ = LOGGED[case]
    dataset = in_batches(*arrays())
    with strategy.scope():
        distiller = kd.Distiller(student(PENALTY), student())
        distiller.teacher.set_weights(teacher_weights(student))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            logged_loss(case),
            metrics=["accuracy"],
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("right")],
            **compile_arguments,
        )
    history = distiller.fit(
        dataset, epochs=2, validation_data=dataset, verbose=0
    ).history
    return {
        "fit": history,
        "evaluate": distiller.evaluate(dataset, verbose=0, return_dict=True),
    }


def teacher_weights(student):
    """Other weights for the student's network."""
    random = np.random.default_rng(1)
    return [random.normal(size=w.shape) for w in student().get_weights()]
