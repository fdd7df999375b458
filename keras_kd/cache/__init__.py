"""The teacher cache.

`teacher_cache` is what a user sees; `writer` and `reader` are its two sides,
`stores` says what is kept for which loss and how, `fingerprint` what tells one
teacher or data set from another, `verification` compares with the teacher.
"""

from keras_kd.cache.teacher_cache import TeacherCache

__all__ = ["TeacherCache"]
