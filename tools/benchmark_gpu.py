"""Memory and time of steps with a large vocabulary, on one GPU.

    KERAS_BACKEND=jax python tools/benchmark_gpu.py
    KERAS_BACKEND=torch python tools/benchmark_gpu.py

The steps are those of `benchmark_chunks.py`, and plain training's runs in turns
with each. Memory is beyond the weights, the data and the gradient of the
kernel: on JAX what the program that runs has planned, on PyTorch the peak of
what the step allocated. A step for which memory does not suffice is said so.
"""

import gc
import statistics

import benchmark_chunks
import click
import pairs
from benchmark_chunks import CASES, PLAIN


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
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(tuple(CASES)),
    default=tuple(CASES),
    help="May be given several times.",
)
@click.option("--rounds", default=9)
@pairs.markdown_option
def main(classes, tokens, features, chunks, cases, rounds, markdown):
    """Prints a table of peaks and times."""
    import keras

    click.echo(f"{keras.backend.backend()} on {_device()}")
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
        step, peak = make_step(name, benchmark_chunks._count(count), sizes)
        times = _times([plain, step], rounds)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return _row(name, label, None, plain_peak, None)
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
    import keras

    classes, _, features = sizes
    make = {"jax": _jax_step, "torch": _torch_step}[keras.backend.backend()]
    step, peak = make(*benchmark_chunks.make_trainer(name, chunks, sizes))
    return step, peak - 4 * classes * features


def _jax_step(trainer, x, y):
    import jax

    program, state, data = benchmark_chunks.compiled_step(trainer, x, y)
    # The first state is given away, and each takes the place of the last.
    held = [state]
    del state

    def step():
        outcome, held[0] = program(held[0], data)
        jax.block_until_ready(outcome)

    return step, program.memory_analysis().temp_size_in_bytes


def _torch_step(trainer, x, y):
    import torch

    def step():
        trainer.train_on_batch(x, y)
        torch.cuda.synchronize()

    step()
    step()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return step, torch.cuda.max_memory_allocated() - before


def _times(steps, rounds):
    """Seconds of steps in turns, a list of each."""
    named = dict(enumerate(steps))
    clock = pairs.CLOCKS["wall"]
    times = benchmark_chunks.benchmark_losses.time_in_turns(
        named, rounds, clock
    )
    return list(times.values())


def _row(name, chunks, peak, plain_peak, times):
    """A row; the last of the times is the step's, the first plain's."""
    if peak is None:
        return {
            "step": name,
            "chunks": chunks,
            "GB": "out of memory",
            "of plain's": "",
            "ms": "",
            "of plain's time": "",
            "range": "",
        }
    ratios = [a / b for a, b in zip(times[-1], times[0], strict=True)]
    return {
        "step": name,
        "chunks": chunks,
        "GB": f"{peak / 1e9:.2f}",
        "of plain's": f"{peak / plain_peak:.2f}",
        "ms": f"{1e3 * statistics.median(times[-1]):.1f}",
        "of plain's time": f"{statistics.median(ratios):.2f}",
        "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }


def _is_out_of_memory(error):
    """Whether an error of JAX or PyTorch says that memory does not suffice."""
    words = f"{type(error).__name__} {error}"
    return "OutOfMemory" in words or "RESOURCE_EXHAUSTED" in words


def _device():
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
