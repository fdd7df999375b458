"""Faults of use: a teacher that is not used as it was trained.

Rules like those of `causes`, which come first: whatever else is said of such a
teacher follows from the fault. The thresholds were set on the models and seeds
that `recipes/failures.py` names for it; it reports others.
"""

import numpy as np

from keras_kd.diagnosis.finding import PROBLEM, Finding

# A teacher is looked at more closely if so much less is right than it believes,
_SUSPECT_GAP = 0.1
# or if it removes less than this share of the chance of being wrong.
_SUSPECT_ABOVE_CHANCE = 0.5
# Below this it is near chance, and nothing can be said of its soft targets.
NEAR_CHANCE = 0.1


def is_suspect(numbers):
    """Whether a teacher may be used in another way than it was trained.

    Args:
        numbers: of a `keras_kd.Diagnosis`: "teacher" and "agreement".

    Returns:
        A boolean.
    """
    teacher, agreement = numbers["teacher"], numbers["agreement"]
    return bool(
        teacher["confidence"] - teacher["accuracy"] > _SUSPECT_GAP
        or agreement["above_chance"] < _SUSPECT_ABOVE_CHANCE
    )
