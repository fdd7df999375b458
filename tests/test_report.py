"""The report: one page that needs nothing else; and TensorBoard."""

import base64
import errno
import html
import itertools
import math
import re
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import tensorflow as tf
from models import CLASSES, data, mlp
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from keras_kd import files
from keras_kd.attribution import Attribution
from keras_kd.diagnosis import diagnose, pictures
from keras_kd.diagnosis.pictures import draw
from keras_kd.reports import events, figures, numbers, tables
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


@pytest.fixture
def one_picture(monkeypatch):
    """Pages of the first picture alone, where it matters where they go."""

    def first(numbers):
        return dict(itertools.islice(draw(numbers).items(), 1))

    monkeypatch.setattr(pictures, "draw", first)


def svgs(page, scheme="light"):
    """The pictures that a page holds, as SVG documents."""
    image = rf'<img class="{scheme}" alt="[^"]*" '
    address = rf'{image}src="data:image/svg\+xml;base64,([^"]*)"'
    return [base64.b64decode(a).decode() for a in re.findall(address, page)]


def test_the_page_needs_nothing_else(page):
    sources = re.findall(r'\b(?:src|srcset|href)="([^"]*)"', page)
    assert sources
    for source in sources:
        assert source.startswith("data:image/svg+xml;base64,"), source
    assert "<script" not in page and "@import" not in page
    assert "url(" not in page
    for svg in svgs(page):
        for address in re.findall(r'href="([^"]*)"', svg):
            assert address.startswith(("#", "data:image/png;")), address


def test_findings_come_first_and_all_pictures_follow(page, diagnosis):
    at = [page.index(finding.summary[:20]) for finding in diagnosis.findings]
    assert at == sorted(at)
    # One picture on the first screen, the others below.
    first, second = (m.start() for m in list(re.finditer("<figure", page))[:2])
    assert first < at[0] and at[-1] < second
    said = [page.index(html.escape(each)) for each in diagnosis.verdict]
    assert len(said) == 3 and sorted(said) == said and said[-1] < first
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    expected = [caption for _, caption in draw(diagnosis.numbers).values()]
    assert [html.unescape(caption) for caption in captions] == expected
    assert len(svgs(page, "light")) == len(svgs(page, "dark")) == 9
    # Both similarity matrices are there.
    assert svgs(page)[-1].count("data:image/png") >= 2


@pytest.mark.parametrize(
    ("scheme", "theme", "other"),
    [
        ("light", figures.LIGHT, figures.DARK),
        ("dark", figures.DARK, figures.LIGHT),
    ],
)
def test_pictures_have_the_colours_of_the_pages_scheme(
    page, scheme, theme, other
):
    assert f"--ground: {theme.ground}; --ink: {theme.ink}" in page
    for svg in svgs(page, scheme):
        root = xml.etree.ElementTree.fromstring(svg)
        assert "viewBox" in root.attrib
        drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
        assert theme.ink in drawn
        assert not drawn & {other.ink, other.faint, *other.series}
        # The page shows through.
        assert not drawn & {figures.LIGHT.ground, figures.DARK.ground}


def test_a_dark_screen_prints_dark_ink_on_paper(page):
    # Browsers print the source of a <picture> that is on the screen.
    assert "<picture" not in page
    schemes = re.findall(r"@media [^{]*prefers-color-scheme[^{]*", page)
    assert schemes and all(each.startswith("@media screen") for each in schemes)
    assert "img.dark { display: none; }" in page


def test_wide_figures_have_the_pages_width_and_others_keep_theirs(page):
    widths = [
        float(re.search(r'width="([\d.]+)pt"', svg)[1]) for svg in svgs(page)
    ]
    classes = re.findall(r'<figure class="(\w+)"', page)
    assert classes == ["wide" if width > 400 else "narrow" for width in widths]
    assert classes[:2] == ["wide", "narrow"]


