"""Faults of use: what a diagnosis counts, tries and finds."""

import failures
import keras
import numpy as np
import pytest
import reference
import scipy.stats
import tensorflow as tf
from keras import layers

import keras_kd as kd
from keras_kd.diagnosis import (
    finding,
    initialised,
    measures,
    normalisers,
    trials,
    verdict,
)
from keras_kd.diagnosis.agreement import Agreement, agreement_numbers

CLASSES, EXAMPLES = 12, 1200
# What no finding may speak of where a teacher is near chance.
UNRELATED = {
    "noisy_labels",
    "label_smoothed_teacher",
    "noisy_tail",
    "over_confident",
    "temperature_too_high",
    "under_confident",
}


# Those that try other forms of the inputs run many steps, and are traced.
pytestmark = pytest.mark.usefixtures("functions_run_eagerly")
traced = pytest.mark.usefixtures("traced")


def batched(*arrays, size=600, **kwargs):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size, **kwargs)


def knowing(classes=CLASSES, seed=0):
    """Logits of a teacher that is as right as it is sure, and the labels.

    It is sure of half of the examples; in the others, the label's neighbour
    is as likely as the label.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, EXAMPLES)
    relations = random.normal(size=(classes, classes))
    np.fill_diagonal(relations, 6)
    neighbours = 6 * reference.one_hot((labels + 1) % classes, classes)
    is_hard = random.random(EXAMPLES) < 0.5
    logits = relations[labels] + is_hard[:, None] * neighbours
    logits += 0.3 * random.normal(size=logits.shape)
    return logits.astype("float32"), labels


def passing_through(classes=CLASSES):
    inputs = keras.Input((classes,))
    return keras.Model(inputs, layers.Identity()(inputs))


def found(logits, labels, **kwargs):
    """The problems with a teacher of given logits."""
    teacher = passing_through(logits.shape[-1])
    return kd.diagnose(teacher, batched(logits, labels), **kwargs).problems


# -- padding that counts -------------------------------------------------------


def texts(side="end", steps=12, words=8):
    """Ids, next ids and a teacher that knows the odds of the next one.

    Half of the texts fill 12 steps, the others are padded with 0: an end on
    their last 4 inputs and 5 labels, a start on their first 4 and 3.
    """
    random = np.random.default_rng(0)
    odds = random.dirichlet(np.full(words, 0.3), size=words)
    ids = np.zeros((64, steps + 1), "int32")
    for row in ids:
        for t in range(1, steps + 1):
            row[t] = random.choice(words, p=odds[row[t - 1]])
    # No text has the id of padding.
    x, y = ids[:, :-1] + 1, ids[:, 1:] + 1
    if side == "end":
        x[::2, -4:] = y[::2, -5:] = 0
    else:
        x[::2, :4] = y[::2, :3] = 0
    log_odds = np.full((words + 1, words + 1), -20, "float32")
    log_odds[1:, 1:] = np.log(odds + 1e-6)
    return x, y, log_odds


def reading(log_odds, shape=(None,), **kwargs):
    """A teacher that gives the log-odds of each input's next one."""
    inputs = keras.Input(shape, dtype="int32")
    table = layers.Embedding(*log_odds.shape, **kwargs)
    teacher = keras.Model(inputs, table(inputs))
    table.set_weights([log_odds])
    return teacher


@pytest.mark.parametrize(("side", "padding"), [("end", 4), ("start", 3)])
def test_padding_that_counts_is_named(side, padding):
    x, y, log_odds = texts(side)
    problem, *_ = kd.diagnose(reading(log_odds), (x, y)).findings
    assert problem.code == "padding_counts"
    evidence = problem.evidence
    assert (evidence["side"], evidence["class"]) == (side, 0)
    assert (evidence["rows"], evidence["sequences"]) == (32, 64)
    assert evidence["share"] == 32 * padding / (64 * 12)
    assert f"sequences looked at {side} with input 0" in problem.summary


@pytest.mark.parametrize("how", ["weights", "ignore_class", "mask"])
def test_padding_that_does_not_count_is_not_named(how):
    x, y, log_odds = texts()
    weights = {"weights": ((y != 0) * 1.0,)}.get(how, ())
    loss = kd.KD(ignore_class=0 if how == "ignore_class" else None)
    teacher = reading(log_odds, mask_zero=how == "mask")
    diagnosis = kd.diagnose(teacher, (x, y, *weights), loss=loss)
    assert diagnosis.numbers["data"]["padding"] is None


def test_padding_is_found_in_features_and_beside_other_inputs():
    x, y, log_odds = texts()
    steps = keras.Input((12, 3))
    place = keras.Input((2,))
    wide = np.stack([x, 2 * x, 0 * x], axis=-1).astype("float32")
    ids = layers.Lambda(lambda steps: steps[..., 0])(steps)
    teacher = keras.Model([steps, place], reading(log_odds)(ids))
    data = ((wide, np.zeros((64, 2), "float32")), y)
    problem, *_ = kd.diagnose(teacher, data).findings
    assert problem.code == "padding_counts"
    assert problem.evidence["step"] is None
    assert problem.evidence["share"] == 32 * 4 / (64 * 12)


