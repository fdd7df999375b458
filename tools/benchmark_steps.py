"""What a step of distillation costs, beside plain training and the peer.

    python tools/benchmark_steps.py

Times steps of `fit` in turns in one process: the student alone, the Distiller
from a cache and with the teacher in the step for each loss, without the
histograms of w, and `keras.distillation`. It takes about ten minutes on two
cores; `--pair mlp` takes two.
"""

import functools
import pathlib
import statistics
import tempfile

import click
import pairs as benchmark_pairs

# Batch size, batches, and steps of a round.
SIZES = {"mlp": (512, 40, 40), "resnet": (64, 8, 4), "lstm": (20, 10, 5)}
PLAIN, TEACHER, PEER = "student alone", "teacher alone", "keras.distillation"
NO_HISTOGRAM = "cached kd_pt, no histogram"
# By the name of the row, the name of the loss and its arguments.
LOSSES = {
    "label_smoothing": ("label_smoothing", {}),
    "kd_pt": ("kd_pt", {}),
    "kd_pt, T = 1": ("kd_pt", {"temperature": 1.0}),
    "kd_sim": ("kd_sim", {}),
    "kd_pt_sim": ("kd_pt_sim", {}),
    "kd_topk": ("kd_topk", {"k": 25}),
    "kd_topk, T = 1": ("kd_topk", {"k": 25, "temperature": 1.0}),
    "kd_sampled": ("kd_sampled", {"k": 25}),
    "kd": ("kd", {}),
    "dkd": ("dkd", {}),
}


@click.command(context_settings={"show_default": True})
@benchmark_pairs.option
@benchmark_pairs.loss_option(LOSSES)
@click.option("--rounds", default=9)
@click.option("--steps", type=int, help="In a round. [default: by the pair]")
@click.option("--small", is_flag=True, help="Tiny models, to try the tool.")
@benchmark_pairs.clock_option
@benchmark_pairs.markdown_option
def main(pairs, names, rounds, steps, small, clock, markdown):
    """Prints a table of step times and ratios for each pair of models."""
    clock = benchmark_pairs.CLOCKS[clock]
    for pair in pairs:
        steps_per_round = steps or SIZES[pair][2]
        timers = make_timers(pair, names, small, steps_per_round, clock)
        table = rows(in_turns(timers, rounds))
        benchmark_pairs.print_rows(pair, table, markdown)


def in_turns(timers, rounds):
    """Seconds a step by name, one list entry per round."""
    for timer in timers.values():
        timer()  # Compiles.
    times = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
    return times


def make_timers(pair, names, small, steps, clock):
    """Functions by name that run some steps and return seconds a step."""
    import keras

    import keras_kd as kd

    def make_model(role):
        return benchmark_pairs.make_model(pair, role, small)

    batch_size, batches, _ = SIZES[pair]
    dataset = benchmark_pairs.make_data(pair, batches, batch_size, small)
    dataset = dataset.cache().prefetch(2)
    plain_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = make_model("teacher")
    stream = dataset.repeat()
    inputs = dataset.map(lambda x, labels: x).repeat()

    def fit_timer(model, loss, data):
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss)
        fit = functools.partial(model.fit, data, steps_per_epoch=steps)
        return timed(fit, steps, clock)

    def peer():
        return keras.distillation.Distiller(
            teacher,
            make_model("student"),
            distillation_losses=keras.distillation.LogitsDistillation(
                loss=keras.losses.KLDivergence()
            ),
        )

    predict = functools.partial(teacher.predict, inputs, steps=steps)
    timers = {
        PLAIN: fit_timer(make_model("student"), plain_loss, stream),
        TEACHER: timed(predict, steps, clock),
    }
    for name in names:
        kind, arguments = LOSSES[name]
        loss = kd.losses.get(kind, **arguments)
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
            loss = kd.losses.get(kind, **arguments)
            timers[NO_HISTOGRAM] = fit_timer(bare, loss, data)
        if loss.statistics:
            loss = kd.losses.get(kind, **arguments)
            distiller = kd.Distiller(make_model("student"), teacher)
            timers[f"online {name}"] = fit_timer(distiller, loss, stream)
    timers[PEER] = fit_timer(peer(), plain_loss, stream)
    return timers


def timed(run, steps, clock):
    """A function that runs a `fit` or a `predict` and returns seconds a step.

    It looks at the clock in callbacks: TensorFlow at times loses the message
    that wakes the tuning of a `tf.data` iterator that is to be deleted, and
    waits as long again as the run took.
    """
    import keras

    def timer():
        times = []
        note = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: times.append(clock()),
            on_predict_begin=lambda logs: times.append(clock()),
            # On JAX the last steps are still running until a number is asked.
            on_epoch_end=lambda epoch, logs: float(logs["loss"]),
            on_train_end=lambda logs: times.append(clock()),
            on_predict_end=lambda logs: times.append(clock()),
        )
        run(verbose=0, callbacks=[note])
        began, ended = times
        return (ended - began) / steps

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


if __name__ == "__main__":
    main()
