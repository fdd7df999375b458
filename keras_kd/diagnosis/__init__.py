"""What a teacher has to offer, and why distillation may fail.

`diagnosis` is what a user sees. `survey` and `relations` run over the data,
`measures` makes numbers of their sums, `causes` and `hints` make findings of
the numbers, `pictures` draws them.
"""

from keras_kd.diagnosis.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
