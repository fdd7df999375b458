"""Peak memory of each loss and its gradient on JAX, as the compiler plans it.

    python tools/measure_memory_jax.py

The numbers are from the compiled program's own memory analysis: nothing runs.
What the program is given (the logits, and a method's targets) and the gradient
that it returns are not counted.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import benchmark_losses  # noqa: E402
import click  # noqa: E402
import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import pairs  # noqa: E402

import keras_kd as kd  # noqa: E402

NAMES = (benchmark_losses.PLAIN, *benchmark_losses.LOSSES)


@click.command(context_settings={"show_default": True})
@click.option("--classes", default=50_000, help="V.")
@click.option("--examples", default=128, help="N.")
@pairs.loss_option(NAMES)
@pairs.markdown_option
def main(classes, examples, names, markdown):
    """Prints what a step needs beside its arguments and the gradient."""
    table = []
    for name in names:
        arrays = temporary_arrays(name, classes, examples)
        table.append({"loss": name, "[N, V] arrays": f"{arrays:.2f}"})
    pairs.print_rows("Temporary memory on JAX", table, markdown)


def temporary_arrays(name, num_classes, count):
    """Temporary memory of a loss and its gradient, in [N, V] float32 arrays."""
    function, *arguments = make_loss(name, num_classes, count)
    step = jax.jit(jax.value_and_grad(function))
    analysis = step.lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes / (4 * num_classes * count)


def make_loss(name, num_classes, count):
    """A function of logits and its other arguments, and their shapes.

    Weights, temperature and what is kept of class relations are arguments, as
    they are in the Distiller's step, where they may change.
    """
    logits = jax.ShapeDtypeStruct((count, num_classes), "float32")
    labels = jax.ShapeDtypeStruct((count,), "int32")
    if name == benchmark_losses.PLAIN:
        plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return lambda z, y: plain(y, z), logits, labels
    arguments = dict(benchmark_losses.LOSSES[name])
    if "sim" in name:
        # Its table of targets would be larger than all else: worked out for
        # each batch, as with any vocabulary of this size.
        random = np.random.default_rng(0)
        rows = random.normal(size=(num_classes, 64))
        arguments.update(logit_layer=rows, alpha=0.3)
    loss = kd.losses.get(name.split(",")[0], **arguments)
    statistics = jax.eval_shape(loss.teacher_statistics, labels, logits)
    variables = loss.variables
    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]

    def function(z, y, values):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return loss(y, z)

    return function, logits, {"labels": labels, **statistics}, values


if __name__ == "__main__":
    main()
