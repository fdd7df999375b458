"""What each part of a teacher's knowledge was worth to a student.

Each method trains a student with one part of the knowledge, or with a control
that has the smoothing of that part without its knowledge. Methods of one seed
are paired: their difference is free of what that seed did to all of them.
"""

import contextlib
import dataclasses
import functools
import json
import math
import operator
import pathlib
import re
import time

import numpy as np

from keras_kd.files import errors_naming, read_json, user_path, write_json
from keras_kd.reports import events

METHODS = (
    "plain",
    "label_smoothing",
    "kd_sim",
    "kd_pt",
    "kd_pt_sim",
    "kd_topk",
    "kd",
    "kd_sim_permuted",
    "kd_pt_shuffled",
)


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of the teacher's knowledge, and how its worth is measured.

    Attributes:
        name: of the level.
        method: the method that has it.
        baseline: the method that lacks it; or several, of which the one with
            the better mean counts.
        question: in plain words, what the difference tells.
    """

    name: str
    method: str
    baseline: str | tuple
    question: str


LEVELS = (
    Level(
        "regularisation",
        "label_smoothing",
        "plain",
        "smoothing the labels, which needs no teacher",
    ),
    Level(
        "class relations",
        "kd_sim",
        "label_smoothing",
        "spreading the smoothing over related classes",
    ),
    Level(
        "class relations",
        "kd_sim",
        "kd_sim_permuted",
        "true class relations against those of permuted classes",
    ),
    Level(
        "rescaling",
        "kd_pt",
        "label_smoothing",
        "smoothing each example by the teacher's confidence in it",
    ),
    Level(
        "rescaling",
        "kd_pt",
        "kd_pt_shuffled",
        "each example's own confidence against that of another of its class",
    ),
    Level(
        "both together",
        "kd_pt_sim",
        ("kd_pt", "kd_sim"),
        "rescaling and relations together against the better of the two",
    ),
    Level(
        "the tail",
        "kd",
        "kd_topk",
        "the teacher's probabilities beyond its largest classes",
    ),
    Level("all", "kd", "plain", "everything that the teacher gives"),
)


# -- controls ------------------------------------------------------------------


def permuted_logit_weights(weights, seed=0):
    """A logit layer whose class relations are those of other classes.

    It is the control of `KDSim`: the same similarities, and so the same
    smoothing, between the wrong classes.

    Args:
        weights: [classes, features] array, as of
            `keras_kd.similarity.logit_weights`.
        seed: integer.

    Returns:
        [classes, features] array with the same rows, none in its place.

    Raises:
        ValueError: if there are fewer than two classes.

    Example:
    >>> rows = permuted_logit_weights(kd.similarity.logit_weights(teacher))
    >>> control = kd.KDSim(logit_layer=rows)
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or len(weights) < 2:
        raise ValueError(
            "Class relations are permuted among the rows of a [classes, "
            f"features] matrix. Received: shape {weights.shape}. Pass the rows "
            "of a logit layer with at least two classes."
        )
    # Each class takes the row of the next in one random cycle through all.
    cycle = np.random.default_rng(seed).permutation(len(weights))
    permuted = np.empty_like(weights)
    permuted[cycle] = weights[np.roll(cycle, 1)]
    return permuted


