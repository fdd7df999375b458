"""Which part of a teacher's knowledge helps, where the truth is known?

The synthetic study of Tang et al. 2020 ("Understanding and Improving Knowledge
Distillation"): classes in superclasses whose correlation delta is chosen, a
wide teacher, a narrow student, and each part of the teacher's knowledge alone.
It ends with a figure and a verdict on each of the paper's four claims.

    python recipes/synthetic.py

takes about two minutes of processor time. The students of all seeds and deltas
are trained side by side in one model, so that a method is compiled once. Gains
are paired by seed: within a seed, all methods have the same data, teacher,
initial student and batches.
"""

import study.quiet  # noqa: F401

# isort: split
import dataclasses
import time

import click
import keras
import numpy as np
from data import synthetic as data
from keras import ops
from matplotlib import figure
from study.messages import errors_as_messages
from study.options import log_dir, not_negative, positive, random_seed
from study.run_folder import load_model, open_run
from study.table import print_table

import keras_kd as kd
from keras_kd.attribution import (
    paired_interval,
    permuted_logit_weights,
    shuffle_within_labels,
    write_hparams,
)
from keras_kd.attribution.methods import CrossEntropy

# Tuned on validation examples of seeds 100 to 103, which no run reports, for
# the mean accuracy over deltas 0 and 0.9. So few examples want much smoothing:
# each method's own amount, and not only label smoothing's, is part of that.
_SETTINGS = {
    "label_smoothing": {"smoothing": 0.8},
    "kd_sim": {"weight": 1.0, "temperature": 1.0, "label_mass": 0.25},
    "kd_pt": {"weight": 1.0, "temperature": 16.0},
    "kd_pt_sim": {
        "pt_weight": 0.3,
        "sim_weight": 0.7,
        "temperature": 4.0,
        "label_mass": 0.2,
    },
    "kd_topk": {"weight": 1.0, "temperature": 4.0, "k": 0.25},
    # As many classes as KD-topk keeps, though half of them would be better.
    "kd_sampled": {"weight": 1.0, "temperature": 4.0, "k": 0.25, "seed": 0},
    "kd": {"weight": 1.0, "temperature": 4.0},
    "dkd": {"weight": 1.0, "temperature": 2.0, "beta": 1.0},
    # Prototypes are too much alike to tell classes apart at beta 1.
    "rho_sim": {
        "weight": 1.0,
        "temperature": 1.0,
        "label_mass": 0.25,
        "beta": 16.0,
    },
    "rho_pt": {"weight": 1.0, "temperature": 1.0},
}
# The confidences of the teacher that knows only difficulty are drawn from here.
_CONFIDENCES = (0.05, 0.45)
# The controls, and the teachers that know one thing and know it exactly, use
# the loss of a method with other knowledge; a control uses its settings too.
_LOSS_OF = {
    "kd_sim_permuted": "kd_sim",
    "kd_pt_shuffled": "kd_pt",
    "rho_sim": "kd_sim",
    "rho_pt": "kd_pt",
}
METHODS = (
    "plain",
    *("label_smoothing", "kd_sim", "kd_pt", "kd_pt_sim", "kd_topk"),
    *("kd_sampled", "kd", "dkd"),
    *_LOSS_OF,
)
_FULL = {
    "methods": METHODS,
    "deltas": (0.0, 0.3, 0.6, 0.9),
    "seeds": 10,
    "train_examples": 2000,
    "test_examples": 4000,
    "epochs": 60,
}
_QUICK = {
    "methods": METHODS[: -len(_LOSS_OF)],
    "deltas": (0.0, 0.9),
    "seeds": 3,
    "train_examples": 1000,
    "test_examples": 1000,
    "epochs": 30,
}
_JUDGED = {"label_smoothing", "kd_sim", "kd_pt", "kd_pt_sim"}
_SEEDS_FOR_A_VERDICT = 10


def _sized(*flags, help, **kwargs):
    """An option whose default depends on --quick."""
    name = flags[-1].lstrip("-").replace("-", "_")
    full, quick = _FULL[name], _QUICK[name]
    if isinstance(full, tuple):
        full, quick = (" ".join(map(str, v)) for v in (full, quick))
    return click.option(
        *flags, help=f"{help} [default: {full}; --quick: {quick}]", **kwargs
    )


