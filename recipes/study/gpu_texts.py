"""LSTM language models whose texts are in a GPU's memory."""

import functools
import itertools
import time

import jax
import keras
import networks
import numpy as np
from data import text
from jax import numpy as jnp
from keras import ops

import keras_kd as kd
from keras_kd import files
from keras_kd.attribution import make_loss
from keras_kd.attribution.levels import DEFAULT_METHODS
from keras_kd.attribution.methods import PLAIN
from study import methods as arguments
from study.epoch_program import EpochProgram, Outputs
from study.gpu_students import (
    WITHOUT_TEACHER,
    Students,
    bins_for,
    digest,
    histogram,
)


class Texts(Students):
    """LSTM language models; see `Students`.

    Args:
        folder: path of the study.
        corpus: a `text.Corpus`.
        options: dict of the command's options.
    """

    metric, heading, scale = "test_perplexity", "test perplexity", 1
    validated = "perplexity"
    higher_is_better = False
    methods = (
        PLAIN,
        *(m for m in DEFAULT_METHODS if m in arguments.SGD_TEXT_ARGUMENTS),
        "kd_sampled",
    )
    teacher_similarity = None  # Of 10,000 words: too many for a picture.

    def __init__(self, folder, corpus, options):
        ids = {part: getattr(corpus, part) for part in text.PARTS}
        super().__init__(folder, options, {"text": digest(ids)})
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
            history = self._train("teacher", model, None, PLAIN)
            history["seconds"] = round(time.perf_counter() - began, 1)
            history["test_perplexity"] = self._perplexity(model, "test")[0]
            self.shared.mkdir(parents=True, exist_ok=True)
            files.save_model(model, path)
            files.write_json(path.with_suffix(".json"), history)
        return keras.models.load_model(path, compile=False)

    def prepare(self, methods):
        """The teacher."""
        if set(methods) - set(WITHOUT_TEACHER):
            _ = self.teacher

    def __call__(self, method, seed):
        """Trains a student and measures it on the test text."""
        keras.utils.set_random_seed(seed)
        student = self._build("student")
        teacher = None if method in WITHOUT_TEACHER else self.teacher
        history = self._train(f"{method}-{seed}", student, teacher, method)
        valid, _ = self._perplexity(student, "valid")
        test, rows = self._perplexity(student, "test")
        return {
            "test_perplexity": test,
            "valid_perplexity": valid,
            "examples": rows.tolist(),
            "examples_of": "exp_mean",
            "history": history,
            **histogram(history),
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

    def _train(self, name, model, teacher, method):
        """Trains a model, teachers too, and returns its history."""
        options, data = self.options, self.data["train"]
        prefix = "teacher_" if name == "teacher" else ""
        epochs, batches = options[f"{prefix}epochs"], len(data["x"])
        rate = keras.optimizers.schedules.CosineDecay(
            options[f"{prefix}learning_rate"], epochs * batches
        )
        distiller = kd.Distiller(
            model, teacher, gradient_scale=bins_for(method)
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
        inputs = itertools.repeat((0, order))
        return self.train_epochs(name, program, epochs, inputs)

    def validate(self, model):
        """Perplexity of the validation text."""
        return self._perplexity(model, "valid")[0]

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
