"""Knowledge distillation for Keras 3 that says why it helped."""

from keras_kd import callbacks, losses, metrics, similarity
from keras_kd.attribution import Attribution, attribute
from keras_kd.cache import TeacherCache
from keras_kd.diagnosis import Diagnosis, diagnose
from keras_kd.distiller import Distiller
from keras_kd.ensemble import ensemble
from keras_kd.list_files import read_top_log_probabilities
from keras_kd.losses import (
    DKD,
    KD,
    KDPt,
    KDPtSim,
    KDSampled,
    KDSim,
    KDTopK,
    LabelSmoothing,
)
from keras_kd.precomputed import check_outputs
from keras_kd.student_trainer import StudentTrainer
from keras_kd.tuning import Tuning, tune

__version__ = "0.1.0"

__all__ = [
    "DKD",
    "KD",
    "Attribution",
    "Diagnosis",
    "Distiller",
    "KDPt",
    "KDPtSim",
    "KDSampled",
    "KDSim",
    "KDTopK",
    "LabelSmoothing",
    "StudentTrainer",
    "TeacherCache",
    "Tuning",
    "attribute",
    "callbacks",
    "check_outputs",
    "diagnose",
    "ensemble",
    "losses",
    "metrics",
    "read_top_log_probabilities",
    "similarity",
    "tune",
]
