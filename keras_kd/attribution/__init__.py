"""What each part of a teacher's knowledge was worth to a student.

Each method trains a student with one part of the knowledge, or with a control
that has the smoothing of that part without its knowledge. Methods of one seed
are paired: their difference is free of what that seed did to all of them.

`attribute` runs the methods of `levels`, with the losses of `methods` and the
controls of `controls`; `results` checks what a run returns, and `runs` keeps
it; `intervals` compares; `outcome` says what was found, `pictures` draws it,
and `report` writes it.
"""

from keras_kd.attribution.attribute import attribute
from keras_kd.attribution.controls import (
    permuted_logit_weights,
    shuffle_within_labels,
)
from keras_kd.attribution.intervals import Interval, holm, paired_interval
from keras_kd.attribution.levels import (
    DEFAULT_METHODS,
    LEVELS,
    METHODS,
    Level,
)
from keras_kd.attribution.methods import make_loss
from keras_kd.attribution.outcome import Attribution, Comparison
from keras_kd.attribution.report import write_hparams

__all__ = [
    "DEFAULT_METHODS",
    "LEVELS",
    "METHODS",
    "Attribution",
    "Comparison",
    "Interval",
    "Level",
    "attribute",
    "holm",
    "make_loss",
    "paired_interval",
    "permuted_logit_weights",
    "shuffle_within_labels",
    "write_hparams",
]
