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

import contextlib

import click
import common
import text_data

PLAIN = "plain"
LOSSES = (
    PLAIN,
    "label_smoothing",
    "kd_pt",
    "kd_sim",
    "kd_pt_sim",
    "kd_topk",
    "kd",
)
# What fills up the last batch has weight 0 and must not count in the mean.
REDUCTION = "mean_with_sample_weight"
DEFAULT_LOSSES = (PLAIN, "kd_pt", "kd_pt_sim", "kd")

positive = click.IntRange(min=1)
share = click.FloatRange(0, 1)


@click.command(context_settings={"show_default": True})
@click.option(
    "--loss",
    "losses",
    multiple=True,
    type=click.Choice(LOSSES),
    default=DEFAULT_LOSSES,
    help="A loss to train the student with; may be given several times.",
)
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with {train,valid,test}.txt, or with ptb. before the names.",
)
@click.option("--download", is_flag=True, help="Fetch PTB, once.")
@click.option(
    "--tokens",
    type=positive,
    help="Tokens of the training text. [default: 120,000 of CPython's text, "
    "else all]",
)
@click.option("--vocabulary", type=positive, default=3000, help="Words.")
@click.option(
    "--teacher",
    type=click.Path(exists=True, dir_okay=False),
    help="A trained teacher, instead of training one.",
)
@click.option("--teacher-units", type=positive, default=192)
@click.option("--teacher-layers", type=positive, default=1)
@click.option("--teacher-dropout", type=share, default=0.5)
@click.option("--teacher-epochs", type=positive, default=14)
@click.option("--student-units", type=positive, default=64)
@click.option("--student-layers", type=positive, default=1)
@click.option("--student-dropout", type=share, default=0.0)
@click.option("--epochs", type=positive, default=12, help="Of the student.")
@click.option("--batch-size", type=positive, default=32, help="Global.")
@click.option("--time-steps", type=positive, default=35, help="Per segment.")
@click.option(
    "--weight",
    type=share,
    help="Of the distillation term. [default: each loss's own]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    help="Of the losses that have one.",
)
@click.option("--optimizer", type=click.Choice(("adam", "sgd")), default="adam")
@click.option("--learning-rate", type=float, default=5e-3)
@click.option(
    "--decay",
    type=click.Choice(("cosine", "none")),
    default="cosine",
    help="Of the learning rate, over all steps.",
)
@click.option("--clip-norm", type=float, default=5.0, help="Global norm.")
@click.option(
    "--strategy", type=click.Choice(("one", "mirrored")), default="one"
)
@click.option("--replicas", type=positive, help="Of --strategy mirrored.")
@click.option("--mixed-precision", is_flag=True, help="Compute in float16.")
@click.option("--seed", type=int, default=0)
@click.option(
    "--log-dir",
    type=click.Path(),
    help="Run folder. [default: a folder below runs/ named after the options]",
)
def main(**options):
    """Compares distillation losses on an LSTM language model."""
    with common.errors_as_messages():
        study(**options)


def study(losses, log_dir, **options):
    """Runs the study.

    Args:
        losses: names of losses.
        log_dir: path of the run folder, or `None`.
        **options: the other options of the command.

    Returns:
        The `common.RunFolder`.
    """
    corpus = read_corpus(**options)
    # Losses may be added to a run later; everything else makes it another.
    run = common.RunFolder("ptb_lstm", options, log_dir)
    click.echo(corpus.source)
    click.echo(
        f"{len(corpus.train):,} training tokens, {len(corpus.test):,} test "
        f"tokens, {len(corpus.vocabulary):,} words. Run folder: {run.folder}"
    )
    strategy = common.make_strategy(options["strategy"], options["replicas"])
    trainer = LanguageModelTrainer(corpus, strategy, run, options)
    teacher = trainer.teacher()
    for name in losses:
        trainer.student(name, teacher)
    common.print_table("Perplexity (lower is better)", table_rows(run))
    click.echo(f"tensorboard --logdir {run.tensorboard}")
    return run


def read_corpus(data_dir, download, tokens, vocabulary, **_):
    """The text that the options ask for; see `text_data.load`."""
    if tokens is None and not (data_dir or download):
        tokens = 120_000
    return text_data.load(data_dir, download, tokens, vocabulary)


