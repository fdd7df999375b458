"""The Distiller's step on PyTorch."""

import keras
import torch

from keras_kd.backend.private import loss_tracker
from keras_kd.states import changing_variables, num_rows

# What these functions are for, and their arguments: see `keras_kd.backend`.


def custom_gradient(function):
    """Keras's own has one result; this has any number."""

    def with_gradient(tensor, *constants):
        # Nothing of the tensor, but in the graph where it is.
        origin = tensor[None][:0].clone()
        return _CustomGradient.apply(function, tensor, origin, constants)

    return with_gradient


class _CustomGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, function, tensor, origin, constants):
        results, context.gradient = function(tensor, *constants)
        context.save_for_backward(origin)
        # What is returned leads to the context, and so to what the gradient
        # closes over: were the results among that, nothing would be freed.
        return keras.tree.map_structure(torch.detach, results)

    @staticmethod
    def backward(context, *gradients):
        with torch.no_grad():
            gradient = context.gradient(*gradients)
        if torch.is_grad_enabled():
            gradient = _OnlyFirst.apply(gradient, *context.saved_tensors)
        return None, gradient, None, None


class _OnlyFirst(torch.autograd.Function):
    """A gradient that has none itself: without it that would count as 0."""

    @staticmethod
    def forward(context, gradient, origin):
        del context, origin
        return gradient.clone()

    @staticmethod
    def backward(context, up):
        raise NotImplementedError(
            "The losses of keras_kd have first derivatives only on PyTorch. "
            "Received: a request for a second one, the gradient of a gradient "
            "made with create_graph=True. Take it on JAX, or of the loss "
            "written out with PyTorch's own operations."
        )


def compiled(function, variables, signature):
    """PyTorch runs it as it is."""
    del variables, signature
    return torch.no_grad()(function)


def refuse_where(condition, message, values):
    """There is no compiled step to wait for."""
    is_symbolic = condition.device.type == "meta"
    if not is_symbolic and bool(condition):
        raise ValueError(message)
    return values


def take_classes(values, classes):
    """By Keras's own."""
    return keras.ops.take_along_axis(values, classes, axis=-1)


def add_to_classes(values, classes, added):
    """By a scatter."""
    return values.scatter_add(-1, classes.long(), added)


def add_to_rows(variable, rows, values):
    """In place."""
    variable.value.index_add_(0, rows.long(), values)


def product(first, second, transposed):
    """With a view of the second matrix."""
    return first @ (second.T if transposed else second)


def add_product(total, first, second):
    """In place, in one operation."""
    if total.dtype == first.dtype:
        return total.addmm_(first.T, second)
    return total.add_(first.T @ second)


def take_rows(values, start, size):
    """By a view."""
    return values.narrow(0, start, size)


def put_rows(values, start, rows):
    """In place."""
    values.narrow(0, start, len(rows)).copy_(rows)
    return values


def repeat(function, state, count):
    """By a loop of Python's."""
    for i in range(count):
        state = function(i, state)
    return state


def takes_any_size(jit_compile):
    """Nothing is compiled."""
    del jit_compile
    return True


def fuses_operations():
    """Nothing is compiled."""
    return False


def is_on_gpu():
    """As Keras chooses for new tensors, which are nowhere while it builds."""
    device = keras.ops.convert_to_tensor(0.0).device
    return device.type not in ("cpu", "meta")


def stored_values(values):
    """Of a sparse tensor, in any layout, its values."""
    is_sparse = getattr(values, "layout", torch.strided) != torch.strided
    return values.values() if is_sparse else values


def by_pieces(function, state, values, most, jit_compile):
    """Python frees each array as soon as it can: all at once."""
    del most, jit_compile
    return function(0, len(values), state)


def random_states():
    """See `keras_kd.backend`."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return [state.cpu().numpy() for state in states]


def set_random_states(states):
    """See `keras_kd.backend`."""
    if not states:
        return
    first, *of_devices = map(torch.from_numpy, states)
    torch.set_rng_state(first)
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(of_devices[:devices]):
        torch.cuda.set_rng_state(state, device)


def value_and_gradient(function, tensor):
    """By a graph of its own, which is freed at once."""
    with torch.enable_grad():
        tensor = tensor.detach().requires_grad_()
        value, others = function(tensor)
        (gradient,) = torch.autograd.grad(value, tensor)
    value, others = keras.tree.map_structure(torch.detach, (value, others))
    return value, others, gradient


def with_gradients(value, tensors, gradients):
    """By a function of autograd's."""
    return _KnownGradients.apply(value, gradients, *tensors)


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(context, value, gradients, *tensors):
        context.gradients = gradients
        context.dtypes = [each.dtype for each in tensors]
        return value.clone()

    @staticmethod
    def backward(context, up):
        scaled = [
            each.mul_(up).to(dtype)
            for each, dtype in zip(
                context.gradients, context.dtypes, strict=True
            )
        ]
        return None, None, *scaled


class Trainer(keras.Model):
    """The part of a Distiller that runs a step."""

    def train_step(self, data):
        """One step: the teacher, outside the gradient, then the student.

        Args:
            data: (x, labels) or (x, labels, sample_weight).

        Returns:
            Dict of metric results.

        Raises:
            ValueError: for a batch that must not be trained on, before the
                student is changed.
        """
        self.note_teacher_of(data)
        with torch.no_grad():
            x, y, sample_weight = self.with_teacher(data)
            variables = changing_variables(self.student)
            before = [variable.value.clone() for variable in variables]
        self.zero_grad()
        y_pred = self(x, training=True)
        batch = self.settle(y, y_pred, sample_weight)
        loss = self.compute_loss(x, batch, y_pred)
        weights, gradients = list(self.trainable_weights), []
        if weights:
            self.optimizer.scale_loss(loss).backward()
            gradients = [weight.value.grad for weight in weights]
        try:
            with torch.no_grad():
                self.count_gradients(loss, gradients)
            self.invalid_examples.check(self)
        except ValueError:
            with torch.no_grad():
                for variable, value in zip(variables, before, strict=True):
                    variable.assign(value)
            raise
        loss_tracker(self).update_state(loss, sample_weight=num_rows(x))
        if weights:
            with torch.no_grad():
                self.optimizer.apply(gradients, weights)
        return self.compute_metrics(x, batch, y_pred)

    def test_step(self, data):
        """One step of evaluation: the student alone, on the labels."""
        with self.evaluation():
            logs = super().test_step(data)
        self.invalid_examples.check(self)
        return logs

    def sync_variables(self):
        """Nothing: variables have their current values."""
