"""What the studies of image classifiers share."""

import click
import keras
import networks
from data import images

from study.options import (
    UserPath,
    not_negative,
    positive,
    share,
    with_options,
)
from study.study import Study

# --tune chooses by one training image in so many; or, where that is fewer than
# so many images, by one in four: among few the luckiest student is chosen.
_HELD_OUT, _TELLING = 10, 1000

_alpha = click.FloatRange(0, 1, min_open=True)


def image_options(weight_decay, views):
    """A decorator with the options of data and optimizer.

    Args:
        weight_decay: its default.
        views: what the views are, in words.

    Returns:
        A decorator of a click command.
    """
    return with_options(
        [
            click.option(
                "--data-dir",
                type=UserPath(exists=True, file_okay=False),
                help="Folder of TFDS data sets. [default: TFDS's own]",
            ),
            click.option(
                "--limit-train",
                type=positive,
                help="Use this many training images.",
            ),
            click.option(
                "--hold-out",
                type=positive,
                help="So many other training images are for validation alone: "
                "--tune chooses by them. [default: with --tune a tenth, of few "
                "a quarter; else none]",
            ),
            click.option("--momentum", type=share, default=0.9),
            click.option(
                "--weight-decay", type=not_negative, default=weight_decay
            ),
            click.option(
                "--views",
                type=positive,
                default=10,
                help=f"{views} of each image that --cache keeps; each epoch "
                "has the next.",
            ),
            click.option(
                "--mixup",
                type=_alpha,
                help="Train on weighted means of two images and of their "
                "labels, with shares from Beta(alpha, alpha), as 0.2. The "
                "teacher sees the same, beside each student: no cache.",
            ),
            click.option(
                "--cutmix",
                type=_alpha,
                help="The same with a rectangle of another image, as 1.",
            ),
        ]
    )


class VisionStudy(Study):
    """What image classifiers have in common; see `study.study.Study`.

    Args:
        available: number of training images, of which --limit-train may use
            some.
        shape: (height, width, channels).
        classes: number of classes.
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    # The part that students are measured on.
    part = "test"

    def measured_images(self):
        """The images of that part, as `batches.full_batches` gives them."""
        raise NotImplementedError

    def held_out_images(self):
        """The same of the last --hold-out training images."""
        raise NotImplementedError

    def __init__(self, available, shape, classes, run, strategy, options):
        super().__init__(run, strategy, options)
        self.shape, self.classes = tuple(shape), classes
        self.train_size = training_size(options, available)
        if self.train_size < options["batch_size"]:
            raise ValueError(
                "There must be an image for each place of a batch. Received: "
                f"{self.train_size} training images and --batch-size "
                f"{options['batch_size']}. Lower --batch-size, or --hold-out."
            )
        if options["mixup"] and options["cutmix"]:
            raise ValueError(
                "Images are mixed in one way. Received: --mixup "
                f"{options['mixup']} and --cutmix {options['cutmix']}. Leave "
                "one of them out."
            )

    @property
    def columns(self):
        """Both accuracies."""
        return (
            ("top-1 %", f"{self.part}_accuracy", 100, ".2f"),
            ("top-5 %", f"{self.part}_top5_accuracy", 100, ".2f"),
        )

    @property
    def score(self):
        """Top-1 accuracy."""
        return f"{self.part}_accuracy"

    @property
    def mixes(self):
        """Whether images are mixed, and every label is a share a class."""
        return bool(self.options["mixup"] or self.options["cutmix"])

    def mixed(self, dataset, first_epoch):
        """Training batches, with their images mixed if the options say so.

        Interrupted training resumes with other mixtures than it would have
        had.

        Args:
            dataset: `tf.data.Dataset` of (x, labels).
            first_epoch: integer.

        Returns:
            A `tf.data.Dataset` of the same.
        """
        if not self.mixes:
            return dataset
        options = self.options
        arguments = {
            # Two numbers: a seed's epochs are not those of the next seed.
            "seed": 10_000 * options["seed"] + first_epoch,
            # Whole pixels have more digits than half precision.
            "dtype": "float32",
        }
        if options["mixup"]:
            layer = keras.layers.MixUp(options["mixup"], **arguments)
        else:
            alpha = options["cutmix"]
            layer = keras.layers.CutMix((alpha, alpha), **arguments)
        return images.mixed(dataset, self.classes, layer)

    def evaluation_data(self):
        """Images held out of training, if any are, and those measured on."""
        parts = {self.part: self.measured_images()}
        if self.options["hold_out"]:
            parts = {"held_out": self.held_out_images(), **parts}
        if self.mixes:
            # Labels of the form of the training's.
            for part, dataset in parts.items():
                parts[part] = images.with_shares(dataset, self.classes)
        return parts

    def metrics(self):
        """Top-1 and top-5 accuracy."""
        kinds = keras.metrics
        if self.mixes:
            return [
                kinds.CategoricalAccuracy(name="accuracy"),
                kinds.TopKCategoricalAccuracy(k=5, name="top5_accuracy"),
            ]
        return [
            kinds.SparseCategoricalAccuracy(name="accuracy"),
            kinds.SparseTopKCategoricalAccuracy(k=5, name="top5_accuracy"),
        ]

    def guess(self):
        """Accuracy of a class drawn at random."""
        return 1 / self.classes

    def adapted_teacher(self, model):
        """A teacher of these images and classes, or an error."""
        networks.check_teacher(model, self.shape, self.classes)
        return model

    def sgd(self, rate):
        """SGD with momentum."""
        return keras.optimizers.SGD(rate, momentum=self.options["momentum"])


def with_hold_out(options, available):
    """The options, with how many training images are held out.

    Args:
        options: dict of the command's options.
        available: number of training images.

    Returns:
        A dict.
    """
    default = 0
    if options["tune"]:
        few = min(available // 4, _TELLING)
        default = max(available // _HELD_OUT, few)
    return {**options, "hold_out": options["hold_out"] or default}


def training_size(options, available):
    """How many images are trained on; options as from `with_hold_out`."""
    available = max(available - options["hold_out"], 0)
    return min(options["limit_train"] or available, available)
