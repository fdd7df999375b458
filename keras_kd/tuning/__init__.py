"""The best loss and its settings within a budget.

`tune` trains students by `spaces`, which says what there is to choose, from
starts of the teacher's diagnosis (`advice`), and by Optuna (`search`) within a
`budget`; `outcome` says what was found, and `report` draws it.
"""

from keras_kd.tuning.outcome import Trial, Tuning
from keras_kd.tuning.spaces import SPACES, Range
from keras_kd.tuning.tune import tune

__all__ = ["SPACES", "Range", "Trial", "Tuning", "tune"]
