"""StudentTrainer: one student by a method's name and a seed."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from caches import crop, lstm, text
from models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    data,
    mlp,
    outputs_of,
)

import keras_kd as kd
from keras_kd.attribution import METHODS, permuted_logit_weights
from keras_kd.attribution.methods import CrossEntropy
from keras_kd.student_trainer import data as data_of_students
from keras_kd.student_trainer.data import dividing_steps

# Two steps an epoch; of the batches of validation one is smaller.
EPOCHS, BATCH = 2, 20
X, LABELS, WEIGHTS = data(40)
VALIDATION = data(26, seed=1)[:2]
RATE = 0.25


@pytest.fixture(scope="module", autouse=True)
def eagerly():
    """Tracing a step takes longer than the steps of all students here."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def traced():
    """As users have it."""
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


def student(units=6):
    """Its weights come of the seed that is set."""
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(units, "tanh"),
            keras.layers.Dense(CLASSES),
        ]
    )


@pytest.fixture(scope="module")
def teacher():
    model = mlp(units=12, seed=5)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(X, LABELS, batch_size=len(X), epochs=20, verbose=0)
    return model


def make(teacher=None, train=(X, LABELS), validation=VALIDATION, **more):
    arguments = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "optimizer": keras.optimizers.SGD(RATE),
        "verbose": 0,
    }
    build = more.pop("make_student", student)
    return kd.StudentTrainer(
        build, train, validation, teacher=teacher, **{**arguments, **more}
    )


def by_hand(seed, loss, teacher=None, epochs=EPOCHS, x=X, labels=LABELS):
    """The same student, trained by one call of the Distiller for each epoch."""
    keras.utils.set_random_seed(seed)
    distiller = kd.Distiller(student(), teacher, gradient_scale=False)
    distiller.compile(keras.optimizers.SGD(RATE), loss)
    for epoch in range(epochs):
        order = np.arange(len(x))
        np.random.default_rng([seed, epoch]).shuffle(order)
        distiller.fit(x[order], labels[order], BATCH, shuffle=False, verbose=0)
    return distiller.student


@pytest.fixture(scope="module")
def plain_by_hand():
    """A plain student of seed 0 after one epoch."""
    return by_hand(0, CrossEntropy(), epochs=1)


def correct(model, x, labels):
    return (outputs_of(model, x).argmax(-1) == labels).astype("float64")


def saved(folder, name):
    return keras.models.load_model(folder / f"{name}.keras", compile=False)


class KDTop1(kd.losses.DistillationLoss):
    """A user's own."""

    statistics = ("top_class",)
    reads_labels = False

    def teacher_statistics(self, labels, teacher_logits):
        return {"top_class": keras.ops.argmax(teacher_logits, axis=-1)}

    def target(self, labels, statistics, num_classes):
        return kd.losses.DenseTarget(
            keras.ops.one_hot(statistics["top_class"], num_classes)
        )


# -- what a student is trained by ----------------------------------------------


@pytest.fixture(scope="module")
def several(teacher, tmp_path_factory):
    """A trainer that has trained students of several methods."""
    folder = tmp_path_factory.mktemp("several") / "study"
    trainer = make(
        teacher,
        folder=folder,
        save_students=True,
        losses={"top1": KDTop1(weight=0.4)},
        loss_arguments={
            "kd": {"weight": 0.9},
            "dkd": {"beta": 1.0, "temperature": 1.0},
        },
    )
    names = ("plain", "kd", "kd_sim", "kd_sim_permuted", "top1", "dkd_nckd")
    return trainer, folder, {name: trainer(name, 3) for name in names}


@pytest.mark.parametrize(
    "method, loss",
    [
        ("plain", lambda rows: CrossEntropy()),
        ("kd", lambda rows: kd.KD(weight=0.9)),
        ("kd_sim", lambda rows: kd.KDSim()),
        (
            "kd_sim_permuted",
            lambda rows: kd.KDSim(logit_layer=permuted_logit_weights(rows)),
        ),
        ("top1", lambda rows: KDTop1(weight=0.4)),
        ("dkd_nckd", lambda rows: kd.DKD(0.0, 1.0, temperature=1.0)),
    ],
)
def test_a_student_is_that_of_its_loss_in_the_seeds_order(
    several, teacher, method, loss
):
    _, folder, found = several
    rows = kd.similarity.logit_weights(teacher)
    expected = by_hand(3, loss(rows), teacher)
    (path,) = folder.glob(f"{method}-seed3*.keras")
    # A cache of half precision is between them.
    model = keras.models.load_model(path, compile=False)
    assert_same_weights(
        model.get_weights(), expected.get_weights(), tolerance=3e-4
    )
    x, labels = VALIDATION
    result = found[method]
    np.testing.assert_array_equal(result["examples"], correct(model, x, labels))
    assert result["accuracy"] == np.mean(result["examples"])
    assert result["examples_of"] == "mean"


def test_a_student_of_traced_steps_is_that_of_eager_ones(several, traced):
    trainer, _, found = several
    again = make(cache=trainer.cache, loss_arguments={"kd": {"weight": 0.9}})
    result = again("kd", 3)
    assert result["examples"] == found["kd"]["examples"]
    assert result["gradient_scale"] == found["kd"]["gradient_scale"]
    for name, values in found["kd"]["history"].items():
        np.testing.assert_allclose(
            result["history"][name], values, rtol=1e-5, err_msg=name
        )


