"""From the numbers of a diagnosis to its findings."""

from keras_kd.diagnosis import causes, hints
from keras_kd.diagnosis.finding import INFO

# The more certain a rule is of its cause, the earlier it comes.
_RULES = (
    causes.not_finite,
    causes.noisy_labels,
    causes.label_smoothed,
    causes.temperature_too_high,
    causes.noisy_tail,
    causes.over_confident,
    causes.weak_teacher,
    causes.worse_than_student,
    causes.never_predicted,
    hints.under_confident,
    hints.no_class_relations,
    hints.many_reversed,
    hints.suggestions,
)


def find(numbers):
    """The findings, problems first, the likeliest cause before others.

    Args:
        numbers: the dict of a `keras_kd.Diagnosis`.

    Returns:
        List of `Finding`.
    """
    found = {}
    for rule in _RULES if "teacher" in numbers else (causes.not_finite,):
        finding = rule(numbers)
        if finding is None or finding.code in _explained_by(found):
            continue
        found[finding.code] = finding
    return sorted(found.values(), key=lambda each: each.severity == INFO)


# What follows from a finding is not reported again.
_EXPLAINS = {
    "noisy_labels": (
        "label_smoothed_teacher",
        "noisy_tail",
        "over_confident",
        "under_confident",
        "weak_teacher",
        "no_class_relations",
    ),
    "label_smoothed_teacher": (
        "noisy_tail",
        "under_confident",
        "no_class_relations",
    ),
    "temperature_too_high": ("no_class_relations",),
    "weak_teacher": ("under_confident",),
}


def _explained_by(found):
    return {code for each in found for code in _EXPLAINS.get(each, ())}
