"""Zarr arrays in a folder, local or remote, through TensorStore.

A folder is a zarr group. Chunks and JSON files are written whole or not at
all, every chunk has a CRC-32C and every JSON file a checksum of its content,
so that whatever was damaged is noticed when it is read. Nothing here needs
TensorFlow.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import zlib

import numpy as np
import tensorstore as ts

from keras_kd import files
from keras_kd.data_errors import DataError

GROUP = "zarr.json"
# Left by a writer that was killed; TensorStore takes it over.
_LOCK = ".__lock"
# Paths such as memory:// are the same in the whole process.
_CONTEXT = ts.Context()


@dataclasses.dataclass(frozen=True)
class Field:
    """One array: [views, examples, *shape].

    Attributes:
        name: string.
        dtype: name of a NumPy dtype.
        shape: tuple, of one example.
        views: of how many views it is kept.
    """

    name: str
    dtype: str
    shape: tuple
    views: int = 1

    @property
    def size(self):
        """Bytes of one example in one view."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Folder:
    """A folder of zarr arrays and JSON files.

    Args:
        path: a local path, or a URL that TensorStore knows (gs://, s3://,
            memory://).

    Raises:
        ValueError: if the path is empty or its scheme unknown.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.is_local = "://" not in self.path
        if self.is_local:
            self.path = files.user_path(self.path)
            absolute = os.path.abspath(self.path)
            spec = {"driver": "file", "path": f"{absolute}/"}
        else:
            spec = f"{self.path.rstrip('/')}/"
        try:
            self._store = ts.KvStore.open(spec, context=_CONTEXT).result()
        except ValueError as error:
            raise ValueError(
                "A cache is kept at a local path or a URL that TensorStore "
                f"knows. Received: {self.path} ({_text(error)}). Pass a path "
                "such as 'runs/cache' or 'gs://bucket/cache'."
            ) from error

    def names(self):
        """List of what is in the folder, without the locks of writers."""
        if self.is_local:
            path = os.path.abspath(self.path)
            names = os.listdir(path) if os.path.isdir(path) else []
        else:
            names = [key.decode() for key in self._store.list().result()]
        return sorted(name for name in names if not name.endswith(_LOCK))

    def keys(self, prefix):
        """Set of the keys of all files below a name."""
        keys = ts.KvStore.KeyRange(f"{prefix}/", f"{prefix}0")
        with self.reading():
            return {key.decode() for key in self._store.list(keys).result()}

    def read_json(self, name):
        """What `write_json` has written, `None` if there is none.

        Raises:
            ValueError: if it is damaged.
        """
        with self.reading():
            found = self._store.read(name).result()
        if found.state == "missing":
            return None
        try:
            value = json.loads(found.value)
            value = value["attributes"] if name == GROUP else value
            checksum = value.pop("checksum", None)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self.damaged(f"{name} that is not readable") from error
        if checksum is not None and checksum != _checksum(value):
            raise self.damaged(f"{name} with a changed content")
        # Another program's group has no checksum, and nothing of ours.
        return value if checksum is not None else {}

    def write_json(self, name, value, only_new=False):
        """Writes a dict whole or not at all, with its checksum.

        Args:
            name: `GROUP` for the group's attributes, or of another file.
            value: dict in JSON's types.
            only_new: whether to leave a file that is there as it is.

        Returns:
            Whether it was written.
        """
        value = {**value, "checksum": _checksum(value)}
        if name == GROUP:
            value = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": value,
            }
        content = (json.dumps(value, indent=1) + "\n").encode()
        before = self._store.read(name).result() if only_new else None
        if before is not None and before.state != "missing":
            return False
        with self.writing():
            stamp = self._store.write(
                name,
                content,
                if_equal=before and before.stamp.generation,
            ).result()
        # Without a generation, somebody else has been faster.
        return bool(stamp.generation)

    def remove(self, name):
        """Removes a file, if it is there."""
        with self.writing():
            self._store.write(name, None).result()

    def array_spec(self, field, chunk):
        """TensorStore's spec of an array of this folder.

        Args:
            field: a `Field`.
            chunk: integer, examples in a chunk.

        Returns:
            A dict.
        """
        store = self._store.spec().to_json()
        return {
            "driver": "zarr3",
            "kvstore": {**store, "path": f"{store['path']}{field.name}/"},
            "metadata": {
                "data_type": field.dtype,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [1, chunk, *field.shape]},
                },
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
            },
            # A chunk that is missing is never taken for zeros.
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }

    def open_array(self, field, chunk, create=False):
        """An array of the folder.

        Args:
            field: a `Field`.
            chunk: integer, examples in a chunk.
            create: whether to make it, without examples, if it is missing.

        Returns:
            A `tensorstore.TensorStore`, [views, examples, *shape].
        """
        spec = self.array_spec(field, chunk)
        if not create:
            with self.reading():
                return ts.open(spec, context=_CONTEXT, open=True).result()
        spec["metadata"]["shape"] = [field.views, 0, *field.shape]
        with self.writing():
            with contextlib.suppress(ValueError):
                # It is there already, with examples.
                return self.open_array(field, chunk)
            return ts.open(
                spec, context=_CONTEXT, open=True, create=True
            ).result()

    def damaged(self, received):
        """The error that says what is damaged."""
        return DataError(
            f"The cache at {self.path} is damaged. Received: {received}. "
            "Remove the folder and write the cache again."
        )

    @contextlib.contextmanager
    def reading(self):
        """Turns TensorStore's errors into `damaged`."""
        try:
            yield
        except DataError:
            raise
        except ValueError as error:
            raise self.damaged(_text(error)) from None

    @contextlib.contextmanager
    def writing(self):
        """Turns TensorStore's errors into an `OSError` that says what to do."""
        try:
            yield
        except ValueError as error:
            code = re.search(r"os_error_code='(\d+)|OS error (\d+)", str(error))
            raised = OSError(
                f"The cache at {self.path} can't be written. Received: "
                f"{_text(error)}. Free some space, or choose a folder that you "
                "may write to; what was written is used again."
            )
            raised.errno = int(code.group(1) or code.group(2)) if code else None
            raise raised from error


