"""The ImageNet recipe on generated images in TFDS's own files."""

import functools
import inspect

import imagenet_resnet
import keras
import keras_hub
import networks
import numpy as np
import processes
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from kerashub_tasks import resnet_backbone
from processes import losses, results

finish = functools.partial(processes.finish, imagenet_resnet)
refused = functools.partial(processes.refused, imagenet_resnet)


def examples(count, seed):
    """Pictures whose shade tells the class."""
    random = np.random.default_rng(seed)
    for i in range(count):
        height, width = random.integers(40, 60, 2)
        label = 200 * int(random.integers(0, 5))
        noise = random.integers(0, 56, (height, width, 3))
        image = (label // 4 + noise).astype("uint8")
        yield i, {"image": image, "label": label, "file_name": f"{i}.JPEG"}


def store(folder, **splits):
    """Writes ImageNet as TFDS has it, of lists of (key, example)."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version="5.1.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
        ),
        split_datasets=splits,
        data_dir=folder,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    store(
        folder,
        train=list(examples(50, 0)),
        validation=list(examples(22, 1)),
    )
    return folder


def small_network(input_tensor, classes, **_):
    """Stands in for a network of keras.applications."""
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(input_tensor)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    (inputs,) = keras.utils.get_source_inputs(input_tensor)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


def hub_classifier(classes=1000, size=32, image_shape=(None, None, 3)):
    """A small classifier of KerasHub, with a preprocessor of its own."""
    backbone = resnet_backbone(image_shape)
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(size, size),
        scale=[1 / 50, 1 / 60, 1 / 70],
        offset=[-2.0, -1.5, -1.0],
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone,
        classes,
        keras_hub.models.ResNetImageClassifierPreprocessor(converter),
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    hub_classifier().save(path)
    return path


def validation_images(data_dir):
    """The centres of the pictures, and their labels."""
    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    dataset = builder.as_dataset(
        split="validation", decoders={"image": tfds.decode.SkipDecoding()}
    )
    pairs = [
        (imagenet_resnet.centre_crop(each["image"], 32), each["label"])
        for each in dataset
    ]
    return tuple(np.stack(parts) for parts in zip(*pairs, strict=True))


def test_the_whole_recipe_with_all_options(
    data_dir, teacher, tmp_path, mirrored, monkeypatch
):
    monkeypatch.setattr(keras.applications, "ResNet50", small_network)
    arguments = [
        *(
            "--data-dir",
            data_dir,
            "--teacher",
            teacher,
            "--log-dir",
            tmp_path / "run",
        ),
        *"--student-network ResNet50 --image-size 32 --epochs 2".split(),
        *"--batch-size 16 --hold-out 2 --warmup-epochs 1".split(),
        *"--decay step --learning-rate 0.1 --momentum 0.8".split(),
        *"--weight-decay 1e-5 --shuffle-buffer 16 --seed 2".split(),
        *("--mixed-precision", *mirrored),
        *"--steps-per-execution 2 --validate-every 2".split(),
        *"--weight 0.4 --temperature 3 --views 2".split(),
        *losses("kd_topk"),
    ]
    output = finish(*arguments)
    # Half of the classes at four bytes, and the tail.
    assert "48 examples, 2 views, 2,004 bytes each" in output
    found = results(tmp_path / "run")
    assert set(found) == {"teacher", "student-kd_topk"}
    images, labels = validation_images(data_dir)
    for name, result in found.items():
        assert 0 <= result["held_out_accuracy"] <= 1
        path = tmp_path / "run" / f"{name}.keras"
        model = keras.models.load_model(
            teacher if name == "teacher" else path, compile=False
        )
        logits = model.predict(images, verbose=0)
        top5 = np.argsort(-logits, axis=1)[:, :5] == labels[:, None]
        # Half precision may turn an example or two.
        top1 = top5[:, 0].mean()
        assert result["valid_accuracy"] == pytest.approx(top1, abs=0.1)
        assert result["valid_top5_accuracy"] == pytest.approx(
            top5.any(axis=1).mean(), abs=0.1
        )
    # Of the student, the last one.
    assert model.input_shape == (None, 32, 32, 3)
    assert "Epoch" not in finish(*arguments)


@pytest.mark.parametrize(
    ("network", "preprocess"),
    [
        ("ResNet50", keras.applications.resnet.preprocess_input),
        ("ResNet50V2", keras.applications.resnet_v2.preprocess_input),
        ("MobileNetV2", keras.applications.mobilenet_v2.preprocess_input),
    ],
)
def test_a_network_has_its_own_preprocessing(
    network, preprocess, tmp_path, monkeypatch
):
    """Also after it was saved. What comes after it is of no matter here."""
    random = np.random.default_rng(0)
    pixels = random.uniform(0, 255, (2, 32, 32, 3)).astype("float32")

    def bare(input_tensor, **arguments):
        assert arguments["classifier_activation"] is None
        (inputs,) = keras.utils.get_source_inputs(input_tensor)
        return keras.Model(inputs, keras.layers.Flatten()(input_tensor))

    monkeypatch.setattr(keras.applications, network, bare)
    model = networks.application(network, 32, 10, name="teacher")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = preprocess(pixels.copy()).reshape(2, -1)
    for each in (model, loaded):
        np.testing.assert_allclose(
            each.predict(pixels, verbose=0), expected, rtol=1e-4, atol=1e-4
        )


def test_a_network_of_keras_gives_logits():
    model = networks.application("MobileNetV2", 32, 10)
    assert model.output_shape == (None, 10)
    assert model.layers[-1].activation is keras.activations.linear


def test_every_network_is_one_of_keras_with_its_module():
    """And the other way round: each class of keras.applications is here."""
    classes = {n for n in dir(keras.applications) if n[0].isupper()}
    assert set(networks.NETWORKS) == classes
    assert set(networks.PRETRAINED) < classes
    needed = {"input_tensor", "input_shape", "weights", "classes"}
    for name, module in networks.NETWORKS.items():
        parameters = inspect.signature(getattr(keras.applications, name))
        assert needed | {"classifier_activation"} <= set(parameters.parameters)
        assert callable(getattr(keras.applications, module).preprocess_input)


def test_a_classifier_of_kerashub_reads_pixels():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    classifier = hub_classifier(classes=3)
    prepared = pixels / [50, 60, 70] - [2, 1.5, 1]
    model = networks.on_pixels(classifier, name="teacher")
    assert model.name == "teacher" and model.input_shape == (None, 32, 32, 3)
    np.testing.assert_allclose(
        model.predict(pixels, verbose=0), classifier(prepared), atol=1e-5
    )
    assert networks.on_pixels(classifier, 40).input_shape[1:] == (40, 40, 3)


def test_a_classifier_of_kerashub_that_does_not_fit_is_refused():
    fixed = hub_classifier(image_shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"takes \(32, 32\).*\(40, 40\)"):
        networks.on_pixels(fixed, 40)
    fixed.preprocessor = None
    with pytest.raises(ValueError, match="without an image converter"):
        networks.on_pixels(fixed)


def test_a_preset_of_kerashub_is_a_student_with_random_weights(tmp_path):
    saved = hub_classifier(classes=3)
    folder = tmp_path / "preset"
    saved.save_to_preset(folder)
    networks.check_network(str(folder))
    student = networks.untrained(str(folder), 24, 5, name="student")
    assert student.name == "student"
    assert student.input_shape == (None, 24, 24, 3)
    assert student.output_shape == (None, 5)
    kernels = [
        next(w.numpy() for w in model.trainable_weights if "conv" in w.path)
        for model in (saved, student)
    ]
    assert kernels[0].shape == kernels[1].shape
    assert not np.array_equal(*kernels)
    (folder / "config.json").write_text("{}")
    with pytest.raises(OSError, match="preset could not be read. Received"):
        networks.untrained(str(folder), 24, 5)


def test_networks_are_known_by_name():
    for name in ("MobileNetV3Small", "EfficientNetLite2", "resnet_18_imagenet"):
        networks.check_network(name)
    with pytest.raises(ValueError, match="Received: 'ResNet51'. Choose"):
        networks.check_network("ResNet51")


def test_crops_are_parts_of_the_picture():
    """Of a picture whose red is its row and whose green is its column."""
    rows, columns = np.mgrid[0:100, 0:160]
    picture = np.stack([rows, columns, np.zeros_like(rows)], -1) + 40
    encoded = tf.io.encode_jpeg(
        picture.astype("uint8"), quality=100, chroma_downsampling=False
    )
    whole = tf.io.decode_jpeg(encoded).numpy().astype("float32")
    centre = imagenet_resnet.centre_crop(encoded, 87).numpy()
    np.testing.assert_allclose(centre, whole[6:93, 36:123], atol=1)
    corners, directions = set(), set()
    for i in range(20):
        crop = imagenet_resnet.random_crop(encoded, 32, (3, i)).numpy() - 40
        assert crop.shape == (32, 32, 3)
        across = crop[16, :, 1]
        assert crop[0, 16, 0] <= crop[-1, 16, 0] + 2
        directions.add(across[-1] > across[0])
        corners.add((round(crop[0, 0, 0]), round(across.min())))
    assert directions == {True, False} and len(corners) > 10


def test_training_data_and_the_cache_see_the_same_kind_of_pictures(data_dir):
    """Pictures with their own labels, each time in another crop."""
    study = object.__new__(imagenet_resnet.ImageNetStudy)
    study.builder = tfds.builder("imagenet2012", data_dir=data_dir)
    study.train_size = 48
    study.options = dict(
        image_size=32,
        batch_size=16,
        shuffle_buffer=16,
        seed=2,
        mixup=None,
        cutmix=None,
    )
    labels = []
    for x, y in study.training_data("student", 0).take(6):
        assert x.shape == (16, 32, 32, 3) and x.dtype == "float32"
        # The shade tells the class.
        shade = x.numpy().mean((1, 2, 3)) - 28
        np.testing.assert_allclose(shade, y.numpy() // 4, atol=6)
        labels += y.numpy().tolist()
    in_order = [int(label) for _, label in study.cached_data()]
    assert set(labels) == set(in_order) and labels != in_order
    encoded = next(iter(study.cached_data()))[0]
    first, second, again = (
        study.augment()(encoded, (2, i)).numpy() for i in (0, 1, 0)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("decay", ["cosine", "step"])
def test_the_rate_rises_then_falls(decay):
    options = {
        **dict(decay=decay, epochs=90, warmup_epochs=5, learning_rate=0.1),
        **dict(batch_size=512, momentum=0.9),
    }

    class Schedule(imagenet_resnet.ImageNetStudy):
        def __init__(self):
            self.options = options

        def steps_per_epoch(self, role):
            return 100

    rate = Schedule().optimizer("student")._learning_rate
    rates = [float(rate(step)) for step in range(0, 9001, 50)]
    assert rates[0] < 0.005
    assert max(rates) == pytest.approx(0.2, rel=1e-3)
    assert 9 <= int(np.argmax(rates)) <= 11
    assert rates[-1] < 0.001
    assert np.all(np.diff(rates[11:]) <= 1e-9)
    assert float(rate(250)) == pytest.approx(0.1, rel=0.05)
    if decay == "step":
        assert float(rate(4000)) == pytest.approx(0.02)


def test_a_data_set_that_is_not_there_is_refused(tmp_path):
    message = refused("--data-dir", tmp_path)
    for word in ("imagenet2012 could not be prepared", "downloads/manual"):
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "48"], "(48, 48, 3)"),
        (["--student", "ResNet51"], "Received: 'ResNet51'"),
        (["--image-size", "32", "--limit-train", "9"], "9 training images"),
        (
            ["--image-size", "32", "--epochs", "4", "--batch-size", "8"],
            "--warmup-epochs 5 of --epochs 4",
        ),
    ],
)
def test_bad_options_are_refused(
    data_dir, teacher, tmp_path, arguments, message
):
    found = refused(
        *("--data-dir", data_dir, "--teacher", teacher, "--batch-size", 16),
        *("--student", "MobileNetV2", *arguments),
        *("--log-dir", tmp_path / "run"),
    )
    assert message in found


def test_weights_that_cannot_be_downloaded_are_said(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(networks, "application", fail)
    with pytest.raises(OSError, match="no route to host.*--teacher"):
        networks.pretrained("ResNet152", 224)
