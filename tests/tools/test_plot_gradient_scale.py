"""The picture of a run's gradient scales."""

import numpy as np
import plot_gradient_scale
from click.testing import CliRunner


def test_a_picture_that_can_not_be_written_is_named(tmp_path, monkeypatch):
    histogram = np.array([[-1.0, 0, 3], [0, 1, 5]])
    monkeypatch.setattr(
        plot_gradient_scale,
        "read_histograms",
        lambda run: {"kd": {"all": [histogram]}},
    )
    for name in ("p.xyz", "no/p.png"):
        arguments = [str(tmp_path), str(tmp_path / name)]
        done = CliRunner().invoke(plot_gradient_scale.main, arguments)
        assert isinstance(done.exception, SystemExit)
        output = " ".join(done.output.split())
        assert f"can't be written. Received: {tmp_path / name} (" in output
    assert not list(tmp_path.iterdir())


def test_the_last_epoch_is_the_darkest_and_nothing_is_cut():
    few = np.array([[-3.0, 0, 3], [0, 3, 5], [3, 5, 0]])
    drawn = plot_gradient_scale.plot({"kd": {"all": [few]}})
    assert drawn.axes[0].get_xlim() == (-3, 3)
    assert drawn.axes[0].patches[-1].get_alpha() == 1
    many = few + [0, 0, 1]
    drawn = plot_gradient_scale.plot({"kd": {"all": [few, many, many]}})
    assert drawn.axes[0].get_xlim() == (-3, 5)
