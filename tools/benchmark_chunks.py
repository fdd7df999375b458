"""Memory and time of steps with a large vocabulary, by chunks and at once.

    python tools/benchmark_chunks.py
    KERAS_BACKEND=jax python tools/benchmark_chunks.py
    KERAS_BACKEND=torch python tools/benchmark_chunks.py

The student is a hidden layer and a logit layer on random numbers. Memory is
the peak of a step in a process of its own, beyond what was there before it (the
weights and what the data hold) and beyond the gradient of the kernel: of the
resident size as Linux reports it, or on JAX of what the compiled program plans
by its own analysis. Times are in turns in one process.
"""

import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys

import benchmark_losses
import click
import pairs

PLAIN = "Keras sparse cross-entropy"
# By the name of the row: the name of the loss, its arguments and whether the
# teacher runs in the step.
CASES = {
    "label_smoothing": ("label_smoothing", {}, False),
    "cached kd_pt": ("kd_pt", {"temperature": 1.0}, False),
    "kd_sim": ("kd_sim", {"alpha": 0.3}, False),
    "cached kd_pt_sim": ("kd_pt_sim", {"alpha": 0.3}, False),
    "cached kd_topk, k = 25": ("kd_topk", {"k": 25}, False),
    "cached kd_sampled, k = 25": ("kd_sampled", {"k": 25}, False),
    "cached kd": ("kd", {}, False),
    "cached dkd": ("dkd", {}, False),
    "online kd_pt": ("kd_pt", {}, True),
    "online kd": ("kd", {}, True),
}
# So many make the variables of a step that JAX only compiles.
_FEW_TOKENS = 16
TIMED = ("cached kd_pt", "cached kd", "online kd")


@click.command(context_settings={"show_default": True})
@click.option("--classes", default=50_000, help="V.")
@click.option("--tokens", default=2048, help="N, in a batch.")
@click.option("--features", default=256, help="D.")
@click.option("--chunks", multiple=True, default=("16", "auto"))
@click.option("--case", "cases", multiple=True, type=click.Choice(tuple(CASES)))
@click.option("--rounds", default=7, help="Of times; 0 for none.")
@click.option("--memory/--no-memory", default=True)
@pairs.clock_option
@pairs.markdown_option
@click.option("--memory-of", hidden=True, help="Only the peak of one case.")
def main(
    classes,
    tokens,
    features,
    chunks,
    cases,
    rounds,
    memory,
    clock,
    markdown,
    memory_of,
):
    """Prints tables of peaks and of times."""
    sizes = (classes, tokens, features)
    if memory_of:
        name = None if memory_of == PLAIN else memory_of
        click.echo(json.dumps(peak_bytes(name, chunks_of(chunks[0]), sizes)))
        return
    if memory:
        rows = memory_rows(cases or tuple(CASES), chunks, sizes)
        pairs.print_rows("Peak memory of a step", rows, markdown)
    if rounds:
        rows = time_rows(
            cases or TIMED, chunks, sizes, rounds, pairs.CLOCKS[clock]
        )
        pairs.print_rows("Time of a step", rows, markdown)


def chunks_of(chunks):
    """A `logit_chunks`, out of an option of which "0" stands for none."""
    return "auto" if chunks == "auto" else int(chunks) or None


# -- models and steps ----------------------------------------------------------


def make_model(sizes, seed):
    """A hidden layer and a logit layer."""
    import keras
    from keras import layers

    classes, _, features = sizes
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((features,))
    x = layers.Dense(features, "tanh")(inputs)
    return keras.Model(inputs, layers.Dense(classes)(x))


def make_trainer(name, chunks, sizes):
    """A compiled model and a batch for it.

    Args:
        name: one of `CASES`, or `None` for plain training in Keras.
        chunks: as `logit_chunks`.
        sizes: tuple of V, N and D.

    Returns:
        A `keras.Model`, x and y.
    """
    import keras
    import numpy as np

    import keras_kd as kd

    classes, tokens, features = sizes
    random = np.random.default_rng(0)
    x = random.normal(size=(tokens, features)).astype("float32")
    labels = random.integers(0, classes, tokens).astype("int32")
    optimizer = keras.optimizers.SGD(0.01)
    student = make_model(sizes, 0)
    if name is None:
        plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        student.compile(optimizer=optimizer, loss=plain)
        return student, _tensors(x), _tensors(labels)
    kind, arguments, is_online = CASES[name]
    if "sim" in kind:
        arguments = {
            **arguments,
            "logit_layer": random.normal(size=(classes, 64)),
        }
    loss = kd.losses.get(kind, **arguments)
    teacher = make_model(sizes, 1) if is_online else None
    distiller = kd.Distiller(student, teacher, logit_chunks=chunks)
    distiller.compile(optimizer=optimizer, loss=loss)
    y = {"labels": _tensors(labels)}
    if loss.statistics and not is_online:
        y |= _statistics(loss, labels, sizes)
    return distiller, _tensors(x), y


