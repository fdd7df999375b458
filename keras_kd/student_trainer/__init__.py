"""Trains one student by a method's name and a seed, again and again alike.

`trainer` is the whole; `data` is what students are trained on, `making` gives
each its own optimizer and metrics, `results` keeps what is finished, `scores`
measures a student, and `progress` shows how far it is.
"""

from keras_kd.student_trainer.trainer import StudentTrainer

__all__ = ["StudentTrainer"]
