"""What the recipes share: strategy, run folder, resuming, result table."""

import contextlib
import hashlib
import json
import os
import pathlib
import time

import click


@contextlib.contextmanager
def errors_as_messages():
    """Shows a refused option or file as one message, not as a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def make_strategy(kind, replicas=None):
    """A distribution strategy; to be made before TensorFlow is used.

    Args:
        kind: "one" for the default device, or "mirrored" for a replica on
            each GPU, or, where there is none, on each of several logical
            CPU devices.
        replicas: how many replicas "mirrored" uses; `None` for every GPU, or
            two CPU replicas.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: if there are fewer devices than replicas.
    """
    import tensorflow as tf

    if kind == "one":
        if replicas not in (None, 1):
            raise ValueError(
                "One device holds one replica. Received: --strategy one with "
                f"--replicas {replicas}. Use --strategy mirrored."
            )
        return tf.distribute.get_strategy()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return tf.distribute.MirroredStrategy(_logical_cpus(replicas or 2))
    replicas = replicas or len(gpus)
    if replicas > len(gpus):
        raise ValueError(
            "There must be a GPU for each replica. Received: --replicas "
            f"{replicas} with {len(gpus)} GPUs. Lower --replicas."
        )
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])


def _logical_cpus(count):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    configuration = tf.config.LogicalDeviceConfiguration()
    # Refused once TensorFlow runs; then what is there must do.
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(cpu, [configuration] * count)
    devices = [d.name for d in tf.config.list_logical_devices("CPU")]
    if len(devices) < count:
        raise ValueError(
            f"{count} CPU replicas need {count} logical CPU devices. Received: "
            f"{len(devices)}. Start a new process, or lower --replicas."
        )
    return devices[:count]


class RunFolder:
    """The folder of one run: its configuration, models, results and logs.

    The same command finds its folder again and goes on in it; a folder that
    holds anything else is refused, so that nothing is overwritten.

    Args:
        recipe: name of the recipe.
        config: dict of the options that decide the results, in JSON's types.
        folder: path, or `None` for a folder below runs/ named after the
            configuration.

    Raises:
        ValueError: if the folder holds another run, naming the options that
            differ, or other files.
    """

    def __init__(self, recipe, config, folder=None):
        config = json.loads(json.dumps({"recipe": recipe, **config}))
        if folder is None:
            text = json.dumps(config, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            folder = pathlib.Path("runs") / f"{recipe}-{digest}"
        self.folder = pathlib.Path(folder)
        self._check(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / "config.json", config)

    def _check(self, config):
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise ValueError(
                "The run folder must be a folder. Received: "
                f"{self.folder}, a file. Choose another --log-dir."
            )
        path = self.folder / "config.json"
        if not path.exists():
            names = sorted(p.name for p in self.folder.iterdir())
            if names:
                raise ValueError(
                    "The run folder must be new, empty, or an earlier run's. "
                    f"Received: {self.folder} with {names[:5]}. Choose another "
                    "--log-dir."
                )
            return
        before = json.loads(path.read_text())
        differing = [
            f"{key}: {before.get(key)!r} there, {config.get(key)!r} now"
            for key in sorted({*before, *config})
            if before.get(key) != config.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds another run. Received different options "
                f"({'; '.join(differing)}). Choose another --log-dir, or leave "
                "it out for a new folder."
            )

    @property
    def results(self):
        """Dict of the finished models' results by name."""
        path = self.folder / "results.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def tensorboard(self):
        """Path of the TensorBoard logs."""
        return self.folder / "tensorboard"

    def model(self, name):
        """Path of a model's file."""
        return self.folder / f"{name}.keras"

    def train_once(self, name, train):
        """Trains a model unless its result is there already.

        Args:
            name: of the model.
            train: function of a list of callbacks, those that make its
                training resume where it was interrupted; returns a dict of
                results.

        Returns:
            The dict of results, with the "seconds" of training.
        """
        if name in self.results:
            click.echo(f"{name}: done before, kept.")
            return self.results[name]
        click.echo(f"\n{name}")
        backup = self.folder / "unfinished" / name
        stopwatch = make_stopwatch(backup.with_suffix(".seconds"))
        result = train([*resume_callbacks(backup), stopwatch])
        result = {**result, "seconds": round(stopwatch.seconds(), 1)}
        _write_json(
            self.folder / "results.json", {**self.results, name: result}
        )
        return result


def resume_callbacks(backup):
    """Callbacks that make an interrupted `fit` go on from its last epoch.

    Args:
        backup: path of the folder for its state, removed at the end.

    Returns:
        List of Keras callbacks.
    """
    import keras

    backup.parent.mkdir(parents=True, exist_ok=True)
    return [keras.callbacks.BackupAndRestore(str(backup))]


def make_stopwatch(path):
    """A callback that adds up the seconds of epochs over interruptions.

    Args:
        path: of the file that keeps them.

    Returns:
        A Keras callback with a method `seconds`.
    """
    import keras

    class Stopwatch(keras.callbacks.Callback):
        def seconds(self):
            return float(path.read_text()) if path.exists() else 0.0

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 0:
                path.unlink(missing_ok=True)
            self._began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            took = time.perf_counter() - self._began
            path.write_text(str(self.seconds() + took))

    return Stopwatch()


def print_table(title, rows):
    """Prints results as a table.

    Args:
        title: string.
        rows: list of dicts of strings, with the same keys.
    """
    import rich.console
    import rich.table

    table = rich.table.Table(title=title)
    for column in rows[0]:
        justify = "left" if column == next(iter(rows[0])) else "right"
        table.add_column(column, justify=justify)
    for row in rows:
        table.add_row(*row.values())
    rich.console.Console().print(table)


def _write_json(path, value):
    """Writes a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(unfinished, path)
