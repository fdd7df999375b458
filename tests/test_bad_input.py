"""Bad input: refused with what was wrong, what was received, what to do."""

import warnings

import keras
import numpy as np
import pytest
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


def compiled(student, teacher, loss=None, **kwargs):
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", loss or kd.KDPt(), **kwargs)
    return distiller


def refused(action, student, *words):
    """Runs `action`, which must raise a readable error and train nothing."""
    before = weights_of(student)
    with pytest.raises(ValueError) as caught:
        action()
    message = str(caught.value)
    assert "Received" in message
    for word in words:
        assert word in message, message
    for noise in ("Traceback", "node", "Graph execution", "tensorflow/"):
        assert noise not in message, message
    assert_same_weights(weights_of(student), before, 0)


def test_different_class_counts_at_construction():
    student = mlp(classes=5)
    refused(lambda: kd.Distiller(student, mlp(classes=7)), student, "5", "7")


class Unbuilt(keras.Model):
    """A subclassed model, whose classes are known when it runs."""

    def __init__(self, classes):
        super().__init__()
        self.dense = layers.Dense(classes)

    def call(self, inputs):
        return self.dense(inputs)


def test_different_class_counts_of_subclassed_models():
    x, labels, _ = data()
    student = mlp()
    distiller = compiled(student, Unbuilt(CLASSES + 2))
    refused(lambda: fit(distiller, x, labels), student, "7", "9", "classes")


@pytest.mark.parametrize("way", ["fit", "train_on_batch", "evaluate"])
def test_subclassed_models_that_are_not_built(way):
    """Before the first step, whose batches may be of several sizes."""
    x, labels, _ = data()
    student, teacher = Unbuilt(CLASSES), Unbuilt(CLASSES)
    distiller = compiled(student, teacher)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*build.*")
        if way == "evaluate":
            distiller.evaluate(x, labels, verbose=0)
        elif way == "train_on_batch":
            distiller.train_on_batch(x[:5], labels[:5])
            distiller.train_on_batch(x[:7], labels[:7])
        fit(distiller, x, labels, validation_data=(x, labels))
        fit(distiller, x[:5], labels[:5])
    expected = x @ weights_of(student)[0] + weights_of(student)[1]
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    assert len(teacher.weights) == 2


def test_a_teacher_that_nobody_asks_may_take_other_inputs():
    class Strange(Unbuilt):
        def call(self, inputs):
            return self.dense(inputs["tokens"])

    x, labels, _ = data()
    distiller = compiled(mlp(), Strange(CLASSES), kd.LabelSmoothing())
    fit(distiller, x, labels)
    assert not distiller.teacher.built


def test_models_that_are_none():
    with pytest.raises(TypeError, match="student must be a keras.Model"):
        kd.Distiller("student")
    with pytest.raises(TypeError, match="teacher must be a keras.Model"):
        kd.Distiller(mlp(), layers.Dense(3))


def test_several_outputs():
    inputs = keras.Input((FEATURES,))
    two = keras.Model(inputs, [layers.Dense(CLASSES)(inputs)] * 2)
    x, labels, _ = data()
    student = mlp()
    refused(
        lambda: fit(compiled(student, two), x, labels), student, "2 outputs"
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(CLASSES)[data()[1]] + 1, ["sum of 1", "Normalise"]),
        (np.eye(CLASSES + 1)[data()[1]], ["share for each class", "output"]),
        (data()[1].astype("float32") + 0.5, ["whole number", "encoding"]),
        (data()[1] + np.int64(2**32), ["label 4294967", "encoding"]),
        (data()[1].astype(bool), ["bool", "astype"]),
        (data()[1][:, None, None], ["(8, 1, 1)", "output"]),
    ],
)
@pytest.mark.parametrize("name", ["kd_pt", "label_smoothing"])
def test_labels_that_are_not_class_ids(labels, words, name):
    student = mlp()
    how = {} if name == "kd_pt" else EAGERLY
    distiller = compiled(student, mlp(), kd.losses.get(name), **how)
    refused(lambda: fit(distiller, data()[0], labels), student, *words)


