"""The full-size studies on one GPU, in minutes: JAX, with data in its memory.

    python recipes/one_gpu.py pack cifar100.npz --data-dir tensorflow_datasets
    python recipes/one_gpu.py cifar100 runs/c100 --data cifar100.npz \
        --teacher resnet56.keras
    python recipes/one_gpu.py ptb runs/ptb --data-dir ptb

Only the first needs TensorFlow. Every student is trained by the Distiller's own
step, of which an epoch is one compiled program, and the teacher of images runs
once over the views that all students see. A killed study resumes after the last
epoch of each student. Small networks leave a GPU idle, so several processes can
share a study's students: `--part 1/4` to `--part 4/4`, after `--prepare`. The
same command without `--part` then makes the report.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import functools
import pathlib
import time

import click
import keras
import numpy as np
from data import text
from study import methods as arguments
from study.gpu_images import Images
from study.gpu_texts import Texts
from study.messages import errors_as_messages
from study.run_folder import save_report

import keras_kd as kd
from keras_kd import files
from keras_kd.attribution.runs import Runs

_positive = click.IntRange(min=1)
_share = click.FloatRange(0, 1)
_rate = click.FloatRange(min=0, min_open=True)
_path = functools.partial(click.Path, path_type=pathlib.Path)


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
@click.option("--learning-rate", type=_rate, default=0.1)
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
@click.option("--vocabulary", type=click.IntRange(min=2), default=10_000)
@click.option("--tokens", type=_positive, help="To train on. [default: all]")
@click.option("--teacher-units", type=_positive, default=650)
@click.option("--teacher-layers", type=_positive, default=2)
@click.option("--teacher-dropout", type=_share, default=0.5)
@click.option("--teacher-epochs", type=_positive, default=39)
@click.option("--teacher-learning-rate", type=_rate, default=20.0)
@click.option("--student-units", type=_positive, default=200)
@click.option("--student-layers", type=_positive, default=2)
@click.option("--student-dropout", type=_share, default=0.2)
@click.option("--epochs", type=_positive, default=13)
@click.option("--learning-rate", type=_rate, default=20.0)
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
    if prepare and part is not None:
        raise ValueError(
            "What all parts share is made once. Received: --prepare and "
            f"--part {part[0]}/{part[1]}. Give --prepare first, and then each "
            "--part without it."
        )
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
        save_report(found, folder, "attribution")
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


def _check_backend():
    """Refuses backends that compile no program of an epoch."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            "An epoch is one program on JAX alone. Received: KERAS_BACKEND="
            f"{keras.backend.backend()}. Leave it out, or set it to jax."
        )


if __name__ == "__main__":
    main()
