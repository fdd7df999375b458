"""Files of a teacher's largest log-probabilities, as arrays."""

import itertools
import json
import os

import numpy as np

from keras_kd import files
from keras_kd.precomputed import PADDING, TOP_IDS, TOP_LOG_PROBABILITIES

_PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_top_log_probabilities(
    path,
    ids="ids",
    log_probabilities="log_probabilities",
    k=None,
    rows=None,
):
    """Reads lists of (class id, log-probability) that another program wrote.

    A row of the file is an example. It holds a list for it, or, for text, one
    list a token. Lists may be of several lengths and in any order.

    Args:
        path: a Parquet file (.parquet; needs pyarrow, which
            `pip install "keras_kd[parquet]"` brings) or JSON lines (.jsonl).
        ids: name of the column (the key of a line) with the lists of ids; or
            `None`, of JSON lines, where `log_probabilities` holds dicts from
            ids to log-probabilities, in the place of lists. The ids of such a
            dict are numbers as text, as JSON has them, or "token_id:123"; its
            values are numbers, or objects with "logprob", as vLLM's
            `prompt_logprobs` are; `null` stands for no list. (vLLM's list at
            a token is of what that token could have been, so its first is
            `null`: with labels that are the next tokens, leave out the first
            list of each row and the last token of its input.)
        log_probabilities: name of the column with the lists of natural
            logarithms, at temperature 1.
        k: how many of the largest to keep; `None` for all.
        rows: the number of examples that there must be; `None` for any.

    Returns:
        Dict of NumPy arrays for y, beside the labels: "top_ids" (int32) and
        "top_log_probabilities" (float32), [rows, n] or [rows, tokens, n], with
        n = `k` or the length of the longest list. Shorter lists are filled up
        with the id -1, as are rows with fewer tokens.

    Raises:
        ImportError: for a Parquet file without pyarrow.
        ValueError: for a file of another number of rows, lists that don't
            match, ids that are not whole numbers, lines that are not JSON, or
            a `k` larger than the longest list.

    Example:
    >>> lists = kd.read_top_log_probabilities("teacher.parquet", k=32, rows=N)
    >>> distiller.compile("adam", kd.KDTopK(k=32, temperature=1.0))
    >>> distiller.fit(x, {"labels": labels, **lists})
    """
    path = files.user_path(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _PARQUET and ids is not None:
        columns = _read_parquet(path, (ids, log_probabilities))
    elif suffix in _JSON_LINES:
        columns = _read_json_lines(path, ids, log_probabilities)
    else:
        raise ValueError(
            "Lists are read from Parquet files, with the ids in a column of "
            f"their own, or from JSON lines. Received: {path} with ids={ids!r}."
            f" Give a file that ends in {_PARQUET[0]} or {_JSON_LINES[0]}."
        )
    found, values = columns
    _check_match(path, found, values)
    if rows is not None and len(found) != rows:
        raise ValueError(
            "A file of lists must have a row for each example. Received: "
            f"{len(found)} rows in {path} for {rows} examples. Give the data "
            "that the file was made of, in the same order."
        )
    _check_ids(path, found.flat)
    padded_ids = found.padded(PADDING, "int32")
    padded = values.padded(0.0, "float32")
    return _largest(padded_ids, padded, k, path)


class _Lists:
    """Lists of numbers, one a row or one a token.

    Attributes:
        per_row: [rows] tokens of each row; `None` where each row is a list.
        lengths: [lists] of each.
        flat: all numbers, one after the other.
    """

    def __init__(self, per_row, lengths, flat):
        self.per_row = None if per_row is None else np.asarray(per_row, "int64")
        self.lengths = np.asarray(lengths, "int64")
        self.flat = np.asarray(flat)

    def __len__(self):
        return len(self.lengths if self.per_row is None else self.per_row)

    def padded(self, filler, dtype):
        """[rows, n] or [rows, tokens, n], filled up."""
        lists = _fill(self.lengths, self.flat.astype(dtype), filler)
        if self.per_row is None:
            return lists
        return _fill(self.per_row, lists, filler)


def _fill(lengths, flat, filler):
    width = int(lengths.max(initial=0))
    full = np.full((len(lengths), width, *flat.shape[1:]), filler, flat.dtype)
    full[np.arange(width) < lengths[:, None]] = flat
    return full


def _check_match(path, ids, values):
    """Refuses lists of ids and of log-probabilities that differ in length."""
    pairs = [(ids.lengths, values.lengths)]
    if ids.per_row is not None and values.per_row is not None:
        pairs.insert(0, (ids.per_row, values.per_row))
    elif (ids.per_row is None) != (values.per_row is None):
        pairs.insert(0, (np.zeros(1), np.ones(1)))
    for one, other in pairs:
        if len(one) == len(other) and (one == other).all():
            continue
        n = min(len(one), len(other))
        place = int(np.argmax(one[:n] != other[:n])) if n else 0
        row = place
        if ids.per_row is not None and one is ids.lengths:
            row = int(np.searchsorted(np.cumsum(ids.per_row), place, "right"))
        raise ValueError(
            "A row must have as many ids as log-probabilities. Received: "
            f"lists of {one[place : place + 1].tolist()} ids and "
            f"{other[place : place + 1].tolist()} log-probabilities in row "
            f"{row} of {path}. Check what wrote it."
        )


def _check_ids(path, ids):
    """Refuses ids that converting to int32 would turn into other ids."""
    try:
        bad = ids[ids.astype("float64") != ids.astype("int32")]
    except (TypeError, ValueError):
        bad = ids
    if len(bad):
        raise ValueError(
            "Ids must be whole numbers, those of the student's classes. "
            f"Received: {_short(bad.tolist()[0])} in {path}. Check what wrote "
            "it, and that `ids` names the column of the ids."
        )


def _largest(ids, values, k, path):
    """The k largest of each list, in falling order."""
    width = ids.shape[-1]
    if k is not None and not 1 <= k <= width:
        raise ValueError(
            "`k` must be at least 1 and at most the length of the longest "
            f"list. Received: k={k} for lists of at most {width} in {path}. "
            "Use a smaller k, or let the teacher's program give more."
        )
    if k is not None and k < width:
        order = np.where(ids == PADDING, -np.inf, values)
        order = np.argsort(-order, axis=-1, kind="stable")[..., :k]
        ids, values = (
            np.take_along_axis(each, order, axis=-1) for each in (ids, values)
        )
    return {TOP_IDS: ids, TOP_LOG_PROBABILITIES: values}


def _read_parquet(path, names):
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files are read by pyarrow. Received: "
            f"{path} and no pyarrow. Install it with pip install "
            '"keras_kd[parquet]", or write JSON lines.'
        ) from error
    schema = pyarrow.parquet.read_schema(path)
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise _missing(path, missing[0], schema.names)
    table = pyarrow.parquet.read_table(path, columns=list(names))
    return [_of_arrow(table[name].combine_chunks(), pa) for name in names]


