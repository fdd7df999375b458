"""What each student gets a new one of: optimizer and metrics."""

import inspect
import json

import keras

from keras_kd.backend.private import wrapped_function

_UP = ("acc", "auc", "precision", "recall")
_DOWN = ("loss", "perplexity", "entropy", "error")
# Names that only `compile` understands, by the labels' shape.
_OF_COMPILE = ("accuracy", "acc", "crossentropy", "ce")

# Packages whose classes tell all that a copy needs.
_TOLD_WHOLE = ("keras", "keras_hub", "keras_nlp")


class Optimizers:
    """Makes an optimizer for each student.

    Args:
        given: a name, a configuration or an instance, which is copied; or a
            function without arguments that makes one.

    Raises:
        ValueError: if it is none of these.
    """

    def __init__(self, given):
        self._given = given
        if isinstance(given, str | dict):
            self._given = keras.optimizers.get(given)
        is_one = isinstance(self._given, keras.optimizers.Optimizer)
        if not is_one and not callable(given):
            raise ValueError(
                "`optimizer` must be a name, a configuration, an instance or a "
                f"function that makes one. Received: {given!r}. Pass one such "
                'as "adam", or lambda: keras.optimizers.SGD(0.1).'
            )
        self._is_one = is_one
        if is_one:
            _check_copied("optimizer", self._given)

    def make(self, learning_rate=None):
        """A new optimizer.

        Args:
            learning_rate: in place of its own; a schedule keeps its course and
                is scaled so that its first rate, or that after a warm-up from
                0, is this one.

        Returns:
            A `keras.optimizers.Optimizer`.
        """
        optimizer = self._copy() if self._is_one else self._made()
        if learning_rate is None:
            return optimizer
        _check_copied("optimizer", optimizer)
        config = optimizer.get_config()
        config["learning_rate"] = _scaled(optimizer, learning_rate)
        return type(optimizer).from_config(config)

    def _copy(self):
        return type(self._given).from_config(self._given.get_config())

    def _made(self):
        optimizer = self._given()
        if (
            not isinstance(optimizer, keras.optimizers.Optimizer)
            or optimizer.built
        ):
            raise ValueError(
                "The function given as `optimizer` must make a new optimizer "
                f"for each student. Received: {optimizer!r}, which has been "
                "used or is none. Construct it inside of the function."
            )
        return optimizer

    @property
    def learning_rate(self):
        """Float, what `make` scales from."""
        return _reference_rate(self.make())

    @property
    def config(self):
        """What tells it from another one, as JSON holds it."""
        optimizer = self.make()
        config = keras.saving.serialize_keras_object(optimizer)["config"]
        config.pop("name", None)
        return {"class": type(optimizer).__name__, **config}


class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor.

    Args:
        schedule: a `LearningRateSchedule`.
        factor: float.
    """

    def __init__(self, schedule, factor):
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step):
        """The rate of a step."""
        return self.factor * self.schedule(step)

    def get_config(self):
        """The arguments of the constructor."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}


def _schedule(optimizer):
    rate = optimizer.get_config().get("learning_rate")
    if not isinstance(rate, dict):
        return None
    return keras.optimizers.schedules.deserialize(rate)


def _reference_rate(optimizer):
    schedule = _schedule(optimizer)
    if schedule is None:
        return float(optimizer.get_config()["learning_rate"])
    first = float(keras.ops.convert_to_numpy(schedule(0)))
    return first or float(getattr(schedule, "warmup_target", None) or 0.0)


def _scaled(optimizer, learning_rate):
    """A learning rate, or the optimizer's schedule scaled to it."""
    schedule = _schedule(optimizer)
    if schedule is None:
        return learning_rate
    reference = _reference_rate(optimizer)
    if not reference:
        raise ValueError(
            "A schedule is scaled by its first rate, or that after its "
            f"warm-up. Received: {type(schedule).__name__}, which begins at 0, "
            "and the setting learning_rate. Leave the setting out."
        )
    return ScaledSchedule(schedule, learning_rate / reference)