def test_data_without_labels():
    student = mlp()
    distiller = compiled(student, mlp())
    refused(lambda: fit(distiller, data()[0], None), student, "labels")


@pytest.mark.parametrize(
    "run",
    [
        lambda d, x, y: d.evaluate(x, verbose=0),
        lambda d, x, y: d.evaluate(x, np.full_like(y, -1), verbose=0),
        lambda d, x, y: d.fit(x, validation_data=x, verbose=0),
        lambda d, x, y: d.fit(x, y, validation_data=(x,), verbose=0),
    ],
)
def test_evaluation_without_labels_is_not_sent_to_another_loss(run):
    distiller = compiled(mlp(), mlp(), kd.KD(), run_eagerly=True)
    with pytest.raises(ValueError, match="Evaluation, .*label") as caught:
        run(distiller, *data()[:2])
    assert "KD" not in str(caught.value)


def bad_labels():
    labels = data()[1]
    labels[5] = 77
    return labels


# Keras runs PyTorch one step at a time, and compiles it where there is a C++
# compiler.
WAYS = [{}]
if keras.backend.backend() != "torch":
    WAYS += [{"jit_compile": True}, {"steps_per_execution": 3}]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("kd_pt", how) for how in WAYS),
        # The label is read before the loss.
        ("kd_sim", EAGERLY),
        ("label_smoothing", EAGERLY),
    ],
)
def test_label_outside_the_classes_is_never_trained_on(name, how):
    student = mlp(seed=1)
    distiller = compiled(student, mlp(), kd.losses.get(name), **how)
    refused(
        lambda: fit(distiller, data()[0], bad_labels(), batch_size=32),
        student,
        "label 77",
        f"[0, {CLASSES})",
    )
    assert int(distiller.optimizer.iterations) == 0


@pytest.mark.parametrize("row", [5, -1])
def test_a_bad_label_is_refused_within_a_step(row):
    x, labels, _ = data()
    labels[row] = 77
    distiller = compiled(mlp(seed=1), mlp())
    with pytest.raises(ValueError, match="label 77"):
        fit(distiller, x, labels, batch_size=4, epochs=2)
    # The step with the label does not count. JAX looks one step later.
    steps = int(distiller.optimizer.iterations)
    assert steps in (1, 2) if row == 5 else steps == len(x) // 4 - 1


def test_a_bad_label_given_to_train_on_batch_is_refused_at_once():
    distiller = compiled(mlp(seed=1), mlp())
    with pytest.raises(ValueError, match="label 77"):
        distiller.train_on_batch(data()[0], bad_labels())


def test_label_outside_the_classes_in_evaluation():
    distiller = compiled(mlp(), mlp())
    with pytest.raises(ValueError, match="label 77"):
        distiller.evaluate(data()[0], bad_labels(), verbose=0)


def test_negative_label_is_refused_unless_ignored():
    x, labels, _ = data()
    labels[3] = -1
    with pytest.raises(ValueError, match="label -1 .*ignore_class=None"):
        fit(compiled(mlp(), mlp(), **EAGERLY), x, labels)
    ignoring = kd.KDPt(ignore_class=-1)
    fit(compiled(mlp(), mlp(), ignoring, **EAGERLY), x, labels)


@pytest.mark.parametrize("mark", [-100, 255])
def test_labels_of_padding_are_told_from_wrong_ones(mark):
    x, labels, _ = data()
    labels[3] = mark
    distiller = compiled(mlp(), mlp(), **EAGERLY)
    with pytest.raises(ValueError, match=f"give the loss ignore_class={mark}"):
        fit(distiller, x, labels)


def test_labels_and_teacher_logits_in_a_tuple():
    """As a loop of one's own may pass them."""
    x, labels, _ = data()
    logits = outputs_of(mlp(), x)
    with pytest.raises(TypeError, match="dict with .'labels', 'teacher_logits"):
        kd.KD()((labels, logits), logits)


def test_losses_in_a_list_of_outputs_without_names():
    class Two(Unbuilt):
        def call(self, inputs):
            return self.dense(inputs), self.dense(inputs)

    distiller = kd.Distiller(Two(CLASSES), mlp())
    with pytest.raises(ValueError, match="return a dict by name"):
        distiller.compile("sgd", ["mse", kd.KD()])


