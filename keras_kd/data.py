"""What `keras.Model.fit` takes as data, as batches of NumPy arrays.

A teacher cache and a diagnosis go over data once, in the order that they have.
Whatever the kind of the data, `of` gives an object that says how many there
are and gives batch after batch. TensorFlow and PyTorch are named only where
their own data sets are.
"""

import abc
import itertools
import sys

import keras
import numpy as np

from keras_kd.model_inputs import shapes_read

# Keras's own for arrays.
DEFAULT_BATCH_SIZE = 32


def of(data, batch_size=None, what="Data"):
    """Data of any kind, to be read in their order.

    Args:
        data: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch
            `DataLoader`, or a tuple of arrays, (x, y) or (x, y,
            sample_weight), of which x and y may be structures of arrays. Where
            there are no labels, of x alone; y is then an empty dict.
        batch_size: of arrays; `None` for 32, as in `fit`.
        what: name of the data, for messages.

    Returns:
        A `Data`.

    Raises:
        TypeError: for something else.
        ValueError: for arrays of different lengths, a `DataLoader` that
            shuffles, and a batch size that is not a positive integer.
    """
    if batch_size is not None and not (
        isinstance(batch_size, (int, np.integer)) and batch_size >= 1
    ):
        raise ValueError(
            "A batch holds at least one example. Received: batch_size="
            f"{batch_size!r}. Pass an integer, or leave it out for "
            f"{DEFAULT_BATCH_SIZE}."
        )
    if is_tf_data(data):
        return TfData(data)
    if isinstance(data, keras.utils.PyDataset):
        return PyData(data)
    if is_loader(data):
        return LoaderData(data)
    if isinstance(data, tuple) and len(data) in (1, 2, 3) or _is_array(data):
        arrays = _as_tuple(data)
        if _are_arrays(arrays):
            return ArrayData(arrays, batch_size or DEFAULT_BATCH_SIZE)
    raise TypeError(
        f"{what} must be what `fit` takes and can be read again in the same "
        "order: a tf.data.Dataset, a keras.utils.PyDataset, a PyTorch "
        "DataLoader, or a tuple of arrays (x, y) or (x, y, sample_weight). "
        f"Received: {_described(data)}. Turn it into one of these, as with "
        "(x, labels)."
    )


def is_tf_data(data):
    """Whether data are a `tf.data.Dataset`."""
    # Where TensorFlow was not imported there is none.
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(data, tensorflow.data.Dataset)


def is_loader(data):
    """Whether data are a PyTorch `DataLoader`."""
    loaders = sys.modules.get("torch.utils.data")
    return loaders is not None and isinstance(data, loaders.DataLoader)


def as_numpy(values):
    """A structure of arrays or tensors of any library as NumPy arrays."""
    return keras.tree.map_structure(_array, values)


def num_rows(x):
    """How many examples a batch has.

    Args:
        x: input of a batch, an array or a structure of them.
    """
    return len(keras.tree.flatten(x)[0])


def take(values, rows):
    """Rows of each array of a structure.

    Args:
        values: arrays, or a structure of them.
        rows: what NumPy takes as an index.
    """
    return keras.tree.map_structure(lambda array: array[rows], values)


class Data(abc.ABC):
    """Data in a fixed order.

    Attributes:
        batched: whether the elements that are counted are batches.
        elements: how many there are; `None` where that isn't known.
    """

    batched = True
    elements = None

    @abc.abstractmethod
    def batches(self, batch_size=None):
        """Batches from the first on.

        Args:
            batch_size: for data of examples; others have their own.

        Returns:
            An iterator of tuples, (x, y) or (x, y, sample_weight), of NumPy
            arrays or structures of them.
        """

    def as_read(self):
        """Batches for a model: those of TensorFlow as its own tensors."""
        return self.batches()

    def input_specs(self, model=None):
        """What a batch's input is.

        Args:
            model: optional `keras.Model` for it; axes that differ from batch
                to batch, such as time, are those that its own inputs leave
                open.

        Returns:
            The structure of the input, of `keras.KerasTensor`s.
        """
        x = self.first()[0]
        leaves = keras.tree.flatten(x)
        shapes = [(None, *leaf.shape[1:]) for leaf in leaves]
        given = shapes_read(model, x)
        if list(map(len, shapes)) == list(map(len, given)):
            shapes = [
                _open_where(own, shape)
                for own, shape in zip(given, shapes, strict=True)
            ]
        specs = [
            keras.KerasTensor(shape, _dtype_name(leaf))
            for shape, leaf in zip(shapes, leaves, strict=True)
        ]
        return keras.tree.pack_sequence_as(x, specs)

    def first(self):
        """The first batch, or `None` if there is none.

        Of data of examples it holds one.
        """
        return next(iter(self.batches(1)), None)


class TfData(Data):
    """A `tf.data.Dataset`, of batches unless it is told otherwise."""

    def __init__(self, dataset, batched=True):
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) < 2:
            dataset = dataset.map(lambda *element: (*element, {}))
        self.dataset = dataset
        self.batched = batched
        size = int(dataset.cardinality())
        self.is_infinite = size == -1
        self.elements = size if size >= 0 else None

    def batches(self, batch_size=None):
        """See `Data`."""
        dataset = self.dataset
        if not self.batched:
            dataset = dataset.batch(batch_size or DEFAULT_BATCH_SIZE)
        return map(_as_tuple, dataset.as_numpy_iterator())

    def as_read(self):
        """See `Data`."""
        return self.dataset

    def input_specs(self, model=None):
        """See `Data`; of a `tf.data.Dataset`, what it says of itself."""
        return keras.tree.map_structure(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name),
            self.dataset.element_spec[0],
        )


