"""The softmax seen from the label: stable log-odds, few passes, exact gradient.

Every closed form of the package needs the same numbers of an example: how the
label's logit stands to the sum of the others, how far it is below the largest,
and the sum of all. They are taken together here, because each alone would read
the [..., classes] array again, and with a gradient of their own, because
automatic differentiation of the parts costs several times as much.

What targets need beyond the label (the gaps of some classes, the mean gap under
a distribution) is taken in the same pass where it is known beforehand: its
gradient is then added to the one array that there is anyway.

The label is taken out of the others' sum, not subtracted from it: 1 - q_t then
keeps its digits where q_t is close to 1. It is taken out by putting its logit
to the bottom. The framework's softmax, which is fused, does the rest and is
kept for the gradient; or, where a compiler fuses what is done class by class,
sums over the classes do, from which the gradient starts again.
"""

import dataclasses
import functools

from keras import ops

from keras_kd import backend

# Below every logit that means anything, also when it is divided by a small
# temperature.
_BOTTOM = -1e30


@dataclasses.dataclass(frozen=True)
class LabelSoftmax:
    """softmax(logits / temperature) of each example, as its label sees it.

    Attributes:
        others: [...], log of the sum over the classes but the label of
            exp((z_i - max z) / temperature).
        label_gap: [...], (max z - z_t) / temperature for the label t, at
            least 0.
        gap_sum: [...], sum over classes of (max z - z_i) / temperature.
        logits: [..., classes], z as given.
        shift: [..., 1], max z, a constant to the gradient.
        temperature: scalar.
        known: list of pairs, a tensor of classes or of probabilities that was
            asked about beforehand, and its gaps at temperature 1.
    """

    others: object
    label_gap: object
    gap_sum: object
    logits: object
    shift: object
    temperature: object
    known: list

    @property
    def num_classes(self):
        """Number of classes, a Python integer."""
        return self.logits.shape[-1]

    @property
    def log_odds(self):
        """[...], log(q_t / (1 - q_t))."""
        return -self.label_gap - self.others

    @property
    def log_normaliser(self):
        """[...], log of the sum over classes of exp((z - max z) / T).

        It is in [0, log(classes)]; with the gaps it gives every cross-entropy
        as a sum of two terms that are never negative, so that none cancels.
        """
        # log(exp(others) + exp(-label_gap)), from the larger of the two.
        log_odds = self.log_odds
        return ops.where(
            self.label_gap > 0,
            self.others + _softplus(log_odds),
            _softplus(-log_odds) - self.label_gap,
        )

    @property
    def cross_entropy(self):
        """[...], -log q_t, exact also where q_t rounds to 1."""
        return _softplus(-self.log_odds)

    @property
    def off_label_probability(self):
        """[...], 1 - q_t, exact also where q_t rounds to 1."""
        return ops.sigmoid(-self.log_odds)

    @functools.cached_property
    def scaled(self):
        """[..., classes], (z - max z) / T, a constant to the gradient."""
        scaled = ops.stop_gradient(self.logits) - self.shift
        return scaled / self.temperature

    @functools.cached_property
    def probabilities(self):
        """[..., classes], the softmax itself, a constant to the gradient."""
        return ops.softmax(self.scaled, axis=-1)

    # Of all classes at once, where the label is the largest one: then no
    # other probability is above 1/2. Each is kept, since several terms and the
    # gradient scale ask for it.

    @functools.cached_property
    def complements(self):
        """[..., classes], 1 - q_i, a constant to the gradient."""
        others = 1.0 - self.probabilities
        return self.with_largest(others, self.off_label_probability)

    @functools.cached_property
    def all_log_odds(self):
        """[..., classes], log(q_i / (1 - q_i)), a constant to the gradient."""
        gaps = (self.shift - ops.stop_gradient(self.logits)) / self.temperature
        log_others = ops.log1p(-self.with_largest(self.probabilities, 0.5))
        log_odds = -gaps - ops.expand_dims(self.log_normaliser, -1) - log_others
        return self.with_largest(log_odds, self.log_odds)

    def with_largest(self, values, of_largest):
        """Values of all classes, with another one for the largest class.

        Args:
            values: [..., classes].
            of_largest: [...], or a float for every example.

        Returns:
            [..., classes], a constant to the gradient.
        """
        largest = ops.argmax(self.logits, axis=-1)
        is_largest = ops.equal(
            ops.expand_dims(ops.cast(largest, "int32"), -1),
            ops.arange(self.num_classes, dtype="int32"),
        )
        if isinstance(of_largest, float):
            of_largest = number_like(of_largest, values)
        else:
            of_largest = ops.expand_dims(of_largest, -1)
        values = ops.where(is_largest, of_largest, values)
        return ops.stop_gradient(values)

    def gaps(self, classes):
        """(max z - z_i) / temperature, at least 0.

        Args:
            classes: [..., k] integer class ids, those of an example distinct.

        Returns:
            [..., k].
        """
        return self._gaps(classes, _gaps_of)

    def expected_gap(self, probabilities):
        """Mean of (max z - z_i) / temperature under a distribution.

        Args:
            probabilities: [..., classes], a constant to the gradient.

        Returns:
            [...].
        """
        return self._gaps(probabilities, _expected_gap)

    def copies(self, count):
        """The same for several terms of a loss.

        TensorFlow adds up three gradients of one tensor in the order in which
        their memory comes free, so that the last digit changes from step to
        step. Those of copies are added up in the order of the copies.

        Args:
            count: integer, how many.

        Returns:
            List of `LabelSoftmax`.
        """
        if count < 2:
            return [self] * count
        names = "others", "label_gap", "gap_sum"
        each = [_copies(getattr(self, name), count) for name in names]
        return [
            dataclasses.replace(self, **dict(zip(names, values, strict=True)))
            for values in zip(*each, strict=True)
        ]

    def _gaps(self, asked, compute):
        for known, gaps in self.known:
            if known is asked:
                return gaps / self.temperature
        return compute(self.logits, self.shift, asked) / self.temperature