def test_a_mask_or_a_segment_is_not_padding():
    x, y, log_odds = texts()
    x, y = np.concatenate([x, 0 * x[:, :2]], 1), np.concatenate([y, y], 1)
    y = y[:, :14]
    y[:, 12:] = 0
    mask = (x > 0).astype("int32")
    segment = np.zeros_like(x)
    segment[:, 6:] = 1
    y[:, :8] = 3  # Of each segment's labels most are the same.
    inputs = [keras.Input((14,), dtype="int32") for _ in range(3)]
    teacher = keras.Model(inputs, reading(log_odds)(inputs[0]))
    data = ((x, mask, segment), y, (y > 0) * 1.0)
    diagnosis = kd.diagnose(teacher, data)
    assert diagnosis.numbers["data"]["padding"] is None


def test_a_fault_that_the_weights_show_comes_before_padding():
    x, y, _ = texts()
    teacher = keras.Sequential(
        [keras.Input((12,)), layers.Embedding(9, 8), layers.Dense(9)]
    )
    problem, *_ = kd.diagnose(teacher, (x, y)).findings
    assert problem.code == "untrained_teacher"


def test_texts_that_end_on_a_word_said_often_are_not_called_padded():
    x, y, log_odds = texts()
    x, y = x[1::2], y[1::2]
    x[::2, -4:] = y[::2, -4:] = x[0, 0]
    diagnosis = kd.diagnose(reading(log_odds), (x, y))
    assert diagnosis.numbers["data"]["padding"] is None


# -- classes in another order --------------------------------------------------


def test_the_order_of_the_classes_is_found():
    logits, labels = knowing()
    order = np.random.default_rng(1).permutation(CLASSES)
    (problem,) = found(logits, order[labels])
    assert problem.code == "class_order"
    # A label's mapping is the teacher's class.
    assert dict(problem.evidence["mapping"]) == {
        int(order[c]): c for c in range(CLASSES)
    }
    assert problem.evidence["shift"] is None
    right = logits.argmax(-1) == labels
    assert problem.evidence["mapped_accuracy"] == pytest.approx(
        right[1::2].mean()
    )
    assert not found(logits, labels)


@pytest.mark.parametrize(
    ("shift", "words"), [(-1, "counted from 1"), (1, "background class")]
)
def test_a_shift_is_named_as_such(shift, words):
    logits, labels = knowing(classes=CLASSES)
    wide = np.full((EXAMPLES, CLASSES + 1), logits.min(), "float32")
    if shift > 0:
        wide[:, 1:] = logits
    else:
        wide[:, :-1], labels = logits, labels + 1
    (problem,) = found(wide, labels)
    assert problem.code == "class_order"
    assert problem.evidence["shift"] == shift
    assert words in problem.summary
    assert f"labels {shift:+d}".replace("+", "+ ").replace("-", "- ") in (
        problem.remedy
    )


def test_a_shift_that_starts_again_from_0_is_named_as_such():
    logits, labels = knowing()
    (problem,) = found(logits, (labels + 1) % CLASSES)
    assert problem.code == "class_order"
    assert "(labels - 1) % 12" in problem.remedy


def test_two_labels_that_are_exchanged_are_an_order():
    logits, labels = knowing(classes=2)
    (problem,) = found(logits, 1 - labels)
    assert problem.code == "class_order"
    assert problem.evidence["mapping"] == [[0, 1], [1, 0]]
    assert problem.evidence["shift"] is None


def test_two_classes_that_are_exchanged_are_found():
    logits, labels = knowing()
    exchanged = np.arange(CLASSES)
    exchanged[[3, 7]] = 7, 3
    (problem,) = found(logits, exchanged[labels])
    assert problem.code == "class_order"
    assert problem.evidence["moved"] == 2
    assert "3 is its class 7" in problem.summary


def test_a_shift_of_a_large_vocabulary_is_found():
    classes = 3000
    random = np.random.default_rng(0)
    labels = random.integers(1, classes, 600)
    logits = 12 * reference.one_hot(labels - 1, classes).astype("float32")
    (problem,) = found(logits, labels)
    assert problem.code == "class_order"
    assert problem.evidence["shift"] == -1


# -- labels of other rows ------------------------------------------------------


def test_labels_of_other_rows_are_found():
    logits, labels = knowing()
    (problem,) = found(logits, np.random.default_rng(2).permutation(labels))
    assert problem.code == "misaligned_labels"
    assert "offset" not in problem.evidence


@pytest.mark.parametrize("rows", [-3, 1])
def test_a_constant_offset_of_rows_is_found(rows):
    logits, labels = knowing()
    (problem,) = found(logits, np.roll(labels, rows))
    assert problem.code == "misaligned_labels"
    assert problem.evidence["offset"] == rows
    assert ("after" if rows > 0 else "before") in problem.summary