def shuffle_within_labels(values, labels, seed=0):
    """Gives each example the statistic of an example of the same class.

    It is the control of `KDPt`: the same confidences in each class, and so the
    same smoothing, on the wrong examples.

    Args:
        values: [examples, ...] array, such as the statistic "label_log_odds".
        labels: [examples] integer class ids.
        seed: integer.

    Returns:
        Array of the shape and dtype of `values`.

    Raises:
        ValueError: if there is not one label for each value.

    Example:
    >>> shuffled = shuffle_within_labels(log_odds, labels)
    """
    values, labels = np.asarray(values), np.asarray(labels)
    if labels.ndim != 1 or len(values) != len(labels):
        raise ValueError(
            "Values are shuffled within the classes of one label each. "
            f"Received: values of shape {values.shape} and labels of shape "
            f"{labels.shape}. Pass one class id for each value."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # Both list the examples class by class, the second in random order.
    places = np.argsort(labels, kind="stable")
    sources = order[np.argsort(labels[order], kind="stable")]
    shuffled = np.empty_like(values)
    shuffled[places] = values[sources]
    return shuffled


# -- intervals -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of paired differences, and where it is with 95 % confidence.

    Attributes:
        mean: float; above 0 is better.
        low: float, NaN for fewer than two seeds.
        high: float.
        seeds: how many differences there were.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self):
        """A "gain" or a "loss", or "inconclusive" where it crosses 0."""
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "inconclusive"


def paired_interval(differences, confidence=0.95):
    """Student's t interval of the mean of paired differences.

    Args:
        differences: [seeds] floats.
        confidence: float in (0, 1).

    Returns:
        An `Interval`.

    Example:
    >>> paired_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., seeds=3)

    Source: Student 1908, "The Probable Error of a Mean".
    """
    differences = np.asarray(differences, "float64")
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    error = differences.std(ddof=1) / math.sqrt(count)
    half = float(t_quantile(confidence, count - 1) * error)
    return Interval(mean, mean - half, mean + half, count)


@functools.lru_cache
def t_quantile(confidence, freedom):
    """The t that |T| of Student's distribution exceeds 1 - confidence often.

    Args:
        confidence: float in (0, 1).
        freedom: degrees of freedom, an integer of at least 1.

    Returns:
        A float.
    """
    import tensorflow as tf

    def exceeding(t):
        share = freedom / (freedom + t * t)
        arguments = tf.constant([freedom / 2, 0.5, share], "float64")
        return float(tf.math.betainc(*tf.unstack(arguments)))

    low, high = 0.0, 1.0
    while exceeding(high) > 1 - confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if exceeding(middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


# -- running -------------------------------------------------------------------


def attribute(
    train,
    seeds,
    methods=METHODS,
    folder=None,
    time_budget=None,
    metric="score",
    higher_is_better=True,
    study=None,
    verbose=True,
):
    """Trains a student with each part of the knowledge, over several seeds.

    Runs go seed by seed, so that an end before time leaves whole pairs. With a
    `folder`, a call that was killed goes on where it was, and seeds and
    methods may be added later.

    Args:
        train: function of a method's name and a seed that trains one student
            and returns its score, a number, or a dict of numbers with the key
            `metric`. It must give all methods of a seed the same data, the
            same teacher and the same initial student.
        seeds: at least two integers.
        methods: names, with "plain" (no teacher) among them; names of the
            caller's own are compared with "plain" alone. For the controls see
            `permuted_logit_weights` and `shuffle_within_labels`.
        folder: optional path; keeps the result of each run.
        time_budget: optional seconds for this call; a seed, or a run, that
            would not fit is not started.
        metric: name of the score.
        higher_is_better: whether a larger score is the better one.
        study: optional dict in JSON's types of what the scores depend on; a
            folder with another one is refused.
        verbose: whether to print a line for each run.

    Returns:
        An `Attribution`.

    Raises:
        ValueError: for fewer than two seeds, seeds or methods given twice,
            methods without "plain", a folder of another study, or a score
            that is no finite number.

    Example:
    ```python
    def train(method, seed):
        keras.utils.set_random_seed(seed)
        distiller = kd.Distiller(make_student(), teacher)
        distiller.compile("adam", loss_of(method), metrics=["accuracy"])
        distiller.fit(train_data, epochs=10, verbose=0)
        return distiller.evaluate(test_data, return_dict=True, verbose=0)

    print(kd.attribute(train, range(5), folder="runs/x", metric="accuracy"))
    ```

    Source: Tang et al. 2020, section 4, which compares the same parts.
    """
    seeds, methods = [operator.index(s) for s in seeds], list(methods)
    _check_runs(seeds, methods, time_budget)
    study = {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "study": study,
    }
    runs = _Runs(folder, study)
    for method, seed in _in_budget(runs, seeds, methods, time_budget):
        began = time.perf_counter()
        score = _score(train(method, seed), metric, method, seed)
        runs.add(method, seed, score, time.perf_counter() - began)
        if verbose:
            place = f"seed {seeds.index(seed) + 1}/{len(seeds)}"
            print(f"{place} {method}: {metric} {score:.4g}", flush=True)
    scores = {
        method: {
            seed: runs.results[method, seed]
            for seed in seeds
            if (method, seed) in runs.results
        }
        for method in methods
    }
    absent = sum(len(seeds) - len(by_seed) for by_seed in scores.values())
    if absent and verbose:
        print(
            f"The time budget ended {absent} runs early. The same call with "
            "the same folder goes on."
        )
    return Attribution(scores, metric, higher_is_better)


def _in_budget(runs, seeds, methods, budget):
    """Yields what is to be run, until the next seed or run would not fit."""
    began = time.perf_counter()

    def fits(names):
        known = runs.seconds
        longest = max((max(s) for s in known.values()), default=0.0)
        needed = sum(max(known.get(name, [longest])) for name in names)
        spent = time.perf_counter() - began
        return budget is None or spent + needed <= budget

    for seed in seeds:
        missing = [m for m in methods if (m, seed) not in runs.results]
        if not fits(missing):
            return
        for method in missing:
            if not fits([method]):
                return
            yield method, seed


def _check_runs(seeds, methods, time_budget):
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            "An interval over seeds needs at least two different seeds. "
            f"Received: seeds={seeds}. Pass, for example, range(5)."
        )
    if "plain" not in methods or len(set(methods)) < len(methods):
        raise ValueError(
            'Methods must be different names with "plain" among them, which '
            f"every gain is measured from. Received: methods={methods}. Leave "
            "`methods` out for all."
        )
    bad = [m for m in methods if not re.fullmatch(r"[\w.+-]+", m)]
    if bad:
        raise ValueError(
            "A method's name becomes part of a file's name and may have "
            f"letters, digits and any of _ . + -. Received: {bad}. Rename it."
        )
    if time_budget is not None and not time_budget > 0:
        raise ValueError(
            "`time_budget` is in seconds and must be above 0. Received: "
            f"{time_budget}. Leave it out to run everything."
        )


