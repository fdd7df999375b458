"""What the Distiller must get right where `keras.distillation` does not.

Each test stands for one thing that the Keras 3.12 to 3.15 distiller was
measured to get wrong: value and gradient of the distillation term, sample
weights and masks, regularisation, batch-norm statistics, one forward pass,
saving and resuming, schedules, mixed precision and models that end in softmax.
Distribution is in `test_distribution`.
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import reference
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
    weights_of,
)

import keras_kd as kd

# What `test_distribution` goes through.
every_loss = pytest.mark.parametrize("name", kd.losses.NAMES)
# What a step does around a loss depends on what the loss needs: nothing, the
# teacher's weights alone, numbers of each example, or all of its logits.
each_need = pytest.mark.parametrize(
    "name", ["label_smoothing", "kd_sim", "kd_pt_sim", "kd"]
)


def get_loss(name, **arguments):
    """A loss by name, nothing of it left to chance."""
    if name == "kd_sampled":
        arguments["k"] = 1.0
    return kd.losses.get(name, **arguments)


# Arguments of `compile` where how it runs is tested.
TRACED = {"run_eagerly": False}


def compiled(student, teacher, loss, optimizer=None, said=None, **kwargs):
    distiller = kd.Distiller(student, teacher, **(said or {}))
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    distiller.compile(optimizer, loss, **{**EAGERLY, **kwargs})
    return distiller


class Calls(layers.Layer):
    """Passes its input on and counts, in the graph, how often."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs


def counted_mlp(**kwargs):
    model, calls = mlp(**kwargs), Calls()
    return keras.Model(model.inputs, calls(model.outputs[0])), calls


def named_loss(name, teacher):
    """A loss, told that the logit layer comes before the counter."""
    arguments = {}
    if "sim" in name:
        arguments["logit_layer"] = teacher.layers[-2].name
    return get_loss(name, **arguments)


# -- the distillation term ----------


def test_training_step_is_that_of_temperature_squared_kl():
    """A step of SGD with KD against gradients in float64 NumPy."""
    x, labels, _ = data(8)
    student, teacher = mlp(seed=1), mlp(seed=5)
    logits, teacher_logits = (
        outputs_of(m, x).astype("float64") for m in (student, teacher)
    )
    before = weights_of(student)
    fit(compiled(student, teacher, kd.KD(0.7, 4.0)), x, labels)
    target = reference.kd_target(teacher_logits, 4.0)
    gradient = reference.per_example_gradient(
        logits, labels, [(0.7, target)], 4.0
    ).mean(0)
    np.testing.assert_allclose(
        weights_of(student)[-1], before[-1] - 0.1 * gradient, atol=1e-6
    )


def test_subtracting_a_constant_from_the_logits_changes_nothing():
    x, labels, _ = data(8)
    ends = []
    for shift in (0.0, -50.0):
        student, teacher = mlp(seed=1), mlp(seed=5)
        moved = keras.Model(teacher.inputs, teacher.outputs[0] + shift)
        fit(compiled(student, moved, kd.KD()), x, labels)
        ends.append(weights_of(student))
    assert_same_weights(*ends)


def test_gradient_where_the_student_is_confidently_wrong():
    x, labels, _ = data(8)
    student, teacher = mlp(seed=1), mlp(seed=5)
    wrong = np.zeros(CLASSES, "float32")
    wrong[(labels[0] + 1) % CLASSES] = 150
    student.layers[-1].bias.assign(wrong)
    before = weights_of(student)[-1]
    fit(compiled(student, teacher, kd.KD(1.0, 1.0)), x, labels)
    moved = (before - weights_of(student)[-1]) / 0.1
    target = reference.softmax(outputs_of(teacher, x)).mean(0)
    expected = reference.softmax(wrong) - target
    np.testing.assert_allclose(moved, expected, atol=2e-4)


def test_float16_logits_are_computed_in_float32():
    x, labels, _ = data(8)
    student, teacher = mlp(seed=1), mlp(seed=5)
    half = keras.Model(
        teacher.inputs, keras.ops.cast(teacher.outputs[0], "float16")
    )
    history = fit(compiled(student, half, kd.KD(1.0, 4.0)), x, labels)
    again = mlp(seed=1)
    expected = fit(compiled(again, teacher, kd.KD(1.0, 4.0)), x, labels)
    np.testing.assert_allclose(
        history.history["loss"], expected.history["loss"], rtol=1e-3
    )