def _of_arrow(column, pa):
    """`_Lists` of a column of lists, or of lists of lists."""

    def lengths(array):
        found = array.value_lengths().fill_null(0)
        return found.to_numpy(zero_copy_only=False)

    if isinstance(column, pa.ChunkedArray):  # Of a table without rows.
        column = pa.concat_arrays(column.chunks)
    first, inner = lengths(column), column.flatten()
    if hasattr(inner, "value_lengths"):
        flat = inner.flatten().to_numpy(zero_copy_only=False)
        return _Lists(first, lengths(inner), flat)
    return _Lists(None, first, inner.to_numpy(zero_copy_only=False))


def _read_json_lines(path, ids, log_probabilities):
    found, values = [], []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    "Each line of a file of JSON lines must be a JSON object. "
                    f"Received: line {number + 1} of {path} ({error.msg} at "
                    f"column {error.colno}). Check what wrote it; a file that "
                    "was cut short lacks the end of its last line."
                ) from error
            for name in (ids, log_probabilities):
                if name is not None and name not in row:
                    raise _missing(f"line {number + 1} of {path}", name, row)
            given = row[log_probabilities]
            if ids is None:
                pairs = _of_dicts(given, f"line {number + 1} of {path}")
                found.append(pairs[0])
                values.append(pairs[1])
            elif isinstance(row[ids], list) and isinstance(given, list):
                found.append(row[ids])
                values.append(given)
            else:
                raise ValueError(
                    "A row holds a list of ids and one of log-probabilities. "
                    f"Received: {_short(row[ids])} and {_short(given)} in line "
                    f"{number + 1} of {path}. Give lists; dicts from ids to "
                    "log-probabilities are read with ids=None."
                )
    return _of_python(found), _of_python(values)


def _short(value):
    return str(value)[:80]


def _missing(where, name, found):
    return ValueError(
        f"Lists are read by the names of their columns. Received: {where} "
        f"without {name!r}, with {sorted(found)}. Say the names by `ids` and "
        "`log_probabilities`."
    )


def _of_dicts(given, where):
    """Ids and log-probabilities of a dict, or of a list of dicts."""
    if isinstance(given, list):
        pairs = [_of_dicts(each or {}, where) for each in given]
        return [one for one, _ in pairs], [other for _, other in pairs]
    try:
        ids = [int(str(key).removeprefix("token_id:")) for key in given]
        values = [
            each["logprob"] if isinstance(each, dict) else each
            for each in given.values()
        ]
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            "Without `ids`, log-probabilities must be dicts from token ids to "
            f"numbers. Received: {_short(given)} in {where}. Let the server "
            "give token ids in place of their text."
        ) from error
    return ids, values


def _of_python(rows):
    """`_Lists` of Python lists, or of lists of lists."""
    inner = list(itertools.chain.from_iterable(rows))
    if any(isinstance(each, list) for each in inner):
        # `null` is a list of none.
        inner = [each or [] for each in inner]
        flat = list(itertools.chain.from_iterable(inner))
        return _Lists(list(map(len, rows)), list(map(len, inner)), flat)
    return _Lists(None, list(map(len, rows)), inner)
