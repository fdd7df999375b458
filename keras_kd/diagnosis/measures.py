"""From the sums of a `survey.Survey` to the numbers of a diagnosis."""

import numpy as np
import scipy

from keras_kd import metrics
from keras_kd.diagnosis.bins import CONFIDENCE_BINS, TEMPERATURES
from keras_kd.similarity import class_similarity

# Below this many nats between the soft targets and the best label smoothing,
# their total variation distance is at most 10 % (Pinsker's inequality).
LABEL_SMOOTHING_NATS = 0.02
# A tail is unrelated to the class where the class explains less than this
# share of the variance of its log-probabilities.
RELATED_SHARE = 0.05
# The mass beyond k at which a larger k is not worth it.
NEGLIGIBLE_MASS = 0.01
# A teacher that is so much surer than it is right does not know the odds; nor
# does one that tells less than this share of a label's uncertainty. Those of
# other classes say less of a label than how often it occurs.
_DISHONEST_GAP, _SOME_SKILL = 0.1, 0.02
# If fewer examples than this share have others of their class to be compared
# with, nothing is told of class relations.
_LEAST_MEASURED = 0.05
# More classes than this would be unreadable in a figure.
_PICTURED_CLASSES = 100


def data_numbers(totals, num_classes, tokens):
    """Numbers about the data themselves."""
    return {
        "examples": int(totals["examples"]),
        "batches": int(totals["batches"]),
        "classes": num_classes,
        "tokens": tokens,
        "not_finite": int(totals["not_finite"]),
        "not_finite_inputs": int(totals["not_finite_inputs"]),
        "first_bad_batch": int(totals["first_bad_batch"]),
    }


def teacher_numbers(totals):
    """Accuracy, confidence and calibration, at temperature 1."""
    n = totals["examples"]
    frequencies = totals["class_examples"] / n
    positive = frequencies[frequencies > 0]
    label_entropy = -(positive * np.log(positive)).sum()
    cross_entropy = totals["cross_entropy"] / n
    counts, confidence, correct = totals["confidence_bins"]
    _, first, second = totals["temperatures"][TEMPERATURES.index(1)]
    first, second = first / totals["sampled"], second / totals["sampled"]
    return {
        "accuracy": totals["correct"] / n,
        "cross_entropy": cross_entropy,
        "label_entropy": label_entropy,
        # The share of the labels' uncertainty that the teacher removes; labels
        # of one class have none.
        "skill": (
            1 - cross_entropy / label_entropy
            if np.count_nonzero(frequencies) > 1
            else None
        ),
        "confidence": totals["confidence"] / n,
        "label_probability": totals["label_probability"] / n,
        "label_probability_deviation": np.sqrt(max(second - first**2, 0)),
        "sure_share": totals["label_probability_bins"][-1] / n,
        "calibration_error": np.abs(confidence - correct).sum() / n,
        "reliability": {
            "count": counts,
            "confidence": _ratio(confidence, counts),
            "accuracy": _ratio(correct, counts),
        },
        "label_probability_histogram": totals["label_probability_bins"],
        "bin_edges": metrics.bin_edges(0, 1, CONFIDENCE_BINS),
        "by_class": {
            "examples": totals["class_examples"],
            "predicted": totals["class_predicted"],
            "accuracy": _ratio(
                totals["class_correct"], totals["class_examples"]
            ),
            "label_probability": _ratio(
                totals["class_confidence"], totals["class_examples"]
            ),
        },
    }


def student_numbers(totals):
    """The student against the teacher, or `None` without one."""
    if "student_correct" not in totals:
        return None
    n = totals["examples"]
    lead = totals["student_lead"] / n
    variance = totals["student_lead_squared"] / n - lead**2
    return {
        "accuracy": totals["student_correct"] / n,
        "cross_entropy": totals["student_cross_entropy"] / n,
        "lead": lead,
        "lead_error": np.sqrt(max(variance, 0) / n),
    }


def gradient_scale_numbers(totals):
    """The spread of w, over all examples, by difficulty and by class."""
    count, total, reversed_, off = totals["scale_by_difficulty"]
    n = max(count.sum(), 1)
    mean = total.sum() / n
    histogram = totals["scale_histogram"].sum(0)
    by_class = totals["scale_by_class"]
    return {
        "mean": mean,
        "median": metrics.median(
            histogram, metrics.bin_edges(), totals["scale_sums"]
        ),
        "deviation": np.sqrt(max(totals["scale_squared"] / n - mean**2, 0)),
        "reversed_share": reversed_.sum() / n,
        "switched_off_share": off.sum() / n,
        "undefined_share": totals["scale_undefined"] / totals["sampled"],
        "edges": metrics.bin_edges(),
        "histogram": histogram,
        "by_difficulty": {
            "edges": metrics.bin_edges(0, 1, len(count)),
            "count": count,
            "mean": _ratio(total, count),
            "reversed_share": _ratio(reversed_, count),
            "switched_off_share": _ratio(off, count),
            "histogram": totals["scale_histogram"],
        },
        "by_class": {
            "mean": _ratio(by_class[1], by_class[0]),
            "reversed_share": _ratio(by_class[2], by_class[0]),
            "switched_off_share": _ratio(by_class[3], by_class[0]),
        },
    }


