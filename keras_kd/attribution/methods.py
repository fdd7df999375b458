"""The loss of each method: by a loss's name, a control's or a level's."""

from keras_kd import losses
from keras_kd.attribution.controls import permuted_logit_weights
from keras_kd.similarity import logit_weights

PLAIN = "plain"
# Losses without the knowledge of another: of permuted class relations, and of
# confidences shuffled within each class.
PERMUTED, SHUFFLED = "kd_sim_permuted", "kd_pt_shuffled"
CONTROLS = {PERMUTED: "kd_sim", SHUFFLED: "kd_pt"}
# The two levels of decoupled distillation, each alone.
LEVEL_SETTINGS = {"dkd_tckd": {"beta": 0.0}, "dkd_nckd": {"alpha": 0.0}}
_SHARED_WEIGHT = "weight"


class CrossEntropy(losses.DistillationLoss):
    """The cross-entropy on the labels alone: a loss without a teacher's term.

    A plain student is trained by the Distiller as well, since Keras's own `fit`
    can't train on several workers, weighs uneven replicas alike, and carries
    no state of recurrent layers on JAX.

    Args:
        **kwargs: as in `keras_kd.losses.DistillationLoss`.
    """

    takes_soft_labels = True

    def __init__(self, **kwargs):
        super().__init__(weight={}, **kwargs)

    def targets(self, labels, statistics, num_classes):
        """None."""
        return {}


def base_of(method):
    """The method whose loss and settings a control or a level has.

    Args:
        method: name.

    Returns:
        A name, of a method that is neither a control nor a level itself.
    """
    return "dkd" if method in LEVEL_SETTINGS else CONTROLS.get(method, method)


def make_loss(method, settings=None, teacher=None, num_classes=None):
    """A new loss for a method.

    Args:
        method: "plain", one of `keras_kd.losses.NAMES`, a control or a level.
        settings: optional dict of the loss's arguments. The `weight` of a loss
            with two terms is shared between them as their own weights are.
        teacher: `keras.Model` whose class relations are permuted in the
            control of class relations.
        num_classes: how many of the teacher's classes, from the first on, are
            the student's, too; `None` for all.

    Returns:
        A `keras_kd.losses.DistillationLoss`.

    Raises:
        ValueError: for an unknown method, or an argument that its loss does
            not have or accept.

    Example:
    >>> make_loss("kd_pt_sim", {"weight": 0.6, "temperature": 4.0}).weights
    {'pt_weight': 0.48, 'sim_weight': 0.12}
    """
    settings = {**(settings or {}), **LEVEL_SETTINGS.get(method, {})}
    base = base_of(method)
    weight = settings.pop(_SHARED_WEIGHT, None)
    if base != "kd_pt_sim" and weight is not None:
        settings[_SHARED_WEIGHT] = weight
    if method == PERMUTED and teacher is not None:
        rows = logit_weights(teacher, settings.get("logit_layer"))
        settings["logit_layer"] = permuted_logit_weights(rows[:num_classes])
    try:
        if method == PLAIN:
            return CrossEntropy(**settings)
        loss = losses.get(base, **settings)
    except TypeError as error:
        raise ValueError(
            f"Settings are arguments of the method's loss. Received: "
            f"{settings} for {method!r} ({error}). Leave out what it doesn't "
            "have."
        ) from error
    if base == "kd_pt_sim" and weight is not None:
        total = sum(loss.weights.values()) or 1.0
        shares = {name: each / total for name, each in loss.weights.items()}
        loss.assign(**{name: weight * each for name, each in shares.items()})
    return loss
