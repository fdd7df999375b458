"""Training by chunks of tokens is training, without the logits in memory."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras import layers, ops
from models import assert_same_weights, assert_weights_differ, uniform
from test_distiller_correctness import get_loss

import keras_kd as kd
from keras_kd import chunks as by_chunks
from keras_kd.logit_split import ModelSplit, split_model
from keras_kd.token_metrics import check_metrics

BACKEND = keras.backend.backend()
WORDS, STEPS, WIDTH = 11, 4, 5
# One size of batch, of 16 tokens: three chunks are of 6, 6 and 4 of them.
ROWS, BATCH = 8, 4
IGNORED = 3
# Of two steps each. TensorFlow takes a third of a second for three chunks that
# it doesn't compile.
EPOCHS = 2 if BACKEND == "tensorflow" else 5


class KDTop1(kd.losses.DistillationLoss):
    """The loss of one's own that the README shows."""

    statistics = ("top_class", "top_probability")
    reads_labels = False

    def teacher_statistics(self, labels, teacher_logits):
        p = ops.softmax(teacher_logits / self.temperature)
        return {
            "top_class": ops.argmax(p, axis=-1),
            "top_probability": ops.max(p, axis=-1),
        }

    def target(self, labels, statistics, num_classes):
        mass = statistics["top_probability"]
        return kd.losses.SparseTarget(
            classes=statistics["top_class"][..., None],
            masses=mass[..., None],
            rest=1 - mass,
        )


def make_loss(name, **arguments):
    return KDTop1(**arguments) if name == "own" else get_loss(name, **arguments)


def body(width, seed, masked=False):
    """Inputs and features of a language model."""
    inputs = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(
        WORDS,
        width,
        mask_zero=masked,
        embeddings_initializer=uniform(seed),
    )(inputs)
    x = layers.Dense(width, "tanh", kernel_initializer=uniform(seed + 1))(x)
    return inputs, x


def logit_layer(seed=0, **arguments):
    return layers.Dense(
        WORDS,
        kernel_initializer=uniform(seed + 2),
        bias_initializer=uniform(seed + 3),
        **arguments,
    )


def language_model(seed=0, width=WIDTH, masked=False, **arguments):
    inputs, x = body(width, seed, masked)
    return keras.Model(inputs, logit_layer(seed, **arguments)(x))


def words(rows=ROWS, seed=0):
    """Tokens, next tokens and weights."""
    random = np.random.default_rng(seed)
    shape = (rows, STEPS)
    x, labels = random.integers(0, WORDS, (2, *shape)).astype("int32")
    return x, labels, random.uniform(0, 2, shape).astype("float32")


def make(
    chunks, loss, student=language_model, teacher=None, compiled=None, **made
):
    teacher = language_model(9, 6) if teacher is None else teacher()
    student = student()
    distiller = kd.Distiller(student, teacher, logit_chunks=chunks, **made)
    # TensorFlow takes seconds to make a graph; the tests of graphs say so.
    arguments = {
        "run_eagerly": BACKEND == "tensorflow",
        **(compiled() if compiled else {}),
    }
    arguments.setdefault("optimizer", keras.optimizers.SGD(0.5, momentum=0.9))
    distiller.compile(loss=loss(), **arguments)
    return distiller


def train(distiller, epochs=1, data=None, **fit):
    x, labels, weights = words() if data is None else data
    history = distiller.fit(
        x,
        labels,
        sample_weight=weights,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **fit,
    )
    return history.history


def same(loss, chunks=3, fit=None, epochs=1, data=None, **made):
    """Trains by chunks and at once, and compares all that comes out."""
    whole = make(None, loss, **made)
    before = whole.student.get_weights()
    expected = train(whole, epochs, data, **(fit or {}))
    assert_weights_differ(before, whole.student.get_weights())
    for each in chunks if isinstance(chunks, list) else [chunks]:
        distiller = make(each, loss, **made)
        history = train(distiller, epochs, data, **(fit or {}))
        assert_same_training(whole, distiller, expected, history)
    return distiller


def assert_same_training(whole, distiller, expected, history):
    assert_same_weights(
        whole.student.get_weights(), distiller.student.get_weights()
    )
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            history[name], values, rtol=2e-5, atol=1e-6, err_msg=name
        )
    for group, scale in whole.gradient_scales.items():
        np.testing.assert_allclose(
            distiller.gradient_scales[group].snapshot(),
            scale.snapshot(),
            rtol=2e-5,
            atol=1e-5,
        )


# -- the same training --------------------------------------------------------


@pytest.fixture
def pieces(monkeypatch):
    """Chunks of six tokens are cut in two pieces where a backend does that."""
    monkeypatch.setattr(by_chunks, "PIECE_BYTES", 4 * WORDS * 4)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    "name", ["label_smoothing", "kd_pt_sim", "kd_sampled", "kd", "own"]
)
def test_steps_end_at_the_same_weights(name):
    """With weights, classes that weigh more or are ignored, and masks."""
    same(
        lambda: make_loss(name, ignore_class=IGNORED),
        epochs=EPOCHS,
        student=lambda: language_model(masked=True),
        fit={"class_weight": {1: 2.0, 5: 0.5}},
        gradient_scale=False,
    )


