"""Losses, gradients, w and trained weights on one backend, as an .npz file.

`compared.py` calls it on each backend.
"""

import inputs
import keras
import numpy as np
from gradients import value_and_gradient
from keras import layers

import keras_kd as kd

numpy = keras.ops.convert_to_numpy


def main(path):
    given, found = inputs.arrays(), {}
    for name in inputs.LOSSES:
        for key, value in {
            **values_of(name, given),
            **trained(name, given),
        }.items():
            found[f"{name} {key}"] = value
    np.savez(path, **found)


def make_loss(name, given, **kwargs):
    arguments = dict(inputs.LOSSES[name])
    if "sim" in name:
        arguments["logit_layer"] = given["teacher"][2].T
    return kd.losses.get(name, **arguments, **kwargs)


def values_of(name, given):
    """Loss, gradient and w of logits that no model made."""
    loss = make_loss(name, given, reduction="sum")
    labels = given["logit_labels"]
    statistics = loss.teacher_statistics(
        keras.ops.convert_to_tensor(labels),
        keras.ops.convert_to_tensor(given["teacher_logits"]),
    )
    y_true = {"labels": labels, **statistics}
    _, gradient = value_and_gradient(lambda z: loss(y_true, z), given["logits"])
    parts = loss.parts(y_true, given["logits"])
    return {
        "loss": numpy(parts.loss),
        "gradient": gradient,
        "w": numpy(parts.gradient_scale),
    }


def trained(name, given):
    """The student's weights after some steps, and the log of the training."""
    student, teacher = (mlp(given[role]) for role in ("student", "teacher"))
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        keras.optimizers.SGD(inputs.LEARNING_RATE), make_loss(name, given)
    )
    examples = inputs.trained_examples(name)
    x, labels, weights = (
        given[key][:examples] for key in ("x", "labels", "sample_weight")
    )
    history = distiller.fit(
        x,
        labels,
        sample_weight=weights,
        batch_size=inputs.BATCH,
        shuffle=False,
        verbose=0,
    ).history
    weights = {f"weights {i}": w for i, w in enumerate(student.get_weights())}
    return {
        **weights,
        **{f"log {key}": np.array(values) for key, values in history.items()},
        "histogram": distiller.gradient_scales["all"].summary()["histogram"],
    }


def mlp(weights):
    model = keras.Sequential(
        [
            keras.Input((inputs.FEATURES,)),
            layers.Dense(inputs.HIDDEN, "tanh"),
            layers.Dense(inputs.CLASSES),
        ]
    )
    model.set_weights(weights)
    return model
