"""What a teacher has to offer, and why distillation may fail.

`diagnosis` is what a user sees. `examples` settles a batch, `survey`,
`relations` and `agreement` add up what the teacher says (`by_chunks` of many
classes), `measures` turns the sums into numbers. `inputs` looks at a few
`samples` of the inputs once more (`trials`, `normalisers`), and `initialised`
at the weights. `faults`, `causes` and `hints` turn the numbers into `findings`,
`verdict` says these in three sentences, and `pictures` draws them.
"""

from keras_kd.diagnosis.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
