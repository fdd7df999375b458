"""The first screen: is this teacher fit for use, and what is to be done?"""

import math

from keras_kd.diagnosis.bins import TEMPERATURES
from keras_kd.diagnosis.finding import PROBLEM

# A problem with which a teacher is of no use until it is mended.
_UNFIT = {
    "not_finite": "its outputs are not finite",
    "untrained_teacher": "it is not trained, or not loaded",
    "class_order": "labels and teacher count the classes in different orders",
    "misaligned_labels": "the labels belong to other rows",
    "unsettled_averages": "its batch normalisation's moving averages are not "
    "those of its training",
    "wrong_inputs": "the inputs are not such as it was trained on",
    "other_classes": "it knows other classes than those of the labels",
    "weak_teacher": "it knows too little about these labels",
}
# One of the data, which then tell nothing of the teacher.
_TELL_NOTHING = {
    "one_class": "Data of one class",
    "few_examples": "So few examples",
}
# One that takes a part of its knowledge.
_LESSER = {
    "padding_counts": "labels beside padding seem to count",
    "noisy_labels": "labels are wrong at random, here or in its training",
    "label_smoothed_teacher": "label smoothing has erased its class relations",
    "temperature_too_high": "at this temperature it can't be told from label "
    "smoothing",
    "noisy_tail": "its small probabilities are noise",
    "over_confident": "it is surer than it should be",
    "worse_than_student": "the student is better already",
    "classes_never_predicted": "it never predicts some of the classes",
}
# Above this deviation of p(label) the teacher tells easy examples from hard.
_TELLING_DEVIATION = 0.1


def sentences(numbers, findings):
    """Answers to three questions.

    Args:
        numbers: of a `keras_kd.Diagnosis`.
        findings: list of `Finding`.

    Returns:
        Three strings: whether the teacher is fit for use, what will help most,
        and what to try first.
    """
    problems = [each for each in findings if each.severity == PROBLEM]
    first = problems[0] if problems else None
    if first is not None and first.code in _TELL_NOTHING:
        return _of_telling_nothing(first)
    if first is not None and first.code in _UNFIT:
        return [
            f"This teacher is not fit for use as it is: {_UNFIT[first.code]}.",
            "To mend that will help most; no loss makes up for it.",
            f"First: {_in_one_sentence(first.remedy)}",
        ]
    return [
        _fitness(numbers["teacher"], first),
        _what_helps(numbers, {each.code for each in findings}),
        f"First: {_in_one_sentence(first.remedy)}"
        if first
        else _what_to_try(numbers, {each.code for each in findings}),
    ]


def _of_telling_nothing(finding):
    data = _TELL_NOTHING[finding.code]
    return [
        f"{data} can't show whether this teacher is fit for use.",
        "What will help most can't be told from them either.",
        f"First: {_in_one_sentence(finding.remedy)}",
    ]


def _fitness(teacher, problem):
    said = (
        f"it gets {teacher['accuracy']:.1%} of the labels right at a mean "
        f"confidence of {teacher['confidence']:.1%}"
    )
    if problem is None:
        return f"This teacher is fit for use: {said}."
    return (
        f"This teacher can be used with a reservation: {said}, but "
        f"{_reservation(teacher, problem.code)}."
    )


def _reservation(teacher, code):
    # One that is right even more often is as sure as it should be.
    if code == "over_confident" and teacher["confidence"] < teacher["accuracy"]:
        return "it is all but certain"
    return _LESSER[code]


def _what_helps(numbers, codes):
    """Which of the teacher's knowledge there is to pass on."""
    relations = numbers["class_relations"]
    tells = (
        numbers["teacher"]["label_probability_deviation"] >= _TELLING_DEVIATION
    )
    related = relations is not None and not codes & {
        "no_class_relations",
        "label_smoothed_teacher",
    }
    if "too_few_examples" in codes:
        said = (
            "whether its class relations will help, ten examples of each class "
            "would tell."
        )
        if tells:
            return (
                "Its confidence, which tells hard examples from easy ones, "
                f"will help; {said}"
            )
        return (
            f"Its confidence hardly tells hard examples from easy ones; {said}"
        )
    if tells and related:
        return (
            "Both its confidence, which tells hard examples from easy ones, "
            "and its class relations will help."
        )
    if related:
        return (
            "Its class relations will help most; its confidence hardly tells "
            "hard examples from easy ones."
        )
    if tells:
        return (
            "Its confidence will help most; it tells hard examples from easy "
            "ones, and classes are hardly related."
        )
    return "It has little to give beyond the labels."


def suggested_temperature(numbers):
    """The middle of the temperatures at which soft targets say most.

    Args:
        numbers: of a `keras_kd.Diagnosis`.

    Returns:
        A number out of `bins.TEMPERATURES`.
    """
    low, high = numbers["temperature"]["suggested"]
    middle = math.sqrt(low * high)
    return min(TEMPERATURES, key=lambda t: abs(math.log(t / middle)))


def _what_to_try(numbers, codes):
    temperature = f"{suggested_temperature(numbers):g}"
    if "no_class_relations" in codes or numbers["class_relations"] is None:
        return f"First: KDPt(temperature={temperature})."
    return (
        f"First: KD(temperature={temperature}), against KDPtSim and plain "
        "training."
    )


def _in_one_sentence(text):
    """The first sentence of a text."""
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]
