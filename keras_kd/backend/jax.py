"""The Distiller's step on JAX, one compiled function.

JAX compiles what a function reads into it as constants, unless it comes as an
argument. Keras passes the student's variables; what else the step reads and
may change between steps (the teacher's variables, the loss's) comes beside the
data, so that it is neither returned nor overwritten.
"""

import contextlib
import functools

import jax
import keras
from jax.experimental.sparse import JAXSparse

from keras_kd.backend.private import (
    get_keras_mask,
    held_value,
    hold_state,
    set_held_value,
    set_keras_mask,
)
from keras_kd.batch import refuse_wide_labels
from keras_kd.states import all_variables, state_variables

# What these functions are for, and their arguments: see `keras_kd.backend`.


def custom_gradient(function):
    """JAX gives the gradients of several results as one tuple."""

    @jax.custom_gradient
    def with_gradient_of_all(tensor, constants):
        results, gradient = function(tensor, *constants)

        def gradients(ups):
            ups = ups if isinstance(results, tuple) else (ups,)
            return gradient(*ups), None

        return results, gradients

    return lambda tensor, *constants: with_gradient_of_all(tensor, constants)


def compiled(function, variables, signature):
    """Each new shape is compiled again."""
    del signature

    @jax.jit
    def pure(values, *arguments):
        with _substituted(variables, values):
            return function(*arguments), _changed(variables, values)

    def run(*arguments):
        result, changed = pure([v.value for v in variables], *arguments)
        _assign(variables, changed)
        return result

    return run


def refuse_where(condition, message, values):
    """By a callback to the host from a compiled step."""
    if not isinstance(condition, jax.core.Tracer):
        if condition:
            raise ValueError(message)
        return values

    def refuse(condition):
        if condition:
            raise ValueError(message)

    jax.debug.callback(refuse, condition)
    return jax.numpy.where(condition, float("nan"), values)


def take_classes(values, classes):
    """By Keras's own."""
    return keras.ops.take_along_axis(values, classes, axis=-1)


def add_to_classes(values, classes, added):
    """By a scatter."""
    rows = jax.numpy.arange(len(values))[:, None]
    return values.at[rows, classes].add(added, unique_indices=True)


def add_to_rows(variable, rows, values):
    """By a scatter; compiled, it is in place."""
    variable.assign(variable.value.at[rows].add(values))


def product(first, second, transposed):
    """By a contraction, which needs no transposed copy."""
    axes = ((1,), (1 if transposed else 0,))
    return jax.lax.dot_general(first, second, (axes, ((), ())))


def add_product(total, first, second):
    """The compiler adds in place."""
    axes = (((0,), (0,)), ((), ()))
    return total + jax.lax.dot_general(
        first, second, axes, preferred_element_type=total.dtype
    )


def take_rows(values, start, size):
    """By a slice of a size known to the compiler."""
    return jax.lax.dynamic_slice_in_dim(values, start, size)


def put_rows(values, start, rows):
    """The compiler does it in place."""
    return jax.lax.dynamic_update_slice_in_dim(values, rows, start, 0)


def repeat(function, state, count):
    """By a loop of the compiled program."""
    return jax.lax.fori_loop(0, count, function, state)


def takes_any_size(jit_compile):
    """A loop is compiled once."""
    del jit_compile
    return False


def fuses_operations():
    """By XLA."""
    return True


def is_on_gpu():
    """As JAX chooses its devices."""
    return jax.default_backend() != "cpu"


def stored_values(values):
    """Of JAX's sparse matrices their data."""
    return values.data if isinstance(values, JAXSparse) else values


def by_pieces(function, state, values, most, jit_compile):
    """The compiler fuses operations: all at once."""
    del most, jit_compile
    return function(0, len(values), state)


def random_states():
    """See `keras_kd.backend`."""
    return []


def set_random_states(states):
    """See `keras_kd.backend`."""
    del states


def value_and_gradient(function, tensor):
    """By JAX's own."""
    both = jax.value_and_grad(function, has_aux=True)
    (value, others), gradient = both(tensor)
    return value, others, gradient


def with_gradients(value, tensors, gradients):
    """By a custom gradient of what is computed already."""
    value, gradients = jax.lax.stop_gradient((value, gradients))
    return _known(value, tensors, gradients)


@jax.custom_vjp
def _known(value, tensors, gradients):
    del tensors, gradients
    return value


