"""What an attribution found: gains, verdicts, findings and tables."""

import dataclasses
import functools
import math

import numpy as np

from keras_kd.attribution import report
from keras_kd.attribution.intervals import Interval, holm, paired_interval
from keras_kd.attribution.levels import LEVELS, Level
from keras_kd.reports import numbers, tables
from keras_kd.reports.page import Reported

# Of comparisons that survive the correction for their number.
_SIGNIFICANT = 0.05
# Scores are often of 32 bits: differences below this share are rounding.
_ROUNDING = 4 * float(np.finfo("float32").eps)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against its baseline.

    Attributes:
        method: name.
        baseline: name of the baseline that counts.
        interval: `Interval` of the gain.
        adjusted_p_value: by Holm's correction for all comparisons; NaN where
            there is no interval.
        comparisons: number of comparisons that it is corrected for.
        level: the `Level` that it measures, or `None`.
        unit: `keras_kd.reports.numbers.Unit` of the gain.
    """

    method: str
    baseline: str
    interval: Interval
    adjusted_p_value: float = math.nan
    comparisons: int = 1
    level: Level | None = None
    unit: numbers.Unit = numbers.PLAIN

    @property
    def verdict(self):
        """A "gain" or "loss" that survives the correction; "inconclusive"."""
        survives = self.adjusted_p_value <= _SIGNIFICANT
        return self.interval.verdict if survives else "inconclusive"

    @property
    def words(self):
        """The verdict in a table, where it says what excludes 0 alone."""
        if self.verdict == self.interval.verdict:
            return self.verdict
        return f"{self.interval.verdict} before correction"

    def sentence(self):
        """What it says, in plain words."""
        interval = self.interval
        names = f"{self.method} against {self.baseline}"
        if interval.seeds < 2:
            return (
                f"{names}: inconclusive, paired seeds: {interval.seeds} of the "
                "two or more that it takes."
            )
        mean, *ends = self.unit.gain(interval.mean, interval.low, interval.high)
        gain = f"{mean} {self.unit.of_gains}".strip()
        if not ends:
            return (
                f"{names}: {gain} with each of {interval.seeds} seeds: "
                "inconclusive, as seeds that agree exactly don't say how far "
                "apart others are."
            )
        alone = "" if interval.examples else ", over seeds alone"
        of = f" ({self.level.question})" if self.level else ""
        return (
            f"{names}: {gain} ({' to '.join(ends)}{alone}): "
            f"{self.judged('helped', 'hurt')}{of}."
        )

    def judged(self, gain, loss):
        """The verdict in a sentence.

        Args:
            gain: words for a gain.
            loss: words for a loss.

        Returns:
            A string, of what is inconclusive with the reason.
        """
        if self.verdict != "inconclusive":
            return gain if self.verdict == "gain" else loss
        if self.interval.verdict == "inconclusive":
            return "inconclusive"
        return (
            f"inconclusive, a {self.interval.verdict} by itself that does not "
            f"survive the correction for {self.comparisons} comparisons"
        )


@dataclasses.dataclass(frozen=True)
class Attribution(Reported):
    """What each level of knowledge was worth.

    Gains are above 0 where the method is better, whichever way the score
    points. Their intervals are of 95 %, each by itself; findings rest on what
    survives Holm's correction for the number of comparisons. Where the score
    of each test example is known, an interval holds what another seed and
    what another test set would change, and otherwise another seed alone: see
    `paired_interval`. Where a score is exp of a mean, such as a perplexity,
    logarithms are compared, and the gain is told at the baseline's score:
    gains and means are of geometric means over the seeds.

    Attributes:
        scores: dict by method of dicts by seed of floats.
        metric: name of the score.
        higher_is_better: boolean.
        results: optional dict by method of dicts by seed of dicts, all that
            a run returned, such as "examples"; see `attribute`.
        teacher_similarity: optional [classes, classes] cosines of the
            teacher's logit layer.
        superclasses: optional [classes] integers.
        pairs: further pairs of a method and a baseline that are compared, and
            corrected for, beside the levels and every method over "plain".
        diverged: optional dict by method of dicts by seed of why a run has no
            score.

    Example:
    >>> print(attribution)
    >>> attribution.save("report.html")
    """

    scores: dict
    metric: str = "score"
    higher_is_better: bool = True
    results: dict = dataclasses.field(default_factory=dict, repr=False)
    teacher_similarity: object = dataclasses.field(default=None, repr=False)
    superclasses: object = dataclasses.field(default=None, repr=False)
    pairs: tuple = ()
    diverged: dict = dataclasses.field(default_factory=dict, repr=False)

    def gain(self, method, baseline="plain"):
        """The gain of one method over another, by itself.

        Args:
            method: name.
            baseline: name.

        Returns:
            An `Interval`, whose verdict is not corrected for other
            comparisons: see `comparison`.
        """
        pair = method, baseline
        if pair not in self._gains:
            self._gains[pair] = self._compared(*pair)
        return self._gains[pair]

    @functools.cached_property
    def _gains(self):
        """The gains that were asked for, by (method, baseline)."""
        return {}

    def _compared(self, method, baseline):
        sign = 1 if self.higher_is_better else -1
        ours, theirs = self.scores[method], self.scores[baseline]
        seeds = [seed for seed in ours if seed in theirs]
        examples = self._examples(method, baseline, seeds)
        if examples is not None:
            return _gain_of_examples(sign, *examples)
        pairs = np.array([(ours[s], theirs[s]) for s in seeds], "float64")
        pairs = pairs.reshape(-1, 2)
        differences = sign * (pairs[:, 0] - pairs[:, 1])
        rounding = _ROUNDING * np.abs(pairs).max(initial=0.0)
        if seeds and np.ptp(differences) <= rounding:
            differences[:] = differences.mean()
        differences[np.abs(differences) <= rounding] = 0.0
        return paired_interval(differences)

    def _examples(self, method, baseline, seeds):
        """Both [seeds, examples], and how a score follows; or `None`."""
        found = [
            [self.results.get(name, {}).get(seed, {}) for seed in seeds]
            for name in (method, baseline)
        ]
        if not seeds or not all(
            "examples" in r for runs in found for r in runs
        ):
            return None
        ours, theirs = (
            np.array([run["examples"] for run in of_method], "float64")
            for of_method in found
        )
        return ours, theirs, found[0][0].get("examples_of", "mean")

    @property
    def levels(self):
        """List of the `Comparison`s of levels whose methods were run."""
        return [each for each in self.comparisons if each.level is not None]

    @functools.cached_property
    def comparisons(self):
        """List of all `Comparison`s, those of the levels first.

        The others are of methods against "plain" which no level compares, and
        of further `pairs`.
        """
        pairs = [
            (level, level.method, baseline)
            for level in LEVELS
            if (baseline := self._baseline(level)) is not None
        ]
        compared = {(method, baseline) for _, method, baseline in pairs}
        others = [(m, "plain") for m in self.scores if m != "plain"]
        pairs += [
            (None, *pair)
            for pair in [*others, *map(tuple, self.pairs)]
            if pair not in compared
        ]
        gains = [self.gain(method, baseline) for _, method, baseline in pairs]
        adjusted = holm([gain.p_value for gain in gains])
        tests = sum(gain.is_known for gain in gains)
        return [
            Comparison(method, baseline, gain, p, tests, level, self.unit)
            for (level, method, baseline), gain, p in zip(
                pairs, gains, adjusted, strict=True
            )
        ]

    def comparison(self, method, baseline="plain"):
        """One method against another, corrected for all comparisons.

        Args:
            method: name.
            baseline: name.

        Returns:
            The `Comparison`; of two that are not compared otherwise, either
            way round, corrected for one comparison more.
        """
        for found in self.comparisons:
            if (found.method, found.baseline) == (method, baseline):
                return found
        for found in self.comparisons:
            if (found.baseline, found.method) == (method, baseline):
                return dataclasses.replace(
                    found,
                    method=method,
                    baseline=baseline,
                    interval=self.gain(method, baseline),
                    level=None,
                )
        pairs = (*self.pairs, (method, baseline))
        whole = dataclasses.replace(self, pairs=pairs)
        return whole.comparison(method, baseline)

    def _baseline(self, level):
        names = level.baseline
        names = (names,) if isinstance(names, str) else names
        run = {name for name, scores in self.scores.items() if scores}
        if not {level.method, *names} <= run:
            return None
        return max(names, key=lambda name: self.gain(name).mean)

    @property
    def unit(self):
        """The `keras_kd.reports.numbers.Unit` that scores are shown in."""
        scores = [
            s for by_seed in self.scores.values() for s in by_seed.values()
        ]
        shares = all(0 <= score <= 1 for score in scores)
        named = "acc" in self.metric.lower()
        return numbers.POINTS if named and shares else numbers.PLAIN

    @functools.cached_property
    def _is_geometric(self):
        """Whether gains are of geometric means: of scores exp of a mean."""
        kinds = [
            self.results.get(method, {}).get(seed, {}).get("examples_of")
            for method, by_seed in self.scores.items()
            for seed in by_seed
        ]
        return bool(kinds) and all(kind == "exp_mean" for kind in kinds)

    @property
    def mean_name(self):
        """What `mean` is: "mean" or "geometric mean"."""
        return "geometric mean" if self._is_geometric else "mean"

    def mean(self, values):
        """The mean of scores whose differences the gains are.

        Args:
            values: iterable of floats, or of arrays.

        Returns:
            A float or an array.
        """
        values = np.array(list(values), "float64")
        if self._is_geometric:
            return np.exp(np.log(values).mean(0))
        return values.mean(0)

    @property
    def findings(self):
        """List of sentences, what each level was worth, and what diverged."""
        found = [
            _finding(name, group) for name, group in _by_level(self.levels)
        ]
        return [*found, *filter(None, [self.left_out])]

    @property
    def left_out(self):
        """A sentence on runs that diverged; `None` if there are none."""
        if not self.diverged:
            return None
        runs = "; ".join(
            f"{method} with {numbers.plural(len(by_seed), 'seed')} "
            f"{', '.join(map(str, by_seed))}"
            for method, by_seed in self.diverged.items()
        )
        return (
            f"Left out, as training diverged: {runs}. Gains are of the other "
            "seeds alone, so that a method that diverges looks better than it "
            "is."
        )

    @property
    def note(self):
        """What the intervals hold, how many there are and what survives."""
        known = [c for c in self.comparisons if c.interval.is_known]
        alone = sum(c.interval.verdict != "inconclusive" for c in known)
        survive = sum(c.verdict != "inconclusive" for c in known)
        direction = "higher" if self.higher_is_better else "lower"
        text = (
            f"Scores are {self.metric}; {direction} is better, and a gain "
            "above 0 is an improvement. "
        )
        if self._is_geometric:
            text += "Gains are differences of geometric means. "
        if not known:
            paired = any(c.interval.seeds > 1 for c in self.comparisons)
            return text + (
                "There are no intervals, as seeds agree exactly."
                if paired
                else "No two methods have two seeds in common yet."
            )
        over = {c.interval.over for c in known}
        holds = {
            True: "both another seed and another test set would change",
            False: "another seed would change, and not another test set, as "
            "the scores of its examples are not known",
        }
        if len(over) == 1:
            text += f"Intervals hold what {holds[over != {'seeds'}]}."
        else:
            text += "Some intervals are over seeds alone."
        return text + (
            f" Comparisons: {len(known)}; excluding 0 at 95 %, each by itself: "
            f"{alone} (one in 20 between equals would); surviving Holm's "
            f"correction for {len(known)}: {survive}."
        )

    def to_markdown(self):
        """The findings and tables, as text that is also Markdown."""
        findings = "\n".join(f"- {finding}" for finding in self.findings)
        methods, levels = self.method_rows(), self.level_rows()
        parts = [findings, tables.markdown(methods), tables.markdown(levels)]
        return "\n\n".join(part for part in [*parts, self.note] if part)

    def method_rows(self):
        """Table of the methods: list of dicts of strings."""
        against_plain = {
            method: self.comparison(method)
            for method in self.scores
            if method != "plain"
        }
        mean = self.unit.titled(f"{self.mean_name} {self.metric}", "scores")
        width = self._finest_width()
        return [
            {
                "method": method,
                mean: self.unit.score(self.mean(scores.values()), width)
                if scores
                else "-",
                **self._gain_cells(
                    "gain over plain", against_plain.get(method)
                ),
                "seeds": str(len(scores)),
            }
            for method, scores in self.scores.items()
        ]

    def level_rows(self):
        """Table of the levels: list of dicts of strings."""
        return [
            {
                "level": comparison.level.name,
                "method": comparison.method,
                "against": comparison.baseline,
                **self._gain_cells("gain", comparison),
                "over": comparison.interval.over,
            }
            for comparison in self.levels
        ]

    def _gain_cells(self, name, comparison):
        keys = self.unit.titled(name), "p", "p, Holm", "verdict"
        if comparison is None:
            return dict.fromkeys(keys, "-")
        gain = comparison.interval
        values = (
            self.unit.span(gain.mean, gain.low, gain.high),
            numbers.p_value(gain.p_value),
            numbers.p_value(comparison.adjusted_p_value),
            comparison.words,
        )
        return dict(zip(keys, values, strict=True))

    def _finest_width(self):
        """Width of the narrowest interval, which means are compared by."""
        widths = [
            c.interval.high - c.interval.low
            for c in self.comparisons
            if c.interval.is_known
        ]
        return min(widths, default=None)

    def to_dict(self):
        """Gains and scores, in JSON's types; an unknown number is `None`."""
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "scores": {
                method: {str(seed): score for seed, score in by_seed.items()}
                for method, by_seed in self.scores.items()
            },
            "gains": {
                method: {**_plain(c.interval), **_judgement(c)}
                for method in self.scores
                if method != "plain" and (c := self.comparison(method))
            },
            "levels": [
                {"level": c.level.name, **_compared(c)} for c in self.levels
            ],
            "pairs": [_compared(self.comparison(*p)) for p in self.pairs],
            "diverged": {
                method: {str(seed): why for seed, why in by_seed.items()}
                for method, by_seed in self.diverged.items()
            },
            "comparisons": sum(c.interval.is_known for c in self.comparisons),
            "findings": self.findings,
        }

    def to_tensorboard(self, log_dir):
        """Writes a row for each run to the HParams table, levels and figures.

        Args:
            log_dir: path of the logs; the event files are written to its
                folder "hparams".

        Raises:
            ImportError: without Matplotlib, which draws the figures.
            OSError: if the files can't be written, such as on a full disk.
        """
        report.to_tensorboard(self, log_dir)

    def _page(self):
        return report.page(self)


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
    verdicts = first.verdict, control.verdict
    together = {
        ("gain", "gain"): "worth it, and the control shows that the knowledge "
        "is why",
        ("gain", "inconclusive"): "it beat label smoothing, but whether the "
        "knowledge is why is inconclusive: its control may be as good",
        ("gain", "loss"): "it beat label smoothing, but the knowledge is not "
        "why: its control is better",
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


def _gain_of_examples(sign, ours, theirs, examples_of):
    """The gain in a score that follows from [seeds, examples].

    Of exp of a mean, means are compared: a difference d of them is a factor
    exp(d), told at the baseline's score.
    """
    gain = paired_interval(sign * (ours - theirs))
    if examples_of == "mean":
        return gain
    baseline = math.exp(theirs.mean())
    ends = {
        name: sign * baseline * math.expm1(sign * getattr(gain, name))
        for name in ("mean", "low", "high")
    }
    return dataclasses.replace(gain, **ends)


def _compared(comparison):
    """A comparison in JSON's types."""
    return {
        "method": comparison.method,
        "baseline": comparison.baseline,
        "gain": _plain(comparison.interval),
        **_judgement(comparison),
    }


def _judgement(comparison):
    """The one verdict of a comparison, the corrected one, and its p."""
    return {
        "adjusted_p_value": _number(comparison.adjusted_p_value),
        "verdict": comparison.verdict,
    }


def _plain(interval):
    """An interval in JSON's types."""
    values = dataclasses.asdict(interval)
    values = {key: _number(value) for key, value in values.items()}
    return {**values, "over": interval.over}


def _number(value):
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan else value
