"""Diagnosis: its numbers against NumPy, its findings on teachers made so."""

import json
import re

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras import layers
from models import CLASSES, FEATURES, data, mlp, weights_of

import keras_kd as kd
from keras_kd import data as any_data
from keras_kd.diagnosis import diagnose, measures, relations, survey
from keras_kd.logits import LogitReader

EXAMPLES, TEMPERATURE, WEIGHT = 203, 3.0, 0.6


pytestmark = pytest.mark.usefixtures("functions_run_eagerly")
traced = pytest.mark.usefixtures("traced")


def batched(*arrays, size=128):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def steep(model, factor=4):
    """The same model with larger logits: now sure, now not."""
    model.set_weights([factor * w for w in model.get_weights()])
    return model


def loss():
    return kd.KD(weight=WEIGHT, temperature=TEMPERATURE)


class Case:
    """A teacher, a student, data, and what follows from them in float64."""

    def __init__(self):
        self.x, self.labels, _ = data(EXAMPLES, seed=3)
        self.teacher, self.student = steep(mlp(seed=5)), mlp(seed=9)
        self.logits = self.teacher.predict(self.x, verbose=0).astype("float64")
        self.student_logits = self.student.predict(self.x, verbose=0)
        self.p = reference.softmax(self.logits)
        self.tempered = reference.softmax(self.logits / TEMPERATURE)
        self.rows = np.arange(EXAMPLES)
        self.numbers = diagnose(
            self.teacher,
            batched(self.x, self.labels, size=32),
            student=self.student,
            loss=loss(),
        ).numbers


@pytest.fixture(scope="module")
def case():
    return Case()


def close(value, expected, tolerance=1e-4):
    np.testing.assert_allclose(
        np.array(value, "float64"), expected, rtol=tolerance, atol=tolerance
    )


# -- the numbers ---------------------------------------------------------------


def test_accuracy_confidence_and_calibration(case):
    teacher = case.numbers["teacher"]
    right = case.logits.argmax(-1) == case.labels
    label_p = case.p[case.rows, case.labels]
    confidence = case.p.max(-1)
    close(teacher["accuracy"], right.mean())
    close(teacher["cross_entropy"], -np.log(label_p).mean())
    close(teacher["confidence"], confidence.mean())
    close(teacher["label_probability"], label_p.mean())
    close(teacher["label_probability_deviation"], label_p.std())
    close(teacher["sure_share"], (label_p >= 0.95).mean())
    error = 0.0
    for i in range(20):
        inside = (confidence >= i / 20) & (confidence < (i + 1) / 20)
        if i == 19:
            inside |= confidence == 1
        assert teacher["reliability"]["count"][i] == inside.sum()
        if inside.any():
            gap = confidence[inside].mean() - right[inside].mean()
            error += inside.mean() * abs(gap)
            close(teacher["reliability"]["accuracy"][i], right[inside].mean())
    close(teacher["calibration_error"], error)
    for c in range(CLASSES):
        of_class = case.labels == c
        by_class = teacher["by_class"]
        assert by_class["examples"][c] == of_class.sum()
        close(by_class["accuracy"][c], right[of_class].mean())
    shares = np.bincount(case.labels, minlength=CLASSES) / EXAMPLES
    entropy = -(shares * np.log(shares)).sum()
    close(teacher["skill"], 1 + np.log(label_p).mean() / entropy)


def test_student_against_teacher(case):
    student = case.numbers["student"]
    right = case.student_logits.argmax(-1) == case.labels
    lead = right * 1.0 - (case.logits.argmax(-1) == case.labels)
    close(student["accuracy"], right.mean())
    close(student["lead"], lead.mean())
    close(student["lead_error"], lead.std() / np.sqrt(EXAMPLES))


def test_the_error_of_a_large_lead():
    logits, labels = ring()
    inputs = keras.Input((CLASSES,))
    student = keras.Model(inputs, layers.Rescaling(-1.0)(inputs))
    found = diagnose(
        passing_through(), batched(logits, labels), student=student
    ).numbers["student"]
    lead = (logits.argmin(-1) == labels) * 1.0 - (logits.argmax(-1) == labels)
    assert lead.mean() < -0.5
    close(found["lead_error"], lead.std() / np.sqrt(EXAMPLES))


def gradient_scales(case, student_logits):
    """The ratio of two gradients on the label's logit."""
    target = reference.kd_target(case.logits, TEMPERATURE)
    args = (student_logits, case.labels)
    mixed = reference.per_example_gradient(
        *args, [(WEIGHT, target)], TEMPERATURE
    )
    plain = reference.per_example_gradient(*args, [], 1.0)
    return (mixed / plain)[case.rows, case.labels]


def check_scales(numbers, w, case):
    close(numbers["mean"], w.mean(), 1e-3)
    close(numbers["deviation"], w.std(), 1e-3)
    # One definition of the bins: those of a training run's histogram.
    assert numbers["edges"] == list(kd.metrics.GradientScale().edges)
    close(numbers["reversed_share"], (w < 0).mean())
    close(numbers["switched_off_share"], (np.abs(w) < 0.1).mean())
    expected, _ = np.histogram(np.clip(w, -2.999, 4.999), numbers["edges"])
    assert np.abs(np.array(numbers["histogram"]) - expected).sum() <= 2
    sums, edges = np.histogram(w, numbers["edges"], weights=w)
    expected = kd.metrics.median(expected, edges, sums)
    assert abs(expected - np.median(w)) < edges[1] - edges[0]
    close(numbers["median"], expected, 1e-4)
    for c in range(CLASSES):
        of_class = case.labels == c
        check_shares(numbers["by_class"], c, w[of_class])
    difficulty = np.minimum(
        (case.p[case.rows, case.labels] * 10).astype(int), 9
    )
    for i in range(10):
        inside = difficulty == i
        assert numbers["by_difficulty"]["count"][i] == inside.sum()
        if inside.any():
            check_shares(numbers["by_difficulty"], i, w[inside])


def check_shares(numbers, place, w):
    close(numbers["mean"][place], w.mean(), 1e-3)
    close(numbers["reversed_share"][place], (w < 0).mean())
    close(numbers["switched_off_share"][place], (np.abs(w) < 0.1).mean())


