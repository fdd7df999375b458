"""A step that never holds an array of [tokens, classes].

With a large vocabulary the logits fill the memory, not the model. Here student
and teacher are split at their logit layers: they make features, [tokens,
features], and then for one chunk of tokens after another the logits, the
teacher's statistics, the loss, its gradient, the metrics, and what the chunk
contributes to the gradients of the features, the kernel and the bias. These
gradients, and numbers, are all that is kept.

TensorFlow runs operations side by side, each of which makes an array of [tokens
of a chunk, classes]. There a chunk's products, which are slow for few tokens,
are taken at once, but what lies between them (statistics, losses, gradient,
metrics) for one piece of the chunk after another.

The gradient comes with the forward pass, of the sum of the losses. What
follows from the sum (the mean, its weight, loss scaling) is left to the
backend's own differentiation: it multiplies the gradients by a scalar.
"""

import contextlib
import dataclasses
import math
import threading

import keras
import numpy as np
from keras import ops

from keras_kd import backend, soundness
from keras_kd.backend.private import (
    compiled_metrics,
    get_keras_mask,
    set_keras_mask,
)
from keras_kd.batch import (
    LABELS,
    STATISTICS_TEMPERATURE,
    TEACHER_CLASSES,
    TEACHER_FINGERPRINT,
    as_dict,
    class_ids,
    may_match,
    with_axes_of,
)
from keras_kd.logit_split import split_model, wide
from keras_kd.losses.base import batch_sums
from keras_kd.model_inputs import inputs_of
from keras_kd.monitors import COUNTS, TOLD, LossTracker
from keras_kd.states import num_rows
from keras_kd.token_metrics import check_metrics

AUTO = "auto"
# In the state, what a chunk's products are added to.
_OF_PRODUCTS = ("weights", "features")
# In y, what the teacher's logit layer reads.
_TEACHER_FEATURES = "teacher_features"
# Beside labels, what a batch tells once, not for each token.
_OF_BATCH = (STATISTICS_TEMPERATURE, TEACHER_FINGERPRINT, TEACHER_CLASSES)

# Where the number of chunks is not given, a chunk's logits take at most so many
# bytes of float32; but there are some tokens in a chunk, without which matrix
# products are slow. They are so the sooner, the faster the device multiplies:
# each chunk reads the whole kernel and adds to its whole gradient.
CHUNK_BYTES = 32 * 2**20
FEWEST_TOKENS = 128
FEWEST_TOKENS_ON_GPU = 2048
# The same of a piece of a chunk; smaller ones take longer.
PIECE_BYTES = 8 * 2**20
# Outside of training so many chunks are computed at once, or more by chunks.
_AT_ONCE = 8


def most_tokens(classes):
    """The number of tokens in a chunk at most, where it is not given."""
    on_gpu = backend.is_on_gpu()
    fewest = FEWEST_TOKENS_ON_GPU if on_gpu else FEWEST_TOKENS
    return _tokens_of_bytes(classes, fewest)


