"""Writes text with a large vocabulary: docstrings of installed packages.

    python tools/package_text.py text && \
        python recipes/ptb_lstm.py --data-dir text --vocabulary 50000

Words are what stands between spaces, so that a million of them are 50,000
different ones. What is installed decides the text.
"""

import pathlib
import sys
import sysconfig

import click

sys.path.append(str(pathlib.Path(__file__).parents[1] / "recipes"))

import study.quiet  # noqa: E402, F401  Before TensorFlow.
from data import text  # noqa: E402

from keras_kd import files  # noqa: E402


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(exists=False))
@click.option(
    "--packages",
    type=click.Path(exists=True, file_okay=False),
    default=sysconfig.get_paths()["purelib"],
    show_default="where packages are installed",
    help="Folder whose Python files are read.",
)
def main(folder, packages):
    """Writes train.txt, valid.txt and test.txt to the new FOLDER."""
    folder = pathlib.Path(folder)
    if folder.exists():
        raise click.ClickException(
            f"The folder must be new. Received: {folder}, which is there "
            "already. Choose another one, or remove it."
        )
    paths = sorted(pathlib.Path(packages).rglob("*.py"))
    with click.progressbar(paths, label="Reading packages") as bar:
        documents = (doc for path in bar for doc in text.docstrings(path))
        parts = text.split_paragraphs(documents, str.split)
    folder.mkdir(parents=True)
    for part, paragraphs in parts.items():
        lines = (" ".join(paragraph.split()) for paragraph in paragraphs)
        data = "\n".join(lines) + "\n"
        files.write_whole(folder / f"{part}.txt", data)
        click.echo(f"{part}: {len(paragraphs):,} paragraphs")


if __name__ == "__main__":
    main()