def test_gradient_scales_of_the_student(case):
    w = gradient_scales(case, case.student_logits)
    assert (w < 0).any() and (w > 1).any()
    check_scales(case.numbers["gradient_scale"], w, case)


def test_gradient_scales_of_a_student_halfway(case):
    q = np.full((EXAMPLES, CLASSES), 0.5 / (CLASSES - 1))
    q[case.rows, case.labels] = 0.5
    numbers = diagnose(
        case.teacher, batched(case.x, case.labels), loss=loss()
    ).numbers["gradient_scale"]
    check_scales(numbers, gradient_scales(case, np.log(q)), case)
    assert numbers["student"] == "a student halfway through training"


def test_temperatures_against_the_closest_label_smoothing(case):
    numbers = case.numbers["temperature"]
    grid = [*numbers["grid"], TEMPERATURE]
    found = [*numbers["nats_beyond_label_smoothing"], numbers["nats_at_loss"]]
    entropies = [*numbers["entropy"], numbers["entropy_at_loss"]]
    for temperature, nats, entropy in zip(grid, found, entropies, strict=True):
        p = reference.softmax(case.logits / temperature)
        log_p = reference.log_softmax(case.logits / temperature)
        close(entropy, -(p * log_p).sum(-1).mean())
        mean = p[case.rows, case.labels].mean()
        # No label smoothing is closer than the one with this mean.
        divergences = []
        for on_label in (mean, mean - 0.01, mean + 0.01):
            smooth = np.full(
                (EXAMPLES, CLASSES), (1 - on_label) / (CLASSES - 1)
            )
            smooth[case.rows, case.labels] = on_label
            divergences.append((p * (log_p - np.log(smooth))).sum(-1).mean())
        close(nats, divergences[0])
        assert divergences[0] <= min(divergences[1:])
    assert numbers["best"] == numbers["grid"][int(np.argmax(found[:-1]))]