@click.command(context_settings={"show_default": True})
@_sized(
    "--delta",
    "deltas",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="Correlation of the classes in a superclass; may be given several "
    "times.",
)
@_sized("--seeds", type=click.IntRange(min=2), help="How many.")
@click.option("--first-seed", type=random_seed, default=0)
@click.option("--classes", type=positive, default=20)
@click.option("--superclasses", type=positive, default=5, help="Of equal size.")
@_sized("--train-examples", type=positive, help="A seed.")
@_sized("--test-examples", type=positive, help="A seed; also for validation.")
@click.option(
    "--noise",
    type=click.FloatRange(0, min_open=True),
    default=0.4,
    help="Temperature that labels are drawn at.",
)
@click.option("--teacher-units", type=positive, default=512)
@click.option("--student-units", type=positive, default=32)
@click.option("--teacher-epochs", type=positive, default=15)
@_sized("--epochs", type=positive, help="Of the students.")
@click.option("--batch-size", type=positive, default=200)
@click.option("--teacher-learning-rate", type=not_negative, default=0.003)
@click.option("--learning-rate", type=not_negative, default=0.01)
@click.option(
    "--teacher-weight-decay",
    type=not_negative,
    default=0.4,
    help="Keeps the teachers from being sure of every training example.",
)
@click.option(
    "--part",
    type=click.Choice(("validation", "test")),
    default="test",
    help="Examples that accuracies are measured on.",
)
@_sized(
    "--method",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    help="May be given several times; plain is always trained.",
)
@click.option("--quick", is_flag=True, help="A small study, in a minute.")
@log_dir
def main(quick, log_dir, **options):
    """Sweeps the correlation of classes, and judges the paper's claims."""
    for name, value in (_QUICK if quick else _FULL).items():
        options[name] = options[name] or value
    options["deltas"] = sorted(set(options["deltas"]))
    # A folder's results can be added to; every gain is over plain.
    chosen = {"plain", *options.pop("methods")}
    methods = [method for method in METHODS if method in chosen]
    with errors_as_messages():
        _check(options)
        config = {
            **options,
            "settings": _SETTINGS,
            "confidences": _CONFIDENCES,
        }
        run = open_run("synthetic", config, log_dir)
        click.echo(f"Run folder: {run.folder}")
        students = SyntheticStudy(run, options)
        students.train_all(methods)
        report(run, students.scores(methods), options)


def _check(options):
    classes, superclasses = options["classes"], options["superclasses"]
    if classes % superclasses:
        raise ValueError(
            "Superclasses have the same number of classes. Received: --classes "
            f"{classes} --superclasses {superclasses}. Choose a multiple."
        )
    if options["batch_size"] > options["train_examples"]:
        raise ValueError(
            "There must be an example for each place of a batch. Received: "
            f"--train-examples {options['train_examples']} --batch-size "
            f"{options['batch_size']}. Lower --batch-size."
        )


# -- training ------------------------------------------------------------------


