"""What a student's training came to: scores, of each example too."""

import numpy as np
from keras import ops

from keras_kd import data as any_data
from keras_kd import distribution, preprocessing
from keras_kd.backend.private import (
    compiled_metrics,
    get_keras_mask,
    values_of_examples,
)
from keras_kd.batch import with_axes_of
from keras_kd.model_inputs import outputs_of
from keras_kd.similarity import class_similarity, logit_weights
from keras_kd.states import reset_states

# A picture of more classes shows nothing, and its numbers take megabytes.
_MOST_CLASSES = 256


def example_scores(distiller, data, metric, score, batch_size=None):
    """The score of each example, where the score follows from these.

    Args:
        distiller: a compiled `Distiller`.
        data: data as `fit` takes them, in a fixed order.
        metric: name of the metric.
        score: float, of all examples.
        batch_size: integer, of arrays.

    Returns:
        A dict: "examples", [examples] floats, for text the mean over each
        row, weighted so that the mean of all is the score; "examples_of", how
        the score follows, "mean" or "exp_mean"; and by the metric's name the
        score in all its digits, where Keras adds up in float32. Empty where it
        doesn't follow, as for AUC, and with several replicas. Examples with
        weight 0 are left out.
    """
    if distribution.num_replicas(distribution.strategy_of(distiller)) > 1:
        return {}  # A model may be made for a replica's part of a batch.
    is_perplexity = "perplexity" in metric.lower()
    function = None
    if metric != "loss" and not is_perplexity:
        function = _function_of(distiller, metric)
        if function is None:
            return {}
    totals = _totals(distiller, data, batch_size, function)
    if totals is None:
        return {}
    values, weights = totals
    counted = weights > 0
    if not counted.any():
        return {}
    share = weights[counted].mean()
    examples = values[counted] / share
    mean = np.exp(examples.mean()) if is_perplexity else examples.mean()
    if not np.isclose(mean, score, rtol=1e-3, atol=1e-6):
        return {}
    return {
        "examples": examples.tolist(),
        "examples_of": "exp_mean" if is_perplexity else "mean",
        metric: float(mean),
    }


def _function_of(distiller, name):
    """What gives a metric's value of each example, or `None`."""
    for metric in compiled_metrics(distiller).metrics:
        if metric.name == name:
            return values_of_examples(metric)
    return None


def _totals(distiller, data, batch_size, function):
    """[examples] sums of weighted values, and of weights.

    `None` for a function that gives one number for a batch.
    """
    student = distiller.student
    reset_states(student)
    prepare = preprocessing.Preprocessing(student)
    values, weights = [], []
    with distiller.evaluation():
        for x, y, *weight in any_data.of(data, batch_size).batches():
            x, y, weight = prepare.on_batch(x, y, *weight)
            outputs = outputs_of(student, x, "student")
            (head,) = distiller.heads
            settled = distiller.settle(y, outputs, weight)[head.name]
            if function is None:
                found = head.losses(settled, training=False)
                counted, given = settled.counted, settled.weights
            else:
                labels, outputs, given, _ = head.metric_arguments(
                    settled, outputs
                )
                found = function(labels, outputs)
                if len(np.shape(found)) == 0:
                    return None
                counted = _counted_by_metrics(settled, outputs)
            counted = ops.cast(counted, "float32")
            if given is not None:
                counted = counted * with_axes_of(given, counted)
            found, counted = (
                _rows(ops.convert_to_numpy(each)) for each in (found, counted)
            )
            if found.shape != counted.shape:  # Several units of one example.
                counted = counted.mean(1, keepdims=True)
                found = found.mean(1, keepdims=True)
            values.append((found * counted).sum(1))
            weights.append(counted.sum(1))
    reset_states(student)
    return np.concatenate(values), np.concatenate(weights)


def _counted_by_metrics(settled, outputs):
    """[...] booleans: what a mask lets metrics see.

    What `ignore_class` leaves out is among it, unlike in the loss.
    """
    mask = get_keras_mask(outputs)
    if mask is None:
        return ops.ones_like(settled.is_valid)
    mask = with_axes_of(ops.cast(mask, "bool"), settled.is_valid, "mask")
    return ops.logical_and(mask, ops.ones_like(settled.is_valid))


def _rows(array):
    return np.asarray(array, "float64").reshape(len(array), -1)


def similarity_of(model):
    """Cosine similarities of a model's logit layer, as JSON holds them.

    Args:
        model: a `keras.Model`, or `None`.

    Returns:
        [classes, classes] lists; `None` where no logit layer is found, it is
        one sigmoid unit, which is related to no other, or there are too many
        classes for a picture.
    """
    if model is None:
        return None
    try:
        rows = logit_weights(model)
    except ValueError:
        return None
    is_shown = 1 < len(rows) <= _MOST_CLASSES
    if not is_shown or not np.isfinite(rows).all():
        return None
    return np.round(class_similarity(rows), 5).tolist()
