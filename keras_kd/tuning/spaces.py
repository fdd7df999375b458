"""What is searched: the settings of each method, their ranges, and starts."""

import dataclasses
import numbers

import numpy as np

from keras_kd import losses

PLAIN, SMOOTHING = "plain", "label_smoothing"
# What any gain is measured against: trained without a teacher.
BASELINES = (PLAIN, SMOOTHING)
LEARNING_RATE = "learning_rate"


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may take.

    Attributes:
        low: the lowest.
        high: the highest.
        log: whether they are searched on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False


# Below 0.05 a term hardly moves the student; at 1 the labels have no say of
# their own, which is often best with a good teacher.
_WEIGHT = Range(0.05, 1.0)
# From the teacher as it is to soft targets that are all but even. What a
# diagnosis suggests is let in, be it below 1, which sharpens, or above 20.
_TEMPERATURE = Range(1.0, 20.0, log=True)
# As a share of the classes; Tang et al. report 25 % and 50 % as best. Its low
# end depends on their number, see `_widened`.
_KEPT = Range(0.05, 0.8, log=True)

# A setting that is not listed stays at the trainer's default. Not searched is
# what would only rescale another: the weight of label smoothing (only its
# product with `smoothing` counts) and `alpha` of DKD (of three coefficients two
# ratios count, and the learning rate).
SPACES = {
    PLAIN: {},
    SMOOTHING: {"smoothing": Range(0.01, 0.5, log=True), "weight": 1.0},
    "kd_pt": {"weight": _WEIGHT, "temperature": _TEMPERATURE},
    # `label_mass` is alpha in numbers that mean the same in every network. The
    # target does not know the temperature, which stays 1.
    "kd_sim": {
        "weight": _WEIGHT,
        "label_mass": Range(0.5, 0.99),
        "beta": Range(0.5, 4.0, log=True),
    },
    # The two may not sum to more than 1.
    "kd_pt_sim": {
        "pt_weight": Range(0.05, 0.7),
        "sim_weight": Range(0.02, 0.3, log=True),
        "temperature": _TEMPERATURE,
    },
    "kd_topk": {
        "k": _KEPT,
        "weight": _WEIGHT,
        "temperature": _TEMPERATURE,
    },
    "kd_sampled": {
        "k": _KEPT,
        "weight": _WEIGHT,
        "temperature": _TEMPERATURE,
    },
    "kd": {"weight": _WEIGHT, "temperature": _TEMPERATURE},
    # Published values of beta go from 1 to 8.
    "dkd": {
        "weight": _WEIGHT,
        "beta": Range(0.5, 16.0, log=True),
        "temperature": _TEMPERATURE,
    },
}


def spaces(methods, overrides=None, learning_rate=None, advice=None):
    """The settings to search, by method.

    Args:
        methods: names.
        overrides: optional dict by method of dicts by setting of a (low,
            high), a list of choices, or the one value to keep.
        learning_rate: optional (low, high) for all methods.
        advice: what `keras_kd.tuning.advice.advice_of` returned.

    Returns:
        Dict by method of dicts by setting of a `Range`, a list or a value.

    Raises:
        ValueError: for overrides of another method, of a setting that the loss
            does not have, or of values that it does not take.
    """
    overrides = overrides or {}
    unknown = sorted(set(overrides) - set(methods))
    if unknown:
        raise ValueError(
            "`space` is by method, of those that are tried. Received: "
            f"{unknown[0]!r}, where {', '.join(methods)} are tried. Use one of "
            "their names."
        )
    found = {}
    for method in methods:
        space = _widened(dict(SPACES.get(method, {})), method, advice)
        for setting, given in overrides.get(method, {}).items():
            space[setting] = _given(method, setting, given, space.get(setting))
        _check_values(method, space)
        if learning_rate is not None:
            space[LEARNING_RATE] = _given(
                method, LEARNING_RATE, tuple(learning_rate), Range(0, 0, True)
            )
        found[method] = space
    return found


