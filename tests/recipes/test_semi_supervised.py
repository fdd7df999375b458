"""The study of images without labels, with few steps."""

import pytest
import semi_supervised
from click.testing import CliRunner


def test_it_compares_students_with_and_without_a_teacher(monkeypatch):
    """The second seed's scores stand in for another training."""
    train, first = semi_supervised.one_seed, {}

    def one_seed(seed, *arguments):
        if seed == 0:
            first.update(train(seed, *arguments))
        return {name: score + seed / 100 for name, score in first.items()}

    monkeypatch.setattr(semi_supervised, "one_seed", one_seed)
    result = CliRunner().invoke(
        semi_supervised.main, ["--seeds", "2", "--epochs", "1"]
    )
    assert result.exit_code == 0, result.output
    for name in ("plain, few labels", "KD, teacher of", "teacher, all labels"):
        assert name in result.output


@pytest.mark.parametrize("share", ["1.5", "0", "nan", "0.001", "0.9999"])
def test_a_share_without_some_of_the_digits_is_refused(share):
    result = CliRunner().invoke(semi_supervised.main, ["--labels", share])
    assert result.exit_code == 1
    assert f"Received: --labels {float(share)} of 1,347" in result.output
