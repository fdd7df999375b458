"""Partial-KD losses: the methods, and what a loss of your own is made of."""

from keras_kd.losses.base import DistillationLoss, LossParts
from keras_kd.losses.methods import (
    KD,
    NAMES,
    KDPt,
    KDPtSim,
    KDSim,
    KDTopK,
    LabelSmoothing,
    get,
)
from keras_kd.losses.targets import DenseTarget, LabelTarget, SparseTarget

__all__ = [
    "KD",
    "NAMES",
    "DenseTarget",
    "DistillationLoss",
    "KDPt",
    "KDPtSim",
    "KDSim",
    "KDTopK",
    "LabelSmoothing",
    "LabelTarget",
    "LossParts",
    "SparseTarget",
    "get",
]
