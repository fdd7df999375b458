"""Training on JAX with an epoch as one compiled program.

Where data fit in the memory of a GPU, a small network's step takes less time
there than Python takes to start it. Here a program draws the batches of an
epoch from arrays on the device and runs the Distiller's own `train_step` on one
after another.
"""

import functools

import jax
import keras
import numpy as np
from jax import numpy as jnp

from keras_kd.backend.private import symbolic_build
from keras_kd.states import state_variables


class EpochProgram:
    """A compiled Distiller's epochs, each one program.

    Args:
        distiller: a compiled `keras_kd.Distiller`, on JAX.
        arrays: dict of arrays that batches are drawn from.
        draw: function of (arrays, epoch, index) that JAX can trace, which
            gives a batch, (x, y) or (x, y, sample_weight).
        index: what `draw` takes for one batch, as an example.

    Example:
    ```python
    program = EpochProgram(distiller, {"x": x, "y": y}, draw, order[0])
    for epoch in range(epochs):
        logs = program.train(epoch, rng.permutation(n).reshape(-1, 128))
    ```
    """

    def __init__(self, distiller, arrays, draw, index):
        self.distiller = distiller
        self._arrays = jax.device_put(arrays)
        symbolic_build(distiller, draw(self._arrays, 0, jnp.asarray(index)))
        distiller.optimizer.build(distiller.trainable_variables)
        self._read = distiller._step_variables()
        self._groups = (
            distiller.trainable_variables,
            distiller.non_trainable_variables,
            distiller.optimizer.variables,
            distiller.metrics_variables,
        )
        models = filter(None, (distiller.student, distiller.teacher))
        self._carried = [v for model in models for v in state_variables(model)]

        def run(state, values, arrays, epoch, indices):
            def step(carry, index):
                state, values = carry
                batch = draw(arrays, epoch, index)
                outcome, state = distiller.train_step(state, (values, batch))
                logs, changed, is_invalid = outcome
                values = [changed.get(i, v) for i, v in enumerate(values)]
                return (state, values), (logs, is_invalid)

            carry, (logs, invalid) = jax.lax.scan(
                step, (state, values), indices
            )
            logs = {name: each[-1] for name, each in logs.items()}
            return carry, logs, jnp.any(invalid)

        # What an epoch begins with is not read again.
        self._run = jax.jit(run, donate_argnums=0)

    def train(self, epoch, indices):
        """Trains for an epoch.

        Args:
            epoch: integer, as `draw` takes it.
            indices: [steps, ...] array, of each step what `draw` takes.

        Returns:
            Dict of floats, what the step logs over the epoch.

        Raises:
            ValueError: if examples were invalid; see `Distiller`.
        """
        distiller = self.distiller
        distiller.reset_metrics()
        for variable in self._carried:
            variable.assign(jnp.zeros_like(variable.value))
        # Copies: a variable that is in two places can't be given away twice.
        state = jax.tree.map(
            jnp.copy, tuple([v.value for v in group] for group in self._groups)
        )
        values = [variable.value for variable in self._read]
        (state, values), logs, is_invalid = self._run(
            state, values, self._arrays, epoch, indices
        )
        for group, new in zip(self._groups, state, strict=True):
            for variable, value in zip(group, new, strict=True):
                variable.assign(value)
        for variable, value in zip(self._read, values, strict=True):
            variable.assign(value)
        if is_invalid:
            distiller.invalid_examples.check(distiller)
        return {name: float(value) for name, value in logs.items()}


class Outputs:
    """What a model makes of many batches, in one program.

    Args:
        model: a built `keras.Model`.
        reduce: function of (outputs, batch) that says what is kept of each.
        draw: function of (arrays, index) that gives a batch, (x, ...).

    Example:
    >>> logits = Outputs(teacher, lambda z, batch: z, draw)(arrays, indices)
    """

    def __init__(self, model, reduce, draw):
        # Keras keeps these apart from a model's variables.
        states = state_variables(model)
        self._others = model.variables

        def run(values, arrays, indices):
            def step(state, index):
                pairs = [
                    *zip(self._others, values, strict=True),
                    *zip(states, state, strict=True),
                ]
                batch = draw(arrays, index)
                with keras.StatelessScope(state_mapping=pairs) as scope:
                    outputs = model(batch[0], training=False)
                state = [scope.get_current_value(v) for v in states]
                return state, reduce(outputs, batch)

            zeros = [jnp.zeros(v.shape, v.dtype) for v in states]
            return jax.lax.scan(step, zeros, indices)[1]

        self._run = jax.jit(run)

    def __call__(self, arrays, indices):
        """What is kept of each batch, one after another, from the state zero.

        Args:
            arrays: dict of arrays, as `draw` takes them.
            indices: [batches, ...] array.

        Returns:
            What `reduce` returns, of each array an axis more, [batches, ...].
        """
        values = [variable.value for variable in self._others]
        return self._run(values, arrays, indices)


def shuffled(count, batch_size, seed):
    """Yields [batches, batch_size] positions in random order, for each epoch.

    Positions that fill no batch are left out, other ones in each epoch.
    """
    rng = np.random.default_rng(seed)
    full = count // batch_size * batch_size
    while True:
        order = rng.permutation(count)[:full]
        yield order.reshape(-1, batch_size).astype("int32")


@functools.partial(jax.vmap, in_axes=(0, 0, None))
def crop_and_flip(image, place, size):
    """Crops of padded images, some of them mirrored.

    Args:
        image: [batch, height, width, channels].
        place: [batch, 3] integers: row, column, and 1 for a mirror image.
        size: height and width of the crops.

    Returns:
        [batch, size, size, channels] float32.
    """
    place = place.astype("int32")
    corner = (place[0], place[1], 0)
    shape = (size, size, image.shape[-1])
    crop = jax.lax.dynamic_slice(image, corner, shape)
    crop = jnp.where(place[2] > 0, crop[:, ::-1], crop)
    return crop.astype("float32")
