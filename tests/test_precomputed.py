"""A teacher's outputs that came with the data, on every backend."""

import json
import sys

import keras
import numpy as np
import pytest
import reference
from keras import ops
from models import (
    CLASSES,
    EAGERLY,
    FEATURES,
    assert_same_weights,
    assert_weights_differ,
    data,
    mlp,
    outputs_of,
    weights_of,
)

import keras_kd as kd
from keras_kd import precomputed

EXAMPLES, BATCH, K = 24, 8, 4


def lists(log_p, width=K, seed=0, shortened=()):
    """The largest log-probabilities in no order, some rows shortened."""
    random = np.random.default_rng(seed)
    ids = np.argsort(-log_p, axis=-1)[..., :width]
    for number, length in shortened:
        ids[number, length:] = -1
    ids = random.permuted(ids, axis=-1)
    values = np.take_along_axis(log_p, np.maximum(ids, 0), -1)
    # What fills up a list may be anything.
    return {
        "top_ids": ids,
        "top_log_probabilities": np.where(ids < 0, 3.0, values),
    }


def distribution(ids, values, temperature):
    """What a list says, by the rule: the mass that is left spread evenly."""
    target = np.full(CLASSES, np.nan)
    listed = ids >= 0
    target[ids[listed]] = np.exp(values[listed])
    left = 1 - np.exp(values[listed]).sum()
    target[np.isnan(target)] = max(left, 0) / max(CLASSES - listed.sum(), 1)
    target = target ** (1 / temperature)
    return target / target.sum()


@pytest.fixture(scope="module")
def given():
    """Inputs, labels, and a teacher's log-probabilities in float64."""
    x, labels, _ = data(EXAMPLES)
    return x, labels, reference.log_softmax(outputs_of(mlp(12, seed=5), x))


def trained(loss, *arguments, teacher=None, how=EAGERLY, **more):
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile(keras.optimizers.SGD(0.1), loss, **how)
    more = {"verbose": 0, "shuffle": False, **more}
    distiller.fit(*arguments, **more)
    return weights_of(distiller.student)


# -- values --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_statistics_of_lists_are_numpys(given, temperature):
    _, labels, log_p = given
    found = lists(log_p, shortened=[(0, 2), (1, 1), (2, 3)])
    top = precomputed.TopList.of(found, CLASSES)
    wanted = np.stack(
        [
            distribution(*row, temperature)
            for row in zip(*found.values(), strict=True)
        ]
    )
    odds = top.log_odds(ops.convert_to_tensor(labels), temperature)
    at_label = wanted[np.arange(EXAMPLES), labels]
    np.testing.assert_allclose(
        ops.convert_to_numpy(odds),
        np.log(at_label / (1 - at_label)),
        atol=2e-5,
    )
    for k in range(1, K + 1):
        classes, masses, tail = (
            ops.convert_to_numpy(each)
            for each in top.largest(k, temperature).values()
        )
        for row in range(EXAMPLES):
            assert len(set(classes[row])) == k
            rest = np.delete(wanted[row], classes[row])
            np.testing.assert_allclose(
                masses[row], wanted[row][classes[row]], atol=2e-6
            )
            assert tail[row] == pytest.approx(rest.sum(), abs=2e-6)
            assert masses[row].min() >= rest.max() - 2e-6
    assert not ops.convert_to_numpy(top.fault).any()


def test_lists_of_all_classes_leave_nothing(given):
    _, labels, log_p = given
    top = precomputed.TopList.of(lists(log_p, CLASSES), CLASSES)
    found = top.largest(CLASSES, 2.0)
    np.testing.assert_allclose(
        np.sort(ops.convert_to_numpy(found["top_probabilities"])),
        np.sort(reference.softmax(log_p / 2)),
        atol=1e-6,
    )
    assert not ops.convert_to_numpy(found["tail_probability"]).any()


# -- training ------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["kd", "kd_pt", "kd_topk"])
def test_full_log_probabilities_train_as_the_teacher_does(
    given, kind, temperature
):
    x, labels, log_p = given
    loss = kd.losses.get(kind, temperature=temperature)
    expected = trained(loss, x, labels, BATCH, teacher=mlp(12, seed=5))
    y = {"labels": labels, "teacher_log_probabilities": log_p}
    how = {} if temperature == 4.0 else EAGERLY
    assert_same_weights(trained(loss, x, y, BATCH, how=how), expected, 1e-6)