# -- weights, masks, other losses ----------


@each_need
def test_sample_weights_weigh_the_whole_loss(name):
    """Weight 2 on half, 0 on the other = the first half twice, as Keras."""
    x, labels, _ = data(8)
    first_half = np.tile(np.arange(4), 2)
    ends = []
    for rows, weights in (
        (np.arange(8), np.repeat([2, 0], 4).astype("float32")),
        (first_half, None),
    ):
        student = mlp(seed=1)
        distiller = compiled(student, mlp(seed=5), get_loss(name))
        fit(distiller, x[rows], labels[rows], weights)
        ends.append(weights_of(student))
    assert_same_weights(*ends)


@pytest.mark.parametrize("name", ["kd_pt_sim", "kd"])
def test_zero_weights_leave_the_student_alone(name):
    x, labels, _ = data(8)
    student = mlp(seed=1)
    before = weights_of(student)
    distiller = compiled(student, mlp(seed=5), get_loss(name))
    fit(distiller, x, labels, np.zeros(len(x), "float32"))
    assert_same_weights(weights_of(student), before, 0)


def test_class_weights_are_sample_weights_by_label():
    x, labels, _ = data(8)
    class_weight = {0: 2.0, 3: 0.5}
    by_label = np.array([class_weight.get(k, 1.0) for k in labels], "float32")
    ends = []
    for arguments in ({"class_weight": class_weight}, {"weights": by_label}):
        student = mlp(seed=1)
        distiller = compiled(student, mlp(seed=5), kd.KDPt())
        fit(distiller, x, labels, **arguments)
        ends.append(weights_of(student))
    assert_same_weights(*ends)


def language_model(seed, units=4, words=9, recurrent=False):
    """A model of padded sequences, which compiles fast if not recurrent."""
    inputs = keras.Input((6,), dtype="int32")
    initializer = keras.initializers.RandomUniform(-1, 1, seed=seed)
    x = layers.Embedding(words, units, initializer, mask_zero=True)(inputs)
    if recurrent:
        x = layers.LSTM(
            units,
            return_sequences=True,
            kernel_initializer=initializer,
            recurrent_initializer=initializer,
        )(x)
    return keras.Model(
        inputs, layers.Dense(words, kernel_initializer=initializer)(x)
    )


def tokens(seed=0):
    random = np.random.default_rng(seed)
    x = random.integers(1, 9, (8, 6)).astype("int32")
    labels = random.integers(0, 9, (8, 6)).astype("int32")
    lengths = random.integers(1, 6, 8)
    x[np.arange(6) >= lengths[:, None]] = 0
    return x, labels


def test_class_weights_reach_every_step_of_a_sequence():
    x, labels = tokens()
    by_label = np.where(labels == 3, 4.0, 1.0).astype("float32")
    ends = []
    for arguments in ({"class_weight": {3: 4.0}}, {"weights": by_label}):
        student = language_model(1)
        fit(
            compiled(student, language_model(2), kd.KDPt()),
            x,
            labels,
            **arguments,
        )
        ends.append(weights_of(student))
    assert_same_weights(*ends)


@each_need
def test_padded_steps_count_neither_in_the_loss_nor_in_its_mean(name):
    x, labels = tokens()
    as_users_do = name == "kd"
    student, teacher = (
        language_model(seed, recurrent=as_users_do) for seed in (1, 2)
    )
    logits, teacher_logits = outputs_of(student, x), outputs_of(teacher, x)
    loss = get_loss(name)
    # The loss at padded steps is made enormous, should it count.
    garbage = np.where(x == 0, (labels + 4) % 9, labels)
    how = TRACED if as_users_do else EAGERLY
    history = compiled(student, teacher, loss, **how).fit(
        x, garbage, batch_size=8, verbose=0
    )
    y_true = {
        "labels": labels,
        **loss.teacher_statistics(
            keras.ops.convert_to_tensor(labels),
            keras.ops.convert_to_tensor(teacher_logits),
        ),
    }
    per_step = np.array(loss.call(y_true, logits))
    expected = per_step[x != 0].mean()
    np.testing.assert_allclose(history.history["loss"][0], expected, rtol=1e-5)