def test_a_result_has_curves_histograms_and_class_relations(several):
    trainer, folder, found = several
    for method, result in found.items():
        assert len(result["history"]["val_accuracy"]) == EPOCHS, method
        has_term = method != "plain"
        assert ("gradient_scale" in result) == has_term
        if has_term:
            counts = np.array(result["gradient_scale"]["counts"])
            assert counts.shape == (EPOCHS, 80)
            # Each example has a w in each epoch.
            np.testing.assert_allclose(counts.sum(1), len(X))
            assert len(result["gradient_scale"]["edges"]) == 81
        (path,) = folder.glob(f"{method}-seed3*.keras")
        model = keras.models.load_model(path, compile=False)
        rows = model.get_weights()[-2].T.astype("float64")
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(
            result["class_similarity"], rows @ rows.T, atol=1e-4
        )
        assert json.loads(json.dumps(result)) == result
    assert trainer.seconds_per_student == pytest.approx(
        np.mean([result["seconds"] for result in found.values()])
    )


def test_every_method_can_be_trained_with_a_teacher(several):
    trainer, *_ = several
    assert trainer.methods == (*METHODS, "top1")
    assert np.shape(trainer.teacher_similarity) == (CLASSES, CLASSES)


def test_shuffled_confidences_stay_within_their_classes(teacher):
    trainer = make(teacher, epochs=1)
    trainer("kd_pt_shuffled", 0)
    folder = pathlib.Path(trainer.cache.path)
    control = kd.TeacherCache(folder.with_name("cache-shuffled"))
    one, other = (
        each.statistics(slice(None), kd.KDPt())["teacher_logits"]
        for each in (trainer.cache, control)
    )
    assert not np.array_equal(one, other)
    for label in range(CLASSES):
        rows = LABELS == label
        np.testing.assert_array_equal(
            np.sort(one[rows], axis=0), np.sort(other[rows], axis=0)
        )


def test_a_teacher_runs_once_and_its_own_cache_goes_with_the_trainer(
    teacher, monkeypatch
):
    written, write = [], kd.TeacherCache.write
    monkeypatch.setattr(
        kd.TeacherCache,
        "write",
        lambda path, *args, **kwargs: (
            written.append(path),
            write(path, *args, **kwargs),
        )[1],
    )
    trainer = make(teacher, epochs=1)
    trainer("plain", 0)
    assert not written
    for method in ("kd", "kd_topk", "kd"):
        trainer(method, 0)
    (path,) = written
    assert path.exists()
    del trainer
    assert not path.exists()


def test_settings_are_those_of_the_loss_and_the_optimizer(teacher, tmp_path):
    trainer = make(
        teacher,
        folder=tmp_path / "study",
        save_students=True,
        epochs=1,
        losses={"top1": KDTop1(weight=0.4)},
        optimizer=keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.5, 5, 0.5)
        ),
    )
    assert trainer.learning_rate == 0.5
    settings = {"weight": 0.3, "temperature": 3.0, "learning_rate": 0.2}
    trainer.train("kd", 1, settings)
    keras.utils.set_random_seed(1)
    distiller = kd.Distiller(student(), teacher)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.2, 5, 0.5)
    distiller.compile(keras.optimizers.SGD(schedule), kd.KD(0.3, 3.0))
    order = np.arange(len(X))
    np.random.default_rng([1, 0]).shuffle(order)
    distiller.fit(X[order], LABELS[order], BATCH, shuffle=False, verbose=0)
    (path,) = (tmp_path / "study").glob("kd-seed1-*.keras")
    model = keras.models.load_model(path, compile=False)
    expected = distiller.student.get_weights()
    assert_same_weights(model.get_weights(), expected, 3e-4)
    # Of other settings there is another student.
    assert (
        trainer.train("kd", 1)["loss"]
        != trainer.train("kd", 1, settings)["loss"]
    )
    assert trainer.train("top1", 1, {"weight": 0.0})["history"]["loss"] == (
        pytest.approx(trainer("plain", 1)["history"]["loss"], rel=1e-5)
    )


def test_students_of_large_matrices_are_told_apart():
    """NumPy shows a large array by its corners."""
    rows = np.ones((CLASSES, 200))
    other = rows.copy()
    other[3, 100] = 2.0
    first, second = (
        make(loss_arguments={"kd_sim": {"logit_layer": matrix}})
        for matrix in (rows, other)
    )
    names = [t._name("kd_sim", 0, {}) for t in (first, second)]
    assert names[0] != names[1]
    assert first.study != second.study


def test_one_weight_is_shared_by_two_terms():
    loss = kd.attribution.make_loss("kd_pt_sim", {"weight": 0.25})
    assert loss.weights == pytest.approx({"pt_weight": 0.2, "sim_weight": 0.05})


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd",
        {"class_name": "SGD", "config": {"learning_rate": 0.01}},
        keras.optimizers.SGD,
        lambda: keras.optimizers.SGD(),
    ],
)
def test_an_optimizer_is_named_configured_or_made(optimizer):
    rates = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))
            raise InterruptedError

    trainer = make(optimizer=optimizer, callbacks=lambda name: [Look()])
    for seed in range(2):
        with pytest.raises(InterruptedError):
            trainer("plain", seed)
    # Keras's default.
    assert rates == pytest.approx([trainer.learning_rate] * 2)
    assert rates == pytest.approx([0.01] * 2)


# -- data ----------------------------------------------------------------------


