"""Which part of a teacher's knowledge helps a small GPT-2?

Trains a KerasHub causal language model as teacher, then a smaller student once
with each loss, and compares their perplexities (Tang et al. 2020,
"Understanding and Improving Knowledge Distillation", applied to
transformers). Documents are padded to one length; the padding counts nowhere.

    python recipes/causal_lm.py

trains GPT-2s from random weights on English text that CPython ships, word by
word, in about six minutes on one core.

    python recipes/causal_lm.py --teacher-preset gpt2_medium_en \
        --student-preset gpt2_base_en --sequence-length 256 --batch-size 8 \
        --epochs 2 --data-dir wikitext

distils one trained model into another, for a machine with a GPU. Presets are
whatever `keras_hub.models.CausalLM.from_preset` takes, folders included; their
tokenizer reads the text.
"""

import study.quiet  # noqa: F401

# isort: split
import dataclasses
import functools

import click
import keras
import keras_hub
import numpy as np
import tensorflow as tf
from data import batches, text
from study import language_model, options, strategies
from study.comparison import run_study
from study.messages import counted, errors_as_messages, first_line
from study.methods import TEXT_ARGUMENTS
from study.options import positive, share

from keras_kd.logits import class_count_message
from keras_kd.preprocessing import check_tokenizers

ROLES = ("teacher", "student")
# Of a role's options, those that a preset decides.
_ARCHITECTURE = ("layers", "hidden", "heads", "dropout")
# Defaults where there is a preset: a trained student is trained further with
# care, and a trained teacher not at all.
_PRESET_DEFAULTS = {
    "teacher": {"teacher_epochs": 0, "teacher_learning_rate": 1e-4},
    "student": {"learning_rate": 1e-4},
}
_OPTIMIZERS = {
    "adam": {
        "learning_rate": 5e-3,
        "teacher_learning_rate": 2e-3,
        "clip_norm": 5.0,
    }
}
# From so many tokens on, logits are computed by chunks unless told otherwise.
_LARGE_VOCABULARY = 20_000


def _read_chunks(context, parameter, value):
    """An integer, "auto", or `None`; what a Distiller would refuse is refused.

    "0" stands for all logits at once.
    """
    del context, parameter
    if value in (None, "auto"):
        return value
    if not value.isdecimal():
        raise click.BadParameter(f'{value!r} is not a number, nor "auto".')
    return int(value)


@click.command(context_settings={"show_default": True})
@language_model.text_options
@click.option(
    "--limit-train",
    type=positive,
    help="Documents to train on: paragraphs, or lines of a file. [default: "
    "3,000 of CPython's text, else all]",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=2),
    default=2000,
    help="Words, where there is no preset.",
)
@click.option(
    "--teacher-preset",
    help="A causal language model of KerasHub, or a folder with one, as the "
    "teacher; it is used as it is, unless --teacher-epochs is given, then with "
    "a learning rate of 1e-4.",
)
@click.option("--teacher-layers", type=positive, default=2)
@click.option("--teacher-hidden", type=positive, default=128, help="Units.")
@click.option("--teacher-heads", type=positive, default=4)
@click.option("--teacher-dropout", type=share, default=0.2)
@click.option("--teacher-epochs", type=click.IntRange(min=0), default=8)
@click.option(
    "--student-preset",
    help="The same as the student, with the teacher's vocabulary; it is "
    "trained further with a learning rate of 1e-4.",
)
@click.option("--student-layers", type=positive, default=1)
@click.option("--student-hidden", type=positive, default=32, help="Units.")
@click.option("--student-heads", type=positive, default=2)
@click.option("--student-dropout", type=share, default=0.0)
@click.option("--epochs", type=positive, default=8, help="Of the student.")
@click.option("--batch-size", type=positive, default=32, help="Global.")
@click.option(
    "--sequence-length",
    type=positive,
    default=32,
    help="Tokens; a longer document continues in another sequence.",
)
@click.option(
    "--logit-chunks",
    callback=_read_chunks,
    metavar="NUMBER",
    help="In how many chunks of tokens logits are computed, so that they never "
    'fill the memory; "auto" chooses, 0 computes all at once. [default: auto '
    f"from {_LARGE_VOCABULARY:,} classes on, else 0]",
)
@language_model.optimizer_options(_OPTIMIZERS)
@options.shared_options(("plain", "kd_pt", "kd"))
@errors_as_messages()
def main(losses, log_dir, **chosen):
    """Compares distillation losses on a causal language model of KerasHub."""
    given = options.given_options()
    check_options(chosen, given)
    chosen = with_preset_defaults(chosen, given)
    strategy = strategies.make_strategy(chosen["strategy"], chosen["replicas"])
    documents = read_documents(**chosen)
    vocabulary = read_vocabulary(documents, chosen)
    data = read_data(documents, vocabulary, chosen)
    sizes = [f"{part}: {sequences}" for part, sequences in data.items()]
    classes = f"{vocabulary.classes:,} classes of tokens."
    run_study(
        "causal_lm",
        "\n".join([documents.source, *sizes, classes]),
        functools.partial(CausalLMStudy, data, vocabulary),
        strategy,
        chosen,
        losses,
        log_dir,
        checksums=documents.checksums,
        labels=data["train"].labels.size,
        classes=vocabulary.classes,
        arguments=CausalLMStudy.loss_arguments,
    )


