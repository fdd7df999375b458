"""Which classes are alike to a teacher; the recipe on generated images."""

import imagenet_teacher
import keras
import numpy as np
import pytest
from processes import finish, refused
from test_imagenet_resnet import store


def planted(groups=(5, 1, 8), seed=0):
    """Rows of a logit layer with groups of classes, in a random order."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(len(groups)), groups))
    centres = random.normal(size=(len(groups), 64))
    rows = centres[group] + 0.8 * random.normal(size=(len(group), 64))
    return group, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_groups_of_classes_are_found_side_by_side():
    group, rows = planted()
    cosines = rows @ rows.T
    order, clusters = imagenet_teacher.clusters_of(cosines)
    assert sorted(order) == list(range(14))
    found = sorted(sorted(each) for each in clusters)
    expected = [np.flatnonzero(group == i).tolist() for i in range(3)]
    assert found == sorted(expected)
    for members in clusters:
        first = order.index(members[0])
        assert order[first : first + len(members)] == members
    eight = np.flatnonzero(group == 2)
    pairs = [cosines[i, j] for i in eight for j in eight if i != j]
    mean = imagenet_teacher.inner_cosine(cosines, eight.tolist())
    assert mean == pytest.approx(np.mean(pairs))
    assert np.isnan(imagenet_teacher.inner_cosine(cosines, [3]))


def test_a_cluster_is_labelled_with_its_most_typical_classes():
    cosines = np.array(
        [[1, 0.1, 0.8, 0.7], [0.1, 1, 0.2, 0.1], [0.8, 0.2, 1, 0.9]]
        + [[0.7, 0.1, 0.9, 1]]
    )
    label = imagenet_teacher.label_of(cosines, [1, 0, 3, 2], list("abcd"))
    assert label == "a, d, c, … (4)"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    random = np.random.default_rng(0)
    images = [
        (
            i,
            {
                "image": np.full((40, 50, 3), 40 * i, "uint8"),
                "label": i % 4,
                "file_name": f"{i}.JPEG",
            },
        )
        for i in random.permutation(6).tolist()
    ]
    store(folder, validation=images)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Of gray images, in which it sees class 0 below 20 and class 1 above."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    layer = keras.layers.Dense(4)
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), layer]
    )
    kernel = np.zeros((3, 4))
    kernel[0], bias = [0, 1, -1, -2], [20, 0, 0, 0]
    kernel[1, 2] = 0.5
    kernel[2] = 0.01
    layer.set_weights([kernel, np.array(bias)])
    model.save(path)
    return path


def test_a_teacher_is_measured_diagnosed_and_drawn(data_dir, teacher, tmp_path):
    output = finish(
        imagenet_teacher,
        *(teacher, "--data-dir", data_dir, "--batch-size", 4),
        *("--report", tmp_path / "d.html", "--picture", tmp_path / "c.png"),
    )
    # Shades 0 to 200 in steps of 40, of the labels 0, 1, 2, 3, 0, 1: it sees a
    # 0, then ones.
    assert "validation at 32 pixels: top-1 50.0%, top-5 100.0%" in output
    assert "tench" in output and "tiger shark" in output
    assert (tmp_path / "d.html").stat().st_size > 1000
    assert (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "tests"), "Received: 'tests'. Choose among validation"),
        (("--image-size", 40), "takes 32 pixels, and --image-size 40"),
    ],
)
def test_bad_options_are_refused(data_dir, teacher, arguments, message):
    found = refused(
        imagenet_teacher, teacher, "--data-dir", data_dir, *arguments
    )
    assert message in found
