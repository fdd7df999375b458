"""Faults of use: a teacher that is not used as it was trained.

Rules like those of `causes`, which come first: whatever else could be said of
such a teacher follows from the fault. The thresholds were set on the kinds of
teachers and the seeds that `recipes/failures.py` names for it; it reports
others.
"""

import math

from keras_kd.diagnosis.finding import PROBLEM, Finding
from keras_kd.diagnosis.measures import (
    commonest_share,
    confidence_gap,
    knows_the_odds,
)
from keras_kd.diagnosis.relations import FAR_AHEAD
from keras_kd.reports.numbers import plural

# A teacher is looked at more closely if so much less is right than it believes,
_SUSPECT_GAP = 0.1
# or if it avoids less than this share of the errors of chance: beyond, no other
# form of the inputs could gain what counts,
_SUSPECT_ABOVE_CHANCE = 0.85
# or if its first normalisation layers meet means that are so many standard
# deviations, or standard deviations that are such a factor, from the expected.
_STRANGE_DISTANCE = 0.5
_STRANGE_SCALE = 2.0
# Below this it is near chance, and nothing can be said of its soft targets.
NEAR_CHANCE = 0.1
# Above this it is used as it was trained, as far as predictions can tell.
_POOR = 0.5
# The inputs are strange if in such a share of the examples the label's logit is
# further above every other than training puts it. Masks that leave one class
# alone do that in a few examples.
_STRANGE_SHARE = 0.5
# With strange inputs, below this it misses what it would know.
_MISSING = 0.75
# A gain in accuracy that counts, and in how many standard errors.
_LEAST_GAIN = 0.15
_ERRORS = 4
# Labels of classes in another order have a likeliest prediction each; those of
# another label set share them (of as many labels, about 0.63 are distinct).
_LEAST_DISTINCT = 0.85
# Few labels may by chance have one each; these must also be mostly right.
_FEW_CLASSES, _MOSTLY_RIGHT = 20, 0.5
# In the right order the teacher is about as right as it is sure.
_CONFIRMED = 0.5
# Predictions of a teacher in use are about as varied as the labels.
_VARIED = 0.7
_COLLAPSED = 0.5
# Who falls back on the commonest label is about as often right as it is found.
_COMMON = 0.9
# Moving averages that have come this far do no harm; of those of one training,
# so many have come as far.
_SETTLED, _MOST = 0.95, 0.8
# On layers that are not its own, a trained head may by chance tell as much of a
# label as this; one that tells more, and knows how much, was trained on them.
_BY_CHANCE = 0.1
# Cramér's V of unrelated labels is within this of 0.
_RELATED = 0.1


def is_suspect(numbers):
    """Whether a teacher may be used in another way than it was trained.

    Args:
        numbers: of a `keras_kd.Diagnosis`: "teacher", "agreement" and
            "inputs".

    Returns:
        A boolean.
    """
    agreement = numbers["agreement"]
    return bool(
        confidence_gap(numbers) > _SUSPECT_GAP
        or agreement["above_chance"] < _SUSPECT_ABOVE_CHANCE
        or strange_layers(numbers)
    )


def strange_layers(numbers):
    """The first normalisation layers that meet what they don't expect."""
    inputs = numbers["inputs"]
    return [
        layer
        for layer in (inputs["normalisers"] if inputs else ())
        if layer["distance"] > _STRANGE_DISTANCE
        or not 1 / _STRANGE_SCALE < layer["scale"] < _STRANGE_SCALE
    ]


def is_near_chance(numbers):
    """Whether a teacher's predictions are hardly better than chance."""
    return numbers["agreement"]["above_chance"] < NEAR_CHANCE


def _said(numbers):
    """What every fault shows."""
    teacher = numbers["teacher"]
    return (
        f"The teacher gets {teacher['accuracy']:.1%} of the labels right "
        f"({numbers['agreement']['chance']:.1%} would be chance) at a mean "
        f"confidence of {teacher['confidence']:.1%}"
    )


