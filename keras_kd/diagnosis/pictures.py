"""The pictures of a diagnosis, for its report and for TensorBoard."""

import numpy as np

from keras_kd.diagnosis.faults import is_near_chance
from keras_kd.diagnosis.measures import measured_relations
from keras_kd.reports import figures
from keras_kd.reports.numbers import general
from keras_kd.reports.page import Page

# Beyond these ranks there is nothing to see but a line along the axis.
_PICTURED_RANKS = 200
# An accuracy of fewer examples says nothing.
_FEWEST_EXAMPLES = 10


def page(diagnosis):
    """The report of a diagnosis.

    Args:
        diagnosis: a `keras_kd.Diagnosis`.

    Returns:
        A `keras_kd.reports.page.Page`.
    """
    report = Page("What the teacher has to offer")
    for sentence in diagnosis.verdict:
        report.add_text(sentence)
    pictures = draw(diagnosis.numbers)
    if pictures:
        report.add_figure(*pictures.pop("overview"))
    report.add_text(str(diagnosis).split("\n\n", 1)[0])
    report.add_heading("Findings")
    for finding in diagnosis.findings:
        report.add_finding(
            finding.code,
            finding.severity,
            finding.summary,
            [finding.consequence, f"Try: {finding.remedy}"],
            finding.evidence,
        )
    if pictures:
        report.add_heading("Pictures")
    for figure, caption in pictures.values():
        report.add_figure(figure, caption)
    report.add_heading("Numbers")
    report.add_table(["number", "value"], _rows(diagnosis.numbers))
    return report


def images(diagnosis):
    """Dict by name of [height, width, 3] uint8 arrays."""
    pictures = draw(diagnosis.numbers)
    return {k: fig.to_image() for k, (fig, _) in pictures.items()}


def draw(numbers):
    """Every picture that the numbers allow.

    Args:
        numbers: of a `keras_kd.Diagnosis`.

    Returns:
        Dict by name of (`keras_kd.reports.figures.Figure`, caption).
    """
    if "teacher" not in numbers:
        return {}
    drawn = {
        "overview": _overview(numbers),
        "gradient_scale": _gradient_scale(numbers["gradient_scale"]),
        "difficulty": _difficulty(numbers["gradient_scale"]),
        "confidence": _confidence(numbers["teacher"]),
        "reliability": _reliability(numbers["teacher"]),
        "temperature": _temperature(numbers["temperature"]),
        "entropy": _entropy(numbers),
    }
    relations = measured_relations(numbers)
    if relations is not None:
        drawn["top_k"] = _top_k(relations["tail"])
    if numbers["similarity"] is not None:
        drawn["class_similarity"] = _similarity(
            numbers["similarity"], numbers["data"]["classes"]
        )
    return drawn


def _overview(numbers):
    """What is predicted for which label, and what soft targets say."""
    teacher, table = numbers["teacher"], numbers["agreement"]["table"]
    temperature = numbers["temperature"]
    curve = None
    # Of soft targets near chance nothing can be said.
    if not is_near_chance(numbers):
        curve = (
            temperature["grid"],
            temperature["nats_beyond_label_smoothing"],
        )
    figure = figures.overview(
        table and table["shares"],
        {
            "right": teacher["accuracy"],
            "by chance": numbers["agreement"]["chance"],
            "believed right": teacher["confidence"],
        },
        curve,
        temperature["suggested"],
    )
    caption = ""
    if table:
        caption = (
            "What the teacher predicts for each label; one that is used as it "
            "was trained has a dark diagonal. "
        )
        together = table["classes_in_cell"]
        if together > 1:
            caption += f"Each cell is of {together} classes by {together}. "
    caption += (
        "Bars: the share of labels that it gets right, that chance would, and "
        "that it believes it does."
    )
    if curve:
        caption += (
            " Curve: what its soft targets say beyond label smoothing, by "
            "temperature; try those in the band first."
        )
    return figure, caption


def _gradient_scale(scale):
    """Histograms of w for thirds of the difficulty."""
    by_bin = np.array(scale["by_difficulty"]["histogram"])
    groups = {
        "hard: teacher's p(label) < 0.3": by_bin[:3].sum(0),
        "between": by_bin[3:9].sum(0),
        "easy: p(label) > 0.9": by_bin[9:].sum(0),
    }
    groups = {k: v for k, v in groups.items() if v.sum()}
    edges, seen = np.array(scale["edges"]), np.flatnonzero(by_bin.sum(0))
    first, last = max(seen.min() - 2, 0), seen.max() + 3
    figure = figures.histograms(
        edges[first : last + 1],
        {k: v[first:last] for k, v in groups.items()},
        "gradient scale w",
        marks=(0, 1),
    )
    return figure, (
        f"How the loss rescales the gradients of {scale['student']}, by "
        "difficulty: w = 1 as in plain training, w > 1 turned up, w < 0 "
        f"reversed. Bins end at {edges[0]:g} and {edges[-1]:g}; the outermost "
        "hold what lies beyond, too."
    )