def ring(seed=0, noise=0.7):
    """Logits of a teacher that knows which classes are neighbours on a ring."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, EXAMPLES).astype("int32")
    angle = 2 * np.pi * np.arange(CLASSES) / CLASSES
    alike = np.cos(angle[:, None] - angle)
    logits = 3 * reference.one_hot(labels, CLASSES) + 2 * alike[labels]
    logits += random.normal(0, noise, logits.shape)
    return logits.astype("float32"), labels


@pytest.mark.parametrize("temperature", [1.0, 1.62])
def test_temperatures_that_are_worth_it(temperature):
    """Also where the loss's own, which isn't in the grid, would be the best."""
    logits, labels = ring()
    numbers = diagnose(
        passing_through(),
        batched(logits, labels),
        loss=kd.KD(temperature=temperature),
    ).numbers["temperature"]
    grid = np.array(numbers["grid"])
    nats = np.array(numbers["nats_beyond_label_smoothing"])
    best = grid[nats == nats.max()]
    assert numbers["best"] == best and grid[0] < best < grid[-1]
    assert (numbers["nats_at_loss"] > nats.max()) == (temperature == 1.62)
    useful = grid[nats >= nats.max() / 2]
    assert numbers["suggested"] == [useful.min(), useful.max()]
    # Below the best one, too, there is little beyond label smoothing.
    smooth = grid[nats < 0.02]
    assert smooth.min() < best
    assert numbers["label_smoothing_from"] == smooth[smooth > best].min()


def off_label(p, labels):
    """The distributions without their labels."""
    others = p * (1 - reference.one_hot(labels, CLASSES))
    return others / others.sum(-1, keepdims=True)


def divergence(others, groups):
    """From the mean of all, of the mean of each class or group."""
    total = 0.0
    for c in range(CLASSES):
        of_group = groups == c
        own = np.delete(others[of_group].mean(0), c)
        base = np.delete(others.mean(0), c)
        own, base = own / own.sum(), base / base.sum()
        total += of_group.mean() * (own * np.log(own / base)).sum()
    return total


def test_class_relations(case):
    numbers = case.numbers["class_relations"]
    others = off_label(case.tempered, case.labels)
    logs = np.log(np.where(others > 0, others, 1))
    close(
        numbers["against_uniform"],
        (others * (logs + np.log(CLASSES - 1))).sum(-1).mean(),
    )
    close(numbers["relation"], divergence(others, case.labels))
    label_logits = case.logits[case.rows, case.labels]
    mean_others = (case.logits.sum(-1) - label_logits) / (CLASSES - 1)
    close(numbers["logit_margin"], (label_logits - mean_others).mean())


def known_of_others(labels, centred, batches):
    """Mean of the others of the label so far, after each batch; NaN of few."""
    found, seen = np.full(centred.shape, np.nan), np.zeros(0, int)
    for rows in batches:
        seen = np.concatenate([seen, rows])
        for row in rows:
            others = seen[(labels[seen] == labels[row]) & (seen != row)]
            if len(others) >= 5:
                found[row] = centred[others].mean(0)
    return found


def every_second(batches):
    """What is looked at of batches where `_SAMPLE_CELLS` hold 20 examples."""
    *whole, last = batches
    return [rows[i % 2 :: 2] for i, rows in enumerate(whole)] + [last]


@traced
def test_scales_are_of_the_examples_that_are_looked_at(monkeypatch):
    """Some are undefined, as nothing is left to learn of a sure label."""
    monkeypatch.setattr(survey, "_SAMPLE_CELLS", 20 * CLASSES)
    logits, labels = ring(noise=3.0)
    logits = logits.round()
    inputs = keras.Input((CLASSES,))
    sure = keras.Model(inputs, layers.Rescaling(300.0)(inputs))
    found = diagnose(
        passing_through(),
        batched(logits, labels, size=32),
        student=sure,
        loss=loss(),
    ).numbers["gradient_scale"]
    rows = np.arange(EXAMPLES)
    hot = reference.one_hot(labels, CLASSES)
    lead = logits[rows, labels] - np.where(hot, -np.inf, logits).max(-1)
    batches = np.split(rows, range(32, EXAMPLES, 32))
    looked_at = np.concatenate(every_second(batches))
    undefined = (lead > 0)[looked_at]
    assert 0 < undefined.sum() < len(undefined) < EXAMPLES
    close(found["undefined_share"], undefined.mean())
    assert sum(found["histogram"]) == (~undefined).sum()


@traced
@pytest.mark.parametrize("sampled", [False, True])
def test_relations_by_rank_and_competitors(sampled, monkeypatch):
    """Also where half of the examples are looked at, of the first classes."""
    logits, labels = ring(noise=1.6)
    rows, known = np.arange(EXAMPLES), np.full(EXAMPLES, True)
    batches = np.split(rows, range(32, EXAMPLES, 32))
    if sampled:
        monkeypatch.setattr(survey, "_SAMPLE_CELLS", 20 * CLASSES)
        monkeypatch.setattr(relations, "PROFILE_CELLS", 5 * CLASSES)
        batches = every_second(batches)
        known = labels < 5
    whole = diagnose(
        passing_through(), batched(logits, labels, size=32), loss=loss()
    ).numbers
    numbers, looked_at = whole["class_relations"], np.concatenate(batches)
    logits = logits.astype("float64")
    at_label = reference.softmax(logits)[rows, labels]
    close(whole["teacher"]["label_probability"], at_label.mean())
    close(
        whole["teacher"]["label_probability_deviation"],
        at_label[looked_at].std(),
    )
    p = off_label(reference.softmax(logits / TEMPERATURE), labels)
    is_other = reference.one_hot(labels, CLASSES) == 0
    logs = np.log(np.where(is_other, p, 1))
    centred = logs - logs.sum(-1, keepdims=True) / (CLASSES - 1)
    centred = np.where(is_other, centred, 0)
    margin = logits[~is_other] - logits.mean(-1, where=is_other)
    close(numbers["logit_margin"], margin[looked_at].mean())
    entropy = -(p * logs).sum(-1)
    close(
        numbers["against_uniform"],
        np.log(CLASSES - 1) - entropy[looked_at].mean(),
    )

    ranked = looked_at[known[looked_at]]
    batches = [b[known[b]] for b in batches]
    mean = known_of_others(labels, centred, batches)
    placed = ranked[np.isfinite(mean[ranked, 0])]
    assert 0.05 < len(placed) / len(ranked) < 1
    close(numbers["measured_share"], len(placed) / len(ranked))

    soft = reference.softmax(logits / TEMPERATURE)
    order = np.argsort(-soft, axis=-1)
    by_rank = {
        name: np.take_along_axis(each, order, -1)[placed]
        for name, each in (("u", centred), ("m", mean), ("is_other", is_other))
    }
    mass = np.take_along_axis(soft, order, -1)[ranked].mean(0)
    tail, explained = numbers["tail"], np.zeros(CLASSES)
    for k in range(CLASSES):
        close(tail["mass_beyond"][k], mass[k + 1 :].sum())
        used = by_rank["is_other"][:, k:]
        u, m = (by_rank[name][:, k:][used] for name in "um")
        explained[k] = max(np.corrcoef(u, m)[0, 1], 0) ** 2
        if k == tail["quarter"]:
            close(tail["deviation_beyond_quarter"], u.std(), 1e-3)
            close(numbers["tail_spread"], TEMPERATURE * u.std(), 1e-3)
    close(tail["explained_beyond"], explained, 2e-3)
    assert tail["quarter"] == 2  # Of 7.
    close(tail["explained_beyond_quarter"], explained[2], 2e-3)
    close(tail["mass_beyond_quarter"], mass[2:].sum())

    likeliest = np.where(is_other, p, -1).argmax(-1)
    probability = reference.softmax(logits)[rows, likeliest]
    strong = placed[probability[placed] > 0.25]
    assert 0 < len(strong) < len(placed)
    close(numbers["strong_competitor_share"], len(strong) / len(placed))
    places = [
        (mean[row] < mean[row, likeliest[row]])[is_other[row]].sum()
        / (CLASSES - 2)
        for row in strong
    ]
    close(numbers["strong_competitor_place"], np.mean(places))


@pytest.mark.parametrize("value", [-120, -1e3, -5e3, -1e4, -1e9, -np.inf])
def test_classes_that_are_ruled_out_say_nothing_of_the_scale(value):
    """Two more than there are labels, as a vocabulary is filled up."""
    x, _, _ = data(EXAMPLES, seed=3)
    teacher, kept = steep(mlp(seed=5)), CLASSES - 2
    bias = np.zeros(CLASSES, "float32")
    bias[kept:] = value
    teacher.layers[-1].bias.assign(bias)
    logits = teacher.predict(x, verbose=0)[:, :kept].astype("float64")
    labels = logits.argmax(-1)
    diagnosis = diagnose(teacher, batched(x, labels.astype("int32")))
    numbers = diagnosis.numbers["class_relations"]
    at_label = logits.max(-1)
    others = (logits.sum(-1) - at_label) / (kept - 1)
    close(numbers["logit_margin"], (at_label - others).mean())
    assert 0 < numbers["tail_spread"] < 100
    assert "wrong_inputs" not in [each.code for each in diagnosis.findings]


@traced
@pytest.mark.parametrize(
    ("is_sorted", "size"),
    [(False, 32), (True, 32), (True, 1), (True, EXAMPLES)],
)
def test_the_control_depends_on_no_order_and_no_batches(is_sorted, size):
    random = np.random.default_rng(0)
    _, labels, _ = data(EXAMPLES, seed=1)
    if is_sorted:
        labels = np.sort(labels)
    # A label's neighbour, and noise.
    related = reference.one_hot((labels + 1) % CLASSES, CLASSES)
    logits = 6 * reference.one_hot(labels, CLASSES) + 2 * related
    logits = (logits + random.normal(size=logits.shape)).astype("float32")
    others = off_label(reference.softmax(logits / TEMPERATURE), labels)
    chance = [divergence(others, random.permutation(labels)) for _ in range(99)]
    numbers = diagnose(
        passing_through(), batched(logits, labels, size=size), loss=loss()
    ).numbers["class_relations"]
    close(numbers["relation"], divergence(others, labels))
    assert numbers["relation"] > 2 * max(chance)
    assert min(chance) / 2 < numbers["permuted"] < 2 * max(chance)


def test_random_groups_become_as_large_as_the_classes():
    random = np.random.default_rng(0)
    counts = np.array([0, 700, 5, 250, 1, 44])
    few = np.bincount(random.integers(64, size=1000), minlength=64)
    many = np.bincount(random.integers(4096, size=1000), minlength=4096)
    for sizes, tolerance in ((few, few.max()), (many, many.max())):
        rows = relations._classes_of_groups(sizes, counts)
        found = np.bincount(rows, sizes, minlength=len(counts))
        assert found.sum() == 1000
        assert np.abs(found - counts).max() <= tolerance
        np.testing.assert_array_equal(found > 0, counts > 0)
    # Fewer groups than classes are those of the largest.
    rows = relations._classes_of_groups(np.array([3, 0, 4]), counts)
    np.testing.assert_array_equal(rows, [3, 0, 1])


def test_relations_are_told_from_the_permuted_control():
    """Soft targets that know the label's neighbour, or nothing of it."""
    _, labels, _ = data(400, seed=1)
    random = np.random.default_rng(0)
    related = reference.one_hot((labels + 1) % CLASSES, CLASSES)
    unrelated = reference.one_hot(
        random.integers(0, CLASSES, len(labels)), CLASSES
    )
    results = {}
    for name, neighbour in (("related", related), ("unrelated", unrelated)):
        logits = 6 * reference.one_hot(labels, CLASSES) + 2 * neighbour
        results[name] = diagnose(
            passing_through(), batched(logits.astype("float32"), labels)
        ).numbers["class_relations"]
    assert results["related"]["relation"] > 20 * results["related"]["permuted"]
    assert (
        results["unrelated"]["relation"] < 5 * results["unrelated"]["permuted"]
    )
    # The tail beyond the top class is even, or explained by nothing.
    assert results["related"]["tail"]["explained_beyond"][1] > 0.5
    assert results["unrelated"]["tail"]["explained_beyond"][1] < 0.05


