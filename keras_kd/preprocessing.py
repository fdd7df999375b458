"""Raw strings and images, preprocessed as KerasHub's tasks do in their `fit`.

A KerasHub task, such as a `CausalLM` or an `ImageClassifier`, holds a
`preprocessor` that its own `fit`, `evaluate` and `predict` map over the data.
The same is done here for the student of a Distiller, and for a teacher whose
preprocessing differs from the student's. KerasHub is not imported: a task is
known by what it has. Its preprocessing runs in `tf.data`, on every backend.
"""

import sys

import keras
import numpy as np

from keras_kd.batch import as_dict

# In y, the teacher's own inputs, where they are not the student's.
TEACHER_INPUTS = "teacher_inputs"
# KerasHub's preprocessors that make the labels, by their public names.
_LABEL_MAKERS = (
    "CausalLMPreprocessor",
    "MaskedLMPreprocessor",
    "Seq2SeqLMPreprocessor",
)


class Preprocessing:
    """What the tasks among student and teacher do to raw data.

    A preprocessor that is set is applied, as in KerasHub; set it to `None`
    for data that are preprocessed already. Of a preprocessor of text that
    isn't needed: data without strings are taken as they are.

    The teacher gets what the student gets, unless it has a preprocessor that
    differs: then it gets the same raw data by its own. Where preprocessing
    makes the labels, as for language models, a class is a token of the
    student's sequence, and the teacher always reads that sequence.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model`, or `None` if it doesn't run.
    """

    def __init__(self, student, teacher=None):
        _check_state(student, teacher)
        self.student = student if _is_task(student) else None
        self.teacher = None
        if (
            _is_task(teacher)
            and not _makes_labels(teacher.preprocessor)
            and not _same_preprocessing(student, teacher)
        ):
            self.teacher = teacher
        self._compiled = None

    @property
    def _tasks(self):
        return [t for t in (self.student, self.teacher) if t is not None]

    @property
    def settings(self):
        """What tells whether another one does the same."""
        serialize = keras.saving.serialize_keras_object
        return [(id(t), serialize(t.preprocessor)) for t in self._tasks]

    def applies_to(self, x):
        """Whether inputs are raw.

        Args:
            x: inputs of a batch, arrays, or specifications of tensors.
        """
        return any(_is_raw(task, x) for task in self._tasks)

    def samples(self, x, y=None, sample_weight=None):
        """A batch, preprocessed; also inside of `tf.data`.

        Args:
            x: raw inputs, or preprocessed ones of a text task.
            y: optional labels, or a dict of these and teacher statistics.
            sample_weight: optional weights.

        Returns:
            A tuple (x, y, sample_weight), or without the last ones where they
            are `None`; with the teacher's inputs in y where they differ.

        Raises:
            ValueError: for weights where the preprocessor makes the labels.
        """
        raw = x
        if self.student is not None and _is_raw(self.student, raw):
            x, y, sample_weight = _apply(self.student, x, y, sample_weight)
        if self.teacher is not None and _is_raw(self.teacher, raw):
            inputs, _, _ = _apply(self.teacher, raw)
            y = {**as_dict(y), TEACHER_INPUTS: inputs}
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def on_batch(self, x, y=None, sample_weight=None):
        """A batch of arrays, preprocessed.

        It is done by a graph of TensorFlow, as for a data set: outside of one
        KerasHub rounds the pixels of resized integers.

        Args:
            x: raw inputs; strings as a list, an array or a tensor.
            y: as in `samples`.
            sample_weight: as in `samples`.

        Returns:
            (x, y, sample_weight), of NumPy arrays; as given if not raw.
        """
        if not self.applies_to(x):
            return x, y, sample_weight
        import tensorflow as tf

        if self._compiled is None:
            self._compiled = tf.function(self.samples, reduce_retracing=True)
        tensors = _map(tf.convert_to_tensor, (x, y, sample_weight))
        return keras.utils.unpack_x_y_sample_weight(
            _map(np.asarray, self._compiled(*tensors))
        )

    def fit_arguments(self, arguments):
        """The arguments of `keras.Model.fit`, with data preprocessed.

        Arrays are read in an order of their own in each epoch unless
        `shuffle=False`, as by Keras. (KerasHub's `fit` leaves them in order.)

        Args:
            arguments: dict by name.

        Returns:
            A dict by name.

        Raises:
            ValueError: if arrays don't have the same number of rows, or a
                `validation_split` leaves nothing on one side.
        """
        if not self._tasks:
            return arguments
        given = dict(arguments)
        split, x = given.get("validation_split"), given.get("x")
        if split and given.get("validation_data") is None:
            if _is_array(x) and self.applies_to(x):
                train, held_out = _split(_data_of(given), split)
                given.update(zip(_DATA, train, strict=True))
                given.update(validation_data=held_out, validation_split=0.0)
        size = given.get("batch_size")
        validation = given.get("validation_data")
        if validation is not None:
            held_out = keras.utils.unpack_x_y_sample_weight(validation)
            prepared = Preprocessing(self.student).arguments(
                dict(zip(_DATA, held_out, strict=True)),
                given.get("validation_batch_size") or size,
            )
            given["validation_data"] = keras.utils.pack_x_y_sample_weight(
                *_data_of(prepared)
            )
        return self.arguments(given, size, given.get("shuffle", True))

    def arguments(self, given, batch_size=None, shuffle=False):
        """Arguments of a method that takes data, with these preprocessed.

        Args:
            given: dict by name, among them "x".
            batch_size: integer, of arrays; `None` for 32.
            shuffle: whether arrays are shuffled.

        Returns:
            A dict by name.

        Raises:
            ValueError: if arrays don't have the same number of rows.
        """
        if not self._tasks:
            return given
        import tensorflow as tf

        given = dict(given)
        x = given.get("x")
        is_dataset = isinstance(x, tf.data.Dataset)
        if x is None or (
            (is_dataset or _is_array(x))
            and not self.applies_to(_first_inputs(x))
        ):
            return given
        if is_dataset:
            given["x"] = self._mapped(x)
        elif isinstance(x, keras.utils.PyDataset):
            given["x"] = _PreprocessedDataset(x, self._element)
        elif _is_array(x):
            batches = _batches(_data_of(given), batch_size or 32, shuffle)
            given["x"] = self._mapped(batches)
            # What a data set does is not asked of Keras.
            for name in ("y", "sample_weight", "batch_size"):
                given.pop(name, None)
            if shuffle:
                given["shuffle"] = False
        elif iter(x) is x:
            given["x"] = (self._element(each) for each in x)
        else:
            given["x"] = _from_iterable(x, self._element)
        return given

    def _mapped(self, dataset):
        import tensorflow as tf

        dataset = dataset.map(self.samples, tf.data.AUTOTUNE)
        return dataset.prefetch(tf.data.AUTOTUNE)

    def _element(self, element):
        """A preprocessed element of what Python yields."""
        data = keras.utils.unpack_x_y_sample_weight(element)
        return keras.utils.pack_x_y_sample_weight(*self.on_batch(*data))


