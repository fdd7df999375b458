"""What a diagnosis of the teacher suggests to try."""

from keras_kd.diagnosis import verdict
from keras_kd.diagnosis.measures import measured_relations

# Findings of a teacher whose word should count for less.
_LESS_WEIGHT = {"noisy_labels", "weak_teacher", "worse_than_student"}
_LOW_WEIGHT = 0.2


def advice_of(diagnosis):
    """Starts for a search, and what is to be said of the teacher.

    Args:
        diagnosis: a `keras_kd.Diagnosis`, or `None`.

    Returns:
        Dict in JSON's types: "classes", how many there are; "verdict", three
        sentences; "starts", a list of dicts of a "method" and those of its
        "settings" that differ from the defaults, the best first.
    """
    if diagnosis is None or "teacher" not in diagnosis.numbers:
        return {"classes": None, "verdict": [], "starts": []}
    numbers = diagnosis.numbers
    codes = {finding.code for finding in diagnosis.findings}
    relations, classes = numbers["class_relations"], numbers["data"]["classes"]
    settings = {"temperature": verdict.suggested_temperature(numbers)}
    if codes & _LESS_WEIGHT:
        settings["weight"] = _LOW_WEIGHT
    kept = {}
    if measured_relations(numbers) is not None:
        kept["k"] = relations["tail"]["suggested_k"] / classes
    return {
        "classes": classes,
        "verdict": list(diagnosis.verdict),
        "starts": [
            {
                "method": method,
                "settings": {**settings, **kept}
                if method == "kd_topk"
                else settings,
            }
            for method in _order(relations, codes)
        ],
    }


def _order(relations, codes):
    """Methods to start with, as the diagnosis orders them."""
    if relations is None or "no_class_relations" in codes:
        return "kd_pt", "kd"
    if "noisy_tail" in codes:
        return "kd_topk", "kd_pt_sim", "kd"
    return "kd", "kd_pt_sim", "kd_topk"
