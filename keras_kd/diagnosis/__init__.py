"""What a teacher has to offer, and why distillation may fail.

`diagnosis` is what a user sees. `examples` settles a batch, `survey` and
`relations` add up what the teacher says, `measures` turns the sums into
numbers, `causes` and `hints` turn the numbers into `findings`, and `pictures`
draws them.
"""

from keras_kd.diagnosis.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