def label_softmax(logits, labels, temperature=1.0):
    """Looks at softmax(logits / temperature) from each example's label.

    Args:
        logits: [..., classes], any float dtype that the result should have.
        labels: [...], integer class ids. For an id outside [0, classes) the
            result is meaningless but finite.
        temperature: scalar above 0.

    Returns:
        A `LabelSoftmax`.

    Example:
    >>> softmax = label_softmax(np.array([[2.0, 0.0]], "float32"), [0])
    >>> float(softmax.log_odds[0])
    2.0
    """
    return _softmaxes(logits, labels, temperature, with_plain=False)[-1]


def softmax_of_largest(logits, temperature=1.0):
    """`label_softmax` with the largest class in place of a label.

    Args:
        logits: [..., classes].
        temperature: scalar above 0.

    Returns:
        A `LabelSoftmax`.
    """
    return label_softmax(logits, ops.argmax(logits, axis=-1), temperature)


def plain_and_tempered(logits, labels, temperature, classes=(), mixtures=()):
    """`label_softmax` at temperature 1 and at another, for little more.

    Args:
        logits: [..., classes].
        labels: [...], integer class ids.
        temperature: scalar above 0; where it is 1 when this runs, one softmax
            serves both.
        classes: list of [..., k] class ids, of which `gaps` will be asked.
        mixtures: list of [..., classes] probabilities, of which
            `expected_gap` will be asked.

    Returns:
        Two `LabelSoftmax`.
    """
    return _softmaxes(logits, labels, temperature, True, classes, mixtures)


def _softmaxes(
    logits, labels, temperature, with_plain, classes=(), mixtures=()
):
    logits = ops.convert_to_tensor(logits)
    num_classes = logits.shape[-1]
    labels = ops.clip(ops.cast(labels, "int32"), 0, num_classes - 1)
    temperature = ops.convert_to_tensor(temperature, dtype=logits.dtype)
    shift = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))

    numbers = list(
        _numbers(
            _flat(logits),
            ops.reshape(labels, (-1,)),
            _flat(shift),
            temperature,
            with_plain,
            [_flat(ops.cast(each, "int32")) for each in classes],
            [_flat(each) for each in mixtures],
        )
    )
    temperatures = [ops.ones((), dtype=logits.dtype)] if with_plain else []
    temperatures.append(temperature)
    others = [_like(numbers.pop(0), labels) for _ in temperatures]
    label_gap = _like(numbers.pop(0), labels)
    gap_sum = _like(numbers.pop(0), labels)
    known = [(each, _like(numbers.pop(0), each)) for each in classes]
    known += [(each, _like(numbers.pop(0), labels)) for each in mixtures]
    return [
        LabelSoftmax(each, label_gap / t, gap_sum / t, logits, shift, t, known)
        for each, t in zip(others, temperatures, strict=True)
    ]