def _score(result, metric, method, seed):
    if isinstance(result, dict):
        if metric not in result:
            raise ValueError(
                f"`train` must return a score, or a dict with {metric!r}. "
                f"Received: {sorted(result)} for {method!r}. Pass one of them "
                "as `metric`."
            )
        result = result[metric]
    try:
        score = float(result)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`train` must return a score, a number, or a dict with {metric!r}"
            f". Received: {_described(result)} for {method!r} with seed {seed}"
            ". End it with a return of the score, such as `return "
            "distiller.evaluate(test, return_dict=True)`."
        ) from error
    if not math.isfinite(score):
        raise ValueError(
            f"The score of a run must be a finite number. Received: {score} "
            f"for method {method!r} with seed {seed}. Its training may have "
            "diverged: lower its learning rate or its weight, and call again; "
            "finished runs in `folder` are kept."
        )
    return score


def _described(result):
    if result is None:
        return "None"
    text = repr(result)
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return f"{shown} of type {type(result).__name__}"


class _Runs:
    """Finished runs, in memory and in one file each."""

    def __init__(self, folder, study):
        self.results, self.seconds = {}, {}
        self.folder = folder
        if folder is None:
            return
        self.folder = pathlib.Path(user_path(folder, "folder"))
        self._claim(json.loads(json.dumps(study)))
        for path in sorted(self.folder.glob("run-*.json")):
            self._take(**_read_run(path))

    def _claim(self, study):
        path = self.folder / "study.json"
        if path.exists():
            before = read_json(
                path,
                "Remove it, if the folder's runs are of this study, or choose "
                "another `folder`.",
            )
            if before != study:
                raise ValueError(
                    f"{self.folder} holds the runs of another study. Received: "
                    f"{study}, where it has {before}. Choose another `folder`."
                )
            return
        if self.folder.exists() and self._has_other_files():
            raise ValueError(
                "The folder must be new, empty, or an earlier call's. "
                f"Received: {self.folder} with other files. Choose another "
                "`folder`."
            )
        with errors_naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, study)

    def _has_other_files(self):
        """Whether anything but runs is there, or what a killed call left."""
        ours = re.compile(r"run-.+\.json|.+\.unfinished")
        return any(not ours.fullmatch(p.name) for p in self.folder.iterdir())

    def add(self, method, seed, score, seconds):
        run = {
            "method": method,
            "seed": seed,
            "score": score,
            "seconds": seconds,
        }
        self._take(**run)
        if self.folder is not None:
            write_json(self.folder / _file_name(method, seed), run)

    def _take(self, method, seed, score, seconds):
        self.results[method, seed] = score
        self.seconds.setdefault(method, []).append(seconds)


