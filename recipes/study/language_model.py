"""What the studies of language models share."""

import click
import keras
import keras_nlp

from study.options import UserPath, with_options
from study.study import Study

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
            raise ValueError(
                "The teacher must have been trained with this vocabulary. "
                f"Received: a teacher of {model.output_shape[-1]} words for a "
                f"text of {self.classes()}. Use the teacher's text, its limits "
                "on the training text and --vocabulary, or leave --teacher "
                "out."
            )
        return model
