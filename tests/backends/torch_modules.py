"""PyTorch modules in student and teacher, with buffers beside parameters; and
what a step leaves behind.

Run by name, where Keras is on PyTorch.
"""

import gc
import os

os.environ["KERAS_BACKEND"] = "torch"

import inputs
import keras
import numpy as np
import pytest
import torch
from compute import make_loss, mlp
from keras import layers
from models import CLASSES, FEATURES, data, fit

import keras_kd as kd
from keras_kd.fingerprint import teacher_fingerprint


def normalised(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 6), torch.nn.BatchNorm1d(6)
    )


def wrapped(module, seed=0):
    """A classifier on what a module makes of the inputs."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    wrapper = layers.TorchModuleWrapper(module, output_shape=(None, 6))
    return keras.Model(inputs, layers.Dense(CLASSES)(wrapper(inputs)))


def compiled(student, teacher, **arguments):
    distiller = kd.Distiller(student, teacher, **arguments)
    distiller.compile("adam", kd.KDPt())
    return distiller


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, expected):
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


class Killed(BaseException):
    """Ends a process."""


def trained(folder, stop=None):
    """The state of a student's module after three epochs."""

    def begin(epoch, logs):
        if epoch == stop:
            raise Killed

    module = normalised(1)
    x, labels, _ = data(16)
    callbacks = [
        kd.callbacks.BackupAndRestore(folder),
        keras.callbacks.LambdaCallback(on_epoch_begin=begin),
    ]
    distiller = compiled(wrapped(module, 1), wrapped(normalised(2), 2))
    fit(distiller, x, labels, epochs=3, callbacks=callbacks)
    return state_of(module), module


def test_a_backup_has_the_buffers(tmp_path):
    expected, _ = trained(tmp_path / "whole")
    assert expected["1.num_batches_tracked"] == 6
    with pytest.raises(Killed):
        trained(tmp_path / "backup", stop=2)
    _, module = trained(tmp_path / "backup")
    assert_same_state(module, expected)


def test_a_batch_that_is_refused_leaves_the_buffers():
    module = normalised(1)
    x, labels, _ = data(8)
    distiller = compiled(wrapped(module, 1), wrapped(normalised(2), 2))
    fit(distiller, x, labels)
    before = state_of(module)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="left the student as it was"):
        fit(distiller, x, labels)
    assert_same_state(module, before)


# -- student and teacher that share ----------


class Subclassed(keras.Model):
    """A model without a graph on a module that doesn't say its shape."""

    def __init__(self, module):
        super().__init__()
        self.inner = layers.TorchModuleWrapper(module)

    def call(self, x, training=None):
        return self.inner(x, training=training)


@pytest.mark.parametrize(
    "make",
    [Subclassed, lambda m: keras.Sequential([layers.TorchModuleWrapper(m)])],
    ids=["subclassed", "sequential"],
)
def test_an_unbuilt_teacher_is_left_as_it_was(make):
    """Keras builds by running the module on made-up values."""
    x, labels, _ = data(8)
    expected = state_of(teacher := normalised(0))
    inputs = keras.Input((FEATURES,))
    student = keras.Model(inputs, layers.Dense(6)(inputs))
    fit(compiled(student, make(teacher)), x, labels % 6)
    assert_same_state(teacher, expected)


