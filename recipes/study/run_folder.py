"""The folder of a run: whose it is, what is done, and what was interrupted."""

import hashlib
import json
import pathlib
import shlex
import zipfile

import click
import keras

from keras_kd import callbacks, distribution, files
from study.messages import OPEN_RUN, first_line, option_name

_CONFIG, _DATA = "config.json", "data.json"
# In the configuration, but no option's name.
_NAMES = {"cached": "teacher cache (--no-cache, --cache)"}


class RunFolder:
    """The folder of one run: its configuration, models, results and logs.

    The same command finds its folder again and resumes in it; a folder that
    holds anything else is refused, so that nothing is overwritten, and so is
    one that another process is using. It is a context manager, at whose end
    others may use the folder.

    Args:
        recipe: name of the recipe.
        config: dict of the options that decide the results, in JSON's types.
        folder: path, or `None` for a folder below runs/ named after the
            configuration.
        strategy: optional `tf.distribute.Strategy`; of its workers the chief
            writes into the folder, and the others read it.

    Raises:
        ValueError: if the folder holds another run, naming the options that
            differ, other files, or damaged ones.
        OSError: if another process uses it, or it can't be written.
    """

    def __init__(self, recipe, config, folder=None, strategy=None):
        config = _config(recipe, config)
        self.folder = folder_of(recipe, config, folder)
        self.writes = strategy is None or distribution.is_chief(strategy)
        about = self.folder, _CONFIG, config, "--log-dir"
        self._lock = self._training = None
        _check_options(self.folder, config)
        if self.writes:
            _make(self.folder)
            self._lock = files.claim_folder(*about)
            self._remove_unfinished()
        else:
            files.check_folder(*about)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets other processes use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def leave_unused(self):
        """Lets a run of other options have the folder, if nothing is in it.

        Whoever is refused changes an option or the data, as the message says.
        """
        ours = {_CONFIG, _DATA}
        names = {path.name for path in self.folder.iterdir()}
        if self.writes and names <= {*ours, "lock"}:
            for name in ours & names:
                (self.folder / name).unlink()

    def _remove_unfinished(self):
        """Removes what was being written when a process was killed."""
        for path in self.folder.glob(f"*{files.UNFINISHED}*"):
            path.unlink()

    def check_data(self, checksums):
        """Refuses other data than those that the results are of.

        Args:
            checksums: dict by part. A folder of an earlier version has none,
                and takes these.

        Raises:
            ValueError: naming the parts that differ.
        """
        path = self.folder / _DATA
        remedy = "Remove it, if the data are those of the folder's results."
        before = files.read_dict(path, remedy)
        if before is None:
            if checksums and self.writes:
                files.write_json(path, checksums)
            return
        other = files.differing_keys(before, checksums)
        if other:
            raise ValueError(
                f"{self.folder} holds results of other data. Received: another "
                f"{', '.join(other)} than there. Put the data back as they "
                "were, or choose another --log-dir."
            )

    @property
    def results(self):
        """Dict of the finished models' results by name."""
        remedy = (
            "Put back a copy of it, or remove it to train every model again."
        )
        return files.read_dict(self.folder / "results.json", remedy) or {}

    @property
    def tensorboard(self):
        """Path of the TensorBoard logs."""
        return self.folder / "tensorboard"

    def echo_tensorboard(self):
        """Prints the command that shows them, as a shell takes it."""
        click.echo(f"tensorboard --logdir {shlex.quote(str(self.tensorboard))}")

    def model(self, name):
        """Path of a model's file."""
        return self.folder / f"{name}.keras"

    def save(self, model, name):
        """Saves a model whole or not at all.

        Args:
            model: a `keras.Model`.
            name: of the model.
        """
        files.save_model(model, self.model(name))

    def backup(self, name):
        """The callback that makes an interrupted `fit` resume.

        Its file stays until the result is written.

        Args:
            name: of the model.

        Returns:
            A `keras_kd.callbacks.BackupAndRestore`.
        """
        return _Backup(self.folder / "unfinished" / name)

    def train_once(self, name, train, path=None):
        """Trains a model unless its result is there already.

        Args:
            name: of the model.
            train: function without arguments that returns a dict of results.
            path: of the model's file, by default in this folder. A result
                counts only together with the file that it was taken of.

        Raises:
            ValueError: if that file has changed.
        """
        own = path is None
        path = self.model(name) if own else pathlib.Path(path)
        result = self.results.get(name)
        if result is not None and self._is_kept(name, result, path, own):
            click.echo(f"{name}: done before, kept.")
        else:
            click.echo(f"\n{name}")
            self._training = name
            result = train()
            self._training = None
            if self.writes:
                if path.exists():
                    result = {**result, "sha256": _sha256(path)}
                results = {**self.results, name: result}
                files.write_json(self.folder / "results.json", results)
        if self.writes:
            self.backup(name).delete()

    def has(self, name):
        """Whether a model of this folder is trained, and still there."""
        return name in self.results and self.model(name).exists()

    def resumption(self):
        """A sentence on what the same command does after an interruption."""
        name = self._training
        if name is None:
            return "The same command resumes."
        epochs = self.backup(name).epochs_done()
        if epochs:
            return f"The same command resumes {name} after epoch {epochs}."
        return f"The same command resumes with {name}."

    def _is_kept(self, name, result, path, own):
        """Whether the model of a result is there as it was written."""
        if not isinstance(result, dict):
            raise ValueError(
                f"{self.folder / 'results.json'} is damaged. Received: "
                f"{result!r} for {name!r}, where there must be results by "
                "name. Put back a copy of it, or remove it to train every "
                "model again."
            )
        if "sha256" not in result:
            return True  # It has no file.
        if not path.exists():
            click.echo(f"{name}: {path} was removed, so it is trained again.")
            return False
        if _sha256(path) != result["sha256"]:
            again = "remove it to train it again"
            remedy = again if own else "choose another --log-dir"
            raise ValueError(
                f"{path} is not the model that {name}'s results are of: it is "
                "damaged or was replaced. Received: "
                f"{path.stat().st_size} bytes with another SHA-256. Put back a "
                f"copy of it, or {remedy}."
            )
        return True


