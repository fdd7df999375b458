"""Which metrics are the same whether they see a batch whole or by chunks."""

import keras
import numpy as np
from keras import ops

# Examples and tokens of each that a metric is tried on, all but one right, and
# tokens in the first chunk: unlike the second, so that a mean of means differs.
_EXAMPLES, _TOKENS, _FIRST = 2, 3, 4


def check_metrics(metrics, shape):
    """Refuses metrics that differ when they see a few tokens at a time.

    Nothing about a metric says so; it is tried on a few made-up tokens.

    Args:
        metrics: metrics as `keras.Model.compile` takes them, nested at will.
        shape: tuple, of the student's outputs, [batch, ..., classes].

    Raises:
        ValueError: naming the metric.
    """
    for metric in keras.tree.flatten(metrics):
        # Keras's own, by name, are those of each token.
        if metric is None or isinstance(metric, str):
            continue
        is_metric = isinstance(metric, keras.metrics.Metric)
        name = metric.name if is_metric else _name(metric)
        if not is_metric:
            metric = keras.metrics.MeanMetricWrapper(metric, name=name)
        found = _whole_and_by_chunks(metric, shape)
        if found is None or _close(*found):
            continue
        whole, by_chunks = ((map(_shown, keras.tree.flatten(f))) for f in found)
        raise ValueError(
            "With `logit_chunks` a metric sees some tokens at a time, so it "
            "must be the same however a batch is cut, as a mean over tokens "
            f"is. Received: metric {name!r}, which gives "
            f"{', '.join(whole)} of some made-up rows of tokens, and "
            f"{', '.join(by_chunks)} of the same tokens by chunks. Compute it "
            "from what `predict` gives, or leave `logit_chunks` out."
        )


def _name(function):
    return getattr(function, "__name__", type(function).__name__)


def _whole_and_by_chunks(metric, shape):
    """A metric's results in both ways.

    Returns:
        A pair, of labels that give the same if there are any; `None` where it
        can't be told: the metric takes neither class ids nor one-hot labels,
        or is not the same twice.
    """
    axes, classes = len(shape) - 1, shape[-1]
    tokens = _EXAMPLES * _TOKENS
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(tokens, classes))
    outputs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = outputs.argmax(-1)
    ids[_TOKENS - 1] = outputs[_TOKENS - 1].argmin()
    rows = (_EXAMPLES, *(1,) * (axes - 2), _TOKENS)
    of_whole = rows if axes > 1 else (tokens,)

    def with_axes(values, of_tokens):
        return values.reshape(*of_tokens, *values.shape[1:])

    def by_chunks(values):
        return [
            with_axes(part, (len(part), *(1,) * (axes - 1)))
            for part in (values[:_FIRST], values[_FIRST:])
        ]

    outputs = outputs.astype("float32")
    found = None
    one_hot = keras.utils.to_categorical(ids, classes).astype("float32")
    for labels in (ids.astype("int32"), one_hot):
        whole = [(with_axes(labels, of_whole), with_axes(outputs, of_whole))]
        chunks = list(zip(by_chunks(labels), by_chunks(outputs), strict=True))
        # What a user's code raises may be anything; training will raise it.
        try:
            first, again, other = (
                _result(metric, batches) for batches in (whole, whole, chunks)
            )
        except Exception:
            continue
        if _close(first, again) and (found is None or _close(first, other)):
            found = first, other
    return found


def _result(metric, batches):
    """What a metric makes of batches, which leave it as it was."""
    with keras.StatelessScope():
        metric.reset_state()
        for batch in batches:
            metric.update_state(*map(ops.convert_to_tensor, batch))
        return keras.tree.map_structure(
            lambda each: np.array(ops.convert_to_numpy(each)), metric.result()
        )


def _close(one, other):
    one, other = keras.tree.flatten(one), keras.tree.flatten(other)
    return len(one) == len(other) and all(
        np.shape(a) == np.shape(b)
        and np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def _shown(value):
    return np.array2string(value, precision=4, threshold=4)
