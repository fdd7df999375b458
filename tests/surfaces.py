"""A trainer whose students are numbers: an analytic response surface."""

import math
import zlib

import numpy as np

from keras_kd import losses

# Where each setting is best.
BEST = {
    "weight": 0.8,
    "temperature": 5.0,
    "k": 0.3,
    "beta": 4.0,
    "smoothing": 0.2,
    "label_mass": 0.8,
    "pt_weight": 0.5,
    "sim_weight": 0.1,
    "learning_rate": 3e-3,
}
# How good each method is there.
HEIGHTS = {
    "plain": 0.70,
    "label_smoothing": 0.71,
    "kd_pt": 0.73,
    "kd_sim": 0.72,
    "kd_pt_sim": 0.735,
    "kd_topk": 0.76,
    "kd_sampled": 0.74,
    "kd": 0.75,
    "dkd": 0.745,
}
LINEAR = {"weight", "label_mass", "pt_weight"}


class SurfaceTrainer:
    """Keeps to the interface of `keras_kd.StudentTrainer`.

    Args:
        noise: deviation of a score between seeds, all else equal.
        steepness: what a setting costs at a distance from its best value.
        heights: dict by method of the score at its best.
        epochs: integer.
        each_epoch: function of the trainer, called before each epoch.
        test: function of the final validation score, what it is on test data.
        sign: -1 for scores of which less is better.
        validation_freq: epochs from one score to the next.
    """

    metric = "accuracy"
    teacher, cache = "a teacher", None
    seconds_per_student = None
    learning_rate = 1e-3
    scored_on = "test"

    def __init__(
        self,
        noise=0.0,
        steepness=1.0,
        heights=HEIGHTS,
        epochs=9,
        each_epoch=lambda trainer: None,
        test=lambda score: score,
        sign=1,
        validation_freq=1,
    ):
        self.noise, self.steepness, self.heights = noise, steepness, heights
        self.epochs, self.each_epoch, self.test = epochs, each_epoch, test
        self.sign, self.higher_is_better = sign, sign > 0
        self.methods = tuple(heights)
        self.study = {"data": "a surface", "noise": noise}
        # Of each student: the method, the seed, the settings, and how many
        # epochs it was trained.
        self.calls = []
        self.diagnoses = 0
        self.validation_freq = validation_freq
        self.evaluated_epochs = tuple(
            range(validation_freq - 1, epochs, validation_freq)
        )

    def diagnosis(self):
        self.diagnoses += 1
        return None

    def loss(self, method, settings):
        """What stands for plain training has no settings to search."""
        if method == "plain":
            return losses.get("label_smoothing", smoothing=0.0)
        return losses.get(method, **settings)

    def truth(self, method, settings):
        """The expected validation score."""
        loss = {} if method == "plain" else losses.get(method).get_config()
        values = {"learning_rate": self.learning_rate, **loss, **settings}
        cost = 0.0
        for name, best in BEST.items():
            if values.get(name) is None:
                continue
            if name in LINEAR:
                distance = 2 * (values[name] - best)
            else:
                distance = math.log(values[name] / best, 4)
            cost += 0.02 * self.steepness * distance**2
        return self.sign * (self.heights[method] - cost)

    def train(self, method, seed, settings=None, report=None):
        """A student whose curve rises, or falls, to its score."""
        settings = dict(settings or {})
        call = [method, seed, settings, 0]
        self.calls.append(call)
        end = self.truth(method, settings) + self.luck(call)
        curve, losses_seen = [], []
        for epoch in range(self.epochs):
            self.each_epoch(self)
            left = math.exp(-3 * (epoch + 1) / self.epochs) - math.exp(-3)
            losses_seen.append(left)
            call[3] += 1
            if (epoch + 1) % self.validation_freq:
                continue
            curve.append(end - self.sign * 0.3 * left)
            if report is not None and report(epoch, curve[-1]):
                break
        history = {"loss": losses_seen, f"val_{self.metric}": curve}
        return {self.metric: self.test(curve[-1]), "history": history}

    __call__ = train

    def luck(self, call):
        """What the seed does to all, and what it does to this student."""
        if not self.noise:
            return 0.0
        own = np.random.default_rng(zlib.crc32(repr(call).encode()))
        everyones = np.random.default_rng(call[1])
        return own.normal(0, self.noise) + everyones.normal(0, self.noise)