def _read_run(path):
    """The run in a file, with all that it must hold."""
    remedy = "Remove it: its student is trained again, the others are kept."
    run = read_json(path, remedy)
    if not _is_run(run) or path.name != _file_name(**run):
        raise ValueError(
            f"The file {path} must hold one finished run, that of its name. "
            f"Received: {json.dumps(run)[:200]}. {remedy}"
        )
    return run


def _is_run(run):
    return (
        isinstance(run, dict)
        and run.keys() == {"method", "seed", "score", "seconds"}
        and isinstance(run["seed"], int)
        and all(
            isinstance(run[key], int | float) and math.isfinite(run[key])
            for key in ("score", "seconds")
        )
    )


def _file_name(method, seed, **_):
    return f"run-{method}-{seed}.json"


# -- the outcome ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against its baseline.

    Attributes:
        level: the `Level` that it measures.
        baseline: name of the one baseline that counts.
        interval: `Interval` of the gain.
    """

    level: Level
    baseline: str
    interval: Interval

    def sentence(self):
        """What it says, in plain words."""
        interval = self.interval
        names = f"{self.level.method} against {self.baseline}"
        if interval.seeds < 2:
            return f"{names}: inconclusive, {interval.seeds} paired seeds."
        words = {
            "gain": "helped",
            "loss": "hurt",
            "inconclusive": "inconclusive",
        }[interval.verdict]
        return (
            f"{names}: {interval.mean:+.3g} ({interval.low:+.3g} to "
            f"{interval.high:+.3g}): {words} ({self.level.question})."
        )


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What each level of knowledge was worth.

    Gains are above 0 where the method is better, whichever way the score
    points. Intervals are Student's t, 95 %, over the seeds that both methods
    have, each by itself: of 20 comparisons of equals, one is expected to
    exclude 0.

    Attributes:
        scores: dict by method of dicts by seed of floats.
        metric: name of the score.
        higher_is_better: boolean.

    Example:
    >>> print(attribution)
    >>> attribution.save("report.html")
    """

    scores: dict
    metric: str = "score"
    higher_is_better: bool = True

    def gain(self, method, baseline="plain"):
        """The gain of a method over another.

        Args:
            method: name.
            baseline: name.

        Returns:
            An `Interval`.
        """
        sign = 1 if self.higher_is_better else -1
        ours, theirs = self.scores[method], self.scores[baseline]
        return paired_interval(
            [sign * (ours[s] - theirs[s]) for s in ours if s in theirs]
        )

    @property
    def levels(self):
        """List of the `Comparison`s whose methods were run."""
        return [
            Comparison(level, baseline, self.gain(level.method, baseline))
            for level in LEVELS
            if (baseline := self._baseline(level)) is not None
        ]

    def _baseline(self, level):
        names = level.baseline
        names = (names,) if isinstance(names, str) else names
        run = {name for name, scores in self.scores.items() if scores}
        if not {level.method, *names} <= run:
            return None
        return max(names, key=lambda name: self.gain(name).mean)

    @property
    def findings(self):
        """List of sentences, what each level was worth."""
        return [_finding(name, group) for name, group in _by_level(self.levels)]

    def __str__(self):
        return self.to_markdown()

    def to_markdown(self):
        """The findings and tables, as text that is also Markdown."""
        findings = "\n".join(f"- {finding}" for finding in self.findings)
        return "\n\n".join(
            [
                findings,
                _markdown(self.method_rows()),
                _markdown(self.level_rows()),
            ]
        )

    def method_rows(self):
        """Table of the methods: list of dicts of strings."""
        return [
            {
                "method": method,
                f"mean {self.metric}": _mean(scores),
                "gain over plain": "-"
                if method == "plain"
                else _span(self.gain(method)),
                "seeds": str(len(scores)),
            }
            for method, scores in self.scores.items()
        ]

    def level_rows(self):
        """Table of the levels: list of dicts of strings."""
        return [
            {
                "level": comparison.level.name,
                "method": comparison.level.method,
                "against": comparison.baseline,
                "gain": _span(comparison.interval),
                "verdict": comparison.interval.verdict,
            }
            for comparison in self.levels
        ]

    def to_dict(self):
        """Everything, in JSON's types; an unknown number is `None`."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "scores": {
                method: {str(seed): score for seed, score in by_seed.items()}
                for method, by_seed in self.scores.items()
            },
            "gains": {m: _plain(self.gain(m)) for m in self.scores},
            "levels": [
                {
                    "level": c.level.name,
                    "method": c.level.method,
                    "baseline": c.baseline,
                    "gain": _plain(c.interval),
                }
                for c in self.levels
            ],
            "findings": self.findings,
        }

    def to_tensorboard(self, log_dir):
        """Writes one row a run to the HParams table; the levels and pictures.

        Args:
            log_dir: folder of the event files, written to its folder "hparams".
        """
        import tensorflow as tf

        write_hparams(
            log_dir,
            {
                f"{method}-{seed}": (
                    {"method": method, "seed": seed},
                    {self.metric: score},
                )
                for method, by_seed in self.scores.items()
                for seed, score in by_seed.items()
            },
        )
        with _writing(log_dir, "levels"):
            for name, figure in self._figures().items():
                image = figure.to_image()
                tf.summary.image(name, image[None], step=0)
            for comparison in self.levels:
                level = comparison.level
                tag = f"{level.name}/{level.method}_over_{comparison.baseline}"
                interval = dataclasses.asdict(comparison.interval)
                for key in ("mean", "low", "high"):
                    tf.summary.scalar(
                        f"{tag.replace(' ', '_')}/{key}", interval[key], step=0
                    )

    def save(self, path):
        """Writes a report: one HTML page with its pictures in it.

        Args:
            path: of a file that does not exist yet.

        Raises:
            FileExistsError: if it does.
        """
        from keras_kd.reports.page import Page

        page = Page("What each level of the teacher's knowledge was worth")
        for finding in self.findings:
            page.add_text(finding)
        captions = {
            "gains_by_level": "Gain of each level over its baseline, with 95 % "
            "intervals over seeds.",
            "gains_by_method": "Gain of each method over plain training, with "
            "95 % intervals over seeds.",
        }
        for name, figure in self._figures().items():
            page.add_figure(figure, captions[name])
        for heading, rows in (
            ("Levels", self.level_rows()),
            ("Methods", self.method_rows()),
        ):
            if rows:
                page.add_heading(heading)
                page.add_table(list(rows[0]), [list(r.values()) for r in rows])
        direction = "higher" if self.higher_is_better else "lower"
        page.add_text(
            f"Scores are {self.metric}, of which {direction} is better; a gain "
            "above 0 is an improvement. Intervals are Student's t, paired by "
            "seed, 95 % each by itself: of 20 comparisons of equals one is "
            "expected to exclude 0."
        )
        page.save(path)

    def _figures(self):
        """Figures by name; without what has fewer than two pairs."""
        from keras_kd.reports.figures import bars

        label = f"gain in {self.metric}"
        groups = {
            "gains_by_level": {
                f"{c.level.name}:\n{c.level.method} - {c.baseline}": c.interval
                for c in self.levels
            },
            "gains_by_method": {
                method: self.gain(method)
                for method in self.scores
                if method != "plain"
            },
        }
        return {
            name: bars(
                list(gains),
                [gain.mean for gain in gains.values()],
                [(gain.low, gain.high) for gain in gains.values()],
                label,
            )
            for name, group in groups.items()
            if (gains := {k: g for k, g in group.items() if g.seeds > 1})
        }


def write_hparams(log_dir, runs):
    """Writes a table of runs that TensorBoard's HParams page shows.

    Args:
        log_dir: folder of the event files, written to its folder "hparams",
            one folder a run; a table that is there is replaced.
        runs: dict by the run's name of pairs of dicts: what was chosen, and
            the numbers that came out.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    chosen = {name: None for choice, _ in runs.values() for name in choice}
    measured = {name: None for _, result in runs.values() for name in result}
    with _writing(log_dir, "."):
        api.hparams_config(
            hparams=[api.HParam(name) for name in chosen],
            metrics=[api.Metric(name) for name in measured],
        )
    for name, (choice, result) in runs.items():
        with _writing(log_dir, name):
            api.hparams(choice, trial_id=name)
            for key, value in result.items():
                tf.summary.scalar(key, value, step=0)


