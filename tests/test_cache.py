"""The teacher cache: the same training as with the teacher, and safe."""

import json

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
import tensorstore
from caches import batches, compiled, crop, lstm, text, write
from keras import layers
from models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    data,
    mlp,
    outputs_of,
    weights_of,
)

import keras_kd as kd

LOSSES = {
    "label_smoothing": lambda: kd.LabelSmoothing(),
    "kd_pt": lambda: kd.KDPt(temperature=3.0),
    "kd_sim": lambda: kd.KDSim(
        logit_layer=np.random.default_rng(0).normal(size=(CLASSES, 4))
    ),
    "kd_pt_sim": lambda: kd.KDPtSim(
        temperature=1.5,
        logit_layer=np.random.default_rng(0).normal(size=(CLASSES, 4)),
    ),
    "kd_topk": lambda: kd.KDTopK(k=3, temperature=2.0),
    # Of all classes, so that nothing is left to chance.
    "kd_sampled": lambda: kd.KDSampled(k=1.0, temperature=2.0),
    "kd": lambda: kd.KD(temperature=4.0),
    "dkd": lambda: kd.DKD(temperature=4.0),
}
NEEDY = ("kd_pt", "kd_pt_sim", "kd_topk", "kd_sampled", "kd", "dkd")


class Counted(kd.losses.DistillationLoss):
    """A user's own loss."""

    statistics = ("top_probability", "rank")

    def teacher_statistics(self, labels, teacher_logits):
        p = keras.ops.softmax(teacher_logits / self.temperature)
        own = keras.ops.take_along_axis(p, labels[..., None], -1)
        return {
            "top_probability": keras.ops.max(p, axis=-1),
            "rank": keras.ops.sum(keras.ops.cast(p > own, "int32"), axis=-1),
        }

    def target(self, labels, statistics, num_classes):
        mass = statistics["top_probability"]
        rank = keras.ops.cast(statistics["rank"], mass.dtype)
        mass = mass / (1 + rank)
        return kd.losses.SparseTarget(
            labels[..., None], mass[..., None], 1 - mass
        )


