"""The full-size studies on one GPU, in minutes: JAX, with data in its memory.

    python recipes/one_gpu.py pack cifar100.npz --data-dir tensorflow_datasets
    python recipes/one_gpu.py cifar100 runs/c100 --data cifar100.npz \
        --teacher resnet56.keras
    python recipes/one_gpu.py ptb runs/ptb --data-dir ptb

Only the first needs TensorFlow. Every student is trained by the Distiller's own
step, of which an epoch is one compiled program, and the teacher of images runs
once over the views that all students see. A killed study resumes after its last
student. Small networks leave a GPU idle, so several processes may share the
students of one study: `--part 1/4` to `--part 4/4`, after `--prepare`. The same
command without `--part` then makes the report.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import contextlib
import functools
import hashlib
import pathlib
import time

import click
import jax
import keras
import networks
import numpy as np
from data import text
from jax import numpy as jnp
from keras import ops
from study import attribution
from study import methods as arguments
from study.epoch_program import (
    EpochProgram,
    Outputs,
    crop_and_flip,
    shuffled,
)
from study.messages import errors_as_messages

import keras_kd as kd
from keras_kd import files, fingerprint
from keras_kd.attribution import make_loss
from keras_kd.attribution.controls import shuffle_within_labels
from keras_kd.attribution.levels import DEFAULT_METHODS
from keras_kd.attribution.methods import PLAIN, SHUFFLED
from keras_kd.attribution.runs import Runs
from keras_kd.student_trainer.scores import similarity_of

# What two teachers, each trained on one half of the images, say of the half
# that they were trained on, and of the one that they were not.
SEEN, HELD_OUT = "_seen", "_held_out"
_WITHOUT_TEACHER = (PLAIN, "label_smoothing")
_PAD, _CLASSES = 4, 100
_positive = click.IntRange(min=1)
_path = functools.partial(click.Path, path_type=pathlib.Path)


class Students:
    """Trains students of one study, as `kd.attribute` takes it.

    A subclass has the name of its `metric`, and what it is called in a table,
    `heading`, where it is multiplied by `scale`.

    Args:
        folder: path of the study, for what its processes share.
        options: dict of the command's options.
        about: dict in JSON's types of what scores depend on beside these.
    """

    higher_is_better = True
    superclasses = None

    def __init__(self, folder, options, about):
        self.shared, self.options = folder / "shared", options
        self.study = {**options, **about}

    def check(self, methods):
        """Refuses methods that this study does not have.

        Args:
            methods: list of names.

        Raises:
            ValueError: naming those that it has.
        """
        unknown = set(methods) - set(self.methods)
        if unknown:
            raise ValueError(
                "The study must have each method. Received: "
                f"{sorted(unknown)}. Choose among {', '.join(self.methods)}."
            )

    def prepare(self, methods):
        """Makes what the students of some methods share."""

    def __call__(self, method, seed):
        """The results of a student; see `kd.attribute`."""
        raise NotImplementedError

    def kept(self, name, make):
        """An array that all processes share, from its file once it is made."""
        path = self.shared / f"{name}.npy"
        if not path.exists():
            self.shared.mkdir(parents=True, exist_ok=True)
            made = np.asarray(make())
            files.write_whole(path, lambda file: np.save(file, made))
        return np.load(path)


class Images(Students):
    """CIFAR ResNets; see `Students`.

    Args:
        folder: path of the study.
        data: path of what `pack` wrote.
        teacher: path of the teacher.
        options: dict of the command's options.
    """

    metric, heading, scale = "accuracy", "top-1 %", 100
    methods = (
        *DEFAULT_METHODS,
        "dkd",
        *("kd_pt" + SEEN, "kd_pt" + HELD_OUT, "kd" + SEEN, "kd" + HELD_OUT),
    )

    def __init__(self, folder, data, teacher, options):
        self.teacher = keras.models.load_model(teacher, compile=False)
        packed = dict(np.load(data))
        super().__init__(
            folder,
            options,
            {
                "teacher": fingerprint.teacher_fingerprint(self.teacher),
                "data": _digest(packed),
            },
        )
        self.labels, self.test_labels = packed["train_y"], packed["test_y"]
        shape = packed["train_x"].shape[1:]
        networks.check_teacher(self.teacher, shape, _CLASSES)
        _check_batch_size(options["batch_size"], len(self.labels))
        self.superclasses = packed["superclasses"].tolist()
        self.size = packed["train_x"].shape[1]
        pad = (0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)
        count, views = len(self.labels), options["views"]
        # Which crop each view has of each image, the same for all students.
        rng = np.random.default_rng(0)
        places = rng.integers(0, 2 * _PAD + 1, (views, count, 3), "uint8")
        places[..., 2] = rng.integers(0, 2, (views, count), "uint8")
        self.arrays = jax.device_put(
            {
                "images": np.pad(packed["train_x"], pad),
                "labels": self.labels,
                "places": places,
            }
        )
        self.test = jax.device_put(
            {"x": packed["test_x"], "y": self.test_labels}
        )

    # -- teachers --------------------------------------------------------------

    @functools.cached_property
    def teacher_similarity(self):
        """Cosines of the teacher's logit layer."""
        return similarity_of(self.teacher)

    def prepare(self, methods):
        """What the teachers say of every view."""
        for method in methods:
            self._logits(method)

    def _logits(self, method):
        """[views, images, classes] float16, below the largest; or `None`."""
        for ending, on_its_own in ((SEEN, True), (HELD_OUT, False)):
            if method.endswith(ending):
                make = functools.partial(self._of_halves, on_its_own)
                return self.kept(f"logits{ending}", make)
        if not _statistics(method, self.options["losses"]):
            return None
        return self.kept("logits", lambda: self._all_logits(self.teacher))

    def _all_logits(self, teacher):
        """What a teacher says of every view of every image."""

        def draw(arrays, index):
            view, positions = index[0], index[1:]
            return (self._images(arrays, view, positions),)

        def gaps(logits, batch):
            del batch
            return (logits - logits.max(-1, keepdims=True)).astype("float16")

        outputs = Outputs(teacher, gaps, draw)
        count, batch = len(self.labels), _divisor(len(self.labels), 2000)
        found = []
        for view in range(self.options["views"]):
            positions = np.arange(count).reshape(-1, batch)
            index = np.insert(positions, 0, view, axis=1).astype("int32")
            each = np.asarray(outputs(self.arrays, index))
            found.append(each.reshape(count, -1))
        return np.stack(found)

    def _of_halves(self, on_its_own):
        """What two teachers say, each of one half alone."""
        both = [
            self.kept(f"half-{half}", functools.partial(self._half, half))
            for half in (0, 1)
        ]
        own = np.arange(len(self.labels)) % 2
        chosen = own if on_its_own else 1 - own
        return np.where(chosen[:, None] == 0, both[0], both[1])

    def _half(self, half):
        """Trains a teacher on every other image, for as many steps."""
        path = self.shared / f"half-{half}.keras"
        if not path.exists():
            keras.utils.set_random_seed(1000 + half)
            of_half = np.arange(half, len(self.labels), 2)
            student, history = self._train(
                PLAIN,
                of_half,
                2 * self.options["epochs"],
                1000 + half,
                self.options["half_depth"],
            )
            self.shared.mkdir(parents=True, exist_ok=True)
            files.save_model(student.student, path)
            files.write_json(path.with_suffix(".json"), history)
        return self._all_logits(keras.models.load_model(path, compile=False))

    # -- students --------------------------------------------------------------

    def __call__(self, method, seed):
        """Trains a student and tests it on the test images."""
        keras.utils.set_random_seed(seed)
        positions = np.arange(len(self.labels))
        distiller, history = self._train(
            method,
            positions,
            self.options["epochs"],
            seed,
            self.options["depth"],
        )
        right = self._right(distiller.student)
        return {
            "accuracy": float(right.mean()),
            "examples": right.astype(float).tolist(),
            "history": history,
            "class_similarity": similarity_of(distiller.student),
            **_histogram(history),
        }

    def _train(self, method, positions, epochs, seed, depth):
        """A student trained on some images, in its Distiller; its history."""
        options, batch_size = self.options, self.options["batch_size"]
        base = method.removesuffix(SEEN).removesuffix(HELD_OUT)
        settings = arguments.settings_of(base, arguments.CIFAR_ARGUMENTS)
        del settings["reduction"]  # No batch is filled up.
        steps = epochs * (len(positions) // batch_size)
        rate = keras.optimizers.schedules.CosineDecay(
            options["learning_rate"], steps
        )
        with _dtype_policy(options["dtype"]):
            student = networks.cifar_resnet(
                depth,
                (self.size, self.size, 3),
                _CLASSES,
                networks.CIFAR100_MEAN,
                networks.CIFAR100_DEVIATION,
            )
        networks.with_weight_decay(student, options["weight_decay"])
        teacher = None if base in _WITHOUT_TEACHER else self.teacher
        distiller = kd.Distiller(
            student, teacher, gradient_scale=_bins_for(base)
        )
        distiller.compile(
            keras.optimizers.SGD(rate, momentum=options["momentum"]),
            make_loss(base, settings, self.teacher),
            metrics=["accuracy"],
        )
        arrays = dict(self.arrays)
        logits = self._logits(method)
        if logits is not None:
            arrays["logits"] = logits
            source = np.arange(len(self.labels))
            if base == SHUFFLED:
                source = shuffle_within_labels(source, self.labels)
            arrays["source"] = source.astype("int32")
        order = shuffled(len(positions), batch_size, seed)
        program = EpochProgram(
            distiller,
            arrays,
            self._draw(logits is not None),
            np.arange(batch_size, dtype="int32"),
        )
        history = {}
        for epoch in range(epochs):
            view = epoch % options["views"]
            chosen = positions[next(order)].astype("int32")
            logs = program.train(view, chosen)
            logs["val_accuracy"] = float(self._right(student).mean())
            _append(history, logs, distiller)
            print(
                f"{method}, seed {seed}, epoch {epoch + 1}: test accuracy "
                f"{logs['val_accuracy']:.4f}",
                flush=True,
            )
        return distiller, history

    def _draw(self, with_teacher):
        def draw(arrays, view, positions):
            labels = arrays["labels"][positions]
            if with_teacher:
                given = arrays["logits"][view, arrays["source"][positions]]
                labels = {
                    "labels": labels,
                    "teacher_logits": given.astype("float32"),
                }
            return self._images(arrays, view, positions), labels

        return draw

    def _images(self, arrays, view, positions):
        return crop_and_flip(
            arrays["images"][positions],
            arrays["places"][view, positions],
            self.size,
        )

    def _right(self, model):
        """[test images] booleans: whether the largest logit is the label's."""

        def draw(arrays, index):
            return arrays["x"][index].astype("float32"), arrays["y"][index]

        def right(logits, batch):
            return logits.argmax(-1) == batch[1]

        if getattr(self, "_tested", None) is not model:
            self._tested, self._test = model, Outputs(model, right, draw)
        count = len(self.test_labels)
        index = np.arange(count).reshape(-1, _divisor(count, 1000))
        return np.asarray(self._test(self.test, index)).ravel()


class Texts(Students):
    """LSTM language models; see `Students`.

    Args:
        folder: path of the study.
        corpus: a `text.Corpus`.
        options: dict of the command's options.
    """

    metric, heading, scale = "test_perplexity", "test perplexity", 1
    higher_is_better = False
    methods = (
        PLAIN,
        *(m for m in DEFAULT_METHODS if m in arguments.SGD_TEXT_ARGUMENTS),
        "kd_sampled",
    )
    teacher_similarity = None  # Of 10,000 words: too many for a picture.

    def __init__(self, folder, corpus, options):
        ids = {part: getattr(corpus, part) for part in text.PARTS}
        super().__init__(folder, options, {"text": _digest(ids)})
        self.words = len(corpus.vocabulary)
        self.shape = options["batch_size"], options["time_steps"]
        self.data = {
            part: jax.device_put(
                dict(
                    zip(
                        ("x", "y", "weight"),
                        text.streams(ids[part], *self.shape),
                        strict=True,
                    )
                )
            )
            for part in text.PARTS
        }

    @functools.cached_property
    def teacher(self):
        """The teacher, trained once for all processes."""
        path = self.shared / "teacher.keras"
        if not path.exists():
            keras.utils.set_random_seed(0)
            model = self._build("teacher")
            began = time.perf_counter()
            history = self._train(model, None, PLAIN, "teacher")
            history["seconds"] = round(time.perf_counter() - began, 1)
            history["test_perplexity"] = self._perplexity(model, "test")[0]
            self.shared.mkdir(parents=True, exist_ok=True)
            files.save_model(model, path)
            files.write_json(path.with_suffix(".json"), history)
        return keras.models.load_model(path, compile=False)

    def prepare(self, methods):
        """The teacher."""
        if set(methods) - set(_WITHOUT_TEACHER):
            _ = self.teacher

    def __call__(self, method, seed):
        """Trains a student and measures it on the test text."""
        keras.utils.set_random_seed(seed)
        student = self._build("student")
        teacher = None if method in _WITHOUT_TEACHER else self.teacher
        history = self._train(student, teacher, method, "student")
        valid, _ = self._perplexity(student, "valid")
        test, rows = self._perplexity(student, "test")
        return {
            "test_perplexity": test,
            "valid_perplexity": valid,
            "examples": rows.tolist(),
            "examples_of": "exp_mean",
            "history": history,
            **_histogram(history),
        }

    def _build(self, role):
        options = self.options
        return networks.lstm_language_model(
            self.words,
            options[f"{role}_units"],
            options[f"{role}_layers"],
            options[f"{role}_dropout"],
            self.shape,
            name=role,
        )

    def _train(self, model, teacher, method, role):
        """Trains a model, teachers too, and returns its history."""
        options, data = self.options, self.data["train"]
        prefix = "teacher_" if role == "teacher" else ""
        epochs, batches = options[f"{prefix}epochs"], len(data["x"])
        rate = keras.optimizers.schedules.CosineDecay(
            options[f"{prefix}learning_rate"], epochs * batches
        )
        distiller = kd.Distiller(
            model, teacher, gradient_scale=_bins_for(method)
        )
        distiller.compile(
            keras.optimizers.SGD(rate, global_clipnorm=options["clip_norm"]),
            make_loss(
                method,
                arguments.settings_of(method, arguments.SGD_TEXT_ARGUMENTS),
                teacher,
            ),
        )

        def draw(arrays, epoch, index):
            del epoch
            return tuple(arrays[key][index] for key in ("x", "y", "weight"))

        order = np.arange(batches, dtype="int32")
        program = EpochProgram(distiller, data, draw, order[0])
        history = {}
        for epoch in range(epochs):
            logs = program.train(epoch, order)
            logs["val_perplexity"] = self._perplexity(model, "valid")[0]
            _append(history, logs, distiller)
            print(
                f"{method} {role}, epoch {epoch + 1}: valid perplexity "
                f"{logs['val_perplexity']:.2f}",
                flush=True,
            )
        return history

    def _perplexity(self, model, part):
        """A text's perplexity, and the losses of its rows whose mean it is."""

        def draw(arrays, index):
            return tuple(arrays[key][index] for key in ("x", "y", "weight"))

        def rows(logits, batch):
            _, labels, weights = batch
            losses = ops.sparse_categorical_crossentropy(
                labels, logits, from_logits=True
            )
            return (losses * weights).sum(-1)

        if getattr(self, "_tested", None) is not model:
            self._tested, self._test = model, Outputs(model, rows, draw)
        data = self.data[part]
        losses = np.asarray(self._test(data, jnp.arange(len(data["x"]))))
        count = float(np.asarray(data["weight"]).sum())
        rows = losses.sum(0, dtype="float64") * self.shape[0] / count
        return float(np.exp(rows.mean())), rows


# -- commands ------------------------------------------------------------------


class _Part(click.ParamType):
    """One part of so many, as 1/4."""

    name = "part"

    def convert(self, value, param, ctx):
        """(part, parts), both from 1 on; see `click.ParamType`."""
        number, _, of = str(value).partition("/")
        if not (number.isdigit() and of.isdigit()) or not (
            1 <= int(number) <= int(of)
        ):
            self.fail(
                "A part is a number of so many. Received: "
                f"{value!r}. Pass, for example, 1/4, 2/4, 3/4 and 4/4.",
                param,
                ctx,
            )
        return int(number), int(of)


def _study_options(command):
    """The options of both studies."""
    for option in (
        click.argument("folder", type=_path(file_okay=False)),
        click.option(
            "--method",
            "methods",
            multiple=True,
            help="To compare; may be given several times. [default: all]",
        ),
        click.option("--seeds", type=_positive, default=3),
        click.option(
            "--part", type=_Part(), help="As 1/4: train one student in four."
        ),
        click.option(
            "--prepare",
            is_flag=True,
            help="Make what all parts share, and stop.",
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"show_default": True})
@errors_as_messages()
def main():
    """Full-size studies on one GPU, by JAX."""
    _check_backend()


@main.command()
@click.argument("path", type=_path(dir_okay=False))
@click.option("--data-dir", help="Folder of TFDS data sets.")
@errors_as_messages()
def pack(path, data_dir):
    """Writes CIFAR-100 as one file of arrays, for machines without TFDS."""
    from data import images

    data = images.cifar100(data_dir)
    arrays = {
        "train_x": data.train[0],
        "train_y": data.train[1],
        "test_x": data.test[0],
        "test_y": data.test[1],
        "superclasses": data.superclasses,
    }
    files.write_whole(path, lambda file: np.savez(file, **arrays))


@main.command()
@_study_options
@click.option(
    "--data", required=True, type=_path(exists=True), help="What `pack` wrote."
)
@click.option("--teacher", required=True, type=_path(exists=True))
@click.option("--depth", type=_positive, default=20, help="6n + 2.")
@click.option(
    "--half-depth",
    type=_positive,
    default=20,
    help="Of the teachers that are trained on one half of the images each.",
)
@click.option("--epochs", type=_positive, default=30)
@click.option(
    "--views",
    type=_positive,
    help="Crops of each image, in turn. [default: one an epoch]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    default="float32",
    help="Of all networks but the teacher.",
)
@click.option("--batch-size", type=_positive, default=128)
@click.option("--learning-rate", type=float, default=0.1)
@click.option("--momentum", type=float, default=0.9)
@click.option("--weight-decay", type=float, default=5e-4)
@errors_as_messages()
def cifar100(folder, methods, seeds, part, prepare, data, teacher, **options):
    """CIFAR-100, a ResNet of 56 layers and smaller ones."""
    methods = list(methods or Images.methods)
    options["views"] = options["views"] or options["epochs"]
    options["losses"] = arguments.CIFAR_ARGUMENTS
    students = Images(folder, data, teacher, options)
    _run(students, folder, methods, seeds, part, prepare)


@main.command()
@_study_options
@click.option("--data-dir", type=_path(exists=True), help="Penn Treebank's.")
@click.option("--vocabulary", type=_positive, default=10_000)
@click.option("--tokens", type=_positive, help="To train on. [default: all]")
@click.option("--teacher-units", type=_positive, default=650)
@click.option("--teacher-layers", type=_positive, default=2)
@click.option("--teacher-dropout", type=float, default=0.5)
@click.option("--teacher-epochs", type=_positive, default=39)
@click.option("--teacher-learning-rate", type=float, default=20.0)
@click.option("--student-units", type=_positive, default=200)
@click.option("--student-layers", type=_positive, default=2)
@click.option("--student-dropout", type=float, default=0.2)
@click.option("--epochs", type=_positive, default=13)
@click.option("--learning-rate", type=float, default=20.0)
@click.option("--clip-norm", type=float, default=0.25, help="Global norm.")
@click.option("--batch-size", type=_positive, default=20)
@click.option("--time-steps", type=_positive, default=35)
@errors_as_messages()
def ptb(folder, methods, seeds, part, prepare, data_dir, **options):
    """Penn Treebank, an LSTM and smaller ones."""
    corpus = text.load(
        data_dir, False, options["tokens"], options["vocabulary"]
    )
    methods = list(methods or Texts.methods)
    options["losses"] = arguments.SGD_TEXT_ARGUMENTS
    students = Texts(folder, corpus, options)
    _run(students, folder, methods, seeds, part, prepare)


def _run(students, folder, methods, seeds, part, prepare):
    """Trains what is missing, all or a part; at the end, the report."""
    students.check(methods)
    about = {
        "metric": students.metric,
        "higher_is_better": students.higher_is_better,
        "study": students.study,
    }
    # Refuses another study's folder, in which other arrays are shared.
    runs = Runs(folder / "attribution", about)
    if prepare:
        students.prepare(methods)
    elif part is None:
        found = kd.attribute(students, seeds, methods, folder / "attribution")
        click.echo(f"\n{found}\n")
        attribution.save(found, folder, "attribution")
        files.write_json(folder / "study.json", _rows(found, students))
    else:
        number, of = part
        each = [(method, s) for s in range(seeds) for method in methods]
        _train_part(students, runs, each[number - 1 :: of])


def _train_part(students, runs, part):
    """Trains those of some (method, seed) that are missing."""
    for method, seed in part:
        if (method, seed) in runs.finished:
            continue
        began = time.perf_counter()
        results = students(method, seed)
        score = results[students.metric]
        seconds = round(time.perf_counter() - began, 2)
        runs.add(method, seed, score, seconds, results)
        click.echo(f"{method}, seed {seed}: {score:.4f} in {seconds} s")


def _rows(found, students):
    """A study for `tools/study_tables.py`: the scores of every seed."""
    rows = {
        method: {
            students.heading: [
                round(students.scale * score, 4) for score in scores.values()
            ]
        }
        for method, scores in found.scores.items()
    }
    seeds = max(map(len, found.scores.values()))
    return {"seeds": seeds, "gain": students.heading, "rows": rows}


# -- helpers -------------------------------------------------------------------


def _check_batch_size(batch_size, count):
    """Refuses batches that half of the images don't fill."""
    if batch_size > count // 2:
        raise ValueError(
            "Half of the images must fill a batch. Received: --batch-size "
            f"{batch_size} for {count} images. Lower it."
        )


def _check_backend():
    """Refuses backends that compile no program of an epoch."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            "An epoch is one program on JAX alone. Received: KERAS_BACKEND="
            f"{keras.backend.backend()}. Leave it out, or set it to jax."
        )


@contextlib.contextmanager
def _dtype_policy(name):
    """Layers are made with a dtype policy, and later ones as before."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _statistics(method, settings):
    """Whether a method's loss reads what the teacher says of an example."""
    chosen = arguments.settings_of(method, settings)
    return bool(make_loss(method, chosen).statistics)


def _bins_for(method):
    """No histogram of w where it is 1 for every example."""
    return False if method == PLAIN else None


def _append(history, logs, distiller):
    """Adds an epoch to a history, with its histogram of w."""
    for name, value in logs.items():
        history.setdefault(name, []).append(value)
    scale = distiller.gradient_scales.get("all")
    if scale is not None:
        counts = np.asarray(scale.summary()["histogram"], "float64")
        history.setdefault("counts", []).append(np.round(counts, 3).tolist())


def _histogram(history):
    """What `kd.attribute` knows as the histogram of w, out of a history."""
    counts = history.pop("counts", None)
    if not counts:
        return {}
    edges = kd.metrics.bin_edges().tolist()
    return {"gradient_scale": {"edges": edges, "counts": counts}}


def _digest(arrays):
    """What tells one set of arrays from another."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


def _divisor(count, largest):
    """The largest divisor of a number that is not above another."""
    return next(n for n in range(min(count, largest), 0, -1) if count % n == 0)


if __name__ == "__main__":
    main()