@contextlib.contextmanager
def _writing(log_dir, name):
    """Makes TensorFlow's summaries go to a new event file."""
    folder = pathlib.Path(user_path(log_dir, "log_dir")) / "hparams" / name
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with events.writing(folder):
        yield


def _by_level(comparisons):
    """Pairs of a level's name and its comparisons, in order."""
    groups = {}
    for comparison in comparisons:
        groups.setdefault(comparison.level.name, []).append(comparison)
    return groups.items()


def _finding(name, group):
    """What the comparisons of one level say together."""
    first, *controls = group
    if not controls:
        return f"{name.capitalize()}: {first.sentence()}"
    (control,) = controls
    verdicts = first.interval.verdict, control.interval.verdict
    together = {
        ("gain", "gain"): "worth it, and the control says that it is the "
        "knowledge",
        ("gain", "inconclusive"): "it beat label smoothing, but whether by "
        "the knowledge is inconclusive: its control may be as good",
        ("gain", "loss"): "it beat label smoothing, but not by the knowledge: "
        "its control is better",
        ("inconclusive", "gain"): "the knowledge helped against its control; "
        "against label smoothing it is inconclusive",
        ("inconclusive", "inconclusive"): "inconclusive",
        ("inconclusive", "loss"): "the knowledge hurt against its control",
        ("loss", "gain"): "worse than label smoothing, although the knowledge "
        "helped against its control",
        ("loss", "inconclusive"): "worse than label smoothing",
        ("loss", "loss"): "worse than label smoothing and than its control",
    }[verdicts]
    return (
        f"{name.capitalize()}: {together}. {first.sentence()} "
        f"{control.sentence()}"
    )


def _mean(scores):
    return f"{np.mean(list(scores.values())):.4g}" if scores else "-"


def _span(interval):
    if interval.seeds < 2:
        return "-"
    return f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"


def _plain(interval):
    return {
        **{
            key: None
            if isinstance(value, float) and math.isnan(value)
            else value
            for key, value in dataclasses.asdict(interval).items()
        },
        "verdict": interval.verdict,
    }


def _markdown(rows):
    """Aligned columns, readable as they are."""
    if not rows:
        return ""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
