"""The recipe for KerasHub's causal language models, whole and small."""

import functools
import json
import types

import causal_lm
import keras
import keras_hub
import numpy as np
import processes
import pytest
from data import text as text_data
from processes import losses, results

import keras_kd as kd

LENGTH = 8
# With a teacher that is given; and with one that is trained.
STUDENT = (
    "--vocabulary 30 --student-hidden 4 --student-heads 2 --epochs 2 "
    f"--batch-size 16 --sequence-length {LENGTH}"
).split()
TINY = [
    *STUDENT,
    *"--teacher-layers 1 --teacher-hidden 8 --teacher-heads 2".split(),
    *("--teacher-epochs", "2"),
]
SENTENCES = {"train": 60, "valid": 11, "test": 13}

load = functools.partial(keras.models.load_model, compile=False)


finish = functools.partial(processes.finish, causal_lm)
refused = functools.partial(processes.refused, causal_lm)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences of 1 to 14 words, in a folder in Mikolov's form."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    for part, count in SENTENCES.items():
        lines = [
            " ".join(f"w{(start + i) % 20}" for i in range(words))
            for start, words in random.integers((0, 1), (20, 15), (count, 2))
        ]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run, and beside it "killed", what it would leave if it were killed."""
    folder = tmp_path_factory.mktemp("work") / "run"
    arguments = ["--data-dir", text, *TINY, "--no-cache", *losses("kd_pt")]
    arguments += ["--log-dir", folder]
    with processes.copied_after_an_epoch(
        causal_lm.CausalLMStudy, folder, folder.with_name("killed")
    ):
        return folder, arguments, finish(*arguments)


def test_a_run_gives_a_row_a_model_and_logs_for_each_loss(finished):
    folder, _, output = finished
    found = results(folder)
    assert set(found) == {"teacher", "student-kd_pt"}
    for name, result in found.items():
        model = load(folder / f"{name}.keras")
        assert isinstance(model, keras_hub.models.GPT2CausalLM)
        assert model.count_params() == result["parameters"]
        assert any((folder / "tensorboard" / name).rglob("*tfevents*"))
        assert name.removeprefix("student-") in output
    assert "tensorboard --logdir" in output


def test_reported_scores_are_those_of_documents_without_padding(finished, text):
    """Recomputed sentence by sentence, without a padding mask to hide it."""
    folder = finished[0]
    model = keras.models.load_model(
        folder / "student-kd_pt.keras", compile=False
    )
    words = text_data.read_folder(text).words()
    vocabulary = text_data.make_vocabulary(words["train"], 30)
    surprises, right = [], []
    for tokens in pieces_of(words["test"], vocabulary):
        token_ids = np.array([tokens[:-1]])
        mask = np.ones_like(token_ids)
        p = softmax(model({"token_ids": token_ids, "padding_mask": mask}))[0]
        surprises += (-np.log(p[np.arange(len(p)), tokens[1:]])).tolist()
        right += (p.argmax(-1) == tokens[1:]).tolist()
    result = results(folder)["student-kd_pt"]
    assert len(right) == len(words["test"]) - 1  # Without the empty line.
    assert result["test_accuracy"] == pytest.approx(np.mean(right), rel=1e-5)
    assert result["test_perplexity"] == pytest.approx(
        np.exp(np.mean(surprises)), rel=1e-5
    )


def pieces_of(words, vocabulary):
    """Token ids of at most LENGTH predictions, the first a word before."""
    end = vocabulary.index("<eos>")
    sentence = [end]
    for token in text_data.encode(words, vocabulary).tolist():
        sentence.append(token)
        if token == end:
            if len(sentence) > 2:
                for first in range(0, len(sentence) - 1, LENGTH):
                    yield np.array(sentence[first : first + LENGTH + 1])
            sentence = [end]


def softmax(logits):
    logits = np.array(keras.ops.convert_to_numpy(logits), "float64")
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_running_again_trains_nothing(finished):
    folder, arguments, _ = finished
    before = results(folder)
    assert "Epoch" not in finish(*arguments)
    assert results(folder) == before


def test_killed_and_run_again_ends_where_an_uninterrupted_run_does(finished):
    whole, arguments, _ = finished
    killed = whole.with_name("killed")
    assert set(results(killed)) == {"teacher"}
    output = finish(*arguments, "--log-dir", killed)
    assert "teacher: done before" in output and "Epoch 1/2" not in output
    found, expected = (
        results(folder)["student-kd_pt"] for folder in (killed, whole)
    )
    for key in ("valid_perplexity", "test_perplexity", "test_accuracy"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4)


def test_a_teacher_of_this_text_is_taken(finished, text, monkeypatch):
    studies = []

    def keep(recipe, about, make, strategy, chosen, *_, **__):
        studies.append(make(types.SimpleNamespace(writes=True), None, chosen))

    monkeypatch.setattr(causal_lm, "run_study", keep)
    path = finished[0] / "teacher.keras"
    finish("--data-dir", text, *STUDENT, "--teacher", path)
    teacher = load(path)
    assert studies[0].adapted_teacher(teacher) is teacher


# -- padding -------------------------------------------------------------------


def sequences(text, count=None):
    documents = text_data.read_folder(text)
    tokenizer = causal_lm.WordTokenizer(documents, 30)
    vocabulary = causal_lm.Vocabulary(tokenizer, tokenizer.vocabulary_size())
    return (
        causal_lm.make_sequences(documents.train[:count], vocabulary, LENGTH),
        vocabulary,
    )


def gpt2(classes, hidden=8, preprocessor=None):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=classes,
        num_layers=1,
        num_heads=2,
        hidden_dim=hidden,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def distil(data, classes, rate):
    """One step; the models, the logs, the histogram of gradient scales."""
    keras.utils.set_random_seed(0)
    teacher, student = gpt2(classes), gpt2(classes, hidden=4)
    # Tied weights of a standard deviation of 0.01 predict nothing yet.
    for model in (teacher, student):
        for variable in model.trainable_variables:
            noise = keras.random.normal(variable.shape, stddev=0.5)
            variable.assign_add(noise)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        optimizer=keras.optimizers.SGD(rate),
        loss=kd.KD(
            weight=0.5, temperature=2.0, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        run_eagerly=True,  # There is one step alone.
    )
    stream = causal_lm.examples(data).batch(len(data))
    history = distiller.fit(stream, verbose=0).history
    logs = {name: values[0] for name, values in history.items()}
    scales = distiller.gradient_scales["all"].summary()["histogram"]
    return teacher, student, logs, scales


def test_what_stands_in_the_padding_has_no_effect(text):
    data, vocabulary = sequences(text)
    assert 0.2 < data.weights.mean() < 0.9
    padding = data.weights == 0
    random = np.random.default_rng(1)

    def with_noise(values):
        noise = random.integers(0, vocabulary.classes, values.shape)
        return np.where(padding, noise, values).astype("int32")

    other = causal_lm.Sequences(
        x={**data.x, "token_ids": with_noise(data.x["token_ids"])},
        labels=with_noise(data.labels),
        weights=data.weights,
    )
    assert (other.x["token_ids"] != data.x["token_ids"]).any()
    _, student, logs, scales = distil(data, vocabulary.classes, rate=1.0)
    _, again, same_logs, same_scales = distil(
        other, vocabulary.classes, rate=1.0
    )
    assert logs == pytest.approx(same_logs, rel=1e-6)
    # All tokens and nothing else.
    assert scales.sum() == data.weights.sum()
    np.testing.assert_array_equal(scales, same_scales)
    for one, two in zip(student.weights, again.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_mean_over_tokens_of_documents_without_padding(text):
    data, vocabulary = sequences(text, count=15)
    teacher, student, logs, _ = distil(data, vocabulary.classes, rate=0.0)
    values = []
    for token_ids, labels, weights in zip(
        data.x["token_ids"], data.labels, data.weights, strict=True
    ):
        count = int(weights.sum())
        x = {
            "token_ids": token_ids[None, :count],
            "padding_mask": np.ones((1, count), "int32"),
        }
        v, z = (
            np.array(keras.ops.convert_to_numpy(model(x)), "float64")[0]
            for model in (teacher, student)
        )
        on_labels = np.log(softmax(z))[np.arange(count), labels[:count]]
        p, q = softmax(v / 2), softmax(z / 2)
        divergence = (p * np.log(p / q)).sum(-1)
        values += (-0.5 * on_labels + 0.5 * 4 * divergence).tolist()
    assert logs["loss"] == pytest.approx(np.mean(values), rel=1e-5)


def test_class_relations_are_read_from_tied_embeddings():
    """The rows found are those that make logits of the last features."""
    model = gpt2(20)
    x = {
        "token_ids": np.arange(LENGTH)[None],
        "padding_mask": np.ones((1, LENGTH), "int32"),
    }
    rows = kd.similarity.logit_weights(model)
    features = keras.ops.convert_to_numpy(model.backbone(x))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(x)), features @ rows.T, atol=1e-5
    )
    loss = kd.KDSim()
    loss.bind_teacher(model)


def test_a_copy_for_one_process_says_the_same():
    """What a worker writes the cache with, its embeddings still tied."""
    model = gpt2(20)
    copy = causal_lm.CausalLMStudy.teacher_of_one_process(None, model)
    x = {
        "token_ids": np.arange(LENGTH)[None],
        "padding_mask": np.ones((1, LENGTH), "int32"),
    }
    np.testing.assert_array_equal(model(x), copy(x))


# -- presets -------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MERGES = ["Ġ w", "w 1", "Ġw 1"]


def save_preset(folder, tokens, hidden=8):
    """A GPT-2 of random weights with its tokenizer, as KerasHub keeps it."""
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={token: index for index, token in enumerate(tokens)},
        merges=MERGES,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=LENGTH
    )
    model = gpt2(len(tokens), hidden, preprocessor)
    model.save_to_preset(str(folder))
    return model


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    tokens = ["<|endoftext|>", *LETTERS, "Ġ", "Ċ", "Ġw", "w1", "Ġw1"]
    save_preset(folder / "large", tokens, hidden=8)
    save_preset(folder / "small", tokens, hidden=4)
    save_preset(folder / "other", [tokens[0], *tokens[:0:-1]])
    return folder


def preset_vocabulary(teacher, student=None):
    """The vocabulary that presets decide on."""
    presets = {
        f"{role}_preset": name and str(name)
        for role, name in (("teacher", teacher), ("student", student))
    }
    return causal_lm.read_vocabulary(
        None, {**presets, "sequence_length": LENGTH}
    )


@pytest.fixture(scope="module")
def distilled(presets, text, tmp_path_factory):
    """A run with two presets and a cache, the student's learning rate 0."""
    folder = tmp_path_factory.mktemp("distilled")
    output = finish(
        *("--data-dir", text, "--log-dir", folder / "run", "--loss", "kd_pt"),
        *("--teacher-preset", presets / "large"),
        *("--student-preset", presets / "small"),
        *("--sequence-length", LENGTH, "--epochs", 1),
        *("--learning-rate", 0, "--cache", folder / "cache"),
    )
    assert "Teacher cache: " in output
    return folder