def test_sorted_labels_are_not_an_offset():
    logits, labels = knowing()
    order = np.argsort(labels, kind="stable")
    assert not found(logits[order], labels[order])


def test_offsets_are_counted_across_batches():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 3, (2, 50))
    kept = random.random(50) < 0.8
    agreement = Agreement(3)
    for start, stop in ((0, 1), (1, 4), (4, 30), (30, 30), (30, 50)):
        part = slice(start, stop)
        agreement.add(labels[part], predicted[part], kept[part])
    for offset, count in agreement.offsets.items():
        pairs = [
            (i, i + offset)
            for i in range(50)
            if 0 <= i + offset < 50 and kept[i] and kept[i + offset]
        ]
        assert agreement.pairs[offset] == len(pairs)
        assert count == sum(predicted[i] == labels[j] for i, j in pairs)


# -- other classes, untrained --------------------------------------------------


def test_a_teacher_of_other_classes_is_found():
    random = np.random.default_rng(0)
    _, labels = knowing()
    # Four labels in five share their likeliest prediction with others.
    looks_like = random.integers(0, 5, CLASSES)
    said = np.where(
        random.random(EXAMPLES) < 0.6,
        looks_like[labels],
        random.integers(0, CLASSES, EXAMPLES),
    )
    logits = 3 * reference.one_hot(said, CLASSES).astype("float32")
    (problem,) = found(logits, labels)
    assert problem.code == "other_classes"


def test_predictions_that_no_label_has_are_other_classes():
    logits, labels = knowing(classes=2 * CLASSES)
    (problem,) = found(logits, labels % 2)
    assert problem.code == "other_classes"
    assert problem.evidence["predicted_without_label"] > 0.5


def small(seed=0, units=64, classes=CLASSES):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16,))
    x = layers.BatchNormalization(name="first")(inputs)
    x = layers.Dense(units, "relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


@pytest.fixture(scope="module")
def trained_weights():
    model = small()
    x, labels = separable()
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", plain)
    model.fit(x, labels, epochs=12, verbose=0)
    return model.get_weights()


@pytest.fixture
def trained(trained_weights):
    model = small()
    model.set_weights(trained_weights)
    return model


def separable(seed=0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(CLASSES, 16))
    labels = random.integers(0, CLASSES, EXAMPLES)
    x = centres[labels] + 0.5 * random.normal(size=(EXAMPLES, 16))
    return x.astype("float32"), labels.astype("int32")


def test_untrained_layers_are_told_from_trained_ones(trained):
    model = trained
    assert initialised.untrained_layers(model) == {
        "layers": 2,
        "untrained": [],
        "last": False,
    }
    x, labels = separable()
    codes = {f.code for f in kd.diagnose(model, batched(x, labels)).problems}
    assert not codes - {"over_confident"}
    model.layers[-1].set_weights(small(seed=3).layers[-1].get_weights())
    assert initialised.untrained_layers(model)["untrained"] == ["head"]
    (problem,) = kd.diagnose(model, batched(x, labels)).problems
    assert problem.code == "untrained_teacher"
    assert "'head'" in problem.summary
    (problem,) = kd.diagnose(small(), batched(x, labels)).problems
    assert problem.code == "untrained_teacher"
    assert "all of its 2 layers" in problem.summary


def test_layers_below_a_trained_head_that_were_not_loaded_are_named(trained):
    x, labels = separable()
    model = trained
    hidden = model.get_layer("hidden")
    hidden.set_weights(small(seed=3).get_layer("hidden").get_weights())
    (problem,) = kd.diagnose(model, batched(x, labels)).problems
    assert problem.code == "untrained_teacher"
    assert problem.evidence["untrained_layers"] == ["hidden"]
    assert "'hidden'" in problem.summary and "'hidden'" in problem.remedy
    # Frozen where others are not, it may be random on purpose.
    hidden.trainable = False
    codes = [f.code for f in kd.diagnose(model, batched(x, labels)).problems]
    assert codes and "untrained_teacher" not in codes


def test_a_head_trained_on_random_layers_is_not_called_untrained():
    """A teacher that is right in few cases, and knows that."""
    logits, labels = with_true_odds([0.5, 0.5], told=0.6)
    inputs = keras.Input((2,))
    random, head = layers.Dense(50, name="random"), layers.Dense(2)
    teacher = keras.Model(inputs, head(random(inputs)))
    kernel = np.linalg.pinv(np.array(random.kernel))
    head.set_weights([kernel, np.full(2, 0.1)])
    diagnosis = kd.diagnose(teacher, batched(logits, labels))
    assert diagnosis.numbers["weights"]["untrained"] == ["random"]
    assert not diagnosis.problems


def test_without_biases_weights_beyond_the_initial_bounds_were_trained():
    layer = layers.Dense(30, use_bias=False)
    model = keras.Sequential([keras.Input((20,)), layer])
    assert initialised.untrained_layers(model)["last"]
    kernel = np.array(layer.kernel)
    kernel.flat[abs(kernel).argmax()] *= 1.1
    layer.set_weights([kernel])
    assert not initialised.untrained_layers(model)["untrained"]


# -- inputs --------------------------------------------------------------------


def test_normalisation_layers_are_compared_with_what_they_expect():
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (40, 6, 5)).astype("float32")
    inputs = keras.Input((6, 5))
    normal = layers.Normalization(mean=np.arange(5.0), variance=np.full(5, 4.0))
    inner = keras.Sequential([layers.BatchNormalization()])
    model = keras.Model(inputs, inner(normal(inputs)))
    first, second = normalisers.compare(model, x)
    mean = x.mean((0, 1))
    distance = np.median(np.abs(mean - np.arange(5)) / 2)
    scale = np.exp(np.median(np.log(x.std((0, 1)) / 2)))
    assert first["distance"] == pytest.approx(distance, rel=1e-4)
    assert first["scale"] == pytest.approx(scale, rel=1e-4)
    y = (x - np.arange(5)) / 2
    distance = np.median(np.abs(y.mean((0, 1)))) / np.sqrt(1 + 1e-3)
    assert second["distance"] == pytest.approx(distance, rel=1e-4)
    # The layers are as they were.
    assert "call" not in vars(normal)
    # One that a loop runs may be seen or not, but does no harm.
    looped = layers.TimeDistributed(layers.BatchNormalization())
    model = keras.Model(inputs, looped(normal(inputs)))
    assert normalisers.compare(model, x)[0]["layer"] == normal.name


