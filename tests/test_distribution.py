"""Two replicas under tf.distribute against one device; TensorFlow alone.

Tracing takes longest, several times as long for two replicas as for one. So
where several cases share what replicas do, one of them is traced, as a user's
is; the others, and the one device that they are held against, run eagerly.
"""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    assert_weights_differ,
    data,
    fit,
    mlp,
    outputs_of,
    uniform,
    weights_of,
)
from test_bad_input import bad_labels, refused
from test_callbacks import read, tensors
from test_distiller_correctness import TRACED, compiled, get_loss

import keras_kd as kd

# Where histograms don't matter, there is less to run or to trace without them.
NO_HISTOGRAMS = {"gradient_scale": False}


def train_distributed(strategy, make_loss, how=EAGERLY):
    """Two steps, the last of a partial batch, with ignored labels."""
    x, labels, weights = data(13)
    with strategy.scope():
        student = mlp(seed=1, kernel_regularizer=keras.regularizers.L2(0.01))
        teacher = mlp(seed=5)
        distiller = compiled(
            student,
            teacher,
            make_loss(),
            keras.optimizers.SGD(0.1, momentum=0.9),
            metrics=["accuracy"],
            **how,
        )
    dataset = tf.data.Dataset.from_tensor_slices((x, labels, weights)).batch(8)
    history = distiller.fit(dataset, verbose=0).history
    scale = distiller.gradient_scales["all"].summary()
    return weights_of(student), history, scale


# Replicas share the mean over examples, which is the same for all losses, the
# variables of a loss, and its draws.
@pytest.mark.parametrize(
    "name, how",
    [
        ("label_smoothing", EAGERLY),
        ("kd", EAGERLY),
        ("kd_sim", EAGERLY),
        ("kd_sampled", EAGERLY),
        ("kd_pt_sim", TRACED),
    ],
)
def test_two_replicas_end_where_one_does(name, how, two_replicas):
    def make_loss():
        return get_loss(name, ignore_class=2)

    one, log_one, scale_one = train_distributed(
        tf.distribute.get_strategy(), make_loss
    )
    two, log_two, scale_two = train_distributed(two_replicas, make_loss, how)
    assert_same_weights(one, two, 1e-5)
    for key in ("cross_entropy", "accuracy", "gradient_scale"):
        np.testing.assert_allclose(log_one[key], log_two[key], rtol=1e-5)
    np.testing.assert_allclose(scale_one["histogram"], scale_two["histogram"])


OPTIMIZERS = {
    "clipnorm": {"clipnorm": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.02},
    "clipvalue": {"clipvalue": 0.003},
    "average": {"use_ema": True, "ema_momentum": 0.5, "weight_decay": 0.1},
}


def trained_weights(
    strategy, make_student, make_optimizer, how=EAGERLY, examples=13, size=8
):
    """A student's after two steps, the last of a partial batch."""
    with strategy.scope():
        student = make_student()
        distiller = compiled(
            student,
            None,
            kd.LabelSmoothing(),
            make_optimizer(),
            NO_HISTOGRAMS,
            **how,
        )
    dataset = tf.data.Dataset.from_tensor_slices(data(examples)).batch(size)
    distiller.fit(dataset, verbose=0)
    return weights_of(student)


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        ("clipnorm", "float32"),
        ("clipvalue", "float32"),
        ("average", "float32"),
        ("global_clipnorm", "mixed_float16"),
    ],
)
def test_an_optimizer_does_to_two_replicas_what_it_does_to_one(
    case, policy, two_replicas
):
    """Keras clips the gradients of each replica by themselves."""
    keras.config.set_dtype_policy(policy)

    def optimizer():
        return keras.optimizers.SGD(5.0, momentum=0.5, **OPTIMIZERS[case])

    one, two = (
        trained_weights(strategy, lambda: mlp(seed=1), optimizer, how)
        for strategy, how in (
            (tf.distribute.get_strategy(), EAGERLY),
            # Traced with loss scaling, which is the most to trace.
            (two_replicas, EAGERLY if policy == "float32" else TRACED),
        )
    )
    assert_weights_differ(one, weights_of(mlp(seed=1)))
    tolerance = 1e-5 if policy == "float32" else 2e-3
    assert_same_weights(one, two, tolerance)