_DATA = ("x", "y", "sample_weight")


def inputs_of_teacher(x, y):
    """What the teacher reads, and y without it.

    Args:
        x: the student's inputs.
        y: labels, or a dict that may hold the teacher's inputs.

    Returns:
        Inputs, and y.
    """
    if not isinstance(y, dict) or TEACHER_INPUTS not in y:
        return x, y
    y = dict(y)
    return y.pop(TEACHER_INPUTS), y or None


def dataset_of(teacher, data, student=None):
    """Data as one model, or two at a time, read them.

    Args:
        teacher: a `keras.Model`.
        data: what `keras.Model.fit` takes, arrays as a tuple; raw if the
            teacher is a KerasHub task, else they are returned as they are.
        student: a `keras.Model` that gets the same inputs, or `None`.

    Returns:
        What the models read.

    Raises:
        ValueError: if the student reads something else.
    """
    if not (_is_task(teacher) and _is_raw(teacher, _first_inputs(data))):
        return data
    if student is not None and not (
        _makes_labels(teacher.preprocessor)
        or _same_preprocessing(teacher, student)
    ):
        raise ValueError(
            "Raw data are given to both models by the teacher's preprocessor, "
            f"so the student must have the same. Received: {teacher.name!r} "
            f"with {teacher.preprocessor.name!r}, and {student.name!r} with "
            "another one or none. Leave the student out, or preprocess the "
            "data and set `preprocessor = None` on both."
        )
    if not isinstance(data, tuple):
        data = (data,)
    given = dict(zip(_DATA, data, strict=False))
    return Preprocessing(teacher).arguments(given)["x"]


