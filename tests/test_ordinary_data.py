"""Data as people have them: the same result as plain Keras, or a refusal.

A distillation loss of weight 0 is plain cross-entropy, so that plain Keras on
the same data says what is right.
"""

import functools
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import reference
import scipy.sparse
import tensorflow as tf
from keras import layers, ops
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    mlp,
    outputs_of,
    uniform,
)

import keras_kd as kd

EXAMPLES, STEPS = 16, 5


def tabular(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
    labels = random.integers(0, CLASSES, EXAMPLES).astype("int32")
    weights = random.uniform(0, 2, EXAMPLES).astype("float32")
    return x, labels, weights


def sequences(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(EXAMPLES, STEPS, FEATURES)).astype("float32")
    labels = random.integers(0, CLASSES, (EXAMPLES, STEPS)).astype("int32")
    return x, labels, random.uniform(0, 2, EXAMPLES).astype("float32")


def metrics():
    return {
        "metrics": ["accuracy"],
        "weighted_metrics": [
            keras.metrics.SparseCategoricalCrossentropy(
                from_logits=True, name="weighted"
            )
        ],
    }


def trained_plainly(model, *fit_arguments, **fit_options):
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **metrics(),
        **EAGERLY,
    )
    history = run(model, *fit_arguments, **fit_options)
    return history, model


def trained_by_distiller(student, *fit_arguments, how=EAGERLY, **fit_options):
    distiller = kd.Distiller(student)
    distiller.compile(
        keras.optimizers.SGD(0.1),
        kd.LabelSmoothing(weight=0.0),
        **metrics(),
        **how,
    )
    return run(distiller, *fit_arguments, **fit_options), student


def run(model, x, y, sample_weight=None, **options):
    return model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=10,
        shuffle=False,
        verbose=0,
        **options,
    ).history


def assert_same(theirs, ours, keys=("loss", "accuracy", "weighted")):
    (expected, plain), (found, student) = theirs, ours
    assert_same_weights(plain.get_weights(), student.get_weights())
    for key in keys:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4)


def dense_over_steps():
    inputs = keras.Input((STEPS, FEATURES))
    outputs = layers.Dense(CLASSES, kernel_initializer=uniform(4))(inputs)
    return keras.Model(inputs, outputs)


x, labels, weights = tabular()
FORMS = {
    "weights of shape (N, 1)": ((x, labels, weights[:, None]), {}),
    "labels of shape (N, 1)": ((x, labels[:, None], weights), {}),
    "whole floats": ((x, labels.astype("float32"), weights), {}),
    "float columns": ((x, labels[:, None].astype("float64"), weights), {}),
    "small integers": ((x, labels.astype("uint8"), weights), {}),
    "wide integers": ((x, labels.astype("int64"), weights), {}),
    "pandas series": (
        (
            pd.DataFrame(x, columns=list("abcde")),
            pd.Series(labels),
            pd.Series(weights),
        ),
        {},
    ),
    "pandas frames": (
        (pd.DataFrame(x), pd.DataFrame(labels), pd.DataFrame(weights)),
        {},
    ),
}


@functools.cache
def trained_on_the_table():
    return trained_plainly(mlp(), x, labels, weights)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_table(form):
    how = {} if "shape" in form else EAGERLY
    ours = trained_by_distiller(mlp(), *FORMS[form][0], how=how)
    assert_same(trained_on_the_table(), ours)


def test_a_student_that_is_built_by_a_pandas_frame():
    def unbuilt():
        keras.utils.set_random_seed(3)
        return keras.Sequential(
            [layers.Dense(4, "relu"), layers.Dense(CLASSES)]
        )

    frame = (pd.DataFrame(x), pd.Series(labels), pd.Series(weights))
    theirs = trained_plainly(unbuilt(), x, labels, weights)
    assert_same(theirs, trained_by_distiller(unbuilt(), *frame, how={}))


def test_class_weights_by_keys_of_any_number_type():
    class_weight = {1: 3.0, 4: 0.5}
    theirs = trained_plainly(mlp(), x, labels, class_weight=class_weight)
    for keys in (np.int64, float):
        by_keys = {keys(key): value for key, value in class_weight.items()}
        ours = trained_by_distiller(mlp(), x, labels, class_weight=by_keys)
        assert_same(theirs, ours)