@pytest.mark.parametrize(
    ("sizes", "more"),
    [
        ((13, 8), {}),
        # One replica gets one example each time, the other one or none: a trace
        # would know how many the first gets, and need no gradient of that.
        ((3, 2), {"steps_per_execution": 2}),
    ],
)
def test_synchronised_batch_normalisation_sees_the_batch_of_all(
    sizes, more, two_replicas
):
    def student():
        inputs = keras.Input((FEATURES,))
        hidden = keras.layers.Dense(6, kernel_initializer=uniform(1))
        normalise = keras.layers.BatchNormalization(synchronized=True)
        logits = keras.layers.Dense(CLASSES, kernel_initializer=uniform(2))
        return keras.Model(inputs, logits(normalise(hidden(inputs))))

    one, two = (
        trained_weights(
            strategy, student, lambda: keras.optimizers.SGD(0.1), how, *sizes
        )
        for strategy, how in (
            (tf.distribute.get_strategy(), EAGERLY),
            (two_replicas, {**TRACED, **more}),
        )
    )
    assert_same_weights(one, two, 1e-5)


@pytest.mark.parametrize(
    "name", ["gradient_accumulation_steps", "ema_overwrite_frequency"]
)
def test_an_update_in_some_steps_alone_is_refused(name, two_replicas):
    options = {"use_ema": name.startswith("ema"), name: 2}
    with two_replicas.scope():
        distiller = kd.Distiller(mlp(), mlp())
        with pytest.raises(
            ValueError, match=f"{name}=2 and a strategy of 2 replicas. Leave"
        ):
            distiller.compile(keras.optimizers.SGD(**options), kd.KDPt())


def test_a_loss_made_outside_the_strategy_works_in_it(two_replicas):
    def make_loss():
        return kd.KDPtSim(ignore_class=2)

    one, _, _ = train_distributed(tf.distribute.get_strategy(), make_loss)
    loss = make_loss()
    two, _, _ = train_distributed(two_replicas, lambda: loss)
    assert_same_weights(one, two, 1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_each_replica_and_each_step_draws_other_classes(inside, two_replicas):
    loss = kd.KDSampled(k=2, seed=3)
    if inside:
        with two_replicas.scope():
            loss = loss.copy()

    @tf.function
    def draw():
        def one_replica():
            return loss.teacher_statistics(None, tf.zeros((50, 9)))

        return two_replicas.run(one_replica)["sampled_classes"]

    drawn = [
        tuple(value.numpy().ravel())
        for _ in range(3)
        for value in two_replicas.experimental_local_results(draw())
    ]
    assert len(drawn) == len(set(drawn)) == 6


def half_precision_steps(strategy, overflow_at, how, scale_loss=None):
    """Weights and loss scale after steps, one example far too large."""
    x, labels, _ = data(16)
    weights = np.ones(16, "float32")
    weights[overflow_at] = 1e6
    keras.config.set_dtype_policy("mixed_float16")
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.1)
        distiller = compiled(
            mlp(seed=1),
            None,
            kd.LabelSmoothing(),
            optimizer if scale_loss is None else scale_loss(optimizer),
            NO_HISTOGRAMS,
            **how,
        )
    dataset = tf.data.Dataset.from_tensor_slices((x, labels, weights)).batch(8)
    distiller.fit(dataset, verbose=0)
    optimizer = distiller.optimizer
    scale = np.array(optimizer.dynamic_scale) / optimizer.initial_scale
    return weights_of(distiller.student), scale


@pytest.mark.parametrize(
    "overflow_at, how, scale_loss",
    [
        (1, EAGERLY, None),
        (6, TRACED, None),
        (6, EAGERLY, keras.optimizers.LossScaleOptimizer),
    ],
)
def test_overflow_on_one_replica_skips_the_step_on_all(
    overflow_at, how, scale_loss, two_replicas
):
    """Each batch of 8 is shared by two replicas; Keras asks the first."""
    one, scale_one = half_precision_steps(
        tf.distribute.get_strategy(), overflow_at, EAGERLY
    )
    two, scale_two = half_precision_steps(
        two_replicas, overflow_at, how, scale_loss
    )
    assert scale_one == scale_two == 0.5
    assert_weights_differ(one, weights_of(mlp(seed=1)))
    assert_same_weights(one, two, tolerance=2e-3)


