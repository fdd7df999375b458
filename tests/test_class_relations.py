"""Class relations are those of the teacher when training starts.

The targets are worked out here from the teacher's kernel as it is then, in
float64, and held against what a training step logs and does.
"""

import json
import warnings
import zipfile

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
    data,
    fit,
    mlp,
    outputs_of,
    weights_of,
)

import keras_kd as kd

ALPHA = 0.4
RATE = 0.1
# Arguments of `compile` where what a traced step holds must not stay there.
TRACED = {"run_eagerly": False}
# Both ways to keep the relations: a table, and rows worked on in each batch.
both_forms = pytest.mark.parametrize("table_bytes", [10**6, 0])


def sim(table_bytes=10**6, **kwargs):
    return kd.KDSim(alpha=ALPHA, table_bytes=table_bytes, **kwargs)


def compiled(student, teacher, loss, how=EAGERLY, **kwargs):
    distiller = kd.Distiller(student, teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(RATE), loss, **how)
    return distiller


def rows_of(teacher):
    return np.array(keras.ops.convert_to_numpy(teacher.layers[-1].kernel)).T


def set_rows(teacher, seed):
    """Other class relations than the teacher's own."""
    kernel = teacher.layers[-1].kernel
    random = np.random.default_rng(seed)
    kernel.assign(random.normal(size=kernel.shape).astype("float32"))


def term(student, x, labels, rows):
    """The cross-entropy to the targets of these rows, before a step."""
    target = reference.sim_target(labels, rows, ALPHA, 1.0)
    logits = outputs_of(student, x)
    return -(target * reference.log_softmax(logits)).sum(-1).mean()


def assert_trains_on(rows, distiller, train=fit):
    """The next step's term and its change of the bias are those of `rows`."""
    x, labels, _ = data(8)
    student = distiller.student
    expected = term(student, x, labels, rows)
    logits, bias = outputs_of(student, x), weights_of(student)[-1]
    target = reference.sim_target(labels, rows, ALPHA, 1.0)
    gradient = reference.per_example_gradient(
        logits, labels, [(0.5, target)], 1.0
    ).mean(0)
    logged = train(distiller, x, labels)
    if not isinstance(logged, dict):
        logged = {k: v[0] for k, v in logged.history.items()}
    assert logged["distillation"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(
        weights_of(student)[-1], bias - RATE * gradient, atol=1e-5
    )


def train_on_batch(distiller, x, labels):
    distiller.reset_metrics()  # As newer releases of Keras do by themselves.
    return distiller.train_on_batch(x, labels, return_dict=True)


@pytest.mark.parametrize(
    ("table_bytes", "train"), [(10**6, fit), (0, train_on_batch)]
)
def test_weights_set_after_compile(table_bytes, train):
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim(table_bytes), TRACED)
    for seed in range(3):
        set_rows(teacher, seed)
        assert_trains_on(rows_of(teacher), distiller, train)


def test_alpha_is_chosen_again_for_other_weights():
    """The step is compiled once; the number in it must not be."""
    teacher = mlp(seed=5)
    loss = kd.KDSim(table_bytes=0, label_mass=0.7)
    distiller = compiled(mlp(seed=1), teacher, loss, TRACED)
    x, labels, _ = data(8)
    alphas = []
    for seed in range(2):
        set_rows(teacher, seed)
        expected = outputs_of(distiller.student, x)
        logged = fit(distiller, x, labels).history["distillation"][0]
        alphas.append(distiller.loss.class_similarity.fitted_alpha)
        rows = rows_of(teacher)
        target = reference.sim_target(labels, rows, alphas[-1], 1.0)
        every = np.arange(CLASSES)
        mass = reference.sim_target(every, rows, alphas[-1], 1.0)[every, every]
        assert mass.mean() == pytest.approx(0.7, abs=1e-5)
        cross = -(target * reference.log_softmax(expected)).sum(-1)
        assert logged == pytest.approx(cross.mean(), rel=1e-4)
    assert abs(alphas[0] - alphas[1]) > 1e-3


def test_the_teachers_weights_loaded_from_a_file(tmp_path):
    trained = mlp(seed=5)
    set_rows(trained, 3)
    trained.save_weights(tmp_path / "teacher.weights.h5")
    teacher = mlp(seed=6)
    distiller = compiled(mlp(seed=1), teacher, sim())
    teacher.load_weights(tmp_path / "teacher.weights.h5")
    assert_trains_on(rows_of(trained), distiller)


