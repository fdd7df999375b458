"""How teacher statistics are kept: in few bytes, and exact enough.

What costs digits is chosen so that the loss keeps three of them (tested):

- the log-odds of the label's probability, not the probability, so that 1e-6
  and 1 - 1e-6 are told apart from 0 and 1;
- how far a logit is below the largest, not the logit, so that the classes
  which matter have the smallest error;
- the tail of top-k apart and in float32, not as a difference from 1.
"""

import abc
import dataclasses
import hashlib
import json

import keras
import numpy as np
from keras import ops

from keras_kd import losses as kd_losses
from keras_kd.batch import TEACHER_LOGITS
from keras_kd.cache.storage import Field
from keras_kd.fingerprint import source_of
from keras_kd.losses.base import told_config

EXACT, COMPACT = "float32", "float16"
_LARGEST = 65504.0  # of float16
_MOST_CHUNKS = 1024  # of a batch
_SOURCE = "source of teacher_statistics"


def plan(losses, classes, dtype=COMPACT):
    """What to keep so that each loss can be trained with.

    Nothing is kept twice: all logits give every other statistic, and the k
    largest those of every smaller k.

    Args:
        losses: list of `DistillationLoss`.
        classes: integer.
        dtype: "float16" or "float32", of what is kept.

    Returns:
        List of `Store`s.

    Raises:
        ValueError: if `losses` is empty, or none of them needs anything per
            example.
    """
    if not losses:
        raise ValueError(
            "A cache keeps what losses need from the teacher per example. "
            "Received: no losses. Give those to train with, as in "
            "TeacherCache.write(path, dataset, teacher, kd.KD())."
        )
    wanted = [make_store(loss, classes, dtype) for loss in losses]
    wanted = [store for store in wanted if store is not None]
    if not wanted:
        raise ValueError(
            "A cache keeps what losses need from the teacher per example. "
            f"Received: {', '.join(type(loss).__name__ for loss in losses)}, "
            "which need nothing. Train with them without a cache."
        )
    logits = [store for store in wanted if isinstance(store, LogitsStore)]
    if logits:
        return logits[:1]
    tops = [store for store in wanted if isinstance(store, TopStore)]
    kept = []
    if tops:
        temperatures = {t for store in tops for t in store.temperatures}
        k = max(store.k for store in tops)
        kept.append(TopStore(dtype, k, tuple(sorted(temperatures)), classes))
    for store in wanted:
        if not any(each.serves(store) for each in kept):
            kept.append(store.beside(kept))
    return kept


def make_store(loss, classes, dtype=COMPACT):
    """What one loss needs kept, or `None` if it needs nothing.

    A subclass that computes its statistics in its own way has them kept as
    they are.
    """
    if not loss.statistics:
        return None
    computed_by = type(loss).teacher_statistics
    temperature = _temperature(loss)
    if computed_by is kd_losses.KD.teacher_statistics:
        return LogitsStore(dtype, classes)
    if computed_by is kd_losses.KDTopK.teacher_statistics:
        return TopStore(dtype, loss.count(classes), (temperature,), classes)
    if computed_by is kd_losses.KDSampled.teacher_statistics:
        k, seed = loss.count(classes), loss.seed or 0
        return SampledStore(dtype, k, classes, seed, temperature)
    if computed_by is kd_losses.KDPt.teacher_statistics:
        return LogOddsStore(dtype, temperature)
    return OwnStore(dtype, _own_config(loss), loss, classes, temperature)


def seek(stores, view, batch):
    """Has stores draw what they always draw for a batch.

    So a cache that was interrupted, or is verified, has the same draws.

    Args:
        stores: list of `Store`s.
        view: integer.
        batch: integer, its number within the view.
    """
    for store in stores:
        store.seek(view, batch)


def read_store(description, dtype):
    """A store from what its `describe` gave."""
    arguments = dict(description)
    kinds = {kind.kind: kind for kind in Store.__subclasses__()}
    return kinds[arguments.pop("kind")](dtype, **arguments)