@pytest.mark.parametrize(
    ("related", "mass_beyond_3", "k"),
    [(6, 0.3, 5), (10, 0.3, 10), (10, 0.011, 4), (10, 0.008, 3), (-10, 0.3, 1)],
)
def test_k_to_try_is_where_mass_or_relation_ends(related, mass_beyond_3, k):
    """Related are some first ranks; none where all go against the others."""
    random = np.random.default_rng(0)
    mean = random.normal(size=(500, 10))
    own = random.normal(size=(500, 10))
    ranks = np.arange(10)
    own += np.sign(related) * mean * (ranks < abs(related))
    mass = np.where(ranks < 3, (1 - mass_beyond_3) / 3, mass_beyond_3 / 7)
    moments = [np.ones_like(own), own, mean, own**2, mean**2, own * mean]
    tail = measures._tail(mass, np.sum(moments, axis=1))
    close(tail["mass_beyond"], [mass[i + 1 :].sum() for i in range(10)])
    for start in range(10):
        correlation = np.corrcoef(
            own[:, start:].ravel(), mean[:, start:].ravel()
        )[0, 1]
        close(tail["explained_beyond"][start], max(correlation, 0) ** 2)
    assert tail["suggested_k"] == k
    assert tail["quarter"] == 2


def passing_through(classes=CLASSES):
    """A teacher whose inputs are its logits."""
    inputs = keras.Input((classes,))
    return keras.Model(inputs, layers.Identity()(inputs))


@pytest.mark.parametrize("right", [30, 0])
def test_data_of_one_class_cannot_show_what_a_teacher_knows(right):
    labels = np.full(32, 3)
    predicted = np.where(np.arange(32) < right, 3, 5)
    logits = (4 * reference.one_hot(predicted, CLASSES)).astype("float32")
    diagnosis = diagnose(passing_through(), (logits, labels))
    assert [each.code for each in diagnosis.findings] == ["one_class"]
    assert f"{right / 32:.1%}" in diagnosis.findings[0].summary
    assert diagnosis.numbers["teacher"]["skill"] is None
    assert "one class" in diagnosis.verdict[0]
    assert "all classes" in diagnosis.verdict[2]


def test_one_example_of_each_class_tells_nothing_of_relations():
    """As a sample of ImageNet has; this teacher does know them."""
    classes, examples = 60, 12
    # Classes on a ring, alike as they are near.
    angle = 2 * np.pi * np.arange(classes) / classes
    alike = np.cos(angle[:, None] - angle)
    inputs = keras.Input((classes,))
    layer = layers.Dense(classes, use_bias=False)
    teacher = keras.Model(inputs, layer(inputs))
    layer.kernel.assign(3.0 * alike + 3.0 * np.eye(classes))
    noise = np.random.default_rng(0).normal(
        0, 0.1, (examples, classes, classes)
    )
    x = (np.eye(classes) + noise).astype("float32")
    labels = np.tile(np.arange(classes), (examples, 1))
    few = diagnose(teacher, (x[0], labels[0]))
    assert "too_few_examples" in {each.code for each in few.findings}
    told = "ten examples of each class would tell"
    assert told in " ".join(few.verdict)
    many = diagnose(teacher, (x.reshape(-1, classes), labels.reshape(-1)))
    assert told not in " ".join(many.verdict)
    for diagnosis in (few, many):
        assert not {each.code for each in diagnosis.findings} & {
            "label_smoothed_teacher",
            "no_class_relations",
            "noisy_tail",
        }
        assert diagnosis.numbers["teacher"]["accuracy"] > 0.95


def test_mass_beyond_top_k(case):
    tail = case.numbers["class_relations"]["tail"]
    ordered = -np.sort(-case.tempered, axis=-1)
    for k in range(1, CLASSES + 1):
        close(tail["mass_beyond"][k - 1], ordered[:, k:].sum(-1).mean())
    assert 1 <= tail["suggested_k"] <= CLASSES


def test_batches_do_not_matter(case):
    whole = diagnose(
        case.teacher,
        batched(case.x, case.labels, size=EXAMPLES),
        student=case.student,
        loss=loss(),
    ).numbers
    for part in ("teacher", "student", "gradient_scale", "temperature"):
        for (name, one), (_, other) in zip(
            flat(whole[part]), flat(case.numbers[part]), strict=True
        ):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4), name


def flat(numbers, prefix=""):
    for key, value in numbers.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value


