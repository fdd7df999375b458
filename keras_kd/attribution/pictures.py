"""Figures of an attribution: how much each part gave, and why."""

import functools

import numpy as np

from keras_kd.diagnosis import measures
from keras_kd.diagnosis.pictures import of_classes
from keras_kd.reports import figures

# What bars of gains show.
BARS = (
    "with 95 % intervals, each by itself. Pale bars don't survive the "
    "correction for the number of comparisons."
)


def of_gains(attribution):
    """How much: gains with their intervals.

    Args:
        attribution: a `keras_kd.Attribution`.

    Returns:
        Dict by name of (`keras_kd.reports.figures.Figure`, caption), of the
        gains that have an interval; empty figures are left out.
    """
    caption = f"Gain of each {{}}, {BARS}"
    groups = {
        "gains_by_level": (
            {
                f"{c.level.name}:\n{c.method} - {c.baseline}": c
                for c in attribution.levels
            },
            caption.format("level over its baseline"),
        ),
        "gains_by_method": (
            {
                method: attribution.comparison(method)
                for method in attribution.scores
                if method != "plain"
            },
            caption.format("method over plain training"),
        ),
    }
    return {
        name: (
            bars_of_gains(attribution, known),
            caption,
        )
        for name, (group, caption) in groups.items()
        if (known := {k: c for k, c in group.items() if c.interval.is_known})
    }


def bars_of_gains(attribution, comparisons):
    """Gains as bars with their intervals, in the unit of an attribution.

    Args:
        attribution: a `keras_kd.Attribution`.
        comparisons: dict by name of `Comparison`s; bars of those that don't
            survive the correction are pale.

    Returns:
        A `keras_kd.reports.figures.Figure`.
    """
    factor = attribution.unit.factor
    gains = [c.interval for c in comparisons.values()]
    return figures.bars(
        list(comparisons),
        [factor * gain.mean for gain in gains],
        [(factor * gain.low, factor * gain.high) for gain in gains],
        attribution.unit.titled(f"gain in {attribution.metric}"),
        emphasised=[c.verdict != "inconclusive" for c in comparisons.values()],
    )


def of_training(attribution):
    """Why: what happened while the students were trained.

    Args:
        attribution: a `keras_kd.Attribution`.

    Returns:
        Dict by name of (`Figure`, caption), of what the runs returned.
    """
    pictures = {
        "learning_curves": _learning_curves(attribution),
        "gradient_scale": _gradient_scales(attribution),
        "class_similarity": _similarities(attribution),
    }
    return {name: each for name, each in pictures.items() if each is not None}


def _learning_curves(attribution):
    histories = _returned(attribution, "history")
    names = _history_names(attribution.metric)
    name = next(
        (n for n in names if any(n in h for h in histories.values())), None
    )
    if name is None:
        return None
    unit = attribution.unit
    factor = unit.factor if "acc" in name else 1.0
    mean, mean_name = _mean_of_curves(attribution, name)
    found = {
        method: _band([factor * np.array(each) for each in by_key[name]], mean)
        for method, by_key in histories.items()
        if name in by_key
    }
    plain = found.pop("plain", None)
    if plain is not None and not found:
        found, plain = {"plain": plain}, None
    label = f"{name}, %" if factor != 1 else name
    figure = figures.curves(found, plain and ("plain", plain), "epoch", label)
    return figure, (
        f"Learning curves, {name} after each epoch: {mean_name}s of the seeds, "
        "and bands from the lowest seed to the highest."
    )


def _mean_of_curves(attribution, name):
    """The mean over the seeds, and what it is: of the score that of gains."""
    if name.endswith("loss"):
        return functools.partial(np.mean, axis=0), "mean"
    return attribution.mean, attribution.mean_name


def _history_names(metric):
    """Keys of a history in which the score, or else a loss, may be."""
    base = metric.removeprefix("test_").removeprefix("val_")
    return (f"val_{base}", base, "val_loss", "loss")


