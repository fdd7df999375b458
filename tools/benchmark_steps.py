"""What a step of distillation costs, beside plain training and the peer.

    python tools/benchmark_steps.py

Times steps of `fit` in turns in one process: the student alone, the Distiller
from a cache and with the teacher in the step for each loss, without the
histograms of w, and `keras.distillation`. It takes about ten minutes on two
cores; `--pair mlp` takes two.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

PAIRS = ("mlp", "resnet", "lstm")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PLAIN, TEACHER, PEER = "student alone", "teacher alone", "keras.distillation"
NO_HISTOGRAM = "cached kd_pt, no histogram"
LOSSES = {
    "label_smoothing": {},
    "kd_pt": {},
    "kd_sim": {},
    "kd_pt_sim": {},
    "kd_topk": {"k": 25},
    "kd": {},
}


@click.command(context_settings={"show_default": True})
@click.option(
    "--pair",
    "pairs",
    type=click.Choice(PAIRS),
    multiple=True,
    default=PAIRS,
    help="May be given several times.",
)
@click.option("--rounds", default=9)
@click.option("--steps", type=int, help="In a round. [default: by the pair]")
@click.option("--small", is_flag=True, help="Tiny models, to try the tool.")
@click.option(
    "--clock",
    type=click.Choice(tuple(CLOCKS)),
    default="wall",
    help="`cpu` counts processor seconds, for a machine that is busy.",
)
@click.option("--markdown", is_flag=True, help="Print tables in Markdown.")
def main(pairs, rounds, steps, small, clock, markdown):
    """Prints a table of step times and ratios for each pair of models."""
    for pair in pairs:
        make = {"mlp": mlp_pair, "resnet": resnet_pair, "lstm": lstm_pair}
        make_model, dataset, usual_steps = make[pair](small)
        timers = make_timers(
            make_model, dataset, steps or usual_steps, CLOCKS[clock]
        )
        print_rows(pair, rows(in_turns(timers, rounds)), markdown)


def in_turns(timers, rounds):
    """Seconds a step by name, one list entry per round."""
    for timer in timers.values():
        timer()  # Compiles.
    times = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
    return times


def make_timers(make_model, dataset, steps, clock):
    """Functions by name that run some steps and return seconds a step."""
    import keras

    import keras_kd as kd

    plain_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = make_model("teacher")
    stream = dataset.repeat()
    inputs = dataset.map(lambda x, labels: x).repeat()

    def fit_timer(model, loss, data):
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss)
        return timed(
            lambda: model.fit(data, steps_per_epoch=steps, verbose=0),
            steps,
            clock,
        )

    def peer():
        return keras.distillation.Distiller(
            teacher,
            make_model("student"),
            distillation_losses=keras.distillation.LogitsDistillation(
                loss=keras.losses.KLDivergence()
            ),
        )

    timers = {
        PLAIN: fit_timer(make_model("student"), plain_loss, stream),
        TEACHER: timed(
            lambda: teacher.predict(inputs, steps=steps, verbose=0),
            steps,
            clock,
        ),
    }
    for name, arguments in LOSSES.items():
        loss = kd.losses.get(name, **arguments)
        data = stream
        if loss.statistics:
            data = cached(dataset, teacher, loss).repeat()
        # The teacher is there for its logit layer; it does not run.
        distiller = kd.Distiller(make_model("student"), teacher)
        timers[f"cached {name}"] = fit_timer(distiller, loss, data)
        if name == "kd_pt":
            bare = kd.Distiller(
                make_model("student"), teacher, gradient_scale=False
            )
            loss = kd.losses.get(name, **arguments)
            timers[NO_HISTOGRAM] = fit_timer(bare, loss, data)
        if loss.statistics:
            loss = kd.losses.get(name, **arguments)
            distiller = kd.Distiller(make_model("student"), teacher)
            timers[f"online {name}"] = fit_timer(distiller, loss, stream)
    timers[PEER] = fit_timer(peer(), plain_loss, stream)
    return timers


def timed(run, steps, clock):
    """A function that runs and returns seconds a step."""

    def timer():
        began = clock()
        run()
        return (clock() - began) / steps

    return timer


def cached(dataset, teacher, loss):
    """The data set with the statistics of a loss."""
    import keras_kd as kd

    path = pathlib.Path(tempfile.mkdtemp()) / "cache"
    cache = kd.TeacherCache.write(path, dataset, teacher, loss, verbose=0)
    return cache.attach(dataset, loss)


def rows(times):
    """Rows of the table: medians and ratios with their quartiles."""
    found = []
    for name, values in times.items():
        base = list(times[PLAIN])
        against = "student"
        if name.startswith("online") or name == PEER:
            base = [a + b for a, b in zip(base, times[TEACHER], strict=True)]
            against = "teacher + student"
        elif name == "cached kd_pt":
            found.append(
                ratio_row("histogram of w", values, times[NO_HISTOGRAM], "none")
            )
        found.append(ratio_row(name, values, base, against))
    return found


def ratio_row(name, values, base, against):
    """One row: a median, and the ratios to another's times."""
    ratios = [a / b for a, b in zip(values, base, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "step": name,
        "ms": f"{1e3 * statistics.median(values):.1f}",
        "against": against,
        "ratio": f"{statistics.median(ratios):.2f}",
        "quartiles": f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
    }


def print_rows(title, table, markdown):
    """Prints rows, dicts of strings."""
    import common

    if not markdown:
        common.print_table(title, table)
        return
    click.echo(f"\n{title}\n")
    lines = [table[0].keys(), ["---"] * len(table[0])]
    for line in [*lines, *(row.values() for row in table)]:
        click.echo(f"| {' | '.join(line)} |")


# -- pairs ---------------------------------------------------------------------


def mlp_pair(small):
    """A 3 x 2048 teacher and a 2 x 512 student on 784 numbers, batch 512."""
    import keras
    from keras import layers

    scale = 32 if small else 1

    def make_model(role):
        depth, width = (3, 2048) if role == "teacher" else (2, 512)
        hidden = [layers.Dense(width // scale, "relu") for _ in range(depth)]
        return keras.Sequential(
            [keras.Input((784,)), *hidden, layers.Dense(100)]
        )

    return make_model, random_batches((2048, 784), 100, 512), 20


def resnet_pair(small):
    """A ResNet-56 teacher and a ResNet-20 student, batch 64."""
    import resnet

    depths = {"teacher": 8, "student": 8} if small else {}
    shape = (8, 8, 3) if small else (32, 32, 3)

    def make_model(role):
        depth = depths.get(role, 56 if role == "teacher" else 20)
        return resnet.cifar_resnet(depth, shape, 100, [127.0], [64.0])

    return make_model, random_batches((128, *shape), 100, 64), 5


def lstm_pair(small):
    """A 2 x 650 teacher and a 2 x 200 student, 10,000 words, 20 x 35."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    words, scale = (100, 50) if small else (10_000, 1)

    def make_model(role):
        units = (650 if role == "teacher" else 200) // scale
        inputs = keras.Input(batch_shape=(20, 35), dtype="int32")
        x = layers.Embedding(words, units)(inputs)
        for _ in range(2):
            x = layers.LSTM(units, return_sequences=True, stateful=True)(x)
        return keras.Model(inputs, layers.Dense(words)(x))

    tokens = np.random.default_rng(0).integers(0, words, (40, 36))
    tokens = tokens.astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices(
        (tokens[:, :-1], tokens[:, 1:])
    )
    return make_model, dataset.batch(20).cache().prefetch(2), 3


def random_batches(shape, classes, batch_size):
    """Batches of random numbers and labels, held in memory."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    x = random.normal(size=shape).astype("float32")
    labels = random.integers(0, classes, shape[0]).astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    return dataset.batch(batch_size).cache().prefetch(2)


if __name__ == "__main__":
    main()
