"""The losses written out: explicit target distributions, float64 NumPy.

Nothing here knows of the package; it is what the closed forms are held
against.
"""

import numpy as np


def log_softmax(logits):
    logits = np.asarray(logits, dtype="float64")
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def one_hot(labels, num_classes):
    return np.eye(num_classes)[labels]


def label_smoothing_target(labels, num_classes, smoothing):
    even = np.full((*labels.shape, num_classes), smoothing / num_classes)
    return even + (1 - smoothing) * one_hot(labels, num_classes)


def pt_target(labels, teacher_logits, temperature):
    teacher = softmax(np.asarray(teacher_logits, "float64") / temperature)
    num_classes = teacher.shape[-1]
    hot = one_hot(labels, num_classes)
    confidence = (teacher * hot).sum(-1, keepdims=True)
    # The other classes' sum is taken by itself, not as 1 - confidence.
    others = (teacher * (1 - hot)).sum(-1, keepdims=True)
    return confidence * hot + others / (num_classes - 1) * (1 - hot)


def topk_target(teacher_logits, temperature, k):
    teacher = softmax(np.asarray(teacher_logits, "float64") / temperature)
    num_classes = teacher.shape[-1]
    order = np.argsort(-teacher, axis=-1, kind="stable")
    target = np.take_along_axis(teacher, order, -1)
    if k < num_classes:
        target[..., k:] = target[..., k:].mean(-1, keepdims=True)
    result = np.empty_like(target)
    np.put_along_axis(result, order, target, -1)
    return result


def kd_target(teacher_logits, temperature):
    return softmax(np.asarray(teacher_logits, "float64") / temperature)


def sim_target(labels, weights, alpha, beta):
    weights = np.asarray(weights, "float64")
    unit = weights / np.linalg.norm(weights, axis=-1, keepdims=True)
    cosines = unit @ unit.T
    return softmax(np.sign(cosines) * np.abs(cosines / alpha) ** beta)[labels]


# Methods whose term is the divergence from their target; the others' is the
# cross-entropy, which differs from it by what the student can't change.
DIVERGENCES = ("kd", "kd_topk")


def entropy(target):
    logs = np.log(np.where(target > 0, target, 1.0))
    return -(target * logs).sum(-1)


def per_example_loss(
    logits, labels, terms, temperature, squared=True, divergence=False
):
    """terms: list of (weight, target [..., classes])."""
    logits = np.asarray(logits, "float64")
    hot = one_hot(labels, logits.shape[-1])
    kappa = temperature**2 if squared else 1.0
    loss = -(1 - sum(w for w, _ in terms)) * (hot * log_softmax(logits)).sum(-1)
    for weight, target in terms:
        term = -(target * log_softmax(logits / temperature)).sum(-1)
        if divergence:
            term = term - entropy(target)
        loss = loss + weight * kappa * term
    return loss


def per_example_gradient(logits, labels, terms, temperature, squared=True):
    """Gradient of `per_example_loss` in the logits, [..., classes]."""
    logits = np.asarray(logits, "float64")
    hot = one_hot(labels, logits.shape[-1])
    kappa = temperature**2 if squared else 1.0
    hard = 1 - sum(w for w, _ in terms)
    gradient = hard * (softmax(logits) - hot)
    for weight, target in terms:
        tempered = softmax(logits / temperature)
        gradient += weight * kappa / temperature * (tempered - target)
    return gradient


def reduce_mean(values, sample_weight=None, counted=None):
    """Keras's "sum_over_batch_size": weights don't count in the divisor."""
    counted = np.ones(values.shape) if counted is None else counted
    weights = counted if sample_weight is None else counted * sample_weight
    return (values * weights).sum() / counted.sum()


def gradient_scale(logits, labels, terms, temperature):
    """Ratio of the gradients on the label, as `per_example_gradient`."""
    at_label = one_hot(labels, logits.shape[-1]).astype(bool)
    distilled = per_example_gradient(logits, labels, terms, temperature)
    plain = per_example_gradient(logits, labels, [], temperature)
    return distilled[at_label].reshape(labels.shape) / plain[at_label].reshape(
        labels.shape
    )
