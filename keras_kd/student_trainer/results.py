"""What is finished and what was interrupted, in a folder or in memory."""

import contextlib
import json
import math
import pathlib
import shutil

from keras_kd import files

_STUDY = "study.json"


class Results:
    """Results of students by name.

    Args:
        folder: path, or `None` to keep them in memory alone.
        study: dict in JSON's types of what they depend on.

    Raises:
        ValueError: if the folder is another study's, or holds other files.
        OSError: if it can't be written.
    """

    def __init__(self, folder, study):
        self._kept = {}
        self.folder = None
        if folder is None:
            return
        self.folder = pathlib.Path(files.kept_path(folder, "folder"))
        study = json.loads(json.dumps(study))
        files.share_folder(self.folder, _STUDY, study, "`folder`")
        for path in sorted(self.folder.glob("*.result.json")):
            self._kept[path.name.removesuffix(".result.json")] = _read(path)

    def get(self, name):
        """The result of a student, or `None`."""
        return self._kept.get(name)

    def add(self, name, result):
        """Keeps the result of a student and forgets how far it was."""
        if self.folder is not None:
            path = self.folder / f"{name}.result.json"
            # One line: most of it are the examples.
            files.write_whole(path, json.dumps(result) + "\n")
        self._kept[name] = result

    @property
    def seconds(self):
        """List of the seconds that each finished student took."""
        return [result["seconds"] for result in self._kept.values()]

    @contextlib.contextmanager
    def unfinished(self, name):
        """The folder of a student while it is trained.

        Args:
            name: of the student.

        Yields:
            Its path, `None` without a folder. It is removed at the end, unless
            that is an error or an interruption.

        Raises:
            OSError: if another process trains this student.
        """
        if self.folder is None:
            yield None
            return
        path = self.folder / "unfinished" / name
        with files.lock(path):
            yield path
            # While it is still locked.
            shutil.rmtree(path, ignore_errors=True)

    def save(self, name, student):
        """Keeps a student whole."""
        if self.folder is not None:
            files.save_model(student, self.folder / f"{name}.keras")


def _read(path):
    remedy = "Remove it; its student is trained again, and others are kept."
    result = files.read_json(path, remedy)
    if not (
        isinstance(result, dict)
        and isinstance(result.get("seconds"), int | float)
        and math.isfinite(result["seconds"])
    ):
        raise ValueError(
            f"The file {path} is damaged: it must hold a student's result. "
            f"Received: {result!r:.60}. {remedy}"
        )
    return result
