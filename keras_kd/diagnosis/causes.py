"""Causes of failed distillation: a rule for each.

Each takes the numbers of a diagnosis and returns a `Finding` or `None`. The
thresholds are stated first, with their reasons; where they had to be set by
trial, that was on seeds 0 to 2 of `recipes/failures.py`, which reports other
seeds.
"""

from keras_kd.diagnosis.finding import INFO, PROBLEM, Finding
from keras_kd.diagnosis.measures import (
    LABEL_SMOOTHING_NATS,
    RELATED_SHARE,
    confidence_gap,
    knows_the_odds,
    measured_relations,
)
from keras_kd.reports.numbers import how_many, plural

# A teacher that is all but certain, on all but a tenth of the examples; and a
# rescaling that hardly varies: at temperature 1, weight 1/2 and halfway through
# training, w = p(label), so that the deviation of p(label) is that of w. One
# that is sure and right, and unsure where it is wrong, is a good teacher of
# easy data.
_SURE_SHARE = 0.9
_LEAST_DEVIATION = 0.1
# Less padding than this hardly changes what is said.
_PADDING_SHARE = 0.05
# Beyond these gaps between confidence and accuracy the confidence misleads:
# about what temperature scaling corrects in modern networks (Guo et al. 2017).
_OVER_CONFIDENT_GAP = 0.1
UNDER_CONFIDENT_GAP = 0.05
# Label smoothing makes the wrong classes' logits equal (Müller et al. 2019), so
# that their deviation is small against the label's margin and no longer depends
# on the label. With smoothing 0.1 and 0.2 and correlations 0 to 0.9, on the
# tuning seeds: 0.10 to 0.17, and 5 to 14 % explained by the label; in teachers
# trained without, 0.15 to 0.27, and 28 % or more.
_SMOOTHED_SPREAD = 0.2
_SMOOTHED_EXPLAINED = 0.2
# A smoothed teacher is hardly ever as sure as 0.95.
_SMOOTHED_SURE_SHARE = 0.25
# Half of the uncertainty of a label: a teacher that leaves more than that is
# further from the labels than from knowing nothing. Much of the next token
# can't be known by anyone; there it is a sixth.
_LEAST_SKILL = {False: 0.5, True: 1 / 6}
# Two signs of labels that are wrong at random, each 1/2 by chance and up to 1
# without noise. Strong competitors of a label are among the classes most
# related to it (place 1), where noise draws unrelated ones (1/2). And where
# inputs are hard a teacher is surer of what it has right, but noise can't be
# seen in the inputs. The mean of both is 0.60 to 0.71 of 3 to 30 classes that
# overlap without noise (below 0.63 where hardly anything is right, or much of
# the data memorised); with 30 or 60 % of the labels drawn at random 0.50 to
# 0.66, and 0.59 to 0.63 for the perceptrons of recipes/failures.py.
_NOISE_SIGNS = 0.63
# In a smaller share of the examples than this, competitors don't matter.
_NOISE_SHARE = 0.01
# Mass beyond a quarter of the classes that can move a student.
_TAIL_MASS = 0.05
# A class with fewer examples may be missed by chance.
_FEWEST_EXAMPLES = 10
# Classes never predicted matter if they hold one example in twenty.
_NEVER_SHARE = 0.05


def not_finite(numbers):
    """NaN or infinite outputs of the teacher, and where they come from."""
    data = numbers["data"]
    bad, from_inputs = data["not_finite"], data["not_finite_inputs"]
    if not bad:
        return None
    weights = data["not_finite_weights"]
    origins, remedies = [], []
    if from_inputs:
        origins.append(
            f"the inputs, which are NaN or infinite for {from_inputs} of them"
        )
        remedies.append(
            "Clean that batch's inputs: look for a division by 0 or a "
            "logarithm of 0 in the preprocessing."
        )
    if weights:
        origins.append(
            f"the teacher, whose weights {', '.join(weights)} are NaN or "
            "infinite"
        )
        remedies.append("Load the teacher from before it diverged.")
    elif bad > from_inputs:
        origins.append(
            f"the teacher, whose inputs are finite for {bad - from_inputs:,}"
        )
        remedies.append(
            "Check the teacher's preprocessing and its dtype (float16 "
            "overflows at 65504)."
        )
    return Finding(
        "not_finite",
        PROBLEM,
        f"The teacher's outputs are NaN or infinite for {bad:,} "
        f"{plural(bad, 'example')}, first in batch {data['first_bad_batch']} "
        f"(counted from 0). The origin is {' and '.join(origins)}. All other "
        "findings are about the rest.",
        {
            key: data[key]
            for key in (
                "not_finite",
                "not_finite_inputs",
                "not_finite_weights",
                "first_bad_batch",
                "examples",
            )
        },
        "There is no soft target on these examples; training on them stops "
        "with an error.",
        " ".join(remedies),
    )