def _temperature(loss):
    # It is a float32: 0.1 comes back as 0.10000000149.
    return float(np.round(loss.tunables["temperature"], 6))


@dataclasses.dataclass(frozen=True)
class Store(abc.ABC):
    """What is kept for one or several losses.

    Those that can be made of a list of the largest log-probabilities, see
    `check_can_be_made`, also have `encode_list`.

    Attributes:
        dtype: "float16" or "float32".
        kind: string.
        temperature: the one that statistics are bound to, or `None`.
    """

    dtype: str
    kind = ""
    temperature = None
    # The `keras.Variable`s that `encode` reads or changes.
    variables = ()

    def describe(self):
        """The store in JSON's types, but for its dtype."""
        found = {"kind": self.kind, **dataclasses.asdict(self)}
        del found["dtype"]
        return json.loads(json.dumps(found))

    @abc.abstractmethod
    def serves(self, store):
        """Whether what `store` would keep can be derived from this."""

    @abc.abstractmethod
    def fields(self, label_shape):
        """The `Field`s of one example with labels of a shape."""

    @abc.abstractmethod
    def encode(self, labels, logits):
        """Arrays by field name from a batch of labels and float32 logits."""

    def seek(self, view, batch):
        """Prepares `encode` for a batch of a view; see `seek` above."""
        del view, batch

    def beside(self, others):
        """The store, its fields named apart from those of others."""
        del others
        return self

    @abc.abstractmethod
    def decode(self, arrays, wanted):
        """Entries of y by name, from NumPy arrays as they were kept.

        Args:
            arrays: dict by field name.
            wanted: the `Store` that the loss would have for itself.
        """


@dataclasses.dataclass(frozen=True)
class LogitsStore(Store):
    """All logits, as their gaps to the largest; serves every loss."""

    classes: int
    kind = "logits"

    def serves(self, store):
        """See `Store`."""
        return True

    def fields(self, label_shape):
        """See `Store`."""
        return [Field("gaps", self.dtype, (*label_shape, self.classes))]

    def encode(self, labels, logits):
        """See `Store`."""
        return {"gaps": _to_dtype(_gaps(logits), self.dtype)}

    def decode(self, arrays, wanted):
        """See `Store`."""
        # Half precision stays so; the loss casts it when it needs it.
        return {TEACHER_LOGITS: -arrays["gaps"]}


@dataclasses.dataclass(frozen=True)
class TopStore(Store):
    """The k largest classes, and the mass of the tail at each temperature.

    Four bytes a class, up to 65,536 classes; the classes' gaps to the largest
    logit serve every temperature.
    """

    k: int
    temperatures: tuple
    classes: int
    kind = "top"

    def __post_init__(self):
        # Their variables can't be made while a step is compiled.
        losses = [
            kd_losses.KDTopK(self.k, temperature=t) for t in self.temperatures
        ]
        object.__setattr__(self, "_losses", losses)

    @property
    def temperature(self):
        """See `Store`."""
        return self.temperatures[0]

    def serves(self, store):
        """See `Store`."""
        return (
            isinstance(store, TopStore)
            and store.k <= self.k
            and set(store.temperatures) <= set(self.temperatures)
        )

    def fields(self, label_shape):
        """See `Store`."""
        shape = (*label_shape, self.k)
        tails = (*label_shape, len(self.temperatures))
        return [
            Field("top_classes", _id_dtype(self.classes), shape),
            Field("top_gaps", self.dtype, shape),
            Field("tails", "float32", tails),
        ]

    def encode(self, labels, logits):
        """See `Store`."""
        found = [
            loss.teacher_statistics(labels, logits) for loss in self._losses
        ]
        classes = found[0]["top_classes"]
        gaps = ops.take_along_axis(_gaps(logits), classes, axis=-1)
        return self._arrays(classes, gaps, found)

    def encode_list(self, labels, top):
        """As `encode`, from a batch of labels and their `TopList`."""
        found = [top.largest(self.k, t) for t in self.temperatures]
        # At temperature 1 the gaps are those of the logits.
        masses = top.largest(self.k, 1.0)["top_probabilities"]
        logs = ops.log(ops.where(masses < 1e-37, 1e-37, masses))
        return self._arrays(found[0]["top_classes"], _gaps(logs), found)

    def _arrays(self, classes, gaps, found):
        # The mass of the tail in units of the largest class's.
        tails = [
            each["tail_probability"]
            / ops.max(each["top_probabilities"], axis=-1)
            for each in found
        ]
        return {
            "top_classes": ops.cast(classes, _id_dtype(self.classes)),
            "top_gaps": _to_dtype(gaps, self.dtype),
            "tails": ops.stack(tails, axis=-1),
        }

    def decode(self, arrays, wanted):
        """See `Store`."""
        (temperature,) = wanted.temperatures
        gaps = arrays["top_gaps"].astype("float32")
        masses = np.exp(-gaps / np.float32(temperature))
        head, rest = masses[..., : wanted.k], masses[..., wanted.k :]
        tail = arrays["tails"][..., self.temperatures.index(temperature)]
        tail = tail + rest.sum(axis=-1)
        total = head.sum(axis=-1) + tail
        classes = arrays["top_classes"][..., : wanted.k]
        return {
            "top_classes": classes.astype("int32"),
            "top_probabilities": head / total[..., None],
            "tail_probability": tail / total,
        }


