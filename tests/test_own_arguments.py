"""Arguments of a user's own loss that says nothing of `get_config`."""

import inspect

import keras
import numpy as np
import pytest
import reference
from models import CLASSES, data, mlp, outputs_of

import keras_kd as kd


@keras.saving.register_keras_serializable("test_own_arguments")
class Gated(kd.losses.DistillationLoss):
    """Keeps whether the teacher is sure, by an argument of its own."""

    statistics = ("probabilities", "is_sure")

    def __init__(self, threshold=0.5, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold

    def teacher_statistics(self, labels, teacher_logits):
        p = keras.ops.softmax(teacher_logits / self.temperature)
        return {
            "probabilities": p,
            "is_sure": keras.ops.max(p, axis=-1) > self.threshold,
        }

    def target(self, labels, statistics, num_classes):
        is_sure = keras.ops.cast(statistics["is_sure"], "bool")[..., None]
        p = statistics["probabilities"]
        return kd.losses.DenseTarget(
            keras.ops.where(is_sure, p, 1 / num_classes)
        )


@keras.saving.register_keras_serializable("test_own_arguments")
class Named(Gated):
    """Has the arguments of the class above as well; one is a variable."""

    def __init__(self, power, **more):
        super().__init__(**more)
        self.power = keras.Variable(power)


@keras.saving.register_keras_serializable("test_own_arguments")
class TermsByName(kd.losses.DistillationLoss):
    """Its weights are given as the base takes them."""

    statistics = ("probabilities",)

    def teacher_statistics(self, labels, teacher_logits):
        p = keras.ops.softmax(teacher_logits / self.temperature)
        return {"probabilities": p}

    def targets(self, labels, statistics, num_classes):
        p = statistics["probabilities"]
        even = keras.ops.ones_like(p) / num_classes
        return {
            "full": kd.losses.DenseTarget(p),
            "even": kd.losses.DenseTarget(even),
        }


@keras.saving.register_keras_serializable("test_own_arguments")
class TwoTerms(TermsByName):
    """Its weights are arguments, called as the terms are or nearly so."""

    def __init__(self, full_weight=0.3, even_weight=0.2, **kwargs):
        weights = {"full": full_weight, "even": even_weight}
        super().__init__(weight=weights, **kwargs)


def teacher_of(x):
    teacher = mlp(seed=3)
    teacher.set_weights([3 * each for each in teacher.get_weights()])
    return teacher, reference.softmax(outputs_of(teacher, x))


def test_a_cache_knows_the_arguments_of_its_loss(tmp_path):
    x, labels, _ = data()
    teacher, p = teacher_of(x)
    low, high = np.quantile(p.max(-1), [0.3, 0.7]).tolist()
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), teacher, Gated(low), verbose=0
    )
    kept = cache.statistics(slice(None), Gated(low))["is_sure"]
    np.testing.assert_array_equal(kept, p.max(-1) > low)
    with pytest.raises(ValueError, match="'threshold'"):
        cache.statistics(slice(None), Gated(high))


def test_a_file_knows_the_arguments_of_the_loss(tmp_path):
    x, labels, _ = data()
    distiller = kd.Distiller(mlp(seed=1), teacher_of(x)[0])
    distiller.compile("sgd", Named(2.0, threshold=0.7, weight=0.25))
    distiller.fit(x, labels, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loss = keras.models.load_model(tmp_path / "distiller.keras").loss
    assert loss.threshold == 0.7 and loss.get_config()["power"] == 2.0
    assert loss.weight == 0.25


def test_the_arguments_of_a_configuration_are_the_current_ones():
    loss = Named(power=2.0, temperature=2.0)
    loss.threshold = 0.9
    loss.assign(weight=0.75)
    config = loss.copy().get_config()
    assert (config["power"], config["threshold"]) == (2.0, 0.9)
    assert (config["weight"], config["temperature"]) == (0.75, 2.0)
    assert list(inspect.signature(Named).parameters) == ["power", "more"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TwoTerms(0.25, even_weight=0.125, temperature=2.0),
        lambda: TermsByName({"full": 0.25, "even": 0.125}, temperature=2.0),
    ],
)
def test_a_loss_with_weights_by_term_is_loaded(tmp_path, make):
    x, labels, _ = data()
    teacher, _ = teacher_of(x)
    student = mlp(seed=1)
    tempered = reference.softmax(outputs_of(teacher, x) / 2)
    even = np.full_like(tempered, 1 / CLASSES)
    expected = reference.per_example_loss(
        outputs_of(student, x), labels, [(0.5, tempered), (0.125, even)], 2.0
    )
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0), make())
    distiller.loss.assign(full=0.5)
    distiller.fit(x, labels, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    history = loaded.fit(x, labels, verbose=0).history
    assert history["loss"][-1] == pytest.approx(expected.mean(), rel=1e-5)
    assert {"full", "even"} <= set(history)


def test_a_cache_serves_any_weights_of_the_terms(tmp_path):
    x, labels, _ = data()
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), teacher_of(x)[0], TwoTerms(), verbose=0
    )
    cache.check(losses=TwoTerms(0.1, 0.6))


def test_a_study_knows_its_own_losses_by_their_arguments():
    """Not by their names, which Keras numbers in the order of making."""
    x, labels, _ = data()
    teacher, _ = teacher_of(x)

    def study(threshold):
        return kd.StudentTrainer(
            lambda: mlp(seed=1),
            (x, labels),
            (x, labels),
            teacher=teacher,
            epochs=1,
            losses={"gated": Gated(threshold)},
            verbose=0,
        ).study

    assert study(0.5) == study(0.5)
    assert study(0.5) != study(0.6)


@keras.saving.register_keras_serializable("test_own_arguments")
class Prior(kd.losses.DistillationLoss):
    """Its target is what it was given, whatever that was made of."""

    def __init__(self, prior, **kwargs):
        super().__init__(**kwargs)
        self.prior = prior

    def target(self, labels, statistics, num_classes):
        prior = keras.ops.cast(self.prior, "float32")
        rows = keras.ops.ones_like(labels[:, None], "float32")
        return kd.losses.DenseTarget(rows * prior)


def test_an_array_comes_back_as_one(tmp_path):
    x, labels, _ = data()
    prior = np.arange(1.0, CLASSES + 1) / sum(range(CLASSES + 1))
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", Prior(prior, weight=1.0, temperature=1.0))
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    logs = again.train_on_batch(x, labels, return_dict=True)
    log_q = reference.log_softmax(outputs_of(mlp(), x))
    expected = -(prior * log_q).sum(-1).mean()
    assert float(logs["loss"]) == pytest.approx(expected, rel=1e-5)


def test_what_keras_cannot_serialise_is_named():
    loss = Prior({1, 2})
    with pytest.raises(TypeError, match="prior={1, 2}.*`get_config`"):
        loss.get_config()
