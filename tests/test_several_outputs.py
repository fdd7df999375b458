"""Students with several named outputs, distilled one by one."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import (
    EAGERLY,
    FEATURES,
    assert_same_weights,
    uniform,
    weights_of,
)

import keras_kd as kd

EXAMPLES, SPECIES, COLOURS = 20, 4, 3
random = np.random.default_rng(0)
x = random.normal(size=(EXAMPLES, FEATURES)).astype("float32")
species = random.integers(0, SPECIES, EXAMPLES).astype("int32")
colour = random.integers(0, COLOURS, EXAMPLES).astype("int32")
age = random.normal(size=(EXAMPLES, 1)).astype("float32")
weights = random.uniform(0, 2, EXAMPLES).astype("float32")
LABELS = {"species": species, "age": age}


def trunk(seed):
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(6, "tanh", kernel_initializer=uniform(seed))
    return inputs, hidden(inputs)


def dense(hidden, units, seed, **kwargs):
    return layers.Dense(units, kernel_initializer=uniform(seed), **kwargs)(
        hidden
    )


def model(seed, as_dict=True, extra=False):
    """A classifier with an age beside it, in one of the two forms."""
    inputs, hidden = trunk(seed)
    outputs = {
        "species": dense(hidden, SPECIES, seed + 1, name="species"),
        "age": dense(hidden, 1, seed + 2, name="age"),
    }
    if extra:
        outputs["colour"] = dense(hidden, COLOURS, seed + 3, name="colour")
    if not as_dict:
        outputs = list(outputs.values())
    return keras.Model(inputs, outputs)


def compiled(student, teacher=None, losses=None, **options):
    distiller = kd.Distiller(student, teacher)
    losses = losses or {"species": kd.KD(), "age": "mse"}
    metrics = {"species": ["accuracy"], "age": ["mae"]}
    options = {"metrics": metrics, **EAGERLY, **options}
    distiller.compile(keras.optimizers.SGD(0.1), losses, **options)
    return distiller


def fit(trained, y=LABELS, data=x, **options):
    options = {"batch_size": 10, "shuffle": False, **options}
    return trained.fit(data, y, verbose=0, **options).history


@pytest.mark.parametrize("as_dict", [True, False])
def test_weight_0_is_plain_keras(as_dict):
    plain, student = model(1, as_dict), model(1, as_dict)
    options = {
        "metrics": {"species": ["accuracy"], "age": ["mae"]},
        "loss_weights": {"species": 0.7, "age": 2.0},
    }
    plain.compile(
        keras.optimizers.SGD(0.1),
        {
            "species": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "age": "mse",
        },
        **options,
        **EAGERLY,
    )
    y, sample_weight = LABELS, {"species": weights, "age": weights[::-1]}
    if not as_dict:
        y, sample_weight = list(y.values()), list(sample_weight.values())
    theirs = fit(plain, y, sample_weight=sample_weight)
    distiller = compiled(
        student,
        losses={"species": kd.LabelSmoothing(weight=0.0), "age": "mse"},
        **options,
        run_eagerly=False,
    )
    ours = fit(distiller, y, sample_weight=sample_weight)
    assert_same_weights(weights_of(student), weights_of(plain), 1e-6)
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-5, err_msg=key)
    found, wanted = (
        trained.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
        for trained in (distiller, plain)
    )
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key


def test_an_output_is_distilled_from_the_teachers_of_its_name():
    """With no weight on the age, as a student of the species alone."""
    teacher = model(5, extra=True)
    alone = keras.Model(teacher.inputs, teacher.output["species"])
    inputs, hidden = trunk(1)
    expected = keras.Model(inputs, dense(hidden, SPECIES, 2))
    single = kd.Distiller(expected, alone)
    single.compile(keras.optimizers.SGD(0.1), kd.KDPtSim(), **EAGERLY)
    logs = fit(single, species)
    student = model(1)
    distiller = compiled(
        student,
        teacher,
        {"species": kd.KDPtSim(), "age": "mse"},
        loss_weights={"age": 0.0},
        run_eagerly=False,
    )
    found = fit(distiller)
    species_weights = [np.array(w) for w in student.layers[1].weights]
    species_weights += [
        np.array(w) for w in student.get_layer("species").weights
    ]
    assert_same_weights(species_weights, weights_of(expected), 1e-6)
    for key in ("cross_entropy", "pt", "sim", "gradient_scale"):
        np.testing.assert_allclose(
            found[f"species_{key}"], logs[key], rtol=1e-5
        )
    np.testing.assert_allclose(found["species_loss"], logs["loss"], rtol=1e-5)
    groups = {f"species/{group}" for group in single.gradient_scales}
    assert set(distiller.gradient_scales) == groups


def test_two_distilled_outputs_add_up():
    """The gradient is the sum of each one's, with SGD the weights' change."""
    changes = []
    teacher = model(5, extra=True)
    before = weights_of(model(1, extra=True))
    y = {**LABELS, "colour": colour}
    losses = {"species": kd.KD(), "colour": kd.KDPt()}
    for names in (["species"], ["colour"], ["species", "colour"]):
        student = model(1, extra=True)
        distiller = compiled(
            student,
            teacher,
            {name: kd.losses.get(losses[name].copy()) for name in names},
            loss_weights=dict.fromkeys(names, 0.5),
            metrics=None,
        )
        fit(distiller, y, batch_size=EXAMPLES)
        changes.append(
            [
                new - old
                for new, old in zip(weights_of(student), before, strict=True)
            ]
        )
    of_species, of_colour, of_both = changes
    added = [a + b for a, b in zip(of_species, of_colour, strict=True)]
    assert_same_weights(of_both, added, 1e-6)


class BySelf(keras.Model):
    """A subclassed model that gives a dict."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def test_subclassed_models_that_give_a_dict():
    teacher = model(5)
    known, hidden = model(1), BySelf(model(1))
    hidden(x[:1])
    fit(compiled(known, teacher))
    fit(compiled(hidden, teacher, run_eagerly=False))
    assert_same_weights(weights_of(hidden), weights_of(known), 1e-6)


