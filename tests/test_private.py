"""Keras's private names: what happens where a release lacks one."""

import pathlib
import runpy
import tomllib

import keras
import pytest

from keras_kd.backend import private

BACKEND = keras.backend.backend()


def removed(monkeypatch, owner, name):
    """Takes away an attribute, wherever a class inherits it from."""
    owners = owner.__mro__ if isinstance(owner, type) else [owner]
    for each in owners:
        if name in vars(each):
            monkeypatch.delattr(each, name)


def check():
    """The check that `import keras_kd` makes, from the start."""
    names = runpy.run_path(private.__file__)
    names["check_keras"](BACKEND)


def refused(name):
    return pytest.raises(
        ImportError,
        match=f"works with Keras 3.12 to 3.15. Received: .*{name}.*keras==3.15",
    )


def test_this_keras_has_them_all():
    check()


def test_import_makes_the_check():
    source = pathlib.Path(private.__file__).with_name("__init__.py")
    with pytest.MonkeyPatch.context() as monkeypatch:
        removed(monkeypatch, keras.Model, "_flatten_layers")
        with refused("_flatten_layers"):
            runpy.run_path(str(source))


@pytest.mark.parametrize(
    "module, name",
    [
        ("backend", "get_keras_mask"),
        ("layers.convolutional.base_conv", "BaseConv"),
        ("ops.core", "Cast"),
        ("ops.nn", "LogSoftmax"),
        ("ops.numpy", "Reshape"),
        ("utils.tracking", "DotNotTrackScope"),
    ],
)
def test_a_keras_without_an_imported_name_is_refused(module, name, monkeypatch):
    module = __import__(f"keras.src.{module}", fromlist=[name])
    removed(monkeypatch, module, name)
    with refused(name):
        check()


@pytest.mark.parametrize(
    "name", ["_flatten_layers", *private.OVERRIDDEN[BACKEND]]
)
def test_a_keras_without_a_method_is_refused(name, monkeypatch):
    removed(monkeypatch, keras.Model, name)
    with refused(name):
        check()


@pytest.mark.parametrize(
    "name", ["_initial_epoch", "_loss_tracker", "_non_trainable_variables"]
)
def test_a_keras_whose_models_lack_an_attribute_is_refused(name, monkeypatch):
    class Model(keras.Model):
        def __getattribute__(self, asked):
            if asked == name:
                raise AttributeError(name)
            return super().__getattribute__(asked)

    monkeypatch.setattr(keras, "Model", Model)
    with refused(name):
        check()


@pytest.mark.parametrize("name", ["_keras_history", "_inbound_nodes"])
def test_a_keras_whose_graph_lacks_an_attribute_is_refused(name, monkeypatch):
    tensor = keras.Input((1,))
    owner = tensor if name == "_keras_history" else tensor._keras_history[0]
    monkeypatch.delattr(owner, name)
    monkeypatch.setattr(keras, "Input", lambda *_, **__: tensor)
    with refused(name):
        check()


def test_a_keras_whose_variables_lack_an_attribute_is_refused(monkeypatch):
    class Variable:
        @property
        def value(self):
            return self.other

    monkeypatch.setattr(keras, "Variable", Variable)
    with refused("_value"):
        check()


def test_the_check_leaves_the_names_that_keras_gives():
    def number():
        return int("0" + keras.Model().name.removeprefix("model").strip("_"))

    before = number()
    check()
    assert number() == before + 1


def test_pyproject_asks_for_the_oldest_release():
    root = pathlib.Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert f"keras>={private.OLDEST_KERAS}" in project["dependencies"]
