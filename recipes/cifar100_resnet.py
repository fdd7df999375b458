"""Which part of a teacher's knowledge helps a small image classifier?

Trains a CIFAR ResNet as teacher, then a smaller one once with each loss, and
compares their test accuracies (Tang et al. 2020, "Understanding and Improving
Knowledge Distillation", the CIFAR-100 study).

    python recipes/cifar100_resnet.py --dataset digits

runs offline in about a minute on two cores.

    python recipes/cifar100_resnet.py --strategy mirrored

is the study at full size, for a machine with GPUs.
"""

import study.quiet  # noqa: F401

# isort: split
import functools

import click
import keras
import networks
import tensorflow as tf
from data import images
from study import methods, options, strategies, vision
from study.comparison import run_study
from study.messages import errors_as_messages
from study.options import not_negative, positive

# Where the learning rate drops, as shares of all epochs: at 150, 180 and 210
# of 240.
_DROPS = (0.625, 0.75, 0.875)
_DEFAULTS = {
    "cifar100": {
        "epochs": 240,
        "teacher_depth": 56,
        "student_depth": 20,
        "student_width": 16,
    },
    # A wider student has nothing to learn of a teacher there: with any loss it
    # ends at 99 %.
    "digits": {
        "epochs": 20,
        "teacher_depth": 20,
        "student_depth": 8,
        "student_width": 4,
    },
}


@click.command(context_settings={"show_default": True})
@click.option(
    "--dataset", type=click.Choice(("cifar100", "digits")), default="cifar100"
)
@click.option(
    "--teacher-depth",
    type=positive,
    help="6n + 2. [default: 56, and 20 for the digits]",
)
@click.option(
    "--teacher-epochs", type=positive, help="[default: as for --epochs]"
)
@click.option(
    "--student-depth",
    type=positive,
    help="6n + 2. [default: 20, and 8 for the digits]",
)
@click.option(
    "--student-width",
    type=positive,
    help="Of its first stage. [default: 16, and 4 for the digits]",
)
@click.option(
    "--epochs",
    type=positive,
    help="[default: 240, and 20 for the digits]",
)
@click.option("--batch-size", type=positive, default=64, help="Global.")
@click.option("--learning-rate", type=not_negative, default=0.05)
@click.option(
    "--drop-at",
    type=positive,
    multiple=True,
    help="Epoch after which the rate drops; may be given several times. "
    "[default: 62.5 %, 75 % and 87.5 % of all epochs: 150, 180, 210 of 240]",
)
@click.option("--drop-factor", type=options.share, default=0.1)
@click.option(
    "--augment/--no-augment", default=True, help="Random crops and flips."
)
@vision.image_options(weight_decay=5e-4, views="Crops and flips")
@options.shared_options(("plain", "label_smoothing", "kd_pt", "kd_sim", "kd"))
@errors_as_messages()
def main(losses, log_dir, **chosen):
    """Compares distillation losses on a small image classifier."""
    _fill_in(chosen)
    strategy = strategies.make_strategy(chosen["strategy"], chosen["replicas"])
    data = load(chosen)
    chosen = vision.with_hold_out(chosen, len(data.train[0]))
    run_study(
        "cifar100_resnet",
        f"{chosen['dataset']}.",
        functools.partial(ImageStudy, data),
        strategy,
        chosen,
        losses,
        log_dir,
        labels=vision.training_size(chosen, len(data.train[0])),
        classes=data.classes,
        arguments=ImageStudy.loss_arguments,
    )


def _fill_in(options):
    """Defaults that depend on other options."""
    for name, value in _DEFAULTS[options["dataset"]].items():
        options[name] = options[name] or value
    options["teacher_epochs"] = options["teacher_epochs"] or options["epochs"]


def load(options):
    """The `images.Images` that the options ask for."""
    if options["dataset"] == "digits":
        if options["data_dir"]:
            raise ValueError(
                "The digits come with scikit-learn. Received: --dataset digits "
                f"with --data-dir {options['data_dir']}. Leave --data-dir out."
            )
        return images.digits()
    return images.cifar100(options["data_dir"])


class ImageStudy(vision.VisionStudy):
    """CIFAR ResNets on images held in memory; see `study.study.Study`.

    Args:
        data: `images.Images`.
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    loss_arguments = methods.CIFAR_ARGUMENTS

    def __init__(self, data, run, strategy, options):
        for role in ("teacher", "student"):
            networks.blocks_per_stage(options[f"{role}_depth"])
        super().__init__(
            len(data.train[0]), data.shape, data.classes, run, strategy, options
        )
        self.images = data

    def training_data(self, role, first_epoch):
        """Shuffled and augmented batches."""
        dataset = images.training_stream(
            self.images,
            self.train_size,
            self.options["batch_size"],
            self.options["seed"],
            first_epoch,
            self.options["augment"],
        )
        return self.mixed(dataset, first_epoch)

    def cached_data(self):
        """The images in order."""
        return tf.data.Dataset.from_tensor_slices(
            tuple(array[: self.train_size] for array in self.images.train)
        )

    def superclasses(self):
        """CIFAR-100's own."""
        return self.images.superclasses

    def augment(self):
        """The crops and flips, which the cache repeats."""
        return images.view_function(self.images, self.options["augment"])

    def measured_images(self):
        """The test images."""
        return self._evaluation_batches(self.images.test)

    def held_out_images(self):
        """The last training images; none by default, as usual on CIFAR."""
        count = self.options["hold_out"]
        return self._evaluation_batches([a[-count:] for a in self.images.train])

    def _evaluation_batches(self, arrays):
        batch_size = 4 * self.options["batch_size"]
        return images.evaluation_batches(tuple(arrays), batch_size)

    def build(self, role):
        """A CIFAR ResNet."""
        model = networks.cifar_resnet(
            self.options[f"{role}_depth"],
            self.images.shape,
            self.images.classes,
            self.images.mean,
            self.images.deviation,
            self.options["student_width"] if role == "student" else 16,
            name=role,
        )
        return networks.with_weight_decay(model, self.options["weight_decay"])

    def optimizer(self, role):
        """SGD with momentum, its rate falling in steps."""
        options, epochs = self.options, self.epochs(role)
        drops = options["drop_at"] or [share * epochs for share in _DROPS]
        steps = self.steps_per_epoch(role)
        rates = [
            options["learning_rate"] * options["drop_factor"] ** i
            for i in range(len(drops) + 1)
        ]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(epoch * steps) for epoch in sorted(drops)], rates
        )
        return self.sgd(schedule)

    def class_order(self):
        """Related classes side by side."""
        return self.images.class_order


if __name__ == "__main__":
    main()
