"""An epoch as one program against `fit`, on JAX."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import networks
import numpy as np
import pytest
from keras import layers
from study.epoch_program import EpochProgram, Outputs, crop_and_flip, shuffled

import keras_kd as kd
from keras_kd.states import state_variables
from keras_kd.student_trainer.progress import StartFromZero

EPOCHS, BATCH = 3, 8


def image_model(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(9, "relu")(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def text_model(seed):
    keras.utils.set_random_seed(seed)
    return networks.lstm_language_model(11, 6, 2, 0.2, (4, 5))


def compiled(make, loss):
    distiller = kd.Distiller(make(1), make(2))
    distiller.compile(keras.optimizers.SGD(0.2, momentum=0.9), loss)
    return distiller


def by_fit(distiller, batches):
    """Trains on batches in order, from state zero in each epoch."""
    models = distiller.student, distiller.teacher
    history = distiller.fit(
        keras_batches(batches),
        epochs=EPOCHS,
        verbose=0,
        shuffle=False,
        callbacks=[StartFromZero(*models)],
    )
    return history.history


class keras_batches(keras.utils.PyDataset):  # noqa: N801
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches[0])

    def __getitem__(self, index):
        return tuple(each[index] for each in self._batches)


@pytest.mark.parametrize("loss", [kd.KD(), kd.KDPtSim(), kd.KDPt()])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_epochs_end_where_those_of_fit_do(kind, loss):
    rng = np.random.default_rng(0)
    if kind == "image":
        make = image_model
        x = rng.normal(size=(4, BATCH, 6)).astype("float32")
        batches = x, rng.integers(0, 5, (4, BATCH))
    else:
        make = text_model
        x, y = rng.integers(0, 11, (2, 6, 4, 5)).astype("int32")
        batches = x, y, (rng.random((6, 4, 5)) < 0.8).astype("float32")
    expected = compiled(make, type(loss).from_config(loss.get_config()))
    history = by_fit(expected, batches)

    distiller = compiled(make, loss)
    arrays = dict(enumerate(batches))
    order = np.arange(len(x))

    def draw(arrays, epoch, index):
        del epoch
        return tuple(arrays[i][index] for i in range(len(arrays)))

    program = EpochProgram(distiller, arrays, draw, 0)
    for epoch in range(EPOCHS):
        logs = program.train(epoch, order)
        for name, value in logs.items():
            np.testing.assert_allclose(
                value, history[name][epoch], rtol=2e-5, err_msg=name
            )
    for mine, theirs in zip(
        distiller.student.get_weights(),
        expected.student.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    histograms = [
        each.gradient_scales["all"].summary()["histogram"]
        for each in (distiller, expected)
    ]
    np.testing.assert_array_equal(*histograms)


def test_invalid_examples_are_refused():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, BATCH, 6)).astype("float32")
    x[1, 3] = np.nan
    distiller = compiled(image_model, kd.KD())

    def draw(arrays, epoch, index):
        return arrays["x"][index], arrays["y"][index]

    arrays = {"x": x, "y": np.zeros((2, BATCH), "int32")}
    program = EpochProgram(distiller, arrays, draw, 0)
    with pytest.raises(ValueError, match="not finite"):
        program.train(0, np.arange(2))


def test_outputs_are_those_of_the_model_from_state_zero():
    model = text_model(3)
    x = np.random.default_rng(0).integers(0, 11, (3, 4, 5)).astype("int32")
    outputs = Outputs(
        model, lambda z, batch: z, lambda arrays, i: (arrays["x"][i],)
    )
    for variable in state_variables(model):
        variable.assign(np.ones(variable.shape))
    found = outputs({"x": x}, np.arange(3))
    for variable in state_variables(model):
        variable.assign(np.zeros(variable.shape))
    for batch, expected in zip(x, found, strict=True):
        np.testing.assert_allclose(
            model(batch, training=False), expected, atol=1e-5
        )


def test_crops_are_parts_of_the_padded_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (4, 12, 12, 3), "uint8")
    places = np.array([[0, 8, 0], [3, 1, 1], [8, 8, 0], [0, 0, 1]], "uint8")
    found = np.asarray(crop_and_flip(images, places, 4))
    assert found.dtype == "float32"
    for image, (top, left, flip), crop in zip(
        images, places, found, strict=True
    ):
        expected = image[top : top + 4, left : left + 4]
        if flip:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(crop, expected)


def test_an_order_has_each_position_once():
    orders = shuffled(11, 3, seed=0)
    first, second = next(orders), next(orders)
    assert first.shape == (3, 3)
    assert len(np.unique(first)) == 9
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, next(shuffled(11, 3, seed=0)))
    assert jax.default_backend() == "cpu"