def losses_by_step(distiller, dataset, **more):
    """The loss of every step, one after the other."""
    found = []

    class Record(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.total = 0.0

        def on_train_batch_end(self, batch, logs=None):
            # Keras logs the mean over the epoch's examples so far.
            found.append(float(logs["loss"]))

    distiller.fit(
        dataset, verbose=0, shuffle=False, callbacks=[Record()], **more
    )
    return found


# -- the same training ---------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*LOSSES} - {*NEEDY}))
def test_losses_that_need_no_teacher_need_no_cache(name, tmp_path):
    with pytest.raises(ValueError, match="need nothing"):
        write(tmp_path / "cache", batches(), mlp(12, seed=5), LOSSES[name]())


def test_losses_by_name(tmp_path):
    """As the losses themselves; a class of one, and none, are refused."""
    teacher, dataset = mlp(12, seed=5), batches(14)
    cache = write(tmp_path / "cache", dataset, teacher, ["kd_pt"])
    expected = cache.statistics(range(14), kd.KDPt())
    found = cache.statistics(range(14), "kd_pt")
    np.testing.assert_equal(found, expected)
    cache.check(losses="kd_pt")
    cache.check(losses=kd.KDPt())
    with pytest.raises(ValueError, match="KD needs"):
        cache.attach(dataset, "kd")
    with pytest.raises(ValueError, match=r"Call it: KDPt\(\)"):
        write(tmp_path / "third", dataset, teacher, kd.KDPt)
    with pytest.raises(ValueError, match=r"no losses.*kd\.KD\(\)"):
        write(tmp_path / "third", dataset, teacher, ())
    with pytest.raises(TypeError, match="`path` .* _BatchDataset"):
        write(dataset, tmp_path / "third", teacher, "kd_pt")


@pytest.mark.parametrize("name", NEEDY)
def test_training_from_the_cache_is_training_online(name, tmp_path):
    teacher, dataset = mlp(12, seed=5), batches(14)
    online = compiled(LOSSES[name](), teacher)
    expected = losses_by_step(online, dataset, epochs=2)

    loss = LOSSES[name]()
    cache = write(tmp_path / "cache", dataset, teacher, loss, dtype="float32")
    # KD-pt and KD-topk are traced below.
    is_traced = name in ("kd_sampled", "kd")
    cached = compiled(loss, run_eagerly=not is_traced)
    found = losses_by_step(cached, cache.attach(dataset, loss), epochs=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_same_weights(weights_of(cached.student), weights_of(online.student))
    scales = cached.gradient_scales, online.gradient_scales
    no_top_class = "pt" in name or name == "kd_sampled"
    for group in ("all",) if no_top_class else online.gradient_scales:
        one, other = (s[group].summary()["histogram"] for s in scales)
        np.testing.assert_allclose(one, other)


def served_losses():
    return [
        *(LOSSES[n]() for n in NEEDY if n not in ("kd", "dkd")),
        kd.KDPt(temperature=1.0),
        kd.KDTopK(k=2, temperature=5.0),
        Counted(temperature=2.0),
        kd.KD(),
    ]


@pytest.fixture(scope="module")
def losses_online():
    """For each of them the losses of the steps of training online."""
    teacher, dataset = mlp(12, seed=5), batches(14)
    return [
        losses_by_step(compiled(loss, teacher), dataset)
        for loss in served_losses()
    ]


@pytest.mark.parametrize("kept", ["kd", "all"])
def test_one_cache_serves_every_loss(kept, losses_online, tmp_path):
    """All logits serve everything; else each has what it needs."""
    teacher, dataset = mlp(12, seed=5), batches(14)
    several = served_losses()
    if kept == "all":
        several.pop()
    cache = write(
        tmp_path / "cache", dataset, teacher, several, dtype="float32"
    )
    if kept == "kd":
        assert cache.record_bytes == 4 * CLASSES
    else:
        # Log-odds at three temperatures, three classes with their gaps and
        # two tails, a draw of all classes, the two numbers of the loss of
        # one's own.
        assert cache.record_bytes == sum(
            [3 * 4, 3 * (2 + 4) + 2 * 4, CLASSES * (2 + 4), 2 * 4]
        )
    for loss, expected in zip(several, losses_online, strict=False):
        found = losses_by_step(compiled(loss), cache.attach(dataset, loss))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The temperature may be another for each tail, but not a third one.
    other = kd.KDTopK(k=2, temperature=7.0)
    if kept == "kd":
        cache.attach(dataset, other)
    else:
        with pytest.raises(ValueError, match="KDTopK needs .*7.0"):
            cache.attach(dataset, other)
        with pytest.raises(ValueError, match="several losses"):
            cache.attach(dataset)


# One loss for each kind of what is kept.
KEPT_APART = ("kd_pt", "kd_topk", "kd_sampled", "kd")


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", KEPT_APART)
def test_each_epoch_has_the_pixels_that_the_teacher_saw(
    name, batched, caches_of_views
):
    """The loss of each example is that of the teacher run on its input."""
    teacher, loss, stream = augmented(name, batched, caches_of_views, 4)
    student, found = mlp(), list(stream.as_numpy_iterator())
    for x, y in found:
        statistics = loss.teacher_statistics(
            keras.ops.convert_to_tensor(y["labels"]), teacher(x)
        )
        logits = student(x)
        np.testing.assert_allclose(
            loss.call(y, logits),
            loss.call({"labels": y["labels"], **statistics}, logits),
            rtol=1e-5,
        )
    views = np.concatenate([x for x, _ in found]).reshape(4, 24, FEATURES)
    # Three views, then the first again.
    order = [np.lexsort(view.T) for view in views]
    views = [view[o] for view, o in zip(views, order, strict=True)]
    np.testing.assert_array_equal(views[0], views[3])
    assert len({view.tobytes() for view in views}) == 3


@pytest.fixture(scope="module")
def caches_of_views(tmp_path_factory):
    """Of three views by whether data are batched: compact, and of logits."""
    folder, teacher = tmp_path_factory.mktemp("views"), mlp(12, seed=5)
    x, labels, _ = data(24)
    examples = tf.data.Dataset.from_tensor_slices((x, labels))
    found = {}
    for batched, dataset in ((False, examples), (True, examples.batch(8))):
        for names in (("kd_pt", "kd_pt_sim", "kd_topk", "kd_sampled"), ("kd",)):
            cache = write(
                folder / f"{batched}-{len(names)}",
                dataset,
                teacher,
                [LOSSES[name]() for name in names],
                augment=crop,
                views=3,
                dtype="float32",
                batch_size=8,
            )
            found[batched, len(names) == 1] = dataset, cache
    return teacher, found


def augmented(name, batched, caches_of_views, epochs):
    """Teacher, loss, and epochs of its cache."""
    teacher, found = caches_of_views
    dataset, cache = found[batched, name in ("kd", "dkd")]
    loss = LOSSES[name]()
    more = {} if batched else {"batch_size": 8, "shuffle": 24}
    stream = cache.epochs(dataset, loss, **more)
    return teacher, loss, stream.take(3 * epochs)


@pytest.mark.parametrize("batched", [False, True])
def test_training_on_a_stream_of_views_is_training_online(
    batched, caches_of_views
):
    teacher, loss, stream = augmented("kd_topk", batched, caches_of_views, 2)
    plain = stream.map(lambda x, y: (x, y["labels"]))
    online = compiled(LOSSES["kd_topk"](), teacher)
    expected = losses_by_step(online, plain)
    cached = compiled(loss, run_eagerly=False)
    found = losses_by_step(cached, stream)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_same_weights(weights_of(cached.student), weights_of(online.student))


def test_the_order_of_a_stream_follows_from_its_seed_and_epoch(tmp_path):
    arrays = data(32)[:2]
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    cache = write(tmp_path / "cache", dataset, mlp(12, seed=5), kd.KDPt())

    def order(seed, first_epoch=0):
        stream = cache.epochs(
            dataset,
            first_epoch=first_epoch,
            batch_size=32,
            shuffle=32,
            seed=seed,
        )
        x = next(iter(stream))[0].numpy()
        rows = (x[:, None] == arrays[0]).all(-1)
        assert (rows.sum(0) == 1).all() and (rows.sum(1) == 1).all()
        return tuple(rows.argmax(1))

    orders = [order(0), order(0), order(1), order(0, 1), tuple(range(32))]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 4


def test_an_interrupted_stream_goes_on_with_what_it_would_have_given(tmp_path):
    x, labels, _ = data(21)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    cache = write(
        tmp_path / "cache", dataset, mlp(), kd.KDPt(), augment=crop, views=2
    )

    def inputs(first_epoch, count):
        stream = cache.epochs(
            dataset, first_epoch=first_epoch, batch_size=4, shuffle=21, seed=3
        )
        return [x for x, _ in stream.take(count).as_numpy_iterator()]

    whole = inputs(0, 20)
    np.testing.assert_array_equal(inputs(2, 10), whole[10:])
    assert not np.array_equal(whole[0], whole[10])


@pytest.fixture
def segments():
    return text()


@pytest.mark.parametrize("name", KEPT_APART)
def test_the_cache_follows_a_teacher_that_carries_state(
    name, segments, tmp_path
):
    teacher, loss = lstm(6, 5), LOSSES[name]()
    # What was run before does not show, nor what writing runs.
    teacher.predict(segments.take(2), verbose=0)
    before = weights_of(teacher)
    cache = write(tmp_path / "cache", segments, teacher, loss, dtype="float32")
    assert_same_weights(weights_of(teacher), before, tolerance=0)

    with pytest.raises(ValueError, match="Received: batches=0"):
        cache.verify(segments, teacher, batches=0)
    errors = cache.verify(segments, teacher).largest_errors
    assert errors and max(errors.values()) < 1e-5
    if name != "kd_pt":
        return
    reset_states(teacher)
    online = compiled(LOSSES[name](), teacher, lstm(4, 9))
    expected = losses_by_step(online, segments)
    cached = compiled(loss, None, lstm(4, 9), run_eagerly=False)
    found = losses_by_step(cached, cache.attach(segments))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def reset_states(model):
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()


# -- compact -------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDY)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_compact_statistics_keep_three_digits_of_the_loss(
    name, temperature, tmp_path
):
    """Also where the label's probability is within 1e-6 of 0 or of 1."""
    random = np.random.default_rng(0)
    num_classes = 50
    v = random.normal(0, 4, (600, num_classes)).astype("float32")
    labels = random.integers(0, num_classes, 600).astype("int32")
    rows = np.arange(600)
    # Log-odds from -30 to 30.
    others = np.log(np.exp(v).sum(-1) - np.exp(v[rows, labels]))
    v[rows, labels] = others + np.linspace(-30, 30, 600)
    p = reference.kd_target(v, 1.0)[rows, labels]
    assert (p < 1e-6).sum() > 50 and (1 - p < 1e-6).sum() > 50
    z = random.normal(0, 4, (600, num_classes)).astype("float32")

    inputs = keras.Input((num_classes,))
    teacher = keras.Model(inputs, layers.Activation("linear")(inputs))
    dataset = tf.data.Dataset.from_tensor_slices((v, labels)).batch(100)
    arguments = {"temperature": temperature}
    if name in ("kd_pt_sim",):
        arguments["logit_layer"] = random.normal(size=(num_classes, 4))
    if name == "kd_topk":
        arguments["k"] = 10
    if name == "kd_sampled":
        arguments["k"] = 1.0
    loss = kd.losses.get(name, **arguments)
    cache = write(tmp_path / "cache", dataset, teacher, loss)
    attached = cache.attach(dataset)
    y = [y for _, y in attached.as_numpy_iterator()]
    y = {k: np.concatenate([part[k] for part in y]) for k in y[0]}
    found = np.array(loss.call(y, z), "float64")

    exact = loss.teacher_statistics(labels, tf.constant(v))
    exact = np.array(loss.call({"labels": labels, **exact}, z), "float64")
    # The classes beside a confident label, which DKD alone looks at by
    # themselves, have large gaps to it, with larger errors.
    rtol = 3e-3 if name == "dkd" else 1e-3
    np.testing.assert_allclose(found, exact, rtol=rtol, atol=1e-3)
    sizes = {
        "kd_pt": 2,
        "kd_pt_sim": 2,
        "kd_topk": 10 * 4 + 4,
        "kd_sampled": 4 * num_classes,
    }
    assert cache.record_bytes == sizes.get(name, 2 * num_classes)
    # Beside them the checksums, four bytes a chunk, and what is in JSON.
    chunks = [f for f in (tmp_path / "cache").rglob("c/*/*") if f.is_file()]
    chunks += (tmp_path / "cache").rglob("c/*/*/0")
    on_disk = sum(f.stat().st_size for f in chunks)
    assert on_disk == 600 * (cache.record_bytes + 4) + 4 * len(chunks)


def test_tokens_take_two_bytes(segments, tmp_path):
    cache = write(tmp_path / "cache", segments, lstm(6, 5), kd.KDPt())
    assert cache.record_bytes == 6 * 2
    assert cache.examples == 28


def ruling_out(classes, value, seed=5):
    """A teacher in whose outputs some classes have one logit, a number."""
    teacher = mlp(seed=seed)
    bias = np.zeros(CLASSES, "float32")
    bias[list(classes)] = value
    teacher.layers[-1].bias.assign(bias)
    return teacher


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [-np.inf, np.finfo("float32").min])
def test_classes_that_the_teacher_rules_out_have_no_mass(
    value, dtype, tmp_path
):
    x, labels, _ = data(16)
    teacher, out = ruling_out([2, 5], value), [2, 5]
    given = [(teacher, (x, labels))]
    carried = {"labels": labels, "teacher_logits": outputs_of(teacher, x)}
    given.append((None, (x, carried)))
    logits = outputs_of(teacher, x)
    expected = np.zeros(logits.shape)
    others = np.delete(np.arange(CLASSES), out)
    expected[:, others] = reference.softmax(logits[:, others])
    for i, (model, dataset) in enumerate(given):
        path = tmp_path / str(i)
        cache = write(path, dataset, model, kd.KD(), dtype=dtype)
        kept = cache[:]["teacher_logits"]
        assert np.isfinite(kept).all()
        np.testing.assert_allclose(
            reference.softmax(kept), expected, atol=2e-3, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("classes", "value"),
    [([2], np.inf), ([2], np.nan), (range(CLASSES), -np.inf)],
)
def test_logits_that_tell_nothing_are_refused(classes, value, tmp_path):
    x, labels, _ = data(16)
    teacher = ruling_out(classes, value)
    with pytest.raises(ValueError, match="logits are not finite"):
        write(tmp_path, (x, labels), teacher, kd.KD())


