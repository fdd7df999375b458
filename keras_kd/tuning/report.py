"""A search as a page with figures, and in TensorBoard."""

import os

from keras_kd.attribution import write_hparams
from keras_kd.attribution.pictures import BARS, bars_of_gains
from keras_kd.files import user_path
from keras_kd.reports import events
from keras_kd.reports.figures import bars, courses, scatter
from keras_kd.reports.page import Page
from keras_kd.tuning.outcome import DEFAULT_KD, WINNER
from keras_kd.tuning.spaces import LEARNING_RATE, PLAIN, SPACES, Range

# A setting that fewer students differ in shows nothing.
_FEWEST = 4


def page(tuning):
    """The report of a search.

    Args:
        tuning: a `keras_kd.Tuning`.

    Returns:
        A `keras_kd.reports.page.Page`.
    """
    report = Page("The best loss for this student")
    for sentence in tuning.findings:
        report.add_text(sentence)
    drawn = draw(tuning)
    for name in ("gains", "methods"):
        if name in drawn:
            report.add_figure(*drawn.pop(name))
    report.add_heading("On fresh seeds")
    report.add_rows(tuning.final_rows())
    report.add_text(
        "These students were trained with seeds that the search did not use. "
        + tuning.final.note
    )
    report.add_heading("In the search")
    report.add_rows(tuning.method_rows())
    report.add_text(
        "The best of many students is partly the luckiest, so that scores in "
        "the search look better than they are."
    )
    report.add_heading("What was tried")
    for figure, caption in drawn.values():
        report.add_figure(figure, caption)
    if tuning.verdict:
        report.add_heading("The teacher")
        report.add_text(" ".join(tuning.verdict))
    report.add_heading("Every student")
    report.add_rows(_trial_rows(tuning))
    return report


def _trial_rows(tuning):
    """Table of all trials, the best first: list of dicts of strings."""
    sign = -1 if tuning.higher_is_better else 1

    def order(trial):
        if trial.score is None:
            return 1, -trial.epochs
        return 0, sign * trial.score

    return [
        {
            "student": str(trial),
            tuning.metric: "-"
            if trial.score is None
            else tuning.shown(trial.score),
            "epochs": str(trial.epochs),
            "state": trial.state,
            "from": trial.why,
            "number": str(trial.number + 1),
        }
        for trial in sorted(tuning.trials, key=order)
    ]


# -- figures -------------------------------------------------------------------


def draw(tuning):
    """Every picture that the trials allow.

    Args:
        tuning: a `keras_kd.Tuning`.

    Returns:
        Dict by name of (`keras_kd.reports.figures.Figure`, caption).
    """
    drawn = {
        "gains": _gains(tuning),
        "methods": _methods(tuning),
        "history": _history(tuning),
        "curves": _curves(tuning),
    }
    for setting in _settings(tuning):
        drawn[f"setting_{setting}"] = _setting(tuning, setting)
    if tuning.method in tuning.importance:
        drawn["importance"] = _importance(tuning)
    return {name: each for name, each in drawn.items() if each is not None}


def _gains(tuning):
    names = {
        WINNER: f"{tuning.method},\ntuned",
        DEFAULT_KD: f"{DEFAULT_KD},\nat its defaults",
    }
    compared = {
        names[name]: tuning.final.comparison(name)
        for name in names
        if name in tuning.final.scores
    }
    known = {k: c for k, c in compared.items() if c.interval.is_known}
    if not known:
        return None
    return (
        bars_of_gains(tuning.final, known),
        f"Gains over plain training at its best, on fresh seeds, {BARS}",
    )


def _methods(tuning):
    leaders = [trial for trial in tuning.leaders if trial.method != PLAIN]
    if not leaders:
        return None
    unit = tuning.final.unit
    factor = unit.factor if tuning.higher_is_better else -unit.factor
    return (
        bars(
            [trial.method for trial in leaders],
            [factor * (trial.score - tuning.plain.score) for trial in leaders],
            label=unit.titled(f"gain in {tuning.metric} in the search"),
        ),
        "The best student of each method in the search, against the best one "
        "that was trained plainly: one seed, and the best of many.",
    )


