"""The synthetic study: its data, its students side by side, its verdicts."""

import shutil

import keras
import numpy as np
import processes
import pytest
import scipy.stats
import synthetic
from data import synthetic as synthetic_data
from models import EAGERLY
from study.run_folder import RunFolder

import keras_kd as kd

SMALL = (
    *("--classes", 6, "--superclasses", 3, "--seeds", 2),
    *("--train-examples", 120, "--test-examples", 50, "--batch-size", 40),
    *("--epochs", 2, "--teacher-epochs", 2),
    *("--teacher-units", 8, "--student-units", 4, "--quick"),
)


# -- data ----------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_prototypes_correlate_by_delta_in_a_superclass_alone(delta):
    random = np.random.default_rng(0)
    rows = synthetic_data.make_prototypes(delta, 12, 4, random)
    same = np.arange(12)[:, None] // 3 == np.arange(12) // 3
    expected = np.where(same, delta, 0.0)
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-12)


def make(delta=0.5, seed=1, sizes=(4000, 5, 5), noise=1.0):
    return synthetic_data.make_problem(delta, seed, 6, 3, sizes, noise)


def test_labels_are_drawn_from_the_sines_of_the_projections():
    problem = make()
    part = problem.parts["train"]
    a = part.inputs.astype("float64") @ problem.prototypes.T
    score = 4 * a
    for i in (1, 2, 3, 4):
        score += np.sin(i * a + i)
    posterior = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    of_label = posterior[np.arange(len(a)), part.labels]
    np.testing.assert_allclose(part.confidence, of_label, rtol=1e-4)
    # Each class comes as often as its probabilities say, and so does a label
    # among the examples that are as hard.
    counts = np.bincount(part.labels, minlength=6)
    spread = np.sqrt((posterior * (1 - posterior)).sum(0))
    assert (np.abs(counts - posterior.sum(0)) < 4 * spread).all()
    likeliest = posterior.max(-1)
    for low, high in ((0.0, 0.6), (0.6, 0.9), (0.9, 1.0)):
        chosen = (low < likeliest) & (likeliest <= high)
        p = likeliest[chosen]
        hits = (posterior.argmax(-1) == part.labels)[chosen].sum()
        assert abs(hits - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_a_seed_has_the_same_inputs_at_each_delta():
    first, second = make(0.0).parts["train"], make(0.9).parts["train"]
    np.testing.assert_array_equal(first.inputs, second.inputs)
    assert (first.labels != second.labels).any()
    other = make(0.0, seed=2).parts["train"]
    assert not np.allclose(first.inputs, other.inputs)


def test_a_teacher_of_difficulty_ranks_examples_as_the_truth_does():
    truth = np.random.default_rng(0).uniform(size=2000)
    p = 1 / (1 + np.exp(-synthetic.log_odds_by_difficulty(truth, 0)))
    assert scipy.stats.spearmanr(p, truth).statistic == pytest.approx(1)
    low, high = synthetic._CONFIDENCES
    expected = ("uniform", (low, high - low))
    assert scipy.stats.kstest(p, *expected).pvalue > 0.01


# -- students side by side -----------------------------------------------------

COUNT, EXAMPLES, CLASSES, FEATURES = 3, 60, 6, 9


def knowledge():
    random = np.random.default_rng(0)
    return {
        "inputs": random.normal(size=(EXAMPLES, COUNT, FEATURES)),
        "labels": random.integers(0, CLASSES, (EXAMPLES, COUNT)),
        "label_log_odds": random.normal(size=(EXAMPLES, COUNT)),
        "teacher_logits": random.normal(size=(EXAMPLES, COUNT, CLASSES)),
        "rows": random.normal(size=(COUNT, CLASSES, 5)),
    }


def losses(name, rows):
    if name == "kd":
        return kd.KD(), [kd.KD() for _ in rows]
    alone = [kd.losses.get(name, logit_layer=r) for r in rows]
    together = kd.losses.get(name, logit_layer=rows[0])
    together.class_similarity = synthetic.ManyClassSimilarities(
        [loss.class_similarity for loss in alone], CLASSES
    )
    return together, alone


def train(networks, loss, known):
    distiller = kd.Distiller(networks, gradient_scale=False)
    # Adam's steps do not depend on the loss's scale, a third each of a mean.
    distiller.compile(
        keras.optimizers.Adam(0.01, epsilon=1e-12), loss=loss, **EAGERLY
    )
    y = {
        name: known[name].astype(kind)
        for name, kind in (
            ("labels", "int32"),
            ("label_log_odds", "float32"),
            ("teacher_logits", "float32"),
        )
    }
    x = known["inputs"].astype("float32")
    distiller.fit(x, y, batch_size=20, epochs=2, shuffle=False, verbose=0)
    return networks.get_weights()


@pytest.mark.parametrize("name", ["kd_sim", "kd_pt_sim", "kd"])
def test_students_side_by_side_train_as_each_one_alone(name):
    known = knowledge()
    together, alone = losses(name, known["rows"])
    networks = synthetic.make_networks(COUNT, FEATURES, 4, CLASSES, seed=0)
    initial = networks.get_weights()
    trained = train(networks, together, known)
    for i in range(COUNT):
        student = synthetic.make_networks(1, FEATURES, 4, CLASSES, seed=0)
        student.set_weights([w[i : i + 1] for w in initial])
        own = {
            key: value[:, i : i + 1]
            for key, value in known.items()
            if key != "rows"
        }
        weights = train(student, alone[i], own)
        for both, one in zip(trained, weights, strict=True):
            np.testing.assert_allclose(both[i], one[0], rtol=1e-3, atol=1e-4)
        assert not np.allclose(weights[0], initial[0][i : i + 1], atol=0.01)


# -- knowledge of controls and of one effect -----------------------------------


@pytest.fixture
def study(tmp_path):
    """A study whose teachers' logits and rows are drawn, not trained."""
    options = {
        **{"deltas": (0.0, 0.9), "first_seed": 3, "seeds": 2, "noise": 0.4},
        **{"classes": 6, "superclasses": 3, "part": "test"},
        **{"train_examples": 90, "test_examples": 5},
    }
    study = synthetic.SyntheticStudy(None, options)
    random = np.random.default_rng(0)
    study.teacher_logits = random.normal(size=(90, 4, 6)).astype("float32")
    study.logit_rows = random.normal(size=(4, 6, 5)).astype("float32")
    return study


def log_odds(study, method):
    loss = study.loss(method, weight=1.0, temperature=2.0)
    return study.statistics(method, loss)["label_log_odds"]


def relations(study, method):
    settings = {"weight": 1.0, "temperature": 1.0, "label_mass": 0.5}
    loss = study.loss(method, **settings)
    labels = np.repeat(np.arange(6)[:, None], 4, axis=1)
    return np.array(loss.class_similarity.target(labels, 6)[0])


def test_confidence_is_the_teachers_own_for_each_student(study):
    z = study.teacher_logits.astype("float64") / 2
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    p = np.take_along_axis(p, study.train.labels[..., None], -1)[..., 0]
    expected = np.log(p / (1 - p))
    ours = log_odds(study, "kd_pt")
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_shuffled_confidence_stays_with_the_student_and_the_class(study):
    own, shuffled = (log_odds(study, m) for m in ("kd_pt", "kd_pt_shuffled"))
    assert (own != shuffled).mean() > 0.8
    for i, labels in enumerate(study.train.labels.T):
        for label in range(6):
            of_class = labels == label
            np.testing.assert_array_equal(
                np.sort(own[of_class, i]), np.sort(shuffled[of_class, i])
            )


def test_a_teacher_of_difficulty_knows_the_truth_of_each_student(study):
    ours = log_odds(study, "rho_pt")
    for i in range(4):
        truth = study.train.confidence[:, i]
        rank = scipy.stats.spearmanr(ours[:, i], truth).statistic
        assert rank == pytest.approx(1, abs=1e-3)


def test_class_relations_are_the_own_teachers_or_the_prototypes(study):
    for method, rows in (
        ("kd_sim", study.logit_rows),
        ("rho_sim", [p.prototypes for p in study.problems]),
    ):
        ours = relations(study, method)
        for i, row in enumerate(rows):
            unit = row / np.linalg.norm(row, axis=-1, keepdims=True)
            cosines = (unit @ unit.T)[~np.eye(6, dtype=bool)]
            targets = ours[:, i][~np.eye(6, dtype=bool)].reshape(6, 5)
            # In a row, a class that is more alike has more of the target.
            for c, t in zip(cosines.reshape(6, 5), targets, strict=True):
                order = np.argsort(c)
                assert (np.diff(t[order]) >= -1e-6).all()
        assert ours[np.arange(6), :, np.arange(6)].mean() == pytest.approx(
            0.5, abs=0.01
        )


def test_permuted_relations_are_those_of_other_classes(study):
    own, permuted = (relations(study, m) for m in ("kd_sim", "kd_sim_permuted"))
    assert not np.isclose(own, permuted).all()
    np.testing.assert_allclose(
        np.sort(own, axis=None), np.sort(permuted, axis=None), rtol=1e-4
    )


# -- verdicts ------------------------------------------------------------------

DELTAS = (0.0, 0.5, 1.0)


def scores(**gains):
    """[deltas, seeds] accuracies with these gains at each delta."""
    random = np.random.default_rng(0)
    seeds = random.normal(0.5, 0.1, 10)
    methods = ("plain", "label_smoothing", "kd_sim", "kd_pt", "kd_pt_sim")
    return {
        m: seeds
        + np.array(gains.get(m, (0, 0, 0)))[:, None]
        + random.normal(0, 0.01, (3, 10))
        for m in methods
    }


def verdicts(**gains):
    return [c.verdict for c in synthetic.judge(scores(**gains), DELTAS)]


def test_the_papers_pattern_confirms_every_claim():
    assert (
        verdicts(
            kd_sim=(0, 0.1, 0.2),
            kd_pt=(0.3, 0.3, 0.3),
            kd_pt_sim=(0.3, 0.4, 0.5),
        )
        == ["confirmed"] * 4
    )


def test_the_opposite_refutes_every_claim():
    assert (
        verdicts(
            kd_sim=(0.3, 0.2, 0.1),
            kd_pt=(-0.1, -0.1, -0.1),
            kd_pt_sim=(0, 0, -0.2),
        )
        == ["refuted"] * 4
    )


def test_no_difference_is_inconclusive():
    assert verdicts() == ["inconclusive"] * 4


def test_intervals_are_those_of_scipys_paired_test():
    accuracies = scores(kd_sim=(0, 0.1, 0.2))
    claims = synthetic.judge(accuracies, DELTAS)
    pairs = accuracies["kd_sim"] - accuracies["label_smoothing"]
    slopes = [np.polyfit(DELTAS, seed, 1)[0] for seed in pairs.T]
    for interval, differences in (
        (claims[0].tests[2].interval, pairs[0]),
        (claims[1].tests[0].interval, slopes),
        (claims[3].tests[1].interval, pairs.mean(0)),
    ):
        expected = scipy.stats.ttest_1samp(differences, 0)
        limits = expected.confidence_interval(0.95)
        assert interval.low == pytest.approx(limits.low)
        assert interval.high == pytest.approx(limits.high)


def test_the_table_has_gains_and_half_intervals_in_points():
    accuracies = {
        "plain": np.array([[0.5, 0.6]]),
        "kd": np.array([[0.52, 0.64]]),
        "teacher": np.array([[0.7, 0.8]]),
    }
    plain, ours, teacher = synthetic.table_rows(accuracies, (0.9,))
    half = scipy.stats.t.ppf(0.975, 1) * np.std([2, 4], ddof=1) / np.sqrt(2)
    assert ours == {"method": "kd", "delta 0.9": f"+3.00 ± {half:.2f}"}
    assert plain["delta 0.9"] == "55.0%"
    assert teacher["delta 0.9"] == "75.0%"


# -- the whole -----------------------------------------------------------------


def test_an_interrupted_study_ends_with_the_same_results(tmp_path, monkeypatch):
    """Neither the break nor what was trained before it matters.

    The folder is copied as a process killed before the second student would
    leave it.
    """
    arguments = (*SMALL, *("--method", "kd_pt_sim"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train = synthetic.SyntheticStudy._student

    def train_after_a_copy(study, method):
        if method != "plain":
            shutil.copytree(whole, cut)
        return train(study, method)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic.SyntheticStudy, "_student", train_after_a_copy)
        processes.finish(synthetic, *arguments, "--log-dir", whole)
    before = processes.results(cut)
    assert set(before) == {"teacher", "plain"}
    output = processes.finish(synthetic, *arguments, "--log-dir", cut)
    assert "teacher: done before, kept." in output
    after, expected = processes.results(cut), processes.results(whole)
    assert before.items() <= after.items()
    assert set(after) == set(expected) == {"teacher", "plain", "kd_pt_sim"}
    for name, result in after.items():
        assert result["accuracy"] == expected[name]["accuracy"]


def test_the_report_has_the_verdicts_the_figure_and_a_row_a_student(
    tmp_path, capsys
):
    with RunFolder("synthetic", {}, tmp_path) as run:
        accuracies = scores(kd_sim=(0, 0.1, 0.2), kd_pt=(0.3, 0.3, 0.3))
        options = {"deltas": DELTAS, "seeds": 10, "part": "test"}
        synthetic.report(run, accuracies, {**options, "first_seed": 2})
    output = capsys.readouterr().out
    for number, claim in enumerate(synthetic.judge(accuracies, DELTAS), 1):
        assert f"({number}) {claim.words}: {claim.verdict.upper()}." in output
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    rows = {path.name for path in tmp_path.glob("tensorboard/hparams/*-seed*")}
    assert rows == {
        f"{method}-delta{delta}-seed{seed}"
        for method in accuracies
        for delta in DELTAS
        for seed in range(2, 12)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--superclasses", 4), "--classes 6 --superclasses 4"),
        (("--batch-size", 500), "--batch-size 500"),
        (("--seeds", 1), "1 is not in the range"),
    ],
)
def test_bad_options_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in processes.refused(synthetic, *SMALL, *arguments)
    assert not list(tmp_path.iterdir())
