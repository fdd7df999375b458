"""Models that share, change, are cloned or exported: right, or refused."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    assert_weights_differ,
    data,
    fit,
    mlp,
    outputs_of,
    uniform,
    weights_of,
)

import keras_kd as kd


def compiled(student, teacher, loss=None, **kwargs):
    distiller = kd.Distiller(student, teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), loss or kd.KD(), **EAGERLY)
    return distiller


def sharing(layer):
    """Two models on one layer."""
    inputs = keras.Input((FEATURES,))
    hidden = layer(inputs)
    heads = [
        layers.Dense(CLASSES, kernel_initializer=uniform(seed))
        for seed in (1, 2)
    ]
    return [keras.Model(inputs, head(hidden)) for head in heads]


def trunk(trainable=False):
    return layers.Dense(
        6, "tanh", kernel_initializer=uniform(0), trainable=trainable
    )


# -- student and teacher that share ----------


def test_trainable_layers_that_both_use_are_refused():
    student, teacher = sharing(trunk(trainable=True))
    with pytest.raises(ValueError) as error:
        kd.Distiller(student, teacher)
    message = str(error.value)
    assert "must not share" in message
    assert re.search("Received: 2 of them, such as '.*kernel'", message)
    assert "trainable = False" in message


def test_a_teacher_that_holds_the_student_is_refused():
    student = mlp(seed=1)
    inputs = keras.Input((FEATURES,))
    teacher = keras.Model(
        inputs, layers.Average()([student(inputs), mlp(seed=2)(inputs)])
    )
    with pytest.raises(ValueError, match="Received: 4 of them"):
        kd.Distiller(student, teacher)


def test_running_statistics_that_both_use_are_refused():
    normalisation = layers.BatchNormalization(center=False, scale=False)
    student, teacher = sharing(normalisation)
    with pytest.raises(ValueError, match="2 of them, such as '.*moving_mean'"):
        kd.Distiller(student, teacher)


def test_spectral_norms_that_both_use_are_refused():
    """Training would divide the kernel, though the layer is frozen."""
    normalised = layers.SpectralNormalization(layers.Dense(6))
    normalised.trainable = False
    student, teacher = sharing(normalised)
    with pytest.raises(ValueError, match="3 of them, such as .*kernel'"):
        kd.Distiller(student, teacher)


def test_one_model_as_both_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match=f"Received: '{model.name}' as both"):
        kd.Distiller(model, model)
    # What it says works: a copy teaches, and is left as it was.
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    before = weights_of(copy)
    fit(compiled(model, copy), *data()[:2])
    assert_same_weights(weights_of(copy), before, tolerance=0)
    assert_weights_differ(weights_of(model), before)


def test_sharing_is_looked_for_when_a_student_is_built_late():
    shared = trunk(trainable=True)

    class Net(keras.Model):
        def __init__(self, seed):
            super().__init__()
            self.shared = shared
            self.classifier = layers.Dense(CLASSES)

        def call(self, inputs):
            return self.classifier(self.shared(inputs))

    distiller = compiled(Net(1), Net(2))
    with pytest.raises(ValueError, match="must not share"):
        fit(distiller, *data()[:2])


def test_layers_unfrozen_later_are_refused_by_compile():
    shared = trunk()
    student, teacher = sharing(shared)
    distiller = compiled(student, teacher, save_teacher=False)
    shared.trainable = True
    with pytest.raises(ValueError, match="must not share"):
        distiller.compile("sgd", kd.KD())


@pytest.mark.parametrize("name", ["kd", "kd_pt_sim"])
def test_frozen_layers_that_both_use_train_as_copies_do(name):
    """Every logged number and weight is that of models that share nothing."""
    x, labels, _ = data()
    results = []
    for together in (True, False):
        student, teacher = sharing(trunk())
        if not together:
            _, teacher = sharing(trunk())
        before = weights_of(teacher)
        distiller = compiled(
            student, teacher, kd.losses.get(name), save_teacher=False
        )
        history = fit(distiller, x, labels, epochs=2, validation_split=0.25)
        distiller.train_on_batch(x, labels)
        assert_same_weights(weights_of(teacher), before, tolerance=0)
        results.append((history.history, weights_of(student)))
    (ours, our_weights), (theirs, their_weights) = results
    assert_same_weights(our_weights, their_weights)
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-5, err_msg=key)


def test_a_file_of_a_student_that_shares_loads(tmp_path):
    student, teacher = sharing(trunk())
    distiller = compiled(student, teacher, save_teacher=False)
    x, labels, _ = data()
    fit(distiller, x, labels)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(
        outputs_of(loaded, x), outputs_of(student, x), rtol=1e-5
    )
    loaded.teacher = teacher
    ours, theirs = (fit(d, x, labels).history for d in (loaded, distiller))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_a_file_that_would_not_load_is_refused_before_training():
    student, teacher = sharing(trunk())
    with pytest.raises(ValueError, match="2 shared variables.*save_teacher"):
        kd.Distiller(student, teacher)


# -- other models ----------


def test_another_student_is_refused():
    distiller = compiled(mlp(seed=1), mlp(seed=5))
    first = distiller.student
    with pytest.raises(ValueError, match="Make another one, as in Distiller"):
        distiller.student = mlp(seed=2, name="other")
    assert distiller.student is first
    assert len(distiller.trainable_variables) == 4


@pytest.mark.parametrize("save_teacher", [True, False])
def test_another_teacher_is_trained_with(save_teacher, tmp_path):
    x, labels, _ = data()
    first = compiled(mlp(seed=1), mlp(seed=5), save_teacher=save_teacher)
    start = weights_of(first.student)
    fit(first, x, labels)
    first.student.set_weights(start)
    first.teacher = mlp(seed=6)
    plain = compiled(mlp(seed=1), mlp(seed=6))
    ours, theirs = (fit(d, x, labels).history for d in (first, plain))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    # And kept out of the student's own, whether it is saved or not.
    assert len(first.variables) == len(plain.student.variables)
    first.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert (loaded.teacher is None) is not save_teacher


def test_the_teachers_own_losses_and_flags_are_left_alone():
    inputs = keras.Input((FEATURES,))
    teacher = keras.Model(
        inputs, layers.Dense(CLASSES, kernel_regularizer="l2")(inputs)
    )
    distiller = compiled(mlp(seed=1), teacher)
    assert teacher.losses
    assert not distiller.losses
    distiller.trainable = False
    assert teacher.trainable
    assert teacher not in distiller.layers
    assert distiller.count_params() == distiller.student.count_params()


METHODS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
)


def with_methods_of_its_own(*names):
    def method(self, *args, **kwargs):
        raise AssertionError

    net = type("Net", (keras.Model,), dict.fromkeys(names, method))
    inputs = keras.Input((FEATURES,))
    return net(inputs, layers.Dense(CLASSES)(inputs))


@pytest.mark.parametrize("name", METHODS)
def test_a_student_with_a_method_of_its_own_is_refused(name):
    student = with_methods_of_its_own(name)
    with pytest.raises(ValueError, match=f"class Net with {name}. Pass"):
        kd.Distiller(student, mlp(seed=5))


def test_a_model_around_one_with_methods_of_its_own_is_trained():
    """As the message says; and a teacher may have them, which is not."""
    student = with_methods_of_its_own(*METHODS)
    inputs = keras.Input((FEATURES,))
    wrapped = keras.Model(inputs, student(inputs))
    fit(compiled(wrapped, mlp(seed=5)), *data()[:2])
    fit(compiled(mlp(seed=5), student), *data()[:2])


def test_a_step_set_on_the_object_is_refused():
    student = mlp(seed=1)
    student.train_step = lambda *args: {}
    with pytest.raises(ValueError, match="with train_step"):
        kd.Distiller(student, mlp(seed=5))


# -- clones ----------


@pytest.mark.parametrize(
    ("name", "save_teacher"), [("kd", True), ("kd_pt_sim", False)]
)
def test_a_clone_has_the_teacher_and_a_new_student(name, save_teacher):
    x, labels, _ = data()
    teacher = mlp(seed=5)
    teacher.set_weights([w + 0.5 for w in teacher.get_weights()])
    distiller = compiled(
        mlp(seed=1), teacher, kd.losses.get(name), save_teacher=save_teacher
    )
    start = weights_of(distiller.student)
    fit(distiller, x, labels)
    clone = keras.models.clone_model(distiller)
    np.testing.assert_array_equal(
        outputs_of(clone.teacher, x), outputs_of(teacher, x)
    )
    clone.student.set_weights(start)
    distiller.student.set_weights(start)
    ours, theirs = (fit(d, x, labels).history for d in (clone, distiller))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_what_is_loaded_has_the_teacher_of_the_file(tmp_path):
    """Also in the process that holds the one that was saved."""
    x, labels, _ = data()
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher)
    expected = outputs_of(teacher, x)
    distiller.save(tmp_path / "d.keras")
    teacher.set_weights([w + 1 for w in teacher.get_weights()])
    changed = weights_of(teacher)
    loaded = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_array_equal(outputs_of(loaded.teacher, x), expected)
    assert_same_weights(weights_of(teacher), changed, tolerance=0)


# -- export ----------


_SERVE = {
    "tf_saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load("exported")
outputs = loaded.serve(x)
""",
    "torch": """
import torch
loaded = torch.export.load("exported")
# Keras exports for one example.
rows = torch.from_numpy(x).split(1)
outputs = torch.cat([loaded.module()(row) for row in rows]).detach()
""",
}


