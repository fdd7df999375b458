"""KerasHub's tasks on raw strings and images, held against doing it by hand."""

import keras
import kerashub_tasks as tasks
import numpy as np
import pytest
import tensorflow as tf
from models import EAGERLY

import keras_kd as kd
from keras_kd.batch import TEACHER_LOGITS
from keras_kd.preprocessing import Preprocessing

ROWS, BATCH = 6, 4


def causal_lm_pair():
    return tasks.causal_lm(4), tasks.causal_lm(8), tasks.texts(ROWS), None


def byte_pair_pair():
    student, teacher = (
        tasks.causal_lm(hidden, tasks.byte_pairs(), length=24)
        for hidden in (4, 8)
    )
    return student, teacher, tasks.texts(ROWS), None


def text_pair():
    """A teacher that also reads segment ids, and longer texts."""
    teacher = tasks.bert(length=10)
    return tasks.distilbert(4), teacher, tasks.texts(ROWS), tasks.labels(ROWS)


def text_of_two_segments_pair():
    student, teacher, x, y = text_pair()
    return student, teacher, (x, x[::-1]), y


def image_pair():
    """A teacher of other pixels, in another range."""
    teacher = tasks.resnet(10, 1 / 127.5, -1.0)
    return tasks.resnet(), teacher, tasks.images(ROWS), tasks.labels(ROWS)


PAIRS = (causal_lm_pair, text_pair, image_pair)


@pytest.fixture(params=PAIRS, ids=lambda pair: pair.__name__)
def pair(request):
    return request.param()


def by_hand(task, x, y=None):
    """(x, y, sample_weight) by a task's preprocessor, as NumPy arrays.

    Text by KerasHub's own code in Python, where there is no graph; it rounds
    images there.
    """
    if isinstance(x, np.ndarray):
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(ROWS)
        (data,) = data.map(task.preprocessor)
    else:
        data = task.preprocessor(keras.tree.map_structure(str, x), y)
    return keras.utils.unpack_x_y_sample_weight(
        keras.tree.map_structure(np.asarray, data)
    )


def by_hand_with_teacher(student, teacher, x, y):
    """The same, with the teacher's logits of its own inputs in y."""
    inputs, y, weight = by_hand(student, x, y)
    if isinstance(x, list) and weight is not None:
        of_teacher = inputs  # Of a language model, the student's sequence.
    else:
        of_teacher = by_hand(teacher, x, y)[0]
    logits = keras.ops.convert_to_numpy(teacher(of_teacher, training=False))
    return inputs, {"labels": y, TEACHER_LOGITS: logits}, weight


def in_batches(x, y, weight=None):
    """Keras takes weights of tokens beside a dict only of a data set."""
    data = keras.utils.pack_x_y_sample_weight(x, y, weight)
    return tf.data.Dataset.from_tensor_slices(data).batch(BATCH)


def compiled(
    student, teacher=None, loss=None, rate=0.1, logit_chunks=None, **how
):
    distiller = kd.Distiller(student, teacher, logit_chunks=logit_chunks)
    distiller.compile(
        keras.optimizers.SGD(rate),
        loss or kd.KD(weight=0.7, temperature=2.0),
        weighted_metrics=["accuracy"],
        **{**EAGERLY, **how},
    )
    return distiller


def twin_of(student, preprocessor=None):
    """The same model without a preprocessor, or with that one."""
    twin = type(student).from_config(student.get_config())
    twin.set_weights(student.get_weights())
    twin.preprocessor = preprocessor
    return twin


def assert_same_weights(one, other, tolerance=1e-6):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -- each method of a Distiller ------------------------------------------------