def test_a_distillers_weights_loaded_from_a_file(tmp_path):
    teacher = mlp(seed=5)
    first = compiled(mlp(seed=1), teacher, sim())
    fit(first, *data(8)[:2])
    first.save_weights(tmp_path / "all.weights.h5")
    other = compiled(mlp(seed=2), mlp(seed=7), sim())
    fit(other, *data(8)[:2])
    with pytest.warns(UserWarning, match="set the weights of the teacher"):
        other.load_weights(tmp_path / "all.weights.h5")
    assert_trains_on(rows_of(teacher), other)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The file set")
        other.load_weights(tmp_path / "all.weights.h5")


class LoadWeights(keras.callbacks.Callback):
    """Restores when training has begun, as BackupAndRestore does."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_begin(self, logs=None):
        self.model.load_weights(self.path)


def test_weights_restored_when_training_has_begun(tmp_path):
    teacher = mlp(seed=5)
    first = compiled(mlp(seed=1), teacher, sim())
    x, labels, _ = data(8)
    fit(first, x, labels)
    path = tmp_path / "all.weights.h5"
    first.save_weights(path)
    expected = term(first.student, x, labels, rows_of(teacher))
    other = compiled(mlp(seed=2), mlp(seed=7), sim())
    fit(other, x, labels)
    history = fit(other, x, labels, callbacks=[LoadWeights(path)])
    logged = history.history["distillation"][0]
    assert logged == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "table_bytes", "how"),
    [(kd.KDSim, 0, TRACED), (kd.KDPtSim, 10**6, EAGERLY)],
)
def test_after_load_model(tmp_path, loss, table_bytes, how):
    """A loaded Distiller trains as the saved one, on the teacher's classes."""
    x, labels, _ = data(16)
    teacher, loss = mlp(seed=5), loss(table_bytes=table_bytes)
    distiller = compiled(mlp(seed=1), teacher, loss, how)
    fit(distiller, x, labels)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    histories = [fit(d, x, labels).history for d in (distiller, loaded)]
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5)
    assert_same_weights(
        weights_of(distiller.student), weights_of(loaded.student)
    )
    np.testing.assert_array_equal(
        loaded.loss.class_similarity.weights, rows_of(teacher)
    )


def test_the_loaded_target_is_that_of_the_saved_kernel(tmp_path):
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim())
    fit(distiller, *data(8)[:2])
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert_trains_on(rows_of(teacher), loaded)


@both_forms
def test_a_file_without_its_teacher_trains_on(tmp_path, table_bytes):
    teacher = mlp(seed=5)
    distiller = compiled(
        mlp(seed=1), teacher, sim(table_bytes), save_teacher=False
    )
    fit(distiller, *data(8)[:2])
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert loaded.teacher is None
    assert_trains_on(rows_of(teacher), loaded)
    # And once more, from the file of a Distiller that never had a teacher.
    loaded.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    assert_trains_on(rows_of(teacher), again)


def test_a_file_saved_before_training_holds_the_teacher_as_it_is(tmp_path):
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim(), save_teacher=False)
    set_rows(teacher, 4)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert_trains_on(rows_of(teacher), loaded)


def test_a_teacher_assigned_after_loading_takes_the_files_place(tmp_path):
    distiller = compiled(mlp(seed=1), mlp(seed=5), sim(), save_teacher=False)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    other = mlp(seed=8)
    loaded.teacher = other
    assert_trains_on(rows_of(other), loaded)


def test_pt_sim_without_its_teacher_names_what_is_missing(tmp_path):
    x, labels, _ = data(8)
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, kd.KDPtSim(), save_teacher=False)
    fit(distiller, x, labels)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    with pytest.raises(ValueError, match="label_log_odds.*from a teacher"):
        fit(loaded, x, labels)
    loaded.teacher = teacher
    ours = fit(loaded, x, labels).history
    theirs = fit(distiller, x, labels).history
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


