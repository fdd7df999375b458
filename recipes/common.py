"""What the recipes share: options, the study itself, its folder and table."""

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


class RunFolder:
    """The folder of one run: its configuration, models, results and logs.

    The same command finds its folder again and goes on in it; a folder that
    holds anything else is refused, so that nothing is overwritten.

    Args:
        recipe: name of the recipe.
        config: dict of the options that decide the results, in JSON's types.
        folder: path, or `None` for a folder below runs/ named after the
            configuration.
        strategy: optional `tf.distribute.Strategy`; of its workers the chief
            writes into the folder, and the others read along.

    Raises:
        ValueError: if the folder holds another run, naming the options that
            differ, or other files.
    """

    def __init__(self, recipe, config, folder=None, strategy=None):
        from keras_kd import distribution

        config = json.loads(json.dumps({"recipe": recipe, **config}))
        if folder is None:
            text = json.dumps(config, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            folder = pathlib.Path("runs") / f"{recipe}-{digest}"
        self.folder = pathlib.Path(folder)
        self.writes = strategy is None or distribution.is_chief(strategy)
        self._check(config)
        if self.writes:
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

    def backup(self, name):
        """Path of the folder that keeps the state of unfinished training."""
        return self.folder / "unfinished" / name

    def epochs_done(self, name):
        """How many epochs of unfinished training need not be repeated."""
        path = self.backup(name) / "training_metadata.json"
        return json.loads(path.read_text())["epoch"] if path.exists() else 0

    def callbacks(self, name):
        """Callbacks that make an interrupted `fit` go on from its last epoch.

        Returns:
            List of Keras callbacks, the last of them a stopwatch.
        """
        import keras

        backup = self.backup(name)
        if self.writes:
            backup.parent.mkdir(parents=True, exist_ok=True)
        return [
            # The copy before the last serves if the last is cut short.
            keras.callbacks.BackupAndRestore(
                str(backup), double_checkpoint=True
            ),
            make_stopwatch(backup.with_suffix(".seconds"), self.writes),
        ]

    def train_once(self, name, train):
        """Trains a model unless its result is there already.

        Args:
            name: of the model.
            train: function without arguments that returns a dict of results.
        """
        if name in self.results:
            click.echo(f"{name}: done before, kept.")
            return
        click.echo(f"\n{name}")
        result = train()
        if self.writes:
            results = {**self.results, name: result}
            _write_json(self.folder / "results.json", results)


def make_stopwatch(path, writes=True):
    """A callback that adds up the seconds of epochs over interruptions.

    Args:
        path: of the file that keeps them.
        writes: whether this process keeps the file.

    Returns:
        A Keras callback with a method `seconds`.
    """
    import keras

    class Stopwatch(keras.callbacks.Callback):
        def seconds(self):
            return float(path.read_text()) if path.exists() else 0.0

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 0 and writes:
                path.unlink(missing_ok=True)
            self._began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            took = time.perf_counter() - self._began
            if writes:
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
    first, *others = rows[0]
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row.values())
    rich.console.Console().print(table)


def _write_json(path, value):
    """Writes a file whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(unfinished, path)
