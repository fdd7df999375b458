"""What does a teacher know of ImageNet, and does its preprocessing fit?

Measures a teacher on ImageNet's images, diagnoses it, and draws which classes
are alike to its logit layer, sorted into clusters with their names:

    python tools/import_efficientnet_lite.py WEIGHTS.pth lite0.keras
    python recipes/imagenet_teacher.py lite0.keras \
        --data-dir tensorflow_datasets --picture classes.png

Takes a minute for a thousand images on two cores.
"""

import study.quiet  # noqa: F401

# isort: split

import click
import keras
import networks
import numpy as np
import scipy.cluster
import tensorflow_datasets as tfds
from data import images
from imagenet_resnet import centre_crop
from study.messages import errors_as_messages
from study.options import UserPath, positive
from study.run_folder import load_model

import keras_kd as kd
from keras_kd import similarity
from keras_kd.diagnosis import measures

# Clusters are joined while the mean cosine between them is at least this.
_COSINE = 0.1
# Cosines from here on have the full colour.
_BRIGHTEST = 0.3


@click.command(context_settings={"show_default": True})
@click.argument("teacher", type=UserPath(exists=True, dir_okay=False))
@click.option(
    "--data-dir",
    type=UserPath(exists=True, file_okay=False),
    help="Folder of TFDS data sets. [default: TFDS's own]",
)
@click.option("--split", default="validation", help="As TFDS names it.")
@click.option(
    "--image-size",
    type=positive,
    help="Of a teacher that takes any size. [default: the teacher's own]",
)
@click.option("--batch-size", type=positive, default=50)
@click.option(
    "--report", type=UserPath(dir_okay=False), help="HTML file to write."
)
@click.option(
    "--picture", type=UserPath(dir_okay=False), help="PNG file to write."
)
@click.option("--clusters", type=positive, default=12, help="How many to name.")
@errors_as_messages()
def main(
    teacher, data_dir, split, image_size, batch_size, report, picture, clusters
):
    """Says what the model in the file TEACHER knows of ImageNet."""
    builder = images.prepared_builder(
        "imagenet2012",
        data_dir,
        "put ILSVRC2012_img_val.tar into the folder's downloads/manual/",
    )
    model = on_pixels(load_model(teacher, "TEACHER"), image_size)
    data = centres(builder, split, model.input_shape[1], batch_size)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "sparse_categorical_accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"),
        ],
    )
    scores = model.evaluate(data, verbose=0, return_dict=True)
    click.echo(
        f"{split} at {model.input_shape[1]} pixels: top-1 "
        f"{scores['sparse_categorical_accuracy']:.1%}, top-5 "
        f"{scores['top5']:.1%}, cross-entropy {scores['loss']:.3f}"
    )
    diagnosis = kd.diagnose(model, data)
    click.echo(f"\n{diagnosis}\n")
    if report:
        diagnosis.save(report)
        click.echo(f"Report: {report}")
    show_classes(
        model, names(builder.info.features["label"]), clusters, picture
    )


def on_pixels(model, image_size=None):
    """A teacher of pixels; of KerasHub with its preprocessing built in."""
    if networks.is_hub_classifier(model):
        return networks.on_pixels(model, image_size, model.name)
    own = model.input_shape[1]
    if own is None or image_size not in (None, own):
        raise ValueError(
            "A teacher that is made for one image size takes no other, and of "
            f"another one the size must be said. Received: {model.name!r}, "
            f"which takes {own} pixels, and --image-size {image_size}. Set it, "
            "or leave it out."
        )
    return model