def test_label_outside_the_classes_on_one_of_two_replicas(two_replicas):
    x, labels = data()[0], bad_labels()
    with two_replicas.scope():
        distiller = compiled(
            mlp(), mlp(), kd.KDPt(), metrics=["accuracy"], **TRACED
        )
    with pytest.raises(ValueError, match="label 77 among 1 label"):
        fit(distiller, x, labels)


def test_two_replicas_write_what_one_does(tmp_path, two_replicas):
    x, labels, _ = data()
    written = []
    for strategy, how in (
        (tf.distribute.get_strategy(), EAGERLY),
        (two_replicas, TRACED),
    ):
        folder = tmp_path / str(strategy.num_replicas_in_sync)
        with strategy.scope():
            distiller = compiled(
                mlp(seed=1), mlp(seed=5), "kd_pt_sim", "sgd", **how
            )
        schedule = kd.callbacks.LossSchedule(sim_weight=lambda epoch: 0.3)
        board = kd.callbacks.KDTensorBoard(folder)
        fit(distiller, x, labels, callbacks=[schedule, board])
        distiller.save(folder / "distiller.keras")
        written.append(read(folder / "train"))
    for tag in ("gradient_scale/teacher_wrong", "distillation/sim_weight"):
        one, two = (tensors(events, tag) for events in written)
        np.testing.assert_allclose(one, two)


def test_errors_pass_through_a_strategy_unchanged(two_replicas):
    x = data()[0]
    labels = np.eye(CLASSES + 1)[data()[1]].astype("float32")
    with two_replicas.scope():
        student = mlp()
        distiller = compiled(student, mlp(), kd.KDPt(), **TRACED)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(8)
    refused(
        lambda: distiller.fit(dataset, verbose=0), student, "share", "class"
    )