# -- options -------------------------------------------------------------------


def check_options(options, given):
    """Refuses options that contradict each other.

    Args:
        options: dict of the command's options.
        given: set of names of those that were given.

    Raises:
        ValueError: naming them.
    """
    if options["teacher"] and options["teacher_preset"]:
        raise ValueError(
            f"There is one teacher. Received: --teacher {options['teacher']} "
            f"and --teacher-preset {options['teacher_preset']}. Leave one of "
            "them out."
        )
    for role in ROLES:
        shape = _architecture(options, role)
        decided = given & {"vocabulary", *(f"{role}_{name}" for name in shape)}
        if options[f"{role}_preset"] and decided:
            raise ValueError(
                "A preset decides on its layers and its vocabulary. Received: "
                f"--{min(decided).replace('_', '-')} and --{role}-preset. "
                "Leave one of them out."
            )
        heads = shape["heads"]
        if not options[f"{role}_preset"] and shape["hidden"] % heads:
            raise ValueError(
                "The heads must share the hidden units evenly. Received: "
                f"--{role}-hidden {shape['hidden']} with --{role}-heads "
                f"{heads}. Use a multiple of {heads}."
            )


def _architecture(options, role):
    return {name: options[f"{role}_{name}"] for name in _ARCHITECTURE}


def with_preset_defaults(options, given):
    """The options, with other defaults where there is a preset.

    Args:
        options: dict of the command's options.
        given: set of names of those that were given.

    Returns:
        A dict.
    """
    changed = {
        name: value
        for role in ROLES
        if options[f"{role}_preset"]
        for name, value in _PRESET_DEFAULTS[role].items()
        if name not in given
    }
    return {**options, **changed}


def read_documents(data_dir, download, limit_train, **_):
    """The text that the options ask for; see `text.load_documents`."""
    if limit_train is None and not (data_dir or download):
        limit_train = 3_000
    documents = text.load_documents(data_dir, download)
    return dataclasses.replace(documents, train=documents.train[:limit_train])


# -- vocabulary ----------------------------------------------------------------


