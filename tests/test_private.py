"""Keras's private names: what happens where a release lacks one."""

import ast
import importlib
import pathlib
import runpy
import tomllib

import keras
import pytest

from keras_kd.backend import private

PACKAGE = pathlib.Path(private.__file__).parents[1]
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
        match=f"works with Keras 3.14 to 3.15. Received: .*{name}.*keras==3.15",
    )


def names_of_others(tree, own):
    """Underscore names, and modules of `keras.src`, that code mentions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            private_ = node.attr.startswith("_") and node.attr[:2] != "__"
            if private_ and node.attr not in own or node.attr == "src":
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").startswith("keras.src"):
                yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("_keras_"):
                yield node.value


def own_names(tree):
    """What code defines: functions, classes, and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute | ast.Name):
            of_self = isinstance(node, ast.Name) or (
                isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            )
            if of_self and isinstance(node.ctx, ast.Store):
                yield getattr(node, "attr", None) or node.id
        elif isinstance(node, ast.Call) and len(node.args) == 3:
            # A frozen dataclass sets what it works out by itself so.
            if getattr(node.func, "attr", None) == "__setattr__":
                yield getattr(node.args[1], "value", None)


def test_private_names_are_used_in_one_module_alone():
    trees = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }
    own = {name for tree in trees.values() for name in own_names(tree)}
    del trees["backend/private.py"]
    found = {
        path: {*names_of_others(tree, own)} for path, tree in trees.items()
    }
    assert {path: names for path, names in found.items() if names} == {}


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
        ("trainers.compile_utils", "CompileMetrics"),
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


def test_a_keras_whose_metrics_lack_an_attribute_is_refused(monkeypatch):
    class MeanMetricWrapper:
        def update_state(self, y_true, y_pred):
            return self._fn(y_true, y_pred)

    monkeypatch.setattr(keras.metrics, "MeanMetricWrapper", MeanMetricWrapper)
    with refused("_fn_kwargs"):
        check()


class CompileMetrics:
    def update_state(self, y_true, y_pred):
        return self._flat_metrics, self._flatten_y(y_true)


def _in_no_order(self, y_true, y_pred):
    return self._flat_metrics, self._flat_weighted_metrics


class MetricsList:
    def update_state(self, y_true, y_pred):
        return self.others


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CompileMetrics, "_flat_weighted_metrics"),
        (
            type("CompileMetrics", (), {"update_state": _in_no_order}),
            "CompileMetrics.flatten",
        ),
        (MetricsList, "MetricsList.metrics"),
    ],
)
def test_a_keras_whose_compiled_metrics_lack_one_is_refused(
    kind, name, monkeypatch
):
    module = importlib.import_module("keras.src.trainers.compile_utils")
    monkeypatch.setattr(module, kind.__name__, kind)
    with refused(name):
        check()


def test_a_keras_whose_tensorboard_counts_otherwise_is_refused(monkeypatch):
    def on_train_begin(self, logs=None):
        self._global_train_batch = 0

    monkeypatch.setattr(
        keras.callbacks.TensorBoard, "on_train_begin", on_train_begin
    )
    with refused("TensorBoard._previous_epoch_iterations"):
        check()


@pytest.mark.skipif(BACKEND != "jax", reason="JAX keeps values elsewhere")
def test_a_keras_that_keeps_values_elsewhere_is_refused(monkeypatch):
    def jax_state_sync(self):
        return self._jax_state

    monkeypatch.setattr(keras.Model, "jax_state_sync", jax_state_sync)
    with refused("_jax_state_synced"):
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