def _evidence(numbers, **others):
    teacher, agreement = numbers["teacher"], numbers["agreement"]
    return {
        "accuracy": teacher["accuracy"],
        "confidence": teacher["confidence"],
        **{k: agreement[k] for k in ("chance", "dependence")},
        **others,
    }


_CONSEQUENCE = (
    "Its soft targets are about something else than these examples: every "
    "part of its knowledge works against the labels. Whatever else could be "
    "said of it follows from that, and can be judged once it is mended."
)


def untrained_teacher(numbers):
    """Weights, or those of the last layer, that were never trained."""
    weights = numbers["weights"]
    if (
        weights is None
        or not weights["last"]
        or numbers["agreement"]["above_chance"] >= _POOR
    ):
        return None
    names = weights["untrained"]
    everything = 1 < len(names) == weights["layers"]
    return _untrained(
        numbers,
        (
            f"all of its {weights['layers']} layers look as if just created"
            if everything
            else f"its last layer, {names[-1]!r}, looks as if just created"
        )
        + _AS_CREATED,
    )


_AS_CREATED = " (biases of 0, and a kernel as its initialiser draws it)"


def untrained_layers(numbers):
    """Layers below a trained last one that were never trained."""
    weights = numbers["weights"]
    if (
        weights is None
        or weights["last"]
        or not weights["untrained"]
        or numbers["agreement"]["above_chance"] >= _POOR
        or (
            knows_the_odds(numbers) and numbers["teacher"]["skill"] > _BY_CHANCE
        )
    ):
        return None
    names = weights["untrained"]
    look = "looks" if len(names) == 1 else "look"
    return _untrained(
        numbers,
        f"of its {weights['layers']} layers, {_named(names)} {look} as if "
        f"just created{_AS_CREATED}",
    )


def unsettled_averages(numbers):
    """Batch normalisation whose moving averages are still where they began.

    With inputs of another scale, a batch's own statistics mend that too; but
    then the averages of most layers have not come the same part of the way.
    """
    averages = numbers["inputs"] and numbers["inputs"]["averages"]
    accuracy = numbers["teacher"]["accuracy"]
    if (
        not averages
        or averages["progress"] > _SETTLED
        or averages["alike"] < _MOST
        or not _is_gain(accuracy, averages["accuracy"], averages["examples"])
    ):
        return None
    several = averages["layers"] > 1
    return Finding(
        "unsettled_averages",
        PROBLEM,
        "The moving averages of the teacher's batch normalisation are not "
        "those of its training: they have come "
        f"{max(averages['progress'], 0):.0%} of the way from 0 and 1, where "
        f"they begin, to these data's means and variances"
        + (f", in {averages['layers']} layers alike" if several else "")
        + f". {_said(numbers)}; by the statistics of "
        f"{averages['examples']} examples themselves, as in training, "
        f"{averages['accuracy']:.1%}."
        + (
            ""
            if several
            else " With one such layer, inputs on another scale might look "
            "alike."
        ),
        _evidence(
            numbers,
            **{f"averages_{k}": v for k, v in averages.items()},
        ),
        "Its weights are trained, but in inference, which is what a teacher "
        "is used in, it normalises by other numbers than in training, and its "
        "soft targets are wrong.",
        "Recompute the averages: go over the training data with "
        "teacher(x, training=True), with no optimizer, for some hundred "
        "batches (at a momentum of 0.99, 500). Or train it longer, or with "
        "BatchNormalization(momentum=0.9). If they were settled once, check "
        "that they were loaded with the weights.",
    )


def _named(layers):
    """Names of layers in words, not more than can be read."""
    named = ", ".join(map(repr, layers[:5]))
    return named + (f" and {len(layers) - 5} more" if layers[5:] else "")


