"""Unbiased top-k: a few classes drawn so that their mean is the teacher's."""

import operator

import keras
import numpy as np
from keras import ops

from keras_kd import backend, distribution
from keras_kd.losses.methods import KDTopK
from keras_kd.losses.targets import SparseTarget

# A class whose probability is so much below the largest's counts as having
# this much: every class can then be drawn, and 1e-35 is still a normal float32.
_SMALLEST_LOG = -80.0


@keras.saving.register_keras_serializable(package="keras_kd")
class KDSampled(KDTopK):
    """Knowledge distillation from k classes, right on average.

    `KDTopK` replaces the teacher's tail by its mean, which teaches the student
    that it is flat. Here the tail is sampled: with the threshold tau at which
    the sum over classes of min(1, p / tau) is k, class i is kept with the
    probability min(1, p_i / tau) and gets the mass max(p_i, tau). Exactly k
    distinct classes are kept, their masses sum to 1, classes above tau are
    exact, and the mean over draws of every class's mass is its probability.
    So the mean of the gradient is that of `KD`.

    Classes are drawn again in each step; a `TeacherCache` holds one draw for
    each view, at 4 bytes a class.

    The distillation term is the cross-entropy with the drawn masses, whose
    mean is that with the teacher's probabilities. It is not the divergence
    from them: their entropy is that of the draw, not the teacher's, and would
    make the term's mean another one than that of `KD`.

    Args:
        k: how many classes to keep: an integer count of at least 1, or a
            float in (0, 1], a fraction of the classes. With all of them it is
            `KD`.
        weight: float in [0, 1], weight of the distillation term.
        temperature: float above 0.
        seed: optional integer, for the same draws in every run.
        **kwargs: `temperature_squared`, `ignore_class`, `reduction`, `name`,
            `dtype` of `DistillationLoss`.

    Raises:
        ValueError: as `KDTopK`.

    Example:
    >>> distiller.compile(loss=kd.KDSampled(k=32, temperature=1.0))

    Source: systematic sampling with probabilities proportional to size, with
    the threshold of Fearnhead and Clifford 2003, "On-line inference for hidden
    Markov models via particle filters". Compare the sampling with replacement
    of Anshumann et al. 2025, "Sparse Logit Sampling" (arXiv 2503.16870).
    """

    statistics = ("sampled_classes", "sampled_masses")

    def __init__(
        self, k=0.25, weight=0.5, temperature=2.0, seed=None, **kwargs
    ):
        super().__init__(k=k, weight=weight, temperature=temperature, **kwargs)
        self.seed = None if seed is None else operator.index(seed)
        self._draws = _Draws(self.seed)

    @property
    def variables(self):
        """The state of the draws too; see `DistillationLoss`."""
        return [*super().variables, *self.random_variables]

    @property
    def random_variables(self):
        """The state of the draws; see `DistillationLoss`."""
        return [self._draws.state]

    def copy(self):
        """A loss with draws of its own; see `DistillationLoss`."""
        twin = super().copy()
        twin._draws = _Draws(self.seed)
        return twin

    def seek(self, stream, position):
        """Goes to a place in a stream of draws, to repeat what follows.

        Args:
            stream: integer, which of the seed's streams.
            position: integer, how many batches were drawn from it.
        """
        self._draws.seek(self.seed or 0, stream, position)

    def teacher_statistics(self, labels, teacher_logits):
        """See `DistillationLoss.teacher_statistics`."""
        del labels
        classes = teacher_logits.shape[-1]
        k = self.count(classes)
        scaled = teacher_logits / self.temperature
        scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
        if k == classes:
            ids = ops.zeros_like(scaled, "int32") + ops.arange(
                classes, dtype="int32"
            )
            return self._statistics(ids, ops.softmax(scaled, axis=-1))
        scaled = ops.reshape(scaled, (-1, classes))
        weights = ops.exp(
            ops.where(scaled < _SMALLEST_LOG, _SMALLEST_LOG, scaled)
        )
        uniform = keras.random.uniform(
            (ops.shape(weights)[0],),
            dtype=self.dtype,
            seed=self._draws,
        )
        ids, masses = sample(weights, k, uniform)
        # A class that the teacher rules out by the logit -inf has no mass,
        # also where it is drawn because k classes must be.
        is_ruled_out = ops.isinf(backend.take_classes(scaled, ids))
        masses = ops.where(is_ruled_out, 0.0, masses)
        shape = (*ops.shape(teacher_logits)[:-1], k)
        return self._statistics(
            ops.reshape(ids, shape), ops.reshape(masses, shape)
        )

    def _statistics(self, classes, masses):
        return {"sampled_classes": classes, "sampled_masses": masses}

    def target(self, labels, statistics, num_classes):
        """See `DistillationLoss.target`."""
        classes = statistics["sampled_classes"]
        self._check_kept(classes, num_classes)
        masses = ops.cast(statistics["sampled_masses"], self.dtype)
        return SparseTarget(
            classes=classes, masses=masses, rest=ops.zeros_like(masses[..., 0])
        )

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "seed": self.seed}