def labelled(teacher, data):
    """Data with labels: of a language model, those that it makes of raw text.

    Args:
        teacher: a `keras.Model`, or `None`.
        data: as of `dataset_of`.

    Returns:
        Data whose inputs, if they have labels of their own, are still raw.
    """
    if _is_task(teacher) and _makes_labels(teacher.preprocessor):
        return dataset_of(teacher, data)
    return data


def _first_inputs(data):
    """Inputs of a batch, or what tells of them."""
    spec = getattr(data, "element_spec", None)
    if spec is not None:
        first = spec
    elif isinstance(data, keras.utils.PyDataset):
        first = data[0]
    elif _is_array(data):
        first = data
    else:
        first = next(iter(data))
    return first[0] if isinstance(first, list | tuple) else first


def check_tokenizers(student, teacher):
    """Refuses a pair of KerasHub tasks with different vocabularies.

    Args:
        student: a `keras.Model`.
        teacher: a `keras.Model`, or `None`.

    Raises:
        ValueError: with the first difference.
    """
    kept = [
        getattr(_tokenizer_of(model), "vocabulary", None)
        for model in (student, teacher)
    ]
    if kept[0] is not None and kept[0] == kept[1]:
        return  # At once, where asking for each of 150,000 takes seconds.
    first, second = _token_ids(student), _token_ids(teacher)
    if None in (first, second) or first == second:
        return
    token = next(
        token
        for token in {**first, **second}
        if first.get(token) != second.get(token)
    )

    def said_of(ids):
        return f"is {ids[token]}" if token in ids else "does not exist"

    raise ValueError(
        "Student and teacher must have one vocabulary: they read the same "
        "token ids, and in a language model a class is a token. Received: "
        f"student {student.name!r} with a tokenizer of {len(first)} tokens and "
        f"teacher {teacher.name!r} with one of {len(second)}; {token!r} "
        f"{said_of(first)} to the student and {said_of(second)} to the "
        "teacher. Choose presets of one family. If both are given the right "
        "token ids, set `preprocessor = None` on both."
    )


def _check_state(student, teacher):
    """Refuses a pair of tasks of which one says that images are raw."""
    is_without = _has_preprocessing(student) and student.preprocessor is None
    if is_without and _is_task(teacher) and _tokenizer_of(teacher) is None:
        raise ValueError(
            "Whether the images are preprocessed must be the same for student "
            f"and teacher. Received: student {student.name!r} without a "
            f"preprocessor and teacher {teacher.name!r} with one. Set "
            "`teacher.preprocessor = None` too if the images are what both "
            "models read; or leave both preprocessors and give raw images."
        )


# -- tasks ---------------------------------------------------------------------


def _is_task(model):
    """Whether a model is a KerasHub task that preprocesses."""
    return _has_preprocessing(model) and model.preprocessor is not None


def _has_preprocessing(model):
    """Whether a model is a KerasHub task, with a preprocessor or without."""
    return hasattr(model, "preprocessor") and callable(
        getattr(model, "preprocess_samples", None)
    )


def _tokenizer_of(model):
    return getattr(getattr(model, "preprocessor", None), "tokenizer", None)


def _token_ids(model):
    """Dict from tokens to ids, or `None` where there are none (yet)."""
    tokenizer = _tokenizer_of(model)
    if tokenizer is None:
        return None
    try:
        tokens = tokenizer.get_vocabulary()
    except ValueError:
        return None  # Of a file, which loads vocabularies after the models.
    return {token: tokenizer.token_to_id(token) for token in tokens}


def _makes_labels(preprocessor):
    """Whether a preprocessor makes labels of the text that it is given."""
    models = getattr(sys.modules.get("keras_hub"), "models", None)
    makers = [getattr(models, name, None) for name in _LABEL_MAKERS]
    return isinstance(preprocessor, tuple(filter(None, makers)))


def _same_preprocessing(student, teacher):
    """Whether both do the same to raw data, of one vocabulary if of text."""
    if not (_is_task(student) and _is_task(teacher)):
        return False
    one, other = (
        keras.saving.serialize_keras_object(model.preprocessor)
        for model in (student, teacher)
    )
    return _without_names(one) == _without_names(other)


def _without_names(config):
    if isinstance(config, dict):
        return {
            key: _without_names(value)
            for key, value in config.items()
            if key != "name"
        }
    if isinstance(config, list | tuple):
        return [_without_names(each) for each in config]
    return config