def indifferent_teacher(numbers):
    """A teacher that gives all classes nearly the same probability."""
    if not _is_indifferent(numbers):
        return None
    return _untrained(
        numbers,
        "it gives all classes nearly the same probability, as untrained "
        "weights do",
    )


def _untrained(numbers, what):
    weights = numbers["weights"] or {"untrained": [], "layers": 0}
    untrained = weights["untrained"]
    return Finding(
        "untrained_teacher",
        PROBLEM,
        f"The teacher is not trained, or not loaded: {what}. {_said(numbers)}.",
        _evidence(
            numbers,
            untrained_layers=untrained,
            layers=weights["layers"],
        ),
        "Its soft targets are noise; there is nothing to distil.",
        "Load the weights before you distil, and check that "
        f"{'those of ' + _named(untrained) if untrained else 'all'} are among "
        "them: load_weights(..., skip_mismatch=True), and weights=None or "
        "include_top=False, leave out layers without an error.",
    )


def _is_indifferent(numbers):
    """Whether a teacher is near chance and knows it."""
    even = 1 / numbers["data"]["classes"]
    return (
        is_near_chance(numbers)
        and numbers["teacher"]["confidence"] - even < min(even / 2, 0.05)
        and numbers["agreement"]["label_entropy"] > 0
        and not strange_layers(numbers)
    )


def one_class(numbers):
    """Data that can't show what a teacher knows."""
    teacher = numbers["teacher"]
    seen = [c for c, n in enumerate(teacher["by_class"]["examples"]) if n]
    if len(seen) != 1:
        return None
    count = numbers["data"]["examples"]
    return Finding(
        "one_class",
        PROBLEM,
        (
            f"All {count:,} labels are of class {seen[0]}: "
            if count > 1
            else f"The only label is of class {seen[0]}: "
        )
        + "data of one class can't show whether the teacher tells classes "
        f"apart. It gets {teacher['accuracy']:.1%} of them right at a mean "
        f"confidence of {teacher['confidence']:.1%}, as one that always says "
        "the same might.",
        {
            "class": seen[0],
            **{k: teacher[k] for k in ("accuracy", "confidence")},
        },
        "Nothing is said of what the teacher knows, of its calibration and of "
        "class relations.",
        "Diagnose on data of all classes. If these should be, look for data "
        "sorted by class of which only the start was read, and for labels "
        "that were lost.",
    )


def few_examples(numbers):
    """So few that a good teacher may be near chance on them by chance."""
    accuracy, n = numbers["teacher"]["accuracy"], numbers["data"]["examples"]
    chance = numbers["agreement"]["chance"]
    # Agresti and Coull's upper end of a 95 % interval of the accuracy.
    middle = (accuracy * n + 2) / (n + 4)
    highest = middle + 2 * math.sqrt(middle * (1 - middle) / (n + 4))
    if (
        not is_near_chance(numbers)
        or highest - chance < _POOR * (1 - chance)
        or strange_layers(numbers)
        or inputs_too_large(numbers)
    ):
        return None
    return Finding(
        "few_examples",
        PROBLEM,
        f"{_said(numbers)}, but {n} {plural(n, 'example')} can't tell a "
        "teacher that is near chance from one that had bad luck.",
        _evidence(numbers, examples=n, accuracy_up_to=min(highest, 1.0)),
        "Nothing is said of what the teacher knows, of its calibration and of "
        "class relations.",
        "Diagnose on some hundred examples or more.",
    )