def test_regularisation_and_add_loss_are_in_the_objective():
    class Penalty(layers.Layer):
        def call(self, inputs):
            self.add_loss(0.01 * keras.ops.sum(keras.ops.square(inputs)))
            return inputs

    x, labels, _ = data(8)
    regulariser = keras.regularizers.L2(0.05)
    base = mlp(seed=1, kernel_regularizer=regulariser)
    student = keras.Model(base.inputs, Penalty()(base.outputs[0]))
    plain = mlp(seed=1)
    logits = outputs_of(plain, x)
    kernel = plain.get_weights()[0]
    extra = 0.05 * (kernel**2).sum() + 0.01 * (logits**2).sum()
    losses = [
        fit(compiled(s, None, kd.LabelSmoothing()), x, labels).history["loss"]
        for s in (student, plain)
    ]
    np.testing.assert_allclose(losses[0][0] - losses[1][0], extra, rtol=1e-5)
    assert_weights_differ(weights_of(student), weights_of(plain))


def test_the_teachers_regularisation_is_not_in_the_objective():
    x, labels, _ = data(8)
    losses = [
        fit(
            compiled(mlp(seed=1), mlp(seed=5, **regulariser), kd.KDPt()),
            x,
            labels,
        ).history["loss"]
        for regulariser in (
            {},
            {"kernel_regularizer": keras.regularizers.L2(1.0)},
        )
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


# -- models left alone ----------


def batch_norm_mlp(seed):
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(6, kernel_initializer="ones")(inputs)
    x = layers.BatchNormalization(momentum=0.5)(x)
    x = layers.Dropout(0.5, seed=seed)(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def test_batch_norm_statistics_move_in_the_students_training_alone():
    x, labels, _ = data(16)
    student, teacher = batch_norm_mlp(1), batch_norm_mlp(2)
    distiller = compiled(student, teacher, kd.KDPt())
    teacher_before = weights_of(teacher)
    start = weights_of(student)
    fit(distiller, x, labels)
    assert_same_weights(weights_of(teacher), teacher_before, 0)
    assert_weights_differ(weights_of(student), start)
    trained = weights_of(student)
    distiller.evaluate(x, labels, verbose=0)
    assert_same_weights(weights_of(student), trained, 0)


def test_the_teacher_object_is_left_as_it_was_found():
    teacher = mlp(seed=5)
    teacher.layers[1].trainable = False
    teacher.compile("sgd", "mse")
    optimizer = teacher.optimizer
    student = mlp(seed=1)
    distiller = compiled(student, teacher, kd.KDPtSim())
    fit(distiller, *data(8)[:2])
    assert teacher.trainable
    assert not teacher.layers[1].trainable
    assert teacher.optimizer is optimizer
    assert len(distiller.trainable_variables) == len(
        student.trainable_variables
    )


@each_need
def test_evaluate_is_plain_cross_entropy_without_the_teacher(name):
    x, labels, weights = data()
    student = mlp(seed=1, kernel_regularizer=keras.regularizers.L2(0.1))
    teacher, calls = counted_mlp(seed=5)
    how = TRACED if name == "kd" else EAGERLY
    distiller = compiled(student, teacher, named_loss(name, teacher), **how)
    result = distiller.evaluate(
        x, labels, sample_weight=weights, verbose=0, return_dict=True
    )
    log_q = reference.log_softmax(outputs_of(student, x))
    expected = -(log_q[np.arange(len(x)), labels] * weights).mean()
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)
    assert set(result) == {"loss"}
    assert calls.count == 0


@each_need
def test_a_step_runs_each_model_once_and_the_teacher_only_if_needed(name):
    x, labels, _ = data(16)
    student, student_calls = counted_mlp(seed=1)
    teacher, teacher_calls = counted_mlp(seed=5)
    loss = named_loss(name, teacher)
    needed = name not in ("label_smoothing", "kd_sim")
    how = TRACED if needed else EAGERLY
    fit(compiled(student, teacher, loss, **how), x, labels)
    assert student_calls.count == 2
    assert teacher_calls.count == (2 if needed else 0)


def test_predict_gives_the_students_outputs():
    x, labels, _ = data()
    student = mlp(seed=1)
    distiller = compiled(student, mlp(seed=5), kd.KD())
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0), outputs_of(student, x), atol=1e-6
    )


