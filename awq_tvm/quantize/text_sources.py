"""Where calibration text is read from: plain text, JSON lines, data sets of the hub, Python's own help."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.errors import ResourceError, UsageError

# More text than this is read in pieces spread over the file; 16 samples of 512 tokens need about 32 KB.
_LARGEST_TEXT = 8 << 20
_PIECES = 64
# Longer than any document that is of use; a file without line ends is not read whole.
_LONGEST_LINE = 16 << 20


def read_text(path: Path) -> str:
    """A UTF-8 text, or 64 pieces spread evenly over it where it is larger than 8 MiB.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= _LARGEST_TEXT:
                return file.read().decode("utf-8")
            pieces = []
            for index in range(_PIECES):
                file.seek(size * index // _PIECES)
                # A piece may begin and end inside a character or a word: both ends are cut at a space.
                piece = file.read(_LARGEST_TEXT // _PIECES)
                pieces.append(piece[piece.find(b" ") + 1 : piece.rfind(b" ")].decode("utf-8"))
            return "\n".join(pieces)
    except UnicodeDecodeError as error:
        raise UsageError(
            "The text is not UTF-8",
            where=str(path),
            why=f"byte {error.start} cannot be decoded",
            fix="give a plain text file in UTF-8",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def read_json_lines(path: Path, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, in random order; empty lines are passed over.

    Only the places of the lines are kept in memory.

    Args:
        path: UTF-8.
        seed: of the order.

    Yields:
        Where the object is, for errors, as "name.jsonl, line 7"; and the object.

    Raises:
        UsageError: the file cannot be read, or a line is longer than 16 MiB or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            starts = [0]
            while line := file.readline(_LONGEST_LINE + 1):
                if len(line) > _LONGEST_LINE:
                    raise UsageError(
                        "A line of the calibration file is too long",
                        where=f"{path.name}, line {len(starts)}",
                        why=f"at most {_LONGEST_LINE} bytes are read",
                        fix="write one document a line, or name a plain text .txt",
                    )
                starts.append(file.tell())
            for index in np.random.default_rng(seed).permutation(len(starts) - 1).tolist():
                file.seek(starts[index])
                line = file.readline()
                if line.strip():
                    where = f"{path.name}, line {index + 1}"
                    yield where, _json_object(line, where)
    except OSError as error:
        raise _unreadable(path, error) from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"found a value of type {type(value).__name__}, needed an object")
    except (ValueError, RecursionError) as error:
        raise UsageError(
            "A line of the calibration file is not a JSON object",
            where=where,
            why=str(error)[:200],
            fix='write lines like {"text": "..."}, in UTF-8; a plain text should not be named .jsonl',
        ) from None
    return value


def read_data_set(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set on the hub, its training split, streamed in its own order.

    Args:
        name: "org/name", with "@config" behind it where the data set has several.

    Yields:
        Where the row is, for errors, as "hf:org/name, row 7"; and the row.

    Raises:
        ResourceError: the `datasets` package is missing, or the data set cannot be reached.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise ResourceError(
            "Data sets of the hub need a package that is not installed",
            where=f"hf:{name}",
            why="there is no package named datasets",
            fix="pip install datasets, or --calibration default",
        ) from None
    path, _, config = name.partition("@")
    try:
        rows = iter(datasets.load_dataset(path, config or None, split="train", streaming=True))
        for index, row in enumerate(rows):
            yield f"hf:{name}, row {index + 1}", row
    except (
        Exception
    ) as error:  # the library wraps network, format and name errors in classes of many packages
        raise ResourceError(
            "The data set cannot be read",
            where=f"hf:{name}",
            why=f"{type(error).__name__}: {error}",
            fix="check the name and the connection, or --calibration default",
        ) from error


def python_help_topics() -> str:
    """English prose that every Python carries: the topics behind `help("...")`, about 700 KB.

    Raises:
        ResourceError: this Python was stripped of them.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise ResourceError(
            "The default calibration text is missing",
            why="this Python has no pydoc_data.topics",
            fix="--calibration FILE",
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError("The text cannot be read", where=str(path), why=error.strerror or str(error))
