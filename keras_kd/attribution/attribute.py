"""Trains a student by every method and seed, within a time budget."""

import operator
import time

import numpy as np

from keras_kd.attribution.levels import DEFAULT_METHODS, METHODS
from keras_kd.attribution.outcome import Attribution
from keras_kd.attribution.results import checked
from keras_kd.attribution.runs import Runs
from keras_kd.files import is_file_name
from keras_kd.monitors import DivergedError
from keras_kd.reports.terminal import say


def attribute(
    train,
    seeds,
    methods=None,
    folder=None,
    time_budget=None,
    metric=None,
    higher_is_better=None,
    study=None,
    verbose=True,
):
    """Trains a student with each part of the knowledge, over several seeds.

    Runs are made seed by seed, so that stopping early leaves complete pairs.
    With a `folder`, a call that was killed resumes after its last finished
    run, and seeds and methods can be added later. A run that diverges (its
    score is not a finite number, or a `StudentTrainer` says so) is left out,
    and a finding tells of it.

    What `train` returns may be a number, or a dict with the key `metric` and:

    - "examples": [examples] floats, the score of each test example, such as 1
      or 0 for right or wrong. Intervals then hold what another test set would
      change, too. Examples must be the same, in the same order, in all runs;
      what belongs together, such as a row of text, is one example.
    - "examples_of": how the score follows from them: "mean" (default), or
      "exp_mean" for a perplexity of mean losses.
    - "history": dict of lists with a number for each epoch.
    - "gradient_scale": dict of "edges", [bins + 1], and "counts", [epochs,
      bins], the histogram of w in each epoch.
    - "class_similarity": [classes, classes] cosines of the student's logit
      layer.

    All of it is kept; the last three are drawn on the report's page.

    Args:
        train: function of a method's name and a seed that trains one student
            and returns its results. It must give all methods of a seed the
            same data, the same teacher and the same initial student. What is
            left out below is taken from its attributes of these names, if it
            has them, as a `StudentTrainer` does.
        seeds: at least two integers, or a number of seeds, from 0 on.
        methods: names, with "plain" (no teacher) among them; names of the
            caller's own are compared with "plain" alone. By default
            `keras_kd.attribution.DEFAULT_METHODS`, of a trainer those that it
            can train, and its own; all that there are is
            `keras_kd.attribution.METHODS`. For the controls see
            `permuted_logit_weights` and `shuffle_within_labels`.
        folder: optional path; keeps the results of each run. A leading `~` is
            the home folder.
        time_budget: optional seconds for this call; a seed, or a run, that
            would not fit is not started.
        metric: name of the score; by default "score".
        higher_is_better: whether a larger score is better, as by default.
        study: optional dict in JSON's types of what the scores depend on; a
            folder with another one is refused.
        verbose: whether to print a line for each run.

    Returns:
        An `Attribution`.

    Raises:
        ValueError: for fewer than two seeds, seeds or methods given twice,
            methods without "plain", a folder of another study or with a
            damaged file, or results of another shape.
        TypeError: if `train` is not a function.
        OSError: if a result can't be written, such as on a full disk.

    Example:
    ```python
    def train(method, seed):
        keras.utils.set_random_seed(seed)
        distiller = kd.Distiller(make_student(), teacher)
        distiller.compile("adam", loss_of(method), metrics=["accuracy"])
        distiller.fit(train_data, epochs=10, verbose=0)
        right = distiller.student.predict(x_test).argmax(-1) == labels
        return {"accuracy": right.mean(), "examples": right.astype(float)}

    print(kd.attribute(train, seeds=5, folder="runs/x", metric="accuracy"))
    ```

    Source: Tang et al. 2020, section 4, which compares the same parts.
    """
    _check_train(train)
    seeds = _seeds(seeds)
    methods = _methods(train) if methods is None else _listed(methods)
    if metric is None:
        metric = getattr(train, "metric", "score")
    if higher_is_better is None:
        higher_is_better = getattr(train, "higher_is_better", True)
    if study is None:
        study = getattr(train, "study", None)
    _check_arguments(seeds, methods, time_budget)
    runs = Runs(
        folder,
        {
            "metric": metric,
            "higher_is_better": higher_is_better,
            "study": study,
        },
    )

    def outcome():
        return Attribution(
            {method: runs.scores(method, seeds) for method in methods},
            metric,
            higher_is_better,
            {method: runs.results_of(method, seeds) for method in methods},
            getattr(train, "teacher_similarity", None),
            getattr(train, "superclasses", None),
            diverged={
                method: seeds_of
                for method in methods
                if (seeds_of := runs.diverged_of(method, seeds))
            },
        )

    for method, seed in _in_budget(runs, seeds, methods, time_budget):
        began = time.perf_counter()
        place = f"seed {seeds.index(seed) + 1}/{len(seeds)} {method}"
        try:
            score, results = checked(train(method, seed), metric, method, seed)
        except DivergedError as error:
            runs.add_diverged(method, seed, str(error))
            if verbose:
                say(f"{place}: left out, as it diverged")
            continue
        runs.add(method, seed, score, time.perf_counter() - began, results)
        if verbose:
            unit = outcome().unit
            shown = f"{unit.score(score)} {unit.of_scores}".strip()
            say(f"{place}: {metric} {shown}")
    found = outcome()
    absent = sum(not runs.has(m, seed) for m in methods for seed in seeds)
    if absent and verbose:
        print(
            f"The time budget left no time for {absent} runs. Call again with "
            "the same folder to make them."
        )
    return found