@pytest.mark.parametrize(
    "make",
    (causal_lm_pair, byte_pair_pair, text_of_two_segments_pair, image_pair),
)
def test_fit_on_raw_data_is_fit_on_data_preprocessed_by_hand(make):
    """One segment is fitted below, and images in traced steps."""
    student, teacher, x, y = make()
    twin = twin_of(student)
    before = student.get_weights()
    x_, y_, weight = by_hand_with_teacher(student, teacher, x, y)
    given = {"shuffle": False, "verbose": 0}
    distiller = compiled(student, teacher, run_eagerly=make != causal_lm_pair)
    raw = distiller.fit(x, y, BATCH, **given)
    prepared = compiled(twin).fit(in_batches(x_, y_, weight), **given)
    assert_same_weights(student, twin)
    np.testing.assert_allclose(
        raw.history["loss"], prepared.history["loss"], rtol=1e-5
    )
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(before, student.get_weights(), strict=True)
    )
    assert moved > 1e-3


def test_a_causal_lm_is_trained_by_chunks():
    """Its embedding makes the logits as well."""
    student, teacher, x, _ = causal_lm_pair()
    twin = twin_of(student)
    token_ids = in_batches(*by_hand(student, x))
    for each, chunks in ((student, 5), (twin, None)):
        distiller = compiled(each, teacher, logit_chunks=chunks)
        distiller.fit(token_ids, verbose=0)
    assert_same_weights(student, twin, 1e-5)


@pytest.mark.parametrize("make", (causal_lm_pair, image_pair))
def test_without_a_teachers_share_it_is_kerashubs_own_fit(make):
    student, teacher, x, y = make()
    own = twin_of(student, student.preprocessor)
    own.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **EAGERLY,
    )
    own.fit(x, y, batch_size=BATCH, verbose=0)
    distiller = compiled(student, teacher, kd.KD(weight=0.0))
    distiller.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    assert_same_weights(student, own, 1e-5)
    raw = {"batch_size": BATCH, "verbose": 0}
    prepared = in_batches(*by_hand(own, x, y))
    own.preprocessor = None
    np.testing.assert_allclose(
        distiller.predict(x, **raw), own.predict(prepared, verbose=0), atol=1e-4
    )
    np.testing.assert_allclose(
        distiller.evaluate(x, y, **raw)[0],
        own.evaluate(prepared, verbose=0, return_dict=True)["loss"],
        rtol=1e-4,
    )


def test_methods_on_one_batch(pair):
    student, teacher, x, y = pair
    twin = twin_of(student)
    x_, y_, weight = by_hand_with_teacher(student, teacher, x, y)
    raw, prepared = compiled(student, teacher), compiled(twin)
    for method in ("train_on_batch", "test_on_batch"):
        found = getattr(raw, method)(x, y, return_dict=True)
        expected = getattr(prepared, method)(
            x_, y_, sample_weight=weight, return_dict=True
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4)
    assert_same_weights(student, twin)
    np.testing.assert_allclose(
        raw.predict_on_batch(x), prepared.predict_on_batch(x_), atol=1e-5
    )


@pytest.mark.parametrize("make", (text_pair, image_pair))
def test_validation_data(make):
    """Split off from lists of text; of images by themselves."""
    student, teacher, x, y = make()
    of_train, held_out = (
        (x[rows], y[rows]) for rows in (slice(4), slice(4, None))
    )
    if make is text_pair:
        given = {"x": x, "y": y, "validation_split": 0.3}
    else:
        given = dict(zip("xy", of_train, strict=True))
        given |= {"validation_data": held_out, "validation_batch_size": 1}
    logs = compiled(student, teacher).fit(**given, batch_size=BATCH, verbose=0)
    x_, y_, weight = by_hand(student, *held_out)
    expected = compiled(twin_of(student)).evaluate(
        x_, y_, sample_weight=weight, verbose=0
    )
    found = [logs.history[name][0] for name in ("val_loss", "val_accuracy")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# -- every kind of data --------------------------------------------------------


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[rows], self.y[rows]


def generator(x, y):
    while True:
        yield from (Batches(x, y)[i] for i in range(len(Batches(x, y))))


KINDS = {
    "arrays": lambda x, y: {"x": np.array(x), "y": y},
    "objects": lambda x, y: {"x": np.array(x, dtype=object), "y": y},
    "tf.data": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    },
    "PyDataset": lambda x, y: {"x": Batches(x, y)},
    "generator": lambda x, y: {"x": generator(x, y), "steps_per_epoch": 2},
}