class ArrayData(Data):
    """Arrays: examples, of which batches are made."""

    batched = False

    def __init__(self, arrays, batch_size):
        self.arrays = as_numpy(arrays)
        self.batch_size = batch_size
        lengths = {len(each) for each in keras.tree.flatten(self.arrays)}
        if len(lengths) != 1:
            raise ValueError(
                "Arrays of inputs, labels and weights must have a row for each "
                f"example. Received: arrays of {sorted(lengths)} rows. Cut "
                "them to the same examples."
            )
        (self.elements,) = lengths

    def batches(self, batch_size=None):
        """See `Data`."""
        size = batch_size or self.batch_size
        for start in range(0, self.elements, size):
            yield take(self.arrays, slice(start, start + size))


class PyData(Data):
    """A `keras.utils.PyDataset`, read by its own index."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.elements = dataset.num_batches
        if self.elements is None:
            raise ValueError(
                "Data must end, so that all of them are read. Received: an "
                "infinite PyDataset. Give it a `num_batches`."
            )

    def batches(self, batch_size=None):
        """See `Data`."""
        return (self[number] for number in range(self.elements))

    def __getitem__(self, number):
        return as_numpy(_as_tuple(self.dataset[number]))


class LoaderData(Data):
    """A PyTorch `DataLoader` that does not shuffle."""

    def __init__(self, loader):
        import torch

        self.loader = loader
        sampler = getattr(loader, "sampler", None)
        if isinstance(
            sampler,
            torch.utils.data.RandomSampler
            | torch.utils.data.WeightedRandomSampler,
        ):
            raise ValueError(
                "Data must have the same order whenever they are read. "
                f"Received: a DataLoader with a {type(sampler).__name__}. Make "
                "it with shuffle=False; to train in another order, give your "
                "own Dataset the statistics of each index by `cache[index]`."
            )
        if hasattr(loader.dataset, "__len__"):
            self.elements = len(loader)

    def batches(self, batch_size=None):
        """See `Data`."""
        return (as_numpy(_as_tuple(batch)) for batch in self.loader)


class EpochsOfArrays(keras.utils.PyDataset):
    """Batches of arrays, for training.

    Args:
        data: `ArrayData`.
        shuffle: whether each epoch has another order, a function of `seed` and
            its number.
        seed: integer.
        first_epoch: number of the epoch to begin with, so that interrupted
            training sees what it would have seen.
    """

    def __init__(self, data, shuffle=False, seed=0, first_epoch=0):
        super().__init__()
        self._data = data
        self._shuffle = shuffle
        self._seed = seed
        self.start(first_epoch)

    def on_epoch_end(self):
        """Another order for the next epoch.

        Keras may also call it before the first one, when it builds a model;
        see `EpochOrder`.
        """
        self.start(self.epoch + 1)

    def start(self, epoch):
        """Takes the order of an epoch.

        Args:
            epoch: integer.
        """
        self.epoch = epoch
        self._order = np.arange(self._data.elements)
        if self._shuffle:
            random = np.random.default_rng([self._seed, self.epoch])
            random.shuffle(self._order)

    @property
    def num_batches(self):
        """Number of batches, the last one perhaps smaller."""
        return -(-self._data.elements // self._data.batch_size)

    def rows(self, number):
        """Positions of a batch's examples in the arrays."""
        size = self._data.batch_size
        return self._order[number * size : (number + 1) * size]

    def __getitem__(self, number):
        """A batch, (x, y) or (x, y, sample_weight)."""
        return take(self._data.arrays, self.rows(number))


class EpochOrder(keras.callbacks.Callback):
    """Gives arrays the order of the epoch that begins, which Keras doesn't say.

    Args:
        dataset: `EpochsOfArrays`, about to be trained on.
    """

    def __init__(self, dataset):
        super().__init__()
        self._dataset = dataset
        self._first = dataset.epoch
        self._began = None

    def on_epoch_begin(self, epoch, logs=None):
        """Takes the order."""
        if self._began is None:
            # A backup may let training begin with a later epoch, new data with
            # the order of the first.
            self._began, self._first = epoch, max(self._first, epoch)
        self._dataset.start(self._first + epoch - self._began)


def _as_tuple(element):
    """(x, y) or (x, y, sample_weight), y an empty dict without labels."""
    if not isinstance(element, list | tuple):
        return (element, {})
    x, y, *weight = (*element, None) if len(element) == 1 else element
    y, *weight = map(_without_list, (y, *weight))
    return (x, {} if y is None else y, *weight)


def _without_list(values):
    """Labels or weights of the only output, which may come in a list."""
    is_list = isinstance(values, list | tuple) and len(values) == 1
    return values[0] if is_list else values


def _are_arrays(values):
    return all(map(_is_array, keras.tree.flatten(values)))


def _is_array(value):
    has_both = hasattr(value, "shape") and hasattr(value, "dtype")
    return has_both or _is_table(value)


def _is_table(value):
    """Whether a value is of pandas, which has `iloc`."""
    return hasattr(value, "iloc") and hasattr(value, "to_numpy")


def _array(value):
    if hasattr(value, "detach"):  # PyTorch's, perhaps with a gradient.
        value = value.detach().cpu()
    return np.asarray(value)


def _open_where(own, shape):
    """A shape without the sizes that a model's own leaves open."""
    pairs = zip(own, shape, strict=True)
    return tuple(None if size is None else given for size, given in pairs)


def _dtype_name(array):
    return "string" if array.dtype.kind in "OSU" else str(array.dtype)


def _described(data):
    if isinstance(data, tuple | list):
        kinds = [type(each).__name__ for each in itertools.islice(data, 4)]
        return f"a {type(data).__name__} of {len(data)}, {kinds}"
    return f"{type(data).__module__}.{type(data).__name__}"