def number_like(number, tensor):
    """A number in the dtype of a tensor.

    PyTorch makes one of Keras's default dtype of a Python number that is given
    to `ops.where`: of float16, where -1e30 is -inf.
    """
    return ops.convert_to_tensor(number, dtype=tensor.dtype)


def weighed(weights, values):
    """Weights times values, nothing where the weight is 0.

    So a class that the student rules out by the logit -inf, whose gap is
    infinite, adds nothing where the target has no mass on it.
    """
    return ops.where(ops.equal(weights, 0), 0.0, weights * values)


def _softplus(values):
    """log(1 + exp(values)), exact also above 20, where PyTorch's is rounded."""
    return -ops.log_sigmoid(-values)


def _copies(tensor, count):
    """A list of a tensor, whose gradients are added up in this order."""

    @backend.custom_gradient
    def copy(tensor):
        def gradient(*ups):
            return functools.reduce(ops.add, ups)

        return (tensor,) * count, gradient

    return list(copy(tensor))


def _flat(values):
    """[examples, ...] of [..., n]."""
    if len(values.shape) == 2:
        return values
    return ops.reshape(values, (-1, values.shape[-1]))


def _like(values, other):
    if len(values.shape) == len(other.shape):
        return values
    return ops.reshape(values, ops.shape(other))


def _numbers(logits, labels, shift, temperature, with_plain, classes, mixtures):
    """What a `LabelSoftmax` is made of, differentiable in the logits.

    Args:
        logits: [examples, classes].
        labels: [examples].
        shift: [examples, 1].
        temperature: scalar tensor.
        with_plain: whether temperature 1 is wanted as well.
        classes: list of [examples, k].
        mixtures: list of [examples, classes].

    Returns:
        [examples] tensors: `others` at temperature 1 (if wanted) and at the
        temperature, then `label_gap` and `gap_sum` at temperature 1; the gaps
        of `classes` and the expected gaps of `mixtures`.
    """
    function = _kept_numbers
    if backend.fuses_operations():
        function = _recomputed_numbers
    function = functools.partial(function, with_plain)
    return backend.custom_gradient(function)(
        logits, labels, shift, temperature, classes, mixtures
    )


def _kept_numbers(
    with_plain, logits, labels, shift, temperature, classes, mixtures
):
    """`_numbers` by the framework's softmax, kept for the gradient.

    This and the next function return the gradient as well, as
    `backend.custom_gradient` asks.
    """
    at_label = ops.stack(
        [ops.arange(ops.shape(labels)[0], dtype="int32"), labels], axis=-1
    )

    def put(values, at):
        return ops.scatter_update(values, at_label, at)

    scaled = logits - shift
    gap_sum = -ops.sum(scaled, axis=-1)
    label_scaled = ops.squeeze(
        backend.take_classes(scaled, ops.expand_dims(labels, -1)), -1
    )
    gaps = [-backend.take_classes(scaled, each) for each in classes]
    gaps += [-ops.sum(weighed(each, scaled), axis=-1) for each in mixtures]
    scaled = put(scaled, ops.full_like(label_scaled, _BOTTOM))
    top = ops.max(scaled, axis=-1)
    is_one = ops.equal(temperature, 1.0)
    plain = ops.softmax(scaled, axis=-1) if with_plain else None
    if with_plain:
        tempered = ops.cond(
            is_one,
            lambda: plain,
            lambda: ops.softmax(scaled / temperature, axis=-1),
        )
    else:
        tempered = ops.softmax(scaled / temperature, axis=-1)
    # The largest probability tells the sum: it is exp(top) / sum.
    others = [top / temperature - ops.log(ops.max(tempered, axis=-1))]
    if with_plain:
        others = [top - ops.log(ops.max(plain, axis=-1)), *others]

    def gradient(*ups):
        count = len(others)
        up_others, (up_label, up_sum) = ups[:count], ups[count : count + 2]
        up_gaps = list(ups[count + 2 :])
        up = ops.expand_dims(up_others[-1] / temperature, -1)
        if with_plain:
            up_plain = ops.expand_dims(up_others[0], -1)
            result = ops.cond(
                is_one,
                lambda: plain * (up_plain + up),
                lambda: plain * up_plain + tempered * up,
            )
        else:
            result = tempered * up
        result = result - ops.expand_dims(up_sum, -1)
        # The probabilities leave the label out, and so do these sums.
        result = put(result, -up_sum - up_label)
        for each in classes:
            result = backend.add_to_classes(result, each, -up_gaps.pop(0))
        for each in mixtures:
            result = result - each * ops.expand_dims(up_gaps.pop(0), -1)
        return result

    return (*others, -label_scaled, gap_sum, *gaps), gradient