def test_statistics_in_the_data_serve_as_well():
    """Here samples of the teacher's classes."""
    loss = kd.KDSampled(k=3, seed=0)
    x, labels, weights = words()
    logits = language_model(9, 6)(x)
    y = {"labels": labels, **loss.teacher_statistics(labels, logits)}
    y = keras.tree.map_structure(ops.convert_to_numpy, y)
    data = (x, y, weights[:, 0])
    same(lambda: kd.KDSampled(k=3), epochs=EPOCHS, data=data)


def test_any_number_of_chunks_will_do():
    """The last batch has 4 tokens, and more chunks than that are one each."""
    same(kd.KDPt, [1, 7, 1000, "auto"], data=words(5))


# How, and rows to train on: XLA compiles a step for each size of batch. PyTorch
# compiles nothing.
COMPILED = {
    "tensorflow": [({"jit_compile": False}, 7), ({"jit_compile": True}, BATCH)],
    "jax": [({"jit_compile": True}, 7)],
    "torch": [({}, 7)],
}


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("how", "rows"), COMPILED[BACKEND])
def test_a_compiled_step_is_the_same(how, rows):
    """Of chunks that are alike, in validation, and of a smaller last one."""

    def batches(rows, seed=0):
        """Whose size TensorFlow doesn't know where it traces a step."""
        arrays = words(rows, seed)
        return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)

    def trained(chunks, how):
        distiller = make(
            chunks,
            kd.KDPtSim,
            student=lambda: language_model(masked=True),
            compiled=lambda: {
                "metrics": ["accuracy"],
                "weighted_metrics": [
                    keras.metrics.SparseCategoricalAccuracy("w")
                ],
                **how,
            },
        )
        history = distiller.fit(
            batches(rows),
            validation_data=batches(3, seed=1),
            shuffle=False,
            verbose=0,
        )
        return distiller, history.history

    whole, expected = trained(None, {})
    distiller, history = trained(3, {"run_eagerly": False, **how})
    assert_same_training(whole, distiller, expected, history)


