"""Times `diagnose` against a bare `predict` of the same teacher.

    python tools/time_diagnose.py teacher.keras --examples 5000

Both go over the same random inputs, turn by turn; it prints seconds and
processor seconds of the best turn. `diagnose` compiles again at every call,
which counts; `predict` only at the first.
"""

import os
import time

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@click.command(context_settings={"show_default": True})
@click.argument("teacher", type=click.Path(exists=True, dir_okay=False))
@click.option("--examples", type=click.IntRange(min=1), default=5000)
@click.option("--batch-size", type=click.IntRange(min=1), default=128)
@click.option("--turns", type=click.IntRange(min=1), default=3)
def main(teacher, examples, batch_size, turns):
    """Times `diagnose` with the image classifier in the file TEACHER."""
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_kd.diagnosis import diagnose

    model = keras.models.load_model(teacher)
    random = np.random.default_rng(0)
    shape, classes = model.inputs[0].shape[1:], model.outputs[0].shape[-1]
    x = random.uniform(0, 255, (examples, *shape)).astype("float32")
    labels = random.integers(0, classes, examples).astype("int32")
    inputs = tf.data.Dataset.from_tensor_slices(x).batch(batch_size)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(batch_size)
    tasks = {
        "predict": lambda: model.predict(inputs, verbose=0),
        "diagnose": lambda: diagnose(model, dataset),
    }
    best = {}
    for _ in range(turns):
        for name, task in tasks.items():
            best[name] = min(best.get(name, (1e9, 1e9)), _seconds(task))
    for name, (wall, processor) in best.items():
        click.echo(f"{name}: {wall:.2f} s, {processor:.2f} processor s")
    ratios = [d / p for p, d in zip(*best.values(), strict=True)]
    click.echo(f"ratio: {ratios[0]:.2f}, {ratios[1]:.2f}")


def _seconds(task):
    wall, processor = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