@pytest.mark.parametrize(
    ("classes", "id_bytes"), [(65_536, 2), (65_537, 4), (70_000, 4)]
)
def test_many_classes_have_wider_ids(classes, id_bytes, tmp_path):
    inputs = keras.Input((2,))
    teacher = keras.Model(inputs, layers.Dense(classes)(inputs))
    bias = np.zeros(classes, "float32")
    bias[[-1, 40_000]] = 50.0, 40.0
    teacher.layers[-1].bias.assign(bias)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices(
        (x, np.arange(4, dtype="int32") + 60_000)
    ).batch(2)
    cache = write(tmp_path / "cache", dataset, teacher, kd.KDTopK(k=3))
    assert cache.record_bytes == 3 * (id_bytes + 2) + 4
    y = next(cache.attach(dataset).as_numpy_iterator())[1]
    logits = np.array(teacher(x[:2]))
    np.testing.assert_array_equal(
        y["top_classes"], np.argsort(-logits, axis=-1)[:, :3]
    )
    assert (y["top_classes"][:, :2] == [classes - 1, 40_000]).all()


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_k_is_kept_whichever_comes_first(order, tmp_path):
    teacher, dataset = mlp(12, seed=5), batches(14)
    several = [kd.KDTopK(k=2, temperature=3.0), kd.KDTopK(k=4)][::order]
    cache = write(
        tmp_path / "cache", dataset, teacher, several, dtype="float32"
    )
    assert cache.record_bytes == 4 * (2 + 4) + 2 * 4
    logits = outputs_of(teacher, data(14)[0]).astype("float64")
    for loss in several:
        p = -np.sort(-reference.kd_target(logits, loss.temperature), axis=-1)
        found = cache.statistics(range(14), loss)
        top = found["top_probabilities"]
        np.testing.assert_allclose(top, p[:, : loss.k], rtol=1e-5)
        tail = p[:, loss.k :].sum(-1)
        np.testing.assert_allclose(found["tail_probability"], tail, rtol=1e-5)