def in_batches(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


class Batches(keras.utils.PyDataset):
    """Batches of arrays, that only an index tells apart."""

    num_batches = len(X) // BATCH

    def __getitem__(self, number):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return X[rows], LABELS[rows]


@pytest.fixture(scope="module")
def ordered(teacher):
    """What comes of arrays that are not shuffled."""
    return make(teacher, shuffle=False)("kd", 2)


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_other_data_come_in_their_own_order(kind, teacher, ordered):
    train = in_batches(X, LABELS) if kind == "tf.data" else Batches()
    trainer = make(teacher, train, in_batches(*VALIDATION))
    result = trainer("kd", 2)
    assert trainer.cache is not None
    assert result["examples"] == ordered["examples"]
    assert result["history"]["loss"] == pytest.approx(
        ordered["history"]["loss"], rel=1e-4
    )


def test_the_teacher_runs_beside_data_without_an_order(teacher, capsys):
    train = tf.data.Dataset.from_tensor_slices((X, LABELS))
    train = train.shuffle(len(X)).batch(BATCH)
    trainer = make(teacher, train, verbose=1, epochs=1)
    assert np.isfinite(trainer("kd", 0)["loss"])
    trainer("kd_pt", 0)
    assert trainer.cache is None
    printed = capsys.readouterr().out
    assert printed.count("The teacher runs beside each student") == 1
    assert "kd_pt_shuffled" not in trainer.methods and "kd" in trainer.methods
    with pytest.raises(ValueError, match="a cache. Received: .*fixed order"):
        trainer("kd_pt_shuffled", 0)


def test_examples_are_shuffled_by_the_seed_augmented_and_made_batches(teacher):
    examples = tf.data.Dataset.from_tensor_slices((X, LABELS))
    trainer = make(teacher, examples, augment=crop, views=2)
    # Without a teacher's term too they are those of the cache.
    history = trainer("plain", 0)["history"]
    assert trainer.cache.views == 2
    assert len(history["loss"]) == EPOCHS
    # The same batches: before the first step, students are the same.
    seen = []
    for method in ("plain", "kd"):
        stream = trainer._data.epochs(7, 1, trainer.cache, trainer.loss(method))
        seen.append(next(iter(stream["x"])))
        assert stream["steps_per_epoch"] == len(X) // BATCH
    (x, y), (other_x, other_y) = seen
    np.testing.assert_array_equal(x, other_x)
    np.testing.assert_array_equal(y["labels"], other_y["labels"])


@pytest.mark.parametrize(
    "train", [lambda: (X, LABELS), lambda: in_batches(X, LABELS), Batches]
)
def test_views_of_what_is_not_single_examples_are_refused(train, teacher):
    """A plain student was trained without them, another by the first."""
    with pytest.raises(ValueError, match="makes views of the single examples"):
        make(teacher, train(), augment=crop, views=2)


@pytest.mark.parametrize("train", [lambda: in_batches(X, LABELS), Batches])
def test_a_cache_whose_views_batches_would_not_pass_is_refused(
    train, teacher, tmp_path
):
    """Each epoch had the view at which this call began, resumed or not."""
    loss = kd.KDSampled(2)
    cache = kd.TeacherCache.write(
        tmp_path, train(), teacher, loss, views=2, verbose=0
    )
    with pytest.raises(ValueError, match="batches, and a cache of 2 views"):
        make(teacher, train(), cache=cache)
    make(teacher, cache=cache)  # Arrays.


def test_examples_that_no_cache_can_keep_are_refused(teacher):
    examples = tf.data.Dataset.from_tensor_slices((X, LABELS)).shuffle(len(X))
    with pytest.raises(ValueError, match="since they differ from one reading"):
        make(teacher, examples)


def test_another_augmentation_is_another_study(teacher, tmp_path):
    examples = tf.data.Dataset.from_tensor_slices((X, LABELS))

    def study(augment):
        return make(teacher, examples, augment=augment, folder=tmp_path)

    study(crop)
    study(crop)
    with pytest.raises(ValueError, match=r"different options \(augment:"):
        study(lambda x, seed: -crop(x, seed))


@pytest.mark.parametrize("of_examples", [True, False])
def test_steps_in_one_call_leave_an_epoch_its_length(teacher, of_examples):
    train = X, LABELS  # 5 batches of 8.
    if of_examples:
        train = tf.data.Dataset.from_tensor_slices(train)
    steps = []

    class Steps(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            steps.append(int(self.model.optimizer.iterations))

    at_once = 1 if keras.backend.backend() == "torch" else 3
    trainer = make(
        teacher,
        train,
        batch_size=8,
        steps_per_execution=at_once,
        callbacks=lambda name: [Steps()],
    )
    counts = trainer("kd", 0)["gradient_scale"]["counts"]
    assert steps == [5 * (epoch + 1) for epoch in range(EPOCHS)]
    assert [sum(each) for each in counts] == [len(X)] * EPOCHS


def test_permuted_relations_are_of_the_classes_that_both_have():
    wide = mlp(classes=CLASSES + 2, seed=5)
    rows = kd.similarity.logit_weights(wide)
    for shared in (True, CLASSES - 1):
        trainer = make(wide, shared_classes=shared)
        count = CLASSES if shared is True else shared
        np.testing.assert_array_equal(
            trainer.loss("kd_sim_permuted").logit_layer,
            permuted_logit_weights(rows[:count]),
        )


@pytest.mark.parametrize(
    "asked, steps, expected",
    [(5, 7, 1), (4, 30, 3), (10, 30, 10), (99, 12, 12), (1, 9, 1), (3, 0, 1)],
)
def test_calls_fill_an_epoch(asked, steps, expected):
    assert dividing_steps(asked, steps) == expected


def test_a_cache_that_is_given_is_used(teacher, tmp_path):
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (X, LABELS), teacher, kd.KDPt(), verbose=0
    )
    trainer = make(cache=cache)
    assert trainer.methods == (
        *("plain", "label_smoothing", "kd_pt", "kd_pt_shuffled"),
    )
    result = trainer("kd_pt", 0)
    assert make(teacher)("kd_pt", 0)["examples"] == result["examples"]
    with pytest.raises(ValueError, match="The cache at .*Received: KD needs"):
        trainer("kd", 0)
    with pytest.raises(ValueError, match="belongs to something else"):
        make(train=(X[:20], LABELS[:20]), cache=cache)


def test_scores_are_of_the_test_data_and_reports_of_the_validation(teacher):
    test = data(33, seed=2)[:2]
    told = []

    def report(epoch, value):
        told.append((epoch, value))
        return epoch == 1

    trainer = make(teacher, test=test, epochs=3)
    result = trainer.train("plain", 0, report=report)
    assert len(result["examples"]) == 33
    assert [epoch for epoch, _ in told] == [0, 1]
    assert [value for _, value in told] == result["history"]["val_accuracy"]
    # It was stopped, so it is not the student of three epochs.
    assert len(trainer("plain", 0)["history"]["loss"]) == 3


def test_sample_weights_count_in_examples_as_in_the_score(plain_by_hand):
    x, labels, weights = data(26, seed=1)
    weights[:5] = 0
    trainer = make(validation=(x, labels, weights), epochs=1)
    result = trainer("plain", 0)
    expected = np.average(correct(plain_by_hand, x, labels), weights=weights)
    assert result["accuracy"] == pytest.approx(expected, rel=1e-6)
    assert len(result["examples"]) == 21
    assert np.mean(result["examples"]) == pytest.approx(expected, rel=1e-6)


class Perplexity(keras.metrics.Metric):
    """As KerasHub's: the exponential of the mean cross-entropy."""

    def __init__(self, name="perplexity", **kwargs):
        super().__init__(name=name, **kwargs)
        self.mean = keras.metrics.SparseCategoricalCrossentropy(
            from_logits=True
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.mean.update_state(y_true, y_pred, sample_weight)

    def result(self):
        return keras.ops.exp(self.mean.result())

    def reset_state(self):
        self.mean.reset_state()


def test_perplexity_follows_from_the_loss_of_rows_and_states_start_at_zero():
    trainer = make(
        make_student=lambda: lstm(5, 0),
        train=text(),
        validation=text(),
        metric=Perplexity(),
        epochs=1,
    )
    assert not trainer.higher_is_better
    result = trainer("plain", 0)
    assert result["examples_of"] == "exp_mean"
    assert len(result["examples"]) == 28
    assert np.exp(np.mean(result["examples"])) == result["perplexity"]
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]), 1e-5)
    # As evaluated from the state zero.
    last = result["history"]["val_perplexity"][-1]
    assert result["perplexity"] == pytest.approx(last, rel=1e-5)