# -- which examples count ------------------------------------------------------


def test_weights_of_zero_and_ignored_labels_do_not_count(case):
    counted = np.arange(EXAMPLES) % 3 > 0
    expected = diagnose(
        case.teacher, batched(case.x[counted], case.labels[counted])
    ).numbers
    weighted = diagnose(
        case.teacher, batched(case.x, case.labels, counted * 1.0)
    ).numbers
    ignored = diagnose(
        case.teacher,
        batched(case.x, np.where(counted, case.labels, -1)),
        loss=kd.KD(ignore_class=-1),
    ).numbers
    for numbers in (weighted, ignored):
        assert numbers["data"]["examples"] == counted.sum()
        for part in ("teacher", "gradient_scale"):
            assert dict(flat(numbers[part])) == pytest.approx(
                dict(flat(expected[part])), rel=1e-4, abs=1e-4
            )


@traced
def test_tokens_are_examples():
    x, labels, _ = data(60)
    flat_numbers = diagnose(mlp(), batched(x, labels)).numbers
    inputs = keras.Input((5, FEATURES))
    teacher = keras.Model(inputs, layers.TimeDistributed(mlp())(inputs))
    numbers = diagnose(
        teacher, batched(x.reshape(12, 5, -1), labels.reshape(12, 5), size=4)
    ).numbers
    assert numbers["data"]["tokens"] and not flat_numbers["data"]["tokens"]
    for part in ("teacher", "gradient_scale", "temperature"):
        assert dict(flat(numbers[part])) == pytest.approx(
            dict(flat(flat_numbers[part])), rel=1e-4, abs=1e-4
        )


def surveyed(case, dataset, student):
    """The sums of a survey."""
    readers = (
        LogitReader(case.teacher, role="teacher"),
        student and LogitReader(student),
    )
    sums = survey.Survey(*readers, loss(), (None, CLASSES))
    return sums.run(any_data.of(dataset))


def test_a_vocabulary_is_sampled_evenly(case, monkeypatch):
    monkeypatch.setattr(survey, "_SAMPLE_CELLS", 10 * CLASSES)
    dataset = batched(case.x, case.labels, size=32)
    totals = surveyed(case, dataset, student=None)
    # Of 32 examples every fourth, from another place in each batch; 11 last.
    assert totals["examples"] == EXAMPLES
    expected = sum(
        len(range(batch % stride, size, stride))
        for batch, (size, stride) in enumerate([(32, 4)] * 6 + [(11, 2)])
    )
    assert totals["sampled"] == expected
    close(
        totals["correct"] / EXAMPLES,
        (case.logits.argmax(-1) == case.labels).mean(),
    )


def test_sums_do_not_grow_with_the_data(case):
    def shapes(dataset):
        totals = surveyed(case, dataset, case.student)
        return {name: np.shape(value) for name, value in totals.items()}

    one = batched(case.x, case.labels)
    assert shapes(one) == shapes(one.repeat(5))


@traced
def test_one_pass_in_inference_mode():
    x, labels, _ = data(64)
    passes = []

    def generate():
        passes.append(1)
        yield from (
            (x[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)
        )

    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=(
            tf.TensorSpec((None, FEATURES), "float32"),
            tf.TensorSpec((None,), "int32"),
        ),
    )
    inputs = keras.Input((FEATURES,))
    hidden = layers.BatchNormalization()(layers.Dense(8)(inputs))
    outputs = layers.Dense(CLASSES)(layers.Dropout(0.5)(hidden))
    teacher = keras.Model(inputs, outputs)
    before = weights_of(teacher)
    numbers = diagnose(teacher, dataset).numbers
    assert len(passes) == 1
    for one, other in zip(before, weights_of(teacher), strict=True):
        np.testing.assert_array_equal(one, other)
    log_p = reference.log_softmax(teacher(x, training=False).numpy())
    close(
        numbers["teacher"]["cross_entropy"],
        -log_p[np.arange(64), labels].mean(),
    )


class Gated(keras.Model):
    """A teacher that gives logits; its last attribute ends in softmax."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.gate = layers.Dense(2, "softmax")

    def call(self, inputs):
        return self.inner(inputs) + 0 * self.gate(inputs)[..., :1]


class Probabilities(keras.Model):
    """A subclassed teacher that ends in a softmax of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return keras.ops.softmax(self.inner(inputs))


def ending_in(case, *operations):
    """The case's teacher followed by functions."""
    inputs = keras.Input((FEATURES,))
    outputs = case.teacher(inputs)
    for operation in operations:
        outputs = operation(outputs)
    return keras.Model(inputs, outputs)


def lambda_softmax(logits):
    return layers.Lambda(tf.nn.softmax)(logits)


def check_cross_entropy(diagnosis, p, labels):
    on_label = p[np.arange(len(labels)), labels]
    close(
        diagnosis.numbers["teacher"]["cross_entropy"], -np.log(on_label).mean()
    )


@traced
def test_what_a_teacher_gives_is_not_guessed_from_its_attributes(case):
    dataset = batched(case.x, case.labels)
    diagnosis = diagnose(Gated(case.teacher), dataset, loss=loss())
    check_cross_entropy(diagnosis, case.p, case.labels)
    # Keras keeps what went into its softmax, which is exact.
    diagnosis = diagnose(Probabilities(case.teacher), dataset, loss=loss())
    check_cross_entropy(diagnosis, case.p, case.labels)


@pytest.mark.parametrize(
    "operations",
    [
        [layers.Softmax()],
        [keras.ops.softmax, layers.Reshape((CLASSES,))],
        [keras.ops.log_softmax],
    ],
)
def test_a_softmax_is_read_from_the_graph(case, operations):
    teacher = ending_in(case, *operations)
    diagnosis = diagnose(teacher, batched(case.x, case.labels), loss=loss())
    check_cross_entropy(diagnosis, case.p, case.labels)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_softmax_that_no_graph_tells_is_said_or_refused(case, kind, role):
    log = kind == "log_probabilities"
    hidden = ending_in(
        case, lambda_softmax, layers.Lambda(tf.math.log if log else tf.identity)
    )
    models = {"teacher": case.teacher, role: hidden}
    dataset = batched(case.x, case.labels)
    told = diagnose(dataset=dataset, **models, **{f"{role}_output": kind})
    numbers = told.numbers[role]
    on_label = case.p[case.rows, case.labels]
    close(numbers["cross_entropy"], -np.log(on_label).mean())
    if log:  # Log-probabilities are logits too.
        return
    with pytest.raises(ValueError, match=f"{role}_output='probabilities'"):
        diagnose(dataset=dataset, **models)
    with pytest.raises(ValueError, match=f"{role}_output='logits'"):
        diagnose(
            dataset=dataset,
            teacher=case.teacher,
            student=case.student,
            **{f"{role}_output": kind},
        )