def alike():
    """Plain Keras, and a Distiller that must train as it does."""
    plain, distiller = mlp(), kd.Distiller(mlp())
    plain.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **EAGERLY,
    )
    distiller.compile(keras.optimizers.SGD(0.1), kd.LabelSmoothing(weight=0.0))
    return plain, distiller


def test_class_weights_of_one_training_are_not_those_of_the_next():
    plain, distiller = alike()
    for model in (plain, distiller):
        run(model, x, labels, class_weight={1: 10.0})
        model.train_on_batch(x, labels)
        model.train_on_batch(x, labels, class_weight={2: 5.0})
        run(model, x, labels)
    assert_same_weights(plain.get_weights(), distiller.student.get_weights())


@pytest.mark.parametrize("key", ["1", 1.5, None, CLASSES, -1])
def test_class_weights_by_other_keys_are_refused(key):
    with pytest.raises(ValueError, match="class_weight.*Received"):
        trained_by_distiller(mlp(), x, labels, class_weight={key: 2.0})


def test_weights_that_fit_no_label_are_refused():
    images = np.zeros((EXAMPLES, 3), "float32")
    with pytest.raises(ValueError, match="sample_weight.*Received.*shape"):
        trained_by_distiller(mlp(), x, labels, images)


def pixels():
    random = np.random.default_rng(1)
    images = random.normal(size=(EXAMPLES, 4, 3, 2)).astype("float32")
    labels = random.integers(0, CLASSES, (EXAMPLES, 4, 3)).astype("int32")
    weights = random.uniform(0, 2, (EXAMPLES, 4, 3)).astype("float32")
    return images, labels, weights


def segmenter():
    inputs = keras.Input((4, 3, 2))
    outputs = layers.Conv2D(CLASSES, 1, kernel_initializer=uniform(2))(inputs)
    return keras.Model(inputs, outputs)


def test_weights_for_pixels_with_and_without_a_last_axis():
    """Where the step is traced, sizes of batches are not known."""
    images, labels, weights = pixels()
    theirs = trained_plainly(segmenter(), images, labels, weights)
    for form, how in (
        ((labels, weights[..., None]), EAGERLY),
        ((labels[..., None], weights[..., None]), {}),
        ((labels[..., None], weights), EAGERLY),
    ):
        ours = trained_by_distiller(segmenter(), images, *form, how=how)
        assert_same(theirs, ours)


def test_labels_of_steps_with_a_last_axis():
    x, labels, weights = sequences()
    every_step = np.repeat(weights[:, None], STEPS, axis=1)
    theirs = trained_plainly(dense_over_steps(), x, labels, every_step)
    for form, how in (
        ((labels[..., None], weights), {}),
        ((labels, weights), EAGERLY),
        ((labels, weights[:, None]), {}),
        ((labels[..., None], every_step[..., None]), EAGERLY),
    ):
        ours = trained_by_distiller(dense_over_steps(), x, *form, how=how)
        assert_same(theirs, ours)


def masking_student():
    inputs = keras.Input((STEPS, FEATURES))
    masked = layers.Masking()(inputs)
    outputs = layers.Dense(CLASSES, kernel_initializer=uniform(4))(masked)
    return keras.Model(inputs, outputs)


def test_a_mask_with_weights_by_example():
    x, labels, weights = sequences()
    x[:, -2:] = 0
    every_step = np.repeat(weights[:, None], STEPS, axis=1)
    keys = ("loss", "accuracy", "weighted")
    theirs = trained_plainly(masking_student(), x, labels, every_step)
    ours = trained_by_distiller(masking_student(), x, labels, weights, how={})
    # Keras's metrics lose the mask on JAX; the Distiller's don't.
    is_jax = keras.backend.backend() == "jax"
    assert_same(theirs, ours, keys[:1] if is_jax else keys)


