"""Controls: the smoothing of a part of the knowledge without the knowledge."""

import numpy as np


def permuted_logit_weights(weights, seed=0):
    """A logit layer in which every class has the relations of another.

    It is the control of `KDSim`: the same similarities, and so the same
    smoothing, between the wrong classes.

    Args:
        weights: [classes, features] array, such as
            `keras_kd.similarity.logit_weights` gives.
        seed: integer.

    Returns:
        [classes, features] array of the same rows, none in its old place.

    Raises:
        ValueError: if there are fewer than two classes.

    Example:
    >>> rows = permuted_logit_weights(kd.similarity.logit_weights(teacher))
    >>> control = kd.KDSim(logit_layer=rows)
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or len(weights) < 2:
        raise ValueError(
            "`weights` must be a [classes, features] matrix with at least two "
            f"rows, to permute them. Received: shape {weights.shape}. Pass the "
            "rows of a logit layer, as keras_kd.similarity.logit_weights gives "
            "them."
        )
    # Each class takes the row of the next in one random cycle through all.
    cycle = np.random.default_rng(seed).permutation(len(weights))
    permuted = np.empty_like(weights)
    permuted[cycle] = weights[np.roll(cycle, 1)]
    return permuted


def shuffle_within_labels(values, labels, seed=0):
    """Gives each example the statistic of an example of the same class.

    It is the control of `KDPt`: the same confidences in each class, and so the
    same smoothing, on the wrong examples.

    Args:
        values: [examples, ...] array, such as the statistic "label_log_odds".
        labels: [examples] integer class ids.
        seed: integer.

    Returns:
        Array of the shape and dtype of `values`.

    Raises:
        ValueError: if there is not one label for each value.

    Example:
    >>> shuffled = shuffle_within_labels(log_odds, labels)
    """
    values, labels = np.asarray(values), np.asarray(labels)
    if labels.ndim != 1 or len(values) != len(labels):
        raise ValueError(
            "Values are shuffled within classes, which takes one label for "
            f"each. Received: values of shape {values.shape} and labels of "
            f"shape {labels.shape}. Pass one class id for each value."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # Both list the examples class by class, the second in random order.
    places = np.argsort(labels, kind="stable")
    sources = order[np.argsort(labels[order], kind="stable")]
    shuffled = np.empty_like(values)
    shuffled[places] = values[sources]
    return shuffled