class SyntheticStudy:
    """Trains teachers, and students with each method.

    Args:
        run: a `RunFolder`.
        options: dict of the command's options.
    """

    def __init__(self, run, options):
        self.run = run
        self.options = options
        first = options["first_seed"]
        self.pairs = [
            (delta, seed)
            for delta in options["deltas"]
            for seed in range(first, first + options["seeds"])
        ]
        test = options["test_examples"]
        self.problems = [
            data.make_problem(
                delta,
                seed,
                options["classes"],
                options["superclasses"],
                (options["train_examples"], test, test),
                options["noise"],
            )
            for delta, seed in self.pairs
        ]
        self.train = data.side_by_side(self.problems, "train")
        self.held_out = data.side_by_side(self.problems, options["part"])

    def train_all(self, methods):
        """Trains what is not there yet; results go to the run folder.

        Args:
            methods: names out of `METHODS`.
        """
        self.run.train_once("teacher", self._train_teachers)
        self._read_teachers()
        for method in methods:
            self.run.train_once(method, lambda m=method: self._student(m))

    def scores(self, methods):
        """Dict by name, "teacher" too, of [deltas, seeds] accuracies."""
        return {
            name: np.array(self.run.results[name]["accuracy"])
            for name in (*methods, "teacher")
        }

    def _train_teachers(self):
        networks, result = self._fit("teacher", CrossEntropy(), {})
        self.run.save(networks, "teacher")
        return result

    def _read_teachers(self):
        """What a loss may ask of the teachers, once for all students."""
        teachers = load_model(self.run.model("teacher"))
        self.teacher_logits = teachers.predict(
            self.train.inputs, batch_size=1000, verbose=0
        )
        kernels = ops.convert_to_numpy(teachers.get_layer("logits").kernel)
        self.logit_rows = np.swapaxes(kernels, 1, 2)

    def _student(self, method):
        loss = self.loss(method)
        _, result = self._fit("student", loss, self.statistics(method, loss))
        return result

    def _fit(self, role, loss, statistics):
        """Trains all networks of a role; returns them and their result."""
        options = self.options
        prefix = "teacher_" if role == "teacher" else ""
        epochs = options[f"{prefix}epochs"]
        steps = options["train_examples"] // options["batch_size"]
        keras.utils.set_random_seed(options["first_seed"])
        networks = make_networks(
            count=len(self.pairs),
            features=self.train.inputs.shape[-1],
            units=options[f"{role}_units"],
            classes=options["classes"],
            seed=options["first_seed"],
        )
        on_torch = keras.backend.backend() == "torch"
        distiller = kd.Distiller(networks, gradient_scale=False)
        distiller.compile(
            optimizer=keras.optimizers.AdamW(
                keras.optimizers.schedules.CosineDecay(
                    options[f"{prefix}learning_rate"], epochs * steps
                ),
                weight_decay=options.get(f"{prefix}weight_decay", 0.0),
            ),
            loss=loss,
            # Keras runs neither on PyTorch.
            jit_compile=not on_torch,
            steps_per_execution=1 if on_torch else steps,
        )
        began = time.perf_counter()
        # Full batches alone: another shape would be compiled once more.
        used = steps * options["batch_size"]
        targets = {"labels": self.train.labels, **statistics}
        distiller.fit(
            self.train.inputs[:used],
            {name: value[:used] for name, value in targets.items()},
            batch_size=options["batch_size"],
            epochs=epochs,
            verbose=0,
        )
        accuracy = self._accuracy(networks)
        seconds = time.perf_counter() - began
        click.echo(f"  {accuracy.mean():.1%} in {seconds:.0f} s")
        return networks, {
            "accuracy": accuracy.tolist(),
            "seconds": round(seconds, 1),
        }

    def _accuracy(self, networks):
        logits = networks.predict(
            self.held_out.inputs, batch_size=1000, verbose=0
        )
        correct = logits.argmax(-1) == self.held_out.labels
        return correct.mean(0).reshape(-1, self.options["seeds"])

    # -- knowledge ---------------------------------------------------------

    def loss(self, method, **settings):
        """The loss of a method, for all students at once.

        Args:
            method: name out of `METHODS`.
            **settings: instead of the tuned ones.

        Returns:
            A `keras_kd.losses.DistillationLoss`.
        """
        if method == "plain":
            return CrossEntropy()
        name = _LOSS_OF.get(method, method)
        settings = settings or _SETTINGS.get(method) or _SETTINGS[name]
        if name not in ("kd_sim", "kd_pt_sim"):
            return kd.losses.get(name, **settings)
        losses = [
            kd.losses.get(name, logit_layer=rows, **settings)
            for rows in self._class_rows(method)
        ]
        loss = losses[0]
        loss.class_similarity = ManyClassSimilarities(
            [each.class_similarity for each in losses], self.options["classes"]
        )
        return loss

    def _class_rows(self, method):
        """For each student, the rows that class relations are read from."""
        if method == "rho_sim":
            return [problem.prototypes for problem in self.problems]
        if method == "kd_sim_permuted":
            return [
                permuted_logit_weights(rows, seed)
                for rows, (_, seed) in zip(
                    self.logit_rows, self.pairs, strict=True
                )
            ]
        return self.logit_rows

    def statistics(self, method, loss):
        """What the loss needs of the teachers, for every training example.

        Args:
            method: name out of `METHODS`.
            loss: its loss.

        Returns:
            Dict of arrays of shape [examples, students, ...].
        """
        if method == "rho_pt":
            log_odds = [
                log_odds_by_difficulty(confidence, seed)
                for confidence, (_, seed) in zip(
                    self.train.confidence.T, self.pairs, strict=True
                )
            ]
            return {"label_log_odds": np.stack(log_odds, axis=1)}
        if method == "kd_sampled":
            # The classes are drawn again in each step.
            return {"teacher_logits": self.teacher_logits}
        statistics = loss.teacher_statistics(
            self.train.labels, self.teacher_logits
        )
        statistics = {k: np.asarray(v) for k, v in statistics.items()}
        if method == "kd_pt_shuffled":
            statistics["label_log_odds"] = self._shuffled(
                statistics["label_log_odds"]
            )
        return statistics

    def _shuffled(self, values):
        columns = [
            shuffle_within_labels(column, labels, seed)
            for column, labels, (_, seed) in zip(
                values.T, self.train.labels.T, self.pairs, strict=True
            )
        ]
        return np.stack(columns, axis=1)


