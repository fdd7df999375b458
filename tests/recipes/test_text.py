"""Text: sources, splits, encoding and segments."""

import hashlib

import numpy as np
import pytest
from data import text as text_data


def write_folder(folder, prefix="ptb.", parts=text_data.PARTS):
    folder.mkdir(exist_ok=True)
    for part in parts:
        text = f" the {part} cat sat \n on the N mat \n"
        (folder / f"{prefix}{part}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("prefix", ["ptb.", ""])
def test_a_folder_is_read_in_mikolovs_form(tmp_path, prefix):
    words = text_data.read_folder(write_folder(tmp_path, prefix)).words()
    assert (
        words["valid"] == "the valid cat sat <eos> on the N mat <eos>".split()
    )


def test_a_byte_order_mark_is_not_a_word(tmp_path):
    for part in text_data.PARTS:
        (tmp_path / f"{part}.txt").write_bytes(b"\xef\xbb\xbfa b\n")
    assert text_data.load(tmp_path).vocabulary == ["<unk>", "<eos>", "a", "b"]


def test_a_text_that_is_not_in_utf_8_is_named(tmp_path):
    for part in text_data.PARTS:
        (tmp_path / f"{part}.txt").write_text("a b\n")
    (tmp_path / "valid.txt").write_bytes("a café\n".encode("latin1"))
    with pytest.raises(ValueError, match="valid.txt must be.*byte 0xe9,"):
        text_data.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    folder = write_folder(tmp_path, parts=("train", "test"))
    with pytest.raises(FileNotFoundError) as caught:
        text_data.load(data_dir=folder)
    message = str(caught.value)
    for word in ("ptb.valid.txt", "ptb.train.txt", "Received", "--data-dir"):
        assert word in message
    with pytest.raises(FileNotFoundError, match="no such folder"):
        text_data.read_folder(tmp_path / "absent")


@pytest.fixture(scope="module")
def python_documents():
    return list(text_data._python_documents())


def text_of(documents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_data, "_python_documents", lambda: documents)
        return text_data.python_text().words()


@pytest.fixture(scope="module")
def python_text(python_documents):
    return text_of(python_documents)


def paragraphs(words):
    text = " ".join(words)
    return [p.strip() for p in text.split(text_data.EOS) if p.strip()]


def test_no_paragraph_of_the_python_text_is_in_two_places(python_text):
    found = [p for part in python_text.values() for p in paragraphs(part)]
    assert len(found) == len(set(found))


def test_the_python_text_is_large_enough_and_lower_case(python_text):
    sizes = {part: len(words) for part, words in python_text.items()}
    assert sizes["test"] >= 10_000 and sizes["valid"] >= 10_000
    assert sizes["train"] >= 100_000
    assert not any(
        c.isupper() for w in python_text["test"] for c in w if w != "N"
    )


def test_the_python_text_is_the_same_in_any_order(
    python_documents, python_text
):
    assert text_of(python_documents[::-1]) == python_text


def test_the_vocabulary_is_of_the_training_text_by_frequency():
    words = "b a b <unk> c c b".split()
    assert text_data.make_vocabulary(words) == ["<unk>", "b", "c", "a"]
    assert text_data.make_vocabulary(words, 2) == ["<unk>", "b"]
    ids = text_data.encode(["c", "new", "<unk>"], ["<unk>", "b", "c"])
    assert ids.tolist() == [2, 0, 0]


@pytest.mark.parametrize("tokens", [41, 42, 57, 100, 1001])
@pytest.mark.parametrize(("batch", "steps"), [(4, 5), (8, 3), (1, 7)])
def test_each_token_is_predicted_once_from_the_one_before(tokens, batch, steps):
    ids = np.arange(tokens)
    pairs, streams = [], [[] for _ in range(batch)]
    for x, y, weight in text_data.segments(ids, batch, steps):
        assert x.shape == (batch, steps)
        counted = weight.numpy() > 0
        pairs += list(zip(x.numpy()[counted], y.numpy()[counted], strict=True))
        for row in range(batch):
            streams[row] += x.numpy()[row][counted[row]].tolist()
    assert sorted(pairs) == [(i, i + 1) for i in range(tokens - 1)]
    for stream in streams:
        # A row continues where the batch before ended.
        start = stream[0] if stream else 0
        assert stream == list(range(start, start + len(stream)))


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="5 tokens for 8 streams"):
        text_data.segments(np.arange(5), 8, 3)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder in place of PTB's public address, and an empty cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    words = ["a word"] * 20
    shipped = text_data.Documents("CPython's.", str.split, *[words] * 3)
    monkeypatch.setattr(text_data, "python_text", lambda: shipped)
    folder = write_folder(tmp_path / "served")
    return folder, folder.as_uri()


def test_download_checks_the_files_and_is_used_from_then_on(
    served, monkeypatch
):
    folder, url = served
    assert "CPython" in text_data.load(tokens=100).source
    sums = {
        part: hashlib.sha256(
            (folder / f"ptb.{part}.txt").read_bytes()
        ).hexdigest()
        for part in text_data.PARTS
    }
    monkeypatch.setattr(text_data, "PTB_SHA256", sums)
    corpus = text_data.load(download=True, ptb_url=url)
    assert len(corpus.test) == 10
    again = text_data.load()
    assert again.vocabulary == corpus.vocabulary
    assert "CPython" not in again.source


def test_a_download_that_is_not_ptb_names_the_ways_to_continue(served):
    with pytest.raises(OSError) as caught:
        text_data.load(download=True, ptb_url=served[1])
    for word in ("ptb.train.txt", "--data-dir", "--download", "CPython"):
        assert word in str(caught.value)
    assert "CPython" in text_data.load(tokens=100).source


def test_two_sources_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one source"):
        text_data.load(data_dir=tmp_path, download=True)
