"""What importing the package costs, and what it offers."""

import inspect
import subprocess
import sys

import pytest

import keras_kd as kd

HEAVY = (
    "keras_hub",
    "keras_nlp",
    "tensorflow_datasets",
    "matplotlib",
    "optuna",
    "pandas",
)


PROGRAM = f"""
import sys
for module in ("keras", "keras_kd"):
    __import__(module)
    print(*[name for name in {HEAVY} if name in sys.modules])
"""


def test_import_loads_no_optional_library():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
    )
    kerass, ours = (set(line.split()) for line in result.stdout.split("\n")[:2])
    # Keras itself loads these two where they are installed.
    assert ours == kerass <= {"matplotlib", "pandas"}


OF_EVERY_LOSS = {
    "weight": 0.5,
    "temperature": 2.0,
    "temperature_squared": True,
    "ignore_class": None,
    "reduction": "sum_over_batch_size",
    "dtype": "float32",
}
RELATIONS = {
    "alpha": None,
    "beta": 1.0,
    "label_mass": 0.9,
    "logit_layer": None,
    "table_bytes": 512 * 2**20,
}
OF_LOSSES = {
    kd.KD: {},
    kd.KDPt: {},
    kd.KDSim: {"temperature": 1.0, **RELATIONS},
    kd.KDPtSim: {"pt_weight": 0.4, "sim_weight": 0.1, **RELATIONS},
    kd.KDTopK: {"k": 0.25},
    kd.KDSampled: {"k": 0.25, "seed": None},
    kd.DKD: {"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
    kd.LabelSmoothing: {"weight": 1.0, "smoothing": 0.1},
}
NOT_TAKEN = {
    kd.KDPtSim: ["weight"],
    kd.LabelSmoothing: ["temperature", "temperature_squared"],
}


@pytest.mark.parametrize("make", OF_LOSSES, ids=lambda make: make.__name__)
def test_defaults_of_a_loss(make):
    """Stated here once more, so that none changes unnoticed."""
    expected = {**OF_EVERY_LOSS, **OF_LOSSES[make]}
    for name in NOT_TAKEN.get(make, ()):
        del expected[name]
    config = make().get_config()
    del config["name"]
    assert config == pytest.approx(expected)


def test_every_loss_has_its_defaults_pinned():
    made = {type(kd.losses.get(name)) for name in kd.losses.NAMES}
    assert made == set(OF_LOSSES)


OF_FUNCTIONS = {
    kd.Distiller: {"save_teacher": True},
    kd.TeacherCache.write: {
        "losses": (),
        "views": 1,
        "seed": 0,
        "dtype": "float16",
        "batch_size": 256,
        "teacher_right": False,
        "checkpoint_seconds": 30,
        "verbose": 1,
    },
    kd.TeacherCache.attach: {
        "epoch": 0,
        "check": True,
        "shuffle": False,
        "seed": 0,
    },
    kd.diagnose: {},
    kd.attribute: {"verbose": True},
    kd.tune: {"fresh_seeds": 3, "seed": 0, "verbose": True},
    kd.StudentTrainer: {
        "optimizer": "adam",
        "metric": "accuracy",
        "batch_size": 32,
        "shuffle": True,
        "views": 1,
        "save_students": False,
        "steps_per_execution": 1,
        "validation_freq": 1,
        "verbose": 1,
    },
    kd.callbacks.BackupAndRestore: {"delete_checkpoint": True, "callbacks": ()},
    kd.callbacks.KDTensorBoard: {"log_dir": "logs", "similarity_classes": 100},
    kd.metrics.GradientScale: {
        "low": -3.0,
        "high": 5.0,
        "bins": 80,
        "name": "gradient_scale",
    },
}


@pytest.mark.parametrize(
    "function", OF_FUNCTIONS, ids=lambda function: function.__qualname__
)
def test_defaults_of_a_function(function):
    """All others are `None`."""
    parameters = inspect.signature(function).parameters
    defaults = {name: each.default for name, each in parameters.items()}
    found = {
        name: value
        for name, value in defaults.items()
        if value is not None and value is not inspect.Parameter.empty
    }
    assert found == OF_FUNCTIONS[function]
