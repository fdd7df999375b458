"""Which part of a teacher's knowledge helps an LSTM language model?

Trains a teacher LSTM on Penn Treebank or other English text, then a smaller
student once with each loss, and compares their perplexities (Tang et al. 2020,
"Understanding and Improving Knowledge Distillation", the language-model
study).

    python recipes/ptb_lstm.py

runs on English text that CPython ships, in a minute and a half on two cores.

    python recipes/ptb_lstm.py --data-dir ptb --vocabulary 10000 \
        --student-units 200 --student-layers 2 --teacher-units 650 \
        --teacher-layers 2 --batch-size 20 --epochs 13 --teacher-epochs 39 \
        --learning-rate 20 --teacher-learning-rate 20

is the size of the paper, for a machine with a GPU. By Adam, two layers stay for
epochs at the frequencies of 10,000 words.
"""

import study.quiet  # noqa: F401

# isort: split
import functools

import click
import keras
import networks
from data import text
from study import language_model, options, strategies
from study.comparison import run_study
from study.messages import errors_as_messages
from study.methods import SGD_TEXT_ARGUMENTS, TEXT_ARGUMENTS
from study.options import positive, share

from keras_kd import distribution
from keras_kd.student_trainer.progress import StartFromZero

# Chosen on the validation part of CPython's text.
_LOSS_ARGUMENTS = {"sgd": SGD_TEXT_ARGUMENTS, "adam": TEXT_ARGUMENTS}
_OPTIMIZERS = {
    "sgd": {
        "learning_rate": 30.0,
        "teacher_learning_rate": 30.0,
        "clip_norm": 0.25,
    },
    "adam": {
        "learning_rate": 1e-2,
        "teacher_learning_rate": 1e-2,
        "clip_norm": 5.0,
    },
}


@click.command(context_settings={"show_default": True})
@language_model.text_options
@click.option(
    "--tokens",
    type=positive,
    help="Tokens of the training text. [default: 60,000 of CPython's text, "
    "else all]",
)
@click.option(
    "--vocabulary", type=click.IntRange(min=2), default=1000, help="Words."
)
@click.option("--teacher-units", type=positive, default=160)
@click.option("--teacher-layers", type=positive, default=1)
@click.option("--teacher-dropout", type=share, default=0.5)
@click.option("--teacher-epochs", type=positive, default=10)
@click.option("--student-units", type=positive, default=64)
@click.option("--student-layers", type=positive, default=1)
@click.option("--student-dropout", type=share, default=0.0)
@click.option("--epochs", type=positive, default=8, help="Of the student.")
@click.option("--batch-size", type=positive, default=16, help="Global.")
@click.option("--time-steps", type=positive, default=35, help="Per segment.")
@language_model.optimizer_options(_OPTIMIZERS)
@options.shared_options(("plain", "kd_pt", "kd_pt_sim", "kd"))
@errors_as_messages()
def main(losses, log_dir, **chosen):
    """Compares distillation losses on an LSTM language model."""
    check_backend()
    corpus = read_corpus(**chosen)
    strategy = strategies.make_strategy(chosen["strategy"], chosen["replicas"])
    words = len(corpus.vocabulary)
    run_study(
        "ptb_lstm",
        f"{corpus.source}\n{len(corpus.train):,} training tokens, "
        f"{len(corpus.test):,} test tokens, {words:,} words.",
        functools.partial(LSTMStudy, corpus),
        strategy,
        chosen,
        losses,
        log_dir,
        checksums=corpus.checksums,
        labels=len(corpus.train),
        classes=words,
        arguments=_LOSS_ARGUMENTS[chosen["optimizer"]],
    )


def check_backend():
    """Refuses the backend on which Keras can't train what carries state.

    Raises:
        ValueError: naming it.
    """
    if keras.backend.backend() == "torch":
        raise ValueError(
            "Keras does not train stateful LSTMs on PyTorch: the state is "
            "overwritten before the gradient needs it. Received: "
            "KERAS_BACKEND=torch. Use tensorflow or jax, or "
            "recipes/causal_lm.py, which trains on each."
        )


def read_corpus(data_dir, download, tokens, vocabulary, **_):
    """The text that the options ask for; see `text.load`."""
    if tokens is None and not (data_dir or download):
        tokens = 60_000
    return text.load(data_dir, download, tokens, vocabulary)


class LSTMStudy(language_model.LanguageModelStudy):
    """Stateful LSTMs on text cut into streams; see `study.study.Study`.

    Args:
        corpus: a `text.Corpus`.
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    columns = (
        ("valid", "valid_perplexity", 1, ".2f"),
        ("test", "test_perplexity", 1, ".2f"),
    )

    def __init__(self, corpus, run, strategy, options):
        super().__init__(run, strategy, options)
        self.loss_arguments = _LOSS_ARGUMENTS[options["optimizer"]]
        self.corpus = corpus
        batch, steps = options["batch_size"], options["time_steps"]
        self.input_shape = (batch // distribution.num_replicas(strategy), steps)
        self.data = {
            part: text.segments(getattr(corpus, part), batch, steps)
            for part in text.PARTS
        }

    def training_data(self, role, first_epoch):
        """The segments in order, which is the same in each epoch."""
        return self.data["train"].repeat()

    def cached_data(self):
        """The segments in order, as the carried state asks."""
        return self.data["train"]

    def cached_stream(self, cache, loss, first_epoch):
        """The segments in order, with what the teacher said of each."""
        return cache.epochs(self.cached_data(), loss, first_epoch)

    def steps_per_epoch(self, role):
        """Number of segments of a stream."""
        return len(self.data["train"])

    def evaluation_data(self):
        """Validation text, which `fit` reports, and test text."""
        return {part: self.data[part] for part in ("valid", "test")}

    def callbacks(self, *models):
        """Starts each text from the state zero."""
        return [StartFromZero(*models)]

    def build(self, role):
        """Embedding, stateful LSTMs with dropout between, logits."""
        return networks.lstm_language_model(
            self.classes(),
            self.options[f"{role}_units"],
            self.options[f"{role}_layers"],
            self.options[f"{role}_dropout"],
            self.input_shape,
            name=self.model_name(role),
        )

    def classes(self):
        """Number of words."""
        return len(self.corpus.vocabulary)

    def vocabulary(self):
        """The words."""
        return self.corpus.vocabulary

    def training_ids(self):
        """The training text."""
        return self.corpus.train

    def adapted_teacher(self, model):
        """A loaded model, for this run's vocabulary and batch size.

        A stateful model is bound to the batch size that it was built with.
        """
        model = super().adapted_teacher(model)
        if tuple(model.input_shape) == self.input_shape:
            return model
        return with_input_shape(model, self.input_shape)

    def teacher_of_one_process(self, teacher):
        """A copy for the whole batch, of which each replica has a part."""
        batch, steps = self.options["batch_size"], self.options["time_steps"]
        return with_input_shape(teacher, (batch, steps))


def with_input_shape(model, shape):
    """A copy of a stateful model for another batch size.

    Args:
        model: a functional `keras.Model`.
        shape: (batch, time steps).

    Returns:
        A `keras.Model` with the same weights and state zero.
    """
    inputs = keras.Input(batch_shape=shape, dtype="int32")
    clone = keras.models.clone_model(model, input_tensors=inputs)
    for new, old in zip(
        clone.trainable_weights, model.trainable_weights, strict=True
    ):
        new.assign(keras.ops.convert_to_numpy(old))
    return clone


if __name__ == "__main__":
    main()
