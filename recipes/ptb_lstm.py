"""Which part of a teacher's knowledge helps an LSTM language model?

Trains a teacher LSTM on Penn Treebank or other English text, then a smaller
student once with each loss, and compares their perplexities (Tang et al. 2020,
"Understanding and Improving Knowledge Distillation", the language-model
study).

    python recipes/ptb_lstm.py

runs on English text that CPython ships, in about five minutes on two cores.

    python recipes/ptb_lstm.py --data-dir ptb --vocabulary 10000 \
        --student-units 200 --student-layers 2 --teacher-units 650 \
        --teacher-layers 2 --batch-size 20 --epochs 13 --teacher-epochs 39

is the paper's size, for a machine with a GPU.
"""

import click
import common
import strategies
import study
import text_data
from study import positive, share

# Chosen on the validation part of CPython's text, with one seed. Spread over
# thousands of words the even share of KD-pt costs perplexity, hence its small
# weight.
LOSS_ARGUMENTS = {
    # Its weight is then the usual smoothing.
    "label_smoothing": {"smoothing": 1.0, "weight": 0.1},
    "kd_pt": {"weight": 0.1, "temperature": 4.0},
    "kd_sim": {"weight": 1.0, "temperature": 1.0},
    "kd_pt_sim": {"pt_weight": 0.1, "sim_weight": 0.5, "temperature": 1.0},
    "kd_topk": {"weight": 0.5, "temperature": 1.0},
    "kd": {"weight": 0.5, "temperature": 1.0},
}


@click.command(context_settings={"show_default": True})
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with {train,valid,test}.txt, or with ptb. before the names.",
)
@click.option("--download", is_flag=True, help="Fetch PTB, once.")
@click.option(
    "--tokens",
    type=positive,
    help="Tokens of the training text. [default: 80,000 of CPython's text, "
    "else all]",
)
@click.option("--vocabulary", type=positive, default=2000, help="Words.")
@click.option("--teacher-units", type=positive, default=200)
@click.option("--teacher-layers", type=positive, default=1)
@click.option("--teacher-dropout", type=share, default=0.5)
@click.option("--teacher-epochs", type=positive, default=14)
@click.option("--student-units", type=positive, default=64)
@click.option("--student-layers", type=positive, default=1)
@click.option("--student-dropout", type=share, default=0.0)
@click.option("--epochs", type=positive, default=14, help="Of the student.")
@click.option("--batch-size", type=positive, default=16, help="Global.")
@click.option("--time-steps", type=positive, default=35, help="Per segment.")
@click.option("--optimizer", type=click.Choice(("adam", "sgd")), default="adam")
@click.option("--learning-rate", type=float, default=1e-2)
@click.option("--teacher-learning-rate", type=float, default=5e-3)
@click.option(
    "--decay",
    type=click.Choice(("cosine", "none")),
    default="cosine",
    help="Of the learning rate, over all steps.",
)
@click.option("--clip-norm", type=float, default=5.0, help="Global norm.")
@study.shared_options(("plain", "kd_pt", "kd_pt_sim", "kd"))
def main(losses, log_dir, **options):
    """Compares distillation losses on an LSTM language model."""
    with common.errors_as_messages():
        corpus = read_corpus(**options)
        strategy = strategies.make_strategy(
            options["strategy"], options["replicas"]
        )
        # Losses may be added to a run later; everything else makes it another.
        run = common.RunFolder(
            "ptb_lstm", study.run_config(options), log_dir, strategy
        )
        click.echo(corpus.source)
        click.echo(
            f"{len(corpus.train):,} training tokens, {len(corpus.test):,} test "
            f"tokens, {len(corpus.vocabulary):,} words. Run folder: "
            f"{run.folder}"
        )
        LanguageModelStudy(corpus, run, strategy, options).train_all(losses)


def read_corpus(data_dir, download, tokens, vocabulary, **_):
    """The text that the options ask for; see `text_data.load`."""
    if tokens is None and not (data_dir or download):
        tokens = 80_000
    return text_data.load(data_dir, download, tokens, vocabulary)


