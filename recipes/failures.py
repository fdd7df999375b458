"""Makes distillation fail on purpose, and asks `diagnose` for the cause.

    python recipes/failures.py --seeds 3 --first-seed 3

Teachers with something wrong with them, teachers that are used wrongly and
healthy ones, of several kinds: perceptrons with and without normalisation, a
convolutional network, an LSTM and a small transformer, on made-up data and on
scikit-learn's digits; with --data-dir and --teacher, a trained ResNet-56 on
CIFAR-100. The table says for each case what `diagnose` said first of the
student's training data. A run resumes where it was stopped.

The rules' thresholds were set on seeds 0 to 2 of the kinds that `TUNED_ON`
names; report others.
"""

import study.quiet  # noqa: F401

# isort: split
import collections
import dataclasses
import functools
import statistics

import click
import keras
import networks
import numpy as np
import sklearn.datasets
import tensorflow as tf
from data import images
from keras import layers, ops
from study.messages import errors_as_messages
from study.options import UserPath, given_options, log_dir, refuse_unused
from study.run_folder import load_model, open_run

import keras_kd as kd
from keras_kd import files
from keras_kd.reports import tables

CLASSES, SUPERCLASSES, FEATURES = 30, 6, 40
TRAIN, TEST = 3000, 2000
TOPICS, WORDS, LENGTH = 12, 200, 16
NOISE_SHARE = 0.4
# Of CIFAR-100 so many images are diagnosed.
CIFAR_IMAGES = 2000
TUNED_ON = ("perceptron", "cnn", "lstm")


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs and labels to train with and to test on, as NumPy arrays."""

    x: object
    labels: object
    test_x: object
    test_labels: object
    classes: int

    def batches(self):
        """The training data as `diagnose` takes them."""
        data = tf.data.Dataset.from_tensor_slices((self.x, self.labels))
        return data.batch(128)

    def with_inputs(self, change):
        """The same data with other training inputs."""
        return dataclasses.replace(self, x=change(self.x))

    def with_labels(self, labels):
        """The same data with other training labels."""
        return dataclasses.replace(self, labels=labels.astype("int32"))


# -- data ----------------------------------------------------------------------


def synthetic(seed, noise=0.16, other_classes=False):
    """Gaussian inputs around prototypes that superclasses share in part.

    Args:
        seed: integer.
        noise: median deviation from the prototypes.
        other_classes: whether to draw classes that no teacher has seen.

    Returns:
        `Data`; some inputs are much further from their prototype than others.
    """
    random = np.random.default_rng(seed)
    count = 2 * CLASSES + SUPERCLASSES
    directions = random.normal(size=(count, FEATURES))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    own = directions[CLASSES : 2 * CLASSES] if other_classes else directions
    shared = directions[2 * CLASSES :]
    of_class = np.arange(CLASSES) % SUPERCLASSES
    prototypes = np.sqrt(0.6) * shared[of_class] + np.sqrt(0.4) * own[:CLASSES]

    def draw(examples):
        labels = random.integers(0, CLASSES, examples)
        deviations = random.normal(size=(examples, FEATURES))
        scale = noise * np.exp(0.4 * random.normal(size=(examples, 1)))
        x = 3 * (prototypes[labels] + scale * deviations)
        return x.astype("float32"), labels.astype("int32")

    return Data(*draw(TRAIN), *draw(TEST), CLASSES)


def digits(seed, classes=range(10)):
    """Scikit-learn's digits in [-1, 1], split differently for each seed."""
    x, labels = sklearn.datasets.load_digits(return_X_y=True)
    used = np.isin(labels, classes)
    x, labels = x[used].astype("float32") / 8 - 1, labels[used] - min(classes)
    order = np.random.default_rng(seed).permutation(len(x))
    x, labels = x[order], labels[order].astype("int32")
    part = len(x) * 2 // 3
    return Data(x[:part], labels[:part], x[part:], labels[part:], len(classes))