def _difficulty(scale):
    bins = scale["by_difficulty"]
    edges = np.array(bins["edges"])
    middle = (edges[:-1] + edges[1:]) / 2
    series = {
        name: _seen(middle, bins[key])
        for name, key in (
            ("mean w", "mean"),
            ("reversed share", "reversed_share"),
            ("switched-off share", "switched_off_share"),
        )
    }
    figure = figures.lines(series, "teacher's probability of the label")
    return figure, (
        "From hard examples (left) to easy ones: mean w, and the shares with "
        "a reversed (w < 0) or switched-off (|w| < 0.1) gradient."
    )


def _seen(x, values):
    """The points at which there is a number."""
    points = [(a, b) for a, b in zip(x, values, strict=True) if b is not None]
    return tuple(zip(*points, strict=True)) if points else ((), ())


def _confidence(teacher):
    figure = figures.histograms(
        teacher["bin_edges"],
        {
            "label": teacher["label_probability_histogram"],
            "likeliest class": teacher["reliability"]["count"],
        },
        "teacher's probability, temperature 1",
    )
    return figure, (
        "How sure the teacher is of the label and of the class it predicts. A "
        "teacher that is sure everywhere can't tell hard from easy."
    )


def _reliability(teacher):
    bins = teacher["reliability"]
    points = [
        (confidence, accuracy)
        for count, confidence, accuracy in zip(
            bins["count"], bins["confidence"], bins["accuracy"], strict=True
        )
        if count >= _FEWEST_EXAMPLES
    ]
    figure = figures.lines(
        {"teacher": tuple(zip(*points, strict=True)) or ((), ())},
        "confidence",
        "accuracy",
        diagonal=True,
    )
    return figure, (
        "Reliability: below the line the teacher is over-confident, above it "
        f"under-confident (bins with {_FEWEST_EXAMPLES} examples or more). "
        "Expected calibration error "
        f"{teacher['calibration_error']:.3f}."
    )


def _temperature(temperature):
    figure = figures.lines(
        {
            "nats": (
                temperature["grid"],
                temperature["nats_beyond_label_smoothing"],
            )
        },
        "temperature",
        "nats beyond label smoothing",
        log_x=True,
        marks=((temperature["loss"], "loss"),),
    )
    low, high = temperature["suggested"]
    return figure, (
        "What the soft targets say beyond label smoothing: "
        + (
            f"from {low:g} to {high:g}, at least half as much as at the best "
            "temperature."
            if low < high
            else f"most at {low:g}, less than half as much at the others."
        )
    )


def _entropy(numbers):
    temperature = numbers["temperature"]
    uniform = np.log(numbers["data"]["classes"])
    grid = temperature["grid"]
    figure = figures.lines(
        {
            "entropy / log(classes)": (
                grid,
                [each / uniform for each in temperature["entropy"]],
            ),
            "probability of the label": (
                grid,
                temperature["label_probability"],
            ),
        },
        "temperature",
        log_x=True,
        marks=((temperature["loss"], "loss"),),
    )
    return figure, (
        "The higher the temperature, the flatter the soft targets: with an "
        "entropy of 1 they are uniform."
    )


def _top_k(tail):
    mass = [1 - each for each in tail["mass_beyond"][:_PICTURED_RANKS]]
    related = tail["explained_beyond"][: len(mass)]
    ranks = np.arange(1, len(mass) + 1)
    figure = figures.lines(
        {
            "mass of the top k": (ranks, mass),
            "explained by the class beyond k": (ranks[:-1], related[1:]),
        },
        "k",
        log_x=True,
        marks=((tail["suggested_k"], f"k = {tail['suggested_k']}"),),
    )
    return figure, (
        "Mass of the soft targets' k likeliest classes, and how much of the "
        "variance of the others the label explains: near 0 they are noise."
    )


def of_classes(shown, classes):
    """Whose rows of the logit layer a picture shows, in words."""
    if shown == classes:
        return "the classes' rows"
    return f"the rows of {shown} classes, evenly chosen from {classes:,},"


def _similarity(similarity, classes):
    panels = {"teacher": similarity["teacher"]}
    if similarity["student"] is not None:
        panels["student"] = similarity["student"]
    # With many classes most cosines are small; only the diagonal has 1.
    off = ~np.eye(len(similarity["order"]), dtype=bool)
    sizes = [np.abs(np.array(each)[off]) for each in panels.values()]
    limit = float(np.clip(np.quantile(sizes, 0.98), 0.1, 1))
    caption = (
        f"Cosines of {of_classes(len(similarity['order']), classes)} in the "
        f"logit layer, sorted by {similarity['sorted_by']}. Blocks on the "
        "diagonal are class relations (domain knowledge)."
    )
    followed = similarity["superclasses"]
    # With one class in each superclass there is nothing to follow.
    if followed is not None and followed["teacher"]["cosine_inside"]:
        teacher = followed["teacher"]
        caption += (
            f" The most similar class is of the same superclass for "
            f"{teacher['nearest_inside']:.0%} of the classes; by chance it "
            f"would be for {teacher['nearest_inside_by_chance']:.0%}."
        )
    return figures.heatmaps(panels, limit, "cosine"), caption


def _rows(numbers, prefix=""):
    """The single numbers, as rows of a table."""
    rows = []
    for key, value in numbers.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _rows(value, f"{name}: ")
        elif isinstance(value, float):
            rows.append([name, general(value)])
        elif isinstance(value, int | str):
            rows.append([name, str(value)])
    return rows