def class_order(numbers):
    """Labels and teacher that count the same classes in another order."""
    found = numbers["agreement"]["assignment"]
    if found is None:
        return _vocabulary_shift(numbers)
    moved, n = found["moved"], found["moved_examples"]
    if moved < 2 or not n:
        return None
    few = len(found["mapping"]) < _FEW_CLASSES
    if (
        not _is_gain(
            found["moved_accuracy_unmapped"], found["moved_accuracy"], n
        )
        or found["distinct"] < _LEAST_DISTINCT
        or (few and found["moved_accuracy"] < _MOSTLY_RIGHT)
        or found["moved_accuracy"]
        < _CONFIRMED * numbers["teacher"]["confidence"]
    ):
        return None
    shift = found["shift"]
    mapping = dict(found["mapping"])
    examples = [(c, k) for c, k in mapping.items() if c != k][:5]
    return Finding(
        "class_order",
        PROBLEM,
        "The labels count the classes in another order than the teacher: "
        + (
            _shift_in_words(shift)
            if shift
            else "label "
            + ", ".join(f"{c} is its class {k}" for c, k in examples)
            + (f", ... ({moved} labels in all)" if moved > 5 else "")
        )
        + f". Mapped so, {found['accuracy']:.1%} of the labels are right on "
        "examples that the mapping was not found on; as they are, "
        f"{found['accuracy_unmapped']:.1%}.",
        _evidence(
            numbers,
            mapped_accuracy=found["accuracy"],
            moved=moved,
            shift=shift,
            mapping=found["mapping"],
        ),
        _CONSEQUENCE,
        _shift_remedy(shift, found["wraps"] and numbers["data"]["classes"])
        if shift
        else "Bring the labels into the teacher's order: "
        "labels = numpy.array(order)[labels], with order[label] from this "
        "finding's `mapping`. Folders sorted by name and a list of classes "
        "sorted by number are two orders.",
    )


def _vocabulary_shift(numbers):
    """The same for more classes than a table can hold."""
    shift, n = numbers["agreement"]["shift"], numbers["data"]["examples"]
    accuracy = numbers["teacher"]["accuracy"]
    if not _is_gain(accuracy, shift["agreement"], n):
        return None
    return Finding(
        "class_order",
        PROBLEM,
        "The labels count the classes in another order than the teacher: "
        f"{_shift_in_words(shift['classes'])}. So {shift['agreement']:.1%} "
        f"are right; as they are, {accuracy:.1%}.",
        _evidence(numbers, shift=shift["classes"]),
        _CONSEQUENCE,
        _shift_remedy(shift["classes"]),
    )


def _shift_in_words(shift):
    """In words: the teacher's class is the label and so many more."""
    if shift < 0:
        counted = "from 1" if shift == -1 else f"from {-shift}"
        return (
            f"each label is its class {-shift} lower, as where labels are "
            f"counted {counted}"
        )
    classes = "one class" if shift == 1 else f"{shift} classes"
    return (
        f"each label is its class {shift} higher, as where the teacher has "
        f"{classes} before the first one, such as a background class"
    )


def _shift_remedy(shift, modulo=None):
    shifted = f"labels {'+' if shift > 0 else '-'} {abs(shift)}"
    if modulo:
        shifted = f"({shifted}) % {modulo}"
    return f"Shift the labels: {shifted}."


def _is_gain(before, after, examples):
    error = math.sqrt(max(after * (1 - after), 1e-4) / max(examples, 1))
    return after - before > max(_LEAST_GAIN, _ERRORS * error)


def labels_of_rows_nearby(numbers):
    """Labels that are a constant number of rows away from their inputs."""
    offset = numbers["agreement"]["offset"]
    accuracy, n = numbers["teacher"]["accuracy"], numbers["data"]["examples"]
    if offset is None or not _is_gain(accuracy, offset["agreement"], n):
        return None
    rows = offset["rows"]
    what = "token" if numbers["data"]["tokens"] else "row"
    count = f"{abs(rows)} {what}{'s' if abs(rows) > 1 else ''}"
    where = "after" if rows > 0 else "before"
    return Finding(
        "misaligned_labels",
        PROBLEM,
        f"The labels belong to other {what}s: the label of each {what} is "
        f"found {count} {where} it. {_said(numbers)}; of the labels {count} "
        f"{where}, {offset['agreement']:.1%}.",
        _evidence(numbers, offset=rows, agreement=offset["agreement"]),
        _CONSEQUENCE,
        f"Move the labels by {count}: look for a header line that was read "
        "as an example, or an example that was dropped from one file alone"
        + (
            ", and for next-token labels that are made twice or not at all."
            if numbers["data"]["tokens"]
            else "."
        ),
    )


