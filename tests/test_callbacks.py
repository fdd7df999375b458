"""Event files, read back with TensorBoard's own reader."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import CLASSES, EAGERLY, assert_same_weights, data, fit, mlp
from tensorboard.backend.event_processing import plugin_event_accumulator

import keras_kd as kd


class Remember(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.snapshots = []

    def on_epoch_end(self, epoch, logs=None):
        self.snapshots.append(self.model.gradient_scales["all"].summary())


def read(folder):
    events = plugin_event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def tensors(events, tag):
    return [
        tf.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs with every callback, and what they should have written."""
    tmp_path = tmp_path_factory.mktemp("logs")
    x, labels, _ = data()
    student, teacher = mlp(seed=1), mlp(seed=5)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", kd.KDPtSim(), metrics=["accuracy"])
    schedule = kd.callbacks.LossSchedule(
        temperature=lambda epoch: 2.0 + epoch,
        pt_weight=lambda epoch: 0.5 - 0.2 * epoch,
    )
    remember = Remember()
    board = kd.callbacks.KDTensorBoard(tmp_path)
    history = fit(
        distiller,
        x,
        labels,
        epochs=2,
        validation_data=(x, labels),
        callbacks=[schedule, remember, board],
    )
    return distiller, history.history, remember, read(tmp_path / "train")


def test_histograms_hold_the_metrics_bins(run):
    _, _, remember, events = run
    plugins = events.PluginTagToContent("histograms")
    for group in ("all", "teacher_right", "teacher_wrong"):
        assert f"gradient_scale/{group}" in plugins
    written = tensors(events, "gradient_scale/all")
    assert len(written) == 2
    for buckets, summary in zip(written, remember.snapshots, strict=True):
        np.testing.assert_allclose(buckets[:, 2], summary["histogram"])
        np.testing.assert_allclose(buckets[:, 0], summary["edges"][:-1])
        np.testing.assert_allclose(buckets[:, 1], summary["edges"][1:])
    means = tensors(events, "gradient_scale/all/mean")
    np.testing.assert_allclose(
        means, [s["mean"] for s in remember.snapshots], rtol=1e-6
    )


def test_groups_add_up(run):
    _, _, _, events = run
    everything, right, wrong = (
        np.array(tensors(events, f"gradient_scale/{group}"))[..., 2]
        for group in ("all", "teacher_right", "teacher_wrong")
    )
    np.testing.assert_allclose(everything, right + wrong)


def test_scalars_hold_loss_parts_weights_and_temperature(run):
    _, history, _, events = run
    scalars = events.PluginTagToContent("scalars")
    for name in ("loss", "cross_entropy", "pt", "sim", "accuracy"):
        assert f"epoch_{name}" in scalars
        np.testing.assert_allclose(
            tensors(events, f"epoch_{name}"), history[name], rtol=1e-6
        )
    for name, values in {
        "temperature": [2, 3],
        "pt_weight": [0.5, 0.3],
        "sim_weight": [0.1, 0.1],
    }.items():
        np.testing.assert_allclose(
            tensors(events, f"distillation/{name}"), values, rtol=1e-6
        )


def cosines(model):
    rows = model.layers[-1].get_weights()[0].T
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows @ rows.T