LONG = "a_name_of_a_method_that_goes_on_and_on_" * 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "figure",
    [
        figures.bars([LONG, "b", "É" * 40], [1.0] * 3, label=LONG),
        figures.lines({LONG: ([1], [1]), "b": ([1], [2])}, LONG, LONG),
        figures.scatter({LONG: ([1], [1]), "b": ([1], [2])}, LONG, LONG),
        figures.courses({LONG: [[1, 2]], "b": [[2, 3]]}, LONG, LONG),
        figures.densities([0, 1, 2], {LONG: [[1, 2]]}, "w", LONG, "share"),
    ],
)
def test_no_name_is_too_long_for_a_figure(figure):
    drawn = figure.to_matplotlib()
    drawn.draw_without_rendering()
    inside = drawn.bbox
    for axes in drawn.axes:
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        legend = axes.get_legend()
        texts += axes.get_yticklabels() + (legend.texts if legend else [])
        for text in filter(lambda each: each.get_text(), texts):
            box = text.get_window_extent()
            assert box.x0 > inside.x0 - 1 and box.x1 < inside.x1 + 1, text
            assert box.y0 > inside.y0 - 1 and box.y1 < inside.y1 + 1, text
    names = [t.get_window_extent() for t in drawn.axes[0].get_yticklabels()]
    names = sorted(names, key=lambda box: box.y0)
    for below, above in itertools.pairwise(names):
        assert below.y1 <= above.y0 + 2


def test_a_page_says_nothing_of_letters_that_its_reader_draws(recwarn):
    figures.bars(["知識"], [1.0]).to_svg()
    assert not recwarn.list


def test_series_differ_in_more_than_their_colours():
    names = "abc"
    drawn = figures.lines({n: ([1, 2], [3, 4]) for n in names}).to_matplotlib()
    assert len({line.get_linestyle() for line in drawn.axes[0].lines}) == 3
    drawn = figures.histograms([0, 1], {n: [1] for n in names}).to_matplotlib()
    assert len({each.get_linestyle() for each in drawn.axes[0].patches}) == 3
    drawn = figures.scatter({n: ([1], [1]) for n in names}).to_matplotlib()
    shapes = [each.get_paths()[0] for each in drawn.axes[0].collections]
    assert len({each.vertices.shape for each in shapes}) == 3


def test_captions_say_which_part_is_shown():
    x, labels, _ = data(120)
    found = diagnose(mlp(classes=250), (x, labels), superclasses=range(250))
    captions = {k: text for k, (_, text) in draw(found.numbers).items()}
    assert "Each cell is of 3 classes by 3." in captions["overview"]
    told = captions["class_similarity"]
    assert "84 classes, evenly chosen from 250" in told
    # Each class is a superclass: none can be most like one of its own.
    assert "superclass for" not in told
    assert "Bins end at -3 and 5" in captions["gradient_scale"]


def test_a_dollar_sign_is_a_dollar_sign():
    name = r"cost in $\frac{$ and $x$"
    for figure in (
        figures.bars([name], [1.0], [(0.5, 1.5)], name),
        figures.lines({name: ([1, 2], [3, 4]), "$": ([1], [1])}, name, name),
        figures.histograms([0, 1], {name: [1], "$": [1]}, name),
        figures.heatmaps({name: [[1.0]]}, label=name),
    ):
        root = xml.etree.ElementTree.fromstring(figure.to_svg())
        texts = ["".join(e.itertext()) for e in root.iter() if "text" in e.tag]
        assert name in texts
        assert figure.to_image().std() > 1


def test_a_disk_that_is_full_leaves_no_file(
    diagnosis, one_picture, tmp_path, monkeypatch
):
    path = tmp_path / "report.html"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"report\.html.*No space left"):
            diagnosis.save(path)
    assert not list(tmp_path.iterdir())
    diagnosis.save(path)
    assert "</html>" in path.read_text()


