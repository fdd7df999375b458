"""The levels of a teacher's knowledge, and the methods that tell them apart."""

import dataclasses

# All that a level is measured by.
METHODS = (
    "plain",
    "label_smoothing",
    "kd_sim",
    "kd_pt",
    "kd_pt_sim",
    "kd_topk",
    "kd_sampled",
    "kd",
    "dkd_tckd",
    "dkd_nckd",
    "dkd",
    "kd_sim_permuted",
    "kd_pt_shuffled",
)
# The parts that the paper compares, and the controls of two of them. Each more
# is a student a seed, and a comparison that all are corrected for.
_BEYOND_THE_PAPER = ("kd_sampled", "dkd_tckd", "dkd_nckd", "dkd")
DEFAULT_METHODS = tuple(m for m in METHODS if m not in _BEYOND_THE_PAPER)


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of the teacher's knowledge, and how its worth is measured.

    Attributes:
        name: of the level.
        method: the method that has it.
        baseline: the method that lacks it; or several, of which the one with
            the better mean counts.
        question: in plain words, what the difference measures.
    """

    name: str
    method: str
    baseline: str | tuple
    question: str


LEVELS = (
    Level(
        "regularisation",
        "label_smoothing",
        "plain",
        "smoothing the labels, which needs no teacher",
    ),
    Level(
        "class relations",
        "kd_sim",
        "label_smoothing",
        "spreading the smoothing over related classes",
    ),
    Level(
        "class relations",
        "kd_sim",
        "kd_sim_permuted",
        "true class relations against those of permuted classes",
    ),
    Level(
        "rescaling",
        "kd_pt",
        "label_smoothing",
        "smoothing each example by the teacher's confidence in it",
    ),
    Level(
        "rescaling",
        "kd_pt",
        "kd_pt_shuffled",
        "each example's own confidence against that of another of its class",
    ),
    Level(
        "both together",
        "kd_pt_sim",
        ("kd_pt", "kd_sim"),
        "rescaling and relations together against the better of the two",
    ),
    Level(
        "the tail",
        "kd",
        "kd_topk",
        "the teacher's probabilities beyond its largest classes",
    ),
    Level(
        "the tail as it is",
        "kd_sampled",
        "kd_topk",
        "an unbiased sample of the tail against its mean, in as many bytes",
    ),
    Level(
        "the label's probability",
        "dkd_tckd",
        "plain",
        "decoupled distillation with alpha alone",
    ),
    Level(
        "the other classes",
        "dkd_nckd",
        "plain",
        "decoupled distillation with beta alone",
    ),
    Level(
        "decoupled",
        "dkd",
        "kd",
        "the two levels with weights of their own, not muted by confidence",
    ),
    Level("all", "kd", "plain", "everything that the teacher gives"),
)
