"""The pairs of models that the benchmarks run, and how they are timed."""

import pathlib
import sys
import time

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

PAIRS = ("mlp", "resnet", "lstm")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORDS, STREAMS, TIME_STEPS = 10_000, 20, 35


def several_option(flag, name, values):
    """An option that chooses some of several values, by default all."""
    return click.option(
        flag,
        name,
        multiple=True,
        type=click.Choice(tuple(values)),
        default=tuple(values),
        help="May be given several times.",
    )


def loss_option(names):
    """The option that chooses rows of a benchmark by the losses' names."""
    return several_option("--loss", "names", names)


option = several_option("--pair", "pairs", PAIRS)
clock_option = click.option(
    "--clock",
    type=click.Choice(tuple(CLOCKS)),
    default="wall",
    help="`cpu` counts processor seconds, for a machine that is busy.",
)
markdown_option = click.option(
    "--markdown", is_flag=True, help="Print tables in Markdown."
)


def make_model(pair, role, small=False):
    """The untrained "teacher" or "student" of a pair.

    Args:
        pair: "mlp" (3 x 2048 to 2 x 512 on 784 numbers, 100 classes),
            "resnet" (ResNet-56 to ResNet-20 on 32 x 32 pixels, 100 classes)
            or "lstm" (2 x 650 to 2 x 200, 10,000 words; stateful but on
            PyTorch, where Keras can't train that).
        role: "teacher" or "student".
        small: whether to make a tiny one, to try a tool.

    Returns:
        A `keras.Model`.
    """
    makers = {"mlp": _mlp, "resnet": _resnet, "lstm": _lstm}
    return makers[pair](role == "teacher", small)


def make_data(pair, batches, batch_size, small=False):
    """Batches of random numbers and labels, or words and next words.

    Args:
        pair: out of `PAIRS`.
        batches: how many.
        batch_size: examples in each; for "lstm" it is `STREAMS`.
        small: as in `make_model`.

    Returns:
        A `tf.data.Dataset` of (x, labels).
    """
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    if pair == "lstm":
        words = _words(small)
        shape = (STREAMS * batches, TIME_STEPS + 1)
        tokens = random.integers(0, words, shape).astype("int32")
        arrays = tokens[:, :-1], tokens[:, 1:]
        batch_size = STREAMS
    else:
        shape = (784,) if pair == "mlp" else _image_shape(small)
        count = batches * batch_size
        x = random.normal(size=(count, *shape)).astype("float32")
        arrays = x, random.integers(0, 100, count).astype("int32")
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


def print_rows(title, rows, markdown):
    """Prints a table.

    Args:
        title: string.
        rows: list of dicts of strings.
        markdown: whether in Markdown.
    """
    from study.table import print_table

    if not markdown:
        print_table(title, rows)
        return
    click.echo(f"\n{title}\n")
    lines = [rows[0].keys(), ["---"] * len(rows[0])]
    for line in [*lines, *(row.values() for row in rows)]:
        click.echo(f"| {' | '.join(line)} |")


def _mlp(is_teacher, small):
    import keras
    from keras import layers

    depth, width = (3, 2048) if is_teacher else (2, 512)
    width //= 32 if small else 1
    hidden = [layers.Dense(width, "relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(100)])


def _resnet(is_teacher, small):
    import networks

    depth = 8 if small else 56 if is_teacher else 20
    return networks.cifar_resnet(
        depth, _image_shape(small), 100, [127.0], [64.0]
    )


def _image_shape(small):
    return (8, 8, 3) if small else (32, 32, 3)


def _lstm(is_teacher, small):
    import keras
    from keras import layers

    units = (650 if is_teacher else 200) // (50 if small else 1)
    words = _words(small)
    stateful = keras.backend.backend() != "torch"
    inputs = keras.Input(batch_shape=(STREAMS, TIME_STEPS), dtype="int32")
    x = layers.Embedding(words, units)(inputs)
    for _ in range(2):
        x = layers.LSTM(units, return_sequences=True, stateful=stateful)(x)
    return keras.Model(inputs, layers.Dense(words)(x))


def _words(small):
    return 100 if small else WORDS
