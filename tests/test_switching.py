"""The same script with keras.distillation and with keras_kd.

Where the mathematics of keras.distillation is right, which takes a KLDivergence
object, no sample weights and no regularisation, both train the same student.
"""

import keras
import numpy as np
import pytest
from models import (
    CLASSES,
    assert_same_weights,
    assert_weights_differ,
    data,
    mlp,
)

import keras_kd as kd

LAMBDA, TEMPERATURE = 0.7, 3.0
# Several steps, at a rate at which they move the student.
GIVEN = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}


def optimizer():
    return keras.optimizers.SGD(0.3, momentum=0.9)


def by_keras(student, teacher, x, y, label_loss):
    distiller = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=1 - LAMBDA,
    )
    distiller.compile(optimizer=optimizer(), loss=label_loss)
    distiller.fit(x, y, **GIVEN)
    return distiller.student


def by_keras_kd(student, teacher, x, y):
    distiller = kd.Distiller(student, teacher)
    distiller.compile(optimizer(), kd.KD(LAMBDA, TEMPERATURE))
    distiller.fit(x, y, **GIVEN)
    return distiller.student


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DENSE = keras.losses.CategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("labels", ("class ids", "one-hot", "none"))
def test_both_train_the_same_student(labels):
    x, y, _ = data(32)
    label_loss = SPARSE
    if labels == "one-hot":
        y, label_loss = np.eye(CLASSES, dtype="float32")[y], DENSE
    elif labels == "none":
        y = None
    teacher = mlp(units=12, seed=5)
    start = mlp().get_weights()
    theirs = by_keras(mlp(), teacher, x, y, label_loss).get_weights()
    ours = by_keras_kd(mlp(), teacher, x, y).get_weights()
    assert_same_weights(ours, theirs)
    assert_weights_differ(ours, start)


def test_the_default_of_keras_compares_no_distributions():
    """Why the script names a KLDivergence object."""
    x, y, _ = data(32)
    teacher = mlp(units=12, seed=5)
    distiller = keras.distillation.Distiller(
        teacher=teacher,
        student=mlp(),
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE
        ),
        student_loss_weight=1 - LAMBDA,
    )
    distiller.compile(optimizer=optimizer(), loss=SPARSE)
    distiller.fit(x, y, **GIVEN)
    ours = by_keras_kd(mlp(), teacher, x, y).get_weights()
    assert_weights_differ(ours, distiller.student.get_weights())