def test_an_output_without_labels_learns_from_the_teacher():
    teacher = model(5)
    student, marked = model(1), model(1)
    fit(compiled(student, teacher, metrics=None), {"age": age})
    unlabelled = np.full_like(species, -1)
    fit(compiled(marked, teacher), {"species": unlabelled, "age": age})
    assert_same_weights(weights_of(student), weights_of(marked), 1e-6)


def test_schedules_name_an_output():
    distiller = compiled(model(1), model(5))
    schedule = kd.callbacks.LossSchedule("species", weight=lambda epoch: 0.2)
    fit(distiller, callbacks=[schedule])
    assert float(distiller.loss["species"].weight) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="one output"):
        fit(distiller, callbacks=[kd.callbacks.LossSchedule(weight=float)])


def test_saved_and_loaded_it_trains_on(tmp_path):
    distiller = compiled(model(1), model(5))
    fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    fit(distiller)
    fit(loaded)
    assert_same_weights(
        weights_of(loaded.student), weights_of(distiller.student), 1e-6
    )


def test_masks_of_each_output_reach_its_metrics():
    """Steps that are masked count in no metric."""
    inputs = keras.Input((None, FEATURES))
    hidden = layers.Masking()(inputs)
    student = keras.Model(
        inputs, {"species": dense(hidden, SPECIES, 1, name="species")}
    )
    steps = random.normal(size=(8, 5, FEATURES)).astype("float32")
    steps[:, 3:] = 0
    labels = random.integers(0, SPECIES, (8, 5)).astype("int32")
    distiller = kd.Distiller(student)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        {"species": kd.LabelSmoothing()},
        metrics={"species": ["accuracy"]},
        **EAGERLY,
    )
    logs = fit(distiller, {"species": labels}, steps)
    outputs = ops.convert_to_numpy(student(steps)["species"])
    right = outputs.argmax(-1) == labels
    found = next(v for k, v in logs.items() if k.endswith("accuracy"))
    assert found[0] == pytest.approx(right[:, :3].mean(), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_beside_distillation_counts_no_masked_step(weighted):
    """Rows have different lengths, and what is beyond them is far off."""
    steps = random.normal(size=(10, 5, FEATURES)).astype("float32")
    lengths = np.arange(10) % 5 + 1
    steps[np.arange(5) >= lengths[:, None]] = 0
    sizes = np.where(steps[..., :1] == 0, 1e3, steps.sum(-1, keepdims=True))
    labels = random.integers(0, SPECIES, (10, 5)).astype("int32")

    def make():
        inputs = keras.Input((None, FEATURES))
        hidden = layers.Masking()(inputs)
        outputs = {
            "species": dense(hidden, SPECIES, 1, name="species"),
            "size": dense(hidden, 1, 2, name="size"),
        }
        return keras.Model(inputs, outputs)

    plain, student = make(), make()
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(
        keras.optimizers.SGD(0.1),
        {"species": cross_entropy, "size": "mse"},
        **EAGERLY,
    )
    losses = {"species": kd.LabelSmoothing(weight=0.0), "size": "mse"}
    distiller = compiled(student, losses=losses, metrics=None)
    y = {"species": labels, "size": sizes}
    options = {}
    if weighted:
        of_steps = np.repeat(weights[:10, None], 5, axis=1)
        options["sample_weight"] = dict.fromkeys(y, of_steps)
    expected, found = (
        fit(each, y, steps, **options) for each in (plain, distiller)
    )
    assert expected["loss"][-1] < 100
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
    assert_same_weights(plain.get_weights(), student.get_weights())


class Distance(keras.losses.Loss):
    """Of Keras's own kind."""

    def call(self, labels, outputs):
        return ops.mean(ops.abs(labels - outputs), axis=-1)


class OneNumber(keras.losses.Loss):
    """Gives a number for the batch, not for each example."""

    def call(self, labels, outputs):
        return ops.mean(ops.square(labels - outputs))


class OwnCall(keras.losses.Loss):
    """Does all that Keras would do around `call`."""

    def __call__(self, labels, outputs, sample_weight=None):
        errors = ops.mean(ops.abs(ops.cast(labels, "float32") - outputs), -1)
        if sample_weight is None:
            return ops.mean(errors)
        return ops.sum(errors * sample_weight) / ops.sum(sample_weight)


def without_age(model):
    outputs = {k: v for k, v in model.output.items() if k != "age"}
    return keras.Model(model.inputs, outputs)


def squares(labels, outputs):
    return ops.mean(ops.square(labels - outputs), axis=-1)


some_ignored = np.where(np.arange(EXAMPLES) % 2, colour, -1)
BESIDE = {
    "function": (squares, "age", age[:, 0]),
    "ignored class": (
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        ),
        "colour",
        some_ignored,
    ),
    "mean of ignored class": (
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True,
            ignore_class=-1,
            reduction="mean_with_sample_weight",
        ),
        "colour",
        some_ignored,
    ),
    "integer labels": (Distance(), "age", np.arange(EXAMPLES)[:, None]),
    "one number": (OneNumber(), "age", age),
    "own __call__": (OwnCall(), "age", age),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", BESIDE)