def temperature_numbers(totals, temperature):
    """What soft targets say beyond label smoothing, by temperature.

    Of all label smoothings, the one with the mean label probability is the
    closest to the soft targets; the mean Kullback-Leibler divergence from it
    is h(p) + (1 - p) log(classes - 1) - H, with p the mean label probability,
    h the entropy of (p, 1 - p) and H the soft targets' mean entropy.
    """
    entropy, probability, _ = totals["temperatures"].T / totals["sampled"]
    others = np.log(max(len(totals["class_examples"]) - 1, 1))
    inside = np.clip(probability, 1e-12, 1 - 1e-12)
    binary = -inside * np.log(inside) - (1 - inside) * np.log1p(-inside)
    nats = np.maximum(binary + (1 - probability) * others - entropy, 0)
    grid = np.array(TEMPERATURES, "float64")
    peak = int(np.argmax(nats[:-1]))
    useful = grid[nats[:-1] >= nats[peak] / 2]
    smoothing = grid[peak:][nats[peak:-1] < LABEL_SMOOTHING_NATS]
    return {
        "loss": temperature,
        "grid": grid,
        "entropy": entropy[:-1],
        "label_probability": probability[:-1],
        "nats_beyond_label_smoothing": nats[:-1],
        "nats_at_loss": nats[-1],
        "entropy_at_loss": entropy[-1],
        "best": grid[peak],
        "suggested": [useful[0], useful[-1]],
        "label_smoothing_from": smoothing[0] if len(smoothing) else None,
    }


def relation_numbers(totals, num_classes, temperature):
    """How much class relation the non-target probabilities carry, or `None`.

    `relation` is the mean divergence of a class's mean non-target
    distribution from that of all classes. `permuted` is the same with the
    examples in random groups about as large as the classes: the part of it
    that is chance, whatever the order of the data. `measured_share` is that of
    the examples with enough others of their class to be compared with.
    """
    if "relations" not in totals or not totals["ranked"]:
        return None
    sampled, ranked = totals["sampled"], totals["ranked"]
    by_label, by_group = totals["profile_counts"]
    strong = totals["strong_competitors"]
    place = totals["strong_competitor_place"]
    margin = totals["logit_margin"] / sampled
    tail = _tail(totals["mass_by_rank"] / ranked, totals["relation_by_rank"])
    return {
        "against_uniform": np.log(num_classes - 1)
        - totals["off_label_entropy"] / sampled,
        "relation": _divergence(totals["relations"], by_label),
        "permuted": _divergence(totals["control"], by_group),
        # In logits: the label above the others' mean; how often it is further
        # above each of them than training puts it; and the deviation of those
        # beyond a quarter of the classes.
        "logit_margin": margin,
        "far_ahead_share": totals["far_ahead"] / sampled,
        "tail_spread": temperature * tail["deviation_beyond_quarter"],
        "strong_competitor_share": strong / max(totals["placed"], 1),
        "strong_competitor_place": place / strong if strong else None,
        "tail": tail,
        "measured_share": totals["placed"] / ranked,
    }


def confidence_gap(numbers):
    """How much surer a diagnosed teacher is than it is right."""
    teacher = numbers["teacher"]
    return teacher["confidence"] - teacher["accuracy"]


def knows_the_odds(numbers):
    """Whether a diagnosed teacher knows something, and no less than it says.

    Where it is seldom right, nobody may be.
    """
    return (
        confidence_gap(numbers) < _DISHONEST_GAP
        and numbers["teacher"]["skill"] > _SOME_SKILL
    )


def commonest_share(numbers):
    """How often the commonest label of a diagnosis occurs."""
    examples = numbers["teacher"]["by_class"]["examples"]
    return max(examples) / sum(examples)


def measured_relations(numbers):
    """The `relation_numbers` of a diagnosis, if there was enough to measure.

    Args:
        numbers: the dict of a `keras_kd.Diagnosis`.

    Returns:
        The dict, or `None`: with two classes, or with so few examples of most
        classes that any teacher's relations would seem to be noise.
    """
    relations = numbers["class_relations"]
    if relations is None or relations["measured_share"] < _LEAST_MEASURED:
        return None
    return relations


def _divergence(sums, counts):
    """Mean over examples of KL(class's mean, mean of all), without labels."""
    rows = np.flatnonzero(counts)
    overall = sums.sum(0)
    total = 0.0
    for row in rows:
        own, base = sums[row].copy(), overall.copy()
        own[row] = base[row] = 0.0
        if not own.sum():
            # A random group whose one class is the one it stands for.
            continue
        own, base = own / own.sum(), base / base.sum()
        seen = own > 0
        total += (
            counts[row] * (own[seen] * np.log(own[seen] / base[seen])).sum()
        )
    return total / counts.sum()