class WordTokenizer:
    """Words between spaces, with what is used here of KerasHub's tokenizers.

    Args:
        documents: `text.Documents`.
        size: at most this many words, `<unk>` among them.

    Attributes:
        words: list of the words by id.
    """

    pad_token_id = 0

    def __init__(self, documents, size):
        self._split = documents.split
        self.words = text.make_vocabulary(documents.words()["train"], size)
        (end,) = text.encode([text.EOS], self.words)
        self.start_token_id = self.end_token_id = int(end)

    def vocabulary_size(self):
        """Number of words."""
        return len(self.words)

    def __call__(self, documents):
        """Lists of word ids."""
        return [
            text.encode(self._split(document), self.words).tolist()
            for document in documents
        ]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What turns text into the classes that teacher and student predict.

    Attributes:
        tokenizer: a `WordTokenizer`, or a KerasHub tokenizer.
        classes: number of logits, which may exceed the tokenizer's tokens.
        preprocessor: the KerasHub preprocessor that holds the tokenizer, or
            `None`.
    """

    tokenizer: object
    classes: int
    preprocessor: object = None


def read_vocabulary(documents, options):
    """The vocabulary of the presets, or of words where there are none.

    Args:
        documents: `text.Documents`.
        options: dict of the command's options.

    Returns:
        A `Vocabulary`.

    Raises:
        ValueError: if a preset can't be used, or the two differ.
    """
    presets = [
        read_preset(options[f"{role}_preset"], options["sequence_length"])
        for role in ROLES
        if options[f"{role}_preset"]
    ]
    if not presets:
        tokenizer = WordTokenizer(documents, options["vocabulary"])
        return Vocabulary(tokenizer, tokenizer.vocabulary_size())
    if len(presets) == 2:
        teacher, student = presets
        check_tokenizers(student, teacher)
        counts = [model.output_shape[-1] for model in (student, teacher)]
        if counts[0] != counts[1]:
            raise ValueError(class_count_message(*counts))
    preprocessor = presets[0].preprocessor
    classes = presets[0].output_shape[-1]
    return Vocabulary(preprocessor.tokenizer, classes, preprocessor)


def read_preset(name, sequence_length):
    """A preset without its weights, which tells its vocabulary.

    Args:
        name: what `keras_hub.models.CausalLM.from_preset` takes.
        sequence_length: integer, tokens that it must be able to read.

    Returns:
        A KerasHub task.

    Raises:
        ValueError: if it can't be loaded, has no tokenizer, or does not take
            such sequences.
    """
    try:
        model = keras_hub.models.CausalLM.from_preset(name, load_weights=False)
    # What comes depends on where the preset is looked for.
    except Exception as error:
        raise ValueError(
            "The preset can't be loaded as a causal language model. Received: "
            f"{name} ({type(error).__name__}: {first_line(error)}). Choose a "
            "preset of KerasHub, or the folder of one that was saved by "
            "`save_to_preset`."
        ) from error
    if model.preprocessor is None:
        raise ValueError(
            "A preset must have a tokenizer to read the text with. Received: "
            f"{name} without one. Save it with its preprocessor."
        )
    check_inputs(model, name, sequence_length)
    return model


def check_inputs(model, name, sequence_length):
    """Refuses a model that does not take the sequences.

    Args:
        model: a `keras.Model`.
        name: of its preset or file.
        sequence_length: integer.

    Raises:
        ValueError: naming what it takes.
    """
    wanted = {"token_ids", "padding_mask"}
    inputs = model.input
    names = set(inputs) if isinstance(inputs, dict) else "something else"
    if names != wanted:
        raise ValueError(
            f"The model must take {sorted(wanted)}, as KerasHub's text models "
            f"do. Received: {name}, which takes {names}. Choose another."
        )
    backbone = getattr(model, "backbone", None)
    longest = getattr(backbone, "max_sequence_length", sequence_length)
    if sequence_length > longest:
        raise ValueError(
            f"{name} reads at most {longest} tokens. Received: "
            f"--sequence-length {sequence_length}. Lower it, or choose "
            "another model."
        )


# -- sequences -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Documents as a causal language model takes them.

    Attributes:
        x: dict of "token_ids" and "padding_mask", each [sequences, length]
            int32, the mask 1 where there is a token.
        labels: [sequences, length] int32, the token after each.
        weights: [sequences, length] float32, the mask: labels of padding
            count nowhere.
    """

    x: dict
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __str__(self):
        return (
            f"{counted(int(self.weights.sum()), 'token')} to predict in "
            f"{counted(len(self), 'sequence')}, "
            f"{1 - self.weights.mean():.0%} padding."
        )

    @property
    def arrays(self):
        """(x, labels, sample_weight), as `fit` takes them."""
        return self.x, self.labels, self.weights


def make_sequences(documents, vocabulary, length):
    """Cuts documents into padded sequences.

    Each document begins after the start token and ends with the end token, as
    in KerasHub's preprocessors. They drop what is longer than a sequence; here
    it continues in the next, so that each token is predicted exactly once.

    Args:
        documents: list of strings; those without a token are left out.
        vocabulary: a `Vocabulary`.
        length: integer.

    Returns:
        `Sequences`.
    """
    tokenizer = vocabulary.tokenizer
    start = [tokenizer.start_token_id]
    if start == [None]:
        start = []  # Not every model was trained with one.
    pieces = []
    for ids in _token_ids(tokenizer, documents):
        tokens = [*start, *ids, tokenizer.end_token_id]
        if ids:
            pieces += [
                tokens[first : first + length + 1]
                for first in range(0, len(tokens) - 1, length)
            ]
    padded = np.full((len(pieces), length + 1), tokenizer.pad_token_id, "int32")
    for row, piece in zip(padded, pieces, strict=True):
        row[: len(piece)] = piece
    # The last token of a piece is a label alone.
    counts = np.array([len(piece) - 1 for piece in pieces], dtype="int32")
    mask = np.arange(length) < counts[:, None]
    return Sequences(
        x={
            "token_ids": np.where(mask, padded[:, :-1], tokenizer.pad_token_id),
            "padding_mask": mask.astype("int32"),
        },
        labels=padded[:, 1:],
        weights=mask.astype("float32"),
    )