def test_a_metric_without_examples_has_none():
    result = make(
        metric=keras.metrics.MeanSquaredError(),
        epochs=1,
        higher_is_better=False,
        validation=(VALIDATION[0], np.eye(CLASSES)[VALIDATION[1]]),
        train=(X, np.eye(CLASSES, dtype="float32")[LABELS]),
    )("plain", 0)
    assert len(result["examples"]) == 26
    auc = keras.metrics.AUC(
        name="auc", multi_label=True, num_labels=CLASSES, from_logits=True
    )
    result = make(
        metric=auc,
        epochs=1,
        train=(X, np.eye(CLASSES, dtype="float32")[LABELS]),
        validation=(VALIDATION[0], np.eye(CLASSES)[VALIDATION[1]]),
    )("plain", 0)
    assert "examples" not in result and 0 < result["auc"] < 1


class WithinTop(keras.metrics.Metric):
    """A user's own, whose `get_config` is Keras's."""

    def __init__(self, k=5, name="within_top_acc"):
        super().__init__(name=name)
        self.mean = keras.metrics.SparseTopKCategoricalAccuracy(k)
        self.depth = k

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.mean.update_state(y_true, y_pred, sample_weight)

    def result(self):
        return self.mean.result()

    def reset_state(self):
        self.mean.reset_state()


class WithinTopOf(WithinTop):
    """Its `get_config` tells all."""

    def get_config(self):
        return {"name": self.name, "k": self.depth}


