"""One process of a distributed training, started by test_multiworker.py.

    python worker.py KIND FOLDER [--die-at STEP] [--steps-per-execution N]

KIND is a strategy of the recipes. What came out is written to FOLDER.
"""

import argparse
import json
import os
import pathlib
import signal
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

EPOCHS, STEPS, BATCH = 4, 5, 16
# The last batch of each epoch is smaller.
EXAMPLES = STEPS * BATCH - 6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--steps-per-execution", type=int, default=1)
    parser.add_argument("--mixed-precision", action="store_true")
    parser.add_argument("--unknown-length", action="store_true")
    arguments = parser.parse_args()

    import strategies

    strategy = strategies.make_strategy(arguments.kind)
    import keras
    import numpy as np
    import tensorflow as tf
    from models import data, mlp

    import keras_kd as kd

    if arguments.mixed_precision:
        keras.config.set_dtype_policy("mixed_float16")
    x, labels, weights = data(EXAMPLES)
    if arguments.mixed_precision:
        # The gradient overflows on the second worker alone.
        weights[3 * BATCH - 1] = 1e6
    dataset = tf.data.Dataset.from_tensor_slices((x, labels, weights))
    dataset = dataset.batch(BATCH)
    if arguments.unknown_length:
        dataset = dataset.filter(lambda *_: True)

    class Die(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == arguments.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with strategy.scope():
        teacher = mlp(units=12, seed=5)
        student = mlp(kernel_regularizer=keras.regularizers.L2(0.01))
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            optimizer=keras.optimizers.SGD(0.2, momentum=0.9),
            loss=kd.KDPtSim(),
            metrics=["accuracy"],
            steps_per_execution=arguments.steps_per_execution,
        )
    folder = arguments.folder
    history = distiller.fit(
        dataset,
        epochs=EPOCHS,
        validation_data=dataset,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(str(folder / "backup")),
            keras.callbacks.CSVLogger(str(folder / "log.csv")),
            keras.callbacks.ModelCheckpoint(str(folder / "{epoch}.keras")),
            kd.callbacks.KDTensorBoard(
                str(folder / "tensorboard"), histogram_steps=2
            ),
            *([Die()] if arguments.die_at else []),
        ],
    ).history
    result = {
        "history": history,
        "evaluate": distiller.evaluate(dataset, verbose=0, return_dict=True),
        "predict": np.asarray(
            distiller.predict(dataset, verbose=0), "float64"
        ).tolist(),
        "iterations": int(distiller.optimizer.iterations.numpy()),
        "counts": {
            group: scale.summary()["count"]
            for group, scale in distiller.gradient_scales.items()
        },
        "weights": [w.tolist() for w in student.get_weights()],
    }
    distiller.save(folder / "distiller.keras")
    index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    name = f"result-{index['task']['index']}.json"
    (folder / name).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