def test_losses_of_one_class_are_kept_apart(tmp_path):
    """The second one's statistics took the place of the first one's."""
    teacher, dataset = mlp(12, seed=5), batches(14)
    several = [Counted(temperature=t) for t in (1.0, 4.0)]
    write(tmp_path / "cache", dataset, teacher, several)
    cache = kd.TeacherCache(tmp_path / "cache")
    logits = outputs_of(teacher, data(14)[0]).astype("float64")
    for loss in several:
        found = cache.statistics(slice(None), loss)["top_probability"]
        p = reference.kd_target(logits, loss.temperature)
        np.testing.assert_allclose(found, p.max(-1), rtol=1e-5)
    errors = cache.verify(dataset, teacher, losses=several).largest_errors
    assert len(errors) == 4 and not any(errors.values())


# -- what is kept besides -----------------------------------------------------


def test_verify_tells_the_right_teacher_from_another(tmp_path):
    teacher, dataset = mlp(12, seed=5), batches(64)
    several = [kd.KDPt(), kd.KDTopK(k=2), Counted()]
    cache = write(tmp_path / "cache", dataset, teacher, several)
    found = cache.verify(dataset, teacher, losses=several)
    assert found.examples == 64
    assert 0 < max(found.largest_errors.values()) < 1e-3
    x, labels, _ = data(64)
    right = np.array(teacher(x)).argmax(-1) == labels
    assert found.teacher_accuracy == pytest.approx(right.mean())
    assert found.cached_accuracy == pytest.approx(
        # Examples with weight 0 would not count; here are none.
        right.mean()
    )
    other = cache.verify(dataset, mlp(12, seed=6), losses=several)
    assert max(other.largest_errors.values()) > 0.1
    assert "64 examples" in str(found)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_the_largest_error_is_that_of_the_worst_batch(batch, tmp_path):
    """Two batches of three are the first and the last."""
    x, labels, _ = data(24)
    x *= np.arange(24)[:, None] // 8 == batch
    teacher, other = mlp(12, seed=5), mlp(12, seed=5)
    other.layers[1].kernel.assign(3 * other.layers[1].kernel)
    odds = []
    for model in (teacher, other):
        p = reference.kd_target(outputs_of(model, x), kd.KDPt().temperature)
        p = p[np.arange(24), labels]
        odds.append(np.log(p) - np.log1p(-p))
    kept, now = odds
    expected = (np.abs(kept - now) / np.maximum(np.abs(now), 1)).max()
    assert expected > 0.01
    cache = write(
        tmp_path / "cache",
        (x, labels),
        teacher,
        kd.KDPt(),
        batch_size=8,
        dtype="float32",
    )
    for count, seen in ((3, expected), (2, expected * (batch != 1))):
        found = cache.verify((x, labels), other, batches=count)
        assert found.examples == 8 * count
        (error,) = found.largest_errors.values()
        assert error == pytest.approx(seen, rel=1e-4, abs=1e-5)


