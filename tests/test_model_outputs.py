"""What a model gives is read from its graph or said, and never guessed."""

import keras
import numpy as np
import pytest
import reference
from keras import layers, ops
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    data,
    fit,
    mlp,
    outputs_of,
    uniform,
)

import keras_kd as kd
from keras_kd.logits import LogitReader, graph_kind

LAMBDA = 0.5


class OwnSoftmax(layers.Layer):
    """A softmax that is not Keras's."""

    def call(self, x):
        exp = ops.exp(x - ops.max(x, axis=-1, keepdims=True))
        return exp / ops.sum(exp, axis=-1, keepdims=True)


class GateLast(keras.Model):
    """Gives logits; the last layer that it declares ends in softmax."""

    def __init__(self, seed=3):
        super().__init__()
        self.classifier = layers.Dense(
            CLASSES, kernel_initializer=uniform(seed)
        )
        self.gate = layers.Dense(2, "softmax", kernel_initializer=uniform(9))

    def call(self, x):
        gate = self.gate(x)
        return gate[:, :1] * self.classifier(x) + gate[:, 1:]


def ending_in(*endings, seed=5):
    """A functional model, and the one whose logits go into its endings."""
    logits = mlp(seed=seed)
    x = logits.outputs[0]
    for ending in endings:
        x = ending(x)
    return keras.Model(logits.inputs, x), logits


def expected_loss(student_logits, teacher_logits, labels, temperature=2.0):
    target = reference.pt_target(labels, teacher_logits, temperature)
    return reference.per_example_loss(
        student_logits, labels, [(LAMBDA, target)], temperature
    ).mean()


def losses_of(student, teacher, **outputs):
    """The loss of a batch, logged by a training step, and by evaluation."""
    x, labels, _ = data()
    distiller = kd.Distiller(student, teacher, **outputs)
    distiller.compile(
        keras.optimizers.SGD(0.0), kd.KDPt(LAMBDA, 2.0), **EAGERLY
    )
    history = fit(distiller, x, labels, batch_size=len(x))
    plain = distiller.evaluate(x, labels, len(x), verbose=0)
    return history.history["loss"][0], plain


def assert_losses(student, teacher, student_logits, teacher_logits, **outputs):
    x, labels, _ = data()
    trained, evaluated = losses_of(student, teacher, **outputs)
    student_logits = outputs_of(student_logits, x)
    teacher_logits = outputs_of(teacher_logits, x)
    expected = expected_loss(student_logits, teacher_logits, labels)
    np.testing.assert_allclose(trained, expected, rtol=1e-4)
    log_q = reference.log_softmax(student_logits)
    plain = -log_q[np.arange(len(labels)), labels].mean()
    np.testing.assert_allclose(evaluated, plain, rtol=1e-4)


def test_a_softmax_inside_of_a_model_is_not_its_output():
    x = data()[0]
    student, teacher = GateLast(), GateLast(seed=4)
    student(x), teacher(x)
    assert_losses(student, teacher, student, teacher)


class Attentive(keras.Model):
    """Attention with a softmax, and logits without one."""

    def __init__(self):
        super().__init__()
        self.classifier = layers.Dense(CLASSES, kernel_initializer=uniform(2))
        self.attention = layers.Softmax()

    def call(self, x):
        return self.classifier(x * self.attention(x))


def test_an_attention_softmax_is_not_its_output():
    student = Attentive()
    student(data()[0])
    assert_losses(student, student_twin(student), student, student)


def student_twin(model):
    """Another model with the same weights."""
    twin = type(model)()
    twin(data()[0])
    twin.set_weights(model.get_weights())
    return twin


