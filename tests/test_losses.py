"""The losses against explicit target distributions in float64 NumPy."""

import dataclasses

import keras
import numpy as np
import pytest
import readme
import reference
from gradients import fewer_seeds, value_and_gradient
from keras.src.backend import set_keras_mask
from models import mlp

import keras_kd as kd
from keras_kd import backend

ALPHA, BETA = 0.4, 0.7
# JAX compiles each case again.
SCALES = [1.0, 50.0] if keras.backend.backend() == "jax" else [1.0, 8.0, 50.0]


@dataclasses.dataclass
class Case:
    """Random inputs of a loss, and what it should make of them."""

    name: str
    seed: int
    scale: float = 3.0
    dtype: str = "float32"

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        # Few shapes: some backends compile every operation for each.
        self.num_classes = int(random.choice([2, 3, 10, 39]))
        shape = [(1,), (7,), (4, 8)][random.integers(3)]
        size = (*shape, self.num_classes)
        self.labels = random.integers(0, self.num_classes, shape)
        self.logits = self.scale * random.normal(size=size).astype(self.dtype)
        self.teacher_logits = self.scale * random.normal(size=size).astype(
            self.dtype
        )
        self.rows = random.normal(size=(self.num_classes, 5)).astype("float32")
        self.temperature = float(np.round(random.uniform(0.5, 6), 2))
        self.weight = float(np.round(random.uniform(0, 0.6), 2))
        self.second_weight = float(np.round(random.uniform(0, 0.4), 2))
        self.squared = bool(random.integers(2))
        self.k = int(random.integers(1, self.num_classes + 1))
        self.smoothing = float(np.round(random.uniform(0, 1), 2))
        self.alpha, self.beta = np.round(random.uniform(0, 4, 2), 2).tolist()
        if self.name == "label_smoothing":
            self.temperature, self.squared = 1.0, True

    def arguments(self):
        similarity = {"alpha": ALPHA, "beta": BETA, "logit_layer": self.rows}
        common = {
            "weight": self.weight,
            "temperature": self.temperature,
            "temperature_squared": self.squared,
        }
        if self.name == "label_smoothing":
            return {"smoothing": self.smoothing, "weight": self.weight}
        if self.name == "kd_sim":
            return {**common, **similarity}
        if self.name == "kd_topk":
            return {**common, "k": self.k}
        if self.name == "kd_sampled":
            # Of all classes, so that nothing is left to chance.
            return {**common, "k": 1.0}
        if self.name == "dkd":
            return {**common, "alpha": self.alpha, "beta": self.beta}
        if self.name == "kd_pt_sim":
            common["pt_weight"] = common.pop("weight")
            common["sim_weight"] = self.second_weight
            return {**common, **similarity}
        return common

    def loss(self, **kwargs):
        kwargs.setdefault("dtype", self.dtype)
        return kd.losses.get(self.name, **self.arguments(), **kwargs)

    def terms(self):
        """[(weight, explicit target)] of this loss."""
        labels, teacher, t = self.labels, self.teacher_logits, self.temperature
        pt = reference.pt_target(labels, teacher, t)
        sim = reference.sim_target(labels, self.rows, ALPHA, BETA)
        return {
            "label_smoothing": lambda: [
                (
                    self.weight,
                    reference.label_smoothing_target(
                        labels, self.num_classes, self.smoothing
                    ),
                )
            ],
            "kd_pt": lambda: [(self.weight, pt)],
            "kd_sim": lambda: [(self.weight, sim)],
            "kd_pt_sim": lambda: [(self.weight, pt), (self.second_weight, sim)],
            "kd_topk": lambda: [
                (self.weight, reference.topk_target(teacher, t, self.k))
            ],
            "kd_sampled": lambda: [
                (self.weight, reference.kd_target(teacher, t))
            ],
            "kd": lambda: [(self.weight, reference.kd_target(teacher, t))],
        }[self.name]()

    def decoupled(self):
        """What `reference.dkd_loss` and its gradient are given."""
        return (
            *(self.logits, self.labels, self.teacher_logits, self.weight),
            *(self.alpha, self.beta, self.temperature, self.squared),
        )

    def expected(self, divergence=None):
        if self.name == "dkd":
            return reference.dkd_loss(*self.decoupled())
        if divergence is None:
            divergence = self.name in reference.DIVERGENCES
        return reference.per_example_loss(
            self.logits,
            self.labels,
            self.terms(),
            self.temperature,
            self.squared,
            divergence=divergence,
        )

    def expected_gradient(self):
        if self.name == "dkd":
            return reference.dkd_gradient(*self.decoupled())
        return reference.per_example_gradient(
            self.logits,
            self.labels,
            self.terms(),
            self.temperature,
            self.squared,
        )


