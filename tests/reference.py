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


def _decoupled(logits, labels, temperature):
    """Log-probabilities of (label, not label), and of the others alone."""
    logits = np.asarray(logits, "float64") / temperature
    is_label = one_hot(labels, logits.shape[-1]).astype(bool)
    others = np.where(is_label, -np.inf, logits)
    top = others.max(-1, keepdims=True)
    total = np.log(np.exp(others - top).sum(-1, keepdims=True)) + top
    at_label = np.where(is_label, logits, -np.inf).max(-1, keepdims=True)
    pair = log_softmax(np.concatenate([at_label, total], -1))
    return pair, np.where(is_label, 0.0, logits - total), ~is_label


def dkd_terms(logits, labels, teacher_logits, temperature):
    """TCKD and NCKD, the divergences of explicit distributions."""
    pair, others, counted = _decoupled(logits, labels, temperature)
    teacher_pair, teacher_others, _ = _decoupled(
        teacher_logits, labels, temperature
    )
    tckd = np.exp(teacher_pair) * (teacher_pair - pair)
    nckd = counted * np.exp(teacher_others) * (teacher_others - others)
    return tckd.sum(-1), nckd.sum(-1)


def dkd_loss(
    logits, labels, teacher_logits, weight, alpha, beta, temperature, squared
):
    tckd, nckd = dkd_terms(logits, labels, teacher_logits, temperature)
    kappa = temperature**2 if squared else 1.0
    hard = per_example_loss(logits, labels, [], 1.0)
    return (1 - weight) * hard + weight * kappa * (alpha * tckd + beta * nckd)


def dkd_gradient(
    logits, labels, teacher_logits, weight, alpha, beta, temperature, squared
):
    """Gradient of `dkd_loss` in the logits, [..., classes]."""
    pair, others, counted = _decoupled(logits, labels, temperature)
    teacher_pair, teacher_others, _ = _decoupled(
        teacher_logits, labels, temperature
    )
    # Of the label's probability: the smaller of the two differences.
    pull = np.exp(pair[..., :1]) - np.exp(teacher_pair[..., :1])
    rest = np.exp(teacher_pair[..., 1:]) - np.exp(pair[..., 1:])
    pull = np.where(pair[..., :1] > pair[..., 1:], rest, pull)
    own, teachers = np.exp(others), np.exp(teacher_others)
    gradient = np.where(
        counted, beta * (own - teachers) - alpha * pull * own, alpha * pull
    )
    kappa = temperature**2 if squared else 1.0
    hard = per_example_gradient(logits, labels, [], 1.0)
    return (1 - weight) * hard + weight * kappa / temperature * gradient


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