def test_the_student_is_exported_after_fit(tmp_path):
    """The file, run by itself, gives the student's outputs."""
    x, labels, _ = data()
    distiller = compiled(mlp(seed=1), mlp(seed=5))
    fit(distiller, x, labels)
    # Keras can't make a SavedModel of a PyTorch model.
    on_torch = keras.backend.backend() == "torch"
    form = "torch" if on_torch else "tf_saved_model"
    file = tmp_path / ("exported.pt2" if on_torch else "exported")
    distiller.export(file, format=form, verbose=False)
    if on_torch:
        file.rename(tmp_path / "exported")
    np.save(tmp_path / "x.npy", x)
    program = (
        f'import numpy as np\nx = np.load("x.npy")\n{_SERVE[form]}\n'
        'np.save("y.npy", np.asarray(outputs))'
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    served = np.load(tmp_path / "y.npy")
    expected = outputs_of(distiller.student, x)
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


# -- messages ----------


def test_a_teacher_of_one_unit_beside_a_student_of_two():
    x, labels, _ = data()
    student, one = mlp(classes=2, seed=1), mlp(classes=1, seed=5)
    with pytest.raises(ValueError, match=r"teacher with 1.*\(0, z\)"):
        kd.Distiller(student, one)
    # What it says gives the sigmoid's two classes.
    logit = one.outputs[0]
    two = keras.Model(
        one.inputs,
        layers.Concatenate()([keras.ops.zeros_like(logit), logit]),
    )
    odds = outputs_of(two, x)
    probability = np.exp(odds[:, 1]) / np.exp(odds).sum(-1)
    expected = 1 / (1 + np.exp(-outputs_of(one, x)[:, 0]))
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    fit(compiled(student, two), x, labels % 2)


def test_a_student_of_one_unit_beside_a_teacher_of_two():
    with pytest.raises(ValueError, match=r"student with 1 class.*\(0, z\)"):
        kd.Distiller(mlp(classes=1), mlp(classes=2))