def coloured_digits(seed, classes=range(10)):
    """The digits as pixels in [0, 1], each class in a colour of its own."""
    data = digits(seed, classes)
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(7).uniform(0.3, 1, (10, 3))[min(classes) :]

    def colour(x, labels):
        pixels = (x.reshape(-1, 8, 8, 1) + 1) / 2
        tint = colours[labels] + 0.15 * random.normal(size=(len(x), 3))
        return (pixels * np.clip(tint, 0, 1)[:, None, None]).astype("float32")

    return dataclasses.replace(
        data,
        x=colour(data.x, data.labels),
        test_x=colour(data.test_x, data.test_labels),
    )


def topics(seed, other_classes=False):
    """Texts of 16 words, of which the topic makes some likelier than others.

    Words are integers from 1; the first ones are frequent in every topic.
    """
    random = np.random.default_rng(seed)
    common = 1 / np.arange(3, WORDS + 3)
    weights = common * np.exp(1.2 * random.normal(size=(2 * TOPICS, WORDS)))
    weights = weights[TOPICS:] if other_classes else weights[:TOPICS]
    totals = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)

    def draw(examples):
        labels = random.integers(0, TOPICS, examples)
        drawn = random.random((examples, LENGTH))
        words = (drawn[..., None] > totals[labels][:, None]).sum(-1) + 1
        return np.minimum(words, WORDS).astype("int32"), labels.astype("int32")

    return Data(*draw(TRAIN), *draw(TEST), TOPICS)


# -- models --------------------------------------------------------------------


def mlp(data, units, dropout=0.0, normalised=False):
    """A classifier with one hidden layer."""
    inputs = keras.Input(data.x.shape[1:])
    x = layers.Dense(units, None if normalised else "relu")(inputs)
    if normalised:
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(data.classes)(x))


