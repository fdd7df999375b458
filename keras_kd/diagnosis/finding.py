"""A finding of a diagnosis, with its evidence and a remedy."""

import dataclasses

PROBLEM, INFO = "problem", "info"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis found.

    Attributes:
        code: stable name, such as "over_confident".
        severity: "problem" or "info".
        summary: what was found, in plain words.
        evidence: dict of the numbers that it is based on.
        consequence: what it means for distillation, in the paper's terms.
        remedy: what to try.
    """

    code: str
    severity: str
    summary: str
    evidence: dict = dataclasses.field(repr=False)
    consequence: str
    remedy: str