class LanguageModelStudy(study.Study):
    """Stateful LSTMs on text cut into streams; see `study.Study`.

    Args:
        corpus: a `text_data.Corpus`.
        run: a `common.RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    loss_arguments = LOSS_ARGUMENTS
    columns = (
        ("valid", "valid_perplexity", 1, ".2f"),
        ("test", "test_perplexity", 1, ".2f"),
    )

    def __init__(self, corpus, run, strategy, options):
        from keras_kd import distribution

        super().__init__(run, strategy, options)
        self.corpus = corpus
        batch, steps = options["batch_size"], options["time_steps"]
        self.input_shape = (batch // distribution.num_replicas(strategy), steps)
        self.data = {
            part: text_data.segments(getattr(corpus, part), batch, steps)
            for part in text_data.PARTS
        }

    def training_data(self, role, first_epoch):
        """The segments in order, which is the same in each epoch."""
        return self.data["train"].repeat()

    def cached_data(self):
        """The segments in order, as the carried state asks."""
        return self.data["train"]

    def steps_per_epoch(self, role):
        """Number of segments of a stream."""
        return len(self.data["train"])

    def evaluation_data(self):
        """Validation text, which `fit` reports, and test text."""
        return {part: self.data[part] for part in ("valid", "test")}

    def metrics(self):
        """Perplexity."""
        import keras_nlp

        return [keras_nlp.metrics.Perplexity(from_logits=True)]

    def callbacks(self, *models):
        """Starts each text from the state zero."""
        return [make_state_reset(*models)]

    def build(self, role):
        """Embedding, stateful LSTMs with dropout between, logits."""
        import keras
        from keras import layers

        units = self.options[f"{role}_units"]
        dropout = self.options[f"{role}_dropout"]
        words = len(self.corpus.vocabulary)
        inputs = keras.Input(batch_shape=self.input_shape, dtype="int32")
        x = layers.Embedding(words, units)(inputs)
        x = layers.Dropout(dropout)(x)
        for _ in range(self.options[f"{role}_layers"]):
            x = layers.LSTM(units, return_sequences=True, stateful=True)(x)
            x = layers.Dropout(dropout)(x)
        logits = layers.Dense(words, dtype="float32", name="logits")(x)
        return keras.Model(inputs, logits, name=role)

    def optimizer(self, role):
        """Adam or SGD with clipped gradients and a falling rate."""
        import keras

        options = self.options
        prefix = "teacher_" if role == "teacher" else ""
        rate = options[f"{prefix}learning_rate"]
        if options["decay"] == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(
                rate, self.epochs(role) * self.steps_per_epoch(role)
            )
        make = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
        return make[options["optimizer"]](
            rate, global_clipnorm=options["clip_norm"]
        )

    def fitted_teacher(self, model):
        """A loaded model, for this run's vocabulary and batch size.

        A stateful model is bound to the batch size that it was built with.
        """
        words = len(self.corpus.vocabulary)
        if model.output_shape[-1] != words:
            raise ValueError(
                "The teacher must have been trained with this vocabulary. "
                f"Received: a teacher of {model.output_shape[-1]} words for a "
                f"text of {words}. Use the teacher's text, --tokens and "
                "--vocabulary, or leave --teacher out."
            )
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
    import keras

    inputs = keras.Input(batch_shape=shape, dtype="int32")
    clone = keras.models.clone_model(model, input_tensors=inputs)
    for new, old in zip(
        clone.trainable_weights, model.trainable_weights, strict=True
    ):
        new.assign(keras.ops.convert_to_numpy(old))
    return clone


def make_state_reset(*models):
    """A callback that starts every text with the state at zero.

    Args:
        *models: stateful models; `None` is passed over.

    Returns:
        A Keras callback.
    """
    import keras

    recurrent = [
        layer
        for model in models
        if model is not None
        for layer in model.layers
        if getattr(layer, "stateful", False)
    ]

    class StateReset(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for layer in recurrent:
                layer.reset_state()

        def on_test_begin(self, logs=None):
            self.on_epoch_begin(0)

    return StateReset()


if __name__ == "__main__":
    main()