def alike_pair():
    """A teacher that reads the very words that the student does."""
    teacher = tasks.distilbert()
    return tasks.distilbert(4), teacher, tasks.texts(ROWS), tasks.labels(ROWS)


@pytest.mark.parametrize(
    ("make", "kinds", "epochs"),
    [
        (alike_pair, ("arrays", "objects", "PyDataset"), 1),
        (image_pair, ("tf.data", "PyDataset", "generator"), 2),
    ],
)
def test_every_kind_of_data_trains_alike(make, kinds, epochs):
    """A generator's text is prepared as a `PyDataset`'s is.

    Data sets of strings are below, also those with labels, of a cache.
    """
    student, teacher, x, y = make()
    start = student.get_weights()
    distiller = compiled(student, teacher, run_eagerly=make is alike_pair)
    given = {"x": x, "y": y}
    expected = None
    for kind in (None, *kinds):
        student.set_weights(start)
        if kind is not None:
            given = KINDS[kind](x, y)
        if "y" in given:
            given["batch_size"] = BATCH
        distiller.fit(**given, epochs=epochs, shuffle=False, verbose=0)
        found = student.get_weights()
        expected = expected or found
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=f"{kind}")


def test_a_language_model_reads_data_sets_of_strings_alone():
    student, teacher, x, _ = causal_lm_pair()
    twin = twin_of(student, student.preprocessor)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
    compiled(student, teacher).fit(dataset, verbose=0)
    # Token ids are recognised.
    distiller = compiled(twin, teacher)
    inputs, labels, weight = by_hand(twin, x)
    distiller.fit(in_batches(inputs, labels, weight), verbose=0)
    assert_same_weights(student, twin)
    np.testing.assert_array_equal(
        distiller.predict(inputs, verbose=0), distiller.predict(x, verbose=0)
    )
    np.testing.assert_allclose(
        distiller.test_on_batch(inputs, labels, weight),
        distiller.test_on_batch(x),
        rtol=1e-5,
    )


def test_arrays_are_read_in_another_order_in_each_epoch():
    student, _, x, _ = image_pair()
    rows = np.arange(ROWS)
    given = {"x": x, "y": rows, "batch_size": BATCH}

    def orders(data):
        return [
            np.concatenate([labels for _, labels in data]).tolist()
            for _ in range(2)
        ]

    prepare = Preprocessing(student)
    first, second = orders(prepare.fit_arguments(given)["x"])
    assert sorted(first) == sorted(second) == list(rows)
    assert list(rows) != first != second
    given["shuffle"] = False
    assert orders(prepare.fit_arguments(given)["x"]) == [list(rows)] * 2


# -- refusals ------------------------------------------------------------------


def test_another_vocabulary_is_refused():
    words = [*tasks.WORDS[::-1]]
    with pytest.raises(ValueError, match="'the' is 5 to the student and is 16"):
        kd.Distiller(tasks.distilbert(), tasks.bert(words=words))
    more = [*tasks.WORDS, "cat"]
    distiller = kd.Distiller(tasks.distilbert())
    with pytest.raises(ValueError, match="'cat' does not exist to the student"):
        distiller.teacher = tasks.bert(words=more)


def test_images_preprocessed_for_one_model_alone_are_refused():
    student, teacher, x, y = image_pair()
    student.preprocessor = None
    distiller = compiled(student, teacher)
    with pytest.raises(ValueError, match="`teacher.preprocessor = None` too"):
        distiller.fit(x, y)
    with pytest.raises(ValueError, match="`teacher.preprocessor = None` too"):
        distiller.train_on_batch(x, y)


def test_data_that_do_not_fit_together_are_refused():
    student, teacher, x, y = image_pair()
    distiller = compiled(student, teacher)
    with pytest.raises(ValueError, match=r"one row .*Received: \[5, 6\]"):
        distiller.fit(x, y[:5])
    with pytest.raises(ValueError, match="validation_split=0.99 of 6"):
        distiller.fit(x, y, validation_split=0.99)


