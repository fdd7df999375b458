"""Students of a StudentTrainer on one backend, as JSON.

`compared.py` calls it on each backend.
"""

import json

import inputs
import numpy as np
from compute import mlp

import keras_kd as kd

EPOCHS = 2
METHODS = ("plain", "kd_pt", "kd_sim_permuted", "kd_pt_shuffled")


def main(path):
    given = inputs.arrays()
    x, labels = given["x"], given["labels"]

    def trainer(callbacks=None):
        return kd.StudentTrainer(
            lambda: mlp(given["student"]),
            # In whole batches: JAX compiles a step for each size.
            (x[: inputs.WHOLE], labels[: inputs.WHOLE]),
            (x, labels),
            teacher=mlp(given["teacher"]),
            epochs=EPOCHS,
            optimizer="sgd",
            batch_size=inputs.BATCH,
            folder=path.with_suffix(""),
            callbacks=callbacks,
            verbose=0,
        )

    class Interruption(BaseException):
        pass

    class Stop(kd.callbacks.LossSchedule):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Interruption

    try:
        trainer(lambda name: [Stop()])("kd_pt", 1)
    except Interruption:
        resumed = trainer()
    found = {method: resumed(method, 1) for method in METHODS}
    kept = trainer()
    assert found == {method: kept(method, 1) for method in METHODS}
    for result in found.values():
        assert np.mean(result["examples"]) == result["accuracy"]
        assert len(result["history"]["loss"]) == EPOCHS
        del result["seconds"]
    path.write_text(json.dumps(found))
