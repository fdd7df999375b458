"""Finished runs, kept in one file each."""

import json
import math
import pathlib
import re

from keras_kd.attribution.results import check
from keras_kd.files import (
    errors_naming,
    read_json,
    user_path,
    write_new_json,
    write_whole,
)


class Runs:
    """Finished runs, in memory and in a folder.

    Args:
        folder: path, or `None` to keep nothing.
        study: dict in JSON's types; only runs of an equal one are accepted.

    Raises:
        ValueError: if the folder holds another study, other files, or a
            damaged run.
        OSError: if it can't be written to.
    """

    def __init__(self, folder, study):
        # (score, results) by (method, seed), and seconds by method.
        self.finished, self.seconds = {}, {}
        self._examples = None
        self.folder = None
        if folder is None:
            return
        self.folder = pathlib.Path(user_path(folder, "folder"))
        # As it will be read, with lists for tuples.
        self._claim(json.loads(json.dumps(study)))
        for path in sorted(self.folder.glob("run-*.json")):
            self._take(**_read_run(path))

    def scores(self, method, seeds):
        """Dict by seed of a method's scores, of the seeds that were run."""
        return {
            seed: self.finished[method, seed][0]
            for seed in self._run(method, seeds)
        }

    def results_of(self, method, seeds):
        """The same of all that its runs returned."""
        return {
            seed: self.finished[method, seed][1]
            for seed in self._run(method, seeds)
        }

    def _run(self, method, seeds):
        return [seed for seed in seeds if (method, seed) in self.finished]

    def expected_seconds(self, methods):
        """Time that one run of each method takes, by the longest so far."""
        known = self.seconds
        longest = max((max(s) for s in known.values()), default=0.0)
        return sum(max(known.get(name, [longest])) for name in methods)

    def add(self, method, seed, score, seconds, results):
        """Keeps a finished run.

        Args:
            method: name.
            seed: integer.
            score: float.
            seconds: float, the time that it took.
            results: dict in JSON's types, all that it returned.

        Raises:
            ValueError: if it was tested on another number of examples than
                the runs before it.
        """
        run = {
            "method": method,
            "seed": seed,
            "score": score,
            "seconds": seconds,
            "results": results,
        }
        self._take(**run)
        if self.folder is not None:
            path = self.folder / _file_name(method, seed)
            # Not by `write_json`, which begins a line for each example.
            write_whole(path, json.dumps(run) + "\n")

    def _take(self, method, seed, score, seconds, results=None):
        results = results or {}
        self._check_examples(method, seed, results)
        self.finished[method, seed] = score, results
        self.seconds.setdefault(method, []).append(seconds)

    def _check_examples(self, method, seed, results):
        if "examples" not in results:
            return
        run, count = f"{method!r} with seed {seed}", len(results["examples"])
        first = self._examples = self._examples or (run, count)
        if count != first[1]:
            raise ValueError(
                "All students must be tested on the same examples. Received: "
                f"{count} for {run}, where {first[0]} has {first[1]}. Let "
                '`train` return "examples" of the same test data, or choose '
                "another `folder`."
            )

    def _claim(self, study):
        """Makes the folder one of this study, or refuses it."""
        path = self.folder / "study.json"
        has_others = self.folder.exists() and self._has_other_files()
        # After that: a call that begins in the folder writes it first.
        before = _read_study(path)
        if before is None and has_others:
            raise ValueError(
                "The folder must be new, empty, or from an earlier call. "
                f"Received: {self.folder} with other files. Choose another "
                "`folder`."
            )
        if before is None:
            with errors_naming(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_new_json(path, study)
            # Another call's, if that was faster.
            before = _read_study(path)
        if before != study:
            raise ValueError(
                f"{self.folder} holds the runs of another study. Received: "
                f"{study}, where it has {before}. Choose another `folder`."
            )

    def _has_other_files(self):
        """Whether it holds anything but runs and what a killed call left."""
        ours = re.compile(r"run-.+\.json|.+\.unfinished")
        return any(not ours.fullmatch(p.name) for p in self.folder.iterdir())


def _read_study(path):
    return read_json(
        path,
        "Remove it if the folder's runs are of this study, or choose another "
        "`folder`.",
    )


def _read_run(path):
    """The run in a file, complete."""
    remedy = "Remove it; its student is trained again, and other runs are kept."
    run = read_json(path, remedy)
    if not _is_run(run) or path.name != _file_name(run["method"], run["seed"]):
        raise ValueError(
            f"The file {path} must hold the finished run of its name. "
            f"Received: {json.dumps(run)[:200]}. {remedy}"
        )
    try:
        check(run.get("results", {}), run["score"], path.name)
    except ValueError as error:
        raise ValueError(
            f"The file {path} is damaged. {error} {remedy}"
        ) from error
    return run


def _is_run(value):
    return (
        isinstance(value, dict)
        # Earlier versions kept nothing beside the score.
        and value.keys() - {"results"} == {"method", "seed", "score", "seconds"}
        and isinstance(value["seed"], int)
        and isinstance(value.get("results", {}), dict)
        and all(
            isinstance(value[key], int | float) and math.isfinite(value[key])
            for key in ("score", "seconds")
        )
    )


def _file_name(method, seed):
    return f"run-{method}-{seed}.json"
