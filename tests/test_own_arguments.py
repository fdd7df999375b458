"""Arguments of a user's own loss, told by `get_config` or not."""

import functools
import warnings

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
class Told(Gated):
    """Tells its argument, as Keras asks."""

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


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
    write = functools.partial(
        kd.TeacherCache.write, tmp_path / "cache", (x, labels), teacher
    )
    cache = write(Told(low), verbose=0)
    kept = cache.statistics(slice(None), Told(low))["is_sure"]
    np.testing.assert_array_equal(kept, p.max(-1) > low)
    with pytest.raises(ValueError, match="'threshold'"):
        cache.statistics(slice(None), Told(high))
    for call in (
        lambda: write(Gated(low), verbose=0),
        lambda: cache.statistics(slice(None), Gated(low)),
    ):
        with pytest.raises(
            ValueError, match=r"Gated with \['threshold'\].*`get"
        ):
            call()


def test_a_file_without_the_arguments_of_the_loss_is_warned_of(tmp_path):
    x, labels, _ = data()
    distiller = kd.Distiller(mlp(seed=1), teacher_of(x)[0])
    distiller.compile("sgd", Gated(threshold=0.7, weight=0.25))
    distiller.fit(x, labels, verbose=0)
    with pytest.warns(UserWarning, match="does not hold .'threshold'"):
        distiller.save(tmp_path / "distiller.keras")
    distiller.compile("sgd", Told(threshold=0.7, weight=0.25))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not hold")
        distiller.save(tmp_path / "distiller.keras")
    loss = keras.models.load_model(tmp_path / "distiller.keras").loss
    assert (loss.threshold, loss.weight) == (0.7, 0.25)


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

    def study(loss):
        return kd.StudentTrainer(
            lambda: mlp(seed=1),
            (x, labels),
            (x, labels),
            teacher=teacher,
            epochs=1,
            losses={"own": loss},
            verbose=0,
        ).study

    assert study(Told(0.5)) == study(Told(0.5))
    assert study(Told(0.5)) != study(Told(0.6))
    with pytest.raises(ValueError, match="Gated with .'threshold'"):
        study(Gated(0.5))
    # NumPy's text would leave out the middle of so many numbers.
    rows = np.random.default_rng(0).normal(size=(CLASSES, 200))
    others = rows.copy()
    others[CLASSES // 2, 100] += 1
    one = study(kd.KDSim(logit_layer=rows))
    assert one == study(kd.KDSim(logit_layer=rows))
    assert one != study(kd.KDSim(logit_layer=others))


def test_a_loss_with_terms_called_as_its_arguments_tells_its_weights():
    loss = TermsByName({"weight": 0.25, "even": 0.125})
    assert loss.get_config()["weight"] == {"weight": 0.25, "even": 0.125}


class BindsTheTeacherAlone(Told):
    """Knows nothing of shared classes."""

    def bind_teacher(self, teacher):
        self.teacher = teacher


def test_a_loss_may_bind_the_teacher_alone():
    distiller = kd.Distiller(mlp(), mlp(seed=1))
    distiller.compile("sgd", BindsTheTeacherAlone())
    assert distiller.loss.teacher is distiller.teacher