def make_networks(count, features, units, classes, seed):
    """Independent classifiers side by side, trained in one step.

    Args:
        count: number of classifiers.
        features: number of inputs.
        units: width of the hidden layer.
        classes: number of logits.
        seed: of the initial weights.

    Returns:
        A `keras.Model` from [batch, count, features] to
        [batch, count, classes].
    """

    def layer(inputs, outputs, gain, **kwargs):
        return keras.layers.EinsumDense(
            "bnf,nfu->bnu",
            output_shape=(count, outputs),
            bias_axes="nu",
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=np.sqrt(gain / inputs), seed=seed
            ),
            **kwargs,
        )

    return keras.Sequential(
        [
            keras.Input((count, features)),
            layer(features, units, 2.0, activation="relu"),
            layer(units, classes, 1.0, name="logits"),
        ]
    )


class ManyClassSimilarities:
    """The class relations of several teachers, each for its own student.

    It takes the place of a loss's one `ClassSimilarity`.

    Args:
        similarities: list of `ClassSimilarity`, one a student.
        classes: integer.
    """

    def __init__(self, similarities, classes):
        labels = np.arange(classes)
        tables = [each.target(labels, classes) for each in similarities]
        self._probabilities, self._off_label = (
            keras.Variable(ops.concatenate(parts), trainable=False)
            for parts in zip(*tables, strict=True)
        )
        self._first_rows = np.arange(len(tables), dtype="int32") * classes

    @property
    def variables(self):
        """What `target` reads; see `DistillationLoss.variables`."""
        return [self._probabilities, self._off_label]

    def bind_teacher(self, teacher, num_classes=None):
        """Does nothing: all relations are known."""

    def target(self, labels, num_classes):
        """See `ClassSimilarity.target`; labels are [batch, students]."""
        rows = ops.add(ops.clip(labels, 0, num_classes - 1), self._first_rows)
        return (
            ops.take(self._probabilities, rows, axis=0),
            ops.take(self._off_label, rows, axis=0),
        )


def log_odds_by_difficulty(confidence, seed):
    """A teacher that knows nothing but how hard each example is.

    Args:
        confidence: [examples], the true probability of the label.
        seed: integer.

    Returns:
        [examples] float32 log-odds of probabilities drawn evenly between
        `_CONFIDENCES`, the larger the likelier the label is.
    """
    random = np.random.default_rng(seed)
    drawn = np.sort(random.uniform(*_CONFIDENCES, len(confidence)))
    ranks = np.argsort(np.argsort(confidence, kind="stable"), kind="stable")
    return np.log(drawn / (1 - drawn))[ranks].astype("float32")


# -- claims --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Test:
    """A difference between two methods, paired by seed.

    Attributes:
        words: what is measured.
        interval: `keras_kd.attribution.Interval`.
        claimed: whether the claim is a gain, or that there is none.
    """

    words: str
    interval: object
    claimed: bool = True


