"""From the numbers of a diagnosis to its findings."""

from keras_kd.diagnosis import causes, faults, hints
from keras_kd.diagnosis.finding import INFO

# Nothing else can be said of a teacher that is used wrongly. The more certain
# a rule is of its fault, the earlier it comes.
_FAULTS = (
    faults.untrained_teacher,
    # All that follow compare classes.
    faults.one_class,
    # All that follow read something in what is right and wrong.
    faults.few_examples,
    faults.class_order,
    faults.labels_of_rows_nearby,
    faults.unsettled_averages,
    faults.untrained_layers,
    faults.inputs_of_another_form,
    # After the forms: inputs that are all but 0 have this effect as well.
    faults.indifferent_teacher,
    faults.wrong_inputs,
    faults.inputs_too_large,
    faults.other_classes,
    faults.misaligned_labels,
)
# What the weights alone or the number of labels show.
_SURER_THAN_PADDING = ("untrained_teacher", "one_class")
# The more certain a rule is of its cause, the earlier it comes.
_CAUSES = (
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
    hints.too_few_examples,
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
    bad = causes.not_finite(numbers)
    found = {bad.code: bad} if bad else {}
    if "teacher" not in numbers:
        return list(found.values())
    fault = next(filter(None, (rule(numbers) for rule in _FAULTS)), None)
    if fault is None and faults.is_near_chance(numbers):
        fault = causes.knows_little(numbers)
    # It can look like a fault of the teacher, but is one of the data.
    padding = causes.padding_counts(numbers)
    if fault is not None:
        surer = fault.code in _SURER_THAN_PADDING or padding is None
        return [*found.values(), fault if surer else padding]
    if padding is not None:
        found[padding.code] = padding
    for rule in _CAUSES:
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
        "hard_task",
        "no_class_relations",
    ),
    "label_smoothed_teacher": (
        "noisy_tail",
        "under_confident",
        "no_class_relations",
    ),
    "temperature_too_high": ("no_class_relations",),
    "padding_counts": (
        "noisy_labels",
        "weak_teacher",
        "hard_task",
        "classes_never_predicted",
    ),
    "weak_teacher": ("under_confident",),
}


def _explained_by(found):
    return {code for each in found for code in _EXPLAINS.get(each, ())}