def targets(loss, labels, teacher_logits):
    """y_true as the Distiller makes it."""
    logits = keras.ops.cast(teacher_logits, loss.dtype)
    statistics = loss.teacher_statistics(
        keras.ops.cast(labels, "int32"), logits
    )
    return {"labels": labels, **statistics}


every_loss = pytest.mark.parametrize("name", kd.losses.NAMES)


@every_loss
@pytest.mark.parametrize("seed", fewer_seeds(12))
def test_value_is_that_of_the_explicit_target(name, seed):
    case = Case(name, seed)
    loss = case.loss(reduction=None)
    y_true = targets(loss, case.labels, case.teacher_logits)
    np.testing.assert_allclose(
        loss(y_true, case.logits), case.expected(), rtol=1e-5, atol=1e-6
    )
    mean = case.loss()(y_true, case.logits)
    np.testing.assert_allclose(mean, case.expected().mean(), rtol=1e-5)


@every_loss
@pytest.mark.parametrize("seed", fewer_seeds(12))
def test_float64_value_is_exact(name, seed, float64):
    case = Case(name, seed, dtype="float64")
    loss = case.loss(reduction=None)
    y_true = targets(loss, case.labels, case.teacher_logits)
    np.testing.assert_allclose(
        loss(y_true, case.logits), case.expected(), rtol=1e-10, atol=1e-12
    )
    mean = case.loss()(y_true, case.logits)
    np.testing.assert_allclose(mean, case.expected().mean(), rtol=1e-10)


@every_loss
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_another_default_dtype_changes_nothing(name, dtype, floatx):
    """-1e30 is -inf in float16, which a loss made NaN of."""
    floatx(dtype)
    case = Case(name, seed=7)
    loss = case.loss()
    y_true = targets(loss, case.labels, case.teacher_logits)
    value = loss(y_true, case.logits)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(value, case.expected().mean(), rtol=1e-5)


@every_loss
@pytest.mark.parametrize("seed", fewer_seeds(6))
@pytest.mark.parametrize("scale", SCALES)
def test_gradient_is_the_closed_form(name, seed, scale):
    case = Case(name, seed, scale=scale)
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    _, gradient = value_and_gradient(lambda z: loss(y_true, z), case.logits)
    np.testing.assert_allclose(
        gradient, case.expected_gradient(), rtol=1e-5, atol=1e-5
    )


@every_loss
def test_the_teacher_is_outside_the_gradient(name):
    case = Case(name, seed=3)
    loss = case.loss()

    def total(teacher_logits):
        y_true = targets(loss, case.labels, teacher_logits)
        return loss(y_true, case.logits) + keras.ops.sum(teacher_logits)

    _, gradient = value_and_gradient(total, case.teacher_logits)
    np.testing.assert_array_equal(gradient, 1.0)