def test_a_changed_temperature_is_refused_by_the_step(tmp_path):
    teacher, dataset, loss = mlp(12, seed=5), batches(14), kd.KDPt()
    cache = write(tmp_path / "cache", dataset, teacher, loss)
    # A value that changes after the step was traced.
    distiller = compiled(loss, run_eagerly=False)
    attached = cache.attach(dataset)
    schedule = kd.callbacks.LossSchedule(
        temperature=lambda epoch: 2.0 + epoch / 100
    )
    with pytest.raises(ValueError, match="belong to a temperature"):
        distiller.fit(attached, epochs=2, verbose=0, callbacks=[schedule])
    # All logits serve any temperature.
    loss = kd.KD()
    cache = write(tmp_path / "all", dataset, teacher, loss)
    compiled(loss).fit(
        cache.attach(dataset), epochs=2, verbose=0, callbacks=[schedule]
    )


def test_whether_the_teacher_is_right_can_be_kept(tmp_path):
    teacher, dataset = mlp(12, seed=5), batches()
    cache = write(
        tmp_path / "cache", dataset, teacher, kd.KDPt(), teacher_right=True
    )
    assert cache.record_bytes == 3
    online, cached = compiled(kd.KDPt(), teacher), compiled(kd.KDPt())
    online.fit(dataset, verbose=0)
    cached.fit(cache.attach(dataset), verbose=0)
    for group, scale in online.gradient_scales.items():
        found = cached.gradient_scales[group].summary()
        assert found["count"] == scale.summary()["count"] > 0