def reads_two_pixels():
    """A teacher that reads the label out of two pixels and one channel."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, EXAMPLES).astype("int32")
    x = random.uniform(0, 1, (EXAMPLES, 4, 4, 3))
    x[:, 0, 0, 0] = (labels // 4) / 1.1
    x[:, 0, 3, 0] = (labels % 4 + 0.5) / 3.6
    x[:, 1, 1], x[:, 2, 2] = 0, 1
    inputs = keras.Input((4, 4, 3))
    at = (np.arange(8) + 0.5) / 8
    value = 0.55 * inputs[:, 0, 0, :1] + 0.45 * inputs[:, 0, 3, :1]
    return keras.Model(inputs, -400 * (value - at) ** 2), x, labels


@traced
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: 255 * x, "scale"),
        (lambda x: x / 255, "scale"),
        (lambda x: x[..., ::-1], "colour"),
        (lambda x: x[:, ::-1], "upside down"),
        (lambda x: np.rot90(x, 1, (1, 2)), "270 degrees"),
    ],
)
def test_the_form_of_the_inputs_is_found(change, words):
    teacher, x, labels = reads_two_pixels()
    changed = np.ascontiguousarray(change(x)).astype("float32")
    problem = kd.diagnose(teacher, batched(changed, labels)).problems[0]
    assert problem.code == "wrong_inputs"
    assert words in problem.summary
    assert problem.evidence["after"] > 0.95


def preprocessed(shares, mode):
    """Shares of white as a mode of keras.applications makes them of pixels."""
    return keras.applications.imagenet_utils.preprocess_input(
        255 * shares, "channels_last", mode
    )


@traced
@pytest.mark.parametrize(
    ("given", "wanted", "remedy"),
    [
        ("uint8", "1", "Give it 0.003922 * x, from 0 to 1."),
        ("torch", "1", "Give it pixels from 0 to 1."),
        ("caffe", "1", "Give it pixels from 0 to 1."),
        ("1", "caffe", 'preprocess_input(x, mode="caffe")'),
        ("uint8", "caffe", 'preprocess_input(x, mode="caffe")'),
        ("tf", "torch", 'preprocess_input(x, mode="torch")'),
    ],
)
def test_pixels_that_were_preprocessed_in_another_way(given, wanted, remedy):
    teacher, x, labels = reads_two_pixels()
    if given == "uint8":
        x = np.round(255 * x).astype("uint8")
    else:
        x = x if given == "1" else preprocessed(x, given)
        x = x.astype("float32")
    if wanted != "1":
        inputs = keras.Input((4, 4, 3))
        black, white = (
            preprocessed(np.full((1, 3), share), wanted) for share in (0.0, 1.0)
        )
        shares = (inputs - black) / (white - black)
        if wanted == "caffe":
            shares = keras.ops.flip(shares, -1)
        teacher = keras.Model(inputs, teacher(shares))
    problem = kd.diagnose(teacher, batched(x, labels)).problems[0]
    assert problem.code == "wrong_inputs"
    assert remedy in problem.remedy
    assert problem.evidence["after"] > 0.95


@traced
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("shape", [(6,), (6, 2), (2, 2, 3)])
def test_ids_are_not_taken_for_pixels(shape, dtype):
    """A table has no row for an id that is scaled; the trial is left out."""
    random = np.random.default_rng(0)
    x = random.integers(0, 13, (256, *shape)).astype(dtype)
    teacher = keras.Sequential(
        [
            keras.Input(shape, dtype=dtype),
            layers.Embedding(13, 4),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    labels = random.integers(0, 5, 256)
    diagnosis = kd.diagnose(teacher, batched(x, labels, size=64))
    assert diagnosis.numbers["inputs"]["form"] is None
    assert diagnosis.problems


def test_inputs_in_the_right_form_are_not_called_wrong():
    teacher, x, labels = reads_two_pixels()
    dataset = batched(x.astype("float32"), labels)
    codes = {f.code for f in kd.diagnose(teacher, dataset).problems}
    assert "wrong_inputs" not in codes


@traced
def test_the_form_is_found_in_batches_of_a_fixed_size(trained):
    x, labels = separable()
    dataset = batched(x / 255, labels, size=100, drop_remainder=True)
    (problem,) = kd.diagnose(trained, dataset).problems
    assert problem.code == "wrong_inputs"
    assert problem.evidence["after"] > 0.9


def test_inputs_that_batch_normalisation_does_not_expect_are_wrong(trained):
    x, labels = separable()
    # Features in another order: a form that nobody would try.
    wrong = x[:, np.random.default_rng(1).permutation(16)] * 30 + 40
    (problem,) = kd.diagnose(trained, batched(wrong, labels)).problems
    assert problem.code == "wrong_inputs"
    assert "layer 'first' meets means" in problem.summary
    assert "They are float32 from -" in problem.summary


def settled(normalised=2):
    """A teacher, its inputs and labels; its averages are settled on these."""
    x, labels = separable()
    x = 3 * x + np.linspace(0, 9, 16, dtype="float32")
    keras.utils.set_random_seed(0)
    inputs = outputs = keras.Input(x.shape[1:])
    for _ in range(normalised):
        # Biases that are not 0 look trained.
        hidden = layers.Dense(64, "relu", bias_initializer="random_normal")
        outputs = hidden(outputs)
        # So that one call in training settles them.
        outputs = layers.BatchNormalization(momentum=0.0)(outputs)
    features = keras.Model(inputs, outputs)
    found = np.array(features(x, training=True))
    means = np.stack([found[labels == c].mean(0) for c in range(CLASSES)])
    head = layers.Dense(CLASSES)
    teacher = keras.Model(inputs, head(outputs))
    head.set_weights([means.T / 4, -(means**2).sum(1) / 8])
    return teacher, x, labels


def unsettle(teacher, progress):
    for layer in teacher.layers:
        if isinstance(layer, layers.BatchNormalization):
            *rest, mean, variance = layer.get_weights()
            variance = 1 + progress * (variance - 1)
            layer.set_weights([*rest, progress * mean, variance])


@traced
@pytest.mark.parametrize("progress", [0.0, 0.1])
def test_averages_that_have_not_settled_are_named(progress):
    teacher, x, labels = settled()
    unsettle(teacher, progress)
    before = teacher.get_weights()
    (problem,) = kd.diagnose(teacher, batched(x, labels, size=100)).problems
    assert problem.code == "unsettled_averages"
    assert problem.evidence["averages_progress"] == pytest.approx(
        progress, abs=0.03
    )
    assert problem.evidence["averages_accuracy"] > 0.95
    assert "in 2 layers alike" in problem.summary
    for one, two in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert all("call" not in vars(layer) for layer in teacher.layers)


@traced
@pytest.mark.parametrize(
    ("scale", "normalised"), [(1 / 255, 1), (1 / 255, 2), (8, 1), (255, 2)]
)
def test_inputs_on_another_scale_are_told_from_averages(scale, normalised):
    """A batch's statistics mend these as well."""
    teacher, x, labels = settled(normalised)
    changed = (scale * x - 40 * (scale > 1)).astype("float32")
    (problem,) = kd.diagnose(teacher, batched(changed, labels)).problems
    assert problem.code == "wrong_inputs"