def _in_budget(runs, seeds, methods, budget):
    """Yields what to run next, until the next seed or run would not fit."""
    began = time.perf_counter()

    def fits(names):
        spent = time.perf_counter() - began
        return budget is None or spent + runs.expected_seconds(names) <= budget

    for seed in seeds:
        missing = [m for m in methods if not runs.has(m, seed)]
        if not fits(missing):
            return
        for method in missing:
            if not fits([method]):
                return
            yield method, seed


def _check_train(train):
    if not callable(train):
        raise TypeError(
            "`train` must be a function of a method's name and a seed, or a "
            f"StudentTrainer. Received: {train!r} of type "
            f"{type(train).__name__}. Pass the function, uncalled."
        )


def _seeds(seeds):
    """List of integers, from a number of seeds or from the seeds."""
    try:
        if isinstance(seeds, bool):
            raise TypeError("a boolean")
        # An array has an index as well, if it is a number.
        if hasattr(seeds, "__index__") and not np.ndim(seeds):
            return list(range(operator.index(seeds)))
        return [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise ValueError(
            "`seeds` must be a number of seeds or a list of integers. "
            f"Received: seeds={seeds!r} ({error}). Pass, for example, 5 or "
            "range(5)."
        ) from error


def _listed(methods):
    if isinstance(methods, str):
        raise ValueError(
            f"`methods` is a list of names. Received: {methods!r}. Pass "
            f"['plain', {methods!r}]."
        )
    return list(methods)


def _methods(train):
    """The default methods that can be trained, and the trainer's own."""
    able = getattr(train, "methods", DEFAULT_METHODS)
    return [m for m in able if m in DEFAULT_METHODS or m not in METHODS]


def _check_arguments(seeds, methods, time_budget):
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            "An interval over seeds needs at least two different seeds. "
            f"Received: seeds={seeds}. Pass, for example, 5 or range(5)."
        )
    if "plain" not in methods or len(set(methods)) < len(methods):
        raise ValueError(
            'Methods must be different names with "plain" among them, from '
            f"which every gain is measured. Received: methods={methods}. Leave "
            "`methods` out for those of the paper."
        )
    bad = [m for m in methods if not is_file_name(m)]
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