def _tokens_of_bytes(classes, fewest):
    return max(fewest, CHUNK_BYTES // (4 * classes))


def most_tokens_of_piece(classes):
    """The number of tokens in a piece of a chunk at most."""
    return max(1, PIECE_BYTES // (4 * classes))


def are_many(tokens, classes):
    """Whether the logits of a batch that isn't trained on are cut in chunks.

    Args:
        tokens: integer, of the batch.
        classes: integer.

    Returns:
        A boolean.
    """
    at_once = _AT_ONCE * _tokens_of_bytes(classes, FEWEST_TOKENS)
    return tokens > max(at_once, most_tokens(classes))


def check_chunks(chunks):
    """Refuses what is not a number of chunks.

    Args:
        chunks: `None`, "auto", or an integer of at least 1.

    Raises:
        ValueError: if it is something else.
    """
    is_count = isinstance(chunks, (int, np.integer))
    is_count = is_count and not isinstance(chunks, bool)
    if chunks in (None, AUTO) or (is_count and chunks >= 1):
        return
    raise ValueError(
        "`logit_chunks` is the number of chunks of tokens in which logits are "
        f"computed, at least 1. Received: logit_chunks={chunks!r}. Give a "
        'number such as 16, "auto" to have it chosen, or leave it out.'
    )


@dataclasses.dataclass(frozen=True)
class Unsettled:
    """A batch before its logits are known.

    Attributes:
        y: labels, or a dict of labels and what comes beside them.
        features: [..., features], what `ChunkedStep.features` gave.
        sample_weight: as it came, or `None`.
        class_weight: dict of weights by class id, or `None`.
    """

    y: object
    features: object
    sample_weight: object = None
    class_weight: object = None


class ChunkedStep:
    """The part of a Distiller's step that `logit_chunks` replaces.

    Args:
        distiller: the `Distiller`, with its `logit_chunks`.
    """

    def __init__(self, distiller):
        self._distiller = distiller
        self._splits = {}
        # Replicas run their steps in threads that take turns.
        self._thread = threading.local()

    @property
    def is_running(self):
        """Whether a step runs now, in this thread."""
        return getattr(self._thread, "steps", 0) > 0

    @contextlib.contextmanager
    def running(self):
        """A context in which a step runs."""
        self._thread.steps = getattr(self._thread, "steps", 0) + 1
        try:
            yield
        finally:
            self._thread.steps -= 1

    def check(self, metrics=None):
        """Refuses a student, a loss or metrics that chunks don't suit.

        Args:
            metrics: those that are compiled, nested at will.

        Raises:
            ValueError: saying why.
        """
        heads = self._distiller.heads
        distilled = self._distiller.distilled_heads
        if len(heads) != 1 or not distilled:
            raise ValueError(
                "`logit_chunks` is for a student with one output that is "
                "distilled. Received: losses for the outputs "
                f"{[head.name for head in heads]}. Leave `logit_chunks` out."
            )
        head = distilled[0]
        if head.loss.reduction in (None, "none"):
            raise ValueError(
                "`logit_chunks` adds up the loss over chunks of tokens. "
                f"Received: a loss with reduction={head.loss.reduction!r}. "
                "Use a mean or a sum, or leave `logit_chunks` out."
            )
        if self._distiller.student.built:
            split = self._split("student")
            features = split.body.outputs[0].shape
            check_metrics(metrics, (*features[:-1], split.layer.num_classes))

    def _split(self, role):
        """The `ModelSplit` of student or teacher, as they are now."""
        model = getattr(self._distiller, role)
        kept = self._splits.get(role)
        if kept is not None and kept.model is model:
            return kept.as_it_is()
        (head,) = self._distiller.heads
        reader = self._distiller.reader(role, head.name)
        if reader.is_binary:
            raise ValueError(
                "`logit_chunks` saves memory where there are many classes. "
                f"Received: {role} {model.name!r}, which gives {reader.kind}, "
                "of two classes each. Leave `logit_chunks` out."
            )
        split = split_model(model, role, head.name)
        self._splits[role] = split
        return split

    # -- before the gradient -------------------------------------------------

    def features(self, inputs, training):
        """What the student's logit layer reads, [..., features]."""
        body = self._split("student").body
        inputs = inputs_of(body, inputs, "student")
        return body(inputs, training=training)

    def with_teacher(self, by_head, x, inputs):
        """Adds what the teacher's logit layer reads, where it must run.

        Args:
            by_head: dict by the one head's name of a dict of labels and what
                comes beside them.
            x: the student's inputs.
            inputs: the teacher's.

        Returns:
            The labels and what comes beside them; of a named output, a dict
            of these by name.
        """
        (head,) = self._distiller.heads
        y = by_head[head.name]
        if head.missing_statistics(y):
            self._distiller.check_teacher(by_head)
            body = self._split("teacher").body
            read = self._distiller.inputs_of_teacher(x, inputs)
            y = {**y, _TEACHER_FEATURES: body(read, training=False)}
        return y if head.name is None else {head.name: y}

    # -- the loss ------------------------------------------------------------

    def loss(self, batch, training):
        """The loss of a batch, with its gradient; metrics see the batch.

        Args:
            batch: `Unsettled`.
            training: whether to give the distillation loss, with a gradient,
                or the plain cross-entropy on the labels.

        Returns:
            The sum over all tokens, a scalar; what to divide it by, or `None`;
            the roles whose outputs were looked at, and a dict of counts, see
            `InvalidExamples.update_state`.
        """
        return _Pass(self, batch, training).run()

    def size(self, tokens, classes):
        """Number of tokens in a chunk.

        Args:
            tokens: integer, or a scalar tensor.
            classes: integer.

        Returns:
            The same.
        """
        chunks = self._distiller.logit_chunks
        if chunks == AUTO:
            chunks = _divided_up(tokens, most_tokens(classes))
            chunks = _at_least_1(chunks)
        return _at_least_1(_divided_up(tokens, chunks))


class _Pass:
    """One batch, chunk by chunk.

    Args:
        step: the `ChunkedStep`.
        batch: `Unsettled`.
        training: boolean.
    """

    def __init__(self, step, batch, training):
        distiller = step._distiller
        (head,) = distiller.heads
        self._step, self._distiller, self._head = step, distiller, head
        self._training = training
        self._student = step._split("student")
        self._teacher = None
        y = dict(as_dict(batch.y))
        if not training:
            y = {LABELS: y.get(LABELS)}
        if _TEACHER_FEATURES in y:
            self._teacher = step._split("teacher")
        self._of_batch = {k: y.pop(k) for k in _OF_BATCH if k in y}
        self._features = batch.features
        self._class_weight = batch.class_weight
        self._axes = len(batch.features.shape) - 1
        self._rows = self._as_rows(y, batch.sample_weight)
        # What logit layers read.
        self._inputs = self._flat(ops.stop_gradient(batch.features))
        self._teacher_inputs = self._rows["y"].pop(_TEACHER_FEATURES, None)
        self._build_metrics()
        metrics = [
            m for m in distiller.metrics if not isinstance(m, LossTracker)
        ]
        self._changing = [v for m in metrics for v in m.variables]
        if training:
            self._changing += distiller.random_variables
        # Looked at in a chunk, but not changed.
        self._variables = [*self._changing, distiller.invalid_examples.state]
        self._roles = []

    # -- a batch as rows, one a token ----------------------------------------

    def _as_rows(self, y, sample_weight):
        """All that a piece is cut from, a dict of [tokens, ...]."""
        features = self._features
        shape = tuple(features.shape[:-1])
        like = features[..., 0]
        rows = {}
        mask = get_keras_mask(features)
        if mask is not None:
            mask = with_axes_of(ops.cast(mask, "bool"), like, "mask")
            ones = ops.ones_like(like, dtype="bool")
            rows["mask"] = self._flat(ops.logical_and(mask, ones))
        if sample_weight is not None:
            weights = with_axes_of(ops.cast(sample_weight, "float32"), like)
            ones = ops.ones_like(like, dtype="float32")
            rows["weights"] = self._flat(weights * ones)
        rows["y"] = {}
        for name, value in y.items():
            if value is None:
                continue
            value = ops.convert_to_tensor(value)
            if not may_match(tuple(value.shape)[: len(shape)], shape):
                self._refuse_shape(name, value)
            rows["y"][name] = self._flat(value)
        return rows

    def _flat(self, values):
        """[tokens, ...] of values of each token."""
        rest = tuple(values.shape[self._axes :])
        return ops.reshape(values, (-1, *rest))

    def _refuse_shape(self, name, value):
        classes = self._student.layer.num_classes
        shape = (*self._features.shape[:-1], classes)
        if name == LABELS:
            class_ids(value, shape)
        raise ValueError(
            "With `logit_chunks` all that comes beside the labels is cut into "
            f"chunks of tokens, so it must have the axes {shape[:-1]}. "
            f"Received: {name!r} of shape {tuple(value.shape)}. Give a value "
            "for each token, or leave `logit_chunks` out."
        )

    # -- the loop ------------------------------------------------------------

    def run(self):
        """See `ChunkedStep.loss`."""
        layer, training = self._student.layer, self._training
        self._weights = layer.weights()
        if self._teacher is not None:
            self._teacher_weights = self._teacher.layer.weights()
        tokens = num_rows(self._inputs)
        size = self._step.size(tokens, layer.num_classes)
        state = self._first_state()

        state = self._over_chunks(state, tokens, size)
        # TensorFlow's tape has seen the loop.
        state = keras.tree.map_structure(ops.stop_gradient, state)
        self._keep(state["variables"])
        total, divisor = state["total"], state.get("divisor")
        if training:
            total = self._with_gradients(total, state)
        counts = self._finished(state["counts"], state["pieces"])
        return total, divisor, self._roles, counts

    def _over_chunks(self, state, tokens, size):
        """The state after all chunks, of which the last may be smaller."""
        whole, rest = tokens // size, tokens % size
        is_even = isinstance(rest, int) and rest == 0

        def chunk(i, state):
            return self._chunk(i * size, size, state)

        def any_chunk(i, state):
            left = tokens - i * size
            return self._chunk(i * size, _smaller(size, left), state)

        def last_chunk():
            return self._chunk(whole * size, rest, state)

        if not is_even and backend.takes_any_size(self._distiller.jit_compile):
            count = _divided_up(tokens, size)
            return backend.repeat(any_chunk, state, count)
        if isinstance(whole, int):
            if whole == 1:
                state = chunk(0, state)
            elif whole:
                state = backend.repeat(chunk, state, whole)
            return state if is_even else last_chunk()
        state = backend.repeat(chunk, state, whole)
        return ops.cond(rest > 0, last_chunk, lambda: state)

    def _first_state(self):
        dtype = self._head.loss.dtype
        state = {
            "total": ops.zeros((), dtype),
            "counts": {name: ops.zeros((), "float32") for name in COUNTS},
            "pieces": ops.zeros((), "float32"),
            "variables": list(map(ops.convert_to_tensor, self._variables)),
        }
        if self._head.loss.reduction != "sum":
            state["divisor"] = ops.zeros((), dtype)
        if self._training:
            of_features = wide(self._student.layer.dtype)
            state["features"] = ops.zeros(ops.shape(self._inputs), of_features)
            state["weights"] = [
                ops.zeros(each.shape, of_features) for each in self._weights
            ]
        return state

    def _chunk(self, start, size, state):
        """The state after another chunk."""
        layer = self._student.layer
        inputs = backend.take_rows(self._inputs, start, size)
        logits = layer.product(inputs, self._weights)
        if not self._training:
            rows = _taken(self._rows, start, size)
            return self._piece(logits, rows, start, state)[0]
        of_teacher = {}
        if self._teacher is not None:
            read = backend.take_rows(self._teacher_inputs, start, size)
            of_teacher["teacher_logits"] = self._teacher.layer.product(
                read, self._teacher_weights
            )
        sums = {k: v for k, v in state.items() if k not in _OF_PRODUCTS}
        sums, gradient = self._over_pieces(logits, of_teacher, start, sums)
        of_weights, of_inputs = layer.add_gradients(
            state["weights"], gradient, inputs, self._weights
        )
        of_features = backend.put_rows(state["features"], start, of_inputs)
        return {**sums, "weights": of_weights, "features": of_features}

    def _over_pieces(self, logits, of_teacher, start, state):
        """What lies between a chunk's products, for some tokens at a time.

        Args:
            logits: [tokens of the chunk, classes], before any activation.
            of_teacher: dict of the teacher's, if it runs.
            start: the chunk's first token.
            state: the state but for what products are added to.

        Returns:
            That state after the chunk, and the gradient of the logits.
        """

        def piece(first, size, state):
            rows = _taken(self._rows, start + first, size)
            rows |= _taken(of_teacher, first, size)
            some = backend.take_rows(logits, first, size)
            return self._piece(some, rows, start + first, state)

        return backend.by_pieces(
            piece,
            state,
            logits,
            most_tokens_of_piece(logits.shape[-1]),
            self._distiller.jit_compile,
        )

    def _piece(self, logits, rows, start, state):
        """The state after another piece, and the gradient of its logits."""

        def loss(logits):
            return self._loss(logits, rows, state["variables"])

        gradient = None
        if self._training:
            total, others, gradient = backend.value_and_gradient(loss, logits)
        else:
            total, others = loss(logits)
        after = {
            "total": state["total"] + total,
            "counts": self._added(state["counts"], others["counts"], start),
            "pieces": state["pieces"] + 1.0,
            "variables": self._update_metrics(others),
        }
        if "divisor" in state:
            after["divisor"] = state["divisor"] + others["divisor"]
        return after, gradient

    def _loss(self, logits, rows, values):
        """A piece's loss, and a dict of what else came out."""
        head, training = self._head, self._training
        others = {}
        with self._changing_values(values, others):
            outputs = self._student.finish(logits, rows.get("mask"))
            with_axes = self._student.with_axes
            y = keras.tree.map_structure(with_axes, rows["y"])
            weights = rows.get("weights")
            if weights is not None:
                weights = with_axes(weights)
            settled = self._settle(y, outputs, weights, rows)
            losses = head.losses(settled, training)
            self._roles, counts = soundness.counts(
                self._distiller, 0, outputs, settled, losses, training
            )
            total, divisor = batch_sums(losses, settled, head.loss.reduction)
        if divisor is not None:
            others["divisor"] = divisor
        others["counts"] = {
            name: ops.cast(counts.get(name, 0.0), "float32") for name in COUNTS
        }
        arguments = head.metric_arguments(settled, outputs)
        if arguments is not None:
            names = ("labels", "outputs", "weights", "mask")
            values = (*arguments[:3], get_keras_mask(arguments[1]))
            others["metrics"] = {
                name: value
                for name, value in zip(names, values, strict=True)
                if value is not None
            }
        return total, others

    @contextlib.contextmanager
    def _changing_values(self, values, others):
        """A context in which variables have values, which may change.

        Args:
            values: list, of the variables.
            others: dict that gets the values at the end, as "variables".
        """
        pairs = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(pairs) as scope:
            yield
        self._check_changed(scope)
        others["variables"] = [
            ops.stop_gradient(scope.get_current_value(variable))
            for variable in self._variables
        ]

    def _check_changed(self, scope):
        """Refuses to lose what is assigned to a variable in a chunk."""
        known = {id(variable) for variable in self._variables}
        if set(scope.state_mapping) - known:
            raise ValueError(
                "With `logit_chunks` a loss may change no variables but its "
                "`random_variables`, and a metric none but its own. Received: "
                f"{type(self._head.loss).__name__} and metrics that change "
                "others. List them there, or leave `logit_chunks` out."
            )

    def _settle(self, y, outputs, weights, rows):
        head = self._head
        if self._training:
            y = head.with_statistics(
                y,
                lambda: self._teacher.finish(rows["teacher_logits"]),
                lambda: outputs.shape[-1],
            )
        return head.settle(y, outputs, weights, self._class_weight)

    def _update_metrics(self, others):
        """Updates the metrics that the Distiller is compiled with.

        After the gradient is taken: on PyTorch metrics change what they get.

        Args:
            others: what `_loss` gave.

        Returns:
            List of the values of the variables.
        """
        metrics = compiled_metrics(self._distiller)
        given = others.get("metrics")
        if metrics is None or given is None:
            return others["variables"]
        outputs = given["outputs"]
        if "mask" in given:
            set_keras_mask(outputs, given["mask"])
        arguments = (given["labels"], outputs, given.get("weights"))
        after = {}
        with self._changing_values(others["variables"], after):
            metrics.update_state(*map(self._named, arguments))
        return after["variables"]

    def _build_metrics(self):
        """Makes the variables of these metrics, which a loop can't."""
        metrics = compiled_metrics(self._distiller)
        labels = self._rows["y"].get(LABELS)
        if metrics is None or metrics.built or labels is None:
            return
        tokens = tuple(self._features.shape[:-1])
        outputs = (*tokens, self._student.layer.num_classes)
        is_soft = tuple(labels.shape[1:]) == outputs[-1:]
        labels = keras.KerasTensor(outputs if is_soft else tokens, labels.dtype)
        outputs = keras.KerasTensor(outputs)
        metrics.build(self._named(labels), self._named(outputs))

    def _named(self, value):
        """What metrics read of an output, by its name if it has one."""
        name = self._head.name
        return value if name is None or value is None else {name: value}

    # -- after the loop ------------------------------------------------------

    def _with_gradients(self, total, state):
        """The total with its gradients."""
        layer = self._student.layer
        of_features = ops.reshape(state["features"], ops.shape(self._features))
        pairs = [(self._features, of_features)]
        pairs += [
            (ops.convert_to_tensor(variable), gradient)
            for variable, gradient in zip(
                layer.variables, state["weights"], strict=True
            )
            if variable.trainable
        ]
        tensors, gradients = zip(*pairs, strict=True)
        return backend.with_gradients(total, list(tensors), list(gradients))

    def _keep(self, values):
        """Lets the variables have the values that the last chunk left."""
        for variable, value in zip(self._changing, values, strict=False):
            variable.assign(value)

    def _added(self, before, counts, start):
        """Counts of the chunks so far and of another one."""
        per_row = math.prod(self._features.shape[1:-1])
        at = ops.cast(start, "float32") + counts["fault_row"]
        counts = {**counts, "fault_row": ops.floor(at / per_row)}
        after = {name: before[name] + counts[name] for name in COUNTS}
        for name, counted in TOLD.items():
            is_first = ops.equal(before[counted], 0)
            told = ops.where(is_first, counts[name], before[name])
            after[name] = ops.where(
                ops.equal(after[counted], 0), ops.zeros_like(told), told
            )
        return after

    def _finished(self, counts, pieces):
        """Counts of the batch."""
        counts = dict(counts)
        for role in ("student", "teacher"):
            # Logits show that they are by a single row of them.
            name = f"{role}_output"
            reader = self._head.reader(role)
            least = 1.0
            if reader is not None and reader.kind == "logits":
                # A replica may have been given nothing.
                least = ops.maximum(pieces, 1.0)
            counts[name] = ops.cast(counts[name] >= least, "float32")
        if self._training:
            counts |= self._head.counts_of_statistics(
                self._of_batch, self._distiller.teacher_number
            )
        return counts


def _taken(rows, start, size):
    """Some tokens of a nested structure of [tokens, ...]."""
    return keras.tree.map_structure(
        lambda each: backend.take_rows(each, start, size), rows
    )


def _divided_up(number, divisor):
    """The quotient, rounded up."""
    return -(-number // divisor)


def _at_least_1(number):
    if isinstance(number, int):
        return max(1, number)
    return ops.maximum(number, 1)


def _smaller(first, second):
    if isinstance(second, int):
        return min(first, second)
    return ops.minimum(first, second)
