"""NaN and infinity: the student stays as it was, and the origin is named."""

import keras
import numpy as np
import pytest
from keras import layers
from models import CLASSES, EAGERLY, FEATURES, data, fit, mlp, uniform

import keras_kd as kd
from keras_kd import monitors, soundness


def normalised_student():
    """A student whose forward pass changes statistics, too."""
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(6, "relu", kernel_initializer=uniform(1))(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def everything(distiller):
    """The student's and the optimizer's values."""
    variables = [*distiller.student.variables, *distiller.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def assert_refused_and_kept(distiller, x, labels, *words):
    """The first batch is sound and trained on, the second one is not."""
    fit(distiller, np.ones_like(x), labels)
    before = everything(distiller)
    with pytest.raises(ValueError) as caught:
        fit(distiller, x, labels)
    message = str(caught.value)
    for word in ("Received", "left the student as it was", *words):
        assert word in message, message
    for now, then in zip(everything(distiller), before, strict=True):
        np.testing.assert_array_equal(now, then)


def compiled(student, teacher, **arguments):
    distiller = kd.Distiller(student, teacher)
    # An optimizer with a state.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    distiller.compile(optimizer, kd.KDPt(), **arguments)
    return distiller


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}])
def test_inputs(how):
    if keras.backend.backend() == "torch":
        how = {}  # Compiling needs a C++ compiler there.
    x, labels, _ = data(8)
    distiller = compiled(normalised_student(), mlp(), **how)
    for value in (np.nan, np.inf):
        x[3, 1] = value
        assert_refused_and_kept(
            distiller, x, labels, "in 1 value of a batch's inputs"
        )


def test_inputs_in_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = normalised_student()
    finally:
        keras.config.set_dtype_policy(policy)
    x, labels, _ = data(8)
    x[3, 1] = np.nan
    distiller = compiled(student, mlp())
    assert_refused_and_kept(distiller, x, labels, "inputs")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("by_class", [False, True])
def test_weights(value, by_class):
    x, labels, weights = data(8)
    weights[3] = value
    how = {"class_weight": {int(labels[3]): value}}
    distiller = compiled(normalised_student(), mlp())
    fit(distiller, x, labels)
    before = everything(distiller)
    with pytest.raises(ValueError, match="class weights .* left the student"):
        fit(distiller, x, labels, **(how if by_class else {"weights": weights}))
    for now, then in zip(everything(distiller), before, strict=True):
        np.testing.assert_array_equal(now, then)


class LogOrZero(layers.Layer):
    """The logarithm, or 0 at 0, where the gradient is infinite still."""

    def call(self, x):
        return keras.ops.where(x > 0, keras.ops.log(x), 0.0)


def logarithmic_student():
    """A student whose loss is finite at 0, and its gradient is not."""
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(6, use_bias=False, kernel_initializer=uniform(1))(inputs)
    x = LogOrZero()(x * x)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