def test_with_one_normalised_layer_both_causes_are_said():
    teacher, x, labels = settled(normalised=1)
    problems = kd.diagnose(teacher, batched(x, labels)).problems
    assert {each.code for each in problems} <= {"over_confident"}
    unsettle(teacher, 0.02)
    (problem,) = kd.diagnose(teacher, batched(x, labels)).problems
    assert problem.code == "unsettled_averages"
    assert "inputs on another scale might" in problem.summary


def test_logits_as_no_training_makes_them_are_of_inputs_on_another_scale():
    """Without biases, a network's logits grow with its inputs."""
    logits, labels = knowing()
    (problem,) = found(255 * logits, logits.argmax(-1))
    assert problem.code == "wrong_inputs"
    assert "the label's logit" in problem.summary


def ruled_out(logits, labels, share, value):
    """Other classes in each example, drawn, get a constant added."""
    is_out = np.random.default_rng(1).random(logits.shape) < share
    is_out[np.arange(len(labels)), labels] = False
    return np.where(is_out, logits + value, logits).astype("float32")


@pytest.mark.parametrize("value", [-120, -1e9])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_classes_ruled_out_by_example_are_not_inputs_on_another_scale(
    share, value
):
    """In 3 of 10 examples a share of 0.9 leaves the label alone."""
    logits, labels = knowing()
    problems = found(ruled_out(logits, labels, share, value), labels)
    # Without wrong answers to choose from it is sure, as it should be.
    expected = set() if share == 0.5 else {"over_confident"}
    assert {each.code for each in problems} == expected


