"""Compares a sample of a teacher cache with what the teacher gives now."""

import dataclasses

import numpy as np

from keras_kd.batch import TEACHER_RIGHT
from keras_kd.cache.stores import (
    EXACT,
    OwnStore,
    make_store,
    read_store,
    seek,
)
from keras_kd.cache.teacher_pass import count_right
from keras_kd.states import assign_states, read_states, reset_states


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `TeacherCache.verify` found.

    Attributes:
        examples: number of examples that were computed again.
        largest_errors: dict by kept array of the largest difference between
            what is kept and what the teacher gives now, relative to 1 or to
            the value where that is larger; for class ids the share that
            differ.
        teacher_accuracy: share of these examples' labels that the teacher
            gets right now.
        cached_accuracy: share of all labels that it got right when the cache
            was written.
    """

    examples: int
    largest_errors: dict
    teacher_accuracy: float
    cached_accuracy: float

    def __str__(self):
        errors = ", ".join(
            f"{name} {error:.2g}" for name, error in self.largest_errors.items()
        )
        return (
            f"{self.examples} examples computed again. Largest errors: "
            f"{errors}. The teacher gets {self.teacher_accuracy:.2%} of their "
            f"labels right, {self.cached_accuracy:.2%} of all when the cache "
            "was written."
        )


def verify(table, manifest, source, teacher_pass, batches):
    """See `TeacherCache.verify`.

    Args:
        table: `Table` of what is kept.
        manifest: `Manifest`.
        source: `Source`.
        teacher_pass: `TeacherPass`.
        batches: integer.

    Returns:
        A `Verification`.
    """
    teacher = teacher_pass.teacher
    size = manifest.batch_size
    last = -(-manifest.examples // size) - 1
    before = read_states(teacher)
    # Carried state is right from the beginning on alone.
    chosen = set(range(min(batches, last + 1)))
    if not before:
        chosen = {round(p) for p in np.linspace(0, last, batches)}
    errors = {field.name: 0.0 for field in manifest.statistics}
    examples, right, labels = 0, 0.0, 0.0
    for view in sorted({0, manifest.views - 1}):
        reset_states(teacher)
        for number, batch in enumerate(source.batches(view)):
            if number not in chosen:
                if number > max(chosen):
                    break
                continue
            seek(teacher_pass.stores, view, number)
            arrays, _ = teacher_pass.run(batch)
            found = arrays[TEACHER_RIGHT]
            examples += len(found)
            counts = count_right(found, batch, manifest.classes)
            right, labels = right + counts[0], labels + counts[1]
            start = number * size
            kept = table.read(view, start, start + len(found), list(errors))
            for name in errors:
                error = _largest_error(kept[name], arrays[name])
                errors[name] = max(errors[name], error)
    assign_states(teacher, before)
    return Verification(
        examples=examples,
        largest_errors=errors,
        teacher_accuracy=right / max(labels, 1),
        cached_accuracy=manifest.teacher_accuracy,
    )


def _largest_error(kept, found):
    if kept.dtype.kind != "f":
        return float((kept != found).mean())
    kept, found = kept.astype("float64"), found.astype("float64")
    return float((np.abs(kept - found) / np.maximum(np.abs(found), 1)).max())


def computable_stores(manifest, losses):
    """The stores of a cache, those of a user's own losses with their loss.

    Args:
        manifest: `Manifest`.
        losses: list of `DistillationLoss`.

    Returns:
        List of stores, in float32, so that the error of a compact form shows.

    Raises:
        ValueError: if a loss is missing.
    """
    wanted = [make_store(loss, manifest.classes) for loss in losses]
    found = []
    for description in manifest.stores:
        store = read_store(description, EXACT)
        if isinstance(store, OwnStore):
            matching = [w for w in wanted if w and store.serves(w)]
            if not matching:
                raise ValueError(
                    "Statistics of a loss of your own are computed by that "
                    f"loss. Received: losses={losses} for a cache of "
                    f"{store.describe()}. Pass it in `losses`."
                )
            store = store.with_loss_of(matching[0])
        found.append(store)
    return found