def folder_of(recipe, config, folder=None):
    """Path of a run folder; see `RunFolder`."""
    if folder is None:
        text = json.dumps(_config(recipe, config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = pathlib.Path("runs") / f"{recipe}-{digest}"
    return pathlib.Path(files.user_path(folder, "--log-dir"))


def is_begun(folder):
    """Whether a folder is a run's already."""
    return (folder / _CONFIG).exists()


def _config(recipe, config):
    return json.loads(json.dumps({"recipe": recipe, **config}))


def _check_options(folder, config):
    """Refuses a folder of other options, which it calls as the user does."""
    remedy = "Choose another --log-dir, or remove this folder."
    before = files.read_dict(folder / _CONFIG, remedy)
    if before is None:
        return
    differing = [
        f"{_NAMES.get(key) or option_name(key)}: {_in_words(before.get(key))} "
        f"there, {_in_words(config.get(key))} now"
        for key in files.differing_keys(before, config)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another run. Received different options "
            f"({'; '.join(differing)}). Choose another --log-dir, or leave it "
            "out."
        )


def _in_words(value):
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _make(folder):
    """Makes the folder, where there is nothing yet."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The run folder can't be made. Received: --log-dir {folder} "
            f"({error.strerror}). Choose one below a folder that you may write "
            "to."
        ) from error


def open_run(recipe, config, folder=None, strategy=None):
    """A `RunFolder` that is closed at the end of the command.

    Args:
        recipe: see `RunFolder`, as the following.
        config: dict.
        folder: path, or `None`.
        strategy: a `tf.distribute.Strategy`, or `None`.

    Returns:
        A `RunFolder`.
    """
    run = RunFolder(recipe, config, folder, strategy)
    context = click.get_current_context()
    context.meta[OPEN_RUN] = run
    return context.with_resource(run)


class _Backup(callbacks.BackupAndRestore):
    """Lets `RunFolder` remove the backup, once there is a result."""

    def on_train_end(self, logs=None):
        pass


def load_model(path, option="--teacher"):
    """A trained model, without how it was trained.

    Args:
        path: of a file of Keras.
        option: what named the file.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if it is damaged, or not a model of Keras.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} in it is damaged")
        return keras.models.load_model(path, compile=False)
    # Keras says in many ways that it can't read a file.
    except Exception as error:
        raise ValueError(
            f"The model {path} can't be loaded: it is damaged, or was not "
            f"saved by Keras. Received: {path.stat().st_size} bytes "
            f"({type(error).__name__}: {first_line(error)}). Save it again, or "
            f"choose another {option}."
        ) from error


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_report(report, folder, name):
    """Saves a report beside those of earlier calls.

    Args:
        report: what has a method `save`.
        folder: path.
        name: of the file, without its ending.
    """
    number, path = 1, folder / f"{name}.html"
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.html"
    report.save(path)
    click.echo(f"Report: {path}")
