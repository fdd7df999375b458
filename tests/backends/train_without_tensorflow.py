"""Trains, evaluates and predicts, and fails if TensorFlow was loaded."""

import sys

import inputs
from compute import make_loss, mlp

import keras_kd as kd

given = inputs.arrays()
assert "tensorflow" not in sys.modules
student, teacher = (mlp(given[role]) for role in ("student", "teacher"))
distiller = kd.Distiller(student, teacher)
distiller.compile("sgd", make_loss("kd_pt", given))
distiller.fit(given["x"], given["labels"], verbose=0)
distiller.evaluate(given["x"], given["labels"], verbose=0)
distiller.predict(given["x"], verbose=0)
assert "tensorflow" not in sys.modules