@dataclasses.dataclass(frozen=True)
class Claim:
    """One of the paper's claims.

    Attributes:
        words: the claim.
        tests: list of `Test`, all of which must come out as claimed.
    """

    words: str
    tests: list

    @property
    def verdict(self):
        """Confirmed, refuted or inconclusive."""
        outcomes = [(t.claimed, t.interval.verdict) for t in self.tests]
        if {(True, "loss"), (False, "gain")} & set(outcomes):
            return "refuted"
        if (True, "inconclusive") in outcomes:
            return "inconclusive"
        return "confirmed"


# The claims as (method, other method, where, whether a gain is claimed): at the
# lowest or the highest delta, over all, or of the slope over delta. KD-sim and
# KD-pt are held against label smoothing: a gain that smoothing without a
# teacher brings as well is not knowledge of the teacher.
_CLAIMS = {
    "With uncorrelated classes KD-pt gains and KD-sim does not": (
        ("kd_pt", "label_smoothing", "low", True),
        ("kd_pt", "kd_sim", "low", True),
        ("kd_sim", "label_smoothing", "low", False),
    ),
    "KD-sim's gain grows with delta": (
        ("kd_sim", "label_smoothing", "slope", True),
    ),
    "KD-pt+sim gains more than either at high delta": (
        ("kd_pt_sim", "kd_pt", "high", True),
        ("kd_pt_sim", "kd_sim", "high", True),
    ),
    "Re-weighting is worth more than class relations, and these more than "
    "label smoothing": (
        ("kd_pt", "kd_sim", "all", True),
        ("kd_sim", "label_smoothing", "all", True),
    ),
}
_WORDS = {
    "label_smoothing": "label smoothing",
    "kd_sim": "KD-sim",
    "kd_pt": "KD-pt",
    "kd_pt_sim": "KD-pt+sim",
}


def judge(scores, deltas):
    """The paper's four claims, each tested on pairs of methods by seed.

    Args:
        scores: dict by method of [deltas, seeds] accuracies.
        deltas: correlations.

    Returns:
        List of `Claim`.
    """
    deltas = np.array(deltas)
    low, high = deltas.argmin(), deltas.argmax()
    centred = deltas - deltas.mean()
    # Each as weights of the deltas, and in words.
    places = {
        "low": (np.eye(len(deltas))[low], "{}, delta " + f"{deltas[low]}"),
        "high": (np.eye(len(deltas))[high], "{}, delta " + f"{deltas[high]}"),
        "all": (np.full(len(deltas), 1 / len(deltas)), "{}, all deltas"),
        "slope": (centred / (centred @ centred), "slope over delta of {}"),
    }

    def test(method, other, place, claimed):
        weights, words = places[place]
        gain = paired_interval(weights @ (scores[method] - scores[other]))
        pair = f"{_WORDS[method]} over {_WORDS[other]}"
        return Test(words.format(pair), gain, claimed)

    return [
        Claim(words, [test(*each) for each in tests])
        for words, tests in _CLAIMS.items()
    ]


# -- what comes out ------------------------------------------------------------

_PANELS = {
    "What the teacher's knowledge gives": (
        "label_smoothing",
        "kd_sim",
        "kd_pt",
        "kd_pt_sim",
        "kd_topk",
        "kd_sampled",
        "kd",
        "dkd",
    ),
    "Controls (dotted), teachers of one effect (dashed)": (
        "kd_sim",
        "kd_sim_permuted",
        "rho_sim",
        "kd_pt",
        "kd_pt_shuffled",
        "rho_pt",
    ),
}
# One colour for each kind of knowledge, safe for the colour-blind.
_COLOURS = {
    "label_smoothing": "#777777",
    "kd_sim": "#0072b2",
    "kd_pt": "#d55e00",
    "kd_pt_sim": "#009e73",
    "kd_topk": "#cc79a7",
    "kd_sampled": "#e69f00",
    "kd": "#000000",
    "dkd": "#56b4e9",
}