def _tail(mass_by_rank, moments):
    """Mass and relation to the class beyond each k, and a k to try."""
    classes = len(mass_by_rank)
    beyond = np.maximum(1 - np.cumsum(mass_by_rank), 0)
    # Suffix sums: entry k is about the ranks from k on.
    count, u, m, uu, mm, um = np.cumsum(moments[:, ::-1], axis=1)[:, ::-1]
    count = np.maximum(count, 1)
    u, m = u / count, m / count
    covariance = um / count - u * m
    variances = (uu / count - u**2) * (mm / count - m**2)
    correlation = covariance / np.sqrt(np.maximum(variances, 1e-12))
    explained = np.where(correlation > 0, correlation**2, 0)
    done = (explained[1:] < RELATED_SHARE) | (beyond[:-1] < NEGLIGIBLE_MASS)
    quarter = max(1, round(classes / 4))
    return {
        "mass_beyond": beyond,
        "explained_beyond": explained,
        "suggested_k": int(np.argmax(done)) + 1 if done.any() else classes,
        # A quarter of the classes: best on CIFAR-100 in Tang et al. 2020.
        "quarter": quarter,
        "deviation_beyond_quarter": np.sqrt(
            max((uu / count - u**2)[quarter], 0)
        ),
        "mass_beyond_quarter": beyond[quarter - 1],
        "explained_beyond_quarter": explained[quarter],
    }


def similarity_numbers(teacher_rows, student_rows, superclasses):
    """The class-similarity matrices, sorted, and how they follow superclasses.

    Args:
        teacher_rows: [classes, features] rows of the teacher's logit layer,
            or `None`.
        student_rows: the same of the student, or `None`.
        superclasses: [classes] integers, or `None`.
    """
    if teacher_rows is None:
        return None
    shown = pictured_classes(len(teacher_rows))
    order, sorted_by = sorted_classes(
        shown, class_similarity(teacher_rows[shown]), superclasses
    )
    numbers = {
        "order": order,
        "sorted_by": sorted_by,
        "teacher": class_similarity(teacher_rows[order]),
        "student": (
            None
            if student_rows is None
            else class_similarity(student_rows[order])
        ),
        "superclasses": None,
    }
    if superclasses is not None:
        numbers["superclasses"] = {
            "of_order": superclasses[order],
            "teacher": _followed(teacher_rows, superclasses),
            "student": (
                None
                if student_rows is None
                else _followed(student_rows, superclasses)
            ),
        }
    return numbers


def _followed(rows, superclasses):
    """How far cosines follow superclasses; of 2,000 classes at most."""
    step = -(-len(rows) // 2000)
    rows, superclasses = rows[::step], superclasses[::step]
    cosines = class_similarity(rows)
    others = ~np.eye(len(rows), dtype=bool)
    same = (superclasses[:, None] == superclasses) & others
    nearest = np.where(others, cosines, -np.inf).argmax(1)
    return {
        "cosine_inside": cosines[same].mean() if same.any() else None,
        "cosine_outside": cosines[others & ~same].mean()
        if (others & ~same).any()
        else None,
        "nearest_inside": (superclasses[nearest] == superclasses).mean(),
        "nearest_inside_by_chance": same.sum() / others.sum(),
    }


def pictured_classes(classes):
    """Evenly spaced class ids, as many as can be read in a figure."""
    return np.arange(0, classes, -(-classes // _PICTURED_CLASSES))


def sorted_classes(shown, similarity, superclasses=None):
    """Classes in the order in which a picture shows them.

    Args:
        shown: [shown] class ids.
        similarity: [shown, shown] cosines.
        superclasses: optional [classes] integers, which decide the order.

    Returns:
        [shown] class ids in order, and what they are sorted by, for a caption.
    """
    if superclasses is not None:
        own = np.asarray(superclasses)[shown]
        return shown[np.argsort(own, kind="stable")], "superclass"
    return shown[cluster_order(similarity)], "clustering"


def cluster_order(similarity):
    """An order in which similar classes are neighbours.

    Args:
        similarity: [classes, classes] array.

    Returns:
        [classes] integers: the leaves of average-linkage clustering, with
        the most similar ones of two clusters next to each other.
    """
    return scipy.cluster.hierarchy.leaves_list(cluster_tree(similarity))


def cluster_tree(similarity):
    """Which classes are joined at which distance, 1 - similarity.

    Args:
        similarity: [classes, classes] array.

    Returns:
        SciPy's linkage matrix of average-linkage clustering, [classes - 1, 4],
        its leaves in the order that `cluster_order` describes.
    """
    distances = 1 - np.asarray(similarity, "float64")
    # The upper triangle row by row, which is what SciPy takes.
    return scipy.cluster.hierarchy.linkage(
        distances[np.triu_indices(len(distances), 1)],
        method="average",
        optimal_ordering=True,
    )


def plain(value):
    """A value in JSON's types; numbers that are not finite become `None`.

    Args:
        value: nested dicts and sequences of numbers, arrays and strings.
    """
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _ratio(values, counts):
    """NaN where nothing was counted."""
    return np.where(counts > 0, values / np.maximum(counts, 1), np.nan)
