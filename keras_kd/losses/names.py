"""The losses by name."""

import inspect

import keras

from keras_kd.losses.base import DistillationLoss
from keras_kd.losses.decoupled import DKD
from keras_kd.losses.methods import (
    KD,
    KDPt,
    KDPtSim,
    KDSim,
    KDTopK,
    LabelSmoothing,
)
from keras_kd.losses.sampled import KDSampled

_BY_NAME = {
    "label_smoothing": LabelSmoothing,
    "kd_pt": KDPt,
    "kd_sim": KDSim,
    "kd_pt_sim": KDPtSim,
    "kd_topk": KDTopK,
    "kd_sampled": KDSampled,
    "kd": KD,
    "dkd": DKD,
}
NAMES = tuple(_BY_NAME)
# What any of them takes from the teacher for each example.
STATISTICS = frozenset(
    name for loss in _BY_NAME.values() for name in loss.statistics
)


def get(identifier, **kwargs):
    """A loss by name.

    Args:
        identifier: one of `NAMES`, or a `DistillationLoss`, returned as it is.
        **kwargs: arguments of the loss's constructor.

    Returns:
        A `DistillationLoss`.

    Raises:
        ValueError: if no loss has that name, or it is the class of a loss.

    Example:
    >>> loss = kd.losses.get("kd_topk", k=25)
    """
    if isinstance(identifier, DistillationLoss):
        return identifier
    if inspect.isclass(identifier) and issubclass(identifier, DistillationLoss):
        raise ValueError(
            "A distillation loss is an instance of its class. Received: the "
            f"class {identifier.__name__}. Call it: {identifier.__name__}()."
        )
    if not isinstance(identifier, str) or identifier not in _BY_NAME:
        raise ValueError(
            "A distillation loss is a `keras_kd.losses.DistillationLoss` or "
            f"its name. Received: {identifier!r}. The names are "
            f"{', '.join(NAMES)}. For plain training fit the student itself."
        )
    return _BY_NAME[identifier](**kwargs)


def get_all(identifiers):
    """Several losses by name.

    Args:
        identifiers: as `get` takes them, one or nested at will.

    Returns:
        List of `DistillationLoss`es.

    Raises:
        ValueError: as `get` does.
    """
    return [get(each) for each in keras.tree.flatten(identifiers)]