def sample(weights, k, uniform):
    """Draws k classes of each example, right on average.

    Args:
        weights: [examples, classes] above 0, in proportion to probabilities.
        k: integer below the number of classes.
        uniform: [examples] in [0, 1), a random number for each.

    Returns:
        [examples, k] int32, distinct class ids, those that are certain to be
        kept first; and [examples, k] masses, which sum to 1.

    Example:
    >>> sample(np.array([[8.0, 1.0, 1.0]]), 2, np.array([0.7]))
    ([[0, 2]], [[0.8, 0.2]])
    """
    top, ids = ops.top_k(weights, k)
    ids = ops.cast(ids, "int32")
    others = _put(weights, ids, ops.zeros_like(top))
    certain = _count_certain(top, ops.sum(others, axis=-1, keepdims=True))
    rank = ops.cast(ops.arange(k), weights.dtype)
    is_certain = rank < certain
    # The line of all classes that may be drawn, each as long as its weight.
    line = _put(others, ids, ops.where(is_certain, 0.0, top))
    drawn, length = _at_points(line, uniform, rank - certain, k - certain)
    masses = ops.where(is_certain, top, length / (k - certain))
    masses = masses / ops.sum(masses, axis=-1, keepdims=True)
    return ops.where(is_certain, ids, drawn), masses


def _put(values, classes, those):
    """Values with others for some classes of each example.

    They are put there, not added: where a compiler works out a value twice,
    the two may differ by a rounding error.
    """
    rows = ops.arange(ops.shape(classes)[0], dtype="int32")
    rows = ops.zeros_like(classes) + ops.expand_dims(rows, -1)
    at = ops.reshape(ops.stack([rows, classes], axis=-1), (-1, 2))
    return ops.scatter_update(values, at, ops.reshape(those, (-1,)))


def _count_certain(top, tail):
    """How many of the k largest weights are above the threshold.

    After m certain ones the threshold is what is left, shared by k - m draws.
    One weight at least is drawn, from all the tail.

    Args:
        top: [examples, k], falling.
        tail: [examples, 1], the sum of all others.

    Returns:
        [examples, 1], whole numbers of the weights' dtype.
    """
    k = top.shape[-1]
    # From the smallest on: 1 minus the largest would lose its digits.
    left = tail + ops.flip(ops.cumsum(ops.flip(top, axis=-1), axis=-1), axis=-1)
    draws = ops.cast(ops.arange(k, 0, -1), top.dtype)
    # Within a margin of the threshold they are taken for certain, which is
    # right as well: no weight is then so long that two draws could hit it by
    # a rounding error.
    margin = 1e-3 + 1e-6 * k
    above = ops.logical_and(top * draws >= (1.0 - margin) * left, draws > 1)
    return ops.sum(ops.cast(above, top.dtype), axis=-1, keepdims=True)


def _at_points(line, uniform, rank, draws):
    """The classes at evenly spaced points of a line of weights.

    The line is cut into blocks, so that sums are short and exact, and only
    the blocks that are hit are looked into.

    Args:
        line: [examples, classes], some of them 0, which are never hit.
        uniform: [examples] in [0, 1), the first point in units of the spacing.
        rank: [examples, points], the number of each point; those below 0 mean
            nothing.
        draws: [examples, 1], how many points count.

    Returns:
        [examples, points] int32 class ids, and [examples, 1], the length of
        the line.
    """
    classes, points = line.shape[-1], rank.shape[-1]
    size = max(1, min(round(classes**0.5), classes // points))
    count = -(-classes // size)
    line = ops.pad(line, ((0, 0), (0, count * size - classes)))
    blocks = ops.reshape(line, (-1, count, size))
    ends = ops.cumsum(ops.sum(blocks, axis=-1), axis=-1)
    length = ends[:, -1:]
    at = (ops.expand_dims(uniform, -1) + rank) * (length / draws)
    at = ops.where(at > 0.0, at, 0.0)
    block = _first_above(ends, _below(at, length))

    starts = ops.pad(ends, ((0, 0), (1, 0)))
    within = at - backend.take_classes(starts, block)
    within = ops.where(within > 0.0, within, 0.0)
    first = ops.arange(ops.shape(line)[0], dtype="int32") * count
    rows = ops.take(
        ops.reshape(blocks, (-1, size)),
        ops.expand_dims(first, -1) + block,
        axis=0,
    )
    sums = ops.cumsum(rows, axis=-1)
    within = ops.expand_dims(_below(within, sums[..., -1]), -1)
    offset = ops.sum(ops.cast(sums <= within, "int32"), axis=-1)
    return block * size + offset, length


def _below(values, limit):
    """Values that a rounding error has not put at the limit, above 0."""
    return ops.where(values < limit, values, limit * (1.0 - 1e-6))


def _first_above(ends, values):
    """The first of rising numbers that is above a value, by bisection.

    Args:
        ends: [examples, n], rising.
        values: [examples, points], below the last of `ends`.

    Returns:
        [examples, points] int32.
    """
    n = ends.shape[-1]
    low = ops.zeros_like(values, dtype="int32")
    step = 1 << max(n - 1, 0).bit_length()
    while step > 1:
        step //= 2
        probe = low + (step - 1)
        inside = ops.where(probe < n, probe, n - 1)
        passed = ops.logical_and(
            probe < n, backend.take_classes(ends, inside) <= values
        )
        low = ops.where(passed, low + step, low)
    return ops.where(low < n, low, n - 1)


class _Draws(keras.random.SeedGenerator):
    """Seeds that are different in every step, and on every replica."""

    def seek(self, seed, stream, position):
        """See `KDSampled.seek`."""
        # An odd factor takes streams far from one another, modulo 2**31.
        start = (seed + stream * 0x9E3779B1) % 2**31
        self.state.assign(np.array([start, position], self.state.dtype))

    def next(self, ordered=True):
        """The next seed."""
        seed, replica = super().next(ordered), distribution.replica_id()
        return seed if replica is None else seed + ops.cast(replica, seed.dtype)