def _is_raw(task, x):
    """Whether x is what the task's preprocessor takes."""
    if _tokenizer_of(task) is None:
        return True
    return any(_is_text(leaf) for leaf in keras.tree.flatten(x))


def _is_text(leaf):
    if isinstance(leaf, str | bytes):
        return True
    dtype = getattr(leaf, "dtype", None)
    kind = getattr(dtype, "kind", None)  # Of NumPy's.
    return kind in ("U", "S", "O") or "string" in str(dtype)


def _apply(task, x, y=None, sample_weight=None):
    """(x, y, sample_weight) by a task's own preprocessing."""
    if sample_weight is not None and _makes_labels(task.preprocessor):
        raise ValueError(
            f"{type(task.preprocessor).__name__} makes labels and weights of "
            "the text alone, a weight for each token. Received: sample_weight "
            "beside the text. Leave it out, or map the preprocessor over the "
            "data and multiply the weights that it gives."
        )
    return keras.utils.unpack_x_y_sample_weight(
        task.preprocess_samples(x, y, sample_weight)
    )


# -- data ----------------------------------------------------------------------


class _PreprocessedDataset(keras.utils.PyDataset):
    """A `PyDataset` whose batches are preprocessed."""

    def __init__(self, dataset, preprocess):
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self._dataset = dataset
        self._preprocess = preprocess

    def __len__(self):
        return len(self._dataset)

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return self._preprocess(self._dataset[index])

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def _from_iterable(iterable, preprocess):
    """A `tf.data.Dataset` of what a PyTorch `DataLoader` or its like gives."""
    import tensorflow as tf

    first = preprocess(next(iter(iterable)))
    signature = keras.tree.map_structure(
        lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), first
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: (preprocess(each) for each in iterable),
        output_signature=signature,
    )
    if hasattr(iterable, "__len__"):
        length = tf.data.experimental.assert_cardinality(len(iterable))
        dataset = dataset.apply(length)
    return dataset


def _batches(arrays, batch_size, shuffle):
    """A `tf.data.Dataset` of batches of arrays."""
    import tensorflow as tf

    arrays = _map(_to_numpy, arrays)
    rows = _num_rows(arrays)
    tensors = _map(tf.convert_to_tensor, arrays)
    index = tf.data.Dataset.range(rows)
    if shuffle:
        index = index.shuffle(rows)

    def rows_at(index):
        return tf.nest.map_structure(
            lambda t: None if t is None else tf.gather(t, index), tensors
        )

    return index.batch(batch_size).map(rows_at, tf.data.AUTOTUNE)


def _num_rows(arrays):
    rows = {len(a) for a in keras.tree.flatten(arrays) if a is not None}
    if len(rows) != 1:
        raise ValueError(
            "Inputs, labels and sample weights must have one row for each "
            f"example. Received: {sorted(rows)} rows. Check that they belong "
            "together."
        )
    return rows.pop()


def _split(data, share):
    """Arrays for training, and the last of them for validation."""
    arrays = _map(_to_numpy, data)
    rows = _num_rows(arrays)
    at = int(np.floor(rows * (1 - share)))
    if not 0 < at < rows:
        raise ValueError(
            "`validation_split` must leave something to train and to validate "
            f"on. Received: validation_split={share} of {rows} examples. "
            "Choose a share such as 0.1, or give validation_data."
        )

    first = _map(lambda array: array[:at], arrays)
    return first, _map(lambda array: array[at:], arrays)


def _data_of(given):
    return tuple(given.get(name) for name in _DATA)


def _is_array(x):
    """Whether x is an array, or a structure of arrays."""
    if isinstance(x, list | tuple | dict):
        return True
    return hasattr(x, "__array__") or keras.ops.is_tensor(x)


def _map(function, data):
    """Data with a function applied to each of the arrays.

    Tuples and dicts are structure; a list is an array, as in KerasHub, and so
    is a tuple of strings, which a `DataLoader` makes of a batch.
    """
    if data is None:
        return None
    if isinstance(data, dict):
        return {key: _map(function, value) for key, value in data.items()}
    if isinstance(data, tuple):
        if not all(isinstance(each, str | bytes) for each in data):
            return tuple(_map(function, each) for each in data)
        data = list(data)
    return function(_to_numpy(data))


def _to_numpy(array):
    if keras.ops.is_tensor(array):
        return keras.ops.convert_to_numpy(array)
    return np.asarray(array)
