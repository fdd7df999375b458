"""The losses that a study compares, by name."""

import keras_kd as kd
from keras_kd.attribution.methods import (
    CONTROLS,
    LEVEL_SETTINGS,
    PLAIN,
    base_of,
)

# Has no temperature.
SMOOTHING = "label_smoothing"
# Those that keep some of the classes.
KEEPING_K = ("kd_topk", "kd_sampled")
METHODS = (PLAIN, *kd.losses.NAMES, *LEVEL_SETTINGS, *CONTROLS)

# The temperature and the weight of KD that the field uses on CIFAR-100 (Tian
# et al. 2020); none of them was tuned here.
CIFAR_ARGUMENTS = {
    "kd_pt": {"weight": 0.5, "temperature": 4.0},
    "kd_pt_sim": {"pt_weight": 0.4, "sim_weight": 0.1, "temperature": 4.0},
    "kd_topk": {"weight": 0.9, "temperature": 4.0},
    "kd_sampled": {"weight": 0.9, "temperature": 4.0},
    "kd": {"weight": 0.9, "temperature": 4.0},
    # As published: the cross-entropy weighs as much as alpha.
    "dkd": {"weight": 0.5, "temperature": 4.0, "beta": 8.0},
}

# Chosen on the validation part of CPython's text, with one seed. Spread over
# thousands of words the even share of KD-pt costs perplexity, hence its small
# weight.
TEXT_ARGUMENTS = {
    # Its weight is then the usual smoothing.
    "label_smoothing": {"smoothing": 1.0, "weight": 0.1},
    "kd_pt": {"weight": 0.1, "temperature": 4.0},
    "kd_sim": {"weight": 1.0, "temperature": 1.0},
    "kd_pt_sim": {"pt_weight": 0.1, "sim_weight": 0.5, "temperature": 1.0},
    "kd_topk": {"weight": 0.5, "temperature": 1.0},
    "kd_sampled": {"weight": 0.5, "temperature": 1.0},
    "kd": {"weight": 0.5, "temperature": 1.0},
    "dkd": {"weight": 0.5, "temperature": 1.0, "beta": 1.0},
}

# Likewise, for LSTMs trained by SGD: better trained students want less of what
# is spread evenly.
SGD_TEXT_ARGUMENTS = {
    **TEXT_ARGUMENTS,
    "label_smoothing": {"smoothing": 1.0, "weight": 0.01},
    "kd_pt": {"weight": 0.03, "temperature": 4.0},
    "kd_sim": {"weight": 0.1, "temperature": 1.0},
    "kd_pt_sim": {"pt_weight": 0.05, "sim_weight": 0.25, "temperature": 1.0},
    "kd_topk": {"weight": 0.5, "temperature": 1.5},
    "kd_sampled": {"weight": 0.5, "temperature": 1.5},
    "kd": {"weight": 0.5, "temperature": 1.5},
}


def settings_of(name, arguments=None, weight=None, temperature=None, k=None):
    """The settings of a method's loss; see `keras_kd.attribution.make_loss`.

    Args:
        name: out of `METHODS`.
        arguments: optional dict by name of dicts of arguments, where the
            losses' own defaults do not suit.
        weight: of the distillation term; `None` for the loss's own.
        temperature: of the losses that have one; `None` for the loss's own.
        k: of the losses that keep k classes; `None` for the loss's own.

    Returns:
        A dict.
    """
    base = base_of(name)
    # What fills up a last batch has weight 0 and must not count in the mean.
    settings = {"reduction": "mean_with_sample_weight"}
    if base == PLAIN:
        return settings
    settings |= (arguments or {}).get(base, {})
    if weight is not None:
        settings["weight"] = weight
    if temperature is not None and base != SMOOTHING:
        settings["temperature"] = temperature
    if k is not None and base in KEEPING_K:
        settings["k"] = k
    return settings