# -- saving and resuming ----------


def test_training_goes_on_after_loading_as_if_uninterrupted(tmp_path):
    x, labels, _ = data(16)
    adam = keras.optimizers.Adam(0.05)
    distiller = compiled(mlp(seed=1), mlp(seed=5), kd.KDPtSim(), adam)
    fit(distiller, x, labels)
    distiller.loss.pt_weight = 0.2
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert int(loaded.optimizer.iterations) == 2
    assert float(loaded.loss.pt_weight) == pytest.approx(0.2)
    for model in (distiller, loaded):
        fit(model, x, labels)
    assert_same_weights(
        weights_of(distiller.student), weights_of(loaded.student), 1e-6
    )


def test_draws_go_on_after_loading_as_if_uninterrupted(tmp_path):
    """Also in a fresh Distiller that loads the weights alone."""

    def make(how):
        loss = kd.KDSampled(k=2, seed=3)
        return compiled(mlp(seed=1), mlp(seed=5), loss, "sgd", **how)

    x, labels, _ = data(16)
    distiller = make(TRACED)
    fit(distiller, x, labels)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    fresh = make(EAGERLY)
    fresh.load_weights(tmp_path / "distiller.weights.h5")
    for model in (distiller, loaded, fresh):
        fit(model, x, labels)
    for model in (loaded, fresh):
        assert_same_weights(
            weights_of(distiller.student), weights_of(model.student), 1e-6
        )