def padding_counts(numbers):
    """Labels beside padding that count like any other."""
    padding = numbers["data"]["padding"]
    if padding is None or padding["share"] < _PADDING_SHARE:
        return None
    label, step = padding["class"], padding["step"]
    inputs = "the same step" if step is None else f"input {step:g}"
    teacher = numbers["teacher"]
    return Finding(
        "padding_counts",
        PROBLEM,
        f"Padding seems to count as examples: {padding['rows']} of "
        f"{padding['sequences']} sequences looked at {padding['side']} with "
        f"{inputs} over and over, and the labels there, of class {label}, are "
        f"{padding['share']:.0%} of those that count. The teacher gets "
        f"{teacher['by_class']['accuracy'][label]:.1%} of all labels of that "
        f"class right, and {teacher['accuracy']:.1%} of all labels.",
        {**padding, "accuracy": teacher["accuracy"]},
        "A student trains on it as well. A teacher that was trained without "
        "padding says anything there; to one that was trained with it, it is "
        "the easiest of examples. Either way accuracy, confidence, w and what "
        "is said of them are of a mixture.",
        "Give the labels beside padding the weight 0, here and in training: "
        "(x, labels, weight). Where class "
        f"{label} stands for nothing else, weight = labels != {label}, or a "
        f"loss with ignore_class={label}, does that.",
    )


def noisy_labels(numbers):
    """Labels, here or in the teacher's training, that are wrong at random."""
    relations = measured_relations(numbers)
    place = relations and relations["strong_competitor_place"]
    if place is None or _relative_spread(relations) < _SMOOTHED_SPREAD:
        return None
    # Half of the unrelated ones are below the middle.
    noise = 2 * relations["strong_competitor_share"] * (1 - place)
    awareness = numbers["agreement"]["error_awareness"]
    signs = [sign for sign in (place, awareness) if sign is not None]
    if sum(signs) / len(signs) > _NOISE_SIGNS or noise < _NOISE_SHARE:
        return None
    # Of text, where a teacher is as sure as it is right, they are words that
    # could follow as well.
    is_text = numbers["data"]["tokens"]
    if is_text and confidence_gap(numbers) < _OVER_CONFIDENT_GAP:
        return None
    return Finding(
        "noisy_labels",
        PROBLEM,
        f"In {relations['strong_competitor_share']:.0%} of the examples the "
        "teacher gives a high probability to a class other than the label, "
        "these classes are little related to the label (place "
        f"{place:.2f}; 0.5 is chance, 1 the most related), and it is hardly "
        f"surer where it is right{_said_awareness(awareness)}. Labels seem "
        f"wrong at random in about {noise:.0%} of the examples, here or where "
        "the teacher was trained.",
        {
            "strong_competitor_share": relations["strong_competitor_share"],
            "strong_competitor_place": place,
            "error_awareness": awareness,
            "estimated_noise": noise,
            "teacher_accuracy": numbers["teacher"]["accuracy"],
        },
        "p(label) then follows the noise instead of the difficulty: KD-pt "
        "turns examples up and down at random, and class relations are washed "
        "out.",
        "Clean the labels (start where the teacher disagrees most), train the "
        "teacher with early stopping or a robust loss, and distil with a high "
        "weight, which trusts the teacher more than the labels.",
    )


def _said_awareness(awareness):
    if awareness is None:
        return ""
    return f" ({awareness:.2f}; 0.5 is chance, 1 whenever it is right)"


def _relative_spread(relations):
    margin = relations["logit_margin"]
    return relations["tail_spread"] / margin if margin > 0 else 1.0