@pytest.mark.parametrize("how", [{}, EAGERLY])
@pytest.mark.parametrize("optimizer", [{}, {"gradient_accumulation_steps": 3}])
def test_gradients(how, optimizer):
    x, labels, _ = data(8)
    distiller = kd.Distiller(logarithmic_student(), mlp())
    distiller.compile(keras.optimizers.Adam(**optimizer), kd.KD(), **how)
    fit(distiller, x, labels)
    before = everything(distiller)
    x[3] = 0
    with pytest.raises(monitors.DivergedError, match="gradient is not finite"):
        fit(distiller, x, labels)
    for now, then in zip(everything(distiller), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert np.isfinite(distiller.evaluate(x, labels, verbose=0)).all()


def test_complex_gradients():
    values = np.array([1 + 2j, np.inf, 0, complex(0, np.nan)])
    gradients = keras.ops.convert_to_tensor(values.astype("complex64"))
    optimizer = keras.optimizers.SGD()
    for given, bad in ((gradients[:1], 0), (gradients, 2), (gradients[2:], 1)):
        assert int(soundness.of_gradients([None, given], optimizer)) == bad


def test_squares_of_gradients_may_be_too_large():
    """As for Adam, whose step is 0 then: the gradients are numbers."""
    x, labels, weights = data(8)
    distiller = kd.Distiller(normalised_student(), mlp())
    distiller.compile("adam", kd.KD())
    fit(distiller, x, labels, weights=1e22 * weights)
    assert all(np.isfinite(w).all() for w in distiller.student.get_weights())


def test_teacher():
    x, labels, _ = data(8)
    teacher = mlp(name="broken")
    distiller = compiled(normalised_student(), teacher)
    fit(distiller, x, labels)
    teacher.layers[-1].bias.assign(np.full(CLASSES, np.nan, "float32"))
    before = everything(distiller)
    with pytest.raises(ValueError, match="teacher 'broken' for 8 examples"):
        fit(distiller, x, labels)
    for now, then in zip(everything(distiller), before, strict=True):
        np.testing.assert_array_equal(now, then)


def with_bias(model, values):
    """The model, whose biases are 0 but for those of a dict by class."""
    bias = np.zeros(CLASSES, "float32")
    for class_id, value in values.items():
        bias[class_id] = value
    model.layers[-1].bias.assign(bias)
    return model


@pytest.mark.parametrize("of_teacher", [0.0, np.nan])
def test_student(of_teacher):
    """It is named first where both are broken."""
    x, labels, _ = data(8)
    student = with_bias(normalised_student(), {1: np.inf})
    teacher = with_bias(mlp(), {2: of_teacher})
    distiller = compiled(student, teacher, **EAGERLY)
    with pytest.raises(ValueError, match="student's loss .*learning rate"):
        fit(distiller, x, labels)


def test_a_student_beyond_float32_beside_a_teacher_that_rules_a_class_out():
    x, labels, _ = data(8)
    distiller = kd.Distiller(
        with_bias(mlp(), {0: 3e38, 2: -3e38}),
        with_bias(mlp(seed=5), {3: -np.inf}),
    )
    distiller.compile("sgd", kd.KD(), **EAGERLY)
    with pytest.raises(ValueError, match="student's loss is not finite"):
        fit(distiller, x, np.zeros_like(labels))


def test_a_class_that_the_student_rules_out_takes_no_even_share():
    """Smoothing gives it mass: its loss is infinite, by the student."""
    x, labels, _ = data(8)
    distiller = kd.Distiller(with_bias(mlp(), {2: -np.inf}))
    distiller.compile("sgd", kd.LabelSmoothing(), **EAGERLY)
    with pytest.raises(ValueError, match="student's loss is not finite"):
        fit(distiller, x, np.where(labels == 2, 0, labels))


def test_one_example_is_enough():
    x, labels, _ = data(8)
    labels = np.where(labels == 2, 0, labels)
    labels[5] = 2
    distiller = kd.Distiller(with_bias(mlp(), {2: -np.inf}))
    distiller.compile("sgd", kd.LabelSmoothing(weight=0.0), **EAGERLY)
    with pytest.raises(ValueError, match="student .* for 1 example of"):
        fit(distiller, x, labels)


def test_evaluation():
    x, labels, _ = data(8)
    distiller = compiled(normalised_student(), mlp())
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="inputs are not finite"):
        distiller.evaluate(x, labels, verbose=0)


def test_training_goes_on_after_a_refusal():
    x, labels, _ = data(8)
    broken = x.copy()
    broken[0, 0] = np.nan
    one, other = (
        compiled(normalised_student(), mlp(), **how) for how in ({}, EAGERLY)
    )
    other.student.set_weights(one.student.get_weights())
    with pytest.raises(ValueError, match="inputs"):
        fit(one, broken, labels)
    for distiller in (one, other):
        fit(distiller, x, labels)
    for now, then in zip(everything(one), everything(other), strict=True):
        np.testing.assert_allclose(now, then, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, 1e20, np.nan, 0.0, -1.0, 1e-20])
def test_temperatures_that_leave_no_digits(value):
    with pytest.raises(ValueError, match="`temperature` of KD "):
        kd.KD(temperature=value)
    x, labels, _ = data(8)
    distiller = compiled(mlp(), mlp(seed=1))
    before = everything(distiller)
    schedule = kd.callbacks.LossSchedule(temperature=lambda epoch: value)
    with pytest.raises(ValueError, match="`temperature` of KDPt "):
        fit(distiller, x, labels, callbacks=[schedule])
    for now, then in zip(everything(distiller), before, strict=False):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("value", [-np.inf, np.finfo("float32").min])
def test_a_teacher_that_rules_a_class_out_is_not_blamed(value):
    """An even share of the rest is too much for a student that does so too."""
    x, labels, _ = data(8)
    models = mlp(), mlp(seed=5)
    for model in models:
        with_bias(model, {2: value, 3: value})
    labels = np.where(np.isin(labels, (2, 3)), 0, labels)
    distiller = compiled(*models, **EAGERLY)
    with pytest.raises(ValueError, match="student's loss .* rules out by"):
        fit(distiller, x, labels)
    distiller.compile("sgd", kd.KD(), **EAGERLY)
    fit(distiller, x, labels)