def _band(series, mean):
    """(epochs, mean, lowest, highest) of the epochs that all have."""
    length = min(map(len, series))
    values = np.array([each[:length] for each in series])
    return (
        np.arange(1, length + 1),
        mean(values),
        values.min(0),
        values.max(0),
    )


def _gradient_scales(attribution):
    panels, edges = {}, None
    for method, by_key in _returned(attribution, "gradient_scale").items():
        edges = by_key["edges"][0] if edges is None else edges
        alike = [
            np.array(counts)
            for own, counts in zip(
                by_key["edges"], by_key["counts"], strict=True
            )
            if own == edges
        ]
        if alike and len(alike[0]):
            epochs = min(map(len, alike))
            panels[method] = sum(counts[:epochs] for counts in alike)
    if not panels:
        return None
    figure = figures.densities(
        edges,
        panels,
        "gradient scale w",
        "epoch",
        "share of the epoch's examples",
        marks=(0, 1),
    )
    return figure, (
        "How each method rescales the gradient of plain cross-entropy, over "
        "training and all seeds: right of w = 1 examples are turned up, left "
        "of it down, and left of 0 reversed. The first and the last bin hold "
        "what lies beyond them, too."
    )


def _similarities(attribution):
    found = {
        method: np.mean(matrices, 0)
        for method, matrices in _matrices(attribution).items()
    }
    if not found:
        return None
    teacher = attribution.teacher_similarity
    if teacher is not None:
        found = {"teacher": np.asarray(teacher, "float64"), **found}
    # Student and teacher may share their first classes alone.
    classes = min(map(len, found.values()))
    found = {n: m[:classes, :classes] for n, m in found.items()}
    shown = measures.pictured_classes(classes)
    first = next(iter(found.values()))
    superclasses = attribution.superclasses
    if superclasses is not None and len(superclasses) != classes:
        superclasses = None
    order, sorted_by = measures.sorted_classes(
        shown, first[np.ix_(shown, shown)], superclasses
    )
    others = ~np.eye(len(order), dtype=bool)
    panels = {n: m[np.ix_(order, order)] for n, m in found.items()}
    # With many classes most cosines are small; only the diagonal has 1.
    sizes = [np.abs(matrix[others]) for matrix in panels.values()]
    limit = float(np.clip(np.quantile(sizes, 0.98), 0.1, 1))
    caption = (
        f"Cosines of {of_classes(len(order), classes)} in the logit layer, "
        f"means of the seeds, sorted by {sorted_by}. Blocks on the diagonal "
        "are class relations (domain knowledge)."
    )
    if teacher is not None:
        panels = _with_correlations(panels, found)
        caption += (
            " r: correlation with the teacher's, over all pairs of classes."
        )
    panels = {name: matrix.tolist() for name, matrix in panels.items()}
    return figures.heatmaps(panels, limit, "cosine"), caption


def _matrices(attribution):
    """Dict by method of lists of similarity matrices."""
    return {
        method: [
            run["class_similarity"]
            for run in by_seed.values()
            if "class_similarity" in run
        ]
        for method, by_seed in attribution.results.items()
        if any("class_similarity" in run for run in by_seed.values())
    }


def _with_correlations(panels, matrices):
    """The panels, named with each matrix's correlation with the teacher's."""
    others = ~np.eye(len(matrices["teacher"]), dtype=bool)
    teacher = matrices["teacher"][others]
    named = {}
    for name, matrix in panels.items():
        own = matrices[name][others]
        if name != "teacher" and own.std() > 0 and teacher.std() > 0:
            r = np.corrcoef(own, teacher)[0, 1]
            # With spaces at which no line is broken.
            name = f"{name}, r\xa0=\xa0{r:.2f}"
        named[name] = matrix
    return named


def _returned(attribution, key):
    """Dict by method of dicts by inner key of lists, one value a seed."""
    found = {}
    for method, by_seed in attribution.results.items():
        for run in by_seed.values():
            for inner, value in run.get(key, {}).items():
                if len(value):
                    of_method = found.setdefault(method, {})
                    of_method.setdefault(inner, []).append(value)
    return found
