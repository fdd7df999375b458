"""What a run returns: its score, and what it may say beside it."""

import math

import numpy as np

from keras_kd.monitors import DivergedError

# How a score follows from those of the test examples.
_SCORES = {"mean": np.mean, "exp_mean": lambda each: np.exp(np.mean(each))}
# By how much of a score the two may differ: sums of 32 bits, in any order.
_TOLERANCE = 1e-3


def checked(returned, metric, method, seed):
    """A run's score and all that was returned, in JSON's types.

    Args:
        returned: what `train` returned, a number or a dict.
        metric: name of the score.
        method: name, for messages.
        seed: integer, for messages.

    Returns:
        (score, results), a float and a dict, empty for a number; values that
        JSON can't hold and that have no meaning here are left out.

    Raises:
        ValueError: if the score is missing, or an entry that this module
            knows has another shape than it must.
        DivergedError: if the score is not finite.
    """
    run = f"{method!r} with seed {seed}"
    if not isinstance(returned, dict):
        return _score(returned, metric, run), {}
    if metric not in returned:
        raise ValueError(
            f"`train` must return a score, or a dict with {metric!r}. "
            f"Received: {sorted(map(str, returned))} for {method!r}. Pass one "
            "of them as `metric`."
        )
    score = _score(returned[metric], metric, run)
    results = {str(key): _json(value) for key, value in returned.items()}
    results = {k: v for k, v in results.items() if v is not None}
    check(results, score, run)
    return score, results


def check(results, score, run):
    """Refuses results that don't have the shapes that `attribute` names.

    Args:
        results: dict in JSON's types.
        score: float.
        run: what they are of, for the message.

    Raises:
        ValueError: naming what is wrong.
    """
    for key, is_right, must in _SHAPES:
        if key in results and not is_right(results[key]):
            raise ValueError(
                f'"{key}" must be {must}. Received: {_described(results[key])} '
                f"for {run}. Correct what `train` returns, or leave it out."
            )
    if "examples" not in results:
        return
    kind = results.get("examples_of", "mean")
    follows = float(_SCORES[kind](results["examples"]))
    if not math.isclose(follows, score, rel_tol=_TOLERANCE, abs_tol=1e-6):
        raise ValueError(
            'The score must follow from those of its "examples". Received: '
            f"{score:.6g} for {run}, where {kind} of the examples is "
            f"{follows:.6g}. Return the score of each test example that was "
            "evaluated, in order, with the key metric computed from them; for "
            'exp of their mean, such as a perplexity, with "examples_of": '
            '"exp_mean".'
        )


def _is_row(value):
    array = _numbers(value)
    return array is not None and array.ndim == 1 and array.size > 0


def _is_history(value):
    # A loss that is not a number is worth keeping.
    return isinstance(value, dict) and all(
        (array := _numbers(each, finite=False)) is not None and array.ndim == 1
        for each in value.values()
    )


def _is_square(value):
    array = _numbers(value)
    return (
        array is not None
        and array.ndim == 2
        and array.shape[0] == array.shape[1] > 1
    )


def _is_histogram(value):
    if not isinstance(value, dict) or not {"edges", "counts"} <= value.keys():
        return False
    edges, counts = _numbers(value["edges"]), _numbers(value["counts"])
    return (
        edges is not None
        and counts is not None
        and edges.ndim == 1
        and counts.ndim == 2
        and counts.shape[1] == len(edges) - 1 > 0
        and (counts >= 0).all()
    )


_SHAPES = (
    ("examples", _is_row, "[examples] finite numbers"),
    ("examples_of", lambda value: value in _SCORES, '"mean" or "exp_mean"'),
    ("history", _is_history, "a dict of lists, a number for each epoch"),
    (
        "gradient_scale",
        _is_histogram,
        'a dict of "edges", [bins + 1], and "counts", [epochs, bins]',
    ),
    ("class_similarity", _is_square, "[classes, classes] finite numbers"),
)


def _numbers(value, finite=True):
    """The value as an array of numbers, or `None`."""
    try:
        array = np.array(value, "float64")
    except (TypeError, ValueError):
        return None
    return array if not finite or np.isfinite(array).all() else None


def _json(value):
    """The value in JSON's types, or `None` where it has none."""
    if isinstance(value, dict):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    try:
        # Arrays and numbers of NumPy, TensorFlow, JAX and PyTorch.
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array.tolist() if array.dtype.kind in "biuf" else None


def _score(value, metric, run):
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`train` must return a score, a number, or a dict with {metric!r}"
            f". Received: {_described(value)} for {run}. Let it return the "
            "score, as in `return distiller.evaluate(test, return_dict=True)`."
        ) from error
    if not math.isfinite(score):
        raise DivergedError(
            f"The score of a run must be a finite number. Received: {score} "
            f"for method {run}. Its training may have diverged: lower its "
            "learning rate or its weight."
        )
    return score


def _described(result):
    if result is None:
        return "None"
    text = repr(result)
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return f"{shown} of type {type(result).__name__}"
