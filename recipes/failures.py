"""Makes distillation fail on purpose, and asks `diagnose` for the cause.

    python recipes/failures.py --seeds 8 --first-seed 3

Six teachers with something wrong with them and two healthy ones, on synthetic
data (30 classes in 6 superclasses) and on scikit-learn's digits. Per case and
seed: what `diagnose` says of the student's training data, and the test
accuracy of the same student trained plainly and with KD. The rules'
thresholds were set on seeds 0 to 2; report others.
"""

import collections
import dataclasses
import os
import statistics

import click

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASSES, SUPERCLASSES, FEATURES = 30, 6, 40
TRAIN, TEST = 3000, 2000
NOISE_SHARE = 0.4


@dataclasses.dataclass
class Data:
    """Inputs and labels to train with and to test on, as NumPy arrays."""

    x: object
    labels: object
    test_x: object
    test_labels: object
    classes: int

    def batches(self):
        """The training data as `diagnose` takes them."""
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((self.x, self.labels))
        return data.batch(128)


# -- data ----------------------------------------------------------------------


def synthetic(seed, correlation=0.6):
    """Gaussian inputs around prototypes that superclasses share in part.

    Args:
        seed: integer.
        correlation: of the prototypes of a superclass, in [0, 1].

    Returns:
        `Data`; some inputs are much further from their prototype than others.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    directions = random.normal(size=(CLASSES + SUPERCLASSES, FEATURES))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    own, shared = directions[:CLASSES], directions[CLASSES:]
    of_class = np.arange(CLASSES) % SUPERCLASSES
    prototypes = (
        np.sqrt(correlation) * shared[of_class] + np.sqrt(1 - correlation) * own
    )

    def draw(examples):
        labels = random.integers(0, CLASSES, examples)
        noise = random.normal(size=(examples, FEATURES))
        scale = 0.16 * np.exp(0.4 * random.normal(size=(examples, 1)))
        x = 3 * (prototypes[labels] + scale * noise)
        return x.astype("float32"), labels.astype("int32")

    return Data(*draw(TRAIN), *draw(TEST), CLASSES)


def digits(seed):
    """Scikit-learn's digits, split differently for each seed."""
    import numpy as np
    import sklearn.datasets

    x, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, labels = x[order].astype("float32") / 8 - 1, labels[order]
    labels = labels.astype("int32")
    return Data(x[:1200], labels[:1200], x[1200:], labels[1200:], 10)


# -- models --------------------------------------------------------------------


def mlp(data, units, dropout=0.0):
    """A classifier with one hidden layer."""
    import keras

    inputs = keras.Input(data.x.shape[1:])
    x = keras.layers.Dense(units, "relu")(inputs)
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(data.classes)(x))


def train(model, x, labels, epochs, smoothing=0.0):
    """Trains a classifier on labels, smoothed or not."""
    import keras

    classes = model.outputs[0].shape[-1]
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=smoothing
    )
    model.compile(keras.optimizers.Adam(2e-3), loss)
    one_hot = keras.utils.to_categorical(labels, classes)
    model.fit(x, one_hot, batch_size=128, epochs=epochs, verbose=0)
    return model


def with_noisy_tail(teacher, seed, kept=5, depth=3.0):
    """A teacher whose logits below the `kept` largest tell nothing.

    They become a fast wave of the inputs, up to 2 * `depth` below the last
    logit that is kept.
    """
    import keras
    import numpy as np
    from keras import ops

    random = np.random.default_rng(seed)
    shape = teacher.inputs[0].shape[-1], teacher.outputs[0].shape[-1]
    waves = (20 * random.normal(size=shape)).astype("float32")

    class NoisyTail(keras.layers.Layer):
        def call(self, x, logits):
            last = ops.top_k(logits, kept)[0][..., -1:]
            noise = depth * (ops.sin(ops.matmul(x, waves)) - 1)
            return ops.where(logits >= last, logits, last + noise)

    inputs = keras.Input(shape[:1])
    return keras.Model(inputs, NoisyTail()(inputs, teacher(inputs)))


# -- cases ---------------------------------------------------------------------


def healthy(seed, data=None):
    """A teacher with dropout, stopped before it has memorised its data."""
    data = data or synthetic(seed)
    teacher = train(mlp(data, 256, 0.3), data.x, data.labels, 15)
    return teacher, data, 2.0


def healthy_digits(seed):
    """The same on digits."""
    data = digits(seed)
    teacher = train(mlp(data, 128, 0.3), data.x, data.labels, 8)
    return teacher, data, 2.0


def label_smoothing(seed):
    """A teacher trained with label smoothing of 0.1."""
    data = synthetic(seed)
    teacher = mlp(data, 256, 0.3)
    return train(teacher, data.x, data.labels, 40, 0.1), data, 2.0


