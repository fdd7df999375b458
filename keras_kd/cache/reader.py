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
            example, and its records as strings.
        """
        import tensorflow as tf

        epoch = tf.cast(epoch, tf.int64)
        view = epoch % self.manifest["views"]
        files = tf.constant(
            [
                [records.join(self.path, name) for name in names]
                for names in self._files_by_view()
            ]
        )
        kept = tf.data.FixedLengthRecordDataset(files[view], self.record_bytes)
        step = 1
        if self.manifest["batched"]:
            step = self.manifest["batch_size"]
            kept = kept.batch(step)
        first = tf.data.Dataset.counter(0, step)
        return tf.data.Dataset.zip(dataset, first, kept).map(
            lambda element, index, record: (element, (view, index, record))
        )

    def _files_by_view(self):
        names = [[] for _ in range(self.manifest["views"])]
        for part in self.manifest["parts"]:
            names[part["view"]].append(part["file"])
        # Views may be cut into different numbers of files, but a tensor of
        # their names has rows of one length.
        most = max(len(files) for files in names)
        return [
            files + [records.EMPTY] * (most - len(files)) for files in names
        ]

    def decode(self, data):
        """What is in records.

        Args:
            data: scalar or [batch] string tensor.

        Returns:
            Dict by field name of tensors, [...] or [batch, ...].
        """
        import tensorflow as tf

        arrays, offset = {}, 0
        leading = tuple(data.shape)
        rows = [-1] if leading else []
        for field in self.fields:
            part = tf.strings.substr(data, offset, field.size)
            values = tf.io.decode_raw(part, field.dtype)
            arrays[field.name] = tf.reshape(values, [*rows, *field.shape])
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