def label_smoothed(numbers):
    """A teacher trained with label smoothing."""
    teacher, relations = numbers["teacher"], measured_relations(numbers)
    gap = teacher["accuracy"] - teacher["confidence"]
    if (
        relations is None
        or gap < UNDER_CONFIDENT_GAP
        or teacher["sure_share"] > _SMOOTHED_SURE_SHARE
        or teacher["skill"] < _LEAST_SKILL[numbers["data"]["tokens"]]
        or _relative_spread(relations) > _SMOOTHED_SPREAD
        or relations["tail"]["explained_beyond_quarter"] > _SMOOTHED_EXPLAINED
    ):
        return None
    return Finding(
        "label_smoothed_teacher",
        PROBLEM,
        "The teacher seems to have been trained with label smoothing: its "
        f"accuracy is {teacher['accuracy']:.1%}, its mean confidence only "
        f"{teacher['confidence']:.1%}, and it hardly distinguishes between "
        "wrong classes.",
        {
            "accuracy": teacher["accuracy"],
            "confidence": teacher["confidence"],
            "sure_share": teacher["sure_share"],
            "spread_over_margin": _relative_spread(relations),
            "explained_by_label": relations["tail"]["explained_beyond_quarter"],
            "relation": relations["relation"],
            "permuted": relations["permuted"],
        },
        "Its class relations (domain knowledge) are erased: the non-target "
        "part of its soft targets is near uniform, and KD gives little more "
        "than label smoothing, which needs no teacher.",
        "Train the teacher without label smoothing (and without mixup). With "
        "this one, KDPt keeps what there is, best at a temperature near 1.",
    )


def temperature_too_high(numbers):
    """Soft targets that amount to label smoothing."""
    temperature = numbers["temperature"]
    limit = temperature["label_smoothing_from"]
    if limit is None or temperature["loss"] <= temperature["best"]:
        return None
    if temperature["nats_at_loss"] >= LABEL_SMOOTHING_NATS:
        return None
    low, high = temperature["suggested"]
    consequence = (
        "Only the universe's part is left in the targets: hardly any class "
        "relations, and the same confidence for every example. "
    )
    if numbers["loss"]["temperature_squared"]:
        consequence += (
            "What remains is kept alive by the factor T ** 2 alone, with which "
            "KD becomes a matching of logits, noise included (Hinton et al. "
            "2015, section 2.1). That can help, but it is another method."
        )
    else:
        consequence += "The teacher's gradient falls with T ** 2 to nothing."
    return Finding(
        "temperature_too_high",
        PROBLEM,
        f"At temperature {temperature['loss']:g} the soft targets are label "
        f"smoothing: they differ from it by {temperature['nats_at_loss']:.4f} "
        f"nats; at temperature {temperature['best']:g}, by "
        f"{max(temperature['nats_beyond_label_smoothing']):.3f}.",
        {
            "temperature": temperature["loss"],
            "nats_at_loss": temperature["nats_at_loss"],
            "nats_at_best": max(temperature["nats_beyond_label_smoothing"]),
            "label_smoothing_from": limit,
        },
        consequence,
        f"A temperature from {low:g} to {high:g} keeps at least half of what "
        "this teacher's soft targets can say.",
    )


def noisy_tail(numbers):
    """Small probabilities that carry no information."""
    relations = measured_relations(numbers)
    if relations is None:
        return None
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
        f"Beyond the top {how_many(tail['quarter'], 'class')} the soft targets "
        f"are noise: they hold {mass:.1%} of the mass, and the label explains "
        f"{explained:.1%} of their variance.",
        {
            "k": tail["quarter"],
            "mass_beyond": mass,
            "explained_beyond": explained,
            "suggested_k": tail["suggested_k"],
        },
        "KD teaches the tail like everything else: the student spends capacity "
        "on noise.",
        f"KDTopK(k={tail['suggested_k']}), which spreads the tail's mass "
        "evenly, or a lower temperature.",
    )


def over_confident(numbers):
    """A teacher that is sure of everything, or of more than it should be."""
    teacher, scale = numbers["teacher"], numbers["gradient_scale"]
    gap = confidence_gap(numbers)
    evidence = {
        "sure_share": teacher["sure_share"],
        "label_probability_deviation": teacher["label_probability_deviation"],
        "confidence": teacher["confidence"],
        "accuracy": teacher["accuracy"],
        "calibration_error": teacher["calibration_error"],
        "w_deviation": scale["deviation"],
    }
    low, high = numbers["temperature"]["suggested"]
    if (
        teacher["sure_share"] >= _SURE_SHARE
        and teacher["label_probability_deviation"] < _LEAST_DEVIATION
    ):
        return Finding(
            "over_confident",
            PROBLEM,
            "The teacher is all but certain: it gives the label a probability "
            f"of at least 0.95 in {teacher['sure_share']:.0%} of the examples.",
            evidence,
            "p(label) hardly tells easy examples from hard ones, so the "
            f"teacher rescales little (w is {scale['mean']:.2f} ± "
            f"{scale['deviation']:.2f}): the instance's part of its knowledge "
            "is lost, and KD-pt is much like plain training with another "
            "learning rate.",
            f"Use a temperature from {low:g} to {high:g}, where its soft "
            "targets say most, or a teacher that was stopped earlier or "
            "regularised more. Data that it has not seen need not help: on "
            "CIFAR-100 it was less right there, and hardly less sure.",
        )
    if gap < _OVER_CONFIDENT_GAP:
        return None
    return Finding(
        "over_confident",
        PROBLEM,
        f"The teacher's mean confidence is {teacher['confidence']:.1%}, its "
        f"accuracy only {teacher['accuracy']:.1%}.",
        evidence,
        "Where it is wrong it is sure of that too, and turns these examples "
        "down further than is justified: w follows its mistakes as much as "
        "the difficulty.",
        "Calibrate it: divide its logits by the temperature that minimises "
        "its cross-entropy on held-out data (Guo et al. 2017). Or lower the "
        "loss's weight.",
    )