def test_a_loss_beside_distillation_is_as_in_plain_keras(case, weighted):
    loss, name, labels = BESIDE[case]
    extra = name == "colour"
    plain, student = model(1, extra=extra), model(1, extra=extra)
    if extra:
        plain, student = (without_age(each) for each in (plain, student))
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(
        keras.optimizers.SGD(0.1),
        {"species": cross_entropy, name: loss},
        metrics={name: ["mae"]} if name == "age" else None,
        weighted_metrics={name: ["mse"]} if name == "age" else None,
        **EAGERLY,
    )
    distiller = compiled(
        student,
        losses={"species": kd.LabelSmoothing(weight=0.0), name: loss},
        metrics={name: ["mae"]} if name == "age" else None,
        weighted_metrics={name: ["mse"]} if name == "age" else None,
    )
    y = {"species": species, name: labels}
    options = {}
    if weighted:
        options["sample_weight"] = dict.fromkeys(y, weights)
    expected, found = (fit(each, y, **options) for each in (plain, distiller))
    assert_same_weights(plain.get_weights(), student.get_weights())
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4)


def test_a_list_of_metrics_is_in_the_outputs_order():
    distiller = compiled(
        model(1, as_dict=False),
        model(5, as_dict=False),
        metrics=[["accuracy"], ["mae"]],
    )
    logs = fit(distiller, [species, age])
    assert "species_accuracy" in logs
    assert "age_mae" in logs
    with pytest.raises(ValueError, match="are a dict by their names"):
        compiled(model(1), model(5), metrics=[["accuracy"], ["mae"]])


def two_of_one_kind(seed, names=("first", "second")):
    """A dict whose keys are the names of the layers, or other names."""
    inputs, hidden = trunk(seed)
    return keras.Model(
        inputs,
        {
            key: dense(hidden, SPECIES, seed + i, name=name)
            for i, (key, name) in enumerate(
                zip(("first", "second"), names, strict=True), 1
            )
        },
    )


