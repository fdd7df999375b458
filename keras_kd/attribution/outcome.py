"""What an attribution found: gains, verdicts, findings and tables."""

import dataclasses
import math

import numpy as np

from keras_kd.attribution.intervals import Interval, paired_interval
from keras_kd.attribution.levels import LEVELS, Level


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against its baseline.

    Attributes:
        level: the `Level` that it measures.
        baseline: name of the baseline that counts.
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
            return (
                f"{names}: inconclusive, paired seeds: {interval.seeds} of the "
                "two or more that it takes."
            )
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
    have. Each stands by itself: of 20 comparisons between equals, one is
    expected to exclude 0.

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
        """The gain of one method over another.

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
        from keras_kd.reports import tables

        findings = "\n".join(f"- {finding}" for finding in self.findings)
        methods, levels = self.method_rows(), self.level_rows()
        parts = [findings, tables.markdown(methods), tables.markdown(levels)]
        return "\n\n".join(part for part in parts if part)

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
        """Writes a row for each run to the HParams table, levels and figures.

        Args:
            log_dir: path of the logs; the event files are written to its
                folder "hparams".

        Raises:
            ImportError: without Matplotlib, which draws the figures.
            OSError: if the files can't be written, such as on a full disk.
        """
        from keras_kd.attribution import report

        report.to_tensorboard(self, log_dir)

    def save(self, path):
        """Writes a report: one HTML page that needs no other file.

        Args:
            path: of a file that does not exist yet.

        Raises:
            FileExistsError: if it does.
            ImportError: without Matplotlib, which draws the figures.
            OSError: if it can't be written, such as on a full disk.
        """
        from keras_kd.attribution import report
        from keras_kd.reports.page import check_new

        path = check_new(path)
        report.page(self).save(path)


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


def _mean(scores):
    return f"{np.mean(list(scores.values())):.4g}" if scores else "-"


def _span(interval):
    if interval.seeds < 2:
        return "-"
    return f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"


def _plain(interval):
    """An interval in JSON's types."""
    values = dataclasses.asdict(interval)
    for key, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            values[key] = None
    return {**values, "verdict": interval.verdict}