@dataclasses.dataclass(frozen=True)
class SampledStore(Store):
    """One draw of k classes with their masses: four bytes a class.

    The masses are kept as the gaps of their logarithms to the largest.
    """

    k: int
    classes: int
    seed: int
    temperature: float
    kind = "sampled"

    def __post_init__(self):
        loss = kd_losses.KDSampled(
            self.k, temperature=self.temperature, seed=self.seed
        )
        object.__setattr__(self, "_loss", loss)

    @property
    def variables(self):
        """See `Store`."""
        return self._loss.variables

    def seek(self, view, batch):
        """See `Store`."""
        # A batch may be encoded by chunks, which draw one after another.
        self._loss.seek(view, batch * _MOST_CHUNKS)

    def serves(self, store):
        """See `Store`."""
        return (
            isinstance(store, SampledStore)
            and store.k == self.k
            and store.temperature == self.temperature
        )

    def fields(self, label_shape):
        """See `Store`."""
        shape = (*label_shape, self.k)
        return [
            Field(self._classes, _id_dtype(self.classes), shape),
            Field(self._masses, self.dtype, shape),
        ]

    def encode(self, labels, logits):
        """See `Store`."""
        found = self._loss.teacher_statistics(labels, logits)
        classes, masses = (found[name] for name in self._loss.statistics)
        gaps = _gaps(ops.log(masses))
        return {
            self._classes: ops.cast(classes, _id_dtype(self.classes)),
            self._masses: _to_dtype(gaps, self.dtype),
        }

    def decode(self, arrays, wanted):
        """See `Store`."""
        masses = np.exp(-arrays[self._masses].astype("float32"))
        return {
            "sampled_classes": arrays[self._classes].astype("int32"),
            "sampled_masses": masses / masses.sum(axis=-1, keepdims=True),
        }

    @property
    def _classes(self):
        return f"sampled_classes_{self.k}_{self.temperature:g}"

    @property
    def _masses(self):
        return f"sampled_gaps_{self.k}_{self.temperature:g}"