def test_the_image_shows_both_similarity_matrices(run):
    distiller, _, _, events = run
    assert "class_similarity" in events.PluginTagToContent("images")
    # The first two entries are the size.
    png = tensors(events, "class_similarity")[-1][2]
    image = tf.image.decode_png(png).numpy().astype(float) / 255
    cell = image.shape[0] // CLASSES
    for model, left in (
        (distiller.teacher, 0),
        (distiller.student, image.shape[1] - CLASSES * cell),
    ):
        panel = image[cell // 2 :: cell, left + cell // 2 :: cell][:, :CLASSES]
        # Red above 0, blue below, the more so the further.
        expected = cosines(model)
        reddish = panel[..., 0] - panel[..., 2]
        sure = np.abs(expected) > 0.05
        assert (np.sign(reddish) == np.sign(expected))[sure].all()
        order = np.argsort(expected[sure])
        assert (np.diff(reddish[sure][order]) >= -0.02).all()


def test_histograms_every_few_batches_cover_disjoint_windows(tmp_path):
    x, labels, _ = data(32)
    distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
    distiller.compile("sgd", kd.KDPt(), **EAGERLY)
    board = kd.callbacks.KDTensorBoard(tmp_path, histogram_steps=3)
    fit(distiller, x, labels, epochs=2, callbacks=[board])
    events = read(tmp_path / "train")
    written = tensors(events, "gradient_scale/all")
    assert [b[:, 2].sum() for b in written] == [24, 8, 24, 8]
    steps = [e.step for e in events.Tensors("gradient_scale/all")]
    assert steps == [3, 4, 7, 8]


@pytest.mark.parametrize("update_freq", [3, 5, "batch", "epoch"])
def test_how_often_keras_writes_leaves_distillation_alone(
    tmp_path, update_freq
):
    x, labels, _ = data(32)
    distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
    distiller.compile("sgd", kd.KDPt(), **EAGERLY)
    board = kd.callbacks.KDTensorBoard(
        tmp_path, histogram_steps=2, update_freq=update_freq
    )
    # Four batches an epoch.
    fit(distiller, x, labels, epochs=2, callbacks=[board])
    events = read(tmp_path / "train")
    written = events.Tensors("gradient_scale/all")
    assert [event.step for event in written] == [2, 4, 6, 8]
    for tag in ("distillation/temperature", "distillation/weight"):
        assert [event.step for event in events.Tensors(tag)] == [0, 1]


class Kill(keras.callbacks.Callback):
    """Ends training in the middle of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 2 and batch > 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("update_freq", "how"),
    [("batch", {"steps_per_execution": 2}), (3, EAGERLY)],
)
def test_batches_are_counted_on_where_training_resumes(
    tmp_path, update_freq, how
):
    x, labels, _ = data(36)

    def run(name, *callbacks):
        distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
        distiller.compile("sgd", kd.KDPt(), metrics=["accuracy"], **how)
        callbacks = [
            kd.callbacks.KDTensorBoard(
                tmp_path / name, update_freq=update_freq, profile_batch=0
            ),
            *callbacks,
            kd.callbacks.BackupAndRestore(tmp_path / f"{name}-backup"),
        ]
        fit(distiller, x, labels, epochs=4, callbacks=callbacks)
        return read(tmp_path / name / "train")

    expected = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", Kill())
    found = run("killed")
    tags = expected.PluginTagToContent("scalars")
    assert "batch_loss" in tags and "epoch_loss" in tags
    for tag in tags:
        steps = [event.step for event in expected.Tensors(tag)]
        values = dict(zip(steps, tensors(expected, tag), strict=True))
        steps_found = [event.step for event in found.Tensors(tag)]
        assert set(steps_found) == set(steps), tag
        for step, value in zip(steps_found, tensors(found, tag), strict=True):
            np.testing.assert_allclose(value, values[step], 1e-5, 1e-6)


def test_windows_of_several_steps_per_execution(tmp_path):
    x, labels, _ = data(80)
    distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
    distiller.compile("sgd", kd.KDPt(), steps_per_execution=4)
    board = kd.callbacks.KDTensorBoard(tmp_path, histogram_steps=3)
    # Executions end after 4, 8 and 10 batches, past 3, 6 and 9.
    fit(distiller, x, labels, callbacks=[board])
    events = read(tmp_path / "train")
    written = tensors(events, "gradient_scale/all")
    assert [b[:, 2].sum() for b in written] == [32, 32, 16]
    steps = [e.step for e in events.Tensors("gradient_scale/all")]
    assert steps == [4, 8, 10]


def test_chosen_classes_are_shown(tmp_path):
    x, labels, _ = data()
    distiller = kd.Distiller(mlp(seed=1), mlp(seed=5))
    distiller.compile("sgd", kd.KDSim(), **EAGERLY)
    board = kd.callbacks.KDTensorBoard(tmp_path, similarity_classes=[4, 0])
    fit(distiller, x, labels, callbacks=[board])
    png = tensors(read(tmp_path / "train"), "class_similarity")[0][2]
    image = tf.image.decode_png(png).numpy()
    # Two classes: four cells a panel, the corners of one colour each.
    assert len(np.unique(image[: image.shape[0] // 2, 0], axis=0)) == 1


def test_of_a_student_with_more_classes_the_shared_ones_are_shown(tmp_path):
    x, labels, _ = data()
    distiller = kd.Distiller(
        mlp(seed=1, classes=CLASSES + 3), mlp(seed=5), shared_classes=True
    )
    distiller.compile("sgd", kd.KDSim(), **EAGERLY)
    fit(distiller, x, labels, callbacks=[kd.callbacks.KDTensorBoard(tmp_path)])
    png = tensors(read(tmp_path / "train"), "class_similarity")[0][2]
    found = tf.image.decode_png(png).numpy() / 255
    rows = [
        model.layers[-1].get_weights()[0].T[:CLASSES]
        for model in (distiller.teacher, distiller.student)
    ]
    expected = kd.callbacks.similarity_image(*rows)
    np.testing.assert_allclose(found, expected, atol=1 / 255)


def test_a_student_without_a_logit_layer_warns_and_trains_on(tmp_path):
    x, labels, _ = data()
    base = mlp(seed=1)
    student = keras.Model(
        base.inputs, keras.layers.LayerNormalization()(base.outputs[0])
    )
    distiller = kd.Distiller(student, mlp(seed=5))
    distiller.compile("sgd", kd.KDSim(), **EAGERLY)
    board = kd.callbacks.KDTensorBoard(tmp_path)
    with pytest.warns(UserWarning, match="No image"):
        fit(distiller, x, labels, epochs=2, callbacks=[board])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="0"):
        kd.callbacks.KDTensorBoard(histogram_steps=0)
    for classes in (0, -3, [], [0, -1]):
        with pytest.raises(ValueError, match="how many of the first classes"):
            kd.callbacks.KDTensorBoard(similarity_classes=classes)
    with pytest.raises(TypeError, match=r"weight=0.5\. .*the loss itself"):
        kd.callbacks.LossSchedule(weight=0.5)
    with pytest.raises(TypeError, match="without a name"):
        kd.callbacks.LossSchedule(lambda epoch: 0.5)


@pytest.mark.parametrize(
    "callback",
    [
        kd.callbacks.KDTensorBoard("logs"),
        kd.callbacks.LossSchedule(weight=lambda epoch: 0.5),
    ],
)
def test_a_plain_model_is_refused_before_it_trains(callback):
    x, labels, _ = data()
    model = mlp()
    before = model.get_weights()
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="for a keras_kd.Distiller"):
        fit(model, x, labels, callbacks=[callback])
    assert_same_weights(model.get_weights(), before, 0)


def test_classes_that_are_not_there_are_refused_before_training(tmp_path):
    x, labels, _ = data()
    student = mlp()
    before = student.get_weights()
    distiller = kd.Distiller(student, mlp(seed=5))
    distiller.compile("sgd", kd.KDSim())
    board = kd.callbacks.KDTensorBoard(tmp_path, similarity_classes=[0, 9])
    with pytest.raises(ValueError, match=r"Received: \[9\] of 7 classes"):
        fit(distiller, x, labels, callbacks=[board])
    assert_same_weights(student.get_weights(), before, 0)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"alpha": lambda epoch: 1.0}, "alpha"),
        ({"weight": lambda epoch: 2.0}, "weight=2"),
    ],
)
def test_schedules_of_what_is_not_there_or_out_of_range(schedule, message):
    x, labels, _ = data()
    distiller = kd.Distiller(mlp(), mlp(seed=5))
    distiller.compile("sgd", kd.KDPt())
    with pytest.raises(ValueError, match=message):
        fit(
            distiller,
            x,
            labels,
            callbacks=[kd.callbacks.LossSchedule(**schedule)],
        )
