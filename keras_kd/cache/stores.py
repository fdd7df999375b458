"""How teacher statistics are kept: in few bytes, and exact enough.

What costs digits is chosen so that the loss keeps three of them (tested):

- the log-odds of the label's probability, not the probability, so that 1e-6
  and 1 - 1e-6 are told apart from 0 and 1;
- how far a logit is below the largest, not the logit, so that the classes
  which matter have the smallest error;
- the tail of top-k apart and in float32, not as a difference from 1.
"""

import dataclasses
import json

import keras
import numpy as np
from keras import ops

from keras_kd import losses as kd_losses
from keras_kd.cache.storage import Field
from keras_kd.distiller import TEACHER_LOGITS

EXACT, COMPACT = "float32", "float16"
_LARGEST = 65504.0  # of float16


def plan(losses, num_classes, dtype=COMPACT):
    """What to keep so that each loss can be trained with.

    Nothing is kept twice: all logits give every other statistic, and the k
    largest those of every smaller k.

    Args:
        losses: list of `DistillationLoss`.
        num_classes: integer.
        dtype: "float16" or "float32", of what is kept.

    Returns:
        List of stores.

    Raises:
        ValueError: if no loss needs anything per example.
    """
    wanted = [make_store(loss, num_classes, dtype) for loss in losses]
    wanted = [store for store in wanted if store is not None]
    if not wanted:
        raise ValueError(
            "A cache keeps what losses need from the teacher per example. "
            f"Received: {[type(loss).__name__ for loss in losses]}, which "
            "need nothing. Train with them without a cache."
        )
    logits = [store for store in wanted if isinstance(store, LogitsStore)]
    if logits:
        return logits[:1]
    tops = [store for store in wanted if isinstance(store, TopStore)]
    kept = []
    if tops:
        temperatures = {t for store in tops for t in store.temperatures}
        k = max(store.k for store in tops)
        kept.append(
            TopStore(k, tuple(sorted(temperatures)), num_classes, dtype)
        )
    for store in wanted:
        if not any(each.serves(store) for each in kept):
            kept.append(store)
    return kept


def make_store(loss, num_classes, dtype=COMPACT):
    """What one loss needs kept, or `None` if it needs nothing.

    A subclass that computes its statistics in its own way has them kept as
    they are.
    """
    if not loss.statistics:
        return None
    computed_by = type(loss).teacher_statistics
    temperature = _temperature(loss)
    if computed_by is kd_losses.KD.teacher_statistics:
        return LogitsStore(num_classes, dtype)
    if computed_by is kd_losses.KDTopK.teacher_statistics:
        k = loss.count(num_classes)
        return TopStore(k, (temperature,), num_classes, dtype)
    if computed_by in (
        kd_losses.KDPt.teacher_statistics,
        kd_losses.KDPtSim.teacher_statistics,
    ):
        return LogOddsStore(temperature, dtype)
    return OwnStore(own_config(loss), loss, num_classes)


def _temperature(loss):
    # It is a float32: 0.1 comes back as 0.10000000149.
    return float(np.round(loss.tunables["temperature"], 6))


@dataclasses.dataclass(frozen=True)
class LogitsStore:
    """All logits, as their gaps to the largest; serves every loss."""

    num_classes: int
    dtype: str
    temperature = None

    def serves(self, store):
        """Whether what `store` would keep can be derived from this."""
        return True

    def fields(self, label_shape):
        """The `Field`s of one example with labels of a shape."""
        return [Field("gaps", self.dtype, (*label_shape, self.num_classes))]

    def encode(self, labels, logits):
        """Arrays by field name from a batch of labels and float32 logits."""
        del labels
        return {"gaps": _to_dtype(_gaps(logits), self.dtype)}

    def decode(self, arrays, wanted):
        """Entries of y by name, from NumPy arrays as they were kept."""
        del wanted
        # Half precision stays so; the loss casts it when it needs it.
        return {TEACHER_LOGITS: -arrays["gaps"]}

    def describe(self):
        """The store in JSON's types."""
        return {"kind": "logits", "classes": self.num_classes}


class TopStore:
    """The k largest classes, and the mass of the tail at each temperature.

    Four bytes a class, up to 65,536 classes; the classes' gaps to the largest
    logit serve every temperature.

    Args:
        k: integer, how many classes are kept.
        temperatures: tuple of floats.
        num_classes: integer.
        dtype: "float16" or "float32".
    """

    def __init__(self, k, temperatures, num_classes, dtype):
        self.k = k
        self.temperatures = temperatures
        self.num_classes = num_classes
        self.dtype = dtype
        self.temperature = temperatures[0]
        self._losses = [
            kd_losses.KDTopK(k, temperature=t) for t in temperatures
        ]

    def serves(self, store):
        """Whether what `store` would keep can be derived from this."""
        return (
            isinstance(store, TopStore)
            and store.k <= self.k
            and set(store.temperatures) <= set(self.temperatures)
        )

    def fields(self, label_shape):
        """See `LogitsStore.fields`."""
        tails = (*label_shape, len(self.temperatures))
        return [
            Field("top_classes", self._id_dtype, (*label_shape, self.k)),
            Field("top_gaps", self.dtype, (*label_shape, self.k)),
            Field("tails", "float32", tails),
        ]

    @property
    def _id_dtype(self):
        return "uint16" if self.num_classes <= 65536 else "int32"

    def encode(self, labels, logits):
        """See `LogitsStore.encode`."""
        found = [
            loss.teacher_statistics(labels, logits) for loss in self._losses
        ]
        classes = found[0]["top_classes"]
        # The mass of the tail in units of the largest class's.
        tails = [
            each["tail_probability"] / each["top_probabilities"][..., 0]
            for each in found
        ]
        gaps = ops.take_along_axis(_gaps(logits), classes, axis=-1)
        return {
            "top_classes": ops.cast(classes, self._id_dtype),
            "top_gaps": _to_dtype(gaps, self.dtype),
            "tails": ops.stack(tails, axis=-1),
        }

    def decode(self, arrays, wanted):
        """See `LogitsStore.decode`."""
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

    def describe(self):
        """See `LogitsStore.describe`."""
        return {
            "kind": "top",
            "k": self.k,
            "temperatures": list(self.temperatures),
            "classes": self.num_classes,
        }