def misaligned_labels(numbers):
    """Labels that have nothing to do with their rows."""
    teacher, agreement = numbers["teacher"], numbers["agreement"]
    dependence, chance = agreement["dependence"], agreement["chance"]
    if (
        not is_near_chance(numbers)
        or (dependence is not None and dependence > _RELATED)
        or _variety(agreement) < _VARIED
        or teacher["confidence"] < min(2 * chance, (1 + chance) / 2)
    ):
        return None
    return Finding(
        "misaligned_labels",
        PROBLEM,
        f"The labels belong to other rows. {_said(numbers)}, its predictions "
        "are as varied as the labels, and they have nothing to do with each "
        "other.",
        _evidence(numbers, variety=_variety(agreement)),
        _CONSEQUENCE,
        "Pair inputs and labels again: look for one of them that was shuffled "
        "or sorted alone, or two lists of files in different orders.",
    )


def _variety(agreement):
    """The predictions' entropy as a share of the labels'."""
    return agreement["prediction_entropy"] / max(
        agreement["label_entropy"], 1e-9
    )


def inputs_of_another_form(numbers):
    """Inputs that the teacher knows in another form, which was tried."""
    inputs = numbers["inputs"]
    form = inputs and inputs["form"]
    if not form:
        return None
    return Finding(
        "wrong_inputs",
        PROBLEM,
        f"The inputs are {form['name']}: of {form['examples']} examples the "
        f"teacher gets {form['after']:.1%} right if that is mended, and "
        f"{form['before']:.1%} as they are. {_looks_in_words(inputs['looks'])}"
        + _layers_in_words(strange_layers(numbers)),
        _evidence(
            numbers,
            **{k: form[k] for k in ("before", "after", "examples")},
            **inputs["looks"],
        ),
        _CONSEQUENCE,
        f"{form['remedy']} Do for the teacher what was done in its training, "
        "and check that no layer of it does the same again.",
    )


def wrong_inputs(numbers):
    """Inputs that the teacher was not trained on, in a way not known."""
    inputs, agreement = numbers["inputs"], numbers["agreement"]
    strange = strange_layers(numbers)
    above = agreement["above_chance"]
    gap = confidence_gap(numbers)
    missed = above < _MISSING or gap > _SUSPECT_GAP
    # A language model often predicts a frequent word and is seldom right, but
    # it knows that.
    unaware = gap > _SUSPECT_GAP or (
        is_near_chance(numbers) and not _falls_back_on_a_class(numbers)
    )
    collapsed = above < _POOR and unaware and _variety(agreement) < _COLLAPSED
    if not collapsed and not (strange and missed):
        return None
    seen = sum(1 for n in numbers["teacher"]["by_class"]["predicted"] if n)
    return Finding(
        "wrong_inputs",
        PROBLEM,
        "The inputs are not such as the teacher was trained on. "
        f"{_said(numbers)}, and predicts "
        + (
            f"few classes ({seen} of {numbers['data']['classes']} at all). "
            if collapsed
            else f"{seen} of {numbers['data']['classes']} classes. "
        )
        + (_looks_in_words(inputs["looks"]) if inputs else "")
        + _layers_in_words(strange),
        _evidence(
            numbers,
            variety=_variety(agreement),
            **(inputs["looks"] if inputs else {}),
        ),
        _CONSEQUENCE,
        "Do for the teacher what was done in its training: range, mean and "
        "deviation, order of colours, size and crop, tokens and their ids; "
        "and check that neither it nor the data do so twice.",
    )