@pytest.fixture(scope="module")
def trained_with_the_teacher(given):
    x, labels, _ = given
    loss = kd.KDTopK(k=K, temperature=1.0)
    return trained(loss, x, labels, BATCH, teacher=mlp(12, seed=5))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_file_trains_the_student_that_its_teacher_trains(
    given, trained_with_the_teacher, suffix, cached, tmp_path
):
    """To 1e-6, at temperature 1, whatever program wrote the lists."""
    x, labels, log_p = given
    loss = kd.KDTopK(k=K, temperature=1.0)
    expected = trained_with_the_teacher
    found = lists(log_p)
    path = tmp_path / f"teacher.{suffix}"
    write_file(path, *(each.tolist() for each in found.values()))
    read = kd.read_top_log_probabilities(path, rows=EXAMPLES)
    y = {"labels": labels, **read}
    if cached:
        cache = kd.TeacherCache.write(
            tmp_path / "cache",
            (x, y),
            losses=[loss, kd.KDPt(temperature=1.0)],
            num_classes=CLASSES,
            dtype="float32",
            verbose=0,
        )
        # The data need not carry the lists any more.
        attached = cache.attach((x, labels), loss, batch_size=BATCH)
        assert_same_weights(trained(loss, attached), expected, 1e-6)
    else:
        how = {} if suffix == "parquet" else EAGERLY
        found = trained(loss, x, y, BATCH, how=how)
        assert_same_weights(found, expected, 1e-6)


@pytest.mark.parametrize(
    "kind", ["teacher_logits", "teacher_log_probabilities"]
)
def test_a_cache_of_full_outputs_is_the_teachers(given, kind, tmp_path):
    x, labels, log_p = given
    values = log_p + 3.0 if kind == "teacher_logits" else log_p
    losses = [kd.KDPt(temperature=3.0), kd.KDTopK(k=3)]
    arguments = {"losses": losses, "dtype": "float32", "verbose": 0}
    y = {"labels": labels, kind: values.astype("float32")}
    found = kd.TeacherCache.write(tmp_path / "found", (x, y), **arguments)
    wanted = kd.TeacherCache.write(
        tmp_path / "wanted", (x, labels), mlp(12, seed=5), **arguments
    )
    assert found.teacher_accuracy == wanted.teacher_accuracy
    for loss in losses:
        for name in loss.statistics:
            np.testing.assert_allclose(
                found.statistics(slice(None), loss)[name],
                wanted.statistics(slice(None), loss)[name],
                atol=1e-5,
            )
    # Another teacher's are not taken for these.
    y[kind] = np.roll(y[kind], 1, axis=-1)
    with pytest.raises(ValueError, match="belongs to something else"):
        kd.TeacherCache.write(tmp_path / "found", (x, y), **arguments)


def test_lists_of_tokens_train_and_are_cached(tmp_path):
    """Padding without lists, which does not count."""
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 3, 5)).astype("float32")
    labels = random.integers(0, CLASSES, (12, 3)).astype("int32")
    labels[:4, 2] = -1
    inputs = keras.Input((3, 5))
    kernel = keras.initializers.RandomUniform(-1, 1, seed=1)

    def model():
        outputs = keras.layers.Dense(CLASSES, kernel_initializer=kernel)(inputs)
        return keras.Model(inputs, outputs)

    found = lists(reference.log_softmax(random.normal(size=(12, 3, CLASSES))))
    found["top_ids"][:4, 2] = -1
    y = {"labels": labels, **found}
    loss = kd.KDPt(temperature=1.0, ignore_class=-1)
    cache = kd.TeacherCache.write(
        tmp_path / "cache",
        (x, y),
        losses=loss,
        num_classes=CLASSES,
        dtype="float32",
        verbose=0,
    )
    ended = []
    for y_given, how in ((y, {}), ({"labels": labels, **cache[:]}, EAGERLY)):
        distiller = kd.Distiller(model())
        distiller.compile(keras.optimizers.SGD(0.1), loss, **how)
        distiller.fit(x, y_given, batch_size=4, shuffle=False, verbose=0)
        ended.append(weights_of(distiller.student))
    assert_same_weights(*ended, 1e-6)
    # Where it counts, a token needs its list.
    labels[:4, 2] = 0
    distiller.compile("sgd", kd.KDPt(temperature=1.0), **EAGERLY)
    with pytest.raises(ValueError, match="no class at all"):
        distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="no class at all in row 0, token 2"):
        kd.TeacherCache.write(
            tmp_path / "other",
            (x, y),
            losses=kd.KDPt(),
            num_classes=CLASSES,
            verbose=0,
        )


