"""The losses by name."""

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
        ValueError: if there is no loss of that name.

    Example:
    >>> loss = kd.losses.get("kd_topk", k=25)
    """
    if isinstance(identifier, DistillationLoss):
        return identifier
    if not isinstance(identifier, str) or identifier not in _BY_NAME:
        raise ValueError(
            "A distillation loss is a `keras_kd.losses.DistillationLoss` or "
            f"its name. Received: {identifier!r}. The names are "
            f"{', '.join(NAMES)}. For plain training fit the student itself."
        )
    return _BY_NAME[identifier](**kwargs)