def _recomputed_numbers(
    with_plain, logits, labels, shift, temperature, classes, mixtures
):
    """`_numbers` by sums over the classes, from which the gradient starts.

    Where a compiler fuses what is done class by class, the sums read the logits
    and write nothing, and so does the gradient but for itself. To exponentiate
    twice costs less there than an array of [examples, classes].
    """
    is_one = ops.equal(temperature, 1.0)

    def is_label():
        ids = ops.arange(logits.shape[-1], dtype="int32")
        return ops.equal(ids, ops.expand_dims(labels, -1))

    def without_label(logits):
        scaled = logits - shift
        return ops.where(is_label(), number_like(_BOTTOM, scaled), scaled)

    def below(logits, top):
        """What the softmax over the classes but the label exponentiates."""
        return without_label(logits) - ops.expand_dims(top, -1)

    scaled = logits - shift
    gap_sum = -ops.sum(scaled, axis=-1)
    label_gap = _picked_gaps(logits, shift, ops.expand_dims(labels, -1))
    gaps = [_picked_gaps(logits, shift, each) for each in classes]
    gaps += [-ops.sum(weighed(each, scaled), axis=-1) for each in mixtures]
    top = ops.max(without_label(logits), axis=-1)

    def log_sum(temperature):
        terms = ops.exp(below(logits, top) / temperature)
        return ops.log(ops.sum(terms, axis=-1))

    if with_plain:
        plain = log_sum(1.0)
        tempered = ops.cond(is_one, lambda: plain, lambda: log_sum(temperature))
    else:
        tempered = log_sum(temperature)
    others = [top / temperature + tempered]
    if with_plain:
        others = [top + plain, *others]

    def gradient(*ups):
        *up_others, up_label, up_sum = ups[: len(others) + 2]
        up_gaps = ups[len(others) + 2 :]
        up_classes = up_gaps[: len(classes)]
        up_mixtures = up_gaps[len(classes) :]
        up = up_others[-1] / temperature

        def softmax(temperature, log_sum, up):
            logs = below(logits, top) / temperature
            logs = logs - ops.expand_dims(log_sum, -1)
            return ops.exp(logs) * ops.expand_dims(up, -1)

        def with_gaps(result):
            result = result - ops.expand_dims(up_sum, -1)
            at_label = ops.expand_dims(-up_sum - up_label, -1)
            result = ops.where(is_label(), at_label, result)
            for each, up in zip(mixtures, up_mixtures, strict=True):
                result = result - each * ops.expand_dims(up, -1)
            for each, up in zip(classes, up_classes, strict=True):
                result = backend.add_to_classes(result, each, -up)
            return result

        if not with_plain:
            return with_gaps(softmax(temperature, tempered, up))
        # The gaps too, so that each branch is one operation.
        return ops.cond(
            is_one,
            lambda: with_gaps(softmax(1.0, plain, up_others[0] + up)),
            lambda: with_gaps(
                softmax(1.0, plain, up_others[0])
                + softmax(temperature, tempered, up)
            ),
        )

    return (*others, ops.squeeze(label_gap, -1), gap_sum, *gaps), gradient


def _picked_gaps(logits, shift, classes):
    """[examples, k], max z - z_i, a constant to the gradient."""
    return shift - backend.take_classes(logits, classes)


def _gaps_of(logits, shift, classes):
    """Gaps max z - z_i of [..., k] classes, differentiable in the logits."""

    @backend.custom_gradient
    def picked(logits, classes):
        value = backend.take_classes(logits, classes)

        def gradient(up):
            return backend.add_to_classes(ops.zeros_like(logits), classes, up)

        return value, gradient

    flat = _flat(ops.cast(classes, "int32"))
    return shift - _like(picked(_flat(logits), flat), classes)


def _expected_gap(logits, shift, probabilities):
    """Mean of max z - z_i under probabilities, constant to the gradient."""

    @backend.custom_gradient
    def expected(logits, shift, probabilities):
        value = ops.sum(weighed(probabilities, shift - logits), axis=-1)

        def gradient(up):
            return -probabilities * ops.expand_dims(up, -1)

        return value, gradient

    return expected(logits, shift, probabilities)
