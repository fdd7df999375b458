"""Which part of a teacher's knowledge helps a ResNet-50 on ImageNet?

Distils a pre-trained ResNet-152 into a ResNet-50 once with each loss, and
compares their accuracies (Tang et al. 2020, "Understanding and Improving
Knowledge Distillation", the ImageNet study).

    python recipes/imagenet_resnet.py --data-dir tensorflow_datasets \
        --strategy mirrored --mixed-precision

needs `imagenet2012` as TFDS prepares it, and GPUs. Other networks:

    python tools/import_efficientnet_lite.py WEIGHTS.pth lite0.keras
    python recipes/imagenet_resnet.py --data-dir tensorflow_datasets \
        --teacher lite0.keras --student MobileNetV3Small
"""

import study.quiet  # noqa: F401

# isort: split
import functools

import click
import keras
import networks
import tensorflow as tf
import tensorflow_datasets as tfds
from data import batches, images
from study import options, strategies, vision
from study.comparison import run_study
from study.messages import errors_as_messages
from study.options import not_negative, positive

from keras_kd import distribution

# At which shares of all epochs the rate drops tenfold with --decay step: at
# 30, 60 and 80 of 90.
_DROPS = (1 / 3, 2 / 3, 8 / 9)
# Batch size for which --learning-rate is given.
_REFERENCE_BATCH = 256


@click.command(context_settings={"show_default": True})
@click.option("--image-size", type=click.IntRange(min=32), default=224)
@click.option(
    "--teacher-network",
    type=click.Choice(networks.PRETRAINED),
    default="ResNet152",
    help="Of keras.applications, with its ImageNet weights; unless --teacher "
    "is given.",
)
@click.option(
    "--student-network",
    "--student",
    default="ResNet50",
    help="A network of keras.applications, as MobileNetV3Small; "
    f"{', '.join(networks.LITE)}; or a preset of KerasHub's ImageClassifier, "
    "its name or its folder.",
)
@click.option("--epochs", type=positive, default=90)
@click.option("--batch-size", type=positive, default=256, help="Global.")
@click.option(
    "--learning-rate",
    type=not_negative,
    default=0.1,
    help="For a batch of 256; it is scaled with the batch.",
)
@click.option(
    "--decay", type=click.Choice(("cosine", "step")), default="cosine"
)
@click.option("--warmup-epochs", type=click.IntRange(min=0), default=5)
@vision.image_options(weight_decay=1e-4, views="Crops")
@click.option("--shuffle-buffer", type=positive, default=16_384, help="Images.")
@options.shared_options(
    ("plain", "label_smoothing", "kd_pt", "kd_sim", "kd_pt_sim", "kd_topk")
)
@errors_as_messages()
def main(losses, log_dir, **chosen):
    """Compares distillation losses on ImageNet."""
    networks.check_network(chosen["student_network"])
    strategy = strategies.make_strategy(chosen["strategy"], chosen["replicas"])
    builder = images.prepared_builder(
        "imagenet2012",
        chosen["data_dir"],
        "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into the "
        "folder's downloads/manual/ and run this again",
    )
    available = builder.info.splits["train"].num_examples
    chosen = vision.with_hold_out(chosen, available)
    run_study(
        "imagenet_resnet",
        "imagenet2012.",
        functools.partial(ImageNetStudy, builder),
        strategy,
        chosen,
        losses,
        log_dir,
        labels=vision.training_size(chosen, available),
        classes=builder.info.features["label"].num_classes,
        arguments=ImageNetStudy.loss_arguments,
    )