def test_weights_that_a_language_model_would_drop_are_refused():
    student, teacher, x, _ = causal_lm_pair()
    distiller = compiled(student, teacher)
    with pytest.raises(ValueError, match="sample_weight beside the text"):
        distiller.fit(x, sample_weight=np.ones(ROWS), verbose=0)


# -- the rest of a Distiller's life --------------------------------------------


def test_a_saved_distiller_reads_raw_data(tmp_path):
    student, teacher, x, y = text_pair()
    prepared = by_hand_with_teacher(student, teacher, x, y)
    compiled(student, teacher).save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    again.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    twin = twin_of(student)
    compiled(twin).fit(in_batches(*prepared), verbose=0)
    assert_same_weights(again.student, twin)


def test_a_plain_student_gets_the_raw_images_that_a_task_scales():
    _, teacher, x, y = image_pair()
    inputs = keras.Input((12, 12, 3))
    pixels = keras.layers.Rescaling(1 / 255)(inputs)
    outputs = keras.layers.Dense(tasks.CLASSES)(keras.layers.Flatten()(pixels))
    student = keras.Model(inputs, outputs)
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    logits = keras.ops.convert_to_numpy(
        teacher(by_hand(teacher, x, y)[0], training=False)
    )
    given = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    compiled(student, teacher).fit(x, y, **given)
    compiled(twin).fit(x, {"labels": y, TEACHER_LOGITS: logits}, **given)
    assert_same_weights(student, twin)


# -- diagnosis -----------------------------------------------------------------


@pytest.mark.parametrize("make", (causal_lm_pair, image_pair))
def test_raw_data_are_diagnosed_as_the_teacher_reads_them(make):
    _, teacher, x, y = make()
    data = tf.data.Dataset.from_tensor_slices(x if y is None else (x, y))
    raw = kd.diagnose(teacher, data.batch(BATCH))
    prepared = in_batches(*by_hand(teacher, x, y))
    teacher.preprocessor = None
    expected = kd.diagnose(teacher, prepared)
    assert raw.numbers["data"] == expected.numbers["data"]
    for number in ("accuracy", "confidence"):
        np.testing.assert_allclose(
            raw.numbers["teacher"][number],
            expected.numbers["teacher"][number],
            rtol=1e-5,
        )


def test_two_models_that_read_other_pixels_are_not_diagnosed_together():
    student, teacher, x, y = image_pair()
    with pytest.raises(ValueError, match="Leave the student out"):
        kd.diagnose(teacher, in_batches(x, y), student=student)


# -- the teacher cache ---------------------------------------------------------


@pytest.mark.parametrize("make", (text_pair, image_pair))
def test_a_cache_of_raw_data_serves_a_student_that_reads_them(make, tmp_path):
    """What the teacher reads of them, pixels or tokens, is its own affair."""
    student, teacher, x, y = make()
    twin = twin_of(student)
    if make is text_pair:
        teacher = tasks.bert(words=tasks.WORDS[::-1])
    x_, y_, _ = by_hand_with_teacher(student, teacher, x, y)
    data = in_batches(x, y)
    cache = kd.TeacherCache.write(
        str(tmp_path / "cache"), data, teacher, kd.KD(), verbose=0
    )
    compiled(student).fit(cache.attach(data), verbose=0)
    compiled(twin).fit(in_batches(x_, y_), verbose=0)
    # A cache keeps half precision.
    assert_same_weights(student, twin, 2e-2)


def test_a_cache_of_raw_text_of_a_language_model(tmp_path):
    student, teacher, x, _ = causal_lm_pair()
    twin = twin_of(student)
    data = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
    cache = kd.TeacherCache.write(
        str(tmp_path / "cache"), data, teacher, kd.KDPt(), verbose=0
    )
    token_ids = in_batches(*by_hand(student, x))
    compiled(student, loss=kd.KDPt()).fit(cache.attach(token_ids), verbose=0)
    compiled(twin, teacher, loss=kd.KDPt()).fit(token_ids, verbose=0)
    assert_same_weights(student, twin, 1e-3)
    errors = cache.verify(data, teacher).largest_errors
    assert max(errors.values()) < 1e-2