def test_a_whole_cache_without_teacher_right_is_refused_for_it(tmp_path):
    teacher, dataset = mlp(12, seed=5), batches()
    arguments = (tmp_path / "cache", dataset, teacher, kd.KDPt())
    write(*arguments)
    with pytest.raises(ValueError, match="no teacher_right in the cache"):
        write(*arguments, teacher_right=True)
    # From logits, and from the largest classes, it is known as well.
    for name, loss in (("kd", kd.KD()), ("topk", kd.KDTopK(k=2))):
        others = (tmp_path / name, dataset, teacher, loss)
        write(*others)
        write(*others, teacher_right=True)
    # One that keeps more than is asked for is used as it is.
    arguments = (tmp_path / "right", *arguments[1:])
    write(*arguments, teacher_right=True)
    assert write(*arguments).record_bytes == 3


def test_batches_for_a_cache_of_arrays_are_told_what_to_be(tmp_path):
    x, labels, _ = data(50)
    cache = write(tmp_path / "cache", (x, labels), mlp(12), kd.KDPt())
    examples = tf.data.Dataset.from_tensor_slices((x, labels))
    with pytest.raises(ValueError, match="50 elements.*must be examples here"):
        cache.attach(examples.batch(16))
    compiled(kd.KDPt()).fit(cache.attach(examples).batch(16), verbose=0)


