"""A survey's batch without all logits at once, where the classes are many.

The models make features, and the logits follow for one chunk of examples after
another; the host adds up. What is worked out for a sample of the examples needs
the logits of these alone.
"""

import keras
import numpy as np
from keras import ops

from keras_kd import backend
from keras_kd.backend import private
from keras_kd.chunks import most_tokens
from keras_kd.diagnosis import examples
from keras_kd.logit_split import split_or_none
from keras_kd.model_inputs import outputs_of
from keras_kd.states import num_rows

# What is told of each example.
_OF_EXAMPLES = ("predictions", "kept")


def make(survey, signature):
    """A function as `Survey.batch_sums`, computed by chunks.

    Args:
        survey: the `Survey`.
        signature: the `tf.TensorSpec`s of its arguments, or `None`.

    Returns:
        A function; `None` for models that can't be split.
    """
    splits = [
        split_or_none(reader.model, reader.output) for reader in survey.readers
    ]
    return None if None in splits else _ByChunks(survey, splits, signature)


class _ByChunks:
    """Sums of a batch, chunk by chunk.

    Args:
        survey: the `Survey`.
        splits: list of the `ModelSplit`s of its models.
        signature: see `make`.
    """

    def __init__(self, survey, splits, signature):
        self._survey = survey
        self._splits = splits
        self._size = most_tokens(survey.num_classes)
        variables = survey.variables
        self._read = backend.compiled(
            self._read_batch, variables, signature and signature[:3]
        )
        self._add_up = backend.compiled(self._sums_of_chunk, variables)
        self._sample = backend.compiled(self._sums_of_sample, variables)

    def __call__(self, x, labels, counted, sample, groups):
        """See `Survey.batch_sums`."""
        rows = _as_numpy(self._read(x, labels, counted))
        count = len(rows["labels"])
        sums = {}
        for start in range(0, count, self._size):
            part = self._part(rows, start)
            found = self._add_up(backend.from_tf_data(part))
            _add(sums, _as_numpy(found), start)
        for name in _OF_EXAMPLES:
            sums[name] = np.concatenate(sums[name])[:count]
        self._check_contradictions(sums)
        taken = (
            [each[sample] for each in rows["features"]],
            np.maximum(rows["labels"][sample], 0),
            sums["kept"][sample],
            groups,
        )
        found = self._sample(*backend.from_tf_data(taken))
        return {**sums, **_as_numpy(found)}

    # -- what is compiled ----------------------------------------------------

    def _read_batch(self, x, labels, counted):
        """All that a chunk is cut from, a dict of [examples, ...]."""
        found = [outputs_of(split.body, x) for split in self._splits]
        counted, bad_inputs = examples.known_before(x, None, labels, counted)
        rows = {
            "features": [ops.reshape(f, (-1, f.shape[-1])) for f in found],
            "labels": labels,
            "counted": counted,
            "bad_inputs": bad_inputs,
        }
        mask = private.get_keras_mask(found[0])
        if mask is not None:
            mask = ops.reshape(ops.cast(mask, "bool"), (num_rows(x), -1))
            rows["mask"] = examples.spread(mask, labels)
        return rows

    def _sums_of_chunk(self, rows):
        """Sums over some examples, by name."""
        outputs = self._outputs(rows["features"], rows.get("mask"))
        counted, mask = rows["counted"], private.get_keras_mask(outputs[0])
        if mask is not None:
            counted = counted & ops.reshape(mask, (-1,))
        sums, *_ = self._survey.sums_of_all(
            outputs, rows["labels"], counted, rows["bad_inputs"]
        )
        return sums

    def _sums_of_sample(self, features, labels, keep, groups):
        """See `Survey.sums_of_sample`."""
        readers, outputs = self._survey.readers, self._outputs(features)
        logits = [
            examples.where_kept(keep > 0, examples.logits_of(*pair)[0])
            for pair in zip(readers, outputs, strict=True)
        ]
        return self._survey.sums_of_sample(labels, keep, logits, groups)

    def _outputs(self, features, mask=None):
        """List of what the models give."""
        return [
            split.outputs(each, split.layer.weights(), mask)
            for split, each in zip(self._splits, features, strict=True)
        ]

    # -- on the host ---------------------------------------------------------

    def _part(self, rows, start):
        """A chunk; the last is filled up with examples that don't count.

        So that one size is compiled.
        """
        at = np.arange(start, start + self._size)
        is_inside, at = at < len(rows["labels"]), at % len(rows["labels"])
        part = keras.tree.map_structure(lambda each: each[at], rows)
        return {**part, "counted": part["counted"] & is_inside}

    def _check_contradictions(self, sums):
        """Whether the batch shows that a model gives something else."""
        for reader in self._survey.readers:
            name = f"{reader.role}_contradicted"
            # Logits show that they are by a single row of them.
            whole = np.all if reader.kind == "logits" else np.any
            sums[name] = np.float64(whole(sums[name]))


def _as_numpy(tensors):
    return keras.tree.map_structure(ops.convert_to_numpy, tensors)


def _add(sums, found, start):
    """Adds a chunk's sums to those of the chunks before it.

    Args:
        sums: dict of NumPy arrays.
        found: dict, of the chunk.
        start: integer, its first example.
    """
    place = found.pop("bad_label_place")
    if not sums.get("bad_labels", 0):
        sums["bad_label_place"] = place + start
    for name, value in found.items():
        if name in _OF_EXAMPLES or name.endswith("_contradicted"):
            sums.setdefault(name, []).append(value)
        else:
            sums[name] = sums.get(name, 0.0) + value.astype("float64")
