"""The losses that a study compares, by name."""

import keras_kd as kd
from keras_kd.attribution.methods import (
    CONTROLS,
    LEVEL_SETTINGS,
    PLAIN,
    base_of,
)

METHODS = (PLAIN, *kd.losses.NAMES, *LEVEL_SETTINGS, *CONTROLS)


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
    if temperature is not None and base != "label_smoothing":
        settings["temperature"] = temperature
    if k is not None and base in ("kd_topk", "kd_sampled"):
        settings["k"] = k
    return settings