def test_the_matrix_is_an_array_in_the_file_and_there_once(tmp_path):
    classes, features = 2000, 64

    def head(units):
        inputs = keras.Input((units,))
        return keras.Model(
            inputs, layers.Dense(classes, use_bias=False)(inputs)
        )

    sizes = {}
    for save_teacher in (True, False):
        distiller = kd.Distiller(
            head(features), head(features), save_teacher=save_teacher
        )
        distiller.compile("sgd", kd.KDSim(table_bytes=0))
        path = tmp_path / f"{save_teacher}.keras"
        distiller.save(path)
        with zipfile.ZipFile(path) as file:
            config = file.read("config.json")
            sizes[save_teacher] = file.getinfo("model.weights.h5").file_size
        assert len(config) < 20_000
        json.loads(config)
    matrix = classes * features * 4
    assert abs(sizes[True] - sizes[False]) < 0.1 * matrix
    assert sizes[False] == pytest.approx(2 * matrix, rel=0.1)


def test_an_averaged_student_as_teacher():
    """Its relations are those of the average when `fit` starts."""
    student, teacher = mlp(seed=1), mlp(seed=1)
    distiller = compiled(student, teacher, sim())
    seen = [weights_of(student)]
    for _ in range(3):
        mean = [np.mean(w, axis=0) for w in zip(*seen, strict=True)]
        teacher.set_weights(mean)
        assert_trains_on(mean[-2].T, distiller)
        seen.append(weights_of(student))


def test_a_layer_is_read_when_training_starts():
    teacher = mlp(seed=5)
    loss = sim(logit_layer=teacher.layers[-1])
    distiller = compiled(mlp(seed=1), None, loss)
    set_rows(teacher, 2)
    assert_trains_on(rows_of(teacher), distiller)


def test_a_layer_is_saved_as_its_matrix(tmp_path):
    teacher = mlp(seed=5)
    loss = sim(logit_layer=teacher.layers[-1])
    distiller = compiled(mlp(seed=1), None, loss)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert_trains_on(rows_of(teacher), loaded)


def test_a_given_matrix_stays_whatever_the_teacher(tmp_path):
    rows = np.random.default_rng(0).normal(size=(CLASSES, 3)).astype("float32")
    given = rows.copy()
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim(logit_layer=given))
    given[:] = 0
    set_rows(teacher, 2)
    assert_trains_on(rows, distiller)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert_trains_on(rows, loaded)


# -- one loss in two Distillers ----------


def test_one_loss_in_two_distillers():
    """Each trains on its own teacher, in turns, one with more features."""
    loss = sim()
    teachers = mlp(seed=5), mlp(units=9, seed=6)
    first, second = (
        compiled(mlp(seed=1), teacher, loss, TRACED) for teacher in teachers
    )
    for _ in range(2):
        assert_trains_on(rows_of(teachers[0]), first)
        assert_trains_on(rows_of(teachers[1]), second)


def test_the_first_distiller_keeps_the_loss_and_the_next_takes_a_copy():
    loss = kd.KDPtSim(temperature=3.0)
    loss.sim_weight = 0.3
    first, second = (compiled(mlp(seed=1), mlp(seed=s), loss) for s in (5, 6))
    assert first.loss is loss
    assert second.loss is not loss
    assert second.loss.get_config() == loss.get_config()
    ids = [{id(v) for v in each.loss.variables} for each in (first, second)]
    assert len(ids[0]) == len(ids[1]) > 3 and not ids[0] & ids[1]
    loss.sim_weight = 0.1
    second.loss.temperature = 5.0
    assert first.loss.tunables == pytest.approx(
        {"pt_weight": 0.4, "sim_weight": 0.1, "temperature": 3.0}
    )
    assert second.loss.tunables == pytest.approx(
        {"pt_weight": 0.4, "sim_weight": 0.3, "temperature": 5.0}
    )
    # Compiled again, a Distiller keeps the loss that it has.
    kept = second.loss
    second.compile("sgd", kept)
    assert second.loss is kept


# Those that copy what is their own, and one that has only numbers.
@pytest.mark.parametrize("name", ["kd_sim", "kd_sampled", "dkd"])
def test_a_copy_trains_like_a_loss_of_its_own(name):
    x, labels, _ = data(8)
    ends = []
    # Draws are those of a loss of its own by a seed alone.
    arguments = {"seed": 3} if name == "kd_sampled" else {}
    loss = kd.losses.get(name, **arguments)
    compiled(mlp(seed=9), mlp(seed=8), loss)
    for each in (loss, kd.losses.get(name, **arguments)):
        distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
        distiller.compile(keras.optimizers.SGD(RATE), each, **EAGERLY)
        fit(distiller, x, labels)
        ends.append(weights_of(distiller.student))
    # On a loaded machine threads may add up in another order.
    assert_same_weights(*ends, tolerance=1e-6)