def over_confident(seed):
    """A large teacher without regularisation that has memorised its data."""
    data = synthetic(seed)
    return train(mlp(data, 512), data.x, data.labels, 60), data, 2.0


def temperature_too_high(seed):
    """A healthy teacher at temperature 50."""
    return *healthy(seed)[:2], 50.0


def noisy_labels(seed):
    """Labels of which 40 % were drawn again at random."""
    import numpy as np

    data = synthetic(seed)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, data.classes, len(data.labels))
    is_noisy = random.random(len(data.labels)) < NOISE_SHARE
    data.labels = np.where(is_noisy, drawn, data.labels).astype("int32")
    teacher = train(mlp(data, 256, 0.3), data.x, data.labels, 15)
    return teacher, data, 2.0


def noisy_tail(seed):
    """A healthy teacher with noise below its five largest logits."""
    teacher, data, temperature = healthy(seed)
    return with_noisy_tail(teacher, seed), data, temperature


def weak_teacher(seed):
    """A teacher that saw one example in twenty."""
    data = synthetic(seed)
    few = slice(TRAIN // 20)
    teacher = train(mlp(data, 256), data.x[few], data.labels[few], 8)
    return teacher, data, 2.0


# Each case with the finding that names its cause.
CASES = {
    "label smoothing": (label_smoothing, "label_smoothed_teacher"),
    "over-confident": (over_confident, "over_confident"),
    "temperature 50": (temperature_too_high, "temperature_too_high"),
    "noisy labels": (noisy_labels, "noisy_labels"),
    "noisy tail": (noisy_tail, "noisy_tail"),
    "weak teacher": (weak_teacher, "weak_teacher"),
    "healthy, synthetic": (healthy, None),
    "healthy, digits": (healthy_digits, None),
}


def named_cause(teacher, data, temperature):
    """The code of the first problem that `diagnose` finds, or `None`."""
    import keras_kd as kd
    from keras_kd.diagnosis import diagnose

    loss = kd.KD(weight=0.7, temperature=temperature)
    problems = diagnose(teacher, data.batches(), loss=loss).problems
    return problems[0].code if problems else None


def student_accuracy(seed, data, teacher=None, temperature=1.0, epochs=30):
    """Test accuracy of a narrow student, plain or distilled."""
    import keras

    import keras_kd as kd

    keras.utils.set_random_seed(seed)
    distiller = kd.Distiller(mlp(data, 16), teacher, gradient_scale=False)
    loss = kd.LabelSmoothing(weight=0.0)
    if teacher is not None:
        loss = kd.KD(weight=0.7, temperature=temperature)
    distiller.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    distiller.fit(data.x, data.labels, 128, epochs, verbose=0)
    scores = distiller.evaluate(
        data.test_x, data.test_labels, 500, verbose=0, return_dict=True
    )
    return scores["accuracy"]


# -- the study -----------------------------------------------------------------


@click.command(context_settings={"show_default": True})
@click.option("--seeds", type=click.IntRange(min=1), default=3)
@click.option("--first-seed", type=click.IntRange(min=0), default=3)
@click.option("--students/--no-students", default=True)
@click.option(
    "--case", "names", multiple=True, type=click.Choice(CASES), default=CASES
)
def main(seeds, first_seed, students, names):
    """Prints what `diagnose` says, case by case and seed by seed."""
    import keras

    summary = {}
    for name in names:
        make, cause = CASES[name]
        said, accuracies = [], []
        for seed in range(first_seed, first_seed + seeds):
            keras.utils.set_random_seed(seed)
            teacher, data, temperature = make(seed)
            said.append(named_cause(teacher, data, temperature))
            line = f"{name}, seed {seed}: {said[-1] or 'no problem'}"
            if students:
                pair = (
                    student_accuracy(seed, data),
                    student_accuracy(seed, data, teacher, temperature),
                )
                accuracies.append(pair)
                line += f"; student plain {pair[0]:.1%}, KD {pair[1]:.1%}"
            click.echo(line)
        summary[name] = (said, said.count(cause), accuracies)
    click.echo("\n" + markdown_table(summary))


def markdown_table(summary):
    """Cases, how often their cause was named first, and the students.

    Args:
        summary: dict by case of (what was said, how often that was right,
            pairs of accuracies).

    Returns:
        A table in Markdown.
    """
    lines = [
        "| case | `diagnose` says | right | student, plain | student, KD |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (said, right, pairs) in summary.items():
        counts = collections.Counter(said).most_common()
        words = ", ".join(
            f"`{code}`" if code else "no problem" for code, _ in counts
        )
        plain, kd = (
            (_spread(column) for column in zip(*pairs, strict=True))
            if pairs
            else ("-", "-")
        )
        lines.append(
            f"| {name} | {words} | {right} of {len(said)} | {plain} | {kd} |"
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
