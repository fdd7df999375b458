"""Is the CIFAR recipe's input pipeline fast enough for its student?

    python tools/benchmark_pipeline.py --data-dir tensorflow_datasets

Times the pipeline alone (shuffling, crops, flips, batches), with and without a
teacher cache, and the training steps of a ResNet-20 on a batch held in memory,
in turns in one process. Without --data-dir the images are random ones of the
same shape. It takes about two minutes on two cores.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))


@click.command(context_settings={"show_default": True})
@click.option("--data-dir", type=click.Path(exists=True, file_okay=False))
@click.option("--depth", default=20, help="Of the student.")
@click.option("--batch-size", default=64)
@click.option("--images", "count", default=10_000, help="Random images.")
@click.option("--rounds", default=7)
@click.option("--pipeline-batches", default=200, help="In each round.")
@click.option("--steps", default=10, help="In each round.")
def main(data_dir, depth, batch_size, count, rounds, pipeline_batches, steps):
    """Compares images per second of the pipeline and of the student."""
    data = load(data_dir, count)
    size = len(data.train[0])
    timers = {
        "pipeline": pipeline_timer(
            plain_stream(data, size, batch_size), pipeline_batches
        ),
        "pipeline with a cache": pipeline_timer(
            cached_stream(data, size, batch_size), pipeline_batches
        ),
        f"ResNet-{depth} step": step_timer(data, depth, batch_size, steps),
    }
    rates = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            batches, seconds = timer()
            rates[name].append(batches * batch_size / seconds)
    report(rates)


def load(data_dir, count):
    """CIFAR-100, or random images of its shape."""
    import numpy as np
    from data import images

    if data_dir:
        return images.cifar100(data_dir)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    labels = random.integers(0, 100, count).astype("int32")
    return images.Images(
        train=(pixels, labels),
        test=(pixels[:1], labels[:1]),
        classes=100,
        mean=images.CIFAR100_MEAN,
        deviation=images.CIFAR100_DEVIATION,
        superclasses=None,
        flips=True,
    )


def plain_stream(data, size, batch_size):
    """The recipe's own training stream."""
    from data import images

    return images.training_stream(data, size, batch_size, 0, 0, True)


def cached_stream(data, size, batch_size):
    """The recipe's stream with the statistics of a small teacher."""
    import networks
    import tensorflow as tf
    from data import images

    import keras_kd as kd

    dataset = tf.data.Dataset.from_tensor_slices(
        tuple(array[:size] for array in data.train)
    )
    teacher = networks.cifar_resnet(
        8, data.shape, data.classes, data.mean, data.deviation
    )
    loss = kd.KDPt()
    cache = kd.TeacherCache.write(
        pathlib.Path(tempfile.mkdtemp()) / "cache",
        dataset,
        teacher,
        loss,
        augment=images.view_function(data, True),
    )
    return cache.epochs(dataset, loss, batch_size=batch_size, shuffle=size)


def pipeline_timer(stream, batches):
    """A function that draws batches and tells how many in what time."""
    iterator = iter(stream)

    def timer():
        began = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return batches, time.perf_counter() - began

    timer()
    return timer


def step_timer(data, depth, batch_size, steps):
    """A function that trains the student on one batch again and again."""
    import keras
    import networks
    import tensorflow as tf

    student = networks.cifar_resnet(
        depth, data.shape, data.classes, data.mean, data.deviation
    )
    student.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = tf.constant(data.train[0][:batch_size], tf.float32)
    y = tf.constant(data.train[1][:batch_size])

    def timer():
        began = time.perf_counter()
        for _ in range(steps):
            student.train_on_batch(x, y)
        return steps, time.perf_counter() - began

    timer()
    return timer


def report(rates):
    """Prints medians and how many times the student the pipelines are."""
    from study.table import print_table

    *_, student = rates
    rows = []
    for name, values in rates.items():
        ratios = [v / s for v, s in zip(values, rates[student], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "": name,
                "images/s": f"{statistics.median(values):,.0f}",
                "times the student": f"{statistics.median(ratios):.1f}",
                "quartiles": f"{quartiles[0]:.1f} to {quartiles[2]:.1f}",
            }
        )
    print_table("Input pipeline", rows)


if __name__ == "__main__":
    main()