class Metrics:
    """Makes the metrics for each student.

    Args:
        metric: what a student is judged by: the name of one, or one as
            `keras.Model.compile` takes it.
        others: list of what else is logged.
        higher_is_better: boolean, or `None` to tell by the metric's name.

    Raises:
        ValueError: if it is not logged, or its name does not tell which way
            is better.
    """

    def __init__(self, metric, others, higher_is_better):
        self.name = _name(metric)
        self._given = list(others or ())
        names = ["loss", *map(_name, self._given)]
        if self.name not in names:
            if isinstance(metric, str) and not _is_known(metric):
                raise ValueError(
                    "`metric` must be logged. Received: "
                    f"metric={metric!r} where {names} are, and Keras has no "
                    "metric of that name. Correct it, or pass the metric "
                    "itself."
                )
            self._given.append(metric)
        for each in self._given:
            if isinstance(each, keras.metrics.Metric):
                _check_copied("metric", each)
        self.higher_is_better = higher_is_better
        if higher_is_better is None:
            self.higher_is_better = self._direction()

    def _direction(self):
        name = self.name.lower()
        up, down = (any(w in name for w in words) for words in (_UP, _DOWN))
        if up == down:
            raise ValueError(
                "It must be known whether more of the metric is better. "
                f"Received: metric={self.name!r}, whose name doesn't tell. "
                "Pass higher_is_better=True or False."
            )
        return up

    @property
    def description(self):
        """What a student is judged by, in JSON's types."""
        for each in self._given:
            if (
                isinstance(each, keras.metrics.Metric)
                and each.name == self.name
            ):
                config = json.dumps(
                    each.get_config(), sort_keys=True, default=_name
                )
                return {"class": type(each).__name__, "config": config}
        return self.name

    def make(self):
        """List of new metrics, as `compile` takes them."""
        return [
            _copied(each) if isinstance(each, keras.metrics.Metric) else each
            for each in self._given
        ]


def _copied(metric):
    """A new metric of the same settings."""
    config = metric.get_config()
    if type(metric) is keras.metrics.MeanMetricWrapper:
        # Its function need not be registered to be used again.
        function, arguments = wrapped_function(metric)
        base = {name: config[name] for name in ("name", "dtype")}
        return type(metric)(function, **base, **arguments)
    return type(metric).from_config(config)


def _check_copied(what, given):
    """Refuses what a copy by its configuration would be unlike.

    Keras's own `get_config` of metrics and optimizers knows nothing of what a
    subclass adds to the constructor, which then has its default in a copy.

    Args:
        what: "metric" or "optimizer".
        given: one of Keras's kind.

    Raises:
        ValueError: naming the arguments that a copy would lose.
    """
    make = type(given).__init__
    if make.__module__.split(".")[0] in _TOLD_WHOLE:
        return
    config, attributes = given.get_config(), vars(given)
    parameters = inspect.signature(make).parameters.values()
    lost = [
        each.name
        for each in list(parameters)[1:]
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in config
        and not _is_default(each, attributes)
    ]
    if lost:
        raise ValueError(
            f"Each student gets a copy of the {what}, made by its "
            "`get_config`, which must tell all arguments. Received: "
            f"{type(given).__name__}, whose `get_config` leaves out {lost}. "
            "Add them to it."
        )


def _is_default(parameter, attributes):
    """Whether an argument is known to have its default."""
    names = (parameter.name, f"_{parameter.name}")
    found = [attributes[name] for name in names if name in attributes]
    if not found:
        return False
    return found[0] is parameter.default or (
        isinstance(found[0], bool | int | float | str)
        and found[0] == parameter.default
    )


def _name(metric):
    if isinstance(metric, str):
        return metric
    return getattr(metric, "name", None) or metric.__name__


def _is_known(name):
    if name in _OF_COMPILE:
        return True
    try:
        return keras.metrics.get(name) is not None
    except ValueError:
        return False