def test_a_refused_batch_does_not_refuse_the_next():
    x, labels, _ = data()
    distiller = compiled(mlp(), mlp())
    with pytest.raises(ValueError, match="label 77"):
        fit(distiller, x, bad_labels())
    fit(distiller, x, labels)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("kd_topk", how) for how in WAYS[:2]),
        ("kd_pt", EAGERLY),
        # XLA's largest value of several is another one where there is a NaN.
        *(("kd", how) for how in [EAGERLY, *WAYS[1:2]]),
    ],
)
def test_teacher_logits_that_are_not_finite(name, how):
    x, labels, _ = data(8)
    teacher = mlp(name="broken")
    student = mlp(seed=1)
    distiller = compiled(student, teacher, kd.losses.get(name), **how)
    bias = np.zeros(CLASSES, "float32")
    for bias[2] in (np.nan, np.inf):
        teacher.layers[-1].bias.assign(bias)
        refused(
            lambda: fit(distiller, x, labels), student, "teacher 'broken'", "8"
        )


def test_loss_that_needs_a_teacher_without_one():
    x, labels, _ = data()
    student = mlp()
    for name in ("kd_pt", "kd_topk", "kd"):
        distiller = compiled(student, None, kd.losses.get(name))
        refused(lambda d=distiller: fit(d, x, labels), student, "teacher=None")


def test_class_relations_without_a_teacher_are_refused_by_compile():
    student = mlp()
    for name in ("kd_sim", "kd_pt_sim"):
        refused(
            lambda n=name: compiled(student, None, kd.losses.get(n)),
            student,
            "logit_layer",
        )


def test_no_logit_layer_found():
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(CLASSES)(inputs)
    teacher = keras.Model(inputs, layers.LayerNormalization(name="norm")(x))
    student = mlp()
    refused(
        lambda: compiled(student, teacher, kd.KDSim()),
        student,
        "'norm'",
        "logit_layer",
    )
    refused(
        lambda: compiled(student, mlp(), kd.KDSim(logit_layer="absent")),
        student,
        "'absent'",
    )


def test_similarity_of_other_classes():
    x, labels, _ = data()
    student = mlp()
    loss = kd.KDSim(logit_layer=np.ones((3, 4)))
    refused(
        lambda: fit(compiled(student, None, loss), x, labels),
        student,
        "3 rows",
        "7",
    )


def test_more_kept_classes_than_there_are():
    x, labels, _ = data()
    student = mlp()
    distiller = compiled(student, mlp(), kd.KDTopK(k=50))
    refused(lambda: fit(distiller, x, labels), student, "k=50", "7 classes")


@pytest.mark.parametrize("loss", ["mse", None, "kd_pt_simm"])
def test_losses_that_are_not_distillation_losses(loss):
    student = mlp()
    distiller = kd.Distiller(student, mlp())
    refused(lambda: distiller.compile("sgd", loss), student, "kd_pt_sim")


def test_loss_weights_are_the_losses_own():
    student = mlp()
    refused(
        lambda: compiled(student, mlp(), loss_weights=[0.5]), student, "[0.5]"
    )


def test_class_weight_for_a_class_that_is_not_there():
    x, labels, _ = data()
    student = mlp()
    distiller = compiled(student, mlp())
    refused(
        lambda: fit(distiller, x, labels, class_weight={9: 2.0}), student, "9"
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (kd.LabelSmoothing, {"smoothing": None}),
        (kd.LabelSmoothing, {"smoothing": np.array([0.1, 0.2])}),
        (kd.LabelSmoothing, {"temperature": 2.0}),
        (kd.KDSim, {"alpha": "0.3"}),
        (kd.KDPtSim, {"beta": None}),
        (kd.KDSim, {"label_mass": [0.9]}),
        (kd.KDSim, {"table_bytes": None}),
        *((kd.KD, {"ignore_class": i}) for i in ([0, 1], 0.5, "a", NAN)),
        *(
            (kd.metrics.GradientScale, each)
            for each in ({"bins": 2.5}, {"low": "a"}, {"high": np.inf})
        ),
        *(
            (kd.callbacks.KDTensorBoard, {"similarity_classes": each})
            for each in (None, "all", 2.5, [1.5], True)
        ),
    ],
)
def test_arguments_that_are_no_numbers(make, arguments):
    with pytest.raises(ValueError, match="Received"):
        make(**arguments)


