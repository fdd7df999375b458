"""Models that read different inputs of the same data.

The teacher's answers are worked out from the inputs that it names, so that one
which reads another input in the place of its own is noticed.
"""

import keras
import numpy as np
import pytest
import reference
from caches import compiled
from keras import layers
from models import CLASSES, FEATURES, outputs_of, uniform

import keras_kd as kd

EXAMPLES = 12


def by_name(names, seed=0, kind=dict, name=None):
    """A classifier of some inputs, each of which counts differently."""
    inputs = {each: keras.Input((FEATURES,), name=each) for each in names}
    x = layers.Concatenate()(list(inputs.values()))
    x = layers.Dense(4, "tanh", kernel_initializer=uniform(seed))(x)
    logits = layers.Dense(CLASSES, kernel_initializer=uniform(seed + 1))(x)
    if kind is list:
        inputs = list(inputs.values())
    return keras.Model(inputs, logits, name=name)


def data(names=("a", "b", "c"), seed=0):
    random = np.random.default_rng(seed)
    x = {
        name: random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
        for name in names
    }
    return x, random.integers(0, CLASSES, EXAMPLES).astype("int32")


def of(names, x):
    return {name: x[name] for name in names}


@pytest.mark.parametrize("chunks", [None, 2])
@pytest.mark.parametrize(
    ("own", "teachers"),
    [(("a", "c"), ("b", "c")), (("a", "b", "c"), ("a", "c"))],
)
def test_each_model_reads_the_inputs_that_it_names(own, teachers, chunks):
    x, labels = data()
    student, teacher = by_name(own), by_name(teachers, seed=5)
    logits = outputs_of(student, of(own, x))
    target = reference.kd_target(outputs_of(teacher, of(teachers, x)), 2.0)
    hard = reference.per_example_loss(logits, labels, [], 1.0).mean()
    loss = reference.per_example_loss(
        logits, labels, [(0.5, target)], 2.0, divergence=True
    ).mean()
    distiller = kd.Distiller(student, teacher, logit_chunks=chunks)
    distiller.compile("sgd", kd.KD(0.5, 2.0), run_eagerly=True)
    assert distiller.evaluate(x, labels, verbose=0) == pytest.approx(hard)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), logits, 1e-5)
    distiller.reset_metrics()  # As newer releases of Keras do by themselves.
    found = distiller.train_on_batch(x, labels, return_dict=True)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("logits", ["whole", "by chunks"])
def test_a_cache_of_a_teacher_that_reads_fewer(logits, tmp_path, monkeypatch):
    if logits == "by chunks":
        monkeypatch.setattr(
            "keras_kd.cache.teacher_pass.are_many", lambda *_: True
        )
    x, labels = data()
    teacher = by_name(("a", "c"), seed=5)
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), teacher, kd.KDPt(), verbose=0
    )
    logits = outputs_of(teacher, of(("a", "c"), x)).astype("float64")
    p = reference.softmax(logits / kd.KDPt().temperature)
    p = p[np.arange(EXAMPLES), labels]
    found = np.asarray(cache[np.arange(EXAMPLES)]["label_log_odds"])
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=2e-3, atol=1e-3)


def test_a_diagnosis_of_models_that_read_fewer():
    x, labels = data()
    student, teacher = by_name(("b", "c")), by_name(("a", "c"), seed=5)
    diagnosis = kd.diagnose(teacher, (x, labels), student=student)
    right = outputs_of(teacher, of(("a", "c"), x)).argmax(-1) == labels
    found = diagnosis.numbers["teacher"]["accuracy"]
    assert found == pytest.approx(right.mean())


def test_an_input_that_may_be_left_out():
    x, labels = data()
    first = keras.Input((FEATURES,), name="a")
    other = keras.Input((FEATURES,), name="z", optional=True)

    class Sum(layers.Layer):
        def call(self, one, two):
            return one if two is None else one + two

        def compute_output_shape(self, one_shape, two_shape):
            return one_shape

    logits = layers.Dense(CLASSES)(Sum()(first, other))
    teacher = keras.Model({"a": first, "z": other}, logits)
    distiller = compiled(kd.KD(), teacher, by_name(("a", "b")))
    target = reference.kd_target(
        outputs_of(teacher, {"a": x["a"], "z": None}), 2.0
    )
    student = distiller.student
    loss = reference.per_example_loss(
        outputs_of(student, of(("a", "b"), x)),
        labels,
        [(0.5, target)],
        2.0,
        divergence=True,
    ).mean()
    found = distiller.train_on_batch(x, labels, return_dict=True)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_input_that_the_data_lack(role):
    x, labels = data()
    models = {"student": by_name(("a", "b")), "teacher": by_name(("a", "b"))}
    models[role] = by_name(("a", "d"))
    distiller = compiled(kd.KD(), **models)
    with pytest.raises(ValueError, match=rf"The {role} .*without \['d'\]"):
        distiller.fit(x, labels, verbose=0)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_that_the_models_read_in_other_orders(kind):
    x, labels = data()
    student = by_name(("a", "b"), kind=list)
    teacher = by_name(("b", "a"), kind=list, seed=5)
    distiller = compiled(kd.KD(), teacher, student)
    with pytest.raises(ValueError, match="read by position"):
        distiller.fit(kind((x["a"], x["b"])), labels, verbose=0)
    distiller.fit(of("ab", x), labels, verbose=0)


class Growing(keras.utils.PyDataset):
    """Batches of more and more steps, with an input that no model reads."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        shape = (4, 2 + index)
        x = {name: random.integers(0, 9, shape) for name in ("a", "b", "z")}
        return x, random.integers(0, CLASSES, 4)


def of_steps(names, seed):
    inputs = {each: keras.Input((None,), name=each) for each in names}
    embed = layers.Embedding(9, 4, embeddings_initializer=uniform(seed))
    x = sum(embed(each) for each in inputs.values())
    x = layers.GlobalAveragePooling1D()(x)
    logits = layers.Dense(CLASSES, kernel_initializer=uniform(seed + 1))(x)
    return keras.Model(inputs, logits)


def test_a_diagnosis_of_batches_of_other_lengths():
    names, dataset = ("a", "b"), Growing()
    teacher, student = of_steps(names, 5), of_steps(("b", "z"), 0)
    diagnosis = kd.diagnose(teacher, dataset, student=student)
    batches = [dataset[i] for i in range(len(dataset))]
    right = [
        outputs_of(teacher, of(names, x)).argmax(-1) == y for x, y in batches
    ]
    found = diagnosis.numbers["teacher"]["accuracy"]
    assert found == pytest.approx(np.mean(right))