def _history(tuning):
    pick = max if tuning.higher_is_better else min
    finished = [t for t in tuning.trials if t.score is not None]
    numbers = [trial.number + 1 for trial in finished]
    scores = [trial.score for trial in finished]
    so_far = [pick(scores[: n + 1]) for n in range(len(scores))]
    return (
        scatter(
            {"finished": (numbers, scores)},
            "student",
            tuning.metric,
            rug=[t.number + 1 for t in tuning.trials if t.score is None],
            steps=([*numbers, len(tuning.trials)], [*so_far, so_far[-1]]),
        ),
        "The students of the search in order, and the best so far. A mark at "
        "the bottom is one that was stopped, or failed.",
    )


def _curves(tuning):
    groups = {"stopped": [], "finished": [], "the best": [tuning.winner.curve]}
    for trial in tuning.trials:
        if trial.number != tuning.winner.number and trial.state in groups:
            groups[trial.state].append(trial.curve)
    groups = {name: each for name, each in groups.items() if each}
    # Where not each epoch is evaluated.
    has_gaps = tuning.winner.epochs > len(tuning.winner.curve)
    return (
        courses(groups, "evaluation" if has_gaps else "epoch", tuning.metric),
        "Learning curves on the validation data. Students that fell behind "
        "were stopped.",
    )


def _settings(tuning):
    """Names of the settings that differ, those of the winner first."""
    values = {}
    for trial in tuning.trials:
        if trial.score is not None:
            for name, value in trial.settings.items():
                if isinstance(value, int | float):
                    values.setdefault(name, set()).add(value)
    telling = [name for name in values if len(values[name]) >= _FEWEST]
    return sorted(telling, key=lambda name: name not in tuning.settings)


def _setting(tuning, setting):
    trials = [t for t in tuning.trials if setting in t.settings]
    methods = list(dict.fromkeys(trial.method for trial in trials))
    ring = None
    if tuning.method in methods:
        methods = [tuning.method]
        ring = tuning.settings[setting], tuning.winner.score
    groups = {name: ([], []) for name in ("others", *methods[:3])}
    for trial in trials:
        if trial.score is not None:
            x, y = groups.get(trial.method, groups["others"])
            x.append(trial.settings[setting])
            y.append(trial.score)
    return (
        scatter(
            {name: each for name, each in groups.items() if each[0]},
            setting,
            tuning.metric,
            log_x=_is_log(setting),
            rug=[t.settings[setting] for t in trials if t.score is None],
            ring=ring,
        ),
        f"Scores of {', '.join(methods[:3])} by {setting.replace('_', ' ')}"
        f"{'; the ring is the winner' * bool(ring)}. A mark at the bottom is a "
        "student that was stopped, or failed.",
    )


def _is_log(setting):
    ranges = [space.get(setting) for space in SPACES.values()]
    return setting == LEARNING_RATE or any(
        each.log for each in ranges if isinstance(each, Range)
    )


def _importance(tuning):
    shares = tuning.importance[tuning.method]
    return (
        bars(list(shares), list(shares.values()), label="importance"),
        f"Which settings of {tuning.method} mattered: how much each tells its "
        "best students from the others.",
    )


# -- TensorBoard ---------------------------------------------------------------


def to_tensorboard(tuning, log_dir):
    """Writes a row for each student to the HParams table, and figures.

    Args:
        tuning: a `keras_kd.Tuning`.
        log_dir: path of the logs.
    """
    import tensorflow as tf

    images = {k: each.to_image() for k, (each, _) in draw(tuning).items()}
    runs = {}
    for trial in tuning.trials:
        if trial.curve:
            choice = {"method": trial.method, "state": trial.state}
            name = f"{trial.number + 1:03}-{trial.method}"
            runs[name] = (
                choice | trial.settings,
                {tuning.metric: trial.curve[-1], "epochs": trial.epochs},
            )
    write_hparams(log_dir, runs)
    folder = os.path.join(user_path(log_dir, "log_dir"), "tuning")
    # Pictures of an earlier search would stay among these.
    events.remove(folder)
    with events.writing(folder):
        tf.summary.text("tuning", tuning.to_markdown(), step=0)
        for name, image in images.items():
            tf.summary.image(f"tuning/{name}", image[None], step=0)