class Table:
    """Arrays of as many examples each, written and read by range.

    Args:
        folder: a `Folder`.
        fields: list of `Field`s.
        chunk: integer, examples in a chunk.
        create: whether to make the arrays that are missing.
    """

    def __init__(self, folder, fields, chunk, create=False):
        self._folder = folder
        self._chunk = chunk
        self._fields = {field.name: field for field in fields}
        self._arrays = {
            field.name: folder.open_array(field, chunk, create)
            for field in fields
        }

    def write(self, view, start, arrays):
        """Writes examples; the arrays grow as needed.

        Args:
            view: integer; only the first writes arrays of a single view.
            start: integer, position of the first example.
            arrays: dict by field name of [n, ...] arrays.
        """
        writes = []
        with self._folder.writing():
            for name, values in arrays.items():
                field = self._fields[name]
                if view >= field.views:
                    continue
                stop = start + len(values)
                array = self._grown(name, stop)
                values = np.ascontiguousarray(values, field.dtype)
                writes.append(array[view, start:stop].write(values))
            for write in writes:
                write.result()

    def _grown(self, name, length):
        array = self._arrays[name]
        if array.shape[1] < length:
            size = [None, length] + [None] * (array.rank - 2)
            try:
                array = array.resize(
                    exclusive_max=size, expand_only=True
                ).result()
            except ValueError:
                # Another writer of the same cache may be ahead.
                array = array.resolve().result()
                if array.shape[1] < length:
                    raise
            self._arrays[name] = array
        return array

    def read(self, view, start, stop, names=None):
        """Reads examples.

        Args:
            view: integer.
            start: integer.
            stop: integer.
            names: of the fields; all of them by default.

        Returns:
            Dict by field name of [stop - start, ...] NumPy arrays.
        """
        names = self._fields if names is None else names
        with self._folder.reading():
            reads = {
                name: self._arrays[name][
                    view % self._fields[name].views, start:stop
                ].read()
                for name in names
            }
            return {name: read.result() for name, read in reads.items()}

    def check(self, examples, contents):
        """Refuses missing and damaged chunks.

        Args:
            examples: integer.
            contents: whether to read every chunk and compare its CRC-32C.

        Raises:
            ValueError: naming the first such chunk.
        """
        for name, field in self._fields.items():
            if self._arrays[name].shape[1] < examples:
                raise self._folder.damaged(f"{name} with fewer examples")
            starts = range(0, examples, self._chunk)
            wanted = {
                "/".join([name, "c", str(view), str(number)])
                + "/0" * len(field.shape)
                for view in range(field.views)
                for number in range(len(starts))
            }
            missing = wanted - self._folder.keys(name)
            if missing:
                raise self._folder.damaged(f"{min(missing)} that is missing")
            if not contents:
                continue
            for view, start in itertools.product(range(field.views), starts):
                stop = min(start + self._chunk, examples)
                self.read(view, start, stop, [name])


def _checksum(value):
    content = json.dumps(value, sort_keys=True).encode()
    return f"{zlib.crc32(content):08x}"


def _text(error):
    """What TensorStore says, without the specs that it adds."""
    return str(error).split(" [")[0]
