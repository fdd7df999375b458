"""Runs that came to an end, kept in one file each."""

import json
import math
import pathlib
import re

from keras_kd.attribution.results import check
from keras_kd.files import (
    check_is_folder,
    errors_naming,
    kept_path,
    read_json,
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
        # Why, by (method, seed): trained again they would do the same.
        self.diverged = {}
        self._examples = None
        self.folder = None
        if folder is None:
            return
        self.folder = pathlib.Path(kept_path(folder, "folder"))
        check_is_folder(self.folder, "`folder`")
        # As it will be read, with lists for tuples.
        self._claim(json.loads(json.dumps(study)))
        for path in sorted(self.folder.glob("run-*.json")):
            run = _read_run(path)
            if "diverged" in run:
                self.diverged[run["method"], run["seed"]] = run["diverged"]
            else:
                self._take(**run)

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

    def diverged_of(self, method, seeds):
        """The same of the reasons of those that diverged."""
        return {
            seed: self.diverged[method, seed]
            for seed in seeds
            if (method, seed) in self.diverged
        }

    def has(self, method, seed):
        """Whether it was run, to whatever end."""
        run = method, seed
        return run in self.finished or run in self.diverged

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
        self._write(run)

    def add_diverged(self, method, seed, why):
        """Keeps that a run diverged.

        Args:
            method: name.
            seed: integer.
            why: what was raised, as a string.
        """
        self.diverged[method, seed] = why
        self._write({"method": method, "seed": seed, "diverged": why})

    def _write(self, run):
        if self.folder is not None:
            path = self.folder / _file_name(run["method"], run["seed"])
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
    if "diverged" in run:
        return run
    try:
        check(run.get("results", {}), run["score"], path.name)
    except ValueError as error:
        raise ValueError(
            f"The file {path} is damaged. {error} {remedy}"
        ) from error
    return run


def _is_run(value):
    if isinstance(value, dict) and "diverged" in value:
        kinds = {"method": str, "seed": int, "diverged": str}
        return value.keys() == kinds.keys() and all(
            isinstance(value[key], kind) for key, kind in kinds.items()
        )
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