def cnn(data, units, dropout=0.0):
    """Two convolutions with batch normalisation."""
    inputs = x = keras.Input(data.x.shape[1:])
    for strides in (1, 2):
        x = layers.Conv2D(units, 3, strides, "same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(data.classes)(x))


def lstm(data, units, dropout=0.0):
    """Word vectors and an LSTM."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS + 1, units)(inputs)
    x = layers.Dropout(dropout)(layers.LSTM(units)(x))
    return keras.Model(inputs, layers.Dense(data.classes)(x))


def transformer(data, units, dropout=0.0):
    """Word vectors and a block of attention and a perceptron."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS + 1, units)(inputs)
    seen = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, units // 2)(seen, seen)
    hidden = layers.Dense(2 * units, "gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(units)(hidden)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(data.classes)(x))


def train(model, x, labels, epochs, smoothing=0.0):
    """Trains a classifier on labels, smoothed or not."""
    classes = model.outputs[0].shape[-1]
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=smoothing
    )
    model.compile(keras.optimizers.Adam(2e-3), loss)
    one_hot = keras.utils.to_categorical(labels, classes)
    model.fit(x, one_hot, batch_size=128, epochs=epochs, verbose=0)
    return model


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of teacher and its data.

    Attributes:
        data: function of a seed; `Data`.
        others: function of a seed; data of classes that the teacher of that
            seed has not seen, as many.
        harder: function of a seed; data that are harder than the teacher's.
        model: function of data, units and dropout.
        units: of a healthy teacher.
        epochs: of a healthy teacher.
        known: data to train on if `others` has other classes; a function of a
            seed, `data` by default.
        trained: a teacher that is trained already.
        also: findings that are true of its healthy teacher.
    """

    data: object
    others: object
    harder: object
    model: object
    units: int
    epochs: int
    known: object = None
    trained: object = None
    also: tuple = ()

    def teacher(self, seed):
        """A healthy teacher: dropout, and stopped before it memorises."""
        return self.trained or _healthy(self, seed)

    def new(self, data, dropout=0.3):
        """A teacher that has not been trained."""
        return self.model(data, self.units, dropout)


# The cases of one kind and seed follow each other and share it.
@functools.lru_cache(maxsize=1)
def _healthy(kind, seed):
    keras.utils.set_random_seed(seed)
    data = kind.data(seed)
    return train(kind.new(data), data.x, data.labels, kind.epochs)


def _harder_synthetic(seed):
    return synthetic(seed, noise=0.24)


def _harder_images(make, seed, noise=1 / 3):
    """A third of the contrast is gone, and pixels are noisy."""
    random = np.random.default_rng(seed)

    def weaken(x):
        middle, deviation = x.mean(), noise * x.std()
        weak = middle + 0.67 * (x - middle)
        noisy = weak + deviation * random.normal(size=x.shape)
        return noisy.astype("float32")

    return make(seed).with_inputs(weaken)


def _harder_topics(seed):
    """A third of the words are of no topic."""
    random = np.random.default_rng(seed)

    def replace(words):
        other = random.integers(1, WORDS + 1, words.shape)
        is_other = random.random(words.shape) < 1 / 3
        return np.where(is_other, other, words).astype("int32")

    return topics(seed).with_inputs(replace)


_OTHER_SYNTHETIC = functools.partial(synthetic, other_classes=True)
_OTHER_TOPICS = functools.partial(topics, other_classes=True)


def _low(make):
    return functools.partial(make, classes=range(5))


def _high(make):
    return functools.partial(make, classes=range(5, 10))


KINDS = {
    "perceptron": Kind(
        synthetic, _OTHER_SYNTHETIC, _harder_synthetic, mlp, 256, 15
    ),
    "perceptron, normalised": Kind(
        synthetic,
        _OTHER_SYNTHETIC,
        _harder_synthetic,
        functools.partial(mlp, normalised=True),
        256,
        8,
    ),
    "perceptron, digits": Kind(
        digits,
        _high(digits),
        functools.partial(_harder_images, digits),
        mlp,
        128,
        8,
        known=_low(digits),
    ),
    "cnn": Kind(
        coloured_digits,
        _high(coloured_digits),
        functools.partial(_harder_images, coloured_digits),
        cnn,
        16,
        6,
        known=_low(coloured_digits),
    ),
    "lstm": Kind(topics, _OTHER_TOPICS, _harder_topics, lstm, 48, 7),
    "transformer": Kind(
        topics, _OTHER_TOPICS, _harder_topics, transformer, 32, 5
    ),
}


def resnet56(data_dir, path):
    """The kind of a trained CIFAR-100 network, on images it has not seen."""
    teacher = load_model(path)
    given = images.cifar100(data_dir)
    pixels, classes = given.test

    def data(seed, labels=classes):
        order = np.random.default_rng(seed).permutation(len(pixels))
        parts = np.split(order[: 2 * CIFAR_IMAGES], 2)
        arrays = [
            (pixels[part].astype("float32"), labels[part]) for part in parts
        ]
        return Data(*arrays[0], *arrays[1], 100)

    def new(data, units, dropout=0.0):
        mean, deviation = images.CIFAR100_MEAN, images.CIFAR100_DEVIATION
        return networks.cifar_resnet(56, (32, 32, 3), 100, mean, deviation)

    return Kind(
        data,
        # The 20 superclasses.
        functools.partial(data, labels=given.superclasses[classes]),
        # With a third it is right in 3 % of the images, and not in use.
        functools.partial(_harder_images, data, noise=1 / 20),
        new,
        units=0,
        epochs=0,
        trained=teacher,
        # Right in 73 % of the test images and sure of 87 %.
        also=("over_confident",),
    )


# -- teachers with something wrong with them -----------------------------------


def with_noisy_tail(teacher, seed, kept=5, depth=3.0):
    """A teacher whose logits below the `kept` largest tell nothing.

    They become a fast wave of the inputs, up to 2 * `depth` below the last
    logit that is kept.
    """
    random = np.random.default_rng(seed)
    shape = teacher.inputs[0].shape[-1], teacher.outputs[0].shape[-1]
    waves = (20 * random.normal(size=shape)).astype("float32")

    class NoisyTail(layers.Layer):
        def call(self, x, logits):
            last = ops.top_k(logits, kept)[0][..., -1:]
            noise = depth * (ops.sin(ops.matmul(x, waves)) - 1)
            return ops.where(logits >= last, logits, last + noise)

    inputs = keras.Input(shape[:1])
    return keras.Model(inputs, NoisyTail()(inputs, teacher(inputs)))


def label_smoothing(kind, seed):
    """A teacher trained with label smoothing of 0.1."""
    data = kind.data(seed)
    return train(kind.new(data), data.x, data.labels, 40, 0.1), data


def over_confident(kind, seed):
    """A large teacher without regularisation that has memorised its data."""
    data = kind.data(seed)
    return train(kind.model(data, 512), data.x, data.labels, 60), data


def noisy_labels(kind, seed):
    """Labels of which 40 % were drawn again at random."""
    data = kind.data(seed)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, data.classes, len(data.labels))
    is_noisy = random.random(len(data.labels)) < NOISE_SHARE
    data = data.with_labels(np.where(is_noisy, drawn, data.labels))
    return train(kind.new(data), data.x, data.labels, kind.epochs), data


def noisy_tail(kind, seed):
    """A healthy teacher with noise below its five largest logits."""
    return with_noisy_tail(kind.teacher(seed), seed), kind.data(seed)


def weak_teacher(kind, seed):
    """A teacher that saw one example in twenty."""
    data = kind.data(seed)
    few = slice(len(data.x) // 20)
    return train(kind.new(data, 0.0), data.x[few], data.labels[few], 8), data


# -- teachers that are used wrongly --------------------------------------------


def relabelled(change):
    """A healthy teacher and data with other labels."""

    def make(kind, seed):
        data = kind.data(seed)
        random = np.random.default_rng(seed + 100)
        labels = change(data.labels, data.classes, random)
        return kind.teacher(seed), data.with_labels(labels)

    return make


def other_inputs(change):
    """A healthy teacher and data with other inputs."""

    def make(kind, seed):
        def changed(x):
            return np.ascontiguousarray(change(x)).astype(x.dtype)

        return kind.teacher(seed), kind.data(seed).with_inputs(changed)

    return make


def _order(labels, classes, random):
    return random.permutation(classes)[labels]


def _shift(labels, classes, random):
    return (labels + 1) % classes


def _shuffle(labels, classes, random):
    return random.permutation(labels)


def _one_row(labels, classes, random):
    return np.roll(labels, 1)


def other_classes(kind, seed):
    """A teacher of other classes than those of the data, but as many."""
    if kind.known is None:
        return kind.teacher(seed), kind.others(seed)
    known = kind.known(seed)
    teacher = train(kind.new(known), known.x, known.labels, kind.epochs)
    return teacher, kind.others(seed)


def untrained(kind, seed):
    """A teacher whose weights were not loaded."""
    data = kind.data(seed)
    return kind.new(data), data


def untrained_head(kind, seed):
    """A teacher whose last layer was not loaded."""
    data = kind.data(seed)
    new, trained = kind.new(data), kind.teacher(seed)
    new.set_weights(trained.get_weights())
    head = kind.new(data).layers[-1]
    new.layers[-1].set_weights(head.get_weights())
    return new, data


# -- healthy ones --------------------------------------------------------------


def healthy(kind, seed):
    """A healthy teacher on its training data."""
    return kind.teacher(seed), kind.data(seed)


def healthy_held_out(kind, seed):
    """A healthy teacher on data that it has not seen."""
    data = kind.data(seed)
    return kind.teacher(seed), dataclasses.replace(
        data, x=data.test_x, labels=data.test_labels
    )


def healthy_harder(kind, seed):
    """A healthy teacher on data that are harder than its own, or disturbed."""
    return kind.teacher(seed), kind.harder(seed)


# -- cases ---------------------------------------------------------------------

_CIFAR = "ResNet-56, CIFAR-100"
_IMAGES = ("cnn", _CIFAR)
_FLOATS = (
    "perceptron",
    "perceptron, normalised",
    "perceptron, digits",
    *_IMAGES,
)
_TEXT = ("lstm", "transformer")
_SYNTHETIC = ("perceptron", "perceptron, normalised")


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that goes wrong, or nothing.

    Attributes:
        make: function of a `Kind` and a seed that returns a teacher and
            `Data`.
        cause: the finding that names it, or `None` for a healthy teacher.
        kinds: names of the kinds it is made of; `None` for all.
        temperature: of the loss.
        also: findings that are true as well.
    """

    make: object
    cause: str | None
    kinds: tuple | None = None
    temperature: float = 2.0
    also: tuple = ()


CASES = {
    "label smoothing": Case(
        label_smoothing, "label_smoothed_teacher", _SYNTHETIC
    ),
    "over-confident": Case(over_confident, "over_confident", _SYNTHETIC),
    "temperature 50": Case(healthy, "temperature_too_high", None, 50.0),
    "noisy labels": Case(noisy_labels, "noisy_labels", _SYNTHETIC),
    "noisy tail": Case(noisy_tail, "noisy_tail", _SYNTHETIC),
    "weak teacher": Case(weak_teacher, "weak_teacher", _SYNTHETIC),
    "class order": Case(relabelled(_order), "class_order"),
    "labels from 1": Case(relabelled(_shift), "class_order"),
    "rows shuffled": Case(relabelled(_shuffle), "misaligned_labels"),
    "labels one row late": Case(relabelled(_one_row), "misaligned_labels"),
    "inputs times 255": Case(
        other_inputs(lambda x: 255 * x), "wrong_inputs", _FLOATS
    ),
    "inputs over 255": Case(
        other_inputs(lambda x: x / 255), "wrong_inputs", _FLOATS
    ),
    "scaled and shifted twice": Case(
        other_inputs(lambda x: x / 8 - 1), "wrong_inputs", _FLOATS
    ),
    "another preprocessing": Case(
        other_inputs(
            lambda x: keras.applications.imagenet_utils.preprocess_input(
                255 * x / x.max(), "channels_last", mode="caffe"
            )
        ),
        "wrong_inputs",
        _IMAGES,
    ),
    "colour order": Case(
        other_inputs(lambda x: x[..., ::-1]), "wrong_inputs", _IMAGES
    ),
    "upside down": Case(
        other_inputs(lambda x: x[:, ::-1]), "wrong_inputs", _IMAGES
    ),
    "turned by 90 degrees": Case(
        other_inputs(lambda x: np.rot90(x, 1, (1, 2))), "wrong_inputs", _IMAGES
    ),
    "other pixel order": Case(
        other_inputs(
            lambda x: x.reshape(-1, 8, 8).swapaxes(1, 2).reshape(x.shape)
        ),
        "wrong_inputs",
        ("perceptron, digits",),
    ),
    "token ids one too high": Case(
        other_inputs(lambda x: np.minimum(x + 1, WORDS)), "wrong_inputs", _TEXT
    ),
    "other classes": Case(other_classes, "other_classes"),
    "untrained": Case(untrained, "untrained_teacher"),
    "head not loaded": Case(untrained_head, "untrained_teacher"),
    "healthy": Case(healthy, None),
    "healthy, held-out data": Case(healthy_held_out, None),
    "healthy, harder data": Case(
        healthy_harder, None, also=("over_confident", "weak_teacher")
    ),
}


def named_cause(diagnosis):
    """The code of the first problem, or `None`."""
    problems = diagnosis.problems
    return problems[0].code if problems else None


def student_accuracy(kind, seed, data, teacher=None, temperature=1.0):
    """Test accuracy of a student of a sixteenth of the units, plain or KD."""
    keras.utils.set_random_seed(seed)
    student = kind.model(data, max(kind.units // 16, 8))
    distiller = kd.Distiller(student, teacher, gradient_scale=False)
    loss = kd.LabelSmoothing(weight=0.0)
    if teacher is not None:
        loss = kd.KD(weight=0.7, temperature=temperature)
    distiller.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    distiller.fit(data.x, data.labels, 128, epochs=30, verbose=0)
    scores = distiller.evaluate(
        data.test_x, data.test_labels, 500, verbose=0, return_dict=True
    )
    return scores["accuracy"]


# -- the study -----------------------------------------------------------------


@click.command(context_settings={"show_default": True})
@click.option("--seeds", type=click.IntRange(min=1), default=3)
@click.option("--first-seed", type=click.IntRange(min=0), default=3)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*KINDS, _CIFAR]),
    default=list(KINDS),
    show_default="all but the last",
    help="Kinds of teachers; may be given several times.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(CASES),
    default=list(CASES),
    show_default="all",
    help="What is done to them; may be given several times.",
)
@click.option(
    "--students", is_flag=True, help="Train a student with each, and without."
)
@click.option("--data-dir", type=UserPath(), help="Where TFDS keeps CIFAR-100.")
@click.option(
    "--teacher",
    type=UserPath(exists=True, dir_okay=False),
    help="A trained ResNet-56 from tools/import_cifar_teacher.py; adds the "
    f"kind {_CIFAR!r}.",
)
@log_dir
def main(seeds, first_seed, kinds, cases, students, data_dir, teacher, log_dir):
    """Prints what `diagnose` says, case by case, kind by kind, seed by seed."""
    with errors_as_messages():
        uses = {"data_dir": (teacher, "without --teacher")}
        refuse_unused({"data_dir": data_dir}, given_options(), uses)
        chosen = {name: KINDS[name] for name in kinds if name != _CIFAR}
        if teacher is not None:
            chosen[_CIFAR] = resnet56(data_dir, teacher)
        elif _CIFAR in kinds:
            raise ValueError(
                f"The kind {_CIFAR!r} is a trained network. Received: no "
                "--teacher. Make one with tools/import_cifar_teacher.py, or "
                "choose another --kind."
            )
        check_cases(cases, chosen)
        # Kinds, cases and seeds can be added to a folder.
        run = open_run("failures", {"students": students}, log_dir)
        names = [
            (case, kind, seed)
            for kind in chosen
            for seed in range(first_seed, first_seed + seeds)
            for case in cases
            if _is_made_of(CASES[case], kind)
        ]
        results = {}
        for case, kind, seed in names:
            name = f"{case}; {kind}; seed {seed}"
            make = functools.partial(
                result_of,
                CASES[case],
                chosen[kind],
                seed,
                students,
                run.folder / f"{name}.json",
            )
            # Results are of this teacher alone.
            run.train_once(name, make, teacher if kind == _CIFAR else None)
            results[case, kind, seed] = run.results[name]
            click.echo(f"  {_in_words(results[case, kind, seed])}")
        text = markdown_table(results, students) + "\n\n" + totals(results)
        click.echo("\n" + text)
        files.write_whole(run.folder / "table.md", text + "\n")