def test_the_average_of_members_is_read_as_what_it_is(case):
    inputs = keras.Input((FEATURES,))
    members = [
        layers.Softmax()(model(inputs))
        for model in (case.teacher, case.student)
    ]
    p = (case.p + reference.softmax(case.student_logits)) / 2
    for mean in (layers.average(members), sum(members) / 2):
        teacher = keras.Model(inputs, mean)
        dataset = batched(case.x, case.labels)
        try:
            diagnosis = diagnose(teacher, dataset)
        except ValueError as error:
            assert "teacher_output='probabilities'" in str(error)
            diagnosis = diagnose(
                teacher, dataset, teacher_output="probabilities"
            )
        check_cross_entropy(diagnosis, p, case.labels)


# -- shapes and types ----------------------------------------------------------


def assert_same(diagnosis, expected, parts=("teacher", "gradient_scale")):
    for part in parts:
        assert dict(flat(diagnosis.numbers[part])) == pytest.approx(
            dict(flat(expected.numbers[part])), rel=1e-4, abs=1e-4
        )


def test_labels_of_other_shapes_and_types(case):
    expected = diagnose(case.teacher, batched(case.x, case.labels))
    for labels in (
        case.labels[:, None],
        case.labels.astype("float32"),
        case.labels.astype("float64")[:, None],
        case.labels.astype("uint8"),
    ):
        assert_same(diagnose(case.teacher, batched(case.x, labels)), expected)


def test_weights_of_other_shapes_and_types(case):
    weights = (np.arange(EXAMPLES) % 3 > 0).astype("float32")
    given = weights > 0
    expected = diagnose(case.teacher, batched(case.x, case.labels, weights))
    assert expected.numbers["data"]["examples"] == given.sum()
    right = case.logits.argmax(-1) == case.labels
    close(expected.numbers["teacher"]["accuracy"], right[given].mean())
    for each in (weights[:, None], given):
        assert_same(
            diagnose(case.teacher, batched(case.x, case.labels, each)), expected
        )


class Text:
    """Words, of which some are padding, with labels and weights."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.words = random.integers(0, 9, (24, 5))  # 0 is padding.
        self.labels = random.integers(0, CLASSES, (24, 5))
        self.teacher = keras.Sequential(
            [
                layers.Embedding(9, 4, mask_zero=True),
                layers.Dense(CLASSES),
            ]
        )
        self.weights = (np.arange(24) % 4 > 0).astype("float32")
        self.by_label = np.broadcast_to(
            self.weights[:, None], self.labels.shape
        )

    def check(self, labels, weights):
        """Of labels and weights in a form, against those that count."""
        counted = (self.words != 0) & (self.by_label != 0)
        logits = self.teacher(self.words).numpy()
        expected = diagnose(
            passing_through(), batched(logits[counted], self.labels[counted])
        )
        dataset = batched(self.words, labels, weights, size=12)
        diagnosis = diagnose(self.teacher, dataset)
        data_numbers = diagnosis.numbers["data"]
        assert data_numbers["tokens"]
        assert data_numbers["examples"] == counted.sum()
        assert_same(diagnosis, expected)


@traced
def test_text_with_a_mask():
    text = Text()
    text.check(text.labels, text.weights)


def test_text_with_labels_and_weights_of_other_shapes():
    text = Text()
    labels, by_label = text.labels, text.by_label
    text.check(labels[..., None], text.weights[:, None])
    text.check(labels.astype("float32"), by_label)
    text.check(labels, by_label[..., None])


@pytest.mark.parametrize("bad", [2**32 + 1, -(2**32) + 1, CLASSES, -1])
def test_labels_out_of_range_are_refused(case, bad):
    labels = case.labels.astype("int64")
    labels[140] = bad
    message = f"label {bad} among 1 labels of batch 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        diagnose(case.teacher, batched(case.x, labels))
    weights = np.arange(EXAMPLES) != 140
    diagnose(case.teacher, batched(case.x, labels, weights))


class InADict(keras.Model):
    """A model whose only output has a name."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return {"logits": self.inner(inputs)}


def test_the_only_output_may_be_in_a_dict(case):
    named = keras.Model(
        case.student.inputs, {"logits": case.student.outputs[0]}
    )
    dataset = batched(case.x, case.labels)
    numbers = diagnose(InADict(case.teacher), dataset, named, loss()).numbers
    for part in ("teacher", "student", "gradient_scale"):
        assert dict(flat(numbers[part])) == pytest.approx(
            dict(flat(case.numbers[part])), rel=1e-4, abs=1e-4
        )


@traced
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    x, labels, _ = data(40, classes=classes)
    diagnosis = diagnose(mlp(classes=classes), batched(x, labels))
    assert (diagnosis.numbers["class_relations"] is None) == (classes == 2)
    assert "accuracy" in str(diagnosis)


# -- similarity ----------------------------------------------------------------


def test_superclasses_followed_and_not():
    rows = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]])
    similarity = measures.similarity_numbers(rows, None, np.array([0, 1, 0, 1]))
    followed = similarity["superclasses"]["teacher"]
    cosine = 1 / np.hypot(1, 0.1)
    assert followed["nearest_inside"] == 1
    close(followed["cosine_inside"], cosine)
    close(followed["nearest_inside_by_chance"], 4 / 12)
    assert list(similarity["order"]) == [0, 2, 1, 3]
    other = measures.similarity_numbers(rows, None, np.array([0, 0, 1, 1]))
    assert other["superclasses"]["teacher"]["nearest_inside"] == 0


