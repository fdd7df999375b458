"""What a teacher cache costs: bytes, writing, reading and comparing.

    python tools/benchmark_cache.py

Writes caches of a multilayer perceptron, a ResNet-56 and an LSTM language
model, in turns with the teacher's bare `predict` over the same data, and reads
them with and without comparing every example with what the teacher saw. Both
compile their step each time. It takes about five minutes on two cores.
"""

import pathlib
import statistics
import tempfile

import click
import pairs as benchmark_pairs

# Batch size, and batches at scale 1.
SIZES = {"mlp": (128, 128), "resnet": (64, 32), "lstm": (20, 16)}


@click.command(context_settings={"show_default": True})
@benchmark_pairs.option
@click.option("--rounds", default=7)
@click.option("--scale", default=1.0, help="Of the amount of data.")
@benchmark_pairs.clock_option
@benchmark_pairs.markdown_option
def main(pairs, rounds, scale, clock, markdown):
    """Compares writing a cache with the teacher's bare predict."""
    import keras_kd as kd

    losses = {
        "kd_pt": kd.KDPt(),
        "kd_topk, k = 25": kd.KDTopK(k=25),
        "kd_sampled, k = 25": kd.KDSampled(k=25),
        "kd": kd.KD(),
    }
    rows = []
    for pair in pairs:
        batch_size, batches = SIZES[pair]
        batches = max(int(batches * scale), 2)
        teacher = benchmark_pairs.make_model(pair, "teacher")
        dataset = benchmark_pairs.make_data(pair, batches, batch_size)
        for name, loss in losses.items():
            clocked = benchmark_pairs.CLOCKS[clock]
            found = measure(teacher, dataset, loss, rounds, clocked)
            rows.append({"teacher": pair, "loss": name, **found})
    benchmark_pairs.print_rows("Teacher cache", rows, markdown)


def measure(teacher, dataset, loss, rounds, clock):
    """One row of the table."""
    import keras_kd as kd

    inputs = dataset.map(lambda x, labels: x).prefetch(2)
    folder = pathlib.Path(tempfile.mkdtemp())
    ratios, reads, compared = [], [], []
    for number in range(rounds):
        began = clock()
        teacher.make_predict_function(force=True)
        teacher.predict(inputs, verbose=0)
        predicted = clock()
        cache = kd.TeacherCache.write(
            folder / str(number), dataset, teacher, loss, verbose=0
        )
        written = clock()
        ratios.append((written - predicted) / (predicted - began))
        plain = read_time(cache, dataset, loss, False, clock)
        whole = read_time(cache, dataset, loss, True, clock)
        reads.append(1 / whole)
        compared.append(1e6 * (whole - plain))
    quartiles = statistics.quantiles(ratios, n=4)
    on_disk = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {
        "bytes": str(cache.record_bytes),
        "on disk": f"{on_disk / rounds / cache.examples:.1f}",
        "write / predict": f"{statistics.median(ratios):.2f}",
        "quartiles": f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
        "read, examples/s": f"{statistics.median(reads):,.0f}",
        "compare, us": f"{statistics.median(compared):.1f}",
    }


def read_time(cache, dataset, loss, check, clock):
    """Seconds an example of the data set with its statistics."""
    attached = cache.attach(dataset, loss, check=check)
    began = clock()
    for _ in attached:
        pass
    return (clock() - began) / cache.examples


if __name__ == "__main__":
    main()
