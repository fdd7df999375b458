"""Time and memory of each loss and its gradient over large vocabularies.

    python tools/benchmark_losses.py

Compares the six losses and the KL divergence of `keras.distillation` with
Keras's sparse cross-entropy: time in turns in one process, peak memory in a
fresh process each. It takes about three minutes on two cores.
"""

import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import click
import pairs

PLAIN = "Keras sparse cross-entropy"
LOSSES = {
    "label_smoothing": {},
    "kd_pt": {"temperature": 1.0},
    "kd_pt, T = 2": {"temperature": 2.0},
    "kd_sim": {"temperature": 1.0},
    "kd_pt_sim": {"temperature": 1.0},
    "kd_topk, k = 25": {"temperature": 1.0, "k": 25},
    "kd_sampled, k = 25": {"temperature": 1.0, "k": 25},
    "kd": {"temperature": 1.0},
    "dkd": {"temperature": 1.0},
}
PEER = "keras.distillation, KL"


@click.command(context_settings={"show_default": True})
@click.option(
    "--classes", multiple=True, type=int, default=(10_000, 50_000), help="V."
)
@click.option("--examples", default=128, help="N, at 50,000 classes.")
@pairs.loss_option((*LOSSES, PEER))
@click.option("--rounds", default=15)
@pairs.clock_option
@pairs.markdown_option
@click.option("--memory-of", hidden=True, help="Only the peak of one loss.")
def main(classes, examples, names, rounds, clock, markdown, memory_of):
    """Prints a table of times and peaks, relative to sparse cross-entropy."""
    if memory_of:
        click.echo(json.dumps(peak_arrays(memory_of, classes[0], examples)))
        return
    rows = []
    for num_classes in classes:
        # As many numbers whatever the number of classes.
        count = max(1, examples * max(classes) // num_classes)
        steps = {
            name: make_step(name, num_classes, count)
            for name in (PLAIN, *names)
        }
        times = time_in_turns(steps, rounds, pairs.CLOCKS[clock])
        for name, values in times.items():
            ratios = [a / b for a, b in zip(values, times[PLAIN], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            rows.append(
                {
                    "loss": name,
                    "V": f"{num_classes:,}",
                    "N": str(count),
                    "ms": f"{1e3 * statistics.median(values):.1f}",
                    "time ratio": f"{statistics.median(ratios):.2f}",
                    "quartiles": f"{quartiles[0]:.2f} to {quartiles[2]:.2f}",
                    "peak arrays": memory_in_process(name, num_classes, count),
                }
            )
    pairs.print_rows("Loss and gradient", rows, markdown)


def time_in_turns(steps, rounds, clock):
    """Seconds of loss and gradient by name, one list entry per round."""
    for step in steps.values():
        step()
        step()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock()
            step()
            times[name].append(clock() - began)
    return times


def make_step(name, num_classes, count):
    """A compiled function that computes one loss and its gradient."""
    import tensorflow as tf

    function, logits = make_loss(name, num_classes, count)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = function(logits)
        return loss, tape.gradient(loss, logits)

    return step


def make_loss(name, num_classes, count):
    """A function from student logits to the loss, and the logits."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_kd as kd

    random = np.random.default_rng(0)
    logits, teacher = (
        tf.constant(random.normal(0, 3, (count, num_classes)).astype("float32"))
        for _ in range(2)
    )
    labels = tf.constant(random.integers(0, num_classes, count), tf.int32)
    if name == PLAIN:
        plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return lambda z: plain(labels, z), logits
    if name == PEER:
        peer = keras.distillation.LogitsDistillation(
            loss=keras.losses.KLDivergence(), temperature=2.0
        )
        return lambda z: peer.compute_loss(teacher, z), logits
    arguments = dict(LOSSES[name])
    if "sim" in name:
        arguments["logit_layer"] = random.normal(size=(num_classes, 64))
    loss = kd.losses.get(name.split(",")[0], **arguments)
    y_true = {"labels": labels, **loss.teacher_statistics(labels, teacher)}
    return lambda z: loss(y_true, z), logits


def peak_arrays(name, num_classes, count):
    """Peak memory of a step, in [N, V] float32 arrays.

    Beyond what was there before, of which the logits are a part, and beyond
    the gradient.
    """
    step = make_step(name, num_classes, count)
    step()  # Compiles, and starts TensorFlow's threads.
    gc.collect()
    # Linux keeps the peak from its last reset on, and counts in kibibytes.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = process_status("VmRSS")
    step()
    peak = process_status("VmHWM") - before
    return peak * 1024 / (4 * num_classes * count) - 1


def process_status(name):
    """A number of this process's status on Linux."""
    path = pathlib.Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise click.ClickException(
        "Peak memory is measured as Linux reports it. Received: "
        f"{platform.system()}, whose {path} has no {name}. Run this on Linux, "
        "or tools/measure_memory_jax.py anywhere."
    )


def memory_in_process(name, num_classes, count):
    """`peak_arrays` in a process whose peak nothing else has raised."""
    command = [sys.executable, __file__, "--memory-of", name]
    command += ["--classes", str(num_classes), "--examples", str(count)]
    # Large arrays go back to the system when they are freed, and no longer
    # count; oneDNN's allocator would keep them.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    )
    return f"{json.loads(output.stdout.splitlines()[-1]):.1f}"


if __name__ == "__main__":
    main()
