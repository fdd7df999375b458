"""The same script with keras.distillation and with keras_kd.

Where the mathematics of keras.distillation is right, which takes a KLDivergence
object, no sample weights and no regularisation, both train the same student.
"""

from unittest import mock

import keras
import numpy as np
import pytest
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    assert_weights_differ,
    data,
    mlp,
    uniform,
)

import keras_kd as kd

LAMBDA, TEMPERATURE = 0.7, 3.0
# Several steps, at a rate at which they move the student.
GIVEN = {"batch_size": 8, "shuffle": False, "verbose": 0}


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
    distiller.compile(optimizer=optimizer(), loss=label_loss, **EAGERLY)
    distiller.fit(x, y, **GIVEN)
    return distiller.student


def by_keras_kd(student, teacher, x, y, **how):
    distiller = kd.Distiller(student, teacher)
    distiller.compile(optimizer(), kd.KD(LAMBDA, TEMPERATURE), **how)
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
    how = {} if labels == "class ids" else EAGERLY
    ours = by_keras_kd(mlp(), teacher, x, y, **how).get_weights()
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
    distiller.compile(optimizer=optimizer(), loss=SPARSE, **EAGERLY)
    distiller.fit(x, y, **GIVEN)
    ours = by_keras_kd(mlp(), teacher, x, y, **EAGERLY).get_weights()
    assert_weights_differ(ours, distiller.student.get_weights())


# -- several outputs -----------------------------------------------------------


def two_heads(seed, units=6, named=True):
    """Classes, and a number; as a dict or as a tuple."""
    inputs = keras.Input((FEATURES,))
    features = keras.layers.Dense(
        units, "tanh", kernel_initializer=uniform(seed)
    )(inputs)
    species = keras.layers.Dense(
        CLASSES, kernel_initializer=uniform(seed + 1), name="species"
    )(features)
    age = keras.layers.Dense(
        1, kernel_initializer=uniform(seed + 2), name="age"
    )(features)
    outputs = {"species": species, "age": age}
    return keras.Model(inputs, outputs if named else tuple(outputs.values()))


def test_both_train_the_same_student_of_two_outputs():
    """One output is distilled, the other learns from its label alone.

    keras.distillation takes no dict of losses in `compile`, of Keras 3.15.
    """
    x, species, _ = data(32)
    age = np.random.default_rng(1).normal(size=(32, 1)).astype("float32")
    theirs = keras.distillation.Distiller(
        teacher=two_heads(5, units=12, named=False),
        student=two_heads(0, named=False),
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE,
            loss=(keras.losses.KLDivergence(), None),
        ),
        student_loss_weight=1 - LAMBDA,
    )
    theirs.compile(
        optimizer=optimizer(),
        loss=(SPARSE, keras.losses.MeanSquaredError()),
        **EAGERLY,
    )
    theirs.fit(x, (species, age), **GIVEN)
    ours = kd.Distiller(two_heads(0), two_heads(5, units=12))
    # Theirs weighs the label of every output, ours that of a distilled one.
    ours.compile(
        optimizer(),
        {"species": kd.KD(LAMBDA, TEMPERATURE), "age": "mse"},
        loss_weights={"species": 1.0, "age": 1 - LAMBDA},
    )
    ours.fit(x, {"species": species, "age": age}, **GIVEN)
    assert_same_weights(
        *(
            sorted(each.student.get_weights(), key=lambda w: w.shape)
            for each in (ours, theirs)
        )
    )
    assert_weights_differ(
        ours.student.get_weights(), two_heads(0).get_weights()
    )


# -- models that are changed between calls ------------------------------------


def with_lora(model):
    layer = model.layers[-1]
    layer.enable_lora(2)
    random = np.random.default_rng(3).normal(size=layer.lora_kernel_b.shape)
    layer.lora_kernel_b.assign(random)


@pytest.mark.parametrize(
    "change",
    [lambda model: model.quantize("int8"), with_lora],
    ids=["int8", "lora"],
)
def test_steps_are_those_of_models_as_they_are_now(change):
    """Not of the variables that they were compiled with."""
    x, y, _ = data(32)
    student, teacher = mlp(), mlp(units=12, seed=5)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(optimizer(), kd.KD(LAMBDA, TEMPERATURE))
    distiller.fit(x, y, **GIVEN)
    before = keras.ops.convert_to_numpy(teacher(x))
    change(teacher)
    assert np.abs(keras.ops.convert_to_numpy(teacher(x)) - before).max() > 1e-3
    # Another Distiller knows the teacher as it is now alone.
    fresh = mlp()
    fresh.set_weights(student.get_weights())
    other = kd.Distiller(fresh, teacher)
    other.compile(optimizer(), kd.KD(LAMBDA, TEMPERATURE), **EAGERLY)
    other.optimizer.build(fresh.trainable_variables)
    for one, another in zip(
        other.optimizer.variables, distiller.optimizer.variables, strict=True
    ):
        # JAX reuses the memory of what a step was given.
        one.assign(np.array(keras.ops.convert_to_numpy(another)))
    for each in (distiller, other):
        each.fit(x, y, **GIVEN)
    assert_same_weights(student.get_weights(), fresh.get_weights())

    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    change(student)
    logits = np.asarray(keras.ops.convert_to_numpy(student(x)), "float64")
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -logs[np.arange(len(y)), y].mean()
    found = distiller.evaluate(x, y, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0), logits, rtol=1e-4, atol=1e-5
    )


def test_a_teacher_that_is_quantised_after_an_evaluation():
    """The next one, of batches of another size, is compiled with it."""
    x, y, _ = data(32)
    teacher = mlp(units=12, seed=5)
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile(optimizer(), kd.KD())
    distiller.evaluate(x, y, verbose=0)
    teacher.quantize("int8")
    logits = np.asarray(distiller.predict(x[:5], verbose=0), "float64")
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = distiller.evaluate(x[:5], y[:5], verbose=0)
    assert found == pytest.approx(-logs[np.arange(5), y[:5]].mean(), rel=1e-5)


class NotCompiled(keras.layers.Layer):
    """A layer of which Keras knows that XLA can't compile it."""

    def __init__(self):
        super().__init__()
        self.supports_jit = False

    def call(self, inputs):
        return inputs


def test_the_step_is_not_compiled_with_a_teacher_that_cannot_be(monkeypatch):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # On CPUs alone Keras compiles nothing by XLA.
        gpu = mock.Mock(device_type="GPU")
        monkeypatch.setattr(
            tf.config, "list_physical_devices", lambda *_: [gpu]
        )
    inputs = keras.Input((FEATURES,))
    teacher = keras.Model(inputs, mlp(seed=5)(NotCompiled()(inputs)))
    for trained, expected in ((mlp(seed=5), mlp(seed=1)), (teacher, teacher)):
        expected.compile("sgd", "mse")
        distiller = kd.Distiller(mlp(seed=1), trained)
        distiller.compile("sgd", kd.KD())
        assert distiller.jit_compile == expected.jit_compile
    assert not teacher.jit_compile