@dataclasses.dataclass(frozen=True)
class LogOddsStore(Store):
    """The log-odds of the label at one temperature: two bytes."""

    temperature: float
    kind = "log_odds"

    def __post_init__(self):
        loss = kd_losses.KDPt(temperature=self.temperature)
        object.__setattr__(self, "_loss", loss)

    def serves(self, store):
        """See `Store`."""
        return (
            isinstance(store, LogOddsStore)
            and store.temperature == self.temperature
        )

    def fields(self, label_shape):
        """See `Store`."""
        return [Field(self._name, self.dtype, tuple(label_shape))]

    def encode(self, labels, logits):
        """See `Store`."""
        (odds,) = self._loss.teacher_statistics(labels, logits).values()
        return {self._name: _to_dtype(odds, self.dtype)}

    def encode_list(self, labels, top):
        """As `encode`, from a batch of labels and their `TopList`."""
        odds = top.log_odds(labels, self.temperature)
        return {self._name: _to_dtype(odds, self.dtype)}

    def decode(self, arrays, wanted):
        """See `Store`."""
        return {"label_log_odds": arrays[self._name].astype("float32")}

    @property
    def _name(self):
        return f"label_log_odds_{self.temperature:g}"


@dataclasses.dataclass(frozen=True)
class OwnStore(Store):
    """What a user's own loss computes, as it is.

    Attributes:
        config: dict in JSON's types that tells one loss's statistics from
            another's.
        loss: the `DistillationLoss`; `None` in a store that was read back.
        classes: integer; likewise.
        temperature: float; likewise.
        number: integer, above 0 where another store has the names of 0, such
            as that of a loss of the same class at another temperature.
    """

    config: dict
    loss: object = None
    classes: int | None = None
    temperature: float | None = None
    number: int = 0
    kind = "own"

    def describe(self):
        """See `Store`."""
        about = {"kind": self.kind, "config": self.config}
        return about | ({"number": self.number} if self.number else {})

    def beside(self, others):
        """See `Store`."""
        taken = {
            name
            for other in others
            if isinstance(other, OwnStore)
            for name in other.names
        }
        store = self
        while taken.intersection(store.names):
            store = dataclasses.replace(store, number=store.number + 1)
        return store

    def with_loss_of(self, store):
        """This store as it was written, with the loss of one it serves."""
        return dataclasses.replace(store, number=self.number)

    @property
    def names(self):
        """List of its fields' names."""
        return [self._name(statistic) for statistic in self.loss.statistics]

    def serves(self, store):
        """See `Store`."""
        if not isinstance(store, OwnStore):
            return False
        asked = dict(store.config)
        if _SOURCE not in self.config:  # Of an earlier release.
            asked.pop(_SOURCE, None)
        return asked == self.config

    def fields(self, label_shape):
        """See `Store`."""
        labels = ops.zeros((1, *label_shape), "int32")
        logits = ops.zeros((1, *label_shape, self.classes), "float32")
        return [
            Field(
                name,
                keras.backend.standardize_dtype(array.dtype),
                tuple(array.shape[1:]),
            )
            for name, array in self.encode(labels, logits).items()
        ]

    def encode(self, labels, logits):
        """See `Store`."""
        found = self.loss.teacher_statistics(labels, logits)
        return {self._name(k): found[k] for k in self.loss.statistics}

    def decode(self, arrays, wanted):
        """See `Store`."""
        return {k: arrays[self._name(k)] for k in wanted.loss.statistics}

    def _name(self, statistic):
        number = f"-{self.number}" if self.number else ""
        return f"{self.config['class']}{number}_{statistic}"


def _own_config(loss):
    config = keras.saving.serialize_keras_object(told_config(loss))
    # What is done with the statistics does not change them.
    others = ("name", "reduction", "ignore_class")
    for key in (*others, *loss.weight_arguments()):
        config.pop(key, None)
    config = {"class": type(loss).__name__, **config}
    # As of a teacher's classes: one that was edited computes something else.
    source = source_of(type(loss).teacher_statistics)
    if source:
        config[_SOURCE] = hashlib.sha256(source.encode()).hexdigest()
    return json.loads(json.dumps(config))


def _id_dtype(classes):
    return "uint16" if classes <= 65536 else "int32"


def _gaps(logits):
    return ops.max(logits, axis=-1, keepdims=True) - logits


def _to_dtype(values, dtype):
    if dtype == COMPACT:
        values = ops.clip(values, -_LARGEST, _LARGEST)
    return ops.cast(values, dtype)