def weak_teacher(numbers):
    """A teacher that knows little about the labels.

    One that is right but unsure, as where a temperature has divided its
    logits, knows more than its probabilities say.
    """
    least = _LEAST_SKILL[numbers["data"]["tokens"]]
    is_right = numbers["agreement"]["above_chance"] >= least
    if numbers["teacher"]["skill"] >= least or (
        is_right and _is_modest(numbers)
    ):
        return None
    return knows_little(numbers)


def _is_modest(numbers):
    """Whether a teacher is far less sure than it is right."""
    return confidence_gap(numbers) <= -_OVER_CONFIDENT_GAP


def knows_little(numbers):
    """The finding about a teacher that knows little, however it comes."""
    # One whose confidence is right may know all that can be known.
    if knows_the_odds(numbers) and not _is_modest(numbers):
        return _hard_task(numbers)
    return _weak_teacher(numbers)


def _hard_task(numbers):
    teacher = numbers["teacher"]
    return Finding(
        "hard_task",
        INFO,
        "These labels are hard to predict, and the teacher knows that: "
        f"{_known(teacher)}, at a mean confidence of "
        f"{teacher['confidence']:.1%}.",
        {
            **_evidence_of_skill(teacher),
            "confidence": teacher["confidence"],
            "calibration_error": teacher["calibration_error"],
        },
        "Its soft targets say how likely each label is. Where nobody could "
        "know more, they teach more than the labels.",
        "Distil as from any other teacher. A longer training or a larger "
        "teacher tells whether more can be known.",
    )


def _known(teacher):
    """What a teacher tells of the labels, a clause."""
    return (
        f"it tells {max(teacher['skill'], 0):.0%} of the "
        f"{teacher['label_entropy']:.2f} nats that a label holds (accuracy "
        f"{teacher['accuracy']:.1%})"
    )


def _evidence_of_skill(teacher):
    return {k: teacher[k] for k in ("skill", "accuracy", "cross_entropy")}


def _weak_teacher(numbers):
    teacher = numbers["teacher"]
    return Finding(
        "weak_teacher",
        PROBLEM,
        f"The teacher knows little about these data: {_known(teacher)}.",
        _evidence_of_skill(teacher),
        "Where it is wrong or undecided it turns good examples down, so that "
        "the student learns less from their labels.",
        "Train the teacher longer or larger, check its preprocessing and the "
        "order of its classes, or lower the loss's weight.",
    )


def worse_than_student(numbers):
    """A student that is better than its teacher."""
    student, teacher = numbers["student"], numbers["teacher"]
    if student is None or student["lead"] <= 2 * student["lead_error"]:
        return None
    return Finding(
        "worse_than_student",
        PROBLEM,
        f"The student's accuracy on these data is {student['accuracy']:.1%}, "
        f"the teacher's {teacher['accuracy']:.1%}.",
        {
            "student_accuracy": student["accuracy"],
            "teacher_accuracy": teacher["accuracy"],
            "lead": student["lead"],
            "lead_error": student["lead_error"],
        },
        "The teacher turns down or reverses examples that the student already "
        "gets right.",
        "A better teacher, or a weight that falls to 0 as the student catches "
        "up (keras_kd.callbacks.LossSchedule).",
    )


def never_predicted(numbers):
    """Classes that the teacher never predicts."""
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
        f"The teacher never predicts {len(never)} of the classes on these "
        f"data, which have {share:.1%} of the examples: {named}.",
        {"classes": never[:1000], "count": len(never), "share": share},
        "In these classes the soft target works against every label: their "
        "examples are turned down or reversed.",
        "Check the order of the classes and the teacher's training data. "
        "Balance the data, or leave these classes to the labels.",
    )
