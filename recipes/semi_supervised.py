"""What are images without labels worth, where a teacher looks at them?

Scikit-learn's digits, of which one in ten keeps its label. A student is trained
on these alone, and by `KD` on all images: labelled ones with both terms, the
others (class id -1) with the teacher's alone.

    python recipes/semi_supervised.py

takes a few minutes and needs no download. Two teachers
are compared: one that was trained with all labels, as when a model is at hand
but its labels are not; and one that had the same few labels as the student.
Within a seed all students have the same images, labels and initial weights, so
gains are paired.
"""

import study.quiet  # noqa: F401

# isort: split
import click
import keras
import numpy as np
import sklearn.datasets
import sklearn.model_selection
from keras import layers
from study.messages import errors_as_messages
from study.table import print_table

import keras_kd as kd
from keras_kd.attribution import paired_interval

UNLABELLED = -1
CLASSES = 10
_BATCH = 64


@click.command()
@click.option(
    "--seeds", default=5, show_default=True, type=click.IntRange(min=2)
)
@click.option("--labels", "share", default=0.1, show_default=True)
@click.option(
    "--epochs", default=60, show_default=True, type=click.IntRange(min=1)
)
@errors_as_messages()
def main(seeds, share, epochs):
    """Students of few labels, with and without a teacher."""
    scores = {}
    with click.progressbar(range(seeds), label="seeds") as bar:
        for seed in bar:
            for name, accuracy in one_seed(seed, share, epochs).items():
                scores.setdefault(name, []).append(accuracy)
    report(scores)


def one_seed(seed, share, epochs):
    """Test accuracies of all students and teachers of one seed."""
    keras.utils.set_random_seed(seed)
    x, labels, test = digits(seed)
    check_share(share, len(x))
    has_label = np.zeros(len(x), bool)
    few, _ = sklearn.model_selection.train_test_split(
        np.arange(len(x)), train_size=share, stratify=labels, random_state=seed
    )
    has_label[few] = True
    marked = np.where(has_label, labels, UNLABELLED)

    # Every model of a seed takes as many steps as one over all images.
    steps = epochs * -(-len(x) // _BATCH)
    teachers = {
        "all labels": fit(convolutional(), x, labels, steps),
        "few labels": fit(convolutional(), x[few], labels[few], steps),
    }
    start = perceptron()
    results = {
        f"teacher, {name}": accuracy(teacher, test)
        for name, teacher in teachers.items()
    }
    plain = fit(same(start), x[few], labels[few], steps)
    results["plain, few labels"] = accuracy(plain, test)
    for name, teacher in teachers.items():
        student = same(start)
        distiller = kd.Distiller(student, teacher)
        fit(distiller, x, marked, steps, kd.KD(weight=0.9, temperature=4.0))
        results[f"KD, teacher of {name}"] = accuracy(student, test)
    everything = fit(same(start), x, labels, steps)
    results["plain, all labels"] = accuracy(everything, test)
    return results


def check_share(share, images):
    """Refuses a share with which a part has fewer images than classes.

    Args:
        share: of the images that keep their label.
        images: how many there are.

    Raises:
        ValueError: naming both.
    """
    if not CLASSES <= share * images <= images - CLASSES:
        raise ValueError(
            "--labels is the share of images that keep their label; each digit "
            "must be among these and among the others. Received: --labels "
            f"{share} of {images:,} images. Choose one such as 0.1."
        )


def digits(seed):
    """Images [n, 8, 8, 1] with their labels, and a pair of these to test."""
    x, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    x, x_test, labels, test_labels = sklearn.model_selection.train_test_split(
        x, labels.astype("int32"), stratify=labels, random_state=seed
    )
    return x, labels, (x_test, test_labels)


def convolutional():
    """The teacher."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10),
        ]
    )


def perceptron():
    """The student."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )


def same(model):
    """Another model with the same weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def fit(model, x, labels, steps, loss=None):
    """Trains for a number of steps."""
    if loss is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(3e-3, steps)
        ),
        loss,
    )
    epochs = -(-steps // -(-len(x) // _BATCH))
    model.fit(x, labels, batch_size=_BATCH, epochs=epochs, verbose=0)
    return model


def accuracy(model, test):
    """Share of the test images that a model gets right."""
    x, labels = test
    return float((model.predict(x, verbose=0).argmax(-1) == labels).mean())


def report(scores):
    """Prints means, and gains over plain training with few labels."""
    base = np.array(scores["plain, few labels"])
    rows = []
    for name, values in scores.items():
        gain = "-"
        if name.startswith("KD"):
            found = paired_interval(100 * (np.array(values) - base))
            gain = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
        rows.append(
            {
                "trained on": name,
                "test accuracy": f"{100 * np.mean(values):.1f}%",
                "deviation": f"{100 * np.std(values, ddof=1):.1f}",
                "gain, points [95 %]": gain,
            }
        )
    print_table(f"{len(base)} seeds", rows)


if __name__ == "__main__":
    main()