def relations_logs(student, teacher, loss, other):
    losses = {"first": loss, "second": other}
    distiller = compiled(student, teacher, losses, metrics=None)
    distiller.optimizer.learning_rate = 0.0
    logs = fit(distiller, {"first": species, "second": species})
    return [logs[f"{name}_distillation"][0] for name in losses]


@functools.cache
def logs_of_two_losses():
    return relations_logs(
        two_of_one_kind(1), two_of_one_kind(5), kd.KDSim(), kd.KDSim()
    )


def test_one_loss_object_reads_the_last_layer_of_each_output():
    loss, expected = kd.KDSim(), logs_of_two_losses()
    found = relations_logs(two_of_one_kind(1), two_of_one_kind(5), loss, loss)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-2


@pytest.mark.parametrize(
    "names", [("second", "first"), ("one", "other"), (None, None)]
)
def test_the_keys_of_a_dict_are_the_names_of_its_outputs(names):
    found = relations_logs(
        two_of_one_kind(1, names),
        two_of_one_kind(5, names),
        kd.KDSim(),
        kd.KDSim(),
    )
    np.testing.assert_allclose(found, logs_of_two_losses(), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: compiled(model(1), losses={"size": "mse"}), "name outputs"),
        (
            lambda: compiled(model(1), model(5), {"species": kd.KD()}),
            "that have a loss",
        ),
        (
            lambda: compiled(model(1), loss_weights={"size": 1.0}),
            "loss_weights.*name outputs",
        ),
        (
            lambda: fit(compiled(model(1), model(5)), {"size": age, **LABELS}),
            "output that does not exist",
        ),
        (lambda: fit(compiled(model(1), model(5)), species), "by output"),
        (
            lambda: fit(compiled(model(1), model(5)), (species, age, age)),
            "one entry for each output",
        ),
        (
            lambda: fit(
                compiled(
                    BySelf(model(1)),
                    BySelf(model(5)),
                    {"species": kd.KD(), "age": kd.KD()},
                    metrics=None,
                ),
                (species, age),
            ),
            "one entry for each output",
        ),
        (
            lambda: fit(compiled(model(1), model(5)), {"species": species}),
            "'age' reads the label",
        ),
        (
            lambda: fit(compiled(model(1), model(5)), class_weight={0: 2.0}),
            "one output",
        ),
        (
            lambda: fit(
                compiled(
                    model(1),
                    model(5, extra=True),
                    {"species": kd.KDPt()},
                    metrics={"species": ["accuracy"]},
                ),
                {"species": species + 2},
            ),
            "Output 'species': A label",
        ),
        (
            lambda: compiled(
                model(1, extra=True),
                model(1),
                {"colour": kd.KD()},
                metrics=None,
            ).fit(x, {"colour": colour}, verbose=0),
            "an output 'colour'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        change()


def test_losses_as_a_list_are_in_the_outputs_order():
    """Which is not that of their names; and as a tuple."""

    def trained(losses, loss_weights, y=LABELS):
        models = model(1, as_dict=False), model(5, as_dict=False)
        distiller = compiled(*models, losses, loss_weights=loss_weights)
        loss = fit(distiller, y)["loss"]
        return weights_of(distiller.student), loss

    expected, expected_loss = trained(None, {"species": 0.5, "age": 2.0})
    for kind in (list, tuple):
        weights, loss = trained(
            kind([kd.KD(), "mse"]), kind([0.5, 2.0]), (species, age)
        )
        assert_same_weights(weights, expected)
        assert loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "teacher_name"),
    [(kd.KD, "other"), (kd.KDPtSim, "species"), (kd.KDPtSim, "other")],
)
def test_the_only_output_of_a_sequential_model_by_its_name(loss, teacher_name):
    def made(seed, name="species"):
        hidden = layers.Dense(6, "tanh", kernel_initializer=uniform(seed))
        last = layers.Dense(
            SPECIES, kernel_initializer=uniform(seed + 1), name=name
        )
        return keras.Sequential([keras.Input((FEATURES,)), hidden, last])

    trained = []
    for given in (loss(), [loss()], {"species": loss()}):
        distiller = kd.Distiller(made(1), made(5, teacher_name))
        distiller.compile(keras.optimizers.SGD(0.1), given, **EAGERLY)
        fit(distiller, species)
        trained.append(weights_of(distiller.student))
    assert_same_weights(trained[0], trained[1])
    assert_same_weights(trained[0], trained[2])
    with pytest.raises(ValueError, match=r"must name outputs.*\['species'\]"):
        distiller.compile("sgd", {"kind": loss()})
