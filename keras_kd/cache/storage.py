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
# How the names of TensorStore's locks of local files end.
_LOCK = ".__lock"
# Paths such as memory:// are the same in the whole process.
_CONTEXT = ts.Context()
# Chunks that are read at single positions are kept up to this size.
_KEPT_BYTES = 256 * 2**20
_KEEPING = ts.Context(
    {"cache_pool": {"total_bytes_limit": _KEPT_BYTES}}, parent=_CONTEXT
)


@dataclasses.dataclass(frozen=True)
class Field:
    """One array, [views, examples, *shape].

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
    """A zarr group, and the other JSON files that its writer needs.

    Args:
        path: a local path, or a URL that TensorStore knows (gs://, s3://,
            memory://).

    Raises:
        TypeError: if it is not a path.
        ValueError: if the path is empty or its scheme unknown.
    """

    def __init__(self, path):
        self.path = files.path_text(path)
        if "://" not in self.path:
            self.path = files.user_path(self.path)
            spec = {"driver": "file", "path": f"{os.path.abspath(self.path)}/"}
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

        spec = self._store.spec().to_json()
        self._local = spec["path"] if spec["driver"] == "file" else None

    def names(self):
        """What is in the folder, but for the locks of killed writers."""
        if self._local is None:
            names = [key.decode() for key in self._store.list().result()]
        elif os.path.isdir(self._local):
            names = os.listdir(self._local)
        else:
            names = []
        return sorted(name for name in names if not name.endswith(_LOCK))

    def read_json(self, name):
        """What `write_json` has written.

        Returns:
            A dict, empty if another program has written it; `None` if there is
            no such file.

        Raises:
            DataError: if it is damaged.
        """
        with self.reading():
            found = self._store.read(name).result()
        if found.state == "missing":
            return None
        try:
            value = json.loads(found.value)
            value = value["attributes"] if name == GROUP else value
            checksum = value.pop("checksum", None)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self.damaged(f"{name} that is not readable") from None
        if checksum is None:
            return {}
        if checksum != _checksum(value):
            raise self.damaged(f"{name} with a changed content")
        return value

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
        self.remove_stale_lock(name)
        with self.writing():
            expected = None
            if only_new:
                before = self._store.read(name).result()
                if before.state != "missing":
                    return False
                expected = before.stamp.generation
            stamp = self._store.write(name, content, if_equal=expected).result()
        # Without a generation, another process has been faster.
        return bool(stamp.generation)

    def remove(self, name):
        """Removes a file, if it is there."""
        with self.writing():
            self._store.write(name, None).result()

    def remove_stale_lock(self, name):
        """Removes what a killed writer has left of a file.

        TensorStore writes a file under the name of its lock, which then gets
        the file's name. What it finds there it writes over, but does not
        shorten: a file that is not of one size, as chunks are, would keep the
        end of a longer one.

        Args:
            name: of the file that is about to be written.
        """
        if self._local is not None:
            files.remove_unlocked(f"{self._local}{name}{_LOCK}")

    def open_array(self, field, chunk, create, context=_CONTEXT):
        """A field's `tensorstore.TensorStore`; see `Table`."""
        store = self._store.spec().to_json()
        shape = [1, chunk, *field.shape]
        spec = {
            "driver": "zarr3",
            "kvstore": {**store, "path": f"{store['path']}{field.name}/"},
            "metadata": {
                "data_type": field.dtype,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": shape},
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
        # An array that is there has grown beyond the shape it was made with.
        with contextlib.suppress(ValueError) if create else self.reading():
            return ts.open(spec, context=context, open=True).result()
        spec["metadata"]["shape"] = [field.views, 0, *field.shape]
        self.remove_stale_lock(f"{field.name}/{GROUP}")
        with self.writing():
            try:
                return ts.open(
                    spec, context=context, open=True, create=True
                ).result()
            except ValueError:
                # Another writer may have made it meanwhile, and let it grow.
                del spec["metadata"]["shape"]
                with contextlib.suppress(ValueError):
                    return ts.open(spec, context=context, open=True).result()
                raise

    def damaged(self, received):
        """The error that says what is damaged, and what to do."""
        return DataError(
            f"The cache at {self.path} is damaged. Received: {received}. "
            "Remove the folder and write the cache again."
        )

    @contextlib.contextmanager
    def reading(self):
        """Turns TensorStore's errors into `damaged`, or an `OSError`."""
        try:
            yield
        except ValueError as error:
            if _os_error(error) is None:
                raise self.damaged(_text(error)) from None
            raised = OSError(
                f"The cache at {self.path} can't be read. Received: "
                f"{_text(error)}. Check the path, and that you may read it."
            )
            raised.errno = _os_error(error)
            raise raised from error

    @contextlib.contextmanager
    def writing(self):
        """Turns TensorStore's errors into an `OSError` that says what to do."""
        try:
            yield
        except ValueError as error:
            code = _os_error(error)
            remedy = files.remedy(OSError(code or 0, ""))
            raised = OSError(
                f"The cache at {self.path} can't be written. Received: "
                f"{_text(error)}. {remedy} What was written is used again."
            )
            raised.errno = code
            raise raised from error


class Table:
    """Arrays of equally many examples, written and read by range.

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
        self._kept = {}

    def write(self, view, start, arrays):
        """Writes examples; the arrays grow as needed.

        Args:
            view: integer; only the first writes arrays of a single view.
            start: integer, position of the first example.
            arrays: dict by field name of [n, ...] arrays.
        """
        writes = []
        with self._folder.writing():
            for name, field in self._fields.items():
                if view < field.views:
                    values = np.ascontiguousarray(arrays[name], field.dtype)
                    stop = start + len(values)
                    array = self._grown(name, stop)
                    writes.append(array[view, start:stop].write(values))
            for write in writes:
                write.result()

    def _grown(self, name, length):
        array = self._arrays[name]
        if array.shape[1] < length:
            size = [None, length] + [None] * (array.rank - 2)
            self._folder.remove_stale_lock(f"{name}/{GROUP}")
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

    def read(self, view, start, stop, names):
        """Reads examples.

        Args:
            view: integer.
            start: integer.
            stop: integer.
            names: of the fields.

        Returns:
            Dict by field name of [stop - start, ...] NumPy arrays.

        Raises:
            DataError: naming a chunk that is damaged or missing.
        """
        return self._read(self._arrays, view, slice(start, stop), names)

    def read_at(self, view, positions, names):
        """Reads examples at any positions.

        Chunks that were read stay in memory, up to `_KEPT_BYTES` of all
        caches, as examples in a random order would have each of them read
        again and again.

        Args:
            view: integer.
            positions: [n] integers, in any order.
            names: of the fields.

        Returns:
            Dict by field name of [n, ...] NumPy arrays.

        Raises:
            DataError: naming a chunk that is damaged or missing.
        """
        positions = np.asarray(positions, "int64")
        first = positions[0] if len(positions) else 0
        if np.array_equal(positions, np.arange(first, first + len(positions))):
            positions = slice(int(first), int(first) + len(positions))
        for name in names:
            if name not in self._kept:
                self._kept[name] = self._folder.open_array(
                    self._fields[name], self._chunk, False, _KEEPING
                )
        return self._read(self._kept, view, positions, names)

    def _read(self, arrays, view, at, names):
        with self._folder.reading():
            reads = {
                name: arrays[name][view % self._fields[name].views][at].read()
                for name in names
            }
            return {name: read.result() for name, read in reads.items()}

    def check(self, examples):
        """Reads every chunk once, to refuse those that are damaged."""
        for name, field in self._fields.items():
            starts = range(0, examples, self._chunk)
            for view, start in itertools.product(range(field.views), starts):
                stop = min(start + self._chunk, examples)
                self.read(view, start, stop, [name])


def _checksum(value):
    content = json.dumps(value, sort_keys=True).encode()
    return f"{zlib.crc32(content):08x}"


def _os_error(error):
    """The operating system's number of an error, `None` without one."""
    code = re.search(r"os_error_code='(\d+)|OS error (\d+)", str(error))
    return int(code[1] or code[2]) if code else None


def _text(error):
    """What TensorStore says, without the specs that it adds."""
    return str(error).split(" [")[0]