def _known_forward(value, tensors, gradients):
    like = [jax.numpy.zeros((), each.dtype) for each in tensors]
    return value, (gradients, like)


def _known_backward(kept, up):
    gradients, like = kept
    scaled = [
        (up.astype(each.dtype) * each).astype(tensor.dtype)
        for each, tensor in zip(gradients, like, strict=True)
    ]
    return None, scaled, None


_known.defvjp(_known_forward, _known_backward)


@contextlib.contextmanager
def _substituted(variables, values):
    """Lets variables have other values, such as the arguments of a trace."""
    before = [held_value(variable) for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            set_held_value(variable, value)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            set_held_value(variable, value)


def _changed(variables, values):
    """Dict by position of the variables that were assigned other values."""
    pairs = zip(variables, values, strict=True)
    return {
        i: held_value(variable)
        for i, (variable, value) in enumerate(pairs)
        if held_value(variable) is not value
    }


def _keep_if(is_invalid, before, after):
    """A step's state, or the one before it where its data were invalid."""
    return jax.tree.map(
        lambda old, new: jax.numpy.where(is_invalid, old, new), before, after
    )


def _is_not_finite_since(before, after):
    """Whether a step's update left numbers that are not finite.

    Those of weights; and NaN in what the optimizer keeps of gradients, of which
    squares may well be too large.

    Args:
        before: values of the trainable and other variables, and the
            optimizer's.
        after: the same after the step.
    """
    (weights, _, slots), (new_weights, _, new_slots) = before, after

    def exactly():
        found = [
            jax.numpy.any(good(old) & ~good(new))
            for good, olds, news in (
                (jax.numpy.isfinite, weights, new_weights),
                (lambda each: ~jax.numpy.isnan(each), slots, new_slots),
            )
            for old, new in zip(olds, news, strict=True)
        ]
        return functools.reduce(jax.numpy.logical_or, found, False)

    # One pass, where all is well.
    total = sum(map(_sum, (*new_weights, *new_slots)))
    return jax.lax.cond(
        jax.numpy.isfinite(total), lambda: jax.numpy.bool(False), exactly
    )


def _sum(values):
    """In float32, of real numbers and of complex ones."""
    if not jax.numpy.issubdtype(values.dtype, jax.numpy.inexact):
        return 0.0
    return jax.numpy.sum(jax.numpy.abs(values), dtype="float32")


def _assign(variables, changed):
    for i, value in changed.items():
        variables[i].assign(value)


class Trainer(keras.Model):
    """The part of a Distiller that runs a step."""

    # Whether the last step met invalid examples; on the device until it is
    # looked at.
    _is_invalid = False

    def train_step(self, state, data):
        """One step: the teacher, outside the gradient, then the student.

        Args:
            state: tuple of lists of the values of the trainable and the other
                variables, the optimizer's and the metrics'.
            data: what the step reads beside these, by `_step_variables`; and
                (x, labels) or (x, labels, sample_weight).

        Returns:
            A tuple of the dict of metric results, of what changed of the
            teacher's carried states, and of whether examples were invalid;
            and the new state.
        """
        values, batch = data
        variables = self._step_variables()
        with self._student_values(state), _substituted(variables, values):
            batch = self.with_teacher(batch)
            changed = _changed(variables, values)
            logs, after = super().train_step(state, batch)
        *student, _ = state
        *trained, metrics = after
        is_invalid = self._found_invalid(after)
        is_bad = _is_not_finite_since(student, trained) & ~is_invalid
        metrics = self._with_gradients(is_bad, metrics)
        is_invalid |= is_bad
        kept = _keep_if(is_invalid, student, trained)
        return (logs, changed, is_invalid), (*kept, metrics)

    def _with_gradients(self, is_bad, metrics):
        """Values of the metrics' variables, with a bad gradient counted."""
        *others, counts = metrics
        state = self.invalid_examples.state
        with _substituted([state], [counts]):
            self.invalid_examples.add("gradients", is_bad)
            return [*others, held_value(state)]

    def test_step(self, state, data):
        """One step of evaluation: the student alone, on the labels."""
        values, batch = data
        with _substituted(self._step_variables(), values), self.evaluation():
            logs, after = super().test_step(state, batch)
        return (logs, {}, self._found_invalid(after)), after

    def _found_invalid(self, state):
        """Whether a step's state, its last variable that of the monitor."""
        return self.invalid_examples.any_in(state[-1][-1])

    def sync_variables(self):
        """Gives variables their current values, which Keras keeps elsewhere.

        Keras does so at the end of an epoch, which an exception in the data,
        a callback or a step, or an interruption, does not reach.
        """
        self.jax_state_sync()

    def _student_values(self, state):
        """A context in which the student's variables have a state's values.

        The teacher may share layers with the student, whose values Keras
        takes from the variables while it trains.
        """
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        return _substituted(variables, [*state[0], *state[1]])

    def _step_variables(self):
        """What a step reads beside the student, optimizer and metrics."""
        teacher = [] if self.teacher is None else all_variables(self.teacher)
        student = {id(variable) for variable in all_variables(self.student)}
        teacher = [v for v in teacher if id(v) not in student]
        drawn = {id(variable) for variable in self._drawn_in_loss}
        of_losses = [v for v in self.loss_variables if id(v) not in drawn]
        return [*teacher, *of_losses, self.teacher_number]

    @property
    def _drawn_in_loss(self):
        """The state of random numbers that the loss draws, not the teacher."""
        return [] if self.logit_chunks is None else self.random_variables

    def _make_function(self, step_function, concatenate_outputs=False):
        step_function = self._held(step_function)
        # Of the three functions that Keras makes, `predict` alone has outputs.
        if not concatenate_outputs:
            step_function = self._checked(step_function)
        run = super()._make_function(step_function, concatenate_outputs)

        def held_run(state, iterator):
            # Before the first batch is drawn: Keras has emptied the variables.
            self._hold(state)
            return run(state, iterator)

        return held_run

    def _held(self, step):
        """A step whose state is not lost, whatever is raised after it."""

        def held_step(state, batch):
            outcome, state = step(state, batch)
            self._hold(state)
            return outcome, state

        return held_step

    def _hold(self, state):
        """Notes the values that variables are to get by `jax_state_sync`."""
        names = ["trainable_variables", "non_trainable_variables"]
        if len(state) == 4:
            names.append("optimizer_variables")
        if len(state) > 2:  # Not of `predict`.
            names.append("metrics_variables")
        hold_state(self, dict(zip(names, state, strict=True)))

    def _checked(self, step):
        """A step with all it reads, followed by the check of its data."""
        variables = self._step_variables()

        def checked_step(state, batch):
            self.note_teacher_of(batch, lambda: self._student_values(state))
            values = [variable.value for variable in variables]
            refuse_wide_labels(batch)
            outcome, state = step(state, (values, batch))
            logs, changed, is_invalid = outcome
            _assign(variables, changed)
            # The step before is looked at, not this one: to wait for it would
            # leave the device idle between steps.
            before, self._is_invalid = self._is_invalid, is_invalid
            if before:
                self.jax_state_sync()
            return logs, state

        return checked_step

    def jax_state_sync(self):
        """Gives the variables their values, once the last step is checked."""
        super().jax_state_sync()
        is_invalid, self._is_invalid = self._is_invalid, False
        if is_invalid:
            self.invalid_examples.check(self)

    @property
    def non_trainable_variables(self):
        """Those that Keras knows, and the state that the student carries."""
        return [
            *super().non_trainable_variables,
            *state_variables(self.student),
        ]

    @property
    def metrics_variables(self):
        """Those of the metrics; the last one is that of invalid examples."""
        variables = super().metrics_variables
        if not self.compiled:
            return variables
        drawn = self._drawn_in_loss
        return [*variables, *drawn, self.invalid_examples.state]

    # Keras loses a mask where it takes the outputs out of the gradient.

    def compute_loss_and_updates(self, *args, **kwargs):
        """As Keras's, with the outputs' masks beside the outputs."""
        loss, (unscaled, y_pred, *rest) = super().compute_loss_and_updates(
            *args, **kwargs
        )
        masks = [get_keras_mask(each) for each in keras.tree.flatten(y_pred)]
        return loss, (unscaled, (y_pred, masks), *rest)

    def _update_metrics_variables(
        self, metrics_variables, loss, x, y, y_pred, sample_weight
    ):
        y_pred, masks = y_pred
        for each, mask in zip(keras.tree.flatten(y_pred), masks, strict=True):
            if mask is not None:
                set_keras_mask(each, mask)
        return super()._update_metrics_variables(
            metrics_variables, loss, x, y, y_pred, sample_weight
        )