def check_cases(cases, kinds):
    """Refuses cases of which the user gave one that no kind has.

    Args:
        cases: names.
        kinds: names.

    Raises:
        ValueError: naming them.
    """
    missing = [
        name
        for name in cases
        if not any(_is_made_of(CASES[name], kind) for kind in kinds)
    ]
    if missing and "cases" in given_options():
        of = ", ".join(CASES[missing[0]].kinds)
        raise ValueError(
            f"A case is made of kinds that can have it. Received: --case "
            f"{missing[0]!r} with {', '.join(kinds)}. Choose --kind among "
            f"{of}, or leave the case out."
        )


def _is_made_of(case, kind):
    return case.kinds is None or kind in case.kinds


def result_of(case, kind, seed, students=False, path=None):
    """What `diagnose` says of a case, as JSON can hold it.

    Args:
        case: a `Case`.
        kind: a `Kind`.
        seed: integer.
        students: whether to train a student, with and without the teacher.
        path: where to write all that `diagnose` says, or `None`.

    Returns:
        A dict: "said", the codes of all problems; "first", the first of them;
        "right"; and "accuracies", of the students.
    """
    keras.utils.set_random_seed(seed)
    teacher, data = case.make(kind, seed)
    loss = kd.KD(weight=0.7, temperature=case.temperature)
    diagnosis = kd.diagnose(teacher, data.batches(), loss=loss)
    if path is not None:
        files.write_whole(path, diagnosis.to_json())
    first = named_cause(diagnosis)
    result = {
        "said": [each.code for each in diagnosis.problems],
        "first": first,
        "right": is_right(case, kind, first),
    }
    if students:
        result["accuracies"] = [
            student_accuracy(kind, seed, data),
            student_accuracy(kind, seed, data, teacher, case.temperature),
        ]
    return result