def test_weights_of_data_without_labels(given):
    """Keras gives each entry of y the same ones."""
    x, _, log_p = given
    y = {"teacher_logits": log_p.astype("float32")}
    weights = np.random.default_rng(1).uniform(0, 2, EXAMPLES)
    options = {"batch_size": BATCH, "sample_weight": weights.astype("float32")}
    found = trained(kd.KD(), x, y, **options)
    unlabelled = np.full(EXAMPLES, -1)
    teacher = mlp(12, seed=5)
    wanted = trained(kd.KD(), x, unlabelled, teacher=teacher, **options)
    assert_same_weights(found, wanted, 1e-5)
    options["sample_weight"] = None
    assert_weights_differ(found, trained(kd.KD(), x, y, **options))


# -- bad input -----------------------------------------------------------------


def spoilt(log_p, fault):
    """Lists with something wrong in row 13."""
    found = lists(log_p)
    ids, values = found["top_ids"], found["top_log_probabilities"]
    if fault == "above 0":
        values[13, 1] = 0.5
    elif fault == "NaN":
        values[13, 1] = np.nan
    elif fault == "sum to more than 1":
        values[13] = np.log(0.9)
    elif fault == "outside of the classes":
        ids[13, 2] = CLASSES
    elif fault == "an id twice":
        ids[13, 2] = ids[13, 0]
    return found