class ImageNetStudy(vision.VisionStudy):
    """Networks of Keras and KerasHub on ImageNet; see `study.study.Study`.

    Args:
        builder: a TFDS builder with the splits "train" and "validation".
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    part = "valid"
    # The paper keeps half of ImageNet's classes.
    loss_arguments = {"kd_topk": {"k": 0.5}, "kd_sampled": {"k": 0.5}}

    def __init__(self, builder, run, strategy, options):
        size = options["image_size"]
        super().__init__(
            builder.info.splits["train"].num_examples,
            (size, size, 3),
            builder.info.features["label"].num_classes,
            run,
            strategy,
            options,
        )
        self.builder = builder

    def training_data(self, role, first_epoch):
        """Shuffled batches of randomly cropped and flipped images.

        An interrupted run resumes in another order than it would have had.
        """
        options = self.options
        dataset = self._encoded(f"train[:{self.train_size}]", shuffle=True)
        dataset = dataset.repeat().shuffle(
            min(options["shuffle_buffer"], self.train_size),
            seed=options["seed"] + first_epoch,
        )
        first = first_epoch * self.train_size
        positions = tf.data.Dataset.counter(first)
        view = self.augment()

        def example(position, element):
            image, label = element
            return view(image, tf.stack([options["seed"], position])), label

        dataset = tf.data.Dataset.zip(positions, dataset)
        dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(options["batch_size"])
        dataset = dataset.prefetch(tf.data.AUTOTUNE)
        return self.mixed(dataset, first_epoch)

    def cached_data(self):
        """JPEGs and labels in order."""
        return self._encoded(f"train[:{self.train_size}]", shuffle=False)

    def augment(self):
        """The random crops, which the cache repeats."""
        size = self.options["image_size"]
        return lambda encoded, seed: random_crop(encoded, size, seed)

    def measured_images(self):
        """ImageNet's validation images."""
        count = self.builder.info.splits["validation"].num_examples
        return self._centres("validation", count)

    def held_out_images(self):
        """The last training images."""
        count = self.options["hold_out"]
        return self._centres(f"train[-{count}:]", count)

    def _centres(self, split, count):
        """Batches of the centres of a split's images."""
        size = self.options["image_size"]
        dataset = self._encoded(split, shuffle=False).map(
            lambda encoded, label: (centre_crop(encoded, size), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return batches.full_batches(dataset, count, self.options["batch_size"])

    def _encoded(self, split, shuffle):
        """(JPEG bytes, label); a crop need not decode the whole image."""
        dataset = self.builder.as_dataset(
            split=split,
            shuffle_files=shuffle,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                shuffle_seed=self.options["seed"], try_autocache=False
            ),
        )
        return dataset.map(
            lambda features: (
                features["image"],
                tf.cast(features["label"], tf.int32),
            )
        )

    def build(self, role):
        """An untrained network."""
        options = self.options
        model = networks.untrained(
            options[f"{role}_network"],
            options["image_size"],
            self.classes,
            name=role,
        )
        return networks.with_weight_decay(model, options["weight_decay"])

    def optimizer(self, role):
        """SGD with momentum; the rate rises, then falls."""
        schedules = keras.optimizers.schedules
        options = self.options
        peak = options["learning_rate"]
        peak *= options["batch_size"] / _REFERENCE_BATCH
        steps = options["epochs"] * self.steps_per_epoch(role)
        warmup = options["warmup_epochs"] * self.steps_per_epoch(role)
        if warmup >= steps:
            raise ValueError(
                "The learning rate must have time to fall after it rose. "
                f"Received: --warmup-epochs {options['warmup_epochs']} of "
                f"--epochs {options['epochs']}. Lower --warmup-epochs."
            )
        if options["decay"] == "cosine":
            rate = schedules.CosineDecay(
                0.0 if warmup else peak,
                steps - warmup,
                warmup_target=peak if warmup else None,
                warmup_steps=warmup,
            )
        else:
            rate = _step_decay(peak, steps, warmup)
        return self.sgd(rate)

    def adapted_teacher(self, model):
        """A teacher of these images, KerasHub's with its preprocessing."""
        if networks.is_hub_classifier(model):
            model = networks.on_pixels(model, name=model.name)
        return super().adapted_teacher(model)

    def teacher(self):
        """The teacher given, or keras.applications' own."""
        if self.options["teacher"]:
            return super().teacher()
        with distribution.scope(self.strategy):
            teacher = networks.pretrained(
                self.options["teacher_network"], self.options["image_size"]
            )
        self.evaluate_teacher(teacher)
        return teacher


def _step_decay(peak, steps, warmup):
    """Rises in steps of a hundredth of the warm-up, then drops tenfold."""
    rungs = min(100, warmup)
    rises = [round(warmup * (i + 1) / rungs) for i in range(rungs)]
    drops = [max(round(share * steps), warmup + 1) for share in _DROPS]
    rates = [peak * i / rungs for i in range(rungs)]
    rates += [peak * 0.1**i for i in range(len(drops) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        rises + drops, rates
    )


# -- images --------------------------------------------------------------------


def random_crop(encoded, size, seed):
    """A random part of an image, flipped or not (Szegedy et al. 2015).

    Args:
        encoded: scalar string, a JPEG.
        size: height and width of the result.
        seed: two integers, which decide on the part.

    Returns:
        [size, size, 3] float32 pixels in [0, 255].
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(encoded),
        tf.zeros((1, 0, 4)),
        seed,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], axis=0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(image, (size, size))
    return tf.image.stateless_random_flip_left_right(image, seed)


def centre_crop(encoded, size):
    """The centre of an image, 7/8 of its shorter side.

    Args:
        encoded: scalar string, a JPEG.
        size: height and width of the result.

    Returns:
        [size, size, 3] float32 pixels in [0, 255].
    """
    shape = tf.io.extract_jpeg_shape(encoded)
    side = tf.cast(tf.reduce_min(shape[:2]), tf.float32) * 0.875
    side = tf.cast(side, tf.int32)
    begin = (shape[:2] - side) // 2
    window = tf.concat([begin, [side, side]], axis=0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    return tf.image.resize(image, (size, size))


if __name__ == "__main__":
    main()