@every_loss
@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_gradient_lives_at_a_logit_gap_of_100(name, gap):
    case = Case(name, seed=3)
    case.logits = np.zeros_like(case.logits)
    np.put_along_axis(case.logits, case.labels[..., None], gap, -1)
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    value, gradient = value_and_gradient(lambda z: loss(y_true, z), case.logits)
    expected = case.expected_gradient()
    np.testing.assert_allclose(value, case.expected().sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
    if gap < 0:
        assert np.abs(expected).max() > 0.1


@every_loss
@pytest.mark.parametrize("sign", [1, -1])
def test_half_precision_extremes_stay_finite(name, sign):
    case = Case(name, seed=5)
    case.logits = np.where(case.logits > 0, 60_000, -60_000).astype("float16")
    # No two classes alike: which of them KDTopK keeps would be up to chance.
    spread = np.linspace(0.9, 1, case.num_classes)
    case.teacher_logits = (sign * case.logits * spread).astype("float16")
    loss = case.loss(reduction="sum")
    y_true = targets(loss, case.labels, case.teacher_logits)
    value, gradient = value_and_gradient(lambda z: loss(y_true, z), case.logits)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, case.expected().sum(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, case.expected_gradient(), rtol=1e-3, atol=1e-3
    )


@every_loss
def test_confident_teacher_keeps_its_digits(name):
    """p_t within 1e-8 of 1: 1 - p_t must not be a rounding error."""
    case = Case(name, seed=7)
    case.temperature = 1.0
    np.put_along_axis(case.teacher_logits, case.labels[..., None], 25.0, -1)
    case.logits = 10 * case.logits
    case.weight, case.second_weight, case.squared = 1.0, 0.0, True
    loss = case.loss(reduction=None)
    y_true = targets(loss, case.labels, case.teacher_logits)
    np.testing.assert_allclose(
        loss(y_true, case.logits), case.expected(), rtol=1e-5, atol=1e-7
    )


@every_loss
@pytest.mark.parametrize("seed", fewer_seeds(4))
def test_weights_masks_and_ignored_labels(name, seed):
    case = Case(name, seed)
    random = np.random.default_rng(seed)
    weights = random.uniform(0, 2, case.labels.shape).astype("float32")
    mask = random.random(case.labels.shape) < 0.7
    ignored = random.random(case.labels.shape) < 0.3
    mask.flat[0], ignored.flat[0] = True, False
    loss = case.loss(ignore_class=-1)
    y_true = targets(loss, case.labels, case.teacher_logits)
    y_true["labels"] = np.where(ignored, -1, case.labels)

    def masked_loss(logits):
        set_keras_mask(logits, keras.ops.convert_to_tensor(mask))
        return loss(y_true, logits, sample_weight=weights)

    value, gradient = value_and_gradient(masked_loss, case.logits)
    counted = mask & ~ignored
    expected = reference.reduce_mean(case.expected(), weights, counted)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    share = (counted * weights / counted.sum())[..., None]
    np.testing.assert_allclose(
        gradient, share * case.expected_gradient(), rtol=1e-5, atol=1e-6
    )


@every_loss
def test_sequence_weights_weigh_each_step(name):
    case = next(
        c for c in (Case(name, s) for s in range(50)) if c.labels.ndim == 2
    )
    loss = case.loss()
    y_true = targets(loss, case.labels, case.teacher_logits)
    weights = np.linspace(0.5, 2, len(case.labels)).astype("float32")
    value = loss(y_true, case.logits, sample_weight=weights)
    expected = (case.expected() * weights[:, None]).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@every_loss
def test_subtracting_a_constant_changes_nothing(name):
    case = Case(name, seed=7)
    loss = case.loss()
    y_true = targets(loss, case.labels, case.teacher_logits)
    shifted = targets(loss, case.labels, case.teacher_logits - 50)
    np.testing.assert_allclose(
        loss(shifted, case.logits - 50), loss(y_true, case.logits), rtol=1e-5
    )


def test_kd_is_hinton_loss_and_0_where_the_student_agrees():
    case = Case("kd", seed=4)
    case.squared, case.weight = True, 1.0
    loss = case.loss(reduction=None)
    y_true = targets(loss, case.labels, case.teacher_logits)
    teacher = reference.kd_target(case.teacher_logits, case.temperature)
    log_student = reference.log_softmax(case.logits / case.temperature)
    kl = (teacher * (np.log(teacher) - log_student)).sum(-1)
    np.testing.assert_allclose(
        loss(y_true, case.logits), case.temperature**2 * kl, rtol=1e-4
    )
    agreeing = np.array(loss(y_true, case.teacher_logits + 3))
    np.testing.assert_allclose(agreeing, 0, atol=1e-4)
    assert (agreeing >= 0).all()


@pytest.mark.parametrize("temperature", [20.0, 100.0, 1000.0])
@pytest.mark.parametrize("name", ["kd", "kd_topk", "dkd"])
def test_a_divergence_keeps_its_digits_at_high_temperatures(name, temperature):
    """It is a small difference of entropies, times T ** 2."""
    case = Case(name, seed=5)
    case.weight, case.squared = 1.0, True
    loss = case.loss(reduction=None)
    case.temperature = loss.temperature = temperature
    y_true = targets(loss, case.labels, case.teacher_logits)
    np.testing.assert_allclose(
        loss(y_true, case.logits), case.expected(), rtol=1e-4
    )
    _, gradient = value_and_gradient(
        lambda z: keras.ops.sum(loss(y_true, z)), case.logits
    )
    expected = case.expected_gradient()
    largest = abs(expected).max()
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * largest)


