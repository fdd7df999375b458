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
from keras_kd.diagnosis.examples import NO_CLASS, known_before
from keras_kd.logit_split import split_or_none

# A batch of so many chunks' logits at most is computed at once.
_CHUNKS = 4


def pays(examples, classes):
    """Whether a batch's logits are many."""
    return examples > _CHUNKS * most_tokens(classes)


def make(survey):
    """A function as `Survey.batch_sums`, computed by chunks.

    Args:
        survey: the `Survey`.

    Returns:
        A function; `None` for models that can't be split.
    """
    splits = [
        split_or_none(reader.model, reader.output) for reader in survey.readers
    ]
    return None if None in splits else _ByChunks(survey, splits)


class _ByChunks:
    def __init__(self, survey, splits):
        self._survey = survey
        self._size = most_tokens(survey.num_classes)

        def features(x, labels, counted):
            found = [split.body(x, training=False) for split in splits]
            mask = None
            if splits[0].layer.keeps_mask:
                mask = private.get_keras_mask(found[0])
            flags = known_before(x, mask, labels, counted)
            flat = [ops.reshape(f, (-1, f.shape[-1])) for f in found]
            return flat, *flags

        def outputs(features):
            return [
                split.finish(split.layer.product(each, split.layer.weights()))
                for split, each in zip(splits, features, strict=True)
            ]

        def chunk(features, labels, counted, bad_inputs):
            sums, *_ = survey.sums_of_all(
                outputs(features), labels, counted, bad_inputs
            )
            return sums

        def sample(features, labels, keep, order):
            logits = [
                ops.cast(reader.logits(each), "float32")
                for reader, each in zip(
                    survey.readers, outputs(features), strict=True
                )
            ]
            kept = ops.expand_dims(keep, -1) > 0
            logits = [ops.where(kept, each, 0.0) for each in logits]
            return survey.sums_of_sample(labels, keep, logits, order)

        variables = survey.variables
        self._features = backend.compiled(features, variables)
        self._chunk = backend.compiled(chunk, variables)
        self._sample = backend.compiled(sample, variables)

    def __call__(self, x, labels, counted, sample, order):
        """See `Survey.batch_sums`."""
        features, *flags = keras.tree.map_structure(
            ops.convert_to_numpy, self._features(x, labels, counted)
        )
        labels = ops.convert_to_numpy(labels)
        sums = {}
        for start in range(0, len(labels), self._size):
            part = self._part(start, features, labels, *flags)
            found = self._chunk(*backend.from_tf_data(part))
            found = keras.tree.map_structure(ops.convert_to_numpy, found)
            self._add(sums, found, start)
        for name in ("predictions", "kept"):
            sums[name] = np.concatenate(sums[name])[: len(labels)]
        self._check_contradictions(sums)
        taken = (
            [each[sample] for each in features],
            np.maximum(labels[sample], 0),
            sums["kept"][sample],
            order,
        )
        return {**sums, **self._sample(*backend.from_tf_data(taken))}

    def _part(self, start, features, labels, counted, bad_inputs):
        """A chunk; the last is filled up with examples that don't count.

        So that one size is compiled.
        """
        at = np.arange(start, start + self._size)
        inside, at = at < len(labels), at % len(labels)
        return (
            [each[at] for each in features],
            np.where(inside, labels[at], NO_CLASS).astype(labels.dtype),
            counted[at] & inside,
            bad_inputs[at],
        )

    def _add(self, sums, found, start):
        """Adds a chunk's sums to those of the chunks before it."""
        for name in ("predictions", "kept"):
            sums.setdefault(name, []).append(found.pop(name))
        place = found.pop("bad_label_place")
        if not sums.get("bad_labels", 0):
            sums["bad_label_place"] = place + start
        for name, value in found.items():
            if name.endswith("_contradicted"):
                sums.setdefault(name, []).append(value)
            else:
                sums[name] = sums.get(name, 0) + value

    def _check_contradictions(self, sums):
        """Whether the batch shows that a model gives something else."""
        for reader in self._survey.readers:
            name = f"{reader.role}_contradicted"
            # Logits show that they are by a single row of them.
            whole = np.all if reader.kind == "logits" else np.any
            sums[name] = np.float32(whole(sums[name]))