class Halved(keras.optimizers.SGD):
    """A user's own, whose `get_config` is Keras's."""

    def __init__(self, learning_rate=0.1, share=1.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.share_of_step = share

    def update_step(self, gradient, variable, learning_rate):
        rate = learning_rate * self.share_of_step
        super().update_step(gradient, variable, rate)


def test_what_a_copy_would_lose_is_refused(plain_by_hand):
    for arguments in (
        {"metric": WithinTop(1)},
        {"metrics": [WithinTop(1)]},
    ):
        with pytest.raises(ValueError, match=r"WithinTop, .*\['k'\]. Add"):
            make(**arguments)
    with pytest.raises(ValueError, match=r"Halved, .*\['share'\]. Add them"):
        make(optimizer=Halved(0.1, 0.5))
    made = make(optimizer=lambda: Halved(0.1, 0.5), epochs=1)
    assert np.isfinite(made("plain", 0)["loss"])
    with pytest.raises(ValueError, match=r"Halved, .*\['share'\]. Add them"):
        made.train("plain", 0, {"learning_rate": 0.2})
    expected = np.mean(correct(plain_by_hand, *VALIDATION))
    found = make(metric=WithinTopOf(1), epochs=1)("plain", 0)
    assert found["within_top_acc"] == pytest.approx(expected, rel=1e-6)


def test_a_mean_of_a_users_function_is_copied(plain_by_hand):
    def distance(labels, outputs, power):
        rows = keras.ops.softmax(outputs)
        labels = keras.ops.one_hot(labels, CLASSES)
        return keras.ops.sum(keras.ops.abs(rows - labels) ** power, -1)

    metric = keras.metrics.MeanMetricWrapper(distance, "an_error", power=3)
    found = make(metric=metric, epochs=1)("plain", 0)
    x, labels = VALIDATION
    logits = outputs_of(plain_by_hand, x).astype("float64")
    rows = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (np.abs(rows - np.eye(CLASSES)[labels]) ** 3).sum(-1)
    np.testing.assert_allclose(found["examples"], expected, rtol=1e-4)
    assert found["an_error"] == pytest.approx(expected.mean(), rel=1e-5)


def test_a_metric_that_gives_one_number_for_a_batch(plain_by_hand):
    def largest(labels, outputs):
        return keras.ops.max(outputs)

    arguments = {"metric": largest, "higher_is_better": True, "epochs": 1}
    found = make(**arguments)("plain", 0)
    logits = outputs_of(plain_by_hand, VALIDATION[0])
    batches = np.arange(len(logits)) // BATCH
    expected = [logits[batches == each].max() for each in set(batches)]
    assert found["largest"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert "examples" not in found


# -- what is kept --------------------------------------------------------------


class Stop(keras.callbacks.Callback):
    """Ends the process, as it were, within the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.params["epochs"] > 1 and len(self.seen) == len(X) // BATCH:
            raise KeyboardInterrupt
        self.seen.append(batch)


@pytest.mark.parametrize("kind", ["arrays", "examples"])
def test_an_interrupted_student_resumes_and_finished_ones_are_kept(
    kind, teacher, tmp_path
):
    train, more = (X, LABELS), {}
    if kind == "examples":
        train = tf.data.Dataset.from_tensor_slices(train)
        more = {"augment": crop, "views": 2}
    expected = make(teacher, train, **more)("kd", 0)
    folder, made = tmp_path / "study", []

    def study(stop=False):
        def callbacks(name):
            callback = Stop()
            callback.seen = []
            made.append(callback)
            return [callback] if stop and len(made) == 2 else []

        return make(teacher, train, folder=folder, callbacks=callbacks, **more)

    interrupted = study(stop=True)
    plain = interrupted("plain", 0)
    with pytest.raises(KeyboardInterrupt):
        interrupted("kd", 0)
    made.clear()
    resumed = study()
    found = resumed("kd", 0)
    assert resumed("plain", 0) == plain
    for key in ("history", "gradient_scale"):
        assert found[key].keys() == expected[key].keys()
        for name, values in expected[key].items():
            np.testing.assert_allclose(
                found[key][name], values, rtol=1e-5, atol=1e-6
            )
    assert found["examples"] == expected["examples"]
    # One student was trained, and for what was left of it.
    assert len(made) == 1
    assert not list((folder / "unfinished").glob("*"))


class Killed(BaseException):
    """Nothing that runs after it is what would run after a real kill."""


def _patient():
    return [
        keras.callbacks.EarlyStopping(
            "val_loss", patience=2, min_delta=0.01, restore_best_weights=True
        ),
        keras.callbacks.ReduceLROnPlateau("val_loss", 0.1, 1, min_delta=0.1),
    ]


def _averaged():
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]


@pytest.mark.parametrize(
    "callbacks, optimizer, moments",
    [
        (_patient, lambda: keras.optimizers.SGD(3.0), (2, None)),
        (
            _averaged,
            lambda: keras.optimizers.SGD(
                RATE, use_ema=True, ema_momentum=0.8, momentum=0.9
            ),
            (1,),
        ),
    ],
)
def test_callbacks_remember_through_an_interruption(
    callbacks, optimizer, moments, tmp_path, monkeypatch
):
    """After an epoch's backup, or once training has ended."""

    def study(folder):
        return make(
            optimizer=optimizer,
            epochs=2 if callbacks is _averaged else 9,
            folder=tmp_path / folder,
            save_students=True,
            callbacks=lambda name: callbacks(),
        )

    write = kd.callbacks.BackupAndRestore._write

    def killed(self, epoch):
        write(self, epoch)
        if epoch == killed_after:
            raise Killed

    def measured(self, distiller):
        raise Killed

    expected = study("whole")("plain", 0)
    # It was stopped early.
    epochs = len(expected["history"]["loss"])
    assert epochs == 2 if callbacks is _averaged else 2 < epochs < 9
    for killed_after in moments:
        part = f"killed after {killed_after}"
        with monkeypatch.context() as patched:
            patched.setattr(kd.callbacks.BackupAndRestore, "_write", killed)
            if killed_after is None:
                patched.setattr(kd.StudentTrainer, "_measured", measured)
            with pytest.raises(Killed):
                study(part)("plain", 0)
        found = study(part)("plain", 0)
        assert found["history"] == expected["history"]
        assert found["examples"] == expected["examples"]
        assert_same_weights(
            saved(tmp_path / part, "plain-seed0").get_weights(),
            saved(tmp_path / "whole", "plain-seed0").get_weights(),
        )


@pytest.fixture(scope="module")
def plain_of_three_epochs():
    return make(epochs=3)("plain", 0)


def _in_the_second_epoch(self, epoch, logs=None):
    self._began = 0.0
    if epoch == 1:
        raise Killed


def _in_the_evaluation(self, distiller):
    raise Killed


@pytest.mark.parametrize(
    "owner, name, killed",
    [
        (
            kd.callbacks.BackupAndRestore,
            "on_epoch_begin",
            _in_the_second_epoch,
        ),
        (kd.StudentTrainer, "_measured", _in_the_evaluation),
    ],
)
def test_a_stopped_student_is_not_taken_for_a_finished_one(
    owner, name, killed, plain_of_three_epochs, tmp_path, monkeypatch
):
    """Killed before the search could keep that it has stopped it."""

    def study(report=None):
        trainer = make(folder=tmp_path, epochs=3)
        return trainer.train("plain", 0, report=report)

    def stop(epoch, value):
        told.append((epoch, value))
        return epoch == 1

    told = []
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
        with pytest.raises(Killed):
            study(stop)
    told.clear()
    stopped = study(stop)["history"]
    assert told == list(enumerate(stopped["val_accuracy"]))
    assert len(told) == 2
    # Nobody stops this one.
    assert study()["history"] == plain_of_three_epochs["history"]


def test_an_epoch_recorded_twice_counts_once(
    plain_of_three_epochs, tmp_path, monkeypatch
):
    """Killed between what was recorded of an epoch and its backup."""

    def study():
        return make(folder=tmp_path, epochs=3, validation_freq=2)

    write = kd.callbacks.BackupAndRestore._write

    def killed(self, epoch):
        if epoch == 2:
            raise Killed
        write(self, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(kd.callbacks.BackupAndRestore, "_write", killed)
        with pytest.raises(Killed):
            study()("plain", 0)
    found, expected = study()("plain", 0)["history"], plain_of_three_epochs
    # Evaluations change nothing; there is one, after the second epoch.
    for name, values in expected["history"].items():
        wanted = values[1:2] if name.startswith("val_") else values
        assert found[name] == wanted, name


@pytest.mark.parametrize("freq", [2, 7, [1, 4]])
def test_it_tells_which_epochs_are_evaluated(freq):
    train = X[:BATCH], LABELS[:BATCH]
    trainer = make(train=train, epochs=4, validation_freq=freq)
    evaluated = []

    def report(epoch, value):
        evaluated.append(epoch)

    trainer.train("plain", 0, report=report)
    assert trainer.evaluated_epochs == tuple(evaluated)
    # After the last epoch too.
    assert evaluated[-1:] == ([] if freq == 7 else [3])


def test_a_folder_of_another_study_is_refused(teacher, tmp_path):
    make(folder=tmp_path / "study")
    with pytest.raises(ValueError, match="holds another run.*epochs: 2 there"):
        make(folder=tmp_path / "study", epochs=4)
    with pytest.raises(ValueError, match="teacher: None there"):
        make(teacher, folder=tmp_path / "study")
    with pytest.raises(ValueError, match="train: .* there"):
        make(folder=tmp_path / "study", train=(X + 1, LABELS))
    for name, value in (
        ("student_output", "logits"),
        ("teacher_output", "probabilities"),
        ("shared_classes", True),
    ):
        with pytest.raises(ValueError, match=f"{name}: None there, "):
            make(folder=tmp_path / "study", **{name: value})
    judged = {"higher_is_better": True, "folder": tmp_path / "judged"}
    top = keras.metrics.SparseTopKCategoricalAccuracy
    make(metric=top(2, name="top"), **judged)
    make(metric=top(2, name="top"), **judged)
    with pytest.raises(ValueError, match='metric: .*"k": 2.* there'):
        make(metric=top(3, name="top"), **judged)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file.txt").write_text("mine")
    with pytest.raises(ValueError, match="new, empty.*Received: .*file.txt"):
        make(folder=other)
    assert [path.name for path in other.iterdir()] == ["file.txt"]


class Shuffled(Batches):
    """In another order after each epoch."""

    def __init__(self, x, labels):
        super().__init__()
        self.arrays, self.epoch = (x, labels), 0

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, number):
        order = np.random.default_rng(self.epoch).permutation(len(X))
        rows = order[number * BATCH : (number + 1) * BATCH]
        return tuple(array[rows] for array in self.arrays)


SHUFFLED = {
    "tf.data": lambda *arrays: (
        in_batches(*arrays).unbatch().shuffle(40).batch(8)
    ),
    "PyDataset": Shuffled,
}
ORDERED = {
    "tf.data": in_batches,
    "unknown length": lambda *arrays: in_batches(*arrays).filter(
        lambda *_: True
    ),
}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("make_data", ORDERED.values(), ids=ORDERED)
def test_one_other_label_makes_another_study(make_data, part, tmp_path):
    assert_another_study(make_data, part, tmp_path)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("make_data", SHUFFLED.values(), ids=SHUFFLED)
def test_in_any_order_it_is_the_same_study(make_data, part, tmp_path):
    assert_another_study(make_data, part, tmp_path)


def assert_another_study(make_data, part, tmp_path):
    def study(labels):
        parts = {"test": VALIDATION, part: make_data(X, labels)}
        make(folder=tmp_path, **parts)

    other = LABELS.copy()
    other[-1] = (other[-1] + 1) % CLASSES
    for _ in range(2):  # The same resumes.
        study(LABELS)
    with pytest.raises(ValueError, match=f"another run.*{part}: .* there"):
        study(other)


def _shuffled_later(*arrays):
    """The first batch is the same in each reading."""
    first, rest = ([a[s] for a in arrays] for s in (slice(8), slice(8, None)))
    return in_batches(*first).concatenate(SHUFFLED["tf.data"](*rest))


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    "make_data", [*SHUFFLED.values(), _shuffled_later], ids=lambda f: f.__name__
)
def test_examples_without_an_order_are_refused_before_training(
    make_data, part, tmp_path
):
    """Which example of one student is which of another is not known."""
    made = []

    def counted():
        made.append(student())
        return made[-1]

    shuffled = {part: make_data(X, LABELS)}
    trainer = make(make_student=counted, **shuffled)
    before = len(made)
    message = f"Received: `{part}`, a .* the same rows in another order"
    for call in (
        lambda: trainer("plain", 0),
        lambda: kd.attribute(trainer, 2, ["plain", "kd"], verbose=False),
        lambda: make(folder=tmp_path, **shuffled),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(made) == before


def test_examples_may_be_shuffled_once(plain_by_hand):
    rows = tf.data.Dataset.from_tensor_slices((X, LABELS))
    rows = rows.shuffle(len(X), reshuffle_each_iteration=False)
    trainer = make(test=rows.batch(BATCH), epochs=1)
    x, labels = (np.stack(each) for each in zip(*rows, strict=True))
    expected = correct(plain_by_hand, x, labels)
    assert trainer("plain", 0)["examples"] == expected.tolist()


def test_examples_must_have_the_same_values_each_time():
    class Noisy(Batches):
        def __getitem__(self, number):
            x, labels = super().__getitem__(number)
            return x + np.random.normal(size=x.shape), labels

    with pytest.raises(ValueError, match="has other values than its first"):
        make(validation=Noisy())("plain", 0)


def test_augmented_data_resume(teacher, tmp_path):
    """Though no reading is like the one before."""

    def noisy(x, label):
        return x + tf.random.normal(tf.shape(x)), label

    def trainer():
        train = in_batches(X, LABELS).map(noisy)
        return make(train=train, folder=tmp_path, epochs=1)

    first = trainer()("plain", 0)
    assert trainer()("plain", 0) == first


def test_validation_data_without_an_end_are_read_once():
    endless = in_batches(X, LABELS).repeat()
    described = data_of_students.described(endless, BATCH)
    others = data_of_students.described(in_batches(X + 1, LABELS).repeat(), 8)
    assert described != others


def test_of_two_studies_that_begin_in_a_folder_one_has_it(
    tmp_path, monkeypatch
):
    mkdir, folder = pathlib.Path.mkdir, tmp_path / "study"

    def make_meanwhile(*args, **kwargs):
        monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
        make(folder=folder, epochs=4)
        mkdir(*args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "mkdir", make_meanwhile)
    with pytest.raises(ValueError, match="epochs: 4 there, 2 now"):
        make(folder=folder)
    make(folder=folder, epochs=4)


def test_a_damaged_result_is_named(tmp_path):
    trainer = make(folder=tmp_path / "study", epochs=1)
    trainer("plain", 0)
    (path,) = (tmp_path / "study").glob("*.result.json")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*Remove it"):
        make(folder=tmp_path / "study", epochs=1)


def test_one_process_trains_a_student(tmp_path):
    def train_the_same(name):
        with pytest.raises(OSError, match="is in use. Received: process"):
            make(folder=tmp_path / "study", epochs=1)("plain", 0)
        tried.append(True)
        return []

    tried = []
    trainer = make(
        folder=tmp_path / "study", epochs=1, callbacks=train_the_same
    )
    trainer("plain", 0)
    assert tried


# -- what is said --------------------------------------------------------------


def test_a_line_tells_of_each_student_unless_silent(capsys):
    make(epochs=1, verbose=1)("plain", 0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("plain, seed 0: accuracy 0.")
    make(epochs=1)("plain", 1)
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar_of_epochs(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    make(verbose=1)("plain", 0)
    printed = capsys.readouterr().out
    assert "plain, seed 0" in printed and f"{EPOCHS}/{EPOCHS}" in printed


def test_the_diagnosis_is_that_of_the_training_data(teacher):
    trainer = make(teacher)
    expected = kd.diagnose(teacher, (X, LABELS))
    assert str(trainer.diagnosis()) == str(expected)
    assert trainer.diagnosis() is trainer.diagnosis()
    assert make().diagnosis() is None


# -- refusals ------------------------------------------------------------------


def _growing():
    units = iter(range(4, 99))
    return lambda: student(next(units))


def _sharing():
    layer = keras.layers.Dense(6)
    return lambda: keras.Sequential(
        [keras.Input((FEATURES,)), layer, keras.layers.Dense(CLASSES)]
    )


def _same():
    model = student()
    return lambda: model


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"make_student": _growing()}, "the same network.*Received: .*(5, 5)"),
        ({"make_student": _same()}, "a new student each time. Received"),
        ({"make_student": _sharing()}, "a new student each time. Received"),
        ({"epochs": 0}, "at least 1. Received: epochs=0"),
        ({"epochs": 2.5}, "at least 1. Received: epochs=2.5"),
        ({"validation": None}, "validation=None. Pass"),
        ({"metric": "acuracy"}, r"logged. Received: .*acuracy.*\['loss'\]"),
        ({"metric": "cosine_similarity"}, "whether more of the metric"),
        ({"optimizer": 3}, "`optimizer` must be .*Received: 3"),
        ({"losses": {"kd": kd.KD()}}, "that no method has. Received: 'kd'"),
        ({"losses": {"a/b": kd.KD()}}, "needs a name.*Received: 'a/b'"),
        (
            {"loss_arguments": {"kdd": {}}},
            r"are by method. Received: \['kdd'\]",
        ),
        (
            {"train": in_batches(X, LABELS).repeat()},
            "must end. Received: an infinite",
        ),
    ],
)
def test_what_can_not_be_compared_is_refused_before_training(
    arguments, message
):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    "call, message",
    [
        (("kd_ptt", 0), "Received: 'kd_ptt'. Choose among plain, label_smo"),
        (("kd", 0), "'kd' needs a teacher.*no teacher.*Pass `teacher`"),
        (("kd_sim", 0), "'kd_sim' needs a teacher, .*relations"),
        (("kd_sim_permuted", 0), "'kd_sim_permuted' needs a teacher"),
        (("plain", -1), "A seed is .*Received: -1"),
        (("label_smoothing", 0, {"k": 3}), "Received: {'k': 3} for 'label_sm"),
        (("label_smoothing", 0, {"smoothing": 2}), "must be in .*Received"),
    ],
)
def test_what_can_not_be_trained_is_refused(call, message):
    trainer = make()
    assert trainer.methods == ("plain", "label_smoothing")
    with pytest.raises(ValueError, match=message):
        trainer.train(*call)