def test_a_class_that_the_teacher_rules_out_has_no_mass():
    labels = np.array([0, 2, 5])
    teacher = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    teacher[0, 1] = teacher[1, 3:] = -np.inf
    student = np.random.default_rng(1).normal(size=(3, 6)).astype("float32")
    loss = kd.KD(1.0, 2.0, reduction=None)
    target = reference.kd_target(teacher, 2.0)
    np.testing.assert_allclose(
        loss(targets(loss, labels, teacher), student),
        reference.per_example_loss(
            student, labels, [(1.0, target)], 2.0, divergence=True
        ),
        rtol=1e-5,
    )


def test_topk_with_every_class_is_kd_and_ties_add_up():
    labels = np.array([0, 1, 5])
    teacher = np.array(
        [[1, 1, 1, 1, 0, 0], [2, 1, 1, 1, 1, 1], [0, 1, 2, 2, 2, 3]], "float32"
    )
    student = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    whole, kd_loss = kd.KDTopK(k=1.0), kd.KD()
    np.testing.assert_allclose(
        whole(targets(whole, labels, teacher), student),
        kd_loss(targets(kd_loss, labels, teacher), student),
        rtol=1e-5,
    )
    for k in (1, 3, 4, 6):
        loss = kd.KDTopK(k=k)
        statistics = targets(loss, labels, teacher)
        total = np.array(statistics["top_probabilities"]).sum(-1)
        total += np.array(statistics["tail_probability"])
        np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_topk_fraction_is_of_the_classes():
    assert kd.KDTopK(k=0.25).count(100) == 25
    assert kd.KDTopK(k=0.001).count(100) == 1
    assert kd.KDTopK(k=7).count(100) == 7


@every_loss
def test_no_target_over_all_classes_is_built_for_sparse_methods(name):
    """KD-pt, KD-topk and LS carry at most k numbers an example."""
    case = Case(name, seed=7)
    loss = case.loss()
    y_true = targets(loss, case.labels, case.teacher_logits)
    made = loss.targets(
        keras.ops.cast(case.labels, "int32"),
        {n: y_true[n] for n in loss.statistics},
        case.num_classes,
    )
    kinds = {type(target).__name__ for target in made.values()}
    assert kinds == {
        "label_smoothing": {"LabelTarget"},
        "kd_pt": {"LabelTarget"},
        "kd_sim": {"DenseTarget"},
        "kd_pt_sim": {"LabelTarget", "DenseTarget"},
        "kd_topk": {"SparseTarget"},
        "kd_sampled": {"SparseTarget"},
        "kd": {"DenseTarget"},
        "dkd": {"_TwoClassTarget", "_OtherClassesTarget"},
    }.get(name)


def another_value(name):
    """Of the temperature; label smoothing has none, but a weight."""
    if name == "label_smoothing":
        return {"weight": 0.25}
    return {"temperature": 3.5}


@every_loss
def test_config_round_trip_keeps_changed_values(name):
    case = Case(name, seed=7)
    loss = case.loss(ignore_class=3, name="mine")
    loss.assign(**another_value(name))
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert type(again) is type(loss)
    config, expected = again.get_config(), loss.get_config()
    np.testing.assert_equal(config, expected)
    assert another_value(name).items() <= config.items()
    if name != "label_smoothing":
        y_true = targets(loss, case.labels, case.teacher_logits)
        np.testing.assert_allclose(
            again(y_true, case.logits), loss(y_true, case.logits), rtol=1e-6
        )


