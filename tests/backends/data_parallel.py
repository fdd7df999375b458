"""Trains on JAX's devices with DataParallel, and saves the weights.

`compared.py` calls it in a process with two devices.
"""

import inputs
import jax
import keras
import numpy as np
from compute import make_loss, mlp

import keras_kd as kd


def main(path):
    devices = [f"cpu:{i}" for i in range(jax.device_count())]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    given, found = inputs.arrays(), {"devices": len(devices)}
    # The devices share each batch evenly.
    x, labels, weights = (
        given[key][: inputs.WHOLE] for key in ("x", "labels", "sample_weight")
    )
    for name in inputs.ON_TWO_DEVICES:
        student, teacher = (mlp(given[role]) for role in ("student", "teacher"))
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(inputs.LEARNING_RATE), make_loss(name, given)
        )
        distiller.fit(
            x,
            labels,
            sample_weight=weights,
            batch_size=inputs.BATCH,
            shuffle=False,
            verbose=0,
        )
        for i, weight in enumerate(student.get_weights()):
            found[f"{name} {i}"] = weight
    try:
        distiller.fit(x[:3], labels[:3], batch_size=3, verbose=0)
    except ValueError as error:
        found["uneven"] = str(error)
    np.savez(path, **found)
