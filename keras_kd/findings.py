"""What the numbers of a diagnosis mean: rules, in the order of certainty.

Each rule looks at the numbers and returns a `Finding` or `None`. Thresholds
are stated where they are defined, with the reason; they were set on seeds 0 to
2 of `tools/study_failures.py` and hold on the others that it reports.
"""

import dataclasses

# A teacher that is all but certain, on all but a tenth of the examples: with
# a student half-way (w = p at temperature 1 and weight 1/2) the gradients of
# nine examples in ten then differ by 5 % at most. The last of 20 bins.
_SURE_SHARE = 0.9
# Beyond these gaps of confidence and accuracy the confidence misleads: about
# what temperature scaling of modern networks mends (Guo et al. 2017).
_OVER_CONFIDENT_GAP = 0.1
_UNDER_CONFIDENT_GAP = 0.05
# Label smoothing makes the wrong classes' logits equal (Müller et al. 2019).
# Their spread against the label's margin: 0.11 to 0.19 in smoothed teachers,
# 0.21 and above in others, on the tuning seeds and with 0 to 0.9 correlation.
_SMOOTHED_SPREAD = 0.2
# A smoothed teacher is hardly ever as sure as 0.95.
_SMOOTHED_SURE_SHARE = 0.25
# Half of what is not known of a label: a teacher that leaves more than that
# open is further from the labels than from knowing nothing. Of the next token
# much can't be known by anyone; there it is a sixth.
_LEAST_SKILL = {False: 0.5, True: 1 / 6}
# Strong competitors of the label are, of all classes, among the most related
# to it (place 1); from nowhere is 1/2. In between is where they are as likely
# to come from nowhere as not ...
_UNRELATED_PLACE = 0.66
# ... and so few of them are no case against the labels.
_NOISE_SHARE = 0.01
# Mass beyond a quarter of the classes that can move a student.
_TAIL_MASS = 0.05
# A class with fewer examples may be missed by chance.
_FEWEST_EXAMPLES = 10
# Classes never predicted matter if they hold one example in twenty.
_NEVER_SHARE = 0.05
# More turned around than that, and KD works against the labels.
_REVERSED_SHARE = 0.25