def test_clustering_puts_similar_classes_together():
    random = np.random.default_rng(0)
    groups = random.permutation(np.repeat(np.arange(4), 5))
    rows = 5 * np.eye(4)[groups] + random.normal(size=(20, 4)) / 4
    order = measures.cluster_order(kd.similarity.class_similarity(rows))
    assert sorted(order) == list(range(20))
    assert (np.diff(groups[order]) != 0).sum() == 3
    # On a line, the order is that of the line, from one end or the other.
    line = random.permutation(9)
    similarity = -np.abs(line[:, None] - line)
    placed = line[measures.cluster_order(similarity)]
    assert list(placed) in (list(range(9)), list(range(8, -1, -1)))


def test_the_logit_layer_is_the_teachers(case):
    similarity = case.numbers["similarity"]
    rows = case.teacher.layers[-1].kernel.numpy().T[similarity["order"]]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    close(similarity["teacher"], unit @ unit.T)
    assert len(similarity["student"]) == CLASSES
    # A teacher with no logit layer to be found has no matrix.
    numbers = diagnose(
        passing_through(), batched(case.logits.astype("float32"), case.labels)
    ).numbers
    assert numbers["similarity"] is None


# -- findings ------------------------------------------------------------------


def codes(diagnosis):
    return [each.code for each in diagnosis.problems]


def broken(model):
    """The same model with one NaN in its last weights."""
    bias = model.layers[-1].bias
    bias.assign(np.where(np.arange(CLASSES) == 2, np.nan, bias.numpy()))
    return model


def test_nan_in_the_inputs_is_found_with_its_batch(case):
    x = case.x.copy()
    x[140] = np.nan
    x[150:152] = np.inf
    diagnosis = diagnose(case.teacher, batched(x, case.labels))
    assert codes(diagnosis)[0] == "not_finite"
    found = diagnosis.findings[0]
    assert found.evidence == {
        "first_bad_batch": 140 // 128,
        "not_finite": 3,
        "not_finite_inputs": 3,
        "not_finite_weights": [],
        "examples": EXAMPLES - 3,
    }
    assert "origin is the inputs" in found.summary
    assert "the teacher" not in found.summary.split("origin")[1]
    finite = np.isfinite(x).all(-1)
    close(
        diagnosis.numbers["teacher"]["accuracy"],
        (case.logits.argmax(-1) == case.labels)[finite].mean(),
    )


def test_nan_in_the_teacher_is_named(case):
    teacher = broken(mlp())
    (found,) = diagnose(teacher, batched(case.x, case.labels)).findings
    path = teacher.layers[-1].bias.path
    assert f"origin is the teacher, whose weights {path} are" in found.summary
    assert found.evidence["not_finite_inputs"] == 0


def test_nan_that_the_teacher_makes_of_finite_inputs_is_told_apart(case):
    x = case.x.copy()
    x[3] = np.nan
    teacher = ending_in(
        case, lambda logits: logits + keras.ops.log(logits[:, :1] + 1.5)
    )
    made = case.logits[:, 0] <= -1.5
    made[3] = False
    assert made.any()
    found = diagnose(teacher, batched(x, case.labels)).findings[0]
    assert found.evidence["not_finite"] == made.sum() + 1
    assert found.evidence["not_finite_inputs"] == 1
    assert f"inputs are finite for {made.sum()}" in found.summary


def test_nan_in_the_first_batch_does_not_hide_what_a_model_gives(case):
    x = case.x.copy()
    x[:128] = np.nan
    softmax = ending_in(case, lambda_softmax)
    with pytest.raises(ValueError, match="teacher_output='probabilities'"):
        diagnose(softmax, batched(x, case.labels))
    read = ending_in(case, layers.Softmax())
    for teacher in (softmax, read):
        diagnosis = diagnose(
            teacher, batched(x, case.labels), teacher_output="probabilities"
        )
        check_cross_entropy(diagnosis, case.p[128:], case.labels[128:])


def test_the_origin_of_nan_in_a_student_is_named(case):
    student = broken(mlp())
    path = student.layers[-1].bias.path
    refused(ValueError, "student's logits", path, student=student)
    # A teacher that takes NaN for 0, and a student that does not.
    inputs = keras.Input((FEATURES,))
    teacher = keras.Model(inputs, case.teacher(keras.ops.nan_to_num(inputs)))
    x = case.x.copy()
    x[140] = np.nan
    with pytest.raises(ValueError, match="inputs are not finite.*in batch 1"):
        diagnose(teacher, batched(x, case.labels), case.student)


def test_nothing_but_nan(tmp_path):
    x, labels, _ = data(40)
    diagnosis = diagnose(mlp(), batched(x * np.nan, labels))
    assert codes(diagnosis) == ["not_finite"]
    assert "40 examples" in str(diagnosis)
    diagnosis.save(tmp_path / "report.html")


def test_a_teacher_worse_than_the_student(case):
    right = 4.0 * reference.one_hot(case.labels, CLASSES)
    wrong = 4.0 * reference.one_hot((case.labels + 1) % CLASSES, CLASSES)
    half = (np.arange(EXAMPLES) % 4 > 0)[:, None]
    inputs = keras.Input((2 * CLASSES,))
    teacher = keras.Model(inputs, inputs[:, :CLASSES])
    student = keras.Model(inputs, inputs[:, CLASSES:])
    good_half = np.where(half, right, wrong)
    x = np.concatenate([good_half, right], -1).astype("float32")
    dataset = batched(x, case.labels)
    assert "worse_than_student" in codes(diagnose(teacher, dataset, student))
    assert "worse_than_student" not in codes(
        diagnose(student, dataset, teacher)
    )


def test_classes_never_predicted(case):
    logits = 4 * reference.one_hot(case.labels, CLASSES)
    logits[:, 3] = -4
    diagnosis = diagnose(
        passing_through(), batched(logits.astype("float32"), case.labels)
    )
    finding = next(
        f for f in diagnosis.problems if f.code == "classes_never_predicted"
    )
    assert finding.evidence["classes"] == [3]
    close(finding.evidence["share"], (case.labels == 3).mean())


# -- what it gives -------------------------------------------------------------