def _statistics(loss, labels, sizes):
    """What a cache would hold of a random teacher, made by pieces."""
    import keras

    classes, tokens, _ = sizes
    seeds = keras.random.SeedGenerator(2)
    found = {}
    for start in range(0, tokens, 256):
        ids = labels[start : start + 256]
        logits = 3 * keras.random.normal((len(ids), classes), seed=seeds)
        statistics = loss.teacher_statistics(_tensors(ids), logits)
        for key, value in statistics.items():
            found.setdefault(key, []).append(value)
    return {key: keras.ops.concatenate(v) for key, v in found.items()}


def _tensors(value):
    import keras

    return keras.ops.convert_to_tensor(value)


def make_step(name, chunks, sizes):
    """A function that runs a step and waits for it."""
    trainer, x, y = make_trainer(name, chunks, sizes)

    def step():
        return float(trainer.train_on_batch(x, y, return_dict=True)["loss"])

    return step


# -- memory --------------------------------------------------------------------


def peak_bytes(name, chunks, sizes):
    """Peak memory of a step; see the head of this file."""
    import keras

    classes, tokens, features = sizes
    if keras.backend.backend() == "jax":
        few = (classes, _FEW_TOKENS, features)
        peak = planned_bytes(*make_trainer(name, chunks, few), tokens)
    else:
        step = make_step(name, chunks, sizes)
        step()
        step()
        gc.collect()
        # Linux keeps the peak from its last reset on, in kibibytes.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = benchmark_losses.process_status("VmRSS")
        step()
        peak = 1024 * (benchmark_losses.process_status("VmHWM") - before)
    return peak - 4 * classes * features


def planned_bytes(trainer, x, y, tokens):
    """What JAX's compiled program of a step needs beside its arguments.

    Args:
        trainer: a compiled `keras.Model`.
        x: inputs of a few tokens.
        y: what belongs to them.
        tokens: integer, how many there are to be.
    """
    program, _, _ = compiled_step(trainer, x, y, tokens)
    return program.memory_analysis().temp_size_in_bytes


def compiled_step(trainer, x, y, tokens=None):
    """A training step as JAX compiles it.

    Args:
        trainer: a compiled `keras.Model`.
        x: inputs.
        y: what belongs to them.
        tokens: integer, for how many it is compiled; those of x by default.

    Returns:
        The program, of (state, data), to which the state is given away, and
        both of them; the data as shapes where `tokens` is given.
    """
    import jax

    from keras_kd.backend.private import symbolic_build

    symbolic_build(trainer, (x, y))
    trainer.optimizer.build(trainer.trainable_variables)
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            trainer.trainable_variables,
            trainer.non_trainable_variables,
            trainer.optimizer.variables,
            trainer.metrics_variables,
        )
    )
    data = x, y
    if tokens is not None:
        data = jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(
                (tokens, *each.shape[1:]), each.dtype
            ),
            data,
        )
    if hasattr(trainer, "_step_variables"):
        data = ([v.value for v in trainer._step_variables()], data)
    step = jax.jit(trainer.train_step, donate_argnums=0)
    return step.lower(state, data).compile(), state, data


def memory_in_process(name, chunks, sizes):
    """`peak_bytes` in a process whose peak nothing else has raised."""
    if os.environ.get("KERAS_BACKEND") == "jax":
        # Where programs are compiled, but not run.
        return peak_bytes(name, chunks_of(chunks), sizes)
    options = dict(zip(("classes", "tokens", "features"), sizes, strict=True))
    command = [sys.executable, __file__, "--memory-of", name or PLAIN]
    command += ["--chunks", str(chunks)]
    for option, value in options.items():
        command += [f"--{option}", str(value)]
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
    return json.loads(output.stdout.splitlines()[-1])


def memory_rows(cases, chunks, sizes):
    """Rows of the table: megabytes, and shares of two unchunked steps."""
    plain = memory_in_process(None, "0", sizes)
    rows = [_memory_row(PLAIN, "", plain, plain, None)]
    for name in cases:
        whole = memory_in_process(name, "0", sizes)
        rows.append(_memory_row(name, "none", whole, plain, None))
        for count in chunks:
            peak = memory_in_process(name, count, sizes)
            rows.append(_memory_row(name, count, peak, plain, whole))
    return rows


def _memory_row(name, chunks, peak, plain, whole):
    return {
        "step": name,
        "chunks": str(chunks),
        "MB": f"{peak / 1e6:.0f}",
        "of plain Keras": f"{peak / plain:.2f}",
        "of unchunked": "" if whole is None else f"{peak / whole:.2f}",
    }


# -- time ----------------------------------------------------------------------


def time_rows(cases, chunks, sizes, rounds, clock):
    """Rows of the table: milliseconds, and the ratio to the unchunked step."""
    rows = []
    for name in cases:
        steps = {
            count: make_step(name, chunks_of(count), sizes)
            for count in ("0", *chunks)
        }
        times = benchmark_losses.time_in_turns(steps, rounds, clock)
        for count, values in times.items():
            pairs_ = zip(values, times["0"], strict=True)
            ratios = [a / b for a, b in pairs_]
            rows.append(
                {
                    "step": name,
                    "chunks": "none" if count == "0" else count,
                    "ms": f"{1e3 * statistics.median(values):.0f}",
                    "ratio": f"{statistics.median(ratios):.2f}",
                    "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
                }
            )
    return rows


if __name__ == "__main__":
    main()
