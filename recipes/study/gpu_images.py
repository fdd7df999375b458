"""CIFAR ResNets whose images are in a GPU's memory."""

import contextlib
import functools

import jax
import keras
import networks
import numpy as np

import keras_kd as kd
from keras_kd import files, fingerprint
from keras_kd.attribution import make_loss
from keras_kd.attribution.controls import shuffle_within_labels
from keras_kd.attribution.levels import DEFAULT_METHODS
from keras_kd.attribution.methods import PLAIN, SHUFFLED
from keras_kd.student_trainer.scores import similarity_of
from study import methods as arguments
from study.epoch_program import (
    EpochProgram,
    Outputs,
    crop_and_flip,
    shuffled,
)
from study.gpu_students import (
    WITHOUT_TEACHER,
    Students,
    bins_for,
    digest,
    histogram,
)

# What two teachers, each trained on one half of the images, say of the half
# that they were trained on, and of the one that they were not.
SEEN, HELD_OUT = "_seen", "_held_out"
_PAD, _CLASSES = 4, 100


class Images(Students):
    """CIFAR ResNets; see `Students`.

    Args:
        folder: path of the study.
        data: path of what `pack` wrote.
        teacher: path of the teacher.
        options: dict of the command's options.
    """

    metric, heading, scale = "accuracy", "top-1 %", 100
    validated = "accuracy"
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
                "data": digest(packed),
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
        found, views = [], self.options["views"]
        for view in range(views):
            positions = np.arange(count).reshape(-1, batch)
            index = np.insert(positions, 0, view, axis=1).astype("int32")
            each = np.asarray(outputs(self.arrays, index))
            found.append(each.reshape(count, -1))
            print(f"teacher, view {view + 1} of {views}", flush=True)
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
                f"half-{half}",
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
            f"{method}-{seed}",
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
            **histogram(history),
        }

    def _train(self, name, method, positions, epochs, seed, depth):
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
        teacher = None if base in WITHOUT_TEACHER else self.teacher
        distiller = kd.Distiller(
            student, teacher, gradient_scale=bins_for(base)
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
        inputs = (
            (epoch % options["views"], positions[chosen].astype("int32"))
            for epoch, chosen in enumerate(order)
        )
        return distiller, self.train_epochs(name, program, epochs, inputs)

    def validate(self, model):
        """The share of the test images that it has right."""
        return float(self._right(model).mean())

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


def _check_batch_size(batch_size, count):
    """Refuses batches that half of the images don't fill."""
    if batch_size > count // 2:
        raise ValueError(
            "Half of the images must fill a batch. Received: --batch-size "
            f"{batch_size} for {count} images. Lower it."
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


def _divisor(count, largest):
    """The largest divisor of a number that is not above another."""
    return next(n for n in range(min(count, largest), 0, -1) if count % n == 0)