def test_the_readmes_own_method_is_one_small_class():
    """The teacher's favourite class."""
    case = Case("kd_topk", seed=4)
    case.k = 1
    arguments = {**case.arguments()}
    del arguments["k"]
    loss = readme.class_of("KDTop1")(**arguments)
    y_true = targets(loss, case.labels, case.teacher_logits)
    np.testing.assert_allclose(
        loss(y_true, case.logits),
        case.expected(divergence=False).mean(),
        rtol=1e-5,
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="TensorFlow adds up gradients as their memory comes free.",
)
@pytest.mark.parametrize("name", ["kd_pt_sim", "kd"])
def test_the_same_step_has_the_same_bits(name):
    import tensorflow as tf

    random = np.random.default_rng(0)
    logits, teacher, rows = (
        tf.constant(3 * random.normal(size=(560, 300)), "float32")
        for _ in range(3)
    )
    labels = tf.constant(random.integers(0, 300, 560))
    similarity = {"logit_layer": rows.numpy().T} if "sim" in name else {}
    loss = kd.losses.get(name, **similarity)
    y = {"labels": labels, **loss.teacher_statistics(labels, teacher)}

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(y, logits)
        return value, tape.gradient(value, logits)

    steps = [[each.numpy().tobytes() for each in step()] for _ in range(150)]
    assert all(each == steps[0] for each in steps)


def test_compiled_function_reads_changed_values():
    case = Case("kd_pt_sim", seed=8)
    loss = case.loss()

    def value(logits):
        y_true = targets(loss, case.labels, case.teacher_logits)
        return loss(y_true, logits)

    compiled = backend.compiled(value, loss.variables)
    compiled(case.logits)
    case.weight, case.second_weight, case.temperature = 0.2, 0.7, 5.0
    loss.assign(pt_weight=0.2, sim_weight=0.7, temperature=5.0)
    np.testing.assert_allclose(
        compiled(case.logits), case.expected().mean(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.KD(weight=1.5), r"weight=1\.5"),
        (lambda: kd.KD(weight=-0.1), r"weight=-0\.1"),
        (lambda: kd.KD(weight=float("nan")), "weight=nan"),
        (lambda: kd.KDPtSim(pt_weight=0.7, sim_weight=0.5), "sum to more"),
        (lambda: kd.KD(temperature=0), "temperature=0"),
        (lambda: kd.KDPt(temperature=-2), "temperature=-2"),
        (lambda: kd.KDTopK(k=0), "k=0"),
        (lambda: kd.KDTopK(k=1.5), r"k=1\.5"),
        (lambda: kd.KDTopK(k=True), "k=True"),
        (lambda: kd.KDSampled(k=0), "KDSampled .* k=0"),
        (lambda: kd.DKD(alpha=-1), "alpha=-1"),
        (lambda: kd.DKD().assign(beta=float("inf")), "beta=inf"),
        (lambda: kd.LabelSmoothing(smoothing=2), "smoothing=2"),
        (lambda: kd.KDSim(alpha=0), "alpha=0"),
        (lambda: kd.KDSim(label_mass=1), "label_mass=1"),
        (lambda: kd.KD(dtype="float16"), "float16"),
        (lambda: kd.losses.get("kd_ptt"), "kd_ptt"),
        (lambda: kd.KD().assign(alpha=1), "alpha"),
        (lambda: kd.KD().assign(weight=2), "weight=2"),
        (lambda: kd.KD(temperature="3"), "`temperature` of KD .*='3'"),
        (lambda: kd.KD(weight=None), "`weight` of KD .*None"),
        (lambda: kd.DKD(alpha="1"), "`alpha` of DKD .*='1'"),
        (lambda: kd.losses.get(kd.KD), r"class KD\. Call it: KD\(\)"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name", "unknown", "others"),
    [
        (kd.KD, "KD", "from_logits", "weight, temperature, temp"),
        (kd.KD, "KD", "alpha", "weight, temperature, temp"),
        (kd.DKD, "DKD", "gamma", "alpha, beta, weight, temp"),
        (kd.KDPtSim, "KDPtSim", "weight", "pt_weight, sim_weight, temp"),
    ],
)
def test_arguments_that_a_loss_does_not_have(make, name, unknown, others):
    expected = f"{name} has no such .*{unknown}=0.5. Choose among {others}"
    with pytest.raises(TypeError, match=expected):
        make(**{unknown: 0.5})


def test_a_refused_change_changes_nothing():
    loss = kd.KDPtSim(pt_weight=0.4, sim_weight=0.1)
    with pytest.raises(ValueError, match="sum to more"):
        loss.assign(pt_weight=0.8, sim_weight=0.3)
    assert float(loss.pt_weight) == pytest.approx(0.4)
    loss.pt_weight = 0.3
    assert float(loss.pt_weight) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("label_smoothing", "smoothing"),
        ("kd_topk", "k"),
        ("kd_sim", "alpha"),
        ("kd_pt_sim", "beta"),
        ("kd", "temperature_squared"),
        ("kd_pt", "ignore_class"),
        ("dkd", "reduction"),
    ],
)
def test_what_a_compiled_step_would_not_see_is_not_changed(name, argument):
    """It was ignored without a word."""
    distiller = kd.Distiller(mlp(), mlp(seed=1))
    distiller.compile("sgd", name)
    with pytest.raises(ValueError, match=f"`{argument}` .* is fixed"):
        setattr(distiller.loss, argument, 1)
    ((argument, value),) = another_value(name).items()
    setattr(distiller.loss, argument, value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((3, 6), "int32"), "don't sum to 1"),
        (np.array([0.0, 1.5, 2.0]), "not a class id"),
        (np.array([0.0, np.nan, 2.0]), "not a class id"),
        (np.array([0, 1, 2**32 + 1]), "not a class id|64 bits"),
        (np.array([0, 1, -1]), "not a class id"),
        (np.array([True, False, True]), "bool"),
        (np.zeros((2,), "int32"), r"\(2,\)"),
    ],
)
def test_labels_that_are_not_class_ids_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        kd.LabelSmoothing()(labels, np.zeros((3, 6), "float32"))