FAULTS = (
    "above 0",
    "NaN",
    "sum to more than 1",
    "outside of the classes",
    "an id twice",
)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    @property
    def num_batches(self):
        return EXAMPLES // BATCH

    def __getitem__(self, number):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return self.x[rows], {k: v[rows] for k, v in self.y.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_lists_that_are_not_valid_are_refused_with_the_row(
    given, fault, tmp_path
):
    x, labels, log_p = given
    y = {"labels": labels, **spoilt(log_p, fault)}
    with pytest.raises(ValueError, match=f"{fault}.* in row 13:"):
        kd.check_outputs(y, CLASSES)
    distiller = kd.Distiller(mlp())
    # One step is traced.
    how = {} if fault == "NaN" else EAGERLY
    distiller.compile("sgd", kd.KDTopK(k=2), **how)
    before = weights_of(distiller.student)
    with pytest.raises(ValueError, match=f"{fault}.* in row 13:"):
        distiller.fit(x, y, verbose=0)
    # Of batches the step sees it, and leaves the student as it was.
    first = Batches(x[BATCH:], {k: v[BATCH:] for k, v in y.items()})
    with pytest.raises(ValueError, match=f"{fault}.* in row 5 of a batch"):
        distiller.fit(first, verbose=0, shuffle=False)
    assert_same_weights(weights_of(distiller.student), before, 0)
    for dataset in ((x, y), Batches(x, y)):
        with pytest.raises(ValueError, match=f"{fault}.* in row 13:"):
            kd.TeacherCache.write(
                tmp_path / type(dataset).__name__,
                dataset,
                losses=kd.KDPt(),
                num_classes=CLASSES,
                batch_size=BATCH,
                verbose=0,
            )


@pytest.mark.parametrize("without", ["labels", "a label in that row"])
def test_outputs_of_what_has_no_label_are_checked_in_a_cache(
    given, without, tmp_path
):
    x, labels, log_p = given
    y = spoilt(log_p, "sum to more than 1")
    if without != "labels":
        y["labels"] = np.where(np.arange(EXAMPLES) == 13, -1, labels)
    with pytest.raises(ValueError, match="in row 13"):
        kd.TeacherCache.write(
            tmp_path / "cache",
            (x, y),
            losses=kd.KDTopK(k=2),
            num_classes=CLASSES,
            verbose=0,
        )


@pytest.mark.parametrize(
    ("loss", "label", "weight"),
    [
        (kd.KDTopK(k=2), 0, 0.0),
        (kd.KDTopK(k=2, ignore_class=-1), -1, 1.0),
        (kd.KDTopK(k=2, ignore_class=255), 255, 1.0),
        # It reads labels: what has none is never trained on.
        (kd.KDPt(), -1, 1.0),
    ],
)
def test_outputs_of_what_does_not_count_may_be_anything(
    given, loss, label, weight, tmp_path
):
    """The teacher's accuracy is of the others, by the first of each list."""
    x, labels, log_p = given
    labels, weights = labels.copy(), np.ones(EXAMPLES)
    labels[13], weights[13] = label, weight
    cache = kd.TeacherCache.write(
        tmp_path / "cache",
        (x, {"labels": labels, **spoilt(log_p, "NaN")}, weights),
        losses=loss,
        num_classes=CLASSES,
        verbose=0,
    )
    right = np.delete(log_p.argmax(-1) == labels, 13)
    assert cache.teacher_accuracy == pytest.approx(right.mean())


def test_an_ignored_class_of_the_teachers_is_not_checked(given, tmp_path):
    x, labels, log_p = given
    labels = np.where(np.arange(EXAMPLES) == 13, 2, np.minimum(labels, 1))
    data = x, {"labels": labels, **spoilt(log_p, "NaN")}

    def write(ignored):
        return kd.TeacherCache.write(
            tmp_path / str(ignored),
            data,
            losses=kd.KDTopK(k=2, ignore_class=ignored),
            num_classes=CLASSES,
            verbose=0,
        )

    assert write(2).examples == EXAMPLES
    with pytest.raises(ValueError, match="in row 13"):
        write(1)


def test_logits_that_are_not_valid_are_refused_with_the_row(given):
    _, labels, log_p = given
    # Of a class that the teacher rules out.
    sound = np.where(np.arange(CLASSES) == 3, -np.inf, 5 + log_p)
    kd.check_outputs({"labels": labels, "teacher_logits": sound}, CLASSES)
    for value in (np.nan, np.inf):
        logits = sound.copy()
        logits[13, 2] = value
        message = f"NaN or infinite in row 13: .*{value}.* .1 row in all"
        with pytest.raises(ValueError, match=message):
            kd.check_outputs({"teacher_logits": logits}, CLASSES)
    with pytest.raises(ValueError, match="6 numbers a row for 7 classes"):
        kd.check_outputs({"teacher_logits": sound[:, :6]}, CLASSES)


def test_where_there_are_no_outputs_nothing_is_found_sound(given):
    _, labels, log_p = given
    misspelt = {"labels": labels, "teacher_log_probs": log_p}
    with pytest.raises(ValueError, match="dict with .*'teacher_log_probs'"):
        kd.check_outputs(misspelt, CLASSES)
    with pytest.raises(ValueError, match="no dict"):
        kd.check_outputs(labels, CLASSES)


def test_full_outputs_that_are_not_valid_are_refused(given):
    x, labels, log_p = given
    distiller = kd.Distiller(mlp())
    distiller.compile("sgd", kd.KD())
    for values, message in (
        (log_p - 0.5, "do not sum to 1.* in row 0"),
        (log_p + 9.0, "above 0.* in row 0"),
        (log_p[:, :5], "5 numbers a row for 7 classes"),
    ):
        y = {"labels": labels, "teacher_log_probabilities": values}
        with pytest.raises(ValueError, match=message):
            distiller.fit(x, y, verbose=0)


NOT_LOGITS = "must be logits.* between 0 and 1"


@pytest.mark.parametrize("kind", ["at once", "by chunks", "sigmoids"])
def test_probabilities_are_not_taken_for_logits(given, kind):
    x, labels, log_p = given
    values, more = np.exp(log_p), {}
    if kind == "by chunks":
        more = {"logit_chunks": 2}
    elif kind == "sigmoids":
        more = {"student_output": "binary_logits"}
        labels, values = np.eye(CLASSES)[labels], values / 2
    student = mlp()
    before = weights_of(student)
    # A teacher that does not run changes nothing, nor what it is said to give.
    distiller = kd.Distiller(
        student, mlp(12, seed=5), teacher_output="probabilities", **more
    )
    distiller.compile(keras.optimizers.SGD(0.1), kd.KD(), **EAGERLY)
    y = {"labels": labels, "teacher_logits": values.astype("float32")}
    with pytest.raises(ValueError, match=NOT_LOGITS):
        distiller.fit(Batches(x, y), verbose=0)
    assert_same_weights(weights_of(student), before, 0)
    # A few of them don't tell.
    mixed = {**y, "teacher_logits": y["teacher_logits"].copy()}
    mixed["teacher_logits"][::BATCH] = log_p[::BATCH]
    distiller.fit(Batches(x, mixed), verbose=0, shuffle=False)
    assert_weights_differ(weights_of(student), before)


def test_probabilities_in_arrays_are_not_taken_for_logits(given, tmp_path):
    x, labels, log_p = given
    y = {"labels": labels, "teacher_logits": np.exp(log_p)}
    for dataset in ((x, y), Batches(x, y)):
        with pytest.raises(ValueError, match=NOT_LOGITS):
            kd.TeacherCache.write(
                tmp_path / type(dataset).__name__,
                dataset,
                losses=kd.KD(),
                verbose=0,
            )
    with pytest.raises(ValueError, match=NOT_LOGITS):
        kd.check_outputs(y, CLASSES)
    kd.check_outputs({**y, "teacher_logits": 2 * np.exp(log_p)}, CLASSES)
    counted = np.arange(EXAMPLES) < BATCH
    y["teacher_logits"][:BATCH] = log_p[:BATCH]
    kd.check_outputs(y, CLASSES, counted=counted)
    with pytest.raises(ValueError, match=NOT_LOGITS):
        kd.check_outputs(y, CLASSES, counted=~counted)


def test_logits_between_0_and_1_are_declared(given):
    x, labels, log_p = given
    y = {"labels": labels, "teacher_logits": 2 * np.exp(log_p) / 3}
    distiller = kd.Distiller(mlp(), teacher_output="logits")
    distiller.compile("sgd", kd.KD(), **EAGERLY)
    distiller.fit(x, y, batch_size=EXAMPLES, verbose=0)


def test_what_can_not_be_made_of_a_list_is_refused(given, tmp_path):
    x, labels, log_p = given
    y = {"labels": labels, **lists(log_p)}
    for loss, message in (
        (kd.KD(), "KD can't be made.*KDTopK"),
        (kd.KDTopK(k=5), "k=5 for lists of at most 4"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(loss, x, y, BATCH)
        with pytest.raises(ValueError, match=message):
            kd.TeacherCache.write(
                tmp_path / "cache", (x, y), losses=loss, num_classes=CLASSES
            )
    arguments = {"losses": kd.KDPt(), "verbose": 0}
    for dataset, message in (
        ((x, y), "no `num_classes`"),
        ((x, labels), "teacher=None and labels alone"),
        ((x, {"labels": labels, "top_ids": y["top_ids"]}), "two parts"),
        ((x, {**y, "top_ids": y["top_ids"][:, :2]}), "of one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.TeacherCache.write(tmp_path / "cache", dataset, **arguments)
    with pytest.raises(ValueError, match="lists of 4 for 3 classes"):
        kd.check_outputs(y, 3)
    # A loss that needs no teacher doesn't mind.
    trained(kd.LabelSmoothing(), x, y, BATCH)


# -- files ---------------------------------------------------------------------


def write_file(path, ids, values):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"ids": ids, "log_probabilities": values})
        # In several row groups.
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        return
    with open(path, "w") as file:
        for pair in zip(ids, values, strict=True):
            row = dict(zip(("ids", "log_probabilities"), pair, strict=True))
            file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_lists_of_several_lengths_are_filled_up(suffix, tmp_path):
    path = tmp_path / f"lists.{suffix}"
    ids, values = (
        [[4, 2], [], [1], [5, 3, 9]],
        [[-2, -1], [], [-3], [-2, -1, -3]],
    )
    write_file(path, ids, values)
    found = kd.read_top_log_probabilities(path)
    np.testing.assert_array_equal(
        found["top_ids"], [[4, 2, -1], [-1, -1, -1], [1, -1, -1], [5, 3, 9]]
    )
    assert found["top_ids"].dtype == np.int32
    assert found["top_log_probabilities"].dtype == np.float32
    largest = kd.read_top_log_probabilities(path, k=2)
    np.testing.assert_array_equal(
        largest["top_ids"], [[2, 4], [-1, -1], [1, -1], [3, 5]]
    )
    np.testing.assert_array_equal(largest["top_log_probabilities"][3], [-1, -2])


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_lists_of_tokens_are_read(suffix, tmp_path):
    path = tmp_path / f"tokens.{suffix}"
    ids = [[[1, 2], [3]], [[4], [5, 6], []]]
    values = [[[-1.0, -2.0], [-0.5]], [[-1.0], [-2.0, -1.0], []]]
    write_file(path, ids, values)
    found = kd.read_top_log_probabilities(path, rows=2)
    np.testing.assert_array_equal(
        found["top_ids"],
        [[[1, 2], [3, -1], [-1, -1]], [[4, -1], [5, 6], [-1, -1]]],
    )
    assert found["top_log_probabilities"][1, 1].tolist() == [-2.0, -1.0]


def test_dicts_of_servers_are_read(tmp_path):
    path = tmp_path / "server.jsonl"
    rows = [
        {"prompt_logprobs": [None, {"12": {"logprob": -0.5, "rank": 1}}]},
        {"prompt_logprobs": [{"token_id:3": -1.0, "7": -2.0}]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = kd.read_top_log_probabilities(path, None, "prompt_logprobs")
    np.testing.assert_array_equal(
        found["top_ids"], [[[-1, -1], [12, -1]], [[3, 7], [-1, -1]]]
    )
    path.write_text(json.dumps({"prompt_logprobs": [{"the": -1.0}]}))
    with pytest.raises(ValueError, match="the.*in line 1.*token ids"):
        kd.read_top_log_probabilities(path, None, "prompt_logprobs")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_bad_files_are_refused(suffix, tmp_path):
    path = tmp_path / f"lists.{suffix}"
    write_file(path, [[1, 2], [3]], [[-1.0, -2.0], [-1.0]])
    for arguments, message in (
        ({"rows": 3}, "2 rows in .* for 3 examples"),
        ({"k": 3}, "k=3 for lists of at most 2"),
        ({"k": 0}, "k=0"),
        ({"ids": "tokens"}, "without 'tokens'"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.read_top_log_probabilities(path, **arguments)
    write_file(path, [[1, 2], [3, 4]], [[-1.0, -2.0], [-1.0]])
    with pytest.raises(ValueError, match=r"\[2\] ids and \[1\].* in row 1"):
        kd.read_top_log_probabilities(path)
    with pytest.raises(ValueError, match="Parquet"):
        kd.read_top_log_probabilities(tmp_path / "lists.csv")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("bad", [2**32 + 1, 1.5])
def test_ids_that_would_become_others_are_refused(bad, suffix, tmp_path):
    path = tmp_path / f"lists.{suffix}"
    write_file(path, [[2, bad], [3]], [[-1.0, -2.0], [-1.0]])
    with pytest.raises(ValueError, match=f"whole numbers.*{bad} in"):
        kd.read_top_log_probabilities(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ids": [1], "log_prob', "Received: line 2 of .* at column"),
        ('{"ids": [1], "log_probabilities": {"1": -1}}', "with ids=None"),
        ('{"ids": null, "log_probabilities": null}', "in line 2 of"),
    ],
)
def test_lines_without_lists_are_named(line, message, tmp_path):
    path = tmp_path / "lists.jsonl"
    first = '{"ids": [1], "log_probabilities": [-1]}'
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        kd.read_top_log_probabilities(path)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"keras_kd\[parquet\]"):
        kd.read_top_log_probabilities(tmp_path / "lists.parquet")


def test_weights_of_tokens_in_arrays_beside_logits():
    """To Keras, the teacher's logits are another output without weights."""
    random = np.random.default_rng(3)
    inputs = random.normal(size=(4, 3, FEATURES)).astype("float32")
    labels = random.integers(0, CLASSES, (4, 3))
    teacher_logits = random.normal(size=(4, 3, CLASSES)).astype("float32")
    weights = random.uniform(0, 2, (4, 3)).astype("float32")
    student = keras.Sequential(
        [keras.Input((3, FEATURES)), keras.layers.Dense(CLASSES)]
    )
    logits = outputs_of(student, inputs)
    distiller = kd.Distiller(student)
    loss = kd.KD(weight=0.3, temperature=2.0)
    distiller.compile(keras.optimizers.SGD(0.0), loss, **EAGERLY)
    y = {"labels": labels, "teacher_logits": teacher_logits}
    logs = distiller.fit(
        inputs,
        y,
        sample_weight=weights,
        validation_data=(inputs, y, weights),
        verbose=0,
    ).history
    target = reference.kd_target(teacher_logits, 2.0)
    distilled = reference.per_example_loss(
        logits, labels, [(0.3, target)], 2.0, divergence=True
    )
    plain = reference.per_example_loss(logits, labels, [], 1.0)
    expected = [
        pytest.approx((each * weights).mean(), rel=1e-5)
        for each in (distilled, plain)
    ]
    value = distiller.evaluate(inputs, y, sample_weight=weights, verbose=0)
    assert [logs["loss"][0], logs["val_loss"][0]] == expected
    assert [value] == expected[1:]
