"""How many tensors steps of training leave behind on PyTorch, as JSON.

    KERAS_BACKEND=torch python tests/backends/leak.py result.json

`test_leak.py` starts it.
"""

import gc
import json
import sys

import inputs
import keras
import torch
from compute import make_loss, mlp

import keras_kd as kd


def main(path):
    given = inputs.arrays()
    left = {}
    for name in inputs.LOSSES:
        distiller = kd.Distiller(mlp(given["student"]), mlp(given["teacher"]))
        distiller.compile(keras.optimizers.SGD(0.1), make_loss(name, given))
        counts = []
        for _ in range(3):
            for _ in range(5):
                distiller.train_on_batch(given["x"], given["labels"])
            gc.collect()
            counts.append(sum(map(torch.is_tensor, gc.get_objects())))
        left[name] = counts[-1] - counts[0]
    with open(path, "w") as file:
        json.dump(left, file)


if __name__ == "__main__":
    main(sys.argv[1])