def test_missing_statistics_are_named():
    with pytest.raises(ValueError, match="label_log_odds"):
        kd.KDPt()(np.array([0, 1]), np.zeros((2, 4), "float32"))


@pytest.mark.parametrize("loss", [kd.KDTopK, kd.KDSampled])
def test_statistics_of_other_classes_than_k_are_refused(loss):
    labels, logits = np.arange(3, dtype="int32"), np.ones((3, 6), "float32")
    given = keras.ops.convert_to_tensor(logits)
    y_true = {"labels": labels, **loss(k=4).teacher_statistics(labels, given)}
    assert np.isfinite(float(loss(k=4)(y_true, logits)))
    with pytest.raises(ValueError, match="4 classes for a loss with k=3"):
        loss(k=3)(y_true, logits)


def test_topk_above_the_classes_is_refused():
    with pytest.raises(ValueError, match="k=9 for 4 classes"):
        targets(kd.KDTopK(k=9), np.array([0]), np.zeros((1, 4), "float32"))


@pytest.mark.parametrize("name", ["kd_pt", "kd_topk"])
def test_a_column_of_statistics_is_one_number_for_each_example(name):
    """[examples, 1], as of a table, would broadcast to all pairs of them."""
    random = np.random.default_rng(0)
    labels = np.arange(4, dtype="int32")
    logits, teacher = random.normal(size=(2, 4, 6))
    loss = kd.losses.get(name)
    made = loss.teacher_statistics(
        keras.ops.convert_to_tensor(labels),
        keras.ops.convert_to_tensor(teacher.astype("float32")),
    )
    columns = {
        key: value if len(value.shape) > 1 else value[:, None]
        for key, value in made.items()
    }
    if name == "kd_pt":
        target = reference.pt_target(labels, teacher, 2.0)
    else:
        target = reference.topk_target(teacher, 2.0, loss.count(6))
    expected = reference.per_example_loss(
        logits, labels, [(0.5, target)], 2.0, divergence=name == "kd_topk"
    )
    value = loss({"labels": labels, **columns}, logits.astype("float32"))
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "statistics",
    [
        {"label_log_odds": np.zeros((4, 4), "float32")},
        {"label_log_odds": np.zeros((1,), "float32")},
        {"label_log_odds": np.zeros((6,), "float32")},
    ],
)
def test_statistics_of_other_examples_are_refused(statistics):
    labels, logits = np.arange(4, dtype="int32"), np.ones((4, 6), "float32")
    with pytest.raises(ValueError, match="label_log_odds.*Check that they"):
        kd.KDPt()({"labels": labels, **statistics}, logits)


def test_one_number_is_not_that_of_each_class_of_a_soft_label():
    """As many examples as classes: the number would be taken for a class's."""
    labels, logits = np.eye(6, dtype="float32"), np.ones((6, 6), "float32")
    y_true = {"labels": labels, "label_log_odds": np.zeros(6, "float32")}
    with pytest.raises(ValueError, match=r"here of shape \(6, 6\)"):
        kd.KDPt()(y_true, logits)
