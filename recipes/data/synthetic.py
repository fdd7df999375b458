"""The synthetic study's data: classes in superclasses, labels of many sines.

Prototypes: of K + S orthonormal directions in as many dimensions, one is
class k's own and one is shared by its superclass s,

    u_k = sqrt(delta) * shared_s + sqrt(1 - delta) * own_k,

so that two classes have correlation delta in one superclass and 0 otherwise.

Labels: inputs are x ~ N(0, I). With a_k = u_k . x, class k scores

    g(a_k),   g(a) = 4 a + sum_{i=1..4} sin(i a + i),

which is the linear term and the sum of sines of Ma et al. 2018 (MMoE:
c w.x + sum_i sin(alpha_i w.x + beta_i)) with c = 4 and alpha_i = beta_i = i.
It falls over 22 % of the projections and rises, up to 14 times as fast as they
do, over the others. The label is drawn from softmax(g / noise), so that
examples near a border are hard, and how hard each one is, is known. Tang et
al. 2020 describe such data; their constants could not be read, these are this
project's.
"""

import dataclasses

import numpy as np

_SINES = np.arange(1, 5)
_SLOPE = 4.0
PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples of one or of several data sets.

    Attributes:
        inputs: [examples, features] float32, or [examples, data sets,
            features].
        labels: [examples] int32, or [examples, data sets].
        confidence: as `labels`, float32, the true probability of the label.
    """

    inputs: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Problem:
    """A data set of classes in superclasses.

    Attributes:
        prototypes: [classes, features].
        parts: dict of `Part` by name out of `PARTS`.
    """

    prototypes: np.ndarray
    parts: dict


def make_problem(delta, seed, classes, superclasses, sizes, noise):
    """Draws a data set; of one seed, all deltas share every random number.

    Args:
        delta: float in [0, 1], correlation of the prototypes in a superclass.
        seed: integer.
        classes: integer K.
        superclasses: integer S, a divisor of K.
        sizes: numbers of examples of each of `PARTS`.
        noise: float above 0, the temperature that labels are drawn at.

    Returns:
        A `Problem` of K + S features.
    """
    random = np.random.default_rng(seed)
    prototypes = make_prototypes(delta, classes, superclasses, random)
    parts = {
        name: _draw(prototypes, size, noise, random)
        for name, size in zip(PARTS, sizes, strict=True)
    }
    return Problem(prototypes, parts)


def make_prototypes(delta, classes, superclasses, random):
    """Unit vectors with correlation delta within a superclass.

    Args:
        delta: float in [0, 1].
        classes: integer K.
        superclasses: integer S, a divisor of K.
        random: NumPy generator.

    Returns:
        [K, K + S] array; class k is in superclass k * S // K.
    """
    features = classes + superclasses
    directions, _ = np.linalg.qr(random.normal(size=(features, features)))
    own, shared = directions[:classes], directions[classes:]
    of_class = np.arange(classes) * superclasses // classes
    return np.sqrt(delta) * shared[of_class] + np.sqrt(1 - delta) * own


def scores(projections):
    """The function g of the module's docstring, elementwise."""
    sines = np.sin(projections[..., None] * _SINES + _SINES)
    return _SLOPE * projections + sines.sum(-1)


def _draw(prototypes, size, noise, random):
    inputs = random.normal(size=(size, prototypes.shape[1]))
    logits = scores(inputs @ prototypes.T) / noise
    # The largest of logits with Gumbel noise is a draw from their softmax.
    labels = np.argmax(logits + random.gumbel(size=logits.shape), axis=-1)
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = exp[np.arange(size), labels] / exp.sum(-1)
    return Part(
        inputs.astype("float32"),
        labels.astype("int32"),
        confidence.astype("float32"),
    )


def side_by_side(problems, part):
    """One part of several data sets, with the data sets on axis 1.

    Args:
        problems: list of `Problem` of the same sizes.
        part: name out of `PARTS`.

    Returns:
        A `Part`.
    """
    parts = [problem.parts[part] for problem in problems]
    return Part(
        *(
            np.stack([getattr(p, field.name) for p in parts], axis=1)
            for field in dataclasses.fields(Part)
        )
    )