def _widened(space, method, advice):
    """A space that fits the classes, and has what a diagnosis suggests."""
    if "k" in space and advice and (classes := advice["classes"]):
        # At least one class; of a large vocabulary 16 are worth trying.
        low = max(1 / classes, min(_KEPT.low, 16 / classes))
        space["k"] = dataclasses.replace(_KEPT, low=low)
    for start in (advice or {}).get("starts", []):
        for setting, value in start["settings"].items():
            own = space.get(setting)
            if start["method"] == method and own is not None:
                space[setting] = dataclasses.replace(
                    own, low=min(own.low, value), high=max(own.high, value)
                )
    return space


def _given(method, setting, given, own):
    """A user's restriction of a setting as a `Range`, a list or a value."""
    if isinstance(given, list) and not given:
        raise ValueError(
            "A setting needs at least one choice. Received: [] for "
            f"{setting!r} of {method!r}. Leave it out for the usual range."
        )
    if not isinstance(given, tuple):
        return given
    log = own.log if isinstance(own, Range) else False
    if (
        len(given) != 2
        or not all(isinstance(each, numbers.Real) for each in given)
        or not given[0] < given[1]
        or (log and given[0] <= 0)
    ):
        above = ", above 0," if log else ""
        raise ValueError(
            f"A range is two numbers{above} the lower one first. Received: "
            f"{given} for {setting!r} of {method!r}. Give (low, high), a list "
            "of choices, or the one value to keep."
        )
    return Range(*np.asarray(given).tolist(), log=log)


def _check_values(method, space):
    """Makes losses of the lowest and of the highest values."""
    if method not in losses.NAMES:
        return
    for pick in (0, -1):
        arguments = {key: _ends(each)[pick] for key, each in space.items()}
        try:
            losses.get(method, **arguments)
        except TypeError as error:
            known = ", ".join(losses.get(method).get_config())
            raise ValueError(
                f"The loss {method!r} does not have such a setting. Received: "
                f"{', '.join(space)} ({error}). It has {known}."
            ) from error


def _ends(each):
    """The first and the last value of what a setting may be."""
    if isinstance(each, Range):
        return each.low, each.high
    return each if isinstance(each, list) else [each]


def is_free(each):
    """Whether there is anything to choose."""
    return isinstance(each, Range | list)


def starts(space_of, defaults, advice=None):
    """What to try first, the most important first.

    Args:
        space_of: what `spaces` returned.
        defaults: function of a method that returns its default settings, or
            more.
        advice: what `keras_kd.tuning.advice.advice_of` returned.

    Returns:
        List of triples: why, the method, and its settings inside the space.
    """
    classes = (advice or {}).get("classes")
    own = {method: ("default", method, {}) for method in space_of}
    first = [own.pop(m) for m in (*BASELINES, "kd") if m in own]
    advised = [
        ("diagnosis", each["method"], each["settings"])
        for each in (advice or {}).get("starts", [])
        if each["method"] in space_of
    ]
    found = []
    for why, method, changed in [
        *first,
        *advised[:1],
        *own.values(),
        *advised[1:],
    ]:
        values = {**defaults(method), **changed}
        settings = {
            setting: _inside(each, _share(setting, values, each, classes))
            for setting, each in space_of[method].items()
            if values.get(setting) is not None
        }
        if (method, settings) not in [start[1:] for start in found]:
            found.append((why, method, settings))
    return found


def _share(setting, values, each, classes):
    """The value; a number of classes as a share, where shares are searched."""
    value = values[setting]
    of_shares = isinstance(each, Range) and each.high <= 1
    if setting == "k" and of_shares and isinstance(value, int) and classes:
        return value / classes
    return value


def _inside(each, value):
    """The value, or the nearest to it that is allowed."""
    if isinstance(each, Range):
        return min(max(value, each.low), each.high)
    if isinstance(each, list):
        return value if value in each else each[0]
    return each
