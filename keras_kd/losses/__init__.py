"""Partial-KD losses: the methods, and what a loss of your own is made of."""

from keras_kd.losses.base import DistillationLoss, LossParts
from keras_kd.losses.decoupled import DKD
from keras_kd.losses.methods import (
    KD,
    KDPt,
    KDPtSim,
    KDSim,
    KDTopK,
    LabelSmoothing,
)
from keras_kd.losses.names import NAMES, get
from keras_kd.losses.sampled import KDSampled
from keras_kd.losses.targets import DenseTarget, LabelTarget, SparseTarget

__all__ = [
    "DKD",
    "KD",
    "NAMES",
    "DenseTarget",
    "DistillationLoss",
    "KDPt",
    "KDPtSim",
    "KDSampled",
    "KDSim",
    "KDTopK",
    "LabelSmoothing",
    "LabelTarget",
    "LossParts",
    "SparseTarget",
    "get",
]