RECOGNISED = {
    "reshaped": [layers.Softmax(), layers.Reshape((CLASSES,))],
    "cast": [layers.Softmax(), lambda x: ops.cast(x, "float32")],
    "activation": [layers.Activation("softmax"), layers.Activation("linear")],
    "operation": [ops.softmax],
    "log": [ops.log_softmax],
    "own_axis": [layers.Softmax(axis=1)],
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_softmax_in_the_graph_is_recognised(name):
    student, logits = ending_in(*RECOGNISED[name])
    teacher, teacher_logits = ending_in(*RECOGNISED[name], seed=8)
    assert_losses(student, teacher, logits, teacher_logits)


def test_the_mean_of_members_is_a_mean_of_probabilities():
    inputs = keras.Input((FEATURES,))
    members = [ending_in(layers.Softmax(), seed=seed)[0] for seed in (1, 7)]
    mean = layers.Average()([member(inputs) for member in members])
    teacher = keras.Model(inputs, mean)
    x, labels, _ = data()
    trained, _ = losses_of(mlp(), teacher)
    logits = np.log(np.mean([outputs_of(m, x) for m in members], axis=0))
    expected = expected_loss(outputs_of(mlp(), x), logits, labels)
    np.testing.assert_allclose(trained, expected, rtol=1e-4)


def unrecognised():
    """Models of probabilities whose graph does not tell, and their logits."""
    halves = [lambda x: ops.softmax(x) * 0.5, lambda x: x * 2.0]
    return {"own": ending_in(OwnSoftmax()), "halves": ending_in(*halves)}


@pytest.mark.parametrize("name", ["own", "halves"])
def test_probabilities_that_no_graph_tells_are_refused_unless_said(name):
    model, logits = unrecognised()[name]
    other = mlp(seed=1)
    before = model.get_weights()
    with pytest.raises(ValueError, match="student_output='probabilities'"):
        losses_of(model, other)
    with pytest.raises(ValueError, match="teacher_output='probabilities'"):
        losses_of(other, model)
    for one, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, weight)
    assert_losses(model, other, logits, other, student_output="probabilities")
    assert_losses(other, model, other, logits, teacher_output="probabilities")


class OwnCall(keras.Model):
    """Has a graph that ends in logits, and a `call` that adds a softmax."""

    def __init__(self, seed):
        inner = mlp(seed=seed)
        super().__init__(inner.inputs, inner.outputs[0])

    def call(self, inputs, training=None, mask=None):
        outputs = super().call(inputs, training=training, mask=mask)
        return ops.exp(ops.log_softmax(outputs))


