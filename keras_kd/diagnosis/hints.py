"""What else is worth knowing about a teacher before a student is trained.

Rules like those of `causes`, for what is not a problem by itself.
"""

from keras_kd.diagnosis.causes import UNDER_CONFIDENT_GAP
from keras_kd.diagnosis.finding import INFO, Finding
from keras_kd.diagnosis.measures import measured_relations

# If more gradients than that are reversed, KD works against the labels.
_REVERSED_SHARE = 0.25


def under_confident(numbers):
    """A teacher that is less sure than it could be."""
    teacher = numbers["teacher"]
    gap = teacher["accuracy"] - teacher["confidence"]
    if gap < 2 * UNDER_CONFIDENT_GAP:
        return None
    return Finding(
        "under_confident",
        INFO,
        f"The teacher's accuracy is {teacher['accuracy']:.1%}, its mean "
        f"confidence only {teacher['confidence']:.1%}.",
        {k: teacher[k] for k in ("accuracy", "confidence")},
        "All examples are turned down alike, as by a lower weight. Noisy "
        "labels, mixup, strong regularisation, stopping early and logits "
        "divided by a temperature have this effect.",
        "A temperature below 1 restores the confidence.",
    )


def no_class_relations(numbers):
    """Non-target probabilities that do not depend on the class."""
    relations = measured_relations(numbers)
    if relations is None or relations["relation"] > 2 * relations["permuted"]:
        return None
    return Finding(
        "no_class_relations",
        INFO,
        "The non-target probabilities hardly depend on the class: "
        f"{relations['relation']:.4f} nats, where random groups give "
        f"{relations['permuted']:.4f}.",
        {k: relations[k] for k in ("relation", "permuted")},
        "There is no domain knowledge to pass on; KD can't give more than "
        "KD-pt.",
        "KDPt is cheaper and gives the same.",
    )


def too_few_examples(numbers):
    """Data that tell nothing of class relations."""
    relations = numbers["class_relations"]
    if relations is None or measured_relations(numbers) is not None:
        return None
    return Finding(
        "too_few_examples",
        INFO,
        "Class relations could not be measured: only "
        f"{relations['measured_share']:.0%} of the examples have enough others "
        "of their class to be compared with.",
        {"measured_share": relations["measured_share"]},
        "Nothing is said of class relations, of the tail, and of noisy labels.",
        "Diagnose on ten examples or more of each class.",
    )


def many_reversed(numbers):
    """A loss that works against the labels."""
    share = numbers["gradient_scale"]["reversed_share"]
    if share < _REVERSED_SHARE:
        return None
    return Finding(
        "many_reversed",
        INFO,
        f"The loss reverses the gradient of {share:.0%} of the examples.",
        {"reversed_share": share},
        "The student is surer of these labels than the teacher allows, and is "
        "pulled back.",
        "Lower the weight or the temperature; late in training this is normal.",
    )


def suggestions(numbers):
    """A range of temperatures and a k to start with."""
    low, high = numbers["temperature"]["suggested"]
    limit = numbers["temperature"]["label_smoothing_from"]
    evidence = {"temperature": [low, high], "label_smoothing_from": limit}
    summary = (
        f"Temperatures from {low:g} to {high:g} say most; "
        if low < high
        else f"A temperature of {low:g} says most; "
    ) + (
        f"from {limit:g} on, KD is label smoothing."
        if limit
        else "none of those tried makes KD label smoothing."
    )
    relations = measured_relations(numbers)
    if relations is not None:
        k = relations["tail"]["suggested_k"]
        evidence["k"] = k
        summary += f" KD-topk with k = {k} keeps what is worth keeping."
    return Finding(
        "suggestions",
        INFO,
        summary,
        evidence,
        "In this range the soft targets say at least half as much beyond label "
        "smoothing as at the best temperature.",
        "Start with the middle of the range.",
    )
