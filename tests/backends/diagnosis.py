"""What `diagnose` says on one backend, as JSON.

`compared.py` calls it on each backend.
"""

import json

import inputs
import keras
import tensorflow as tf
from compute import make_loss, mlp

import keras_kd as kd


class Subclassed(keras.Model):
    """A teacher whose number of classes is told by a symbolic call."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def main(path):
    given = inputs.arrays()
    student, teacher = (mlp(given[role]) for role in ("student", "teacher"))

    def dataset(**more):
        arrays = inputs.diagnosed(given, **more)
        return tf.data.Dataset.from_tensor_slices(arrays).batch(inputs.BATCH)

    loss = make_loss("kd_pt_sim", given)
    found = {
        "with a student": kd.diagnose(teacher, dataset(), student, loss),
        # With a smaller batch at the end, for which JAX compiles again.
        "subclassed, alone": kd.diagnose(
            Subclassed(teacher), dataset(examples=None)
        ),
    }
    parsed = {name: json.loads(each.to_json()) for name, each in found.items()}
    attribution = kd.attribute(
        lambda method, seed: float(len(method) + seed % 2),
        range(3),
        methods=["plain", "kd"],
        verbose=False,
    )
    parsed["attribution"] = attribution.to_dict()
    path.write_text(json.dumps(parsed))