class OneOfADict(keras.Model):
    """Gives its logits by name."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES, kernel_initializer=uniform(6))

    def call(self, inputs):
        return {"logits": self.dense(inputs)}


@pytest.mark.parametrize("functional", [True, False])
def test_logits_by_name_as_the_only_output(functional):
    x, labels, weights = tabular()

    def named():
        if not functional:
            model = OneOfADict()
            model(x)
            return model
        model = mlp()
        return keras.Model(model.inputs, {"logits": model.outputs[0]})

    student = named()
    plain = named()
    initial = student.get_weights()
    dense = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            *(
                layers.Dense(w.shape[1], a)
                for w, a in zip(
                    initial[::2],
                    ["tanh", None] if functional else [None],
                    strict=True,
                )
            ),
        ]
    )
    dense.set_weights(initial)
    expected, plain = trained_plainly(dense, x, labels, weights)
    found, _ = trained_by_distiller(student, x, labels, weights)
    assert_same_weights(plain.get_weights(), student.get_weights())
    for key in ("loss", "accuracy", "weighted"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4)
    distiller = kd.Distiller(mlp(seed=2), student)
    distiller.compile("sgd", kd.KDPt(), **EAGERLY)
    one = run(distiller, x, labels)["loss"]
    distiller = kd.Distiller(mlp(seed=2), dense)
    distiller.compile("sgd", kd.KDPt(), **EAGERLY)
    np.testing.assert_allclose(
        one, run(distiller, x, labels)["loss"], rtol=1e-5
    )


@pytest.mark.parametrize("far", [2**32 + 1, -(2**32) + 1, 2**31])
def test_wide_labels_are_not_cut(far):
    wide = labels.astype("int64")
    wide[3] = far
    # The digits of a float32 are told, or all of them.
    with pytest.raises(ValueError, match=f"label {str(far)[:7]}"):
        trained_by_distiller(mlp(), x, wide)


def test_labels_of_several_classes_get_their_own_advice():
    several = np.zeros((EXAMPLES, CLASSES), "int32")
    several[:, :2] = 1
    with pytest.raises(ValueError, match="sums of up to 2.*binary_logits"):
        distiller = kd.Distiller(mlp())
        options = {"metrics": ["accuracy"], **EAGERLY}
        distiller.compile("sgd", kd.LabelSmoothing(), **options)
        run(distiller, x, several)


class NamedOnly(keras.Model):
    """Gives its logits under a name of its own."""

    def __init__(self):
        super().__init__()
        self.net = mlp(seed=3)

    def call(self, inputs):
        return {"logits": self.net(inputs)}


def functional_with_name():
    model = mlp(seed=3)
    return keras.Model(model.inputs, {"logits": model.outputs[0]})


def kd_logs(student, y, **options):
    distiller = kd.Distiller(student, mlp(seed=5))
    distiller.compile(keras.optimizers.SGD(0.1), kd.KD(), **EAGERLY)
    return run(distiller, x, y, **options)


def test_labels_under_the_name_of_the_only_output():
    logs = []
    for y in (labels, {"logits": labels}):
        distiller = kd.Distiller(functional_with_name(), mlp(seed=5))
        options = {"metrics": ["accuracy"], **EAGERLY}
        distiller.compile(keras.optimizers.SGD(0.1), kd.KDPt(), **options)
        logs.append(run(distiller, x, y, validation_data=(x, y)))
    expected, found = logs
    assert {"accuracy", "cross_entropy", "val_accuracy"} < set(found)
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("student", "y"),
    [
        (mlp, {"label": labels}),
        (mlp, {"label": labels, "teacher_right": labels > 2}),
        (functional_with_name, {"out": labels}),
        (NamedOnly, {"logits": labels}),
    ],
)
def test_labels_under_another_name_are_not_lost(student, y):
    with pytest.raises(ValueError, match="have the name 'labels'"):
        kd_logs(student(), y)


class Batches(keras.utils.PyDataset):
    """The table in four batches."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return x[rows], labels[rows]


def test_batches_that_several_workers_make():
    plain, distiller = alike()
    distiller.fit(Batches(workers=2), epochs=3, shuffle=False, verbose=0)
    # Batch by batch, as `fit` may begin with the second one: to build its
    # metrics it draws one on JAX and PyTorch.
    for _ in range(3):
        for index in range(4):
            plain.train_on_batch(*Batches()[index])
    assert_same_weights(plain.get_weights(), distiller.student.get_weights())