@pytest.mark.parametrize("accuracy", [1.0, 0.9])
def test_a_teacher_is_called_too_sure_only_where_it_is(accuracy):
    teacher = {"accuracy": accuracy, "confidence": 0.99}
    problem = finding.Finding("over_confident", finding.PROBLEM, *[""] * 4)
    said = verdict._fitness(teacher, problem)
    assert ("surer than it should be" in said) == (accuracy < 0.99)
    assert ("all but certain" in said) == (accuracy > 0.99)


def test_log_probabilities_with_a_floor_are_not_accused():
    logits, labels = knowing()
    p = np.maximum(reference.softmax(logits), 1e-7)
    assert not found(np.log(p).astype("float32"), labels)


def test_a_temperature_in_the_logits_is_a_matter_of_confidence():
    """The same knowledge, said with too little or too much certainty."""
    logits, labels = knowing()
    kwargs = {"loss": kd.KD(temperature=0.5)}
    diagnosis = kd.diagnose(
        passing_through(), batched(logits / 4, labels), **kwargs
    )
    codes = [each.code for each in diagnosis.findings]
    assert "under_confident" in codes and not diagnosis.problems
    codes = {each.code for each in found(20 * logits, labels)}
    assert "over_confident" in codes and "wrong_inputs" not in codes


def test_forms_keep_token_ids_in_the_vocabulary():
    x = np.array([[0, 1, 5, 9]])
    for form in trials.forms(x):
        changed = form.change(x)
        assert changed.min() >= 0 and changed.max() <= 9
    assert not trials.forms(np.zeros((3, 2), "float32"))


@traced
def test_a_model_of_several_inputs_and_one_with_a_state_are_left_alone():
    x, labels = separable()
    one, two = keras.Input((16,), name="one"), keras.Input((16,), name="two")
    outputs = layers.Dense(CLASSES)(layers.Concatenate()([one, two]))
    teacher = keras.Model({"one": one, "two": two}, outputs)
    data = tf.data.Dataset.from_tensor_slices(({"one": x, "two": x}, labels))
    numbers = kd.diagnose(teacher, data.batch(100)).numbers
    assert numbers["inputs"] is None and numbers["weights"]["last"]

    inputs = keras.Input(batch_shape=(100, 16))
    steps = layers.Reshape((4, 4))(inputs)
    state = layers.LSTM(8, stateful=True)
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(state(steps)))
    teacher(x[100:200])  # What it leaves of a state is not theirs.
    dataset = batched(x[:100], labels[:100], size=100, drop_remainder=True)
    kd.diagnose(teacher, dataset)
    after = [np.array(each) for each in state.states]
    state.reset_state()
    teacher(x[:100])
    for one, two in zip(after, state.states, strict=True):
        np.testing.assert_allclose(one, np.array(two), atol=1e-5)


# -- what is said, and what is not ---------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_language_model_is_not_accused(seed):
    """It predicts the same few words, is seldom right, and knows it."""
    random = np.random.default_rng(seed)
    words, tokens = 200, 4000
    logits = -0.9 * np.log(np.arange(1, words + 1))
    logits = logits + 0.4 * random.normal(size=(tokens, words))
    # A third follows from what came before.
    told = np.flatnonzero(random.random(tokens) < 1 / 3)
    logits[told, random.integers(0, 5, len(told))] += 6
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (random.random((tokens, 1)) > p.cumsum(1)).sum(1)
    predicted = logits.argmax(1)
    assert 0.25 < (predicted == labels).mean() < 0.5
    ours, theirs = (
        scipy.stats.entropy(np.bincount(each, minlength=words))
        for each in (predicted, labels)
    )
    assert ours < 0.5 * theirs
    inputs = keras.Input((10, words))
    teacher = keras.Model(inputs, layers.Identity()(inputs))
    data = batched(logits.reshape(-1, 10, words), labels.reshape(-1, 10))
    assert not kd.diagnose(teacher, data).problems


@pytest.mark.parametrize(
    ("words", "spread"), [(8, 0.3), (50, 0.1), (200, 0.05), (50, 1.0)]
)
def test_a_teacher_that_knows_the_true_odds_is_not_accused(words, spread):
    """Labels are drawn from what it says; of noise there is none."""
    random = np.random.default_rng(0)
    odds = random.dirichlet(np.full(words, spread), size=words)
    x = random.integers(0, words, (200, 20))
    drawn = random.random((200, 20, 1))
    labels = (drawn > odds.cumsum(1)[x]).sum(-1).clip(max=words - 1)
    inputs = keras.Input((20,), dtype="int32")
    embedding = layers.Embedding(words, words)
    teacher = keras.Model(inputs, embedding(inputs))
    embedding.embeddings.assign(np.log(np.maximum(odds, 1e-20)))
    assert not kd.diagnose(teacher, batched(x, labels)).problems


