"""The teacher cache.

`teacher_cache` is what a user sees. `storage` keeps zarr arrays through
TensorStore, `manifest` says what is in them, `stores` what is kept for which
loss and how. `data` is the data set as the teacher sees it, `writer` runs the
teacher over it (`teacher_pass`), or takes the outputs that the data carry
(`precomputed_pass`), `reading` joins the data with what is kept and compares
every example, `attached` does so for data other than TensorFlow's.
`verification` compares with the teacher.
"""

from keras_kd.cache.teacher_cache import TeacherCache

__all__ = ["TeacherCache"]
