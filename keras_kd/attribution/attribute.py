"""Trains a student by every method and seed, within a time budget."""

import math
import operator
import re
import time

from keras_kd.attribution.levels import METHODS
from keras_kd.attribution.outcome import Attribution
from keras_kd.attribution.runs import Runs


def attribute(
    train,
    seeds,
    methods=METHODS,
    folder=None,
    time_budget=None,
    metric="score",
    higher_is_better=True,
    study=None,
    verbose=True,
):
    """Trains a student with each part of the knowledge, over several seeds.

    Runs are made seed by seed, so that stopping early leaves complete pairs.
    With a `folder`, a call that was killed resumes after its last finished
    run, and seeds and methods can be added later.

    Args:
        train: function of a method's name and a seed that trains one student
            and returns its score, a number, or a dict of numbers with the key
            `metric`. It must give all methods of a seed the same data, the
            same teacher and the same initial student.
        seeds: at least two integers.
        methods: names, with "plain" (no teacher) among them; names of the
            caller's own are compared with "plain" alone. For the controls see
            `permuted_logit_weights` and `shuffle_within_labels`.
        folder: optional path; keeps the result of each run. A leading `~` is
            the home folder.
        time_budget: optional seconds for this call; a seed, or a run, that
            would not fit is not started.
        metric: name of the score.
        higher_is_better: whether a larger score is better.
        study: optional dict in JSON's types of what the scores depend on; a
            folder with another one is refused.
        verbose: whether to print a line for each run.

    Returns:
        An `Attribution`.

    Raises:
        ValueError: for fewer than two seeds, seeds or methods given twice,
            methods without "plain", a folder of another study or with a
            damaged file, or a score that is not a finite number.
        OSError: if a result can't be written, such as on a full disk.

    Example:
    ```python
    def train(method, seed):
        keras.utils.set_random_seed(seed)
        distiller = kd.Distiller(make_student(), teacher)
        distiller.compile("adam", loss_of(method), metrics=["accuracy"])
        distiller.fit(train_data, epochs=10, verbose=0)
        return distiller.evaluate(test_data, return_dict=True, verbose=0)

    print(kd.attribute(train, range(5), folder="runs/x", metric="accuracy"))
    ```

    Source: Tang et al. 2020, section 4, which compares the same parts.
    """
    seeds, methods = [operator.index(s) for s in seeds], list(methods)
    _check_arguments(seeds, methods, time_budget)
    study = {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "study": study,
    }
    runs = Runs(folder, study)
    for method, seed in _in_budget(runs, seeds, methods, time_budget):
        began = time.perf_counter()
        score = _score(train(method, seed), metric, method, seed)
        runs.add(method, seed, score, time.perf_counter() - began)
        if verbose:
            place = f"seed {seeds.index(seed) + 1}/{len(seeds)}"
            print(f"{place} {method}: {metric} {score:.4g}", flush=True)
    scores = {method: runs.scores(method, seeds) for method in methods}
    absent = sum(len(seeds) - len(by_seed) for by_seed in scores.values())
    if absent and verbose:
        print(
            f"The time budget left no time for {absent} runs. Call again with "
            "the same folder to make them."
        )
    return Attribution(scores, metric, higher_is_better)


def _in_budget(runs, seeds, methods, budget):
    """Yields what to run next, until the next seed or run would not fit."""
    began = time.perf_counter()

    def fits(names):
        spent = time.perf_counter() - began
        return budget is None or spent + runs.expected_seconds(names) <= budget

    for seed in seeds:
        missing = [m for m in methods if (m, seed) not in runs.results]
        if not fits(missing):
            return
        for method in missing:
            if not fits([method]):
                return
            yield method, seed


def _check_arguments(seeds, methods, time_budget):
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            "An interval over seeds needs at least two different seeds. "
            f"Received: seeds={seeds}. Pass, for example, range(5)."
        )
    if "plain" not in methods or len(set(methods)) < len(methods):
        raise ValueError(
            'Methods must be different names with "plain" among them, from '
            f"which every gain is measured. Received: methods={methods}. Leave "
            "`methods` out for all."
        )
    bad = [m for m in methods if not re.fullmatch(r"[\w.+-]+", m)]
    if bad:
        raise ValueError(
            "A method's name becomes part of a file's name, so it must consist "
            f"of letters, digits and any of _ . + -. Received: {bad}. Rename "
            "it."
        )
    if time_budget is not None and not time_budget > 0:
        raise ValueError(
            "`time_budget` is in seconds and must be above 0. Received: "
            f"{time_budget}. Leave it out to run everything."
        )


def _score(result, metric, method, seed):
    if isinstance(result, dict):
        if metric not in result:
            raise ValueError(
                f"`train` must return a score, or a dict with {metric!r}. "
                f"Received: {sorted(result)} for {method!r}. Pass one of them "
                "as `metric`."
            )
        result = result[metric]
    try:
        score = float(result)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`train` must return a score, a number, or a dict with {metric!r}"
            f". Received: {_described(result)} for {method!r} with seed {seed}"
            ". Let it return the score, as in `return distiller.evaluate(test, "
            "return_dict=True)`."
        ) from error
    if not math.isfinite(score):
        raise ValueError(
            f"The score of a run must be a finite number. Received: {score} "
            f"for method {method!r} with seed {seed}. Its training may have "
            "diverged: lower its learning rate or its weight, and call again; "
            "finished runs in `folder` are kept."
        )
    return score


def _described(result):
    if result is None:
        return "None"
    text = repr(result)
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return f"{shown} of type {type(result).__name__}"