def test_a_saved_distiller_can_leave_the_teacher_out(tmp_path):
    x, labels, _ = data(8)
    student, teacher = mlp(seed=1), mlp(300, seed=5)
    sizes = {}
    for save_teacher in (True, False):
        distiller = kd.Distiller(student, teacher, save_teacher=save_teacher)
        distiller.compile("sgd", kd.KDPt(), **EAGERLY)
        path = tmp_path / f"{save_teacher}.keras"
        distiller.save(path)
        sizes[save_teacher] = os.path.getsize(path)
        weights = tmp_path / f"{save_teacher}.weights.h5"
        distiller.save_weights(weights)
        sizes[save_teacher, "weights"] = os.path.getsize(weights)
    assert sizes[False] < sizes[True] - 10_000
    assert sizes[False, "weights"] < sizes[True, "weights"] - 10_000
    loaded = keras.models.load_model(tmp_path / "False.keras")
    assert loaded.teacher is None
    with pytest.raises(ValueError, match="needs .*teacher"):
        fit(loaded, x, labels)
    loaded.teacher = teacher
    fit(loaded, x, labels)
    fit(distiller, x, labels)
    assert_same_weights(weights_of(loaded.student), weights_of(student))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="The file is Keras's, the same on each backend.",
)
def test_the_saved_student_has_no_trace_of_the_library(tmp_path):
    x, labels, _ = data(8)
    student = mlp(seed=1)
    distiller = compiled(student, mlp(seed=5), kd.KDPtSim())
    fit(distiller, x, labels)
    distiller.student.save(tmp_path / "student.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np;"
        "m = keras.models.load_model('student.keras');"
        "assert 'keras_kd' not in sys.modules;"
        "np.save('y.npy', m.predict(np.load('x.npy'), verbose=0))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), outputs_of(student, x), atol=1e-6
    )


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("built", [True, False])
def test_backup_and_restore_from_the_first_epoch(tmp_path, built):
    x, labels, _ = data(8)

    def make():
        keras.utils.set_random_seed(3)
        student = mlp(seed=1)
        if not built:
            student = keras.Sequential(
                [layers.Dense(4, "relu"), layers.Dense(CLASSES)]
            )
        sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        return compiled(student, mlp(seed=5), kd.KDPt(), sgd)

    def run(distiller, *callbacks):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        fit(distiller, x, labels, epochs=2, callbacks=[backup, *callbacks])
        return weights_of(distiller.student)

    uninterrupted = make()
    fit(uninterrupted, x, labels, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run(make(), Stop())
    assert_same_weights(run(make()), weights_of(uninterrupted.student), 1e-6)


# -- schedules ----------


def test_weights_and_temperature_change_after_the_first_fit():
    x, labels, _ = data(16)
    loss = kd.KDPt(0.9, 1.0)
    first = compiled(mlp(seed=1), mlp(seed=5), loss, **TRACED)
    fit(first, x, labels)
    first.loss.weight, first.loss.temperature = 0.1, 5.0
    middle = weights_of(first.student)
    fit(first, x, labels)
    fresh = compiled(mlp(seed=1), mlp(seed=5), kd.KDPt(0.1, 5.0))
    fresh.student.set_weights(middle)
    fit(fresh, x, labels)
    assert_same_weights(weights_of(first.student), weights_of(fresh.student))


def test_a_schedule_sets_the_values_of_each_epoch():
    x, labels, _ = data(16)
    schedule = kd.callbacks.LossSchedule(
        weight=lambda epoch: [0.9, 0.1][epoch],
        temperature=lambda epoch: [1.0, 5.0][epoch],
    )
    scheduled = compiled(mlp(seed=1), mlp(seed=5), kd.KDPt())
    fit(scheduled, x, labels, epochs=2, callbacks=[schedule])
    by_hand = compiled(mlp(seed=1), mlp(seed=5), kd.KDPt(0.9, 1.0))
    fit(by_hand, x, labels)
    by_hand.loss.assign(weight=0.1, temperature=5.0)
    fit(by_hand, x, labels)
    assert_same_weights(
        weights_of(scheduled.student), weights_of(by_hand.student)
    )


# -- precision and softmax ----------


def test_float16_student_beside_a_float32_teacher():
    x, labels, _ = data(16)
    teacher, full = mlp(seed=5), mlp(seed=1)
    keras.config.set_dtype_policy("mixed_float16")
    half = mlp(seed=1)
    losses = {}
    for student in (full, half):
        distiller = compiled(student, teacher, kd.KD())
        losses[student is half] = fit(distiller, x, labels).history["loss"]
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    np.testing.assert_allclose(losses[True], losses[False], rtol=5e-3)
    assert_same_weights(half.get_weights(), full.get_weights(), tolerance=5e-3)


def test_float16_teacher_beside_a_float32_student():
    x, labels, _ = data(8)
    keras.config.set_dtype_policy("float16")
    teacher = mlp(seed=5)
    keras.config.set_dtype_policy("float32")
    student = mlp(seed=1)
    history = fit(compiled(student, teacher, kd.KD()), x, labels).history
    assert np.isfinite(history["loss"]).all()


class SubclassedSoftmax(keras.Model):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.softmax = layers.Softmax()

    def call(self, inputs):
        return self.softmax(self.base(inputs))


def softmax_ended(kind, seed):
    base = mlp(seed=seed)
    if kind == "dense":
        base.layers[-1].activation = keras.activations.softmax
        return keras.Model.from_config(base.get_config()), base
    ends = {
        "activation": lambda x: layers.Activation("softmax")(x),
        "layer": lambda x: layers.Softmax()(x),
        "operation": lambda x: keras.ops.softmax(x),
    }
    if kind == "subclassed":
        return SubclassedSoftmax(base), base
    return keras.Model(base.inputs, ends[kind](base.outputs[0])), base


def trained_by_logits(*models, **arguments):
    """The loss that `fit` logs, and what `evaluate` gives."""
    x, labels, _ = data(8)
    distiller = compiled(
        *models, kd.KD(0.5, 3.0), metrics=["accuracy"], **arguments
    )
    history = fit(distiller, x, labels).history
    return history["loss"], distiller.evaluate(x, labels, verbose=0)


@pytest.fixture(scope="module")
def of_logits():
    """What models of logits lead to, and the student's weights then."""
    student = mlp(seed=1)
    return *trained_by_logits(student, mlp(seed=5)), weights_of(student)


@pytest.mark.parametrize(
    "kind", ["dense", "activation", "layer", "operation", "subclassed"]
)
def test_models_that_end_in_softmax_are_used_by_their_logits(kind, of_logits):
    models = []
    for seed in (1, 5):
        ended, _ = softmax_ended(kind, seed)
        ended(data(1)[0])
        ended.set_weights(mlp(seed=seed).get_weights())
        models.append(ended)
    said = {}
    if kind == "subclassed" and keras.backend.backend() == "jax":
        # There is no graph, and Keras keeps no logits there.
        said = dict.fromkeys(
            ("student_output", "teacher_output"), "probabilities"
        )
    # Logits are looked up where the step is traced, where there is a graph and
    # where there is none.
    how = TRACED if kind in ("dense", "subclassed") else EAGERLY
    loss, evaluated = trained_by_logits(*models, said=said, **how)
    expected_loss, expected_evaluated, expected_weights = of_logits
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(evaluated, expected_evaluated, rtol=1e-5)
    assert_same_weights(weights_of(models[0]), expected_weights, 1e-5)


# -- how it runs ----------


WAYS = [
    {**TRACED, "steps_per_execution": 3},
    {**TRACED, "jit_compile": True},
]
# Keras runs PyTorch one step at a time, and compiles it where there is a C++
# compiler.
if keras.backend.backend() == "torch":
    WAYS = [TRACED]


def test_every_way_to_run_gives_the_same_student():
    x, labels, weights = data()
    ends = []
    for arguments in ({"run_eagerly": True}, *WAYS):
        student = mlp(seed=1)
        distiller = compiled(
            student,
            mlp(seed=5),
            kd.KDPtSim(),
            metrics=["accuracy"],
            **arguments,
        )
        history = fit(
            distiller, x, labels, weights, validation_data=(x, labels)
        ).history
        ends.append(all_that_came_out(distiller, history))
    for end in ends[1:]:
        assert_same_training(ends[0], end, rtol=1e-4)


def all_that_came_out(distiller, history):
    """The student's weights, logs and histograms."""
    scales = distiller.gradient_scales.values()
    histograms = [scale.summary()["histogram"] for scale in scales]
    return weights_of(distiller.student), history, histograms


def assert_same_training(one, other, rtol=1e-5):
    """Of what `all_that_came_out` of two trainings."""
    assert_same_weights(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for key, value in one[1].items():
        np.testing.assert_allclose(value, other[1][key], rtol=rtol)
    np.testing.assert_array_equal(one[2], other[2])


# Each kind of target, and of what the teacher is asked for; `test_distribution`
# holds traced steps of "kd_pt_sim" on two replicas against eager ones on one.
@pytest.mark.parametrize("name", ["kd_pt", "kd_sim", "kd_sampled", "kd", "dkd"])
def test_traced_steps_are_those_that_run_eagerly(name):
    """What the tests that run steps eagerly rely on."""
    x, labels, weights = data(16)
    ends = []
    for traced in (False, True):
        distiller = compiled(
            *(mlp(seed=1), mlp(seed=5), get_loss(name)),
            run_eagerly=not traced,
        )
        history = fit(distiller, x, labels, weights).history
        ends.append(all_that_came_out(distiller, history))
    assert_same_training(*ends)


def test_losses_that_need_no_teacher_do_without():
    x, labels, _ = data(8)
    teacher = mlp(seed=5)
    ends = []
    rows = teacher.layers[-1].get_weights()[0].T
    for with_teacher in (True, False):
        student = mlp(seed=1)
        loss = kd.KDSim() if with_teacher else kd.KDSim(logit_layer=rows)
        fit(
            compiled(student, teacher if with_teacher else None, loss),
            x,
            labels,
        )
        ends.append(weights_of(student))
    assert_same_weights(*ends)


# Each kind of statistics, KD's as DKD's; that of KDPt is one of KDPtSim's.
@pytest.mark.parametrize(
    "name",
    ["label_smoothing", "kd_sim", "kd_pt_sim", "kd_topk", "kd_sampled", "dkd"],
)
def test_data_that_carry_the_statistics_need_no_teacher(name):
    x, labels, _ = data(8)
    teacher = mlp(seed=5)
    rows = teacher.layers[-1].get_weights()[0].T
    arguments = {"logit_layer": rows} if "sim" in name else {}
    online, cached = mlp(seed=1), mlp(seed=1)
    loss = get_loss(name, **arguments)
    fit(compiled(online, teacher, loss), x, labels)
    statistics = loss.teacher_statistics(
        keras.ops.convert_to_tensor(labels),
        keras.ops.convert_to_tensor(outputs_of(teacher, x)),
    )
    y = {"labels": labels, **{k: np.array(v) for k, v in statistics.items()}}
    how = TRACED if name == "kd_topk" else EAGERLY
    fit(compiled(cached, None, loss, **how), x, y)
    assert_same_weights(weights_of(online), weights_of(cached), 1e-6)


# -- interruptions -------------------------------------------------------------


class Interrupted(keras.utils.PyDataset):
    """Batches of 8, one of which can't be read."""

    def __init__(self, x, y, at):
        super().__init__()
        self._x, self._y, self._at = x, y, at

    def __len__(self):
        return len(self._x) // 8

    def __getitem__(self, index):
        if index == self._at:
            raise RuntimeError("no such file")
        rows = slice(8 * index, 8 * index + 8)
        return self._x[rows], self._y[rows]


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C at the end of a batch outside of training."""

    def on_test_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt

    def on_predict_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def all_variables(distiller):
    """Those of the student, of its optimizer and of the teacher."""
    models = distiller.student, distiller.optimizer, distiller.teacher
    return [variable for each in models for variable in each.variables]


def everything(distiller):
    """Their values."""
    return [
        np.array(keras.ops.convert_to_numpy(variable))
        for variable in all_variables(distiller)
    ]


# TensorFlow's order within an execution is its own, and PyTorch has none.
BROKEN_OFF = [(1, 0), (1, 2)]
if keras.backend.backend() == "jax":
    BROKEN_OFF.append((3, 2))


@pytest.mark.parametrize(("together", "at"), BROKEN_OFF)
def test_data_that_raise_leave_the_student_as_the_batches_before(together, at):
    x, labels, _ = data(24)
    distiller = compiled(
        *(mlp(seed=1), mlp(seed=5), kd.KD()),
        keras.optimizers.SGD(0.1, momentum=0.9),
        **TRACED,
        steps_per_execution=together,
    )
    fit(distiller, x[:8], labels[:8])
    start = everything(distiller)
    with pytest.raises(Exception, match="no such file"):
        distiller.fit(Interrupted(x, labels, at), shuffle=False, verbose=0)
    steps = int(distiller.optimizer.iterations) - 1
    # JAX may ask for a batch while the one before waits for its step.
    assert steps == at or keras.backend.backend() == "jax" and steps == at - 1
    found = everything(distiller)
    fit(distiller, x, labels)
    trained_on = weights_of(distiller.student)
    # The same from the start, without the batch that raises.
    for variable, value in zip(all_variables(distiller), start, strict=True):
        variable.assign(value)
    if steps:
        fit(distiller, x[: 8 * steps], labels[: 8 * steps])
    for ends in zip(everything(distiller), found, strict=True):
        np.testing.assert_allclose(*ends, rtol=1e-6)
    fit(distiller, x, labels)
    assert_same_weights(weights_of(distiller.student), trained_on, 1e-6)


@pytest.mark.parametrize("by", [RuntimeError, KeyboardInterrupt])
def test_what_is_interrupted_outside_of_training_changes_nothing(by):
    x, labels, _ = data(16)
    distiller = compiled(
        *(mlp(seed=1), mlp(seed=5), kd.KD()),
        keras.optimizers.SGD(0.1, momentum=0.9),
        metrics=["accuracy"],
    )
    fit(distiller, x, labels)
    trained = everything(distiller)
    is_data = by is RuntimeError
    given = Interrupted(x, labels, 1 if is_data else None)
    callbacks = [] if is_data else [Interrupt()]
    # PyDataset's errors come wrapped.
    raised = BaseException if is_data else KeyboardInterrupt
    match = "no such file" if is_data else None
    for run in (distiller.evaluate, distiller.predict):
        with pytest.raises(raised, match=match):
            run(given, verbose=0, callbacks=callbacks)
        for now, then in zip(everything(distiller), trained, strict=True):
            np.testing.assert_array_equal(now, then)
    with pytest.raises(raised, match=match):
        fit(distiller, x, labels, validation_data=given, callbacks=callbacks)
    assert int(distiller.optimizer.iterations) == 4
    fit(distiller, x, labels)
    assert int(distiller.optimizer.iterations) == 6