def is_right(case, kind, first):
    """Whether a finding names what is wrong, `None` for nothing."""
    if first == case.cause or first in case.also:
        return True
    return case.cause is None and first in kind.also


def _in_words(result):
    line = result["first"] or "no problem"
    line += "" if result["right"] else " (wrong)"
    if "accuracies" in result:
        plain, distilled = result["accuracies"]
        line += f"; student plain {plain:.1%}, KD {distilled:.1%}"
    return line


def markdown_table(results, students=False):
    """Cases, and how often their cause was named first.

    Args:
        results: dict by (case, kind, seed) of what `result_of` returns.
        students: whether students were trained.

    Returns:
        A table in Markdown.
    """
    rows = []
    for case in dict.fromkeys(case for case, *_ in results):
        of_case = {k: v for k, v in results.items() if k[0] == case}
        counts = collections.Counter(r["first"] for r in of_case.values())
        row = {
            "case": case,
            "said first": ", ".join(
                (f"`{code}`" if code else "no problem")
                + (f" ({count})" if len(counts) > 1 else "")
                for code, count in counts.most_common()
            ),
            "right, kinds tuned on": _share(of_case, tuned=True),
            "right, other kinds": _share(of_case, tuned=False),
        }
        if students:
            pairs = [r["accuracies"] for r in of_case.values()]
            for name, column in zip(
                ("student, plain", "student, KD"),
                zip(*pairs, strict=True),
                strict=True,
            ):
                row[name] = _spread(column)
        rows.append(row)
    return tables.markdown(rows)


def _share(results, tuned):
    rights = [
        result["right"]
        for (_, kind, _), result in results.items()
        if (kind in TUNED_ON) == tuned
    ]
    return f"{sum(rights)} of {len(rights)}" if rights else "-"


def totals(results):
    """How often the right cause came first, and who was accused, in words.

    Args:
        results: as for `markdown_table`.
    """
    lines = []
    for tuned, words in (
        (True, "On the kinds that thresholds were set on"),
        (False, "On the other kinds"),
    ):
        chosen = {
            k: r for k, r in results.items() if (k[1] in TUNED_ON) == tuned
        }
        if not chosen:
            continue
        ill = [r for k, r in chosen.items() if CASES[k[0]].cause]
        well = [r for k, r in chosen.items() if not CASES[k[0]].cause]
        lines.append(
            f"{words}: right cause first in {sum(r['right'] for r in ill)} of "
            f"{len(ill)}; healthy teachers accused in "
            f"{sum(not r['right'] for r in well)} of {len(well)}."
        )
    return "\n".join(lines)


def _spread(shares):
    values = [100 * share for share in shares]
    if len(values) < 2:
        return f"{values[0]:.1f} %"
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.1f} ± {deviation:.1f} %"


if __name__ == "__main__":
    main()