def test_a_schedule_reaches_the_copy_alone():
    x, labels, _ = data(8)
    loss = kd.KD(weight=0.9)
    first, second = (compiled(mlp(seed=1), mlp(seed=s), loss) for s in (5, 6))
    schedule = kd.callbacks.LossSchedule(weight=lambda epoch: 0.0)
    history = fit(second, x, labels, callbacks=[schedule]).history
    np.testing.assert_allclose(
        history["loss"], history["cross_entropy"], rtol=1e-5
    )
    assert loss.tunables["weight"] == pytest.approx(0.9)
    assert first.loss.tunables["weight"] == pytest.approx(0.9)


def test_a_copy_of_a_users_loss_keeps_its_settings():
    """Also where the class has no `get_config` of its own."""

    class Sharpened(kd.KD):
        def __init__(self, sharpness, **kwargs):
            super().__init__(**kwargs)
            self.sharpness = sharpness

        def target(self, labels, statistics, num_classes):
            logits = statistics["teacher_logits"] * self.sharpness
            return super().target(
                labels, {"teacher_logits": logits}, num_classes
            )

    loss = Sharpened(3.0, weight=0.2)
    compiled(mlp(seed=1), mlp(seed=5), loss)
    second = compiled(mlp(seed=1), mlp(seed=5), loss)
    assert second.loss.sharpness == 3.0
    assert second.loss.tunables == pytest.approx(loss.tunables)


# -- what it costs ----------


def test_nothing_is_computed_for_weights_that_did_not_change(monkeypatch):
    x, labels, _ = data(8)
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim())
    made = []
    similarity = type(distiller.loss.class_similarity)
    original = similarity._target_table
    monkeypatch.setattr(
        similarity,
        "_target_table",
        lambda self, unit: made.append(1) or original(self, unit),
    )
    for _ in range(3):
        fit(distiller, x, labels)
    assert not made
    set_rows(teacher, 1)
    for _ in range(3):
        fit(distiller, x, labels)
    assert len(made) == 1


def test_a_step_is_not_compiled_again_for_other_weights():
    x, labels, _ = data(8)
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim(), TRACED)
    fit(distiller, x, labels)
    variables = distiller.loss.variables
    function = distiller.train_function
    set_rows(teacher, 1)
    fit(distiller, x, labels)
    assert distiller.train_function is function
    after = distiller.loss.variables
    assert all(a is b for a, b in zip(after, variables, strict=True))


def test_another_teacher_of_more_features():
    distiller = compiled(mlp(seed=1), mlp(seed=5), sim(table_bytes=0), TRACED)
    fit(distiller, *data(8)[:2])
    wide = mlp(units=12, seed=6)
    distiller.teacher = wide
    assert_trains_on(rows_of(wide), distiller)


# -- messages ----------


def test_an_unbuilt_teacher_is_told_to_be_built():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.classifier = layers.Dense(CLASSES)

        def call(self, inputs):
            return self.classifier(inputs)

    teacher = Net()
    distiller = kd.Distiller(mlp(seed=1), teacher)
    with pytest.raises(ValueError, match="must be built.*Call it on a batch"):
        distiller.compile("sgd", sim())
    # What it says works.
    teacher(np.zeros((1, FEATURES), "float32"))
    distiller.compile(keras.optimizers.SGD(RATE), sim(), **EAGERLY)
    kernel = keras.ops.convert_to_numpy(teacher.classifier.kernel)
    assert_trains_on(kernel.T, distiller)


def test_a_teacher_without_weights():
    inputs = keras.Input((CLASSES,))
    teacher = keras.Model(inputs, layers.Rescaling(2.0)(inputs))
    with pytest.raises(ValueError, match="no layer has weights.*matrix"):
        compiled(mlp(seed=1), teacher, sim())


def test_a_teacher_with_weights_that_are_not_finite():
    teacher = mlp(seed=5)
    distiller = compiled(mlp(seed=1), teacher, sim())
    kernel = np.ones(teacher.layers[-1].kernel.shape, "float32")
    kernel[0, 0] = np.nan
    teacher.layers[-1].kernel.assign(kernel)
    with pytest.raises(ValueError, match="1 not finite.*teacher's weights"):
        fit(distiller, *data(8)[:2])