def _falls_back_on_a_class(numbers):
    """Whether a teacher has learnt little but how often classes occur.

    Then it is about as often right as if it always said the commonest label,
    and knows that. Where labels are rare, a gap of half of that is large.
    """
    teacher = numbers["teacher"]
    accuracy = teacher["accuracy"]
    return (
        accuracy >= _COMMON * commonest_share(numbers)
        and _variety(numbers["agreement"]) < _COLLAPSED
        and confidence_gap(numbers) < min(accuracy / 2, _SUSPECT_GAP)
    )


def inputs_too_large(numbers):
    """Logits as no training makes them, though the predictions are right.

    A network without biases, or nearly so, gives logits that grow with its
    inputs and predicts the same.
    """
    relations, inputs = numbers["class_relations"], numbers["inputs"]
    if relations is None or relations["far_ahead_share"] < _STRANGE_SHARE:
        return None
    looks = inputs["looks"] if inputs else {}
    return Finding(
        "wrong_inputs",
        PROBLEM,
        "The inputs are on another scale than those the teacher was trained "
        f"on: in {relations['far_ahead_share']:.0%} of the examples the "
        f"label's logit is more than {FAR_AHEAD} above every other, where "
        "training stops long before. " + _looks_in_words(looks),
        _evidence(
            numbers, far_ahead_share=relations["far_ahead_share"], **looks
        ),
        "Its soft targets are all but one-hot: nothing of its confidence and "
        "of its class relations is left.",
        "Give the teacher inputs in the range that it was trained on, such as "
        "x / 255. If its logits are meant to be so large, divide them.",
    )


def _looks_in_words(looks):
    """What the inputs look like, a sentence."""
    if "least" not in looks:
        return ""
    words = (
        f"They are {looks['dtype']} from {looks['least']:.3g} to "
        f"{looks['most']:.3g}, mean {looks['mean']:.3g}, deviation "
        f"{looks['deviation']:.3g}"
    )
    if "channel_means" in looks:
        means = ", ".join(f"{mean:.3g}" for mean in looks["channel_means"])
        words += f" (means of the channels {means})"
    return words + "."


def _layers_in_words(strange):
    """What the first strange layer meets and expects, a sentence."""
    if not strange:
        return ""
    layer = strange[0]
    return (
        f" The teacher's layer {layer['layer']!r} meets means that are "
        f"{layer['distance']:.2g} of its standard deviations from the "
        f"expected, and deviations {layer['scale']:.2g} times the expected."
    )


def other_classes(numbers):
    """A teacher that knows other classes than those of the labels."""
    agreement = numbers["agreement"]
    dependence = agreement["dependence"]
    unknown = agreement["predicted_without_label"]
    elsewhere = unknown > _POOR and agreement["above_chance"] < _POOR
    related = (
        is_near_chance(numbers) or _moved_away(agreement["assignment"])
    ) and (dependence is not None and dependence > _RELATED)
    related = related and not (
        _falls_back_on_a_class(numbers) or knows_the_odds(numbers)
    )
    if not elsewhere and not related:
        return None
    return Finding(
        "other_classes",
        PROBLEM,
        f"The teacher knows other classes than those of the labels. "
        f"{_said(numbers)}; "
        + (
            f"{unknown:.0%} of its predictions are classes that no label has."
            if elsewhere
            else "its predictions depend on the label, but several labels "
            "share their likeliest prediction, so that no order of the "
            "classes would do."
        ),
        _evidence(numbers, predicted_without_label=unknown),
        _CONSEQUENCE,
        "Use a teacher of this label set: train it, or give this one a new "
        "last layer and train that. If it was trained on these classes, its "
        "inputs are not what they were in its training.",
    )


def _moved_away(assignment):
    """Whether most labels are better predicted by another class."""
    return (
        assignment is not None
        and assignment["moved_share"] > _POOR
        and _is_gain(
            assignment["moved_accuracy_unmapped"],
            assignment["moved_accuracy"],
            assignment["moved_examples"],
        )
    )
