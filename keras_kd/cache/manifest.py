"""What is in a cache, and of which teacher, losses and data it is."""

import dataclasses
import json
import operator

from keras_kd.cache import stores
from keras_kd.cache.storage import GROUP, Field

FORMAT = 3
CHECKSUM = "example_checksum"
# Files of the formats before this one.
_FORMER = {"manifest.json", "progress.json"}
# What does not identify a cache.
_RESULTS = {"chunk", "examples", "teacher_accuracy"}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that identifies a cache, kept in the attributes of its group.

    Attributes:
        teacher: dict, from `teacher_fingerprint`.
        teacher_output: what the teacher was taken to give.
        stores: list of dicts that describe the stores.
        fields: list of [name, dtype, shape] of what is kept of an example.
        classes: integer.
        dtype: "float16" or "float32".
        views: integer.
        seed: integer, of the views.
        augmented: whether there was an `augment`.
        batched: whether the data set's elements are batches.
        batch_size: integer.
        label_shape: list, of one example's labels.
        chunk: integer, examples in a chunk.
        elements: how many the data set has; `None` while it is not known.
        output: name of the teacher's output, of several; else `None`.
        order: what tells one shuffled control from another; `None` for the
            teacher's own cache.
        examples: integer; `None` as long as the cache is not whole.
        teacher_accuracy: float; likewise.
        format: integer.
    """

    teacher: dict
    teacher_output: str
    stores: list
    fields: list
    classes: int
    dtype: str
    views: int
    seed: int
    augmented: bool
    batched: bool
    batch_size: int
    label_shape: list
    chunk: int
    elements: int | None = None
    output: str | None = None
    order: str | None = None
    examples: int | None = None
    teacher_accuracy: float | None = None
    format: int = FORMAT

    @property
    def statistics(self):
        """List of the `Field`s of what the losses need."""
        return [
            Field(name, dtype, tuple(shape), self.views)
            for name, dtype, shape in self.fields
        ]

    @property
    def arrays(self):
        """List of all `Field`s, the examples' checksums among them."""
        views = self.views if self.augmented else 1
        return [*self.statistics, Field(CHECKSUM, "int32", (), views)]

    @property
    def read_stores(self):
        """List of the stores."""
        return [stores.read_store(each, self.dtype) for each in self.stores]

    def to_json(self):
        """A dict in JSON's types."""
        # NumPy's integers are integers, too.
        text = json.dumps(dataclasses.asdict(self), default=operator.index)
        return json.loads(text)

    def save(self, folder):
        """Writes it into a `Folder`."""
        folder.write_json(GROUP, {"keras_kd": self.to_json()})

    def claim(self, folder):
        """Writes it into a `Folder` that has none.

        Returns:
            The `Manifest` that is there then: another writer's, where that
            was faster.
        """
        folder.write_json(GROUP, {"keras_kd": self.to_json()}, only_new=True)
        return read_manifest(folder)

    def differences(self, other, ignored=()):
        """What differs between this cache and what is asked for, in words.

        Args:
            other: a `Manifest`.
            ignored: names of attributes that may differ.

        Returns:
            List of strings.
        """
        kept, asked = self.to_json(), other.to_json()
        ignored = _RESULTS.union(ignored)
        if None in (self.elements, other.elements):
            ignored.add("elements")
        return [
            f"{name}: {kept[name]} in the cache, {asked[name]} now"
            for name in kept
            if name not in ignored and kept[name] != asked[name]
        ]


def read_manifest(folder):
    """The manifest of a folder.

    Args:
        folder: a `Folder`.

    Returns:
        A `Manifest`; `None` if the folder is empty or not there.

    Raises:
        ValueError: if it holds something else, or a damaged manifest.
    """
    values, names = _values(folder), []
    if values is None:
        names = folder.names()
        # Another writer may have begun between the two. It writes its manifest
        # first, so that what is listed without one now is not a writer's.
        values = _values(folder)
    if values is not None and values["format"] == FORMAT:
        return Manifest(**values)
    if values is not None or _FORMER.intersection(names):
        raise ValueError(
            f"The cache at {folder.path} must be of format {FORMAT}. Received: "
            f"one of another version of keras_kd, {folder.names()[:3]}. Remove "
            "the folder and write the cache again."
        )
    if names:
        raise ValueError(
            "A teacher cache has a folder of its own. Received: "
            f"{folder.path} with {names[:5]}. Choose another path."
        )
    return None


def _values(folder):
    """The manifest's values; `None` if the folder has none."""
    return (folder.read_json(GROUP) or {}).get("keras_kd")