def test_sparse_inputs():
    table = scipy.sparse.csr_matrix(np.where(x > 0, x, 0))
    expected, plain = trained_plainly(mlp(), table, labels, weights)
    student = mlp()
    found, _ = trained_by_distiller(student, table, labels, weights)
    assert_same_weights(plain.get_weights(), student.get_weights())
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_another_dtype_by_default(dtype, floatx):
    student, teacher = mlp(), mlp(seed=5)
    logits = [outputs_of(model, x) for model in (student, teacher)]
    initial = [model.get_weights() for model in (student, teacher)]
    floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    student, teacher = mlp(), mlp()
    for model, values in zip((student, teacher), initial, strict=True):
        model.set_weights(values)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **EAGERLY)
    logs = run(distiller, x, labels)
    assert student.outputs[0].dtype == dtype
    log_q, log_p = map(reference.log_softmax, logits)
    cross_entropy = -log_q[np.arange(EXAMPLES), labels].mean()
    found = float(logs["cross_entropy"][0])
    assert found == pytest.approx(cross_entropy, rel=0.02)


def test_metrics_of_shares_to_train_on_and_class_ids_to_validate_on():
    shares = 0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES
    shares = shares.astype("float32")
    student = mlp()
    right = outputs_of(student, x).argmax(-1) == labels
    distiller = kd.Distiller(student, mlp(seed=5))
    options = {"metrics": ["accuracy"], **EAGERLY}
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **options)
    logs = run(distiller, x, shares, validation_data=(x, labels))
    assert logs["accuracy"][0] == pytest.approx(right.mean())
    assert logs["val_accuracy"][0] == pytest.approx(right.mean())
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **options)
    with pytest.raises(ValueError, match="began with class ids"):
        run(distiller, x, labels, validation_data=(x, shares))
    without_metrics = kd.Distiller(student, mlp(seed=5))
    without_metrics.compile(keras.optimizers.SGD(0.0), kd.KD(), **EAGERLY)
    logs = run(without_metrics, x, labels, validation_data=(x, shares))
    log_q = reference.log_softmax(outputs_of(student, x))
    expected = -(shares * log_q).sum(-1).mean()
    assert logs["val_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_metrics_after_a_batch_without_labels():
    student = mlp()
    right = outputs_of(student, x).argmax(-1) == labels
    distiller = kd.Distiller(student, mlp(seed=5))
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), metrics=["accuracy"])
    with pytest.warns(UserWarning, match="left out of the logs"):
        logs = distiller.train_on_batch(x, return_dict=True)
    assert set(logs) == {"loss", "distillation"}
    distiller.reset_metrics()
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    assert logs["accuracy"] == pytest.approx(right.mean())


def of_the_batch(labels, outputs):
    """One number, as in many a program: not the mean over examples."""
    return ops.max(ops.logsumexp(outputs, axis=-1)) + ops.cast(
        ops.max(labels), outputs.dtype
    )


@pytest.mark.parametrize(
    ("argument", "how"), [("metrics", EAGERLY), ("weighted_metrics", {})]
)
def test_a_metric_that_gives_one_number_for_a_batch(argument, how):
    student = mlp()
    log_sums = np.log(np.exp(outputs_of(student, x).astype("float64")).sum(-1))
    batches = [slice(0, 10), slice(10, EXAMPLES)]
    # Keras's mean over batches, whatever their sizes.
    expected = np.mean([log_sums[b].max() + labels[b].max() for b in batches])
    distiller = kd.Distiller(student, mlp(seed=5))
    chosen = {argument: [of_the_batch]}
    distiller.compile(keras.optimizers.SGD(0.0), kd.KD(), **chosen, **how)
    logs = run(distiller, x, labels, validation_data=(x, labels))
    assert logs["of_the_batch"][0] == pytest.approx(expected)
    # It can't leave out the examples that have no label.
    some = np.where(np.arange(EXAMPLES) == 3, -1, labels)
    logs = run(distiller, x, some, validation_data=(x, labels))
    assert np.isnan(logs["of_the_batch"][0])
    assert logs["val_of_the_batch"][0] > 0


@pytest.mark.parametrize(("form", "how"), [(list, {}), (tuple, EAGERLY)])
def test_labels_and_weights_as_a_list_of_the_only_output(form, how):
    given = form([labels]), form([weights])
    ours = trained_by_distiller(mlp(), x, *given, how=how)
    assert_same(trained_on_the_table(), ours)


