"""Every logged number is the same on 1, 2 and 4 replicas, and the right one.

Two workers are in test_multiworker.py. TensorFlow alone has replicas. They run
traced, as a user's do, and the one eagerly, which takes less time.
"""

import functools

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
import trainings
from models import EAGERLY

TERMS = {"pt": 0.4, "sim": 0.1}
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def one_replica():
    return functools.cache(
        lambda case: trainings.log(
            tf.distribute.get_strategy(), case, **EAGERLY
        )
    )


every_case = pytest.mark.parametrize("case", trainings.LOGGED)


@pytest.mark.parametrize(
    "replicas, case",
    [
        ("two_replicas", "examples"),
        ("two_replicas", "weighted_mean"),
        ("four_replicas", "tokens"),
    ],
)
def test_several_replicas_log_what_one_does(
    replicas, case, one_replica, request
):
    expected = one_replica(case)
    found = trainings.log(request.getfixturevalue(replicas), case)
    for run in ("fit", "evaluate"):
        assert set(found[run]) == set(expected[run])
        for key, values in expected[run].items():
            np.testing.assert_allclose(
                found[run][key], values, rtol=1e-5, err_msg=f"{run}: {key}"
            )


@every_case
def test_one_replica_logs_what_plain_keras_does(case, one_replica):
    """Cross-entropy and metrics; a student at rest has the same in `fit`."""
    make_student, arrays, arguments = trainings.LOGGED[case]
    student = make_student()
    student.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, **arguments
        ),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("right")],
        **EAGERLY,
    )
    expected = student.evaluate(
        trainings.in_batches(*arrays()), verbose=0, return_dict=True
    )
    logged = one_replica(case)
    for key, value in expected.items():
        assert logged["evaluate"][key] == pytest.approx(value, rel=1e-5)
        assert logged["fit"][f"val_{key}"] == pytest.approx([value] * 2)
        if key != "loss":
            assert logged["fit"][key] == pytest.approx([value] * 2)


@every_case
def test_one_replica_logs_the_loss_and_its_parts(case, one_replica):
    """Written out in float64."""
    expected = expected_logs(case)
    logged = one_replica(case)["fit"]
    for key, value in expected.items():
        assert logged[key] == pytest.approx([value] * 2, rel=2e-5), key


def expected_logs(case):
    """What `fit` must log of the loss."""
    make_student, arrays, arguments = trainings.LOGGED[case]
    x, labels, *weights = arrays()
    ignored = labels == arguments.get("ignore_class", -2)
    labels = np.where(ignored, 0, labels)
    counted = np.logical_not(ignored)
    if x.ndim > 2:
        counted &= np.any(x != 0, axis=-1)
    weights = weights[0] if weights else np.ones(labels.shape)
    student, teacher = make_student(), make_student()
    teacher.set_weights(trainings.teacher_weights(make_student))
    logits = keras.ops.convert_to_numpy(student(x))
    teacher_logits = keras.ops.convert_to_numpy(teacher(x))

    targets = {
        "pt": reference.pt_target(labels, teacher_logits, TEMPERATURE),
        "sim": reference.sim_target(
            labels, teacher.get_weights()[-2].T, alpha=0.5, beta=1.5
        ),
    }
    tempered = reference.log_softmax(logits / TEMPERATURE)
    values = {
        name: -(target * tempered).sum(-1) for name, target in targets.items()
    }
    terms = [(TERMS[name], target) for name, target in targets.items()]
    values["cross_entropy"] = reference.per_example_loss(
        logits, labels, [], TEMPERATURE
    )
    loss = reference.per_example_loss(logits, labels, terms, TEMPERATURE)
    scale = reference.gradient_scale(logits, labels, terms, TEMPERATURE)
    in_means = counted * weights
    return {
        **{
            name: (value * in_means).sum() / in_means.sum()
            for name, value in values.items()
        },
        "loss": mean_of_batches(loss, weights, counted, arguments)
        + trainings.PENALTY * (student.get_weights()[0] ** 2).sum(),
        "gradient_scale": scale[in_means != 0].mean(),
    }


def mean_of_batches(loss, weights, counted, arguments):
    """Each batch's loss weighs as many times as the batch has rows."""
    total = 0.0
    for start in range(0, trainings.UNEVEN, trainings.BATCH):
        batch = slice(start, start + trainings.BATCH)
        divisor = counted[batch]
        if arguments.get("reduction") == "mean_with_sample_weight":
            divisor = divisor * weights[batch]
        summed = (loss * weights * counted)[batch].sum()
        total += len(loss[batch]) * summed / divisor.sum()
    return total / trainings.UNEVEN
