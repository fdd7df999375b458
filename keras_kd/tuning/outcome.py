"""What a search found: trials, the final comparison, tables."""

import collections
import dataclasses

from keras_kd import losses
from keras_kd.attribution import Attribution
from keras_kd.reports import tables
from keras_kd.reports.page import Reported
from keras_kd.tuning.spaces import PLAIN

# The names of the final comparison.
WINNER, DEFAULT_KD = "tuned", "kd"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A student that the search trained.

    Attributes:
        number: in the order of training, from 0.
        method: name.
        settings: dict of the loss's arguments, and perhaps "learning_rate".
        score: on the validation data, of a finished student; else `None`.
        state: "finished"; "stopped", early or because it diverged; or
            "failed", where the process died.
        curve: list of validation scores, one of each epoch that was evaluated.
        seconds: that it took; `None` where that is not known.
        why: "default"; "diagnosis"; "spread", over the range of the learning
            rate; "search"; or "winner", with the winner's learning rate.
        epochs: how many it was trained.
    """

    number: int
    method: str
    settings: dict
    score: float | None
    state: str
    curve: list
    seconds: float | None
    why: str
    epochs: int = 0

    def __str__(self):
        return described(self.method, self.settings)


@dataclasses.dataclass(frozen=True)
class Tuning(Reported):
    """The best loss that `tune` found, and what was tried.

    Attributes:
        trials: list of `Trial`, in order.
        final: `keras_kd.Attribution` over fresh seeds: "plain", tuned; "kd"
            at its defaults, where there is a teacher; and "tuned", the
            winner, unless it is one of the two.
        winner: the `Trial` that won.
        winner_name: its name in `final`.
        loss: its loss, to compile a `Distiller` with.
        plain: the best `Trial` of plain training.
        metric: name of the score.
        higher_is_better: boolean.
        importance: dict by method of dicts by setting of the share of the
            method's good and bad trials that the setting explains.
        spent: dict of the "seconds" and "epochs" that all of it took.
        verdict: list of sentences of the teacher's diagnosis.
        scored_on: what `final` was measured on, "test" or "validation" data;
            `None` where the trainer does not say.
        no_advice: why no diagnosis of the teacher advised the search, a
            sentence; `None` where one did, or there is no teacher.
        methods: names of the methods that there were to try.

    Example:
    >>> result = kd.tune(trainer, seconds=3600, folder="runs/tuning")
    >>> print(result)
    >>> distiller.compile("adam", loss=result.loss)
    """

    trials: list = dataclasses.field(repr=False)
    final: Attribution
    winner: Trial
    winner_name: str
    loss: losses.DistillationLoss
    plain: Trial
    metric: str
    higher_is_better: bool
    importance: dict
    spent: dict
    verdict: list
    scored_on: str | None = None
    no_advice: str | None = None
    methods: tuple = ()

    def __post_init__(self):
        """Makes what findings tell a part of what is corrected for."""
        pair = self.winner_name, DEFAULT_KD
        if self.winner_name == WINNER and DEFAULT_KD in self.final.scores:
            final = dataclasses.replace(self.final, pairs=(pair,))
            object.__setattr__(self, "final", final)

    @property
    def method(self):
        """Name of the method that won."""
        return self.winner.method

    @property
    def settings(self):
        """Dict of its settings."""
        return self.winner.settings

    def gain(self, baseline=PLAIN):
        """What the winner gained, on seeds that the search did not use.

        Args:
            baseline: "plain", with its best settings, or "kd", at its
                defaults.

        Returns:
            A `keras_kd.attribution.Interval`; `None` where the winner is the
            baseline, or there is no such student.
        """
        compared = self.comparison(baseline)
        return compared and compared.interval

    def comparison(self, baseline=PLAIN):
        """The gain, with the verdict that survives Holm's correction.

        Args:
            baseline: as for `gain`.

        Returns:
            A `keras_kd.attribution.Comparison`, or `None` as for `gain`.
        """
        if baseline == self.winner_name or baseline not in self.final.scores:
            return None
        return self.final.comparison(self.winner_name, baseline)

    def shown(self, score):
        """A score as it is shown, with its unit: "91.3 %"."""
        unit = self.final.unit
        return f"{unit.score(score)} {unit.of_scores}".strip()

    @property
    def findings(self):
        """List of sentences: what won, and what it gained."""
        compared = filter(None, map(self.comparison, _BASELINES))
        found = [self._won(), *map(self._gained, compared)]
        if self.winner_name == PLAIN:
            found.append("No loss beat plain training in the search.")
        elif self.scored_on == "validation":
            found.append(
                "The trainer has no `test` data: fresh seeds were measured on "
                "the validation data, by which the winner was chosen, so that "
                "gains look somewhat better than they are."
            )
        untried = [m for m in self.methods if not self._count(m)]
        if untried:
            found.append(
                "The budget left no student in the search for "
                f"{', '.join(untried)}."
            )
        return [*found, *filter(None, [self.final.left_out, self.no_advice])]

    def _won(self):
        counts = collections.Counter(trial.state for trial in self.trials)
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        score = f"{self.metric} {self.shown(self.winner.score)}"
        return (
            f"The best of {len(self.trials)} students ({states}) is "
            f"{self.winner}, with {score} in the search. All of it took "
            f"{self.spent['epochs']:,} epochs of students and "
            f"{in_words(self.spent['seconds'])}."
        )

    def _gained(self, comparison):
        unit, gain = self.final.unit, comparison.interval
        over = _BASELINES[comparison.baseline]
        if gain.seeds < 2:
            return (
                f"What it gains over {over} is not known: fresh seeds that "
                f"both ended: {gain.seeds} of the two or more that it takes."
            )
        interval = (
            f"the interval is over {gain.over}"
            if gain.is_known
            else "seeds that agree exactly tell no interval"
        )
        span = unit.span(gain.mean, gain.low, gain.high)
        return (
            f"On {gain.seeds} fresh seeds{_SCORED_ON[self.scored_on]} it gains "
            f"{f'{span} {unit.of_gains}'.strip()} in {self.metric} over "
            f"{over}: {comparison.judged('a gain', 'a loss')} ({interval})."
        )

    def to_markdown(self):
        """Findings and tables, as text that is also Markdown."""
        findings = "\n".join(f"- {finding}" for finding in self.findings)
        both = self.final_rows(), self.method_rows()
        return "\n\n".join([findings, *map(tables.markdown, both)])

    def final_rows(self):
        """Table of the comparison on fresh seeds: list of dicts of strings."""
        tried = {
            PLAIN: str(self.plain),
            DEFAULT_KD: "kd at its defaults",
            self.winner_name: str(self.winner),
        }
        return [
            {"on fresh seeds": tried[row.pop("method")], **row}
            for row in self.final.method_rows()
        ]

    @property
    def leaders(self):
        """List of the best finished `Trial` of each method, in order."""
        methods = {trial.method for trial in self.trials}
        found = (best(self.trials, self.higher_is_better, m) for m in methods)
        sign = 1 if self.higher_is_better else -1
        return sorted(
            filter(None, found), key=lambda trial: -sign * trial.score
        )

    def method_rows(self):
        """Table of the search: list of dicts of strings, the best first."""
        return [
            {
                "best of each method": str(trial),
                self.metric: self.shown(trial.score),
                "from": trial.why,
                "students": str(self._count(trial.method)),
                "stopped": str(self._count(trial.method, "stopped")),
            }
            for trial in self.leaders
        ]

    def _count(self, method, state=None):
        return sum(
            trial.method == method and state in (None, trial.state)
            for trial in self.trials
        )

    def to_dict(self):
        """Everything, in JSON's types."""
        return {
            "winner": dataclasses.asdict(self.winner),
            "plain": dataclasses.asdict(self.plain),
            "final": self.final.to_dict(),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "importance": self.importance,
            "spent": self.spent,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "verdict": self.verdict,
            "scored_on": self.scored_on,
            "findings": self.findings,
        }

    def to_tensorboard(self, log_dir):
        """Writes a row for each student to the HParams table, and figures.

        Args:
            log_dir: path of the logs; the event files are written to its
                folder "hparams".

        Raises:
            ImportError: without Matplotlib, which draws the figures.
            OSError: if the files can't be written, such as on a full disk.
        """
        from keras_kd.tuning import report

        report.to_tensorboard(self, log_dir)

    def _page(self):
        from keras_kd.tuning import report

        return report.page(self)


