"""What the studies of language models share."""

import pathlib
import re

import click
import keras
import keras_nlp
import numpy as np
from data import text

from keras_kd import files
from keras_kd.backend.private import flatten_layers
from study.options import UserPath, with_options
from study.study import Study

# In a model's name, what its ids of words mean. Keras loads it without this
# project, and ensembles keep it.
_IN_NAME = re.compile("_words_([0-9a-f]{12})")

text_options = with_options(
    [
        click.option(
            "--data-dir",
            type=UserPath(exists=True, file_okay=False),
            help="Folder with {train,valid,test}.txt, or with ptb. before the "
            "names.",
        ),
        click.option("--download", is_flag=True, help="Fetch PTB, once."),
    ]
)


def optimizer_options(defaults):
    """A decorator with the options of the optimizer.

    Args:
        defaults: dict by optimizer ("adam", "sgd"), the default one first, of
            dicts with its "learning_rate", "teacher_learning_rate" and
            "clip_norm". A rate that suits one of them ruins the other.

    Returns:
        A decorator of a click command.
    """

    def by_optimizer(name, about=""):
        values = [f"{each[name]:g} by {o}" for o, each in defaults.items()]
        return click.option(
            f"--{name.replace('_', '-')}",
            type=click.FloatRange(0),
            callback=lambda ctx, _, value: (
                defaults[ctx.params["optimizer"]][name]
                if value is None
                else value
            ),
            help=f"{about} [default: {', '.join(values)}]".strip(),
        )

    return with_options(
        [
            click.option(
                "--optimizer",
                type=click.Choice(tuple(defaults)),
                default=next(iter(defaults)),
                is_eager=True,  # Before the options that depend on it.
            ),
            by_optimizer("learning_rate"),
            by_optimizer("teacher_learning_rate"),
            click.option(
                "--decay",
                type=click.Choice(("cosine", "none")),
                default="cosine",
                help="Of the learning rate, over all steps.",
            ),
            by_optimizer("clip_norm", "Of all gradients together."),
        ]
    )


class LanguageModelStudy(Study):
    """What language models have in common; see `study.study.Study`."""

    score, higher_is_better = "test_perplexity", False

    def classes(self):
        """Number of words, or of other tokens."""
        raise NotImplementedError

    def vocabulary(self):
        """List of the words by id; `None` where a tokenizer knows them."""
        raise NotImplementedError

    def training_ids(self):
        """Ids of the words to predict, as an array."""
        raise NotImplementedError

    def model_name(self, role):
        """A name that tells what the ids of words mean."""
        digest = self._digest()
        return role if digest is None else f"{role}_words_{digest}"

    def _digest(self):
        words = self.vocabulary()
        return None if words is None else text.checksum(words)[:12]

    def guess(self):
        """Perplexity of the training text's frequencies."""
        counts = np.bincount(self.training_ids())
        shares = counts[counts > 0] / counts.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def metrics(self):
        """Perplexity."""
        return [keras_nlp.metrics.Perplexity(from_logits=True)]

    def optimizer(self, role):
        """Adam or SGD with clipped gradients and a falling rate."""
        options = self.options
        prefix = "teacher_" if role == "teacher" else ""
        rate = options[f"{prefix}learning_rate"]
        if options["decay"] == "cosine":
            steps = self.epochs(role) * self.steps_per_epoch(role)
            rate = keras.optimizers.schedules.CosineDecay(rate, max(steps, 1))
        make = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
        return make[options["optimizer"]](
            rate, global_clipnorm=options["clip_norm"]
        )

    def adapted_teacher(self, model):
        """A loaded model, refused if it knows other words."""
        if model.output_shape[-1] != self.classes():
            raise _other_words(
                f"a teacher of {model.output_shape[-1]} words for a text of "
                f"{self.classes()}"
            )
        path = self.options["teacher"]
        if path is not None:
            self._check_words(model, path)
        return model

    def _check_words(self, model, path):
        """Refuses a teacher to which ids mean other words, if it tells."""
        known = known_vocabularies(model, path)
        if not known and self.run.writes:
            click.echo(
                f"{path} does not tell which words its ids mean, as teachers "
                "of earlier versions don't. They must be those of this text."
            )
        if known - {self._digest()}:
            raise _other_words(
                f"{path}, to which at least one of the {self.classes()} ids "
                "means another word than in this text"
            )


def known_vocabularies(model, path):
    """What is known of the vocabularies of a model, or of an ensemble's.

    Args:
        model: a `keras.Model`.
        path: of its file. One of an earlier version has the vocabulary in
            its run folder alone.

    Returns:
        Set of parts of checksums, `None` for a tokenizer of its own.
    """
    known = set()
    for layer in flatten_layers(model):
        known.update(_IN_NAME.findall(layer.name))
        if getattr(layer, "preprocessor", None) is not None:
            known.add(None)
    if not known:
        remedy = "Remove it, or move the teacher to another folder."
        data = files.read_dict(pathlib.Path(path).parent / "data.json", remedy)
        if data and "vocabulary" in data:
            known.add(str(data["vocabulary"])[:12])
    return known


def _other_words(received):
    return ValueError(
        "The teacher must have been trained with this vocabulary. Received: "
        f"{received}. Use the teacher's text, its limits on the training text "
        "and --vocabulary, or leave --teacher out."
    )