def test_numbers_of_numpy_are_numbers():
    assert kd.KDTopK(k=np.int64(3)).k == 3
    assert kd.KDTopK(k=np.float32(0.5)).k == 0.5
    assert kd.KDSampled(k=2, seed=np.int64(3)).seed == 3
    assert kd.KD(ignore_class=np.int64(255)).ignore_class == 255
    assert kd.Distiller(mlp(), logit_chunks=np.int64(2)).logit_chunks == 2


def test_label_smoothing_stays_at_temperature_1():
    """As a file would have it."""
    loss = kd.LabelSmoothing()
    with pytest.raises(ValueError, match="at temperature 1"):
        loss.temperature = 2.0


def test_labels_in_one_tuple_with_the_inputs():
    x, labels, _ = data()
    student = mlp()
    distiller = compiled(student, mlp(), kd.KD())
    for run in (distiller.fit, distiller.evaluate):
        refused(lambda run=run: run((x, labels)), student, "fit(x, labels)")


@pytest.mark.parametrize("weights", ["balanced", [1.0] * CLASSES])
def test_class_weight_that_is_no_dict(weights):
    x, labels, _ = data()
    student = mlp()
    distiller = compiled(student, mlp())
    refused(
        lambda: fit(distiller, x, labels, class_weight=weights),
        student,
        "dict(enumerate(weights))",
    )


def test_bins_that_are_none():
    for bins in (80, True):
        with pytest.raises(TypeError, match="`gradient_scale` gives the bins"):
            kd.Distiller(mlp(), gradient_scale=bins)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_batches_of_no_examples(size, tmp_path):
    """Zero was taken for "leave it out", and -1 for empty data."""
    x, labels, _ = data()
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), mlp(), kd.KDPt(), verbose=0
    )
    for run in (
        lambda: cache.attach((x, labels), batch_size=size),
        lambda: kd.diagnose(mlp(), (x, labels), batch_size=size),
        lambda: kd.TeacherCache.write(
            tmp_path / "other", (x, labels), mlp(), "kd", batch_size=size
        ),
    ):
        with pytest.raises(ValueError, match=f"one example.*size={size}"):
            run()


def test_a_cache_of_a_teacher_that_is_no_model(tmp_path):
    x, labels, _ = data()
    with pytest.raises(TypeError, match="teacher must be a keras.Model"):
        kd.TeacherCache.write(tmp_path / "cache", (x, labels), kd.KDPt())


def test_an_output_of_labels_that_are_not_by_output(tmp_path):
    x, labels, _ = data()
    with pytest.raises(ValueError, match="dict by output.*output='a'"):
        kd.TeacherCache.write(
            tmp_path / "cache", (x, labels), mlp(), "kd", output="a"
        )


@pytest.mark.parametrize("callbacks", [keras.callbacks.History(), ["loss"]])
def test_a_backup_of_callbacks_that_are_no_list(callbacks):
    with pytest.raises(TypeError, match="list of callbacks.*Received"):
        kd.callbacks.BackupAndRestore("backup", callbacks=callbacks)


def test_a_temperature_changes_with_a_cache_as_the_message_says(tmp_path):
    x, labels, _ = data()
    cache = kd.TeacherCache.write(
        tmp_path / "cache", (x, labels), mlp(), kd.KD(), verbose=0
    )
    schedule = kd.callbacks.LossSchedule(temperature=lambda epoch: 1.0 + epoch)
    distiller = compiled(mlp(), None, kd.KDPt(temperature=2.0))
    with pytest.raises(ValueError, match=r"attach it without a loss"):
        distiller.fit(
            cache.attach((x, labels), kd.KDPt(temperature=2.0)),
            callbacks=[schedule],
            verbose=0,
        )
    distiller.fit(
        cache.attach((x, labels)), epochs=2, callbacks=[schedule], verbose=0
    )