def test_where_nothing_can_be_written_is_said(diagnosis, one_picture, tmp_path):
    (tmp_path / "file").write_text("")
    for write, name in (
        (diagnosis.save, "report.html"),
        (diagnosis.to_tensorboard, "logs"),
    ):
        with pytest.raises(OSError, match=f"{name} can't be written. Received"):
            write(tmp_path / "file" / name)
        with pytest.raises(ValueError, match="an empty path"):
            write("")


def test_tensorflows_own_errors_name_the_folder(tmp_path):
    error = tf.errors.ResourceExhaustedError(None, None, "events; No space")
    with pytest.raises(OSError, match=r"logs can't be written.*No space"):
        with events.writing(tmp_path / "logs"):
            raise error


@pytest.mark.parametrize("kilobytes", [12, 28])
def test_events_that_were_not_written_whole_are_said(tmp_path, kilobytes):
    """TensorFlow says nothing of what its last buffers lose."""
    resource = pytest.importorskip("resource")
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="logs can't be written.*Free some"):
        try:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (kilobytes * 1024, allowed[1])
            )
            with events.writing(tmp_path / "logs"):
                for i in range(6):
                    text = np.random.default_rng(i).bytes(3000).hex()
                    tf.summary.text(str(i), text, step=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, allowed)


def test_events_are_written_after_a_fit_that_was_interrupted(tmp_path):
    """Keras's callback leaves its condition where nothing ends it."""
    with tf.summary.record_if(lambda: False), events.writing(tmp_path):
        tf.summary.scalar("kept", 1.0, step=0)
    (path,) = tmp_path.iterdir()
    # The first says which version the file is of.
    assert len(list(tf.data.TFRecordDataset(str(path)))) == 2


def test_a_report_in_a_missing_folder_and_at_a_broken_link(
    diagnosis, one_picture, tmp_path
):
    with pytest.raises(FileNotFoundError, match="Make its folder first"):
        diagnosis.save(tmp_path / "missing" / "report.html")
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "missing" / "report.html")
    with pytest.raises(FileExistsError, match="never overwrites"):
        diagnosis.save(link)
    assert link.is_symlink()


def test_the_home_folder_can_be_written_as_a_tilde(
    diagnosis, one_picture, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    diagnosis.save("~/report.html")
    assert (tmp_path / "report.html").exists()
    with pytest.raises(FileExistsError, match="Received"):
        diagnosis.save("~/report.html")
    diagnosis.to_tensorboard("~/logs")
    assert list((tmp_path / "logs").glob("events*"))


def test_a_file_is_never_overwritten(diagnosis, one_picture, tmp_path):
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
    page.add_figure(figures.bars(["<s>"], [1.0]), 'p < "q"')
    text = page.render()
    for raw in ("<i>", "<script>", "<b>", "<u>", "1 < 2", "p < q", "a < b"):
        assert raw not in text
    assert "[1, 2.5]" in text and 'alt="p &lt; &quot;q&quot;"' in text


def test_bars_have_their_lengths_and_intervals():
    figure = figures.bars(
        ["one", "two"], [1.0, -2.0], [(0.5, 1.5), (-3.0, -1.0)], "gain"
    )
    axes = figure.to_matplotlib().axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [1.0, -2.0]
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert (0.5, 1.5) in drawn and (-3.0, -1.0) in drawn
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two"]


def test_markdown_tables_are_what_they_are_given():
    rows = [
        {"method": "kd", "gain [b]": "+1 [0.5, 1.5]"},
        {"method": "a|\nb", "gain [b]": "[red]2[/red]"},
    ]
    assert tables.markdown(rows) == (
        "| method | gain [b]      |\n"
        "|--------|---------------|\n"
        "| kd     | +1 [0.5, 1.5] |\n"
        "| a\\| b  | [red]2[/red]  |"
    )
    assert tables.markdown([]) == ""
    long = "x" * 500
    assert f"| {long} |" in tables.markdown([{"name": long}])


@pytest.mark.parametrize("where", ["_is_jupyter", "terminal"])
def test_markdown_tables_are_text_wherever_they_are_made(monkeypatch, where):
    rows = [{"method": "kd", "gain": "+1"}]
    expected = tables.markdown(rows)
    if where == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "10")
    else:
        monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert tables.markdown(rows) == expected and "+1" in expected