class LogOddsStore:
    """The log-odds of the label at one temperature: two bytes.

    Args:
        temperature: float.
        dtype: "float16" or "float32".
    """

    def __init__(self, temperature, dtype):
        self.temperature = temperature
        self.dtype = dtype
        self._loss = kd_losses.KDPt(temperature=temperature)

    def serves(self, store):
        """Whether what `store` would keep can be derived from this."""
        return (
            isinstance(store, LogOddsStore)
            and store.temperature == self.temperature
        )

    def fields(self, label_shape):
        """See `LogitsStore.fields`."""
        return [Field(self._name, self.dtype, tuple(label_shape))]

    def encode(self, labels, logits):
        """See `LogitsStore.encode`."""
        (odds,) = self._loss.teacher_statistics(labels, logits).values()
        return {self._name: _to_dtype(odds, self.dtype)}

    def decode(self, arrays, wanted):
        """See `LogitsStore.decode`."""
        del wanted
        return {"label_log_odds": arrays[self._name].astype("float32")}

    def describe(self):
        """See `LogitsStore.describe`."""
        return {"kind": "log_odds", "temperature": self.temperature}

    @property
    def _name(self):
        return f"label_log_odds_{self.temperature:g}"


class OwnStore:
    """What a user's own loss computes, as it is.

    Args:
        config: dict in JSON's types that tells one loss's statistics from
            another's; see `own_config`.
        loss: the `DistillationLoss`; `None` in a store that was read back.
        num_classes: integer; likewise.
    """

    def __init__(self, config, loss=None, num_classes=None):
        self.config = config
        self.loss = loss
        self.num_classes = num_classes
        # To which temperature the statistics are bound.
        self.temperature = None if loss is None else _temperature(loss)

    def serves(self, store):
        """Whether what `store` would keep can be derived from this."""
        return isinstance(store, OwnStore) and store.config == self.config

    def fields(self, label_shape):
        """See `LogitsStore.fields`."""
        labels = np.zeros((1, *label_shape), "int32")
        logits = np.zeros((1, *label_shape, self.num_classes), "float32")
        found = self.encode(
            ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)
        )
        return [
            Field(
                name,
                keras.backend.standardize_dtype(array.dtype),
                tuple(array.shape[1:]),
            )
            for name, array in found.items()
        ]

    def encode(self, labels, logits):
        """See `LogitsStore.encode`."""
        found = self.loss.teacher_statistics(labels, logits)
        return {self._name(k): found[k] for k in self.loss.statistics}

    def decode(self, arrays, wanted):
        """See `LogitsStore.decode`."""
        return {k: arrays[self._name(k)] for k in wanted.loss.statistics}

    def describe(self):
        """See `LogitsStore.describe`."""
        return {"kind": "own", "config": self.config}

    def _name(self, statistic):
        return f"{self.config['class']}_{statistic}"


def own_config(loss):
    """What tells the statistics of a user's own loss from another's.

    Args:
        loss: a `DistillationLoss`.

    Returns:
        A dict in JSON's types.
    """
    config = keras.saving.serialize_keras_object(loss.get_config())
    # What is done with the statistics does not change them.
    for key in ("name", "reduction", "ignore_class", *loss.weights):
        config.pop(key, None)
    config = {"class": type(loss).__name__, **config}
    return json.loads(json.dumps(config))


def read_store(description, dtype):
    """A store from what its `describe` gave.

    Args:
        description: dict.
        dtype: "float16" or "float32".

    Returns:
        A store.
    """
    kind = description["kind"]
    if kind == "logits":
        return LogitsStore(description["classes"], dtype)
    if kind == "top":
        return TopStore(
            description["k"],
            tuple(description["temperatures"]),
            description["classes"],
            dtype,
        )
    if kind == "log_odds":
        return LogOddsStore(description["temperature"], dtype)
    return OwnStore(description["config"])


def _gaps(logits):
    return ops.max(logits, axis=-1, keepdims=True) - logits


def _to_dtype(values, dtype):
    if dtype == COMPACT:
        values = ops.clip(values, -_LARGEST, _LARGEST)
    return ops.cast(values, dtype)
