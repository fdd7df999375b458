"""The report: one page that needs nothing else; and TensorBoard."""

import re
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import tensorflow as tf
from models import CLASSES, data, mlp

from keras_kd.diagnosis import diagnose
from keras_kd.reports import figures
from keras_kd.reports.page import Page


@pytest.fixture(scope="module")
def diagnosis():
    x, labels, _ = data(120)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(32)
    superclasses = np.arange(CLASSES) % 2
    return diagnose(mlp(), dataset, mlp(seed=4), superclasses=superclasses)


@pytest.fixture(scope="module")
def page(diagnosis, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    diagnosis.save(path)
    return path.read_text(encoding="utf-8")


def svgs(page):
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_the_page_needs_nothing_else(page):
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert sources
    for source in sources:
        assert source.startswith(("#", "data:image/png")), source
    assert "<script" not in page and "@import" not in page
    assert "url(" not in page.replace("url(#", "")


def test_findings_come_first_and_all_pictures_follow(page, diagnosis):
    at = [page.index(finding.summary[:20]) for finding in diagnosis.findings]
    assert at == sorted(at)
    assert at[-1] < page.index("<svg")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == len(svgs(page)) == 8
    for word in (
        "gradients",
        "difficulty",
        "Reliability",
        "Cosines",
        "flatten",
    ):
        assert any(word in caption for caption in captions), word
    # Both similarity matrices are there.
    assert svgs(page)[-1].count("data:image/png") >= 2


def test_pictures_are_well_formed_and_do_not_mix(page):
    names = []
    for svg in svgs(page):
        root = xml.etree.ElementTree.fromstring(svg)
        assert "width" not in root.attrib and "viewBox" in root.attrib
        own = {e.get("id") for e in root.iter() if e.get("id")}
        names += own
        for used in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg):
            assert used in own
    assert len(names) == len(set(names))


def test_pictures_take_the_colours_of_the_page(page):
    for svg in svgs(page):
        assert "currentColor" in svg
        drawn = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert drawn <= {"#ffffff"}, drawn
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    for variable in set(re.findall(r"var\((--[\w-]+)\)", page)):
        assert page.count(f"{variable}: #") == 2, variable


def test_a_file_is_never_overwritten(diagnosis, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="Received"):
        diagnosis.save(path)
    with pytest.raises(FileExistsError, match="Received"):
        Page("title").save(path)
    assert path.read_text() == "mine"


def test_text_is_escaped(tmp_path):
    page = Page("a < b")
    page.add_heading("<i>")
    page.add_text("x & y <script>")
    page.add_table(["<th>"], [["1 < 2"]])
    page.add_finding("code", "info", "<b>", ["<u>"], {"k": [1, 2.5]})
    page.add_figure("<svg></svg>", "p < q")
    html = page.render()
    for raw in ("<i>", "<script>", "<b>", "<u>", "1 < 2", "p < q", "a < b"):
        assert raw not in html
    assert "[1, 2.5]" in html and "<svg></svg>" in html


def test_bars_have_their_lengths_and_intervals():
    figure = figures.bars(
        ["one", "two"], [1.0, -2.0], [(0.5, 1.5), (-3.0, -1.0)], "gain"
    )
    axes = figure.axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [1.0, -2.0]
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert (0.5, 1.5) in drawn and (-3.0, -1.0) in drawn
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two"]


def test_histograms_are_shares():
    figure = figures.histograms([0, 1, 2], {"a": [1, 3], "b": [0, 0]})
    values = [patch.get_data().values for patch in figure.axes[0].patches]
    np.testing.assert_allclose(values[0], [0.25, 0.75])
    np.testing.assert_allclose(values[1], [0, 0])


def test_tensorboard_holds_numbers_and_pictures(diagnosis, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    diagnosis.to_tensorboard(tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["tensors"]

    def value(tag):
        return tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto)

    accuracy = value("diagnosis/teacher/accuracy")
    assert accuracy == pytest.approx(diagnosis.numbers["teacher"]["accuracy"])
    assert "diagnosis/gradient_scale/reversed_share" in tags
    image = value("diagnosis/class_similarity")
    width, height, png = int(image[0]), int(image[1]), image[2]
    picture = tf.io.decode_png(png).numpy()
    assert picture.shape == (height, width, 3) and picture.std() > 10
    assert diagnosis.findings[0].code in str(value("diagnosis"))


def test_without_matplotlib(diagnosis, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        diagnosis.save(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert "INFO" in str(diagnosis)
