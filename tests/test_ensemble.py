"""Ensembles: the mean of probabilities, and a teacher like any other."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from caches import write
from keras import layers
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    data,
    fit,
    mlp,
    outputs_of,
    weights_of,
)

import keras_kd as kd
from keras_kd.fingerprint import teacher_fingerprint
from keras_kd.logits import graph_kind


def with_softmax(model, **kwargs):
    return keras.Model(model.inputs, layers.Softmax(**kwargs)(model.outputs[0]))


def mean_of(members, x, weights):
    """The mean of probabilities in float64."""
    found = [reference.softmax(outputs_of(m, x)) for m in members]
    return np.average(found, axis=0, weights=weights)


@keras.saving.register_keras_serializable("keras_kd_tests")
class Subclassed(keras.Model):
    """Logits from a model without a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("weights", [None, [1, 3, 2]])
def test_outputs_are_the_log_of_the_mean_probabilities(weights):
    x, _, _ = data()
    members = [mlp(seed=s) for s in (1, 2, 3)]
    given = [members[0], with_softmax(members[1]), members[2]]
    teacher = kd.ensemble(given, weights)
    expected = np.log(mean_of(members, x, weights))
    np.testing.assert_allclose(outputs_of(teacher, x), expected, rtol=1e-5)
    assert graph_kind(teacher) == "log_probabilities"


def test_confident_members_keep_their_digits():
    """A softmax that rounds to 0 has logits all the same."""
    inputs = keras.Input((4,))
    linear = keras.Model(
        inputs, layers.Dense(4, kernel_initializer="identity")(inputs)
    )
    x = np.array([[300.0, 0.0, -300.0, 100.0]], "float32")
    teacher = kd.ensemble([linear, linear])
    np.testing.assert_allclose(
        outputs_of(teacher, x), reference.log_softmax(x), rtol=1e-6, atol=1e-6
    )


def test_training_with_an_ensemble_is_training_with_its_mean():
    x, labels, _ = data()
    members = [mlp(seed=5), mlp(8, seed=6)]
    before = [weights_of(member) for member in members]
    teacher = kd.ensemble(members, [1, 2])
    logs = np.log(mean_of(members, x, [1, 2])).astype("float32")
    ends = []
    for of, y in (
        (teacher, labels),
        (None, {"labels": labels, "teacher_logits": logs}),
    ):
        distiller = kd.Distiller(mlp(seed=1), of)
        distiller.compile(keras.optimizers.SGD(0.1), kd.KD(0.9, 3.0), **EAGERLY)
        fit(distiller, x, y)
        ends.append(weights_of(distiller.student))
    assert_same_weights(*ends)
    for member, kept in zip(members, before, strict=True):
        assert_same_weights(weights_of(member), kept, 0)
        assert member.trainable


def test_it_is_saved_and_loaded_with_its_members(tmp_path):
    x, _, _ = data()
    teacher = kd.ensemble([mlp(seed=1), with_softmax(mlp(seed=2))], [1, 4])
    teacher.save(tmp_path / "teacher.keras")
    again = keras.models.load_model(tmp_path / "teacher.keras")
    np.testing.assert_allclose(
        outputs_of(again, x), outputs_of(teacher, x), rtol=1e-6
    )
    assert graph_kind(again) == "log_probabilities"
    assert teacher_fingerprint(again) == teacher_fingerprint(teacher)


def test_its_fingerprint_is_that_of_all_members_and_weights():
    def found(first=1, second=2, weights=None):
        return teacher_fingerprint(
            kd.ensemble([mlp(seed=first), mlp(seed=second)], weights)
        )

    assert found() == found()
    assert found()["weights"] != found(first=3)["weights"]
    assert found()["weights"] != found(second=3)["weights"]
    assert found()["graph"] != found(weights=[1, 2])["graph"]


def test_members_may_have_one_name():
    """As models that were loaded from files have."""
    x, _, _ = data()
    members = [mlp(seed=s, name="resnet") for s in (1, 2)]
    teacher = kd.ensemble(members)
    expected = np.log(mean_of(members, x, None))
    np.testing.assert_allclose(outputs_of(teacher, x), expected, rtol=1e-5)


def test_members_with_several_inputs():
    def two_inputs(seed):
        inputs = {k: keras.Input((FEATURES,), name=k) for k in ("a", "b")}
        return keras.Model(inputs, mlp(seed=seed)(inputs["a"] - inputs["b"]))

    x = {k: data(8, seed)[0] for seed, k in enumerate(("a", "b"))}
    members = [two_inputs(1), two_inputs(2)]
    teacher = kd.ensemble(members)
    expected = np.log(mean_of(members, x, None))
    np.testing.assert_allclose(outputs_of(teacher, x), expected, rtol=1e-5)


def test_a_member_without_a_graph_is_said_what_it_gives():
    x, _, _ = data()
    members = [mlp(seed=1), Subclassed()]
    with pytest.raises(ValueError, match="member 1, .* member_output='logits'"):
        kd.ensemble(members)
    teacher = kd.ensemble(members, member_output=[None, "logits"])
    expected = np.log(mean_of(members, x, None))
    np.testing.assert_allclose(outputs_of(teacher, x), expected, rtol=1e-5)