def test_an_unbuilt_student_sees_the_data_alone():
    x, labels, _ = data(8)
    module, alone = normalised(0), normalised(0)
    lists = {
        "top_ids": np.zeros((8, 1), "int32"),
        "top_log_probabilities": np.full((8, 1), -1.0, "float32"),
    }
    distiller = kd.Distiller(Subclassed(module))
    distiller.compile(keras.optimizers.SGD(0.0), kd.KDTopK(1))
    distiller.fit(x, {"labels": labels % 6, **lists}, verbose=0)
    alone(torch.tensor(x))
    found, expected = (m[1].running_mean.numpy() for m in (module, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_ensemble_leaves_its_members_as_they_were():
    expected = state_of(module := normalised(0))
    inputs = keras.Input((FEATURES,))
    other = keras.Model(inputs, layers.Dense(6)(inputs))
    kd.ensemble([Subclassed(module), other], member_output="logits")
    assert_same_state(module, expected)


def test_parameters_that_two_wrappers_share_are_refused():
    """Each wrapper makes variables of its own of them."""
    shared = torch.nn.Linear(FEATURES, 6)
    student, teacher = wrapped(shared, 1), wrapped(shared, 2)
    with pytest.raises(ValueError, match="Received: 2 of them"):
        kd.Distiller(student, teacher)
    # What it says works: frozen ones stay as they are.
    student.layers[1].trainable = False
    expected = state_of(shared)
    x, labels, _ = data(8)
    fit(compiled(student, teacher, save_teacher=False), x, labels)
    assert_same_state(shared, expected)


def test_buffers_that_both_use_are_refused():
    """PyTorch changes them in frozen layers, too."""
    layer = layers.TorchModuleWrapper(normalised(0), output_shape=(None, 6))
    layer.trainable = False
    inputs = keras.Input((FEATURES,))
    student, teacher = (
        keras.Model(inputs, layers.Dense(CLASSES)(layer(inputs)))
        for _ in range(2)
    )
    with pytest.raises(ValueError, match="3 of them, such as .*running_mean"):
        kd.Distiller(student, teacher, save_teacher=False)


def test_students_on_one_module_are_refused():
    shared = torch.nn.Linear(FEATURES, 6)
    x, labels, _ = data(8)
    with pytest.raises(ValueError, match="weights of the one before"):
        kd.StudentTrainer(
            lambda: wrapped(shared), (x, labels), (x, labels), epochs=1
        )


# -- what tells one teacher from another ----------


def test_a_cache_is_that_of_its_teacher(tmp_path):
    """Whether it was last called to train, and what is frozen, is no matter."""
    teacher = wrapped(normalised(2), 2)
    x, labels, _ = data(8)
    found = teacher_fingerprint(teacher)
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), teacher, kd.KDPt(), verbose=0
    )
    assert not teacher.layers[1].module.training
    cache.check(teacher=teacher)
    teacher.layers[1].module.train().requires_grad_(False)
    assert teacher_fingerprint(teacher) == found
    frozen = normalised(2).requires_grad_(False)
    assert teacher_fingerprint(wrapped(frozen, 2)) == found


def test_a_layer_that_holds_a_module_is_described_without_its_mode():
    module = normalised(2)
    inputs = keras.Input((2, FEATURES))
    wrapper = layers.TorchModuleWrapper(module, output_shape=(None, 6))
    teacher = keras.Model(inputs, layers.TimeDistributed(wrapper)(inputs))
    before = teacher_fingerprint(teacher)
    module.eval()
    assert teacher_fingerprint(teacher) == before


def test_buffers_are_among_the_weights():
    teacher = wrapped(normalised(2), 2)
    before = teacher_fingerprint(teacher)
    teacher.layers[1].module[1].running_mean.add_(1)
    after = teacher_fingerprint(teacher)
    assert before["weights"] != after["weights"]
    assert before["graph"] == after["graph"]


class Scaled(torch.nn.Linear):
    def __init__(self, scale):
        super().__init__(FEATURES, 6)
        self.scale = scale

    def forward(self, x):
        return self.scale * super().forward(x)


class Negated(Scaled):
    def forward(self, x):
        return -super().forward(x)


def test_modules_that_compute_something_else_have_other_fingerprints():
    def found(make, *arguments):
        torch.manual_seed(0)
        return teacher_fingerprint(wrapped(make(*arguments)))

    assert found(Scaled, 1.0) == found(Scaled, 1.0)
    others = [found(Scaled, 1.0), found(Scaled, 2.0), found(Negated, 1.0)]
    assert len({each["weights"] for each in others}) == 1
    assert len({each["graph"] for each in others}) == 3


# PyTorch never frees what its graph and a closure of Python's keep alive for
# each other.
@pytest.mark.parametrize("name", inputs.LOSSES)
def test_steps_leave_no_tensors_behind(name):
    given = inputs.arrays()
    distiller = kd.Distiller(mlp(given["student"]), mlp(given["teacher"]))
    distiller.compile(keras.optimizers.SGD(0.1), make_loss(name, given))
    # What there is already is not counted, which would take longest.
    gc.freeze()
    counts = []
    for _ in range(3):
        for _ in range(5):
            distiller.train_on_batch(given["x"], given["labels"])
        gc.collect()
        counts.append(sum(map(torch.is_tensor, gc.get_objects())))
    assert counts[-1] == counts[0]