def _token_ids(tokenizer, documents):
    """Lists of ids; KerasHub gives them as lists or as a ragged tensor."""
    ids = tokenizer(documents) if documents else []
    return ids.to_list() if hasattr(ids, "to_list") else ids


def read_data(documents, vocabulary, options):
    """The sequences of each part, enough to train and to test.

    Args:
        documents: `text.Documents`.
        vocabulary: a `Vocabulary`.
        options: dict of the command's options.

    Returns:
        Dict by part of `Sequences`.

    Raises:
        ValueError: if the text is too short, with the numbers of sequences.
    """
    length, batch_size = options["sequence_length"], options["batch_size"]
    data = {
        part: make_sequences(getattr(documents, part), vocabulary, length)
        for part in text.PARTS
    }
    sizes = {part: len(sequences) for part, sequences in data.items()}
    if sizes["train"] < batch_size or not all(sizes.values()):
        raise ValueError(
            "The text is too short: it must fill a training batch, and have "
            f"something to validate and test on. Received: {sizes} sequences "
            f"for batches of {batch_size}. Use more text, or a smaller "
            "--batch-size."
        )
    return data


def examples(sequences):
    """The sequences one by one, in order, as a `tf.data.Dataset`."""
    return tf.data.Dataset.from_tensor_slices(sequences.arrays)


# -- the study -----------------------------------------------------------------


class CausalLMStudy(language_model.LanguageModelStudy):
    """Causal language models of KerasHub; see `study.study.Study`.

    Args:
        data: dict by part of `Sequences`.
        vocabulary: a `Vocabulary`.
        run: a `RunFolder`.
        strategy: a `tf.distribute.Strategy`.
        options: dict of the command's options.
    """

    loss_arguments = TEXT_ARGUMENTS
    columns = (
        ("test", "test_perplexity", 1, ".2f"),
        ("right %", "test_accuracy", 100, ".2f"),
    )

    def __init__(self, data, vocabulary, run, strategy, options):
        super().__init__(run, strategy, options)
        self.data = data
        self._vocabulary = vocabulary
        self.train_size = len(data["train"])

    def classes(self):
        """Number of logits."""
        return self._vocabulary.classes

    def vocabulary(self):
        """The words, or `None` with a preset."""
        return getattr(self._vocabulary.tokenizer, "words", None)

    def training_ids(self):
        """What is predicted, without padding."""
        sequences = self.data["train"]
        return sequences.labels[sequences.weights > 0]

    def distiller_arguments(self):
        """By chunks where the vocabulary is large."""
        chunks = self.options["logit_chunks"]
        if chunks is None and self.classes() >= _LARGE_VOCABULARY:
            chunks = "auto"
        return {"logit_chunks": chunks or None}

    def adapted_teacher(self, model):
        """A loaded model, refused if it does not take these sequences."""
        model = super().adapted_teacher(model)
        name = self.options["teacher"] or "The teacher"
        check_inputs(model, name, self.options["sequence_length"])
        return model

    def training_data(self, role, first_epoch):
        """Shuffled batches of padded sequences."""
        return batches.shuffled(
            self.data["train"].arrays,
            self.train_size,
            self.options["batch_size"],
            self.options["seed"],
            first_epoch,
        )

    def cached_data(self):
        """The sequences in order."""
        return examples(self.data["train"])

    def diagnosed_data(self):
        """The sequences in order, in batches."""
        return self.cached_data().batch(self.options["batch_size"])

    def evaluation_data(self):
        """Validation text, which `fit` reports, and test text."""
        return {
            part: batches.full_batches(
                examples(self.data[part]),
                len(self.data[part]),
                self.options["batch_size"],
            )
            for part in ("valid", "test")
        }

    def metrics(self):
        """Perplexity, and how often the next token is right."""
        return [
            *super().metrics(),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ]

    def build(self, role):
        """The preset, or a GPT-2 of random weights."""
        preset = self.options[f"{role}_preset"]
        if preset:
            return keras_hub.models.CausalLM.from_preset(
                preset, dtype=keras.config.dtype_policy().name
            )
        shape = _architecture(self.options, role)
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=self.classes(),
            num_layers=shape["layers"],
            num_heads=shape["heads"],
            hidden_dim=shape["hidden"],
            intermediate_dim=4 * shape["hidden"],
            dropout=shape["dropout"],
            max_sequence_length=self.options["sequence_length"],
        )
        # With it a saved model can generate text.
        preprocessor = self._vocabulary.preprocessor
        return keras_hub.models.GPT2CausalLM(
            backbone, preprocessor, name=self.model_name(role)
        )


if __name__ == "__main__":
    main()