def test_one_preset_is_distilled_into_another(presets, distilled):
    for name, preset in (("teacher", "large"), ("student-kd_pt", "small")):
        # The teacher is not trained, the student at a rate of 0.
        found = load(distilled / "run" / f"{name}.keras").get_weights()
        expected = keras_hub.models.CausalLM.from_preset(str(presets / preset))
        for one, two in zip(found, expected.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    config = json.loads((distilled / "run" / "config.json").read_text())
    assert (config["teacher_epochs"], config["learning_rate"]) == (0, 0)
    student = load(distilled / "run" / "student-kd_pt.keras")
    student.compile(sampler="greedy", run_eagerly=True)
    assert student.generate("w1 w2", max_length=LENGTH).startswith("w1 w2")


def test_the_cache_holds_what_the_teacher_says_of_padded_sequences(
    presets, distilled, text
):
    name = str(presets / "large")
    data = causal_lm.make_sequences(
        text_data.read_folder(text).train,
        preset_vocabulary(name),
        LENGTH,
    )
    checked = kd.TeacherCache(distilled / "cache").verify(
        causal_lm.examples(data),
        keras_hub.models.CausalLM.from_preset(name),
        batches=len(data),
    )
    assert checked.examples == len(data)
    assert max(checked.largest_errors.values()) < 1e-3
    # Padding is not among the labels that it gets right.
    assert checked.teacher_accuracy == pytest.approx(checked.cached_accuracy)


def test_a_presets_tokenizer_reads_the_text(presets):
    vocabulary = preset_vocabulary(presets / "large")
    data = causal_lm.make_sequences(["w1 w1", "", "b"], vocabulary, LENGTH)
    tokens = ["<|endoftext|>", "w1", "Ġw1", "<|endoftext|>", "b"]
    start, *expected = [vocabulary.tokenizer.token_to_id(t) for t in tokens]
    assert data.labels[0, :3].tolist() == expected[:3]
    assert data.x["token_ids"][0, :3].tolist() == [start, *expected[:2]]
    assert data.x["token_ids"][1, :2].tolist() == [start, expected[3]]
    assert data.weights.sum(-1).tolist() == [3, 2]


# -- bad input -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir", "absent"], "absent"),
        (["--student-hidden", 5], "--student-hidden 5 with --student-heads 2"),
        (["--batch-size", 500], "too short"),
        (["--teacher-preset", "absent"], "can't be loaded"),
        (
            ["--teacher-preset", "large", "--teacher-layers", 3],
            "--teacher-layers and --teacher-preset",
        ),
        (
            ["--student-preset", "large", "--vocabulary", 30],
            "--vocabulary and --student-preset",
        ),
        (
            [
                *("--teacher-preset", "large", "--teacher-learning-rate", 1),
                *("--sequence-length", LENGTH),
            ],
            "--teacher-learning-rate does nothing where --teacher-epochs is 0",
        ),
        (["--attribute", "--logit-chunks", 2], "--logit-chunks does nothing"),
        (
            ["--teacher-preset", "large", "--sequence-length", LENGTH + 1],
            f"at most {LENGTH} tokens",
        ),
        (
            [
                *("--teacher-preset", "large", "--student-preset", "other"),
                *("--sequence-length", LENGTH),
            ],
            "one vocabulary",
        ),
        (
            ["--teacher-preset", "large", "--teacher", "other/task.json"],
            "one teacher",
        ),
    ],
)
def test_bad_options_are_refused_in_one_message(
    presets, text, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(presets)
    arguments = ["--data-dir", text, "--log-dir", tmp_path, *arguments]
    output = refused(*arguments)
    assert message in output
    assert not list(tmp_path.iterdir())


def test_a_differing_token_is_named(presets, text):
    with pytest.raises(ValueError) as caught:
        preset_vocabulary(presets / "large", presets / "other")
    words = "'Ġw1' is 1 to the student and is 41 to the teacher"
    assert words in str(caught.value)


def test_presets_of_several_numbers_of_logits_are_refused(
    presets, tmp_path, monkeypatch
):
    read = causal_lm.read_preset

    def padded(name, length):
        model = read(name, length)
        if name.endswith("small"):
            logits = keras.ops.pad(model.output, [[0, 0], [0, 0], [0, 3]])
            other = keras.Model(model.input, logits)
            other.preprocessor = model.preprocessor
            return other
        return model

    monkeypatch.setattr(causal_lm, "read_preset", padded)
    with pytest.raises(ValueError, match="45 classes and a teacher with 42"):
        preset_vocabulary(presets / "large", presets / "small")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--vocabulary", 10), "for a text of 10"),
        (("--limit-train", 30), "means another word than in this text"),
        (("--sequence-length", LENGTH + 1), f"at most {LENGTH} tokens"),
    ],
)
def test_a_teacher_that_does_not_fit_the_text_is_refused(
    finished, text, tmp_path, option, message
):
    teacher = finished[0] / "teacher.keras"
    arguments = ["--data-dir", text, "--log-dir", tmp_path, *STUDENT, *option]
    assert message in refused(*arguments, "--teacher", teacher)


def test_a_teacher_of_other_inputs_is_refused(text, tmp_path):
    classes = sequences(text)[1].classes
    inputs = keras.Input((LENGTH,), dtype="int32")
    outputs = keras.layers.Embedding(classes, classes)(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "teacher.keras")
    output = refused(
        *("--data-dir", text, "--log-dir", tmp_path / "run", *STUDENT),
        *("--teacher", tmp_path / "teacher.keras"),
    )
    assert "takes something else" in output


@pytest.mark.parametrize(
    ("classes", "option", "expected"),
    [
        (19_999, None, None),
        (20_000, None, "auto"),
        (20_000, 0, None),
        (30, 4, 4),
    ],
)
def test_a_large_vocabulary_is_trained_by_chunks(classes, option, expected):
    study = types.SimpleNamespace(
        options={"logit_chunks": option}, classes=lambda: classes
    )
    arguments = causal_lm.CausalLMStudy.distiller_arguments(study)
    assert arguments == {"logit_chunks": expected}