def test_other_kinds_of_arguments_are_refused(teacher):
    with pytest.raises(TypeError, match="must be a function.*Received"):
        make(make_student=student())
    with pytest.raises(TypeError, match="DistillationLoss`. Received: 'kd'"):
        make(losses={"mine": "kd"})
    with pytest.raises(TypeError, match="Pass a dict"):
        make(losses=[kd.KD()])
    with pytest.raises(TypeError, match="function of a student's name"):
        make(callbacks=[keras.callbacks.TerminateOnNaN()])
    with pytest.raises(TypeError, match=r"Received: \['stop'\] for 'plain"):
        make(callbacks=lambda name: ["stop"])("plain", 0)
    for name in ("steps_per_execution", "validation_freq"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            make(**{name: 0})
    with pytest.raises(TypeError, match="teacher"):
        make("teacher")
    with pytest.raises(TypeError, match="`train` must be what `fit` takes"):
        make(train=iter([1]))
    with pytest.raises(ValueError, match="a new optimizer.*Received"):
        made = keras.optimizers.SGD()
        trainer = make(optimizer=lambda: made)
        trainer("plain", 0)
        trainer("plain", 1)


def test_a_sigmoid_student_has_the_methods_of_two_classes():
    def unit():
        return keras.Sequential(
            [keras.Input((FEATURES,)), keras.layers.Dense(1, "sigmoid")]
        )

    labels = (LABELS > 3).astype("int32")
    x, y = VALIDATION
    trainer = make(
        unit(),
        train=(X, labels),
        validation=(x, (y > 3).astype("int32")),
        make_student=unit,
        epochs=1,
    )
    assert {"plain", "label_smoothing", "kd", "kd_pt"} <= set(trainer.methods)
    assert not {"kd_sim", "kd_topk", "dkd"} & set(trainer.methods)
    result = trainer("kd", 0)
    assert set(result["examples"]) <= {0.0, 1.0}
    # One unit is related to no other.
    assert trainer.teacher_similarity is None
    assert "class_similarity" not in result
    outcome = kd.attribute(trainer, 2, ["plain"], verbose=False)
    assert len(outcome.scores["plain"]) == 2


# -- attribute -----------------------------------------------------------------


def test_what_took_forty_lines_takes_one_call(teacher, tmp_path):
    train = X[:BATCH], LABELS[:BATCH]
    trainer = make(teacher, train, folder=tmp_path / "study", epochs=1)
    attribution = kd.attribute(
        trainer,
        range(2),
        methods=("plain", "label_smoothing", "kd_pt"),
        metric="accuracy",
        study=trainer.study,
        folder=tmp_path / "attribution",
        verbose=False,
    )
    for method, by_seed in attribution.scores.items():
        for seed, score in by_seed.items():
            assert score == trainer(method, seed)["accuracy"]
    assert "kd_pt against label_smoothing" in str(attribution)


# -- logits by chunks ----------------------------------------------------------


def test_students_by_chunks_are_those_without(teacher):
    train = X, LABELS, WEIGHTS
    plainly, by_chunks = (
        make(teacher, train, epochs=1, logit_chunks=chunks)
        for chunks in (None, 3)
    )
    for method in ("plain", "kd"):
        expected, result = plainly(method, 1), by_chunks(method, 1)
        for name in ("loss", "accuracy", "examples"):
            np.testing.assert_allclose(
                result[name], expected[name], rtol=1e-5, err_msg=name
            )
        for name, values in expected["history"].items():
            np.testing.assert_allclose(
                result["history"][name], values, rtol=1e-5, err_msg=name
            )


def test_students_by_chunks_resume_those_without(tmp_path):
    folder = tmp_path / "study"
    kept = make(folder=folder, epochs=1)("plain", 0)
    by_chunks = make(folder=folder, epochs=1, logit_chunks="auto")
    assert by_chunks("plain", 0) == kept


def test_chunks_that_do_not_suit_are_refused_before_training():
    with pytest.raises(ValueError, match="number of chunks"):
        make(logit_chunks=0)
    with pytest.raises(ValueError, match="without a graph"):
        make(logit_chunks=2, make_student=lambda: Subclassed(FEATURES))


class Subclassed(keras.Model):
    """Of which no graph tells the logit layer."""

    def __init__(self, features):
        super().__init__()
        self.logits = keras.layers.Dense(CLASSES)
        self.build((None, features))

    def build(self, shape):
        self.logits.build(shape)
        self.built = True

    def call(self, inputs):
        return self.logits(inputs)


@pytest.mark.parametrize("ignored", [255, 1])
def test_scores_of_ignored_labels_are_what_the_metric_has(
    ignored, teacher, tmp_path
):
    """The loss leaves them out, and Keras's accuracy doesn't."""
    x, labels = VALIDATION
    if ignored == 255:
        labels = np.where(np.arange(len(labels)) % 3 == 0, 255, labels)
    assert (labels == ignored).any()
    trainer = make(
        teacher,
        validation=(x, labels),
        folder=tmp_path / "study",
        save_students=True,
        loss_arguments={"kd": {"ignore_class": ignored}},
    )
    result = trainer("kd", 0)
    (path,) = tmp_path.glob("study/kd-seed0*.keras")
    model = keras.models.load_model(path, compile=False)
    expected = correct(model, x, labels)
    np.testing.assert_array_equal(result["examples"], expected)
    assert result["accuracy"] == expected.mean()
