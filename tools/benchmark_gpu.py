"""Memory and time of steps with a large vocabulary, on one GPU.

    python tools/benchmark_gpu.py

The steps are those of `benchmark_chunks.py` on JAX, and plain training's runs
in turns with each. Memory is what the program that runs has planned, beyond the
weights, the data and the gradient of the kernel. Of a step for which it does
not suffice, the table says so.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import gc
import statistics

import benchmark_chunks
import benchmark_losses
import click
import jax
import keras
import pairs
from benchmark_chunks import CASES, PLAIN

_COLUMNS = (
    "step",
    "chunks",
    "GB",
    "of plain's",
    "ms",
    "of plain's time",
    "range",
)


@click.command(context_settings={"show_default": True})
@click.option("--classes", default=128_000, help="V.")
@click.option("--tokens", default=16_384, help="N, in a batch.")
@click.option("--features", default=1024, help="D.")
@click.option(
    "--chunks",
    multiple=True,
    default=("0", "auto"),
    help="Of tokens; 0 for none. May be given several times.",
)
@pairs.several_option("--case", "cases", CASES)
@click.option("--rounds", default=9)
@pairs.markdown_option
def main(classes, tokens, features, chunks, cases, rounds, markdown):
    """Prints a table of peaks and times."""
    if keras.backend.backend() != "jax":
        raise click.UsageError(
            "Steps are measured as JAX compiles them. Received: KERAS_BACKEND="
            f"{keras.backend.backend()}. Leave it out, or set it to jax."
        )
    click.echo(f"jax on {jax.devices()[0].device_kind}")
    sizes = classes, tokens, features
    plain, plain_peak = make_step(None, None, sizes)
    table = [_row(PLAIN, "none", plain_peak, plain_peak, _times([plain], 3))]
    for name in cases:
        for count in chunks:
            row = _measured(name, count, sizes, plain, plain_peak, rounds)
            table.append(row)
            # To be there at once, should the time run out.
            click.echo(" ".join(row.values()))
    pairs.print_rows("Steps on a GPU", table, markdown)


def _measured(name, count, sizes, plain, plain_peak, rounds):
    """The row of one step."""
    label = "none" if count == "0" else count
    gc.collect()
    try:
        step, peak = make_step(name, benchmark_chunks.chunks_of(count), sizes)
        times = _times([plain, step], rounds)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        none = dict.fromkeys(_COLUMNS, "")
        return none | {"step": name, "chunks": label, "GB": "out of memory"}
    return _row(name, label, peak, plain_peak, times)


def make_step(name, chunks, sizes):
    """A function that runs a step and waits for it, and its peak of memory.

    Args:
        name: one of `benchmark_chunks.CASES`, or `None` for plain training.
        chunks: as `logit_chunks`.
        sizes: tuple of V, N and D.

    Returns:
        The function, and bytes.
    """
    classes, _, features = sizes
    trainer, x, y = benchmark_chunks.make_trainer(name, chunks, sizes)
    program, state, data = benchmark_chunks.compiled_step(trainer, x, y)
    # The first state is given away, and each takes the place of the last.
    held = [state]
    del state

    def step():
        outcome, held[0] = program(held[0], data)
        jax.block_until_ready(outcome)

    peak = program.memory_analysis().temp_size_in_bytes
    return step, peak - 4 * classes * features


def _times(steps, rounds):
    """Seconds of steps in turns, a list of each."""
    named = dict(enumerate(steps))
    clock = pairs.CLOCKS["wall"]
    times = benchmark_losses.time_in_turns(named, rounds, clock)
    return list(times.values())


def _row(name, chunks, peak, plain_peak, times):
    """A row; the last of the times is the step's, the first plain's."""
    ratios = [a / b for a, b in zip(times[-1], times[0], strict=True)]
    cells = (
        name,
        chunks,
        f"{peak / 1e9:.2f}",
        f"{peak / plain_peak:.2f}",
        f"{1e3 * statistics.median(times[-1]):.1f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
    )
    return dict(zip(_COLUMNS, cells, strict=True))


if __name__ == "__main__":
    main()