def test_numbers_and_findings_are_json(case):
    diagnosis = diagnose(case.teacher, batched(case.x, case.labels))
    parsed = json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    assert parsed["numbers"] == diagnosis.numbers
    assert [f["code"] for f in parsed["findings"]] == [
        f.code for f in diagnosis.findings
    ]


def test_text_says_what_why_and_what_to_do(case):
    right = case.logits.argmax(-1)
    diagnosis = diagnose(case.teacher, batched(case.x, right))
    text = " ".join(str(diagnosis).split())
    assert len(diagnosis.findings) > 1
    for finding in diagnosis.findings:
        for part in (finding.summary, finding.consequence, finding.remedy):
            assert " ".join(part.split()) in text
    severities = [f.severity for f in diagnosis.findings]
    assert severities == sorted(severities, key=["problem", "info"].index)


# -- bad input -----------------------------------------------------------------


def refused(kind, *words, **arguments):
    x, labels, _ = data(20)
    arguments = {
        "teacher": mlp(),
        "dataset": batched(x, labels),
        **arguments,
    }
    with pytest.raises(kind) as caught:
        diagnose(**arguments)
    for word in ("Received", *words):
        assert word in str(caught.value), str(caught.value)


def test_one_hot_labels_are_their_class_ids():
    x, labels, _ = data(64)
    one_hot = reference.one_hot(labels, CLASSES).astype("float32")
    teacher = mlp()
    of_ids = kd.diagnose(teacher, batched(x, labels))
    of_one_hot = kd.diagnose(teacher, batched(x, one_hot))
    assert str(of_one_hot) == str(of_ids)
    for name, value in of_ids.numbers["teacher"].items():
        np.testing.assert_equal(of_one_hot.numbers["teacher"][name], value)


def test_bad_data_sets_are_refused():
    x, labels, _ = data(20)
    good = batched(x, labels)
    refused(ValueError, "no labels", dataset=batched(x).map(lambda x: x))
    refused(ValueError, "infinite", "take(", dataset=good.repeat())
    refused(ValueError, "empty", dataset=good.take(0))
    unknown = good.filter(lambda x, y: False)
    refused(ValueError, "empty", dataset=unknown)
    refused(ValueError, "batch(128)", dataset=good.unbatch())
    refused(TypeError, "tf.data.Dataset", dataset=[(x, labels)])
    refused(ValueError, "weight 0", dataset=batched(x, labels, 0.0 * labels))
    one_hot = reference.one_hot(labels, CLASSES).astype("float32")
    several = np.maximum(one_hot, np.roll(one_hot, 1, axis=0))
    smooth = 0.9 * one_hot + 0.1 / CLASSES
    soft = ("distributions", "hard labels")
    refused(ValueError, *soft, dataset=batched(x, smooth))
    refused(
        ValueError, f"label {labels[0] + 0.5}", dataset=batched(x, labels + 0.5)
    )
    refused(ValueError, "label nan", dataset=batched(x, labels * np.nan))
    refused(ValueError, "(20, 2)", dataset=batched(x, one_hot[:, :2]))
    words = labels.astype(str)
    refused(ValueError, "StringLookup", dataset=batched(x, words))
    weights = np.ones((20, 3))
    refused(ValueError, "(20, 3)", dataset=batched(x, labels, weights))
    weights = np.full(20, np.nan)
    refused(ValueError, "finite", dataset=batched(x, labels, weights))
    dataset = batched(x, several)
    with pytest.raises(ValueError, match="multi-hot.*one class at a time") as e:
        diagnose(mlp(), dataset)
    assert "argmax" not in str(e.value)
    refused(
        ValueError,
        "label 9",
        "batch 0",
        dataset=batched(x, labels + 3 * 0 + 9 * (labels == 0)),
    )


def test_bad_models_are_refused():
    x, labels, _ = data(20)
    refused(TypeError, "teacher", teacher=lambda x: x)
    refused(TypeError, "student", student=3)
    with pytest.raises(
        TypeError, match=r"shape \(20,\).*\(teacher, \(x, y\)\)"
    ):
        kd.diagnose(mlp(), x, labels)
    refused(ValueError, "5 classes", "with 7", student=mlp(classes=5))
    refused(ValueError, "outputs[0][..., :n])", student=mlp(classes=5))
    refused(ValueError, "at least 2", teacher=mlp(classes=1))
    refused(ValueError, "1 class ", student=mlp(classes=1))
    inputs = keras.Input((FEATURES,))
    many = keras.Model(inputs, [mlp()(inputs), mlp()(inputs)])
    refused(ValueError, "2 outputs", teacher=many)
    refused(ValueError, "2 outputs", student=many)
    tokens = keras.Model(inputs, layers.RepeatVector(3)(mlp()(inputs)))
    refused(ValueError, "same examples", student=tokens)
    refused(ValueError, "'scores'", teacher_output="scores")


def test_a_sigmoid_teacher_is_diagnosed_as_the_message_says():
    x, labels, _ = data(60, classes=2)
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(inputs))
    remedy = "keras.Model(model.inputs, keras.ops.concatenate([1 - p, p], -1))"
    refused(ValueError, remedy, "teacher_output", teacher=model)
    two = eval(remedy, {"keras": keras, "model": model, "p": model.output})
    diagnosis = diagnose(
        two, batched(x, labels), teacher_output="probabilities"
    )
    q = model(x).numpy()[:, 0]
    expected = -np.log(np.where(labels == 1, q, 1 - q)).mean()
    close(diagnosis.numbers["teacher"]["cross_entropy"], expected)


def test_an_unbuilt_teacher_is_built(case):
    for loss_ in (kd.KDSim(), kd.KDPtSim()):
        teacher = keras.Sequential([layers.Dense(4), layers.Dense(CLASSES)])
        student = keras.Sequential([layers.Dense(CLASSES)])
        dataset = batched(case.x, case.labels)
        numbers = diagnose(teacher, dataset, student, loss_).numbers
        logits = teacher(case.x).numpy().argmax(-1)
        close(numbers["teacher"]["accuracy"], (logits == case.labels).mean())
        assert numbers["similarity"]["teacher"]


def test_superclasses_must_cover_the_classes():
    refused(ValueError, "(6,)", "7 classes", superclasses=[0] * 6)
    refused(ValueError, "float64", superclasses=[0.5] * CLASSES)