def with_true_odds(shares, told):
    """Logits of the odds that labels of such shares were drawn by.

    The more is told, the more the inputs say of the label.
    """
    random = np.random.default_rng(0)
    labels = random.choice(len(shares), 3000, p=shares)
    shown = told * reference.one_hot(labels, len(shares))
    seen = shown + random.normal(size=shown.shape)
    return (np.log(shares) + told * seen).astype("float32"), labels


@pytest.mark.parametrize(
    ("confidence", "skill", "told"),
    [
        (0.79, 0.5, True),
        (0.81, 0.5, False),
        (0.2, 0.5, True),
        (0.7, 0.03, True),
        (0.7, 0.01, False),
    ],
)
def test_who_is_surer_than_right_does_not_know_the_odds(
    confidence, skill, told
):
    """Who is less sure may."""
    teacher = {"accuracy": 0.7, "confidence": confidence, "skill": skill}
    assert measures.knows_the_odds({"teacher": teacher}) == told


@pytest.mark.parametrize("shares", [[0.95, 0.05], [0.65, 0.175, 0.175]])
def test_one_that_knows_but_the_labels_frequencies_is_called_weak(shares):
    """It always predicts the commonest, as it would with wrong inputs."""
    logits, labels = with_true_odds(shares, told=0.1)
    (problem,) = found(logits, labels)
    assert problem.code == "weak_teacher"
    # One that always predicts a rare label has wrong inputs.
    logits[:, -1] += 6
    (problem,) = found(logits, labels)
    assert problem.code == "wrong_inputs"


@pytest.mark.parametrize(
    ("shares", "told"), [([0.97, 0.03], 1.0), ([0.5, 0.5], 0.6)]
)
def test_nobody_is_accused_of_a_hard_task(shares, told):
    logits, labels = with_true_odds(shares, told)
    teacher = passing_through(len(shares))
    diagnosis = kd.diagnose(teacher, batched(logits, labels))
    assert diagnosis.numbers["teacher"]["skill"] < 0.3
    assert not diagnosis.problems
    assert "hard_task" in {each.code for each in diagnosis.findings}
    assert diagnosis.verdict[0].startswith("This teacher is fit")
    # One that is surer than it is right does not know how hard it is.
    surer = 4 * (logits - np.log(shares)) + np.log(shares)
    codes = {each.code for each in found(surer.astype("float32"), labels)}
    assert "weak_teacher" in codes


def test_a_form_in_which_all_get_the_commonest_label_is_none():
    """Of a teacher for as many labels of each class, on others."""
    random = np.random.default_rng(0)
    labels = random.choice(2, 1200, p=[0.9, 0.1])
    x = 0.5 * reference.one_hot(labels, 2) + 2 * random.normal(size=(1200, 2))
    inputs = keras.Input((2,))
    teacher = keras.Model(inputs, inputs + np.array([0.3, 0], "float32"))
    diagnosis = kd.diagnose(teacher, batched(x.astype("float32"), labels))
    assert diagnosis.numbers["inputs"]["form"] is None


@pytest.mark.parametrize("learnt", [0.0, 0.05])
def test_a_language_model_of_few_steps_is_called_weak(learnt):
    """It knows how often words occur, and of few what they follow."""
    random = np.random.default_rng(0)
    words, tokens = 200, 4000
    counts = 1 / np.arange(1, words + 1)
    labels = random.choice(words, tokens, p=counts / counts.sum())
    logits = np.log(counts) + 0.1 * random.normal(size=(tokens, words))
    told = np.flatnonzero(random.random(tokens) < learnt)
    logits[told, labels[told] // 50] += 4
    predicted = logits.argmax(1)
    assert 0.15 < (predicted == labels).mean() < 0.25
    inputs = keras.Input((10, words))
    teacher = keras.Model(inputs, layers.Identity()(inputs))
    data = batched(logits.reshape(-1, 10, words), labels.reshape(-1, 10))
    codes = [each.code for each in kd.diagnose(teacher, data).problems]
    assert codes == ["weak_teacher"]


def test_near_chance_nothing_is_said_of_soft_targets():
    random = np.random.default_rng(0)
    for scale in (0.1, 1.0, 10.0):
        logits = scale * random.normal(size=(EXAMPLES, CLASSES))
        for labels in (random.integers(0, CLASSES, EXAMPLES), np.arange(1200)):
            problems = found(logits.astype("float32"), labels % CLASSES)
            assert problems
            assert not UNRELATED & {each.code for each in problems}
            text = " ".join(p.summary + p.remedy for p in problems).lower()
            for word in ("calibrat", "smoothing", "noise in", "tail"):
                assert word not in text


def test_cramers_v_is_that_of_the_definition():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 3000)
    noise = random.integers(0, 4, 3000)
    for share in (0.0, 0.5, 1.0):
        said = np.where(random.random(3000) < share, 3 - labels, noise)
        agreement = Agreement(4)
        agreement.add(labels, said, np.ones(3000, bool))
        table = agreement.halves.sum(0).astype("float64")
        expected = np.outer(table.sum(1), table.sum(0)) / 3000
        squared = max(((table - expected) ** 2 / expected).sum() - 9, 0)
        value = np.sqrt(squared / 3000 / 3)
        totals = {
            "examples": 3000,
            "correct": (said == labels).sum(),
            "class_examples": table.sum(1),
            "class_predicted": table.sum(0),
            "confidence_bins": np.array([[5, 5], [1, 4], [1, 4]]),
        }
        numbers = agreement_numbers(agreement, totals)
        assert numbers["dependence"] == pytest.approx(value, abs=0.01)
        # Of the pairs of a right and a wrong prediction, by bin.
        assert numbers["error_awareness"] == pytest.approx(
            (4 * 4 + (1 * 4 + 4 * 1) / 2) / (5 * 5)
        )


