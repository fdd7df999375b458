"""Reads the records of a teacher cache."""

import zlib

import numpy as np

from keras_kd.cache import records


class RecordReader:
    """The files of a whole cache.

    Args:
        path: string, the folder.
        manifest: dict.
        fields: list of `Field`s, in the order of a record.
    """

    def __init__(self, path, manifest, fields):
        self.path = path
        self.manifest = manifest
        self.fields = fields
        self.record_bytes = sum(field.size for field in fields)

    def check_files(self, checksums):
        """Refuses missing and damaged files.

        Args:
            checksums: whether to read all files and compare their checksums.

        Raises:
            ValueError: naming the first such file.
        """
        gfile = records.gfile()
        for part in self.manifest["parts"]:
            path = records.join(self.path, part["file"])
            wanted = part["examples"] * self.record_bytes
            found = gfile.stat(path).length if gfile.exists(path) else 0
            damaged = found != wanted
            if not damaged and checksums:
                with gfile.GFile(path, "rb") as file:
                    damaged = zlib.crc32(file.read()) != part["checksum"]
            if damaged:
                raise ValueError(
                    f"The cache at {self.path} is damaged. Received: "
                    f"{part['file']} with {found} bytes where {wanted} were "
                    "written, or with other contents. Remove the folder and "
                    "write the cache anew."
                )

    def one_pass(self, dataset, epoch):
        """The data set beside its records, for one epoch.

        Args:
            dataset: `tf.data.Dataset`, as it was when the cache was written.
            epoch: integer, also a tensor.

        Returns:
            A `tf.data.Dataset` of (element, (view, index, data)): an element
            of `dataset`, which view of it is due, the position of its first
            example, and its records as a string.
        """
        import tensorflow as tf

        view = tf.cast(epoch, tf.int64) % self.manifest["views"]
        step = self.manifest["batch_size"] if self.manifest["batched"] else 1
        first = tf.data.Dataset.counter(0, step)
        views = tf.data.Dataset.from_tensors(view).repeat()
        data = self._records(view, step)
        return tf.data.Dataset.zip(
            dataset, tf.data.Dataset.zip(views, first, data)
        )

    def _records(self, view, step):
        """The records of a view, so many examples at a time.

        A batch is read as one record of the file system's. The last one may
        be smaller: it is the end of the view's last file.
        """
        import tensorflow as tf

        names, full_bytes = self._files_by_view(step)
        paths = [[records.join(self.path, n) for n in each] for each in names]
        files = tf.constant(paths)[view]
        size = step * self.record_bytes
        rest = self.manifest["examples"] % step * self.record_bytes
        read = tf.data.FixedLengthRecordDataset
        if not rest:
            return read(files, size)
        last = files[-1]
        return (
            read(files[:-1], size)
            .concatenate(read(last, size, footer_bytes=rest))
            .concatenate(
                read(last, rest, header_bytes=tf.constant(full_bytes)[view])
            )
        )

    def _files_by_view(self, step):
        """Names of each view's files, and bytes of full steps in the last."""
        parts = [[] for _ in range(self.manifest["views"])]
        for part in self.manifest["parts"]:
            parts[part["view"]].append(part)
        # Views may be cut into different numbers of files, but a tensor of
        # their names has rows of one length.
        most = max(len(each) for each in parts)
        names = [
            [records.EMPTY] * (most - len(each)) + [p["file"] for p in each]
            for each in parts
        ]
        full_bytes = [
            each[-1]["examples"] // step * step * self.record_bytes
            for each in parts
        ]
        return names, np.array(full_bytes, "int64")

    def decode(self, data):
        """What is in records.

        Args:
            data: scalar string tensor with the records of a batch, or [batch]
                strings with one each, or a scalar with one.

        Returns:
            Dict by field name of tensors, [batch, ...], or [...] for one.
        """
        import tensorflow as tf

        if not data.shape.rank and self.manifest["batched"]:
            table = tf.reshape(
                tf.io.decode_raw(data, tf.uint8), (-1, self.record_bytes)
            )
        else:
            table = tf.io.decode_raw(
                data, tf.uint8, fixed_length=self.record_bytes
            )
        arrays, offset = {}, 0
        for field in self.fields:
            columns = table[..., offset : offset + field.size]
            arrays[field.name] = _as_dtype(columns, field)
            offset += field.size
        return arrays

    def arrays(self, view):
        """All that is kept of a view.

        Args:
            view: integer.

        Returns:
            Dict by field name of [examples, ...] NumPy arrays.
        """
        data = []
        for part in self.manifest["parts"]:
            if part["view"] == view:
                path = records.join(self.path, part["file"])
                with records.gfile().GFile(path, "rb") as file:
                    data.append(file.read())
        layout = [(f.name, f.dtype, f.shape) for f in self.fields]
        table = np.frombuffer(b"".join(data), dtype=np.dtype(layout))
        return {field.name: table[field.name] for field in self.fields}


def _as_dtype(columns, field):
    """[..., bytes] uint8 as [..., *shape] of the field's dtype."""
    import tensorflow as tf

    dtype = tf.as_dtype(field.dtype)
    leading = [-1] if columns.shape.rank > 1 else []
    if dtype.size == 1:
        return tf.reshape(tf.cast(columns, dtype), [*leading, *field.shape])
    columns = tf.reshape(columns, [*leading, *field.shape, dtype.size])
    return tf.bitcast(columns, dtype)
