"""What a teacher cache costs: bytes, writing and reading.

    python tools/benchmark_cache.py

Writes caches of a multilayer perceptron, a ResNet-56 and an LSTM language
model, in turns with the teacher's bare `predict` over the same data, and reads
them. Both compile their step anew each time. It takes about five minutes on
two cores.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

PAIRS = ("mlp", "resnet", "lstm")


@click.command(context_settings={"show_default": True})
@click.option(
    "--pair",
    "pairs",
    type=click.Choice(PAIRS),
    multiple=True,
    default=PAIRS,
    help="May be given several times.",
)
@click.option("--rounds", default=7)
@click.option("--scale", default=1.0, help="Of the amount of data.")
def main(pairs, rounds, scale):
    """Compares writing a cache with the teacher's bare predict."""
    import common

    import keras_kd as kd

    losses = {
        "kd_pt": kd.KDPt(),
        "kd_topk, k = 25": kd.KDTopK(k=25),
        "kd": kd.KD(),
    }
    rows = []
    for pair in pairs:
        teacher, dataset, batches = PAIR_MAKERS[pair](scale)
        dataset = dataset.take(batches)
        for name, loss in losses.items():
            found = measure(teacher, dataset, loss, rounds)
            rows.append({"teacher": pair, "loss": name, **found})
    common.print_table("Teacher cache", rows)


def measure(teacher, dataset, loss, rounds):
    """One row of the table."""
    import keras_kd as kd

    inputs = dataset.map(lambda x, labels: x).prefetch(2)
    folder = pathlib.Path(tempfile.mkdtemp())
    ratios, reads = [], []
    for number in range(rounds):
        began = time.perf_counter()
        teacher.make_predict_function(force=True)
        teacher.predict(inputs, verbose=0)
        predicted = time.perf_counter()
        cache = kd.TeacherCache.write(
            folder / str(number), dataset, teacher, loss, verbose=0
        )
        written = time.perf_counter()
        ratios.append((written - predicted) / (predicted - began))
        reads.append(read_rate(cache, dataset, loss))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "bytes": str(cache.record_bytes),
        "write / predict": f"{statistics.median(ratios):.2f}",
        "quartiles": f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
        "read, examples/s": f"{statistics.median(reads):,.0f}",
    }


def read_rate(cache, dataset, loss):
    """Examples per second of the data set with its statistics."""
    attached = cache.attach(dataset, loss, check=False)
    began = time.perf_counter()
    for _ in attached:
        pass
    return cache.examples / (time.perf_counter() - began)


def mlp_pair(scale):
    """A 3 x 2048 perceptron on vectors of 784 numbers, 100 classes."""
    import keras
    from keras import layers

    teacher = keras.Sequential(
        [
            keras.Input((784,)),
            *(layers.Dense(2048, "relu") for _ in range(3)),
            layers.Dense(100),
        ]
    )
    count = max(int(16_384 * scale), 256)
    return teacher, random_batches((count, 784), 100, 128), -(-count // 128)


def resnet_pair(scale):
    """A ResNet-56 on images of 32 x 32 pixels, 100 classes."""
    import resnet

    teacher = resnet.cifar_resnet(56, (32, 32, 3), 100, [127.0], [64.0])
    count = max(int(2_048 * scale), 128)
    return teacher, random_batches((count, 32, 32, 3), 100, 64), count // 64


def lstm_pair(scale):
    """A 2 x 650 LSTM on segments of 35 words of 10,000."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    inputs = keras.Input(batch_shape=(20, 35), dtype="int32")
    x = layers.Embedding(10_000, 650)(inputs)
    for _ in range(2):
        x = layers.LSTM(650, return_sequences=True, stateful=True)(x)
    teacher = keras.Model(inputs, layers.Dense(10_000)(x))
    count = max(int(16 * scale), 2)
    tokens = np.random.default_rng(0).integers(0, 10_000, (20 * count, 36))
    tokens = tokens.astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices(
        (tokens[:, :-1], tokens[:, 1:])
    )
    return teacher, dataset.batch(20), count


def random_batches(shape, classes, batch_size):
    """Batches of random numbers and labels."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = random.normal(size=shape).astype("float32")
    labels = random.integers(0, classes, shape[0]).astype("int32")
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(batch_size)


PAIR_MAKERS = {"mlp": mlp_pair, "resnet": resnet_pair, "lstm": lstm_pair}


if __name__ == "__main__":
    main()