def test_the_verdict_is_three_sentences():
    logits, labels = knowing()
    for given, word in ((labels, "is fit"), ((labels + 1) % 12, "is not fit")):
        teacher = passing_through()
        diagnosis = kd.diagnose(teacher, batched(logits, given))
        fit, helps, first = diagnosis.verdict
        assert word in fit and "help" in helps and first.startswith("First: ")
        assert " ".join(diagnosis.verdict) in " ".join(str(diagnosis).split())


# -- the study -----------------------------------------------------------------


def cases_of(kind, cases=failures.CASES):
    return [
        pytest.param(kind, case, id=f"{case}, {kind}")
        for case in cases
        if failures._is_made_of(failures.CASES[case], kind)
    ]


def posterior(noise, classes, spread, seed):
    """Inputs, labels and the exact log-probabilities of the labels.

    Classes are normal distributions that overlap; a share `noise` of the
    labels is drawn again.
    """
    random = np.random.default_rng([seed, classes])
    centres = random.normal(size=(classes, 8))
    labels = random.integers(0, classes, 3000)
    x = centres[labels] + spread * random.normal(size=(3000, 8))
    again = random.random(3000) < noise
    labels = np.where(again, random.integers(0, classes, 3000), labels)
    logits = (x @ centres.T - (centres**2).sum(1) / 2) / spread**2
    p = np.exp(reference.log_softmax(logits))
    return np.log((1 - noise) * p + noise / classes), labels


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("noise", "classes", "spread"),
    [(0, 3, 2.0), (0, 5, 2.0), (0, 10, 1.4), (0, 20, 1.4)]
    + [(0.4, 3, 0.4), (0.4, 5, 1.0), (0.4, 10, 1.0)],
)
def test_classes_that_overlap_are_not_noisy_labels(
    noise, classes, spread, seed
):
    logits, labels = posterior(noise, classes, spread, seed)
    inputs = keras.Input((classes,))
    teacher = keras.Model(inputs, layers.Identity()(inputs))
    found = kd.diagnose(teacher, batched(logits.astype("float32"), labels))
    codes = [each.code for each in found.problems]
    assert codes == (["noisy_labels"] if noise else [])


@traced
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *cases_of("perceptron, digits"),
        *cases_of(
            "perceptron, normalised",
            ("label smoothing", "over-confident", "noisy labels")
            + ("noisy tail", "weak teacher"),
        ),
    ],
)
def test_failures_made_on_purpose(kind, case):
    """On kinds and a seed that no threshold was set on."""
    made = failures.CASES[case], failures.KINDS[kind], 17
    result = failures.result_of(*made)
    assert result["right"], result


def test_few_examples_accuse_nobody():
    """On two of five a good teacher is right by bad luck, too."""
    inputs = keras.Input((3,))
    teacher = keras.Model(inputs, inputs * 4.0)
    said, labels = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 1, 2, 0])
    few = kd.diagnose(teacher, (np.eye(3, dtype="float32")[said], labels))
    assert [each.code for each in few.findings] == ["few_examples"]
    assert few.verdict[0].startswith("So few examples can't show")
    order = np.random.default_rng(0).permutation(200)
    said, labels = np.resize(said, 200), np.resize(labels, 200)[order]
    many = kd.diagnose(teacher, (np.eye(3, dtype="float32")[said], labels))
    assert [each.code for each in many.findings] == ["misaligned_labels"]


def test_a_single_example_is_one():
    inputs = keras.Input((3,))
    teacher = keras.Model(inputs, inputs * 4.0)
    one = kd.diagnose(teacher, (np.eye(3, dtype="float32")[:1], np.array([0])))
    assert "in 1 example of" in str(one) and "The only label is" in str(one)
    nan = keras.Model(inputs, inputs * np.nan)
    nan = kd.diagnose(nan, (np.ones((1, 3), "float32"), np.array([0])))
    assert "no finite output, in 1 example." in str(nan)
    assert "for 1 example, first" in nan.findings[0].summary