def report(run, scores, options):
    """Prints the table and the verdicts; writes them, a figure and the runs.

    Args:
        run: a `RunFolder`.
        scores: dict by method, "teacher" too, of [deltas, seeds] accuracies.
        options: dict of the command's options.
    """
    deltas = options["deltas"]
    rows = table_rows(scores, deltas)
    title = (
        f"Gain in {options['part']} accuracy over plain, in points "
        f"({options['seeds']} seeds, 95 % intervals paired by seed)"
    )
    print_table(title, rows)
    if _JUDGED <= set(scores) and len(deltas) > 1:
        claims = judge(scores, deltas)
        click.echo("\n".join(claim_lines(claims, options["seeds"])))
    draw(scores, deltas, run.folder / "gains.png")
    write_runs(run.tensorboard, scores, options)
    click.echo(f"{run.folder / 'gains.png'}")
    run.echo_tensorboard()


def table_rows(scores, deltas):
    """List of dicts of strings, a row for each method.

    Args:
        scores: dict by method of [deltas, seeds] accuracies.
        deltas: correlations.
    """

    def cell(method, i):
        if method in ("plain", "teacher"):
            return f"{scores[method][i].mean():.1%}"
        gain = paired_interval(100 * (scores[method] - scores["plain"])[i])
        return f"{gain.mean:+.2f} ± {gain.high - gain.mean:.2f}"

    return [
        {
            "method": method,
            **{f"delta {d}": cell(method, i) for i, d in enumerate(deltas)},
        }
        for method in scores
    ]


def claim_lines(claims, seeds):
    """The verdicts with their evidence, as lines of text.

    Args:
        claims: list of `Claim`.
        seeds: how many there were.
    """
    lines = []
    for number, claim in enumerate(claims, 1):
        lines.append(f"({number}) {claim.words}: {claim.verdict.upper()}.")
        for test in claim.tests:
            mean, low, high = (
                100 * value
                for value in (
                    test.interval.mean,
                    test.interval.low,
                    test.interval.high,
                )
            )
            claimed = "" if test.claimed else " (claimed: none)"
            lines.append(
                f"    {test.words}: {mean:+.2f} points "
                f"[{low:+.2f}, {high:+.2f}]{claimed}"
            )
    if seeds < _SEEDS_FOR_A_VERDICT:
        lines.append(
            f"Of {seeds} seeds; a verdict takes {_SEEDS_FOR_A_VERDICT}."
        )
    return lines


def draw(scores, deltas, path):
    """The figure of gains against delta, with intervals.

    Args:
        scores: dict by method of [deltas, seeds] accuracies.
        deltas: correlations.
        path: of the PNG.
    """
    canvas = figure.Figure(figsize=(10, 5), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    step = 0.006 * (max(deltas) - min(deltas) or 1)
    for axis, (title, methods) in zip(axes, _PANELS.items(), strict=True):
        methods = [m for m in methods if m in scores]
        for i, method in enumerate(methods):
            gains = [
                paired_interval(100 * row)
                for row in scores[method] - scores["plain"]
            ]
            mean = np.array([gain.mean for gain in gains])
            # Side by side, so that the intervals can be told apart.
            axis.errorbar(
                np.array(deltas) + (i - len(methods) / 2) * step,
                mean,
                yerr=np.array([gain.high for gain in gains]) - mean,
                label=method,
                color=_COLOURS[_LOSS_OF.get(method, method)],
                linestyle=_line_style(method),
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.5,
            )
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set(title=title, xlabel="correlation delta in a superclass")
        axis.set_xticks(deltas)
        if not methods:
            continue
        axis.legend(
            frameon=False,
            fontsize=9,
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gain over plain, points of accuracy")
    canvas.savefig(path, dpi=150)


def _line_style(method):
    if method.startswith("rho"):
        return "--"
    return ":" if method in _LOSS_OF else "-"


def write_runs(log_dir, scores, options):
    """One row of TensorBoard's HParams for each student of each seed.

    Args:
        log_dir: path.
        scores: dict by method of [deltas, seeds] accuracies.
        options: dict of the command's options.
    """
    runs = {}
    for method, accuracies in scores.items():
        for i, delta in enumerate(options["deltas"]):
            for j, accuracy in enumerate(accuracies[i]):
                seed = options["first_seed"] + j
                runs[f"{method}-delta{delta}-seed{seed}"] = (
                    {"method": method, "delta": delta, "seed": seed},
                    {"accuracy": float(accuracy)},
                )
    write_hparams(log_dir, runs)


if __name__ == "__main__":
    main()