@pytest.mark.usefixtures("pieces")
def test_gradients_are_those_of_explicit_distributions():
    """In float64 NumPy, of features, kernel and bias."""
    x, labels, weights = words(4)
    hidden = np.random.default_rng(1).normal(size=(4, STEPS, WIDTH))
    teacher = np.random.default_rng(2).normal(size=(4, STEPS, WORDS))
    inputs = keras.Input((STEPS, WIDTH))
    scale = layers.EinsumDense(
        "btd,d->btd", (STEPS, WIDTH), kernel_initializer="ones"
    )
    layer = logit_layer()
    student = keras.Model(inputs, layer(scale(inputs)))
    kernel, bias = (w.astype("float64") for w in layer.get_weights())
    distiller = kd.Distiller(student, logit_chunks=5)
    distiller.compile(
        keras.optimizers.SGD(1.0),
        kd.KDPt(weight=0.6, temperature=2.0),
        run_eagerly=BACKEND == "tensorflow",
    )
    y = {
        "labels": labels,
        "teacher_logits": teacher.astype("float32"),
    }
    distiller.train_on_batch(hidden.astype("float32"), y, weights)

    logits = hidden @ kernel + bias
    target = reference.pt_target(labels, teacher, 2.0)
    gradient = reference.per_example_gradient(
        logits, labels, [(0.6, target)], 2.0
    )
    gradient = gradient * weights[..., None] / weights.size
    expected = (
        1.0 - (hidden * (gradient @ kernel.T)).sum((0, 1)),
        kernel - np.einsum("btd,btv->dv", hidden, gradient),
        bias - gradient.sum((0, 1)),
    )
    for value, wanted in zip(student.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


# -- models -------------------------------------------------------------------


def _nested():
    inner = language_model()
    inputs = keras.Input((STEPS,), dtype="int32")
    return keras.Model(inputs, inner(inputs))


def _sequential():
    return keras.Sequential(
        [
            keras.Input((STEPS,), dtype="int32"),
            layers.Embedding(WORDS, WIDTH, embeddings_initializer=uniform(0)),
            logit_layer(use_bias=False),
        ]
    )


def _ends_in(function):
    def make():
        inputs, x = body(WIDTH, 0)
        return keras.Model(inputs, function(x))

    return make


def _embedding(tied, **arguments):
    def make():
        inputs = keras.Input((STEPS,), dtype="int32")
        embedding = layers.ReversibleEmbedding(
            WORDS,
            WIDTH,
            tie_weights=tied,
            embeddings_initializer=uniform(0),
            **arguments,
        )
        x = layers.Dense(WIDTH, "tanh", kernel_initializer=uniform(1))(
            embedding(inputs)
        )
        return keras.Model(inputs, embedding(x, reverse=True))

    return make


STUDENTS = {
    "nested": _nested,
    "sequential": _sequential,
    "frozen kernel": _ends_in(lambda x: logit_layer(trainable=False)(x)),
    "softmax": _ends_in(lambda x: logit_layer(activation="softmax")(x)),
    "softmax layer": _ends_in(lambda x: layers.Softmax()(logit_layer()(x))),
    "log softmax": _ends_in(
        lambda x: ops.log_softmax(logit_layer()(x), axis=2)
    ),
    "scale": _ends_in(lambda x: layers.Rescaling(0.5)(logit_layer()(x))),
    "soft cap": _ends_in(lambda x: 3.0 * ops.tanh(logit_layer()(x) / 3.0)),
    "einsum": _ends_in(
        lambda x: layers.EinsumDense(
            "btd,dv->btv",
            (STEPS, WORDS),
            bias_axes="v",
            kernel_initializer=uniform(2),
        )(x)
    ),
    "each step": _ends_in(lambda x: layers.TimeDistributed(logit_layer())(x)),
    "tied": _embedding(True),
    "tied, capped": _embedding(True, logit_soft_cap=2.0),
    "untied": _embedding(False),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_models_are_split_at_their_logit_layer(name):
    """What follows it is what the model does."""
    model = STUDENTS[name]()
    x, _, _ = words()
    split = split_model(model, "student")
    features = ops.reshape(split.body(x), (-1, WIDTH))
    outputs = split.outputs(features, split.layer.weights())
    np.testing.assert_allclose(
        np.reshape(ops.convert_to_numpy(outputs), (ROWS, STEPS, WORDS)),
        ops.convert_to_numpy(model(x)),
        rtol=1e-5,
        atol=1e-6,
    )


# Trained through what follows the layer, through both uses of its kernel, or
# not at all.
@pytest.mark.parametrize(
    "name", ["tied, capped", "softmax layer", "log softmax", "frozen kernel"]
)
def test_students_are_trained_as_they_are(name):
    """So are teachers, here one of the same form."""

    def student():
        keras.utils.set_random_seed(0)
        return STUDENTS[name]()

    def teacher():
        keras.utils.set_random_seed(1)
        model = STUDENTS[name]()
        random = np.random.default_rng(0)
        model.set_weights(
            [random.normal(size=w.shape) for w in model.get_weights()]
        )
        return model

    same(kd.KD, student=student, teacher=teacher, data=words(BATCH))


def test_images_are_tokens_too():
    """A batch without a time axis."""
    x, labels, weights = words(12)
    inputs = keras.Input((STEPS,))

    def student():
        return keras.Model(inputs, logit_layer()(inputs))

    data = (x.astype("float32"), labels[:, 0], weights[:, 0])
    same(kd.KD, student=student, teacher=student, data=data)


class _Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = logit_layer()

    def call(self, inputs):
        return self.dense(inputs)


def _built_subclass():
    model = _Subclass()
    model(np.zeros((1, STEPS), "float32"))
    return model


class _CosineLogits(layers.Dense):
    """Logits that are cosines, as face recognition has them."""

    def call(self, inputs):
        unit = self.kernel / ops.norm(self.kernel, axis=0, keepdims=True)
        return ops.matmul(inputs, unit)


class _NormalisedLogits(layers.Dense):
    """The same by a kernel that is computed."""

    @property
    def kernel(self):
        return self._kernel / ops.norm(self._kernel, axis=0, keepdims=True)


class _Centred(layers.Activation):
    """Subtracts the mean over tokens."""

    def call(self, inputs):
        return inputs - ops.mean(inputs, axis=1, keepdims=True)


UNFIT = {
    "LayerNormalization": _ends_in(
        lambda x: layers.LayerNormalization()(logit_layer()(x))
    ),
    "joins 2 tensors": _ends_in(
        lambda x: layers.Add()([logit_layer()(x), logit_layer(5)(x)])
    ),
    "Softmax": _ends_in(lambda x: layers.Softmax(axis=1)(logit_layer()(x))),
    "activity regularizer": _ends_in(
        lambda x: logit_layer(activity_regularizer="l2")(x)
    ),
    "GRU": _ends_in(lambda x: layers.GRU(WORDS, return_sequences=True)(x)),
    "`call` of its own": _built_subclass,
    "_CosineLogits.*`call` of its own": _ends_in(
        lambda x: _CosineLogits(WORDS)(x)
    ),
    "_CosineLogits '.*`call`": _ends_in(
        lambda x: layers.TimeDistributed(_CosineLogits(WORDS))(x)
    ),
    "computes its kernel": _ends_in(lambda x: _NormalisedLogits(WORDS)(x)),
    "_Centred": _ends_in(lambda x: _Centred("linear")(logit_layer()(x))),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_student_that_cannot_be_split_is_refused(what):
    with pytest.raises(ValueError, match=what) as error:
        make(4, kd.LabelSmoothing, student=UNFIT[what], teacher=UNFIT[what])
    assert "Received: student" in str(error.value)
    assert "Leave `logit_chunks` out" in str(error.value)


def test_a_teacher_that_cannot_be_split_is_refused_where_it_runs():
    unfit = UNFIT["LayerNormalization"]
    distiller = make(4, kd.KD, teacher=unfit)
    with pytest.raises(ValueError, match="Received: teacher.*TeacherCache"):
        train(distiller)
    make(4, kd.LabelSmoothing, teacher=unfit).train_on_batch(*words(BATCH))


def test_a_logit_layer_is_split_as_it_is_now():
    """Also where it was changed after the first step."""

    data = words(BATCH)

    def changed(chunks, change):
        distiller = make(chunks, kd.KD)
        train(distiller, data=data)
        for model in (distiller.student, distiller.teacher):
            change(model.layers[-1])
        distiller.compile(
            keras.optimizers.SGD(0.5),
            kd.KD(),
            run_eagerly=BACKEND == "tensorflow",
        )
        return distiller

    def cap(layer):
        layer.activation = lambda logits: 0.5 * ops.tanh(logits)

    whole, distiller = changed(None, cap), changed(3, cap)
    expected = train(whole, data=data)
    assert_same_training(
        whole, distiller, expected, train(distiller, data=data)
    )

    with pytest.raises(ValueError, match="student .* has LoRA enabled"):
        changed(3, lambda layer: layer.enable_lora(2))


@pytest.mark.parametrize("chunks", [0, -1, 2.5, True, "many"])
def test_a_number_of_chunks_is_checked(chunks):
    with pytest.raises(ValueError, match="logit_chunks=.*Give a"):
        kd.Distiller(language_model(), logit_chunks=chunks)


def right(labels, outputs):
    """[batch, time], whether a token is right."""
    best = ops.cast(ops.argmax(outputs, axis=-1), "int32")
    return ops.cast(ops.equal(ops.cast(labels, "int32"), best), "float32")


def whole_row(labels, outputs):
    """[batch], whether all tokens of a row are."""
    return ops.min(right(labels, outputs), axis=-1)


def of_batch(labels, outputs):
    """A mean, of which Keras takes the mean over batches."""
    return ops.mean(right(labels, outputs))


class Mean(keras.metrics.Mean):
    """The mean of a function, as users write their own metrics."""

    def __init__(self, function):
        super().__init__(name=function.__name__)
        self.function = function

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(self.function(y_true, y_pred), sample_weight)


@pytest.mark.parametrize("function", [whole_row, of_batch])
@pytest.mark.parametrize(
    "compiled",
    [
        lambda function: {"metrics": [function]},
        lambda function: {"metrics": [["accuracy", Mean(function)]]},
        lambda function: {"weighted_metrics": [Mean(function)]},
        lambda function: {
            "metrics": [
                keras.metrics.MeanMetricWrapper(function, function.__name__)
            ]
        },
    ],
)
def test_a_metric_that_needs_more_than_a_token_is_refused(function, compiled):
    match = f"metric '{function.__name__}', which gives .*Compute it from"
    with pytest.raises(ValueError, match=match):
        make(3, kd.KD, compiled=lambda: compiled(function))
    make(None, kd.KD, compiled=lambda: compiled(function))


@pytest.mark.parametrize("labels", ["class ids", "one-hot"])
def test_metrics_of_tokens_are_tried_and_left_as_they_were(labels):
    """Also those that make variables when they first see a batch."""
    of_ids = [
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
        right,
        Mean(right),
    ]
    of_shares = [
        keras.metrics.CategoricalAccuracy(),
        keras.metrics.OneHotMeanIoU(WORDS),
        keras.metrics.AUC(from_logits=True, num_thresholds=20),
    ]
    metrics = of_ids if labels == "class ids" else of_shares
    for shape in ((None, STEPS, WORDS), (None, WORDS)):
        check_metrics([metrics], shape)
    f1 = keras.metrics.F1Score()
    check_metrics(f1, (None, WORDS))
    f1.update_state(np.eye(WORDS)[:4], np.eye(WORDS)[[0, 1, 2, 4]])
    found = ops.convert_to_numpy(f1.result())
    np.testing.assert_allclose(found[:5], [1, 1, 1, 0, 0], rtol=1e-5)
    for metric in metrics:
        if isinstance(metric, keras.metrics.Metric):
            for variable in metric.variables:
                assert not ops.any(ops.convert_to_tensor(variable))


def test_what_cannot_be_added_up_is_refused():
    with pytest.raises(ValueError, match="reduction=None"):
        make(4, lambda: kd.KD(reduction=None))
    inputs, x = body(WIDTH, 0)
    heads = [logit_layer(name=name)(x) for name in ("a", "b")]
    student = keras.Model(inputs, heads)
    distiller = kd.Distiller(student, logit_chunks=4)
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*Leave"):
        distiller.compile(loss={"a": kd.LabelSmoothing(), "b": "mse"})
    inputs = keras.Input((3,))
    units = keras.Model(inputs, layers.Dense(2, "sigmoid")(inputs))
    with pytest.raises(ValueError, match="binary_probabilities"):
        kd.Distiller(units, logit_chunks=4).compile(loss=kd.LabelSmoothing())


def test_statistics_must_be_of_tokens():
    x, labels, _ = words(4)
    distiller = make(4, kd.KDPt)
    y = {"labels": labels, "label_log_odds": np.zeros((4, 1), "float32")}
    with pytest.raises(ValueError, match=r"'label_log_odds' of shape \(4, 1\)"):
        distiller.train_on_batch(x, y)


# -- labels -------------------------------------------------------------------


def test_soft_labels_and_missing_ones():
    x, labels, weights = words(BATCH)
    soft = np.eye(WORDS, dtype="float32")[labels] * 0.7
    soft += np.eye(WORDS, dtype="float32")[labels[::-1]] * 0.3
    same(kd.KDPt, data=(x, soft, weights))
    labels = np.where(labels < 4, -1, labels)
    same(kd.KD, data=(x, labels, weights))


def test_weights_of_examples_and_labels_with_an_axis_more():
    x, labels, weights = words()
    data = (x, labels[..., None], weights[:, 0])
    same(kd.KD, data=data, compiled=lambda: {"metrics": ["accuracy"]})


def test_a_bad_label_leaves_the_student_as_it_was():
    x, labels, weights = words()
    labels[1, 2] = WORDS
    distiller = make(3, kd.KD)
    before = distiller.student.get_weights()
    with pytest.raises(ValueError, match=f"label {WORDS} among 1 label"):
        train(distiller, data=(x, labels, weights))
    assert_same_weights(before, distiller.student.get_weights(), 0)


def test_a_teacher_that_is_not_finite_is_told():
    def teacher():
        model = language_model(9)
        model.layers[-1].bias.assign(np.full(WORDS, np.nan))
        return model

    distiller = make(3, kd.KDPt, teacher=teacher)
    with pytest.raises(ValueError, match="What the teacher gives is not"):
        train(distiller)


# -- what surrounds a loss ----------------------------------------------------


def test_evaluation_and_prediction_are_the_students():
    x, labels, weights = words()
    found = []
    for chunks in (None, 3):
        distiller = make(
            chunks,
            kd.KD,
            compiled=lambda: {
                "metrics": [
                    "accuracy",
                    keras.metrics.SparseTopKCategoricalAccuracy(3),
                ]
            },
        )
        found.append(
            distiller.evaluate(
                x, labels, sample_weight=weights, verbose=0, return_dict=True
            )
        )
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    logits = distiller.predict(x, verbose=0)
    assert logits.shape == (ROWS, STEPS, WORDS)
    np.testing.assert_allclose(
        ops.convert_to_numpy(distiller(x)), logits, rtol=1e-5, atol=1e-5
    )


def test_optimizers_see_the_same_gradients():
    """And a penalty on the logit layer, as `add_loss` gives."""
    same(
        kd.KD,
        epochs=2,
        student=lambda: language_model(kernel_regularizer="l2"),
        compiled=lambda: {
            "optimizer": keras.optimizers.SGD(
                0.5,
                gradient_accumulation_steps=2,
                clipnorm=0.1,
                weight_decay=0.1,
            )
        },
    )


# The smallest float16 is 6e-8; gradients are as large as the weights, or less.
@pytest.mark.parametrize(
    ("policy", "weight"),
    [("mixed_float16", 1.0), ("mixed_float16", 1e-7), ("mixed_bfloat16", 1.0)],
)
def test_half_precision(policy, weight):
    """Losses are scaled; sums over chunks are in float32."""
    keras.config.set_dtype_policy(policy)
    x, labels, weights = words(BATCH)
    ends = []
    for chunks in (None, 3):
        distiller = make(
            chunks,
            kd.KD,
            compiled=lambda: {
                "optimizer": keras.optimizers.SGD(0.5 / weight, momentum=0.9)
            },
        )
        train(distiller, epochs=2, data=(x, labels, weights * weight))
        ends.append(distiller.student.get_weights())
    assert_weights_differ(ends[0], language_model().get_weights())
    tolerance = 5e-3 if policy == "mixed_float16" else 5e-2
    assert_same_weights(*ends, tolerance)
    if policy == "mixed_float16":
        assert int(distiller.optimizer.inner_optimizer.iterations) == 2


def test_draws_advance_from_chunk_to_chunk_and_step_to_step():
    x, labels, _ = words(4)
    states = []
    for chunks in (2, 4):
        distiller = make(chunks, lambda: kd.KDSampled(k=3, seed=1))
        for _ in range(2):
            distiller.train_on_batch(x, labels)
        distiller.sync_variables()
        (state,) = distiller.random_variables
        states.append(ops.convert_to_numpy(state)[1])
    assert states == [4, 8]


def test_training_that_is_interrupted_resumes(tmp_path):
    """With the draws that an epoch more would have made."""

    def trained(folder, epochs):
        distiller = make(3, lambda: kd.KDSampled(k=3, seed=1))
        backup = kd.callbacks.BackupAndRestore(
            folder, delete_checkpoint=epochs > 1
        )
        train(distiller, epochs, words(BATCH), callbacks=[backup])
        return distiller.student.get_weights()

    expected = trained(tmp_path / "whole", 2)
    first = trained(tmp_path / "resumed", 1)
    assert_weights_differ(first, expected)
    assert_same_weights(trained(tmp_path / "resumed", 2), expected)


def test_it_is_saved_with_the_distiller(tmp_path):
    distiller = make(3, kd.KDPtSim)
    train(distiller, data=words(BATCH))
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.logit_chunks == 3
    for each in (distiller, loaded):
        train(each, data=words(BATCH))
    assert_same_weights(
        distiller.student.get_weights(), loaded.student.get_weights()
    )


# -- caches and diagnoses -----------------------------------------------------


@pytest.fixture
def few_tokens(monkeypatch):
    """A function that sets the number of tokens in a chunk."""

    def set_to(count):
        monkeypatch.setattr(by_chunks, "CHUNK_BYTES", 4 * WORDS * count)
        monkeypatch.setattr(by_chunks, "FEWEST_TOKENS", 1)
        monkeypatch.setattr(by_chunks, "_AT_ONCE", 1)

    return set_to


def statistics_of_a_cache(teacher, folder):
    """Of the first batch of six, in float32, once they are verified."""
    x, labels, _ = words(6)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(3)
    loss = kd.KDTopK(k=3)
    cache = kd.TeacherCache.write(
        folder, dataset, teacher, loss, dtype="float32", verbose=0
    )
    errors = cache.verify(dataset, teacher).largest_errors
    assert max(errors.values()) < 1e-5
    ((_, y),) = cache.attach(dataset, loss).take(1)
    return y


@pytest.mark.parametrize("teacher", ["log softmax", "soft cap"])
def test_a_cache_is_written_by_chunks(
    teacher, tmp_path, few_tokens, sizes_of_chunks
):
    """The same statistics, of a teacher of many classes."""
    make = STUDENTS[teacher]
    expected = statistics_of_a_cache(make(), tmp_path / "whole")
    few_tokens(2)
    assert not sizes_of_chunks
    found = statistics_of_a_cache(make(), tmp_path / "chunked")
    assert_same_statistics(found, expected)
    assert set(sizes_of_chunks) == {2}


@pytest.fixture
def sizes_of_chunks(monkeypatch):
    """List of the numbers of tokens of which logits were made."""
    sizes, outputs = [], ModelSplit.outputs

    def watched(split, features, weights):
        sizes.append(features.shape[0])
        return outputs(split, features, weights)

    monkeypatch.setattr(ModelSplit, "outputs", watched)
    return sizes


def assert_same_statistics(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_what_is_drawn_for_a_cache_differs_between_chunks(tmp_path, few_tokens):
    """Of a teacher that says the same of every token."""
    few_tokens(2)
    x, labels, _ = words(8)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
    teacher, loss = language_model(9), kd.KDSampled(k=3, seed=0)
    teacher.layers[1].set_weights([np.zeros((WORDS, WIDTH))])
    cache = kd.TeacherCache.write(
        tmp_path / "cache", dataset, teacher, loss, verbose=0
    )
    errors = cache.verify(dataset, teacher).largest_errors
    assert max(errors.values()) < 1e-3
    # Of each batch a row a chunk, the classes of its two tokens.
    first, second = (
        ops.convert_to_numpy(y["sampled_classes"]).reshape(-1, 2 * 3)
        for _, y in cache.attach(dataset, loss)
    )
    assert len(np.unique(first, axis=0)) > 3
    assert (first[1:] != second[:-1]).any()


def masked_model(seed):
    """Of numbers, of which a step of zeros is padding."""
    inputs = keras.Input((STEPS, 3))
    x = layers.Masking()(inputs)
    x = layers.Dense(WIDTH, "tanh", kernel_initializer=uniform(seed))(x)
    return keras.Model(inputs, logit_layer(seed)(x))


def diagnose_both(few_tokens, teacher, data, student=None, **arguments):
    """Numbers and findings of a diagnosis at once, and of one by chunks."""
    results = []
    for count in (10**6, 5):
        few_tokens(count)
        diagnosis = kd.diagnose(
            teacher,
            data,
            student,
            kd.KDPt(ignore_class=IGNORED),
            batch_size=8,
            **arguments,
        )
        leaves = keras.tree.flatten(diagnosis.numbers)
        numbers = [n for n in leaves if not isinstance(n, (str, type(None)))]
        assert len(numbers) > 100
        results.append((numbers, [each.code for each in diagnosis.findings]))
    return results


@pytest.mark.parametrize("has_student", [False, True])
def test_a_diagnosis_is_made_by_chunks(has_student, few_tokens):
    """Of sequences with padding, ignored labels, weights of 0 and NaN."""
    random = np.random.default_rng(0)
    x = random.normal(size=(19, STEPS, 3)).astype("float32")
    x[::3, 1:] = 0
    x[4, 2] = np.nan
    _, labels, weights = words(19)
    weights[:, 0] = 0
    if has_student:
        # A student must be sound.
        weights[4, 2] = 0
    teacher = masked_model(9)
    student = masked_model(0) if has_student else None
    whole, chunked = diagnose_both(
        few_tokens, teacher, (x, labels, weights), student
    )
    assert whole[0] == pytest.approx(chunked[0], rel=1e-4, abs=1e-5)
    assert whole[1] == chunked[1]
    assert ("not_finite" in whole[1]) is not has_student


def test_a_diagnosis_by_chunks_refuses_the_same(few_tokens):
    """A label that is not a class, and a teacher of something else."""
    x, labels, _ = words(8)
    few_tokens(5)
    bad = labels.copy()
    bad[6, 1] = 99
    with pytest.raises(ValueError, match="label 99 among 1 labels of batch 0"):
        kd.diagnose(language_model(9), (x, bad), batch_size=8)
    wrong = STUDENTS["softmax layer"]()
    with pytest.raises(ValueError, match="is said to give logits"):
        kd.diagnose(wrong, (x, labels), teacher_output="logits")
    with pytest.raises(ValueError, match="said to give log_probabilities"):
        kd.diagnose(
            language_model(9), (x, labels), teacher_output="log_probabilities"
        )


# -- memory -------------------------------------------------------------------

TOKENS, VOCABULARY, CHUNKS = 24, 60, 6


def memory_case(name="kd"):
    """A Distiller and a batch of sizes that tell arrays apart."""
    inputs = keras.Input(batch_shape=(TOKENS, 5))

    def model():
        x = layers.Dense(7, "tanh")(inputs)
        return keras.Model(inputs, layers.Dense(VOCABULARY)(x))

    distiller = kd.Distiller(model(), model(), logit_chunks=CHUNKS)
    distiller.compile(
        "sgd", get_loss(name), metrics=["accuracy"], jit_compile=False
    )
    random = np.random.default_rng(0)
    x = random.normal(size=(TOKENS, 5)).astype("float32")
    return distiller, x, random.integers(0, VOCABULARY, TOKENS)


def largest_logits(shapes):
    """The most rows of an array whose last axis is the vocabulary."""
    rows = [
        int(np.prod(shape[:-1]))
        for shape in shapes
        if shape and shape[-1] == VOCABULARY and None not in shape
    ]
    assert rows
    # The kernel and its gradient have 7, a table of class relations has all.
    return max(each for each in rows if each not in (7, VOCABULARY))


def _operations(distiller, x, labels):
    """Those of TensorFlow's graph of a step."""
    # As Keras makes one, which has AutoGraph convert nothing.
    step = tf.function(
        lambda x, y: distiller.train_step((x, y)), autograph=False
    )
    graph = step.get_concrete_function(
        tf.constant(x), tf.constant(labels)
    ).graph
    graphs, operations = [graph], []
    while graphs:
        graph = graphs.pop()
        operations += graph.get_operations()
        functions = graph._functions
        graphs += [f.graph for f in functions.values() if hasattr(f, "graph")]
    return operations


def _shapes_on_tensorflow(distiller, x, labels):
    return [
        tuple(tensor.shape)
        for operation in _operations(distiller, x, labels)
        for tensor in operation.outputs
        if tensor.shape.rank
    ]


def _shapes_on_jax(distiller, x, labels):
    import re

    import jax

    distiller.train_on_batch(x, labels)
    distiller.sync_variables()
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            distiller.trainable_variables,
            distiller.non_trainable_variables,
            distiller.optimizer.variables,
            distiller.metrics_variables,
        )
    )
    values = [v.value for v in distiller._step_variables()]
    text = (
        jax.jit(distiller.train_step)
        .lower(state, (values, (x, labels)))
        .compile()
        .as_text()
    )
    return [
        tuple(map(int, found.split(",")))
        for found in re.findall(r"[a-z]\w*\[([\d,]+)\]", text)
    ]


def _shapes_on_torch(distiller, x, labels):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            shapes.extend(
                tuple(each.shape)
                for each in keras.tree.flatten(result)
                if isinstance(each, torch.Tensor)
            )
            return result

    distiller.train_on_batch(x, labels)
    with Record():
        distiller.train_on_batch(x, labels)
    return shapes


@pytest.mark.parametrize("name", ["kd", "kd_pt_sim"])
def test_no_array_has_the_logits_of_all_tokens(name):
    shapes_of = {
        "tensorflow": _shapes_on_tensorflow,
        "jax": _shapes_on_jax,
        "torch": _shapes_on_torch,
    }[BACKEND]
    arguments = memory_case(name)
    assert largest_logits(shapes_of(*arguments)) == TOKENS // CHUNKS


def test_the_memory_test_finds_such_arrays():
    distiller, x, labels = memory_case()
    whole = kd.Distiller(distiller.student, distiller.teacher)
    whole.compile("sgd", kd.KD(), jit_compile=False)
    shapes_of = {
        "tensorflow": _shapes_on_tensorflow,
        "jax": _shapes_on_jax,
        "torch": _shapes_on_torch,
    }[BACKEND]
    assert largest_logits(shapes_of(whole, x, labels)) == TOKENS


if BACKEND == "tensorflow":
    # What carries an array, and the product with its bias.
    CARRIERS = {"EnsureShape", "Identity", "Placeholder", "StopGradient"}
    PRODUCT = {"MatMul", "AddV2"}

    @pytest.mark.parametrize("name", ["kd", "dkd", "kd_sim"])
    def test_products_alone_make_arrays_of_a_whole_chunk(name, monkeypatch):
        """Those of other operations would be held side by side."""
        distiller, x, labels = memory_case(name)
        whole = tf.TensorShape((TOKENS // CHUNKS, VOCABULARY))
        made = {}
        # That such arrays are found where a piece is a whole chunk.
        for tokens in (3, 4) if name == "kd" else (3,):
            size = 4 * VOCABULARY * tokens
            monkeypatch.setattr(by_chunks, "PIECE_BYTES", size)
            made[tokens] = {
                operation.type
                for operation in _operations(distiller, x, labels)
                if whole in [tensor.shape for tensor in operation.outputs]
                and operation.type not in {*CARRIERS, "While"}
            }
        assert made[3] == PRODUCT
        if name == "kd":
            assert made[4] > {*PRODUCT, "Softmax"}


def test_chunks_are_chosen_by_size():
    distiller = kd.Distiller(language_model(), logit_chunks="auto")
    step = by_chunks.ChunkedStep(distiller)
    size = step.size(2048, 50_000)
    assert 2048 // size >= 6
    assert size * 50_000 * 4 <= by_chunks.CHUNK_BYTES
    assert step.size(2048, 100) == 2048
    assert step.size(2048, 10**7) >= by_chunks.FEWEST_TOKENS
    assert step.size(0, 50_000) == 1


def test_chunks_are_larger_on_a_gpu(monkeypatch):
    """Measured: 128 tokens of 128,000 classes take 1.7 times as long there."""
    assert not kd.backend.is_on_gpu()
    distiller = kd.Distiller(language_model(), logit_chunks="auto")
    step = by_chunks.ChunkedStep(distiller)
    assert step.size(16_384, 128_000) == 128
    monkeypatch.setattr(kd.backend, "is_on_gpu", lambda: True)
    assert step.size(16_384, 128_000) == 2048
    assert step.size(16_384, 1000) > 8000
    # Outside of training, no more at once than in training, or in bytes.
    assert by_chunks.are_many(2049, 128_000)
    assert not by_chunks.are_many(2048, 128_000)


# -- several devices ----------------------------------------------------------


if BACKEND == "tensorflow":

    def test_two_replicas_write_a_cache_as_one(
        two_replicas, tmp_path, few_tokens, sizes_of_chunks
    ):
        """Batches of three, filled up to four, in chunks of two tokens."""
        expected = statistics_of_a_cache(language_model(9), tmp_path / "one")
        few_tokens(2)
        with two_replicas.scope():
            teacher = language_model(9)
        found = statistics_of_a_cache(teacher, tmp_path / "two")
        assert_same_statistics(found, expected)
        assert set(sizes_of_chunks) == {2}

    @pytest.mark.usefixtures("pieces")
    def test_two_replicas_train_as_one(two_replicas):
        """Of the last batch, a single example, one of them gets nothing."""
        weights = []
        for strategy, chunks in ((None, None), (two_replicas, 3)):
            with kd.distribution.scope(strategy):
                distiller = make(
                    chunks,
                    lambda: kd.KDPtSim(ignore_class=IGNORED),
                    compiled=lambda eagerly=chunks is None: {
                        "run_eagerly": eagerly,
                        "metrics": ["accuracy"],
                    },
                )
            history = train(distiller, data=words(5))
            weights.append((distiller.student.get_weights(), history))
        assert_same_weights(weights[0][0], weights[1][0])
        for name, values in weights[0][1].items():
            np.testing.assert_allclose(weights[1][1][name], values, rtol=2e-5)