# Where fresh seeds were measured, in words.
_SCORED_ON = {
    "test": " and the test data",
    "validation": " and the validation data",
    None: "",
}
# What the winner is compared with, in words.
_BASELINES = {
    PLAIN: "plain training at its best",
    DEFAULT_KD: "KD at its defaults",
}


def best(trials, higher_is_better, method=None):
    """The best finished trial.

    Args:
        trials: list of `Trial`.
        higher_is_better: boolean.
        method: optional name, of whose trials alone.

    Returns:
        A `Trial`, or `None`.
    """
    sign = 1 if higher_is_better else -1
    return max(
        (
            trial
            for trial in trials
            if trial.state == "finished" and method in (None, trial.method)
        ),
        key=lambda trial: sign * trial.score,
        default=None,
    )


def counted(epochs):
    """Epochs that a student counts for.

    One that diverged before its first epoch ended has had a part of it: were it
    free, a method that always does would never use up a budget.

    Args:
        epochs: integer, those that it ended.
    """
    return max(epochs, 1)


def score_of(result, metric):
    """The score in what a trainer returned.

    Args:
        result: a number, or a dict with the key `metric`.
        metric: name.

    Returns:
        A float.

    Raises:
        ValueError: if it is not there.
    """
    if isinstance(result, dict) and metric not in result:
        raise ValueError(
            "The metric is not among what the trainer returned. Received: "
            f"{metric!r}, where there are {', '.join(map(repr, result))}. Log "
            "it, or choose one of these as the trainer's metric."
        )
    return float(result[metric] if isinstance(result, dict) else result)


def described(method, settings):
    """A student in a few words: "kd(weight=0.9, temperature=4)"."""
    words = ", ".join(f"{name}={short(v)}" for name, v in settings.items())
    return f"{method}({words})" if words else method


def in_words(seconds):
    """A duration: "12 s", "3 min" or "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def short(value):
    """A value in as many digits as it deserves."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