PROBLEM, INFO = "problem", "info"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis found.

    Attributes:
        code: stable name, such as "over_confident".
        severity: "problem" or "info".
        summary: what was found, in plain words.
        evidence: dict of the numbers that it rests on.
        consequence: what it means for distillation, in the paper's terms.
        remedy: what to try.
    """

    code: str
    severity: str
    summary: str
    evidence: dict
    consequence: str
    remedy: str


def find(numbers):
    """The findings, problems first and the likeliest cause before others.

    Args:
        numbers: the dict of a `keras_kd.Diagnosis`.

    Returns:
        List of `Finding`.
    """
    found = {}
    for rule in _RULES if "teacher" in numbers else (_not_finite,):
        finding = rule(numbers)
        if finding is None or finding.code in _explained_by(found):
            continue
        found[finding.code] = finding
    return sorted(found.values(), key=lambda each: each.severity == INFO)


# What follows from a finding is no finding of its own.
_EXPLAINS = {
    "not_finite": (),
    "probabilities_as_logits": (
        "noisy_labels",
        "label_smoothed_teacher",
        "temperature_too_high",
        "noisy_tail",
        "under_confident",
        "weak_teacher",
        "no_class_relations",
        "suggestions",
    ),
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
    "weak_teacher": ("under_confident", "noisy_tail"),
}


def _explained_by(found):
    return {code for each in found for code in _EXPLAINS.get(each, ())}


def _not_finite(numbers):
    data = numbers["data"]
    if not data["not_finite"]:
        return None
    return Finding(
        "not_finite",
        PROBLEM,
        f"The teacher's outputs are NaN or infinite for {data['not_finite']} "
        f"examples, first in batch {data['first_bad_batch']} (counted from "
        "0). All other findings are about the rest.",
        {k: data[k] for k in ("not_finite", "first_bad_batch", "examples")},
        "There is no soft target on these examples; training on them stops "
        "with an error.",
        "Look at that batch's inputs; check the teacher's weights, its "
        "preprocessing and its dtype (float16 overflows at 65504).",
    )


def _probabilities_as_logits(numbers):
    share = numbers["teacher"]["like_probabilities"]
    if share < 0.99:
        return None
    return Finding(
        "probabilities_as_logits",
        PROBLEM,
        "The teacher's outputs are probabilities, taken for logits: "
        f"{share:.0%} of them are not negative and sum to 1.",
        {"share": share},
        "A softmax of probabilities is nearly uniform, so that every part of "
        "the knowledge is lost: KD becomes label smoothing.",
        "End the teacher in a Softmax layer or activation, which keras_kd "
        "recognises, or return the logits from its `call`.",
    )


def _noisy_labels(numbers):
    relations = numbers["class_relations"] or {}
    place = relations.get("strong_competitor_place")
    spread = _relative_spread(relations)
    if place is None or place > _UNRELATED_PLACE or spread < _SMOOTHED_SPREAD:
        return None
    # From nowhere are twice as many as are below the middle.
    noise = 2 * relations["strong_competitor_share"] * (1 - place)
    if noise < _NOISE_SHARE:
        return None
    return Finding(
        "noisy_labels",
        PROBLEM,
        f"On {relations['strong_competitor_share']:.0%} of the examples the "
        "teacher gives much to another class than the label, and these "
        "classes are hardly more related to the label than any (place "
        f"{place:.2f}; 0.5 is chance, 1 the most related). Labels are wrong "
        f"at random in about {noise:.0%} of the examples, or were when the "
        "teacher was trained.",
        {
            "strong_competitor_share": relations["strong_competitor_share"],
            "strong_competitor_place": place,
            "estimated_noise": noise,
            "teacher_accuracy": numbers["teacher"]["accuracy"],
        },
        "p(label) then follows the noise and not the difficulty: KD-pt turns "
        "examples up and down at random, and class relations are washed out.",
        "Clean the labels (start where the teacher disagrees most), train the "
        "teacher with early stopping or a robust loss, and distil with a high "
        "weight, which trusts the teacher more than the labels.",
    )


def _relative_spread(relations):
    margin = relations.get("logit_margin") or 0.0
    return relations["off_label_spread"] / margin if margin > 0 else 1.0


def _label_smoothed(numbers):
    teacher, relations = numbers["teacher"], numbers["class_relations"]
    gap = teacher["accuracy"] - teacher["confidence"]
    if (
        relations is None
        or gap < _UNDER_CONFIDENT_GAP
        or teacher["sure_share"] > _SMOOTHED_SURE_SHARE
        or teacher["skill"] < _LEAST_SKILL[numbers["data"]["tokens"]]
        or _relative_spread(relations) > _SMOOTHED_SPREAD
    ):
        return None
    return Finding(
        "label_smoothed_teacher",
        PROBLEM,
        "The teacher looks trained with label smoothing: it is right in "
        f"{teacher['accuracy']:.1%} but sure of only "
        f"{teacher['confidence']:.1%}, and it hardly tells wrong classes "
        "apart.",
        {
            "accuracy": teacher["accuracy"],
            "confidence": teacher["confidence"],
            "sure_share": teacher["sure_share"],
            "spread_over_margin": _relative_spread(relations),
            "relation": relations["relation"],
            "permuted": relations["permuted"],
        },
        "Its class relations (domain knowledge) are erased: the non-target "
        "part of its soft targets is near uniform, and KD gives little more "
        "than label smoothing, which needs no teacher.",
        "Train the teacher without label smoothing (and without mixup). With "
        "this one, KDPt keeps what there is; a temperature near 1 fits best.",
    )


def _temperature_too_high(numbers):
    temperature = numbers["temperature"]
    limit = temperature["label_smoothing_from"]
    if limit is None or temperature["loss"] <= temperature["best"]:
        return None
    from keras_kd.measures import LABEL_SMOOTHING_NATS

    if temperature["nats_at_loss"] >= LABEL_SMOOTHING_NATS:
        return None
    low, high = temperature["suggested"]
    return Finding(
        "temperature_too_high",
        PROBLEM,
        f"At temperature {temperature['loss']:g} the soft targets are label "
        f"smoothing: they differ from it by {temperature['nats_at_loss']:.4f} "
        f"nats, where at temperature {temperature['best']:g} it is "
        f"{max(temperature['nats_beyond_label_smoothing']):.3f}.",
        {
            "temperature": temperature["loss"],
            "nats_at_loss": temperature["nats_at_loss"],
            "nats_at_best": max(temperature["nats_beyond_label_smoothing"]),
            "label_smoothing_from": limit,
        },
        "What is left is the universe's part: no class relations, and the "
        "same rescaling for every example.",
        f"A temperature from {low:g} to {high:g} keeps at least half of what "
        "this teacher's soft targets can say.",
    )


def _noisy_tail(numbers):
    relations = numbers["class_relations"]
    if relations is None:
        return None
    from keras_kd.measures import RELATED_SHARE

    tail = relations["tail"]
    explained, mass = (
        tail["explained_beyond_quarter"],
        tail["mass_beyond_quarter"],
    )
    if explained >= RELATED_SHARE or mass < _TAIL_MASS:
        return None
    return Finding(
        "noisy_tail",
        PROBLEM,
        f"Beyond the top {tail['quarter']} classes the soft targets are "
        f"noise: they hold {mass:.1%} of the mass, and the label explains "
        f"{explained:.1%} of their variance.",
        {
            "k": tail["quarter"],
            "mass_beyond": mass,
            "explained_beyond": explained,
            "suggested_k": tail["suggested_k"],
        },
        "KD teaches the tail like everything else; the student spends its "
        "capacity on noise.",
        f"KDTopK(k={tail['suggested_k']}), which spreads the tail's mass "
        "evenly, or a lower temperature.",
    )


def _over_confident(numbers):
    teacher, scale = numbers["teacher"], numbers["gradient_scale"]
    gap = teacher["confidence"] - teacher["accuracy"]
    saturated = teacher["sure_share"] >= _SURE_SHARE
    if not saturated and gap < _OVER_CONFIDENT_GAP:
        return None
    low, high = numbers["temperature"]["suggested"]
    if saturated:
        summary = (
            "The teacher is all but certain: it gives the label at least 0.95 "
            f"in {teacher['sure_share']:.0%} of the examples."
        )
    else:
        summary = (
            f"The teacher is sure of {teacher['confidence']:.1%} but right in "
            f"only {teacher['accuracy']:.1%}."
        )
    return Finding(
        "over_confident",
        PROBLEM,
        summary,
        {
            "sure_share": teacher["sure_share"],
            "confidence": teacher["confidence"],
            "accuracy": teacher["accuracy"],
            "calibration_error": teacher["calibration_error"],
            "w_deviation": scale["deviation"],
        },
        "p(label) does not tell easy examples from hard ones, so that the "
        "teacher rescales next to nothing (instance knowledge): KD-pt is "
        "plain training with another learning rate.",
        "Distil on data that the teacher has not memorised (held-out or "
        "augmented), use a teacher stopped earlier or more regularised, or a "
        f"higher temperature: {low:g} to {high:g} say most here.",
    )


def _weak_teacher(numbers):
    teacher, tokens = numbers["teacher"], numbers["data"]["tokens"]
    if teacher["skill"] >= _LEAST_SKILL[tokens]:
        return None
    return Finding(
        "weak_teacher",
        PROBLEM,
        f"The teacher knows little of these data: of the "
        f"{teacher['label_entropy']:.2f} nats that a label holds it tells "
        f"{max(teacher['skill'], 0):.0%} (accuracy "
        f"{teacher['accuracy']:.1%}).",
        {k: teacher[k] for k in ("skill", "accuracy", "cross_entropy")},
        "Where it is wrong or undecided it turns good examples down, so that "
        "the student learns less from their labels.",
        "Train the teacher longer or larger, check its preprocessing and the "
        "order of its classes, or lower the loss's weight.",
    )


def _worse_than_student(numbers):
    student, teacher = numbers["student"], numbers["teacher"]
    if student is None or student["lead"] <= 2 * student["lead_error"]:
        return None
    return Finding(
        "worse_than_student",
        PROBLEM,
        f"The student is right in {student['accuracy']:.1%} of these data, "
        f"the teacher in {teacher['accuracy']:.1%}.",
        {
            "student_accuracy": student["accuracy"],
            "teacher_accuracy": teacher["accuracy"],
            "lead": student["lead"],
            "lead_error": student["lead_error"],
        },
        "The teacher turns down or reverses examples that the student has "
        "right already.",
        "A better teacher; or a weight that falls to 0 as the student "
        "catches up (keras_kd.callbacks.LossSchedule).",
    )


def _never_predicted(numbers):
    by_class = numbers["teacher"]["by_class"]
    never = [
        c
        for c, (examples, predicted) in enumerate(
            zip(by_class["examples"], by_class["predicted"], strict=True)
        )
        if examples >= _FEWEST_EXAMPLES and not predicted
    ]
    if not never:
        return None
    examples = sum(by_class["examples"][c] for c in never)
    share = examples / numbers["data"]["examples"]
    # Rare words are hardly ever the likeliest one, and need not be.
    matters = share >= _NEVER_SHARE and not numbers["data"]["tokens"]
    named = ", ".join(map(str, never[:10])) + (", ..." if never[10:] else "")
    return Finding(
        "classes_never_predicted",
        PROBLEM if matters else INFO,
        f"The teacher never predicts {len(never)} of the classes in these "
        f"data, with {share:.1%} of the examples: {named}.",
        {"classes": never[:1000], "count": len(never), "share": share},
        "On these classes the soft target works against every label: their "
        "examples are turned down or reversed.",
        "Check the order of the classes and the teacher's training data; "
        "balance them, or leave these classes to the labels.",
    )


def _under_confident(numbers):
    teacher = numbers["teacher"]
    gap = teacher["accuracy"] - teacher["confidence"]
    if gap < 2 * _UNDER_CONFIDENT_GAP:
        return None
    return Finding(
        "under_confident",
        INFO,
        f"The teacher is right in {teacher['accuracy']:.1%} but sure of only "
        f"{teacher['confidence']:.1%}.",
        {k: teacher[k] for k in ("accuracy", "confidence")},
        "All examples are turned down alike, as by a lower weight. Training "
        "on noisy labels, mixup, strong regularisation or an early stop do "
        "this.",
        "A temperature below 1 brings the confidence back.",
    )


def _no_class_relations(numbers):
    relations = numbers["class_relations"]
    if relations is None or relations["relation"] > 2 * relations["permuted"]:
        return None
    return Finding(
        "no_class_relations",
        INFO,
        "The non-target probabilities hardly depend on the class: "
        f"{relations['relation']:.4f} nats, where shuffled labels give "
        f"{relations['permuted']:.4f}.",
        {k: relations[k] for k in ("relation", "permuted")},
        "There is no domain knowledge to pass on; KD can't give more than "
        "KD-pt.",
        "KDPt is cheaper and gives the same.",
    )


def _many_reversed(numbers):
    share = numbers["gradient_scale"]["reversed_share"]
    if share < _REVERSED_SHARE:
        return None
    return Finding(
        "many_reversed",
        INFO,
        f"The loss reverses the gradient of {share:.0%} of the examples.",
        {"reversed_share": share},
        "The student is surer of these labels than the teacher allows and is "
        "pulled back.",
        "Lower the weight or the temperature; late in training it is normal.",
    )


def _suggestions(numbers):
    low, high = numbers["temperature"]["suggested"]
    limit = numbers["temperature"]["label_smoothing_from"]
    evidence = {"temperature": [low, high], "label_smoothing_from": limit}
    summary = f"Temperatures from {low:g} to {high:g} say most; " + (
        f"from {limit:g} on KD is label smoothing."
        if limit
        else "label smoothing is far off."
    )
    if numbers["class_relations"] is not None:
        k = numbers["class_relations"]["tail"]["suggested_k"]
        evidence["k"] = k
        summary += f" KD-topk with k = {k} keeps what is worth keeping."
    return Finding(
        "suggestions",
        INFO,
        summary,
        evidence,
        "In this range the soft targets say at least half of the most that "
        "they can say beyond label smoothing.",
        "Start with the middle of the range.",
    )


_RULES = (
    _not_finite,
    _probabilities_as_logits,
    _noisy_labels,
    _label_smoothed,
    _temperature_too_high,
    _noisy_tail,
    _over_confident,
    _weak_teacher,
    _worse_than_student,
    _never_predicted,
    _under_confident,
    _no_class_relations,
    _many_reversed,
    _suggestions,
)