@pytest.mark.parametrize("name", ["kd_pt", "kd"])
def test_a_shuffled_cache_has_the_same_statistics_on_other_examples(
    name, tmp_path
):
    """Also of tokens, and in every view."""
    tokens = np.random.default_rng(1).integers(0, 3, (12, 5), "int32")
    dataset = tf.data.Dataset.from_tensor_slices((tokens, tokens)).batch(4)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(3, 4)(inputs)
    teacher = keras.Model(
        inputs, layers.Dense(3)(layers.LSTM(4, return_sequences=True)(x))
    )
    cache = write(tmp_path / "cache", dataset, teacher, LOSSES[name]())
    reverse = cache.shuffled(
        tmp_path / "control", dataset, lambda labels: np.arange(59, -1, -1)
    )
    again = cache.shuffled(
        tmp_path / "control", dataset, lambda labels: np.arange(59, -1, -1)
    )
    (key,) = (k for k in LOSSES[name]().statistics)
    kept, found, found_again = (
        np.concatenate([y[key] for _, y in c.attach(dataset)])
        for c in (cache, reverse, again)
    )
    flat = kept.reshape(60, *kept.shape[2:])
    np.testing.assert_array_equal(found, flat[::-1].reshape(kept.shape))
    np.testing.assert_array_equal(found, found_again)
    teacher.layers[-1].kernel.assign_add(teacher.layers[-1].kernel)
    other = write(tmp_path / "other", dataset, teacher, LOSSES[name]())
    with pytest.raises(ValueError, match="teacher"):
        other.shuffled(
            tmp_path / "control", dataset, lambda labels: np.arange(59, -1, -1)
        )