def test_notebooks_show_what_was_found_and_not_its_numbers(diagnosis):
    assert "numbers" not in repr(diagnosis)
    assert str(diagnosis) in diagnosis._repr_markdown_()
    found = Attribution({"plain": {0: 0.1, 1: 0.3}, "kd": {0: 0.2, 1: 0.5}})
    assert found._repr_markdown_() == str(found)


@pytest.mark.parametrize(
    ("values", "plain", "points"),
    [
        # Two digits of half the interval's width.
        (
            (0.0143, -0.0147, 0.0434),
            "+0.014 [-0.015, +0.043]",
            "+1.4 [-1.5, +4.3]",
        ),
        ((0.1, -0.05, 0.25), "+0.10 [-0.05, +0.25]", "+10 [-5, +25]"),
        (
            (0.004, 0.003, 0.005),
            "+0.0040 [+0.0030, +0.0050]",
            "+0.40 [+0.30, +0.50]",
        ),
        # Nothing has the sign of a zero.
        (
            (-2.98e-8, -0.002, 0.002),
            "0.0000 [-0.0020, +0.0020]",
            "0.00 [-0.20, +0.20]",
        ),
        # Without an interval three digits.
        ((0.00278,), "+0.00278", "+0.278"),
        ((0.0,), "0", "0"),
        ((12345.6,), "+12346", "+1234560"),
        ((9.9999,), "+10.0", "+1000"),
        # What would have too many zeros.
        (
            (2e-10, -1e-10, 3e-10),
            "+2.0e-10 [-1.0e-10, +3.0e-10]",
            "+2.0e-08 [-1.0e-08, +3.0e-08]",
        ),
        (
            (1e12, 7.5e11, 1.25e12),
            "+1.00e+12 [+7.5e+11, +1.25e+12]",
            "+1.00e+14 [+7.5e+13, +1.25e+14]",
        ),
        ((math.nan,), "-", "-"),
    ],
)
def test_gains_have_the_digits_that_they_deserve(values, plain, points):
    assert numbers.PLAIN.span(*values) == plain
    assert numbers.POINTS.span(*values) == points


def test_scores_have_the_digits_of_the_interval_that_they_are_compared_by():
    assert numbers.POINTS.score(0.98765, 0.004) == "98.77"
    assert numbers.POINTS.score(0.98765, 0.04) == "98.8"
    assert numbers.POINTS.score(0.98765) == "98.8"
    assert numbers.PLAIN.score(117.377, 5.0) == "117.4"
    assert numbers.PLAIN.score(117.377) == "117"
    assert numbers.POINTS.titled("gain") == "gain, points"
    assert numbers.POINTS.titled("mean", "scores") == "mean, %"
    assert numbers.PLAIN.titled("gain") == "gain"


def test_p_values_are_written_with_three_decimals():
    written = [numbers.p_value(p) for p in (0.04567, 1.0, 0.0004, 0, math.nan)]
    assert written == ["0.046", "1.000", "<0.001", "<0.001", "-"]


def test_histograms_are_shares():
    figure = figures.histograms([0, 1, 2], {"a": [1, 3], "b": [0, 0]})
    axes = figure.to_matplotlib().axes[0]
    values = [patch.get_data().values for patch in axes.patches]
    np.testing.assert_allclose(values[0], [0.25, 0.75])
    np.testing.assert_allclose(values[1], [0, 0])


def test_tensorboard_holds_numbers_and_pictures(diagnosis, tmp_path):
    diagnosis.to_tensorboard(tmp_path)
    read = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    tags = read.Tags()["tensors"]

    def value(tag):
        return tensor_util.make_ndarray(read.Tensors(tag)[0].tensor_proto)

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
    assert "PROBLEM" in str(diagnosis)