def test_gradient_scale_compiled_with_xla():
    metric = kd.metrics.GradientScale()

    @tf.function(jit_compile=True)
    def update(values):
        metric.update_state(values)

    update(tf.constant([0.5, -0.5, np.nan]))
    assert metric.summary()["count"] == 2


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_nan_that_one_replica_sees_leaves_the_student_as_it_was(
    policy, two_replicas
):
    x, labels, _ = data(16)
    broken = x.copy()
    broken[13, 2] = np.nan
    keras.config.set_dtype_policy(policy)
    try:
        with two_replicas.scope():
            inputs = keras.Input((x.shape[1],))
            hidden = keras.layers.BatchNormalization()(inputs)
            student = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
            # An optimizer with a state.
            optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
            distiller = compiled(
                student,
                mlp(seed=5),
                kd.KDPt(),
                optimizer,
                NO_HISTOGRAMS,
                **TRACED,
            )
    finally:
        keras.config.set_dtype_policy("float32")

    def state():
        variables = [*student.variables, *distiller.optimizer.variables]
        return [np.array(variable) for variable in variables]

    fit(distiller, x, labels, batch_size=16)
    before = state()
    with pytest.raises(ValueError, match="inputs are not finite"):
        fit(distiller, broken, labels, batch_size=16)
    for now, then in zip(state(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    fit(distiller, x, labels, batch_size=16)
    assert_weights_differ(state(), before)


@pytest.mark.parametrize("row", [2, 6])
def test_a_gradient_that_is_not_finite_on_one_replica(row, two_replicas):
    """The loss is: `where` takes 0, and multiplies infinity by it."""
    x, labels, _ = data(8)
    with two_replicas.scope():
        inputs = keras.Input((FEATURES,))
        hidden = keras.layers.Dense(6, use_bias=False)(inputs)
        squares = hidden * hidden
        hidden = keras.ops.where(squares > 0, keras.ops.log(squares), 0.0)
        student = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
        distiller = compiled(
            student, mlp(5), kd.KD(), said=NO_HISTOGRAMS, **TRACED
        )
    fit(distiller, x, labels)
    before = weights_of(student)
    x[row] = 0
    with pytest.raises(ValueError, match="gradient is not finite"):
        fit(distiller, x, labels)
    assert_same_weights(before, weights_of(student), 0)


class RootOfFirst(keras.layers.Layer):
    """Adds the mean root of the first feature to the loss."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.sqrt(inputs[:, 0])))
        return inputs


def with_a_loss_of_its_own(strategy, how=TRACED):
    with strategy.scope():
        inputs = keras.Input((FEATURES,))
        logits = mlp(seed=1)(RootOfFirst()(inputs))
        student = keras.Model(inputs, logits)
        return compiled(
            student,
            None,
            kd.LabelSmoothing(weight=0),
            said=NO_HISTOGRAMS,
            **how,
        )


def test_each_replica_adds_the_loss_of_its_own_layers(two_replicas):
    x, labels, _ = data(8)
    x[:, 0] = np.arange(8) ** 2
    distiller = with_a_loss_of_its_own(two_replicas)
    log_q = reference.log_softmax(outputs_of(distiller.student, x))
    plain = -log_q[np.arange(8), labels].mean()
    logs = fit(distiller, x, labels).history
    # Roots of 0 to 3 on one replica, of 4 to 7 on the other.
    np.testing.assert_allclose(logs["loss"], plain + 3.5, rtol=1e-5)


@pytest.mark.parametrize(
    "replicas, row, how", [(1, 2, TRACED), (2, 2, EAGERLY), (2, 6, TRACED)]
)
def test_a_layers_loss_that_is_not_finite_is_refused(
    replicas, row, how, two_replicas
):
    x, labels, _ = data(8)
    x[:, 0] = 1.0
    x[row, 0] = -1.0
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    distiller = with_a_loss_of_its_own(strategy, how)
    before = weights_of(distiller.student)
    with pytest.raises(ValueError, match="loss of the student's own layers"):
        fit(distiller, x, labels)
    assert_same_weights(weights_of(distiller.student), before, 0)


class MeanSquare(keras.layers.Layer):
    """Adds the mean square of its inputs to the loss."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def on_one_example(strategy, between, policy="float32", how=EAGERLY):
    """A student trained on one example; of two replicas one gets none."""
    x, labels, _ = data(1)
    keras.config.set_dtype_policy(policy)
    with strategy.scope():
        keras.utils.set_random_seed(1)
        student = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                keras.layers.Dense(6, kernel_regularizer="l2"),
                between(),
                keras.layers.Dense(CLASSES),
            ]
        )
        teacher = mlp(seed=5)
        distiller = compiled(student, teacher, kd.KD(), "sgd", **how)
    fit(distiller, x, labels)
    return distiller


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_replica_without_examples_adds_nothing(policy, two_replicas):
    """Nor does batch normalisation, whose mean over none is 0 / 0."""
    layer = keras.layers.BatchNormalization
    one = on_one_example(tf.distribute.get_strategy(), layer, policy)
    two = on_one_example(two_replicas, layer, policy, TRACED)
    tolerance = 1e-6
    if policy != "float32":
        # Nothing overflowed, so that no step was left out.
        scales = [each.optimizer.dynamic_scale for each in (one, two)]
        np.testing.assert_array_equal(*map(np.array, scales))
        tolerance = 1e-3
    for weight, other in zip(
        one.student.trainable_variables,
        two.student.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(weight, other, atol=tolerance)
    # Each replica has moving averages of its own.
    for variable in two.student.layers[1].variables:
        for value in two_replicas.experimental_local_results(variable.value):
            assert np.isfinite(value).all()


def test_a_replica_without_examples_is_refused_where_keras_fails(two_replicas):
    with two_replicas.scope():
        distiller = compiled(mlp(), mlp(seed=5), kd.KD(), **EAGERLY)
    x, labels, _ = data(1)
    for step in (distiller.fit, distiller.evaluate):
        with pytest.raises(ValueError, match="fewer examples than the 2 repl"):
            step(x, labels, verbose=0)


def test_a_loss_of_each_example_is_refused(two_replicas):
    """Replicas have other numbers of them, which can't be added up."""
    with two_replicas.scope():
        distiller = kd.Distiller(mlp(), mlp())
        with pytest.raises(ValueError, match="reduction=None and a strategy"):
            distiller.compile("sgd", kd.KD(reduction=None))


def test_a_mean_over_no_examples_is_named(two_replicas):
    distiller = on_one_example(tf.distribute.get_strategy(), MeanSquare)
    assert np.isfinite(distiller.history.history["loss"]).all()
    with pytest.raises(ValueError, match="replica without examples.*drop_rem"):
        on_one_example(two_replicas, MeanSquare, how=TRACED)


def aligned(array):
    """A copy where TensorFlow takes an array as it is, without copying."""
    room = np.empty(array.nbytes + 64, "uint8")
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def test_data_made_in_python_are_read_once_and_left_alone(two_replicas):
    x, labels, _ = data(48)
    x, labels = aligned(x), aligned(labels.astype("int64"))
    given = x.copy(), labels.copy()
    parts = [slice(start, start + 16) for start in (0, 16, 32)]

    def generator():
        for _ in range(2):
            yield from ((x[part], labels[part]) for part in parts)

    class Batches(keras.utils.PyDataset):
        num_batches = len(parts)

        def __getitem__(self, number):
            return x[parts[number]], labels[parts[number]]

    with two_replicas.scope():
        inputs = keras.Input((FEATURES,))
        # In place, if TensorFlow may.
        student = keras.Model(inputs, mlp(seed=1)(keras.ops.relu(2 * inputs)))
        distiller = compiled(
            student, mlp(seed=5), kd.KD(), keras.optimizers.SGD(0.0), **TRACED
        )
    each = -reference.log_softmax(outputs_of(student, x))
    expected = each[np.arange(48), labels].mean()
    logits = outputs_of(student, x)
    for made, inputs in ((generator, x), (Batches, Batches())):
        result = distiller.evaluate(made(), steps=3, verbose=0)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        logs = distiller.fit(
            made(), steps_per_epoch=3, epochs=2, shuffle=False, verbose=0
        ).history
        np.testing.assert_allclose(
            logs["cross_entropy"], [expected] * 2, rtol=1e-5
        )
        predicted = distiller.predict(inputs, verbose=0)
        np.testing.assert_allclose(predicted, logits, rtol=1e-5, atol=1e-5)
        for now, before in zip((x, labels), given, strict=True):
            np.testing.assert_array_equal(now, before)


def test_steps_of_evaluation_in_a_loop_of_ones_own(two_replicas):
    """Replicas take turns while a step runs."""
    x, labels, _ = data(8)
    with two_replicas.scope():
        distiller = compiled(mlp(seed=1), mlp(seed=5), kd.KD(), **TRACED)
    batches = two_replicas.experimental_distribute_dataset(
        tf.data.Dataset.from_tensor_slices((x, labels)).batch(8)
    )
    step = tf.function(
        lambda batch: two_replicas.run(distiller.test_step, args=(batch,)),
        autograph=False,
    )
    for batch in batches:
        assert set(step(batch)) == {"loss"}
    assert not distiller.is_evaluating


@pytest.mark.parametrize("inside", ["student", "Distiller"])
def test_models_on_both_sides_of_a_scope_are_refused(inside, two_replicas):
    def scope(name):
        return two_replicas.scope() if name == inside else nullcontext()

    with scope("student"):
        student = mlp()
    with scope("Distiller"):
        refused(
            lambda: kd.Distiller(student, mlp(seed=5)),
            student,
            "scope of one strategy",
            f"{inside} made in",
        )


@pytest.mark.parametrize("metrics", [None, ["accuracy", "f1_score"]])
def test_a_step_is_traced_once(metrics):
    """The variables of Adam and of metrics are there before it."""
    traced = []

    class Counted(kd.Distiller):
        def train_step(self, *args):
            traced.append("fit")
            return super().train_step(*args)

        def test_step(self, *args):
            traced.append("evaluate")
            return super().test_step(*args)

    for way in ("fit", "evaluate"):
        distiller = Counted(mlp(), mlp(units=12, seed=5))
        distiller.compile("adam", kd.KD(), metrics=metrics)
        x, labels, _ = data(32)
        labels = np.eye(CLASSES, dtype="float32")[labels]
        getattr(distiller, way)(x, labels, 8, verbose=0)
    assert traced == ["fit", "evaluate"]
