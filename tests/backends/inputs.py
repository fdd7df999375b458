"""What every backend is given: numbers made by NumPy, nothing random."""

import numpy as np

CLASSES, FEATURES, HIDDEN = 11, 5, 6
BATCH, STEPS, LEARNING_RATE = 8, 10, 0.2
# The examples of whole batches: the last batch is smaller.
WHOLE = BATCH * (STEPS - 1)
ALPHA, BETA = 0.4, 0.7
# By name of a loss: its arguments, beside the logit layer.
LOSSES = {
    "label_smoothing": {"smoothing": 0.2, "weight": 0.8},
    "kd_pt": {"weight": 0.6, "temperature": 3.0},
    "kd_sim": {"weight": 0.3, "temperature": 1.5, "alpha": ALPHA, "beta": BETA},
    "kd_pt_sim": {
        "pt_weight": 0.4,
        "sim_weight": 0.2,
        "temperature": 2.0,
        "alpha": ALPHA,
        "beta": BETA,
    },
    "kd_topk": {"k": 4, "weight": 0.5, "temperature": 2.0},
    # Of all classes, as backends draw different numbers.
    "kd_sampled": {"k": CLASSES, "weight": 0.5, "temperature": 2.0},
    "kd": {"weight": 0.7, "temperature": 4.0},
    "dkd": {"alpha": 1.5, "beta": 4.0, "weight": 0.6, "temperature": 3.0},
}
# Without a teacher; with the state of a loss, which devices share: draws and
# relations of classes; and with statistics of all classes.
ON_TWO_DEVICES = ("label_smoothing", "kd_sampled", "kd_pt_sim", "kd")


def trained_examples(name):
    """How many examples train by a loss.

    One loss has a smaller batch at the end, for which JAX compiles its step
    again.
    """
    return BATCH * STEPS - 3 if name == "kd_pt_sim" else WHOLE


def arrays():
    """Dict of the data, and of the weights of teacher and student."""
    random = np.random.default_rng(0)
    examples = BATCH * STEPS - 3

    def weights():
        shapes = (FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)
        return [random.normal(0, 0.8, s).astype("float32") for s in shapes]

    return {
        "x": random.normal(size=(examples, FEATURES)).astype("float32"),
        "labels": random.integers(0, CLASSES, examples).astype("int32"),
        "sample_weight": random.uniform(0, 2, examples).astype("float32"),
        "student": weights(),
        "teacher": weights(),
        "logits": random.normal(0, 3, (64, CLASSES)).astype("float32"),
        "teacher_logits": random.normal(0, 3, (64, CLASSES)).astype("float32"),
        "logit_labels": random.integers(0, CLASSES, 64).astype("int32"),
    }


def diagnosed(given, examples=WHOLE):
    """(x, labels, sample_weight) with weights of 0 and a batch with NaN."""
    x, labels, weight = (
        given[key][:examples].copy() for key in ("x", "labels", "sample_weight")
    )
    x[2 * BATCH : 2 * BATCH + 3] = np.nan
    weight[::5] = 0
    return x, labels, weight