def test_relations_need_the_matrix_of_a_member():
    x, labels, _ = data()
    members = [mlp(seed=5), mlp(seed=6)]
    teacher = kd.ensemble(members)
    distiller = kd.Distiller(mlp(seed=1), teacher)
    with pytest.raises(ValueError, match=r"one logit layer\. .*joins .*matrix"):
        distiller.compile("sgd", kd.KDSim())
    rows = kd.similarity.logit_weights(members[0])
    distiller.compile("sgd", kd.KDPtSim(logit_layer=rows))
    fit(distiller, x, labels)


def test_an_average_of_heads_is_not_taken_for_the_first():
    inputs = keras.Input((FEATURES,))
    heads = [layers.Dense(CLASSES, name=n)(inputs) for n in ("one", "other")]
    model = keras.Model(inputs, layers.Average()(heads))
    with pytest.raises(ValueError, match="'one', 'other'"):
        kd.similarity.logit_weights(model)


def test_its_cache_is_that_of_all_members(tmp_path):
    x, labels, _ = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(8)
    members = [mlp(seed=5), with_softmax(mlp(seed=6))]
    teacher = kd.ensemble(members)
    loss = kd.KD(0.9, 3.0)
    cache = write(tmp_path / "cache", dataset, teacher, loss, dtype="float32")
    ends = []
    for of, given in (
        (teacher, dataset),
        (teacher, cache.attach(dataset, loss)),
    ):
        distiller = kd.Distiller(mlp(seed=1), of)
        distiller.compile(keras.optimizers.SGD(0.1), kd.KD(0.9, 3.0), **EAGERLY)
        distiller.fit(given, shuffle=False, verbose=0)
        ends.append(weights_of(distiller.student))
    assert_same_weights(*ends)
    other = kd.ensemble([members[0], mlp(seed=7)])
    distiller = kd.Distiller(mlp(seed=1), other)
    distiller.compile("sgd", kd.KD(0.9, 3.0))
    with pytest.raises(ValueError, match="not the one whose statistics"):
        distiller.fit(cache.attach(dataset, loss), verbose=0)


def test_diagnose_takes_an_ensemble():
    x, labels, _ = data(64)
    members = [mlp(seed=5), mlp(seed=6)]
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)
    found = kd.diagnose(kd.ensemble(members), dataset).numbers["teacher"]
    mean = mean_of(members, x, None)
    np.testing.assert_allclose(
        found["accuracy"], (mean.argmax(-1) == labels).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        found["confidence"], mean.max(-1).mean(), rtol=1e-4
    )


def half():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return mlp(seed=2)
    finally:
        keras.config.set_dtype_policy("float32")


def test_members_keep_their_own_precision():
    x, _, _ = data()
    members = [mlp(seed=1), half()]
    teacher = kd.ensemble(members)
    outputs = teacher(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    expected = np.log(mean_of(members, x, None))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(outputs), expected, rtol=1e-4, atol=1e-4
    )


def sigmoids():
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, layers.Dense(3, "sigmoid")(inputs))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kd.ensemble([mlp()]), ValueError, "at least two .* 1"),
        (lambda: kd.ensemble(mlp(name="a")), TypeError, "'a' .*Pass a list"),
        (
            lambda: kd.ensemble(mlp(name="a"), mlp(name="b")),
            TypeError,
            "'a', 'b' .*Pass a list",
        ),
        (lambda: kd.ensemble([mlp(), "b"]), TypeError, "member must .* 'str'"),
        (lambda: kd.ensemble(None), TypeError, "Received: None. Pass a list"),
        (
            lambda: kd.ensemble([mlp(), mlp()], ["1", "2"]),
            ValueError,
            r"weights=\['1', '2'\] for 2 members",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp(classes=4)]),
            ValueError,
            r"same classes.* \(None, 7\) .* \(None, 4\)",
        ),
        (
            lambda: kd.ensemble(
                [mlp(), keras.Sequential([keras.Input((3,)), layers.Dense(7)])]
            ),
            ValueError,
            r"same inputs.* \(None, 5\) float32 .* \(None, 3\) float32",
        ),
        (
            lambda: kd.ensemble([sigmoids(), sigmoids()]),
            ValueError,
            "softmax .* binary_probabilities",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp()], [1]),
            ValueError,
            r"weights=\[1\] for 2 members",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp()], [1, 0]),
            ValueError,
            r"weights=\[1, 0\]",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp()], [1, float("nan")]),
            ValueError,
            "nan",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp()], member_output="scores"),
            ValueError,
            "member_output.* 'scores'",
        ),
        (
            lambda: kd.ensemble([mlp(), mlp()], member_output=["logits"]),
            ValueError,
            "1 for 2 members",
        ),
        (
            lambda: kd.ensemble(
                [Subclassed(), Subclassed()], member_output="logits"
            ),
            ValueError,
            "without a graph",
        ),
    ],
)
def test_bad_members_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