def centres(builder, split, size, batch_size):
    """Batches of the centres of a split's images, and their labels."""
    if split not in builder.info.splits:
        raise ValueError(
            "--split must be one of the data set's. Received: "
            f"{split!r}. Choose among {', '.join(builder.info.splits)}."
        )
    dataset = builder.as_dataset(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return dataset.map(
        lambda features: (
            centre_crop(features["image"], size),
            features["label"],
        ),
        num_parallel_calls=2,
    ).batch(batch_size)


def names(label):
    """The name of each class, by its WordNet id in TFDS's labels."""
    from keras_hub.utils import decode_imagenet_predictions

    known = {
        synset: name
        for ((synset, name, _),) in decode_imagenet_predictions(
            np.eye(1000), top=1, include_synset_ids=True
        )
    }
    return [known.get(each, each).replace("_", " ") for each in label.names]


# -- which classes are alike ---------------------------------------------------


def show_classes(model, class_names, count, picture):
    """Prints the largest clusters of classes, and draws them into a file."""
    cosines = similarity.class_similarity(similarity.logit_weights(model))
    order, clusters = clusters_of(cosines)
    largest = sorted(clusters, key=len, reverse=True)[:count]
    for members in largest:
        click.echo(
            f"{len(members)} classes, cosine "
            f"{inner_cosine(cosines, members):.2f}: "
            + ", ".join(class_names[i] for i in members)
        )
    if picture:
        draw(cosines, order, largest, class_names).savefig(picture, dpi=110)
        click.echo(f"Picture: {picture}")


def clusters_of(cosines):
    """Classes in an order in which similar ones are neighbours.

    Args:
        cosines: [classes, classes] array.

    Returns:
        (order, clusters): list of class ids; list of the lists of those in a
        row that are alike.
    """
    tree = measures.cluster_tree(cosines)
    order = scipy.cluster.hierarchy.leaves_list(tree).tolist()
    numbers = scipy.cluster.hierarchy.fcluster(
        tree, 1 - _COSINE, criterion="distance"
    )
    clusters = {}
    for each in order:
        clusters.setdefault(numbers[each], []).append(each)
    return order, list(clusters.values())


def inner_cosine(cosines, members):
    """The mean cosine of two different classes of a cluster, or NaN of one."""
    if len(members) < 2:
        return np.nan
    block = cosines[np.ix_(members, members)]
    return block[~np.eye(len(members), dtype=bool)].mean()


def draw(cosines, order, clusters, class_names):
    """A matplotlib figure of the sorted cosines: of all classes, and closer.

    Args:
        cosines: [classes, classes] array.
        order: list of class ids; see `clusters_of`.
        clusters: lists of class ids, those to name.
        class_names: list of strings.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    clusters = sorted(clusters, key=lambda each: order.index(each[0]))
    shown = [each for members in clusters for each in members]
    figure, (whole, close) = plt.subplots(
        1, 2, figsize=(12.5, 4.2), layout="constrained"
    )
    whole.set_title(f"all {len(order):,} classes", fontsize=10)
    close.set_title(f"the {len(clusters)} largest clusters", fontsize=10)
    for axis, chosen in ((whole, order), (close, shown)):
        image = axis.imshow(
            cosines[np.ix_(chosen, chosen)],
            cmap="RdBu_r",
            vmin=-_BRIGHTEST,
            vmax=_BRIGHTEST,
        )
        axis.set_xticks([])
        axis.set_yticks([])
    ends = np.cumsum([len(each) for each in clusters])
    starts = ends - [len(each) for each in clusters]
    for start, members in zip(starts, clusters, strict=True):
        for axis, corner in ((whole, order.index(members[0])), (close, start)):
            axis.add_patch(
                plt.Rectangle(
                    (corner - 0.5, corner - 0.5),
                    len(members),
                    len(members),
                    fill=False,
                    lw=0.8,
                )
            )
    close.yaxis.tick_right()
    close.set_yticks(
        (starts + ends - 1) / 2,
        [label_of(cosines, each, class_names) for each in clusters],
        fontsize=9,
    )
    close.tick_params(length=0)
    figure.colorbar(
        image, ax=whole, location="left", shrink=0.6, label="cosine"
    )
    return figure


def label_of(cosines, members, class_names):
    """The names of a cluster's most typical classes, and how many it has."""
    typical = np.argsort(-cosines[np.ix_(members, members)].mean(axis=1))[:3]
    listed = ", ".join(class_names[members[i]] for i in sorted(typical))
    return f"{listed}, … ({len(members)})"


if __name__ == "__main__":
    main()
