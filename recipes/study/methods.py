"""The losses that a study compares, by name."""

import keras_kd as kd

PLAIN = "plain"
LOSSES = (
    PLAIN,
    "label_smoothing",
    "kd_pt",
    "kd_sim",
    "kd_pt_sim",
    "kd_topk",
    "kd_sampled",
    "kd",
    "dkd",
)
# Losses without the knowledge of another: of permuted class relations, and of
# confidences shuffled within each class.
PERMUTED, SHUFFLED = "kd_sim_permuted", "kd_pt_shuffled"
CONTROLS = {PERMUTED: "kd_sim", SHUFFLED: "kd_pt"}
# The two levels of decoupled distillation, each alone.
TCKD, NCKD = "dkd_tckd", "dkd_nckd"
LEVELS = {TCKD: {"beta": 0.0}, NCKD: {"alpha": 0.0}}
METHODS = (*LOSSES, *LEVELS, *CONTROLS)


class CrossEntropy(kd.losses.DistillationLoss):
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


def make_loss(
    name, arguments=None, weight=None, temperature=None, teacher=None, k=None
):
    """A loss with the weight and temperature asked for.

    One weight for two terms is shared between them as by default. A control,
    or a level, has the settings of the loss that it belongs to.

    Args:
        name: out of `METHODS`.
        arguments: optional dict by name of dicts of arguments, where the
            losses' own defaults do not suit.
        weight: of the distillation term; `None` for the loss's own.
        temperature: of the losses that have one; `None` for the loss's own.
        teacher: `keras.Model` whose class relations are permuted in the
            control of class relations.
        k: of the losses that keep k classes; `None` for the loss's own.

    Returns:
        A `keras_kd.losses.DistillationLoss`.
    """
    # What fills up a last batch has weight 0 and must not count in the mean.
    reduction = "mean_with_sample_weight"
    if name == PLAIN:
        return CrossEntropy(reduction=reduction)
    own_name = "dkd" if name in LEVELS else CONTROLS.get(name, name)
    chosen = dict((arguments or {}).get(own_name, {}))
    chosen.update(LEVELS.get(name, {}))
    if name == PERMUTED and teacher is not None:
        chosen["logit_layer"] = kd.attribution.permuted_logit_weights(
            kd.similarity.logit_weights(teacher)
        )
    if k is not None and own_name in ("kd_topk", "kd_sampled"):
        chosen["k"] = k
    loss = kd.losses.get(own_name, reduction=reduction, **chosen)
    if weight is not None:
        total = sum(loss.weights.values())
        loss.assign(**{k: v * weight / total for k, v in loss.weights.items()})
    if temperature is not None and own_name != "label_smoothing":
        loss.assign(temperature=temperature)
    return loss