def test_a_control_leaves_padding_where_it_is(tmp_path):
    """Its label is a class as well, of which the tokens keep their own."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 3, (12, 5), "int32")
    real = np.arange(5) < random.integers(1, 5, (12, 1))
    arrays = tokens, tokens * real, real.astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(4)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.LSTM(4, return_sequences=True)(layers.Embedding(3, 4)(inputs))
    teacher = keras.Model(inputs, layers.Dense(3)(x))
    cache = write(tmp_path / "cache", dataset, teacher, kd.KDPt())
    control = cache.shuffled(
        tmp_path / "control",
        dataset,
        lambda y: kd.attribution.shuffle_within_labels(np.arange(len(y)), y),
    )
    kept, found = (
        np.concatenate([y["label_log_odds"] for _, y, _ in c.attach(dataset)])
        for c in (cache, control)
    )
    np.testing.assert_array_equal(kept[~real], found[~real])
    for label in range(3):
        of_label = real & (tokens == label)
        assert not np.array_equal(kept[of_label], found[of_label])
        one, other = (np.sort(each[of_label]) for each in (kept, found))
        np.testing.assert_array_equal(one, other)


# -- distribution --------------------------------------------------------------


def test_two_replicas_write_the_cache_of_one(two_replicas, tmp_path):
    dataset = batches(30, 7)
    one = write(tmp_path / "one", dataset, mlp(12, seed=5), kd.KD())
    with two_replicas.scope():
        teacher = mlp(12, seed=5)
    two = write(tmp_path / "two", dataset, teacher, kd.KD())
    first, second = (
        np.concatenate([y["teacher_logits"] for _, y, _ in c.attach(dataset)])
        for c in (one, two)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert two.examples == 30


def test_replicas_that_carry_state_write_the_cache_of_one(
    two_replicas, segments, tmp_path
):
    one = write(tmp_path / "one", segments, lstm(6, 5), kd.KDPt())
    with two_replicas.scope():
        teacher = lstm(6, 5, batch=2)
    two = write(tmp_path / "two", segments, teacher, kd.KDPt())
    first, second = (
        [y["label_log_odds"] for _, y in c.attach(segments)] for c in (one, two)
    )
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def test_two_replicas_train_from_the_cache_as_one_does(two_replicas, tmp_path):
    x, labels, _ = data(32)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels))
    loss = kd.KDTopK(k=3)
    cache = write(
        tmp_path / "cache",
        dataset,
        mlp(12, seed=5),
        loss,
        augment=crop,
        views=2,
    )
    stream = cache.epochs(dataset, batch_size=8, shuffle=32)
    one = compiled(loss)
    one.fit(stream, steps_per_epoch=4, epochs=2, verbose=0)
    with two_replicas.scope():
        two = compiled(kd.KDTopK(k=3), run_eagerly=False)
    two.fit(stream, steps_per_epoch=4, epochs=2, verbose=0)
    assert_same_weights(weights_of(one.student), weights_of(two.student))


def test_zarr_reads_what_is_in_the_cache(tmp_path):
    """As any zarr tool can, without this package."""
    teacher = mlp(12, seed=5)
    write(tmp_path / "cache", batches(), teacher, kd.KDPt())
    group = json.loads((tmp_path / "cache" / "zarr.json").read_text())
    assert group["zarr_format"] == 3 and group["node_type"] == "group"
    manifest = group["attributes"]["keras_kd"]
    assert manifest["stores"] == [{"kind": "log_odds", "temperature": 2.0}]
    assert manifest["examples"] == 30 and manifest["elements"] == 4
    assert len(manifest["teacher"]["weights"]) == 64
    path = tmp_path / "cache" / "label_log_odds_2"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}"}}
    (found,) = np.array(tensorstore.open(spec).result())
    x, labels, _ = data(30)
    p = reference.kd_target(np.array(teacher(x)), 2.0)[np.arange(30), labels]
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-3, atol=1e-3)


def test_a_path_that_is_not_a_local_folder():
    """TensorStore's files in memory stand for remote ones."""
    teacher, dataset = mlp(12, seed=5), batches()
    path = "memory://caches/one"
    write(path, dataset, teacher, kd.KDPt(), checkpoint_seconds=0)
    y = [y for _, y, _ in kd.TeacherCache(path).attach(dataset)]
    found = np.concatenate([part["label_log_odds"] for part in y])
    x, labels, _ = data(30)
    p = reference.kd_target(np.array(teacher(x)), 2.0)[np.arange(30), labels]
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-3, atol=1e-3)