@pytest.mark.parametrize("form", [list, tuple])
def test_such_labels_in_a_cache_and_a_diagnosis(form, tmp_path):
    teacher, data = mlp(seed=5), (x, form([labels]))
    logits = outputs_of(teacher, x)
    accuracy = kd.diagnose(teacher, data).numbers["teacher"]["accuracy"]
    assert accuracy == pytest.approx((logits.argmax(-1) == labels).mean())
    path, loss = tmp_path / "cache", kd.KDPt(temperature=1.0)
    cache = kd.TeacherCache.write(path, data, teacher, loss, verbose=0)
    p = reference.softmax(logits)[np.arange(EXAMPLES), labels]
    found = cache[np.arange(EXAMPLES)]["label_log_odds"]
    np.testing.assert_allclose(found, np.log(p / (1 - p)), 2e-3, 1e-3)


def test_two_labels_for_one_loss_are_refused_in_words():
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", kd.LabelSmoothing())
    dataset = tf.data.Dataset.from_tensor_slices((x, (labels, labels)))
    with pytest.raises(ValueError, match="tuple of 2 arrays, and one loss"):
        distiller.fit(dataset.batch(8), verbose=0)


@pytest.mark.parametrize("dtype", ["str", "bytes", "object"])
@pytest.mark.parametrize("form", ["arrays", "tf.data", "validation"])
def test_names_of_classes_are_refused_in_words(dtype, form):
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", kd.LabelSmoothing())
    names = np.array(list("abcdefg"), dtype)[labels]
    with pytest.raises(ValueError, match="Number the names of the classes"):
        if form == "arrays":
            distiller.fit(x, names, verbose=0)
        elif form == "tf.data":
            dataset = tf.data.Dataset.from_tensor_slices((x, names))
            distiller.fit(dataset.batch(8), verbose=0)
        else:
            distiller.fit(x, labels, validation_data=(x, names), verbose=0)


def test_a_list_of_numbers_is_not_labels():
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", kd.LabelSmoothing(), **EAGERLY)
    with pytest.raises(ValueError, match="list of 3 numbers"):
        distiller.train_on_batch(x[:3], [0, 1, 2])


@pytest.mark.parametrize("make", [kd.KD, kd.KDPt])
@pytest.mark.parametrize("ignored", [-100, -1, 255, 1])
def test_metrics_see_ignored_labels_as_in_keras(make, ignored):
    """So that a student compares with one that Keras trained.

    Written out: on PyTorch Keras's own loss masks the weights in place.
    """
    some = np.where(np.arange(EXAMPLES) % 3 == 1, ignored, labels)
    student = mlp()
    right = outputs_of(student, x).argmax(-1) == some
    distiller = kd.Distiller(student, mlp(seed=5))
    weighted = keras.metrics.SparseCategoricalAccuracy(name="weighted")
    distiller.compile(
        keras.optimizers.SGD(0.0),
        make(ignore_class=ignored),
        metrics=["accuracy"],
        weighted_metrics=[weighted],
        **EAGERLY,
    )
    logs = run(distiller, x, some, weights)
    assert logs["accuracy"] == [pytest.approx(right.mean())]
    expected = np.average(right, weights=weights)
    assert logs["weighted"] == [pytest.approx(expected)]


def of_batch(labels, outputs):
    """One number for the whole batch, not a mean over its examples."""
    return ops.max(ops.cast(labels, "float32"))


def test_a_metric_of_integers_gets_no_weights_to_warn_of():
    """Those that leave out missing labels are not the user's."""
    missing = np.arange(EXAMPLES) % 3 == 1
    some = np.where(missing, -1, labels)
    student = mlp()
    best = outputs_of(student, x).argmax(-1)[~missing]
    right = labels[~missing]
    shares = [
        np.logical_and(best == c, right == c).sum()
        / np.logical_or(best == c, right == c).sum()
        for c in np.union1d(best, right)
    ]
    distiller = kd.Distiller(student, mlp(seed=5))
    iou = keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False, name="iou")
    distiller.compile(
        keras.optimizers.SGD(0.0), kd.KD(), metrics=[iou, of_batch], **EAGERLY
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*weight as `float`")
        logs = distiller.fit(x, some, EXAMPLES, verbose=0).history
    assert logs["iou"] == [pytest.approx(np.mean(shares))]
    assert np.isnan(logs["of_batch"]).all()