def test_a_graph_says_nothing_of_a_call_of_ones_own():
    assert graph_kind(OwnCall(3)) is None
    around = keras.Sequential([keras.Input((FEATURES,)), OwnCall(3)])
    assert graph_kind(around) is None
    x, labels, _ = data()
    distiller = kd.Distiller(OwnCall(3))
    distiller.compile("sgd", kd.LabelSmoothing(), **EAGERLY)
    with pytest.raises(ValueError, match="values between 0 and 1"):
        distiller.evaluate(x, labels, verbose=0)
    said = kd.Distiller(OwnCall(3), student_output="probabilities")
    said.compile("sgd", kd.LabelSmoothing(), **EAGERLY)
    p = reference.softmax(outputs_of(mlp(seed=3), x))
    expected = -np.log(p[np.arange(len(x)), labels]).mean()
    found = said.evaluate(x, labels, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_probabilities_are_refused_in_evaluation():
    x, labels, _ = data()
    distiller = kd.Distiller(ending_in(OwnSoftmax())[0])
    distiller.compile("sgd", kd.LabelSmoothing())
    with pytest.raises(ValueError, match="student_output='probabilities'"):
        distiller.evaluate(x, labels, verbose=0)


@pytest.mark.parametrize("said", ["probabilities", "log_probabilities"])
def test_logits_said_to_be_something_else_are_refused(said):
    with pytest.raises(ValueError, match="said to give .*='logits'"):
        losses_of(mlp(), mlp(seed=1), student_output=said)
    with pytest.raises(ValueError, match="teacher .*said to give"):
        losses_of(mlp(), mlp(seed=1), teacher_output=said)


def test_probabilities_said_to_be_logits_are_refused():
    model, _ = ending_in(OwnSoftmax())
    with pytest.raises(ValueError, match="said to give logits"):
        losses_of(model, mlp(), student_output="logits")


def test_an_unknown_kind_of_output_is_refused_at_construction():
    with pytest.raises(ValueError, match="student_output.*'softmax'"):
        kd.Distiller(mlp(), student_output="softmax")
    with pytest.raises(ValueError, match="teacher_output.*'softmax'"):
        kd.Distiller(mlp(), mlp(), teacher_output="softmax")


class OwnProbabilities(keras.Model):
    """Gives probabilities, without a graph that tells."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES)
        self.softmax = OwnSoftmax()

    def call(self, x):
        return self.softmax(self.dense(x))


def test_a_teacher_is_looked_at_in_its_own_first_batch():
    x, labels, _ = data()
    distiller = kd.Distiller(mlp(), OwnProbabilities())
    distiller.compile("sgd", kd.KDPt())
    distiller.evaluate(x, labels, verbose=0)
    with pytest.raises(ValueError, match="teacher_output='probabilities'"):
        fit(distiller, x, labels)
    distiller.teacher = GateLast()
    fit(distiller, x, labels)
    distiller.teacher = OwnProbabilities()
    with pytest.raises(ValueError, match="teacher_output='probabilities'"):
        fit(distiller, x, labels)


def test_what_was_said_is_saved(tmp_path):
    model, _ = ending_in(layers.Softmax())
    distiller = kd.Distiller(
        model, mlp(), student_output="probabilities", teacher_output="logits"
    )
    distiller.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    assert again.student_output == "probabilities"
    assert again.teacher_output == "logits"


# -- a loss in a plain model ---------------------------------------------------


def plain_loss(model, loss):
    x, labels, _ = data()
    model.compile(keras.optimizers.SGD(0.0), loss)
    history = model.fit(x, labels, batch_size=len(x), verbose=0)
    return history.history["loss"][0]


def test_a_plain_model_that_ends_in_softmax_gets_the_right_loss():
    x, labels, _ = data()
    model, logits = ending_in(layers.Softmax())
    loss = kd.LabelSmoothing(0.2)
    target = reference.label_smoothing_target(labels, CLASSES, 0.2)
    expected = reference.per_example_loss(
        outputs_of(logits, x), labels, [(1.0, target)], 1.0
    ).mean()
    np.testing.assert_allclose(plain_loss(logits, loss), expected, rtol=1e-5)
    if keras.backend.backend() == "jax":  # Keras keeps no logits there.
        with pytest.raises(Exception, match="Received: probabilities"):
            plain_loss(model, loss)
    else:
        np.testing.assert_allclose(plain_loss(model, loss), expected, rtol=1e-5)


# Each backend raises an error of its own out of a compiled step.
@pytest.mark.filterwarnings("ignore")
def test_other_probabilities_of_a_plain_model_are_refused():
    model, _ = ending_in(OwnSoftmax())
    with pytest.raises(Exception, match="Received: probabilities"):
        plain_loss(model, kd.LabelSmoothing())


# -- the reader itself ---------------------------------------------------------


def test_what_graphs_tell():
    inputs = keras.Input((FEATURES,))
    inner = ending_in(layers.Softmax())[0]
    nested = keras.Model(inputs, inner(inputs))
    sequential = keras.Sequential([inputs, layers.Dense(3), layers.Softmax()])
    steps = keras.Input((4, FEATURES))
    timed = layers.TimeDistributed(layers.Dense(3, "softmax"))(steps)
    over_steps = layers.Softmax(axis=1)(steps)
    gate = layers.Dense(CLASSES, "softmax")(inputs)
    gated = layers.Dense(CLASSES)(inputs) * gate
    found = {
        "nested": graph_kind(nested),
        "sequential": graph_kind(sequential),
        "timed": graph_kind(keras.Model(steps, timed)),
        "over steps": graph_kind(keras.Model(steps, over_steps)),
        "gated": graph_kind(keras.Model(inputs, gated)),
        "dense": graph_kind(mlp()),
        "no graph": graph_kind(GateLast()),
    }
    assert found == {
        "nested": "probabilities",
        "sequential": "probabilities",
        "timed": "probabilities",
        "over steps": None,
        "gated": None,
        "dense": "logits",
        "no graph": None,
    }


def test_a_dict_with_one_tensor_is_that_tensor():
    logits = np.array([[1.0, -2.0]], "float32")
    reader = LogitReader(mlp())
    assert reader.logits({"logits": logits}) is logits
    with pytest.raises(ValueError, match="2 outputs"):
        reader.logits({"logits": logits, "features": logits})