class LanguageModelTrainer:
    """Trains and evaluates the study's models.

    Args:
        corpus: a `text_data.Corpus`.
        strategy: a `tf.distribute.Strategy`.
        run: a `common.RunFolder`.
        options: dict of the command's options.
    """

    def __init__(self, corpus, strategy, run, options):
        import keras

        self.corpus = corpus
        self.strategy = strategy
        self.run = run
        self.options = options
        if options["mixed_precision"]:
            keras.config.set_dtype_policy("mixed_float16")
        batch, replicas = options["batch_size"], strategy.num_replicas_in_sync
        if batch % replicas:
            raise ValueError(
                "Each replica carries on the state of its own streams, so the "
                f"batch must be shared evenly. Received: --batch-size {batch} "
                f"for {replicas} replicas. Use a multiple of {replicas}."
            )
        self.input_shape = (batch // replicas, options["time_steps"])
        self.data = {
            part: text_data.segments(
                getattr(corpus, part), batch, options["time_steps"]
            )
            for part in text_data.PARTS
        }

    def teacher(self):
        """The teacher: the one given, or one trained now or before."""
        import keras

        path = self.options["teacher"]
        if path is None:
            path = self.run.model("teacher")
            self.run.train_once("teacher", self._train_teacher)
        with self.strategy.scope():
            teacher = self._fit_to_data(keras.models.load_model(path))
        if self.options["teacher"]:
            self.run.train_once(
                "teacher", lambda callbacks: self._evaluate(teacher)
            )
        return teacher

    def _train_teacher(self, callbacks):
        options = self.options
        with self._seeded_scope():
            model = self._language_model("teacher")
            self._compile(model, options["teacher_epochs"])
        return self._fit("teacher", model, model, callbacks)

    def student(self, loss_name, teacher):
        """Trains a student with a loss, unless it is done."""
        self.run.train_once(
            f"student-{loss_name}",
            lambda callbacks: self._train_student(
                loss_name, teacher, callbacks
            ),
        )

    def _train_student(self, loss_name, teacher, callbacks):
        import keras_kd as kd

        epochs = self.options["epochs"]
        with self._seeded_scope():
            student = trained = self._language_model("student")
            if loss_name == PLAIN:
                self._compile(student, epochs)
            else:
                trained = kd.Distiller(student, teacher)
                self._compile(trained, epochs, self._loss(loss_name))
        result = self._fit(
            f"student-{loss_name}", trained, student, callbacks, teacher
        )
        if loss_name != PLAIN:
            scale = trained.gradient_scales["all"].summary()
            result["gradient_scale"] = scale["mean"]
            result["reversed_share"] = scale["reversed_share"]
        return result

    def _loss(self, name):
        """A loss with the weight and temperature asked for."""
        import keras_kd as kd

        arguments = {"reduction": REDUCTION}
        weight = self.options["weight"]
        if name != "label_smoothing":
            arguments["temperature"] = self.options["temperature"]
        if weight is not None and name == "kd_pt_sim":
            default = kd.KDPtSim()
            pt, sim = float(default.pt_weight), float(default.sim_weight)
            arguments["pt_weight"] = weight * pt / (pt + sim)
            arguments["sim_weight"] = weight * sim / (pt + sim)
        elif weight is not None:
            arguments["weight"] = weight
        return kd.losses.get(name, **arguments)

    def _language_model(self, role):
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

    def _compile(self, model, epochs, loss=None):
        import keras
        import keras_nlp

        options = self.options
        rate = options["learning_rate"]
        if options["decay"] == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(
                rate, epochs * len(self.data["train"])
            )
        make = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
        model.compile(
            optimizer=make[options["optimizer"]](
                rate, global_clipnorm=options["clip_norm"]
            ),
            loss=loss
            or keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction=REDUCTION
            ),
            weighted_metrics=[
                keras_nlp.metrics.Perplexity(
                    from_logits=True, name="perplexity"
                )
            ],
        )

    def _fit(self, name, model, student, callbacks, teacher=None):
        """Fits a model, saves `student` and returns its results."""
        import keras

        import keras_kd as kd

        epochs = "teacher_epochs" if name == "teacher" else "epochs"
        board = (
            keras.callbacks.TensorBoard
            if model is student
            else kd.callbacks.KDTensorBoard
        )
        model.fit(
            self.data["train"],
            validation_data=self.data["valid"],
            shuffle=False,
            epochs=self.options[epochs],
            callbacks=[
                *callbacks,
                make_state_reset(student, teacher),
                board(str(self.run.tensorboard / name)),
            ],
        )
        student.save(self.run.model(name))
        return self._evaluate(student)

    def _evaluate(self, model):
        with self.strategy.scope():
            self._compile(model, epochs=1)
        results = {"parameters": model.count_params()}
        for part in ("valid", "test"):
            scores = model.evaluate(
                self.data[part],
                callbacks=[make_state_reset(model)],
                verbose=0,
                return_dict=True,
            )
            results[f"{part}_perplexity"] = float(scores["perplexity"])
        return results

    def _fit_to_data(self, model):
        """A loaded model, for this run's vocabulary and batch size.

        A stateful model is bound to the batch size that it was built with.
        """
        import keras

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
        inputs = keras.Input(batch_shape=self.input_shape, dtype="int32")
        clone = keras.models.clone_model(model, input_tensors=inputs)
        for new, old in zip(
            clone.trainable_weights, model.trainable_weights, strict=True
        ):
            new.assign(old)
        return clone

    @contextlib.contextmanager
    def _seeded_scope(self):
        """The strategy's scope, with the seed set anew.

        Each model then starts from the same numbers whether or not others
        were trained before it.
        """
        import keras

        keras.utils.set_random_seed(self.options["seed"])
        with self.strategy.scope():
            yield


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


def table_rows(run):
    """The results of a run as rows of strings, the teacher last."""
    results = run.results
    teacher = results.pop("teacher")
    rows = [*results.items(), ("teacher", teacher)]
    return [
        {
            "loss": name.removeprefix("student-"),
            "parameters": f"{result['parameters']:,}",
            "valid": f"{result['valid_perplexity']:.2f}",
            "test": f"{result['test_perplexity']:.2f}",
            "mean w": _number(result.get("gradient_scale"), ".2f"),
            "reversed": _number(result.get("reversed_share"), ".1%"),
            "seconds": f"{result['seconds']:.0f}",
        }
        for name, result in rows
    ]


def _number(value, form):
    return "-" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
