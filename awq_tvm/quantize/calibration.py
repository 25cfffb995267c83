"""Calibration text as token samples: a file, a data set of the hub, or what is at hand without either."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import CheckpointError, ResourceError, UsageError
from awq_tvm.progress import ProgressCallback, ignore_progress
from awq_tvm.quantize.self_text import sample_from_model

# Above this many weights the default text is not the model's own: it would take too long and too much memory.
_MOST_WEIGHTS_THAT_WRITE = 10**9

# More text than this is read in pieces spread over the file; 16 samples of 512 tokens need about 32 KB.
_LARGEST_TEXT = 8 << 20
_PIECES = 64
# Text read from a data set for each token wanted; English has about four characters a token.
_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True)
class Calibration:
    """Token samples, and what to say about them.

    Attributes:
        token_ids: int64 [samples, sequence_length].
        source: where the text is from, one line.
        sha256: of the token ids, so that two runs can be compared.
        warnings: what the user should know; empty where all is well.
    """

    token_ids: npt.NDArray[np.int64]
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The model's own tokenizer.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.json, or it cannot be read.
    """
    content = checkpoint.side_files.get("tokenizer.json")
    if content is None:
        raise CheckpointError(
            "The model has no tokenizer",
            where=checkpoint.source,
            why="text cannot become tokens without tokenizer.json",
            fix="copy tokenizer.json from the model's publisher beside the weights",
        )
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception and ValueError alike
        raise CheckpointError(
            "The tokenizer cannot be read", where="tokenizer.json", why=str(error)
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    """Token ids of a text, with the special tokens that the tokenizer itself adds, int64 [T]."""
    return np.asarray(tokenizer.encode(text).ids, dtype=np.int64)


def calibrate(
    checkpoint: Checkpoint,
    calibration: str,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    progress: ProgressCallback = ignore_progress,
) -> Calibration:
    """Make the token samples that a calibration names.

    Args:
        checkpoint: its tokenizer is used, and its vocabulary checked.
        calibration: "self" (the model writes the text), "topics" (Python's help topics), "hf:NAME", the path of a
            UTF-8 text file, or "default": "self" for models of up to a billion weights, else "topics".
        samples: how many.
        sequence_length: tokens of each, at least 2.
        seed: of the places where the text is cut, or of the drawing.
        progress: told while the model writes its own text.

    Returns:
        The samples. Where the text is short there are fewer of them, and a warning says so.

    Raises:
        UsageError: numbers that make no sense, a text that is not there, is not text, or too short for one
        sample.
        CheckpointError: a token outside the model's vocabulary, or no tokenizer.
        ResourceError: a data set that cannot be had.
    """
    check_request(calibration, samples=samples, sequence_length=sequence_length)
    if calibration == "default":
        calibration = default_for(checkpoint)
    if calibration == "self":
        token_ids = sample_from_model(
            checkpoint, samples=samples, sequence_length=sequence_length, seed=seed, progress=progress
        )
        return Calibration(token_ids, "the model itself, temperature 1", _sha256(token_ids))
    if calibration == "topics":
        source, text = "the help topics that come with Python", python_help_topics()
    elif calibration.startswith("hf:"):
        source = calibration
        text = read_data_set(calibration[3:], samples * sequence_length * _CHARACTERS_A_TOKEN)
    else:
        source, text = Path(calibration).name, read_text(Path(calibration))
    ids = encode(load_tokenizer(checkpoint), text)
    return cut(
        ids,
        source,
        checkpoint.config["vocab_size"],
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
    )


def default_for(checkpoint: Checkpoint) -> str:
    """What "default" means for a model: the better text where it can be had in minutes, see docs/quality.md.

    Writing it takes the whole model in memory, in float32.
    """
    weights = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    can_write = isinstance(checkpoint.config.get("bos_token_id"), int)
    return "self" if can_write and weights <= _MOST_WEIGHTS_THAT_WRITE else "topics"


def check_request(calibration: str, *, samples: int, sequence_length: int) -> None:
    """Refuse what cannot work before any work is done.

    Raises:
        UsageError: no samples, too short a sequence, or a file that is not there.
    """
    if samples < 1 or sequence_length < 2:
        raise UsageError(
            "So little calibration is none",
            where="--samples, --sequence-length",
            why=f"found {samples} samples of {sequence_length} tokens; needed is at least 1 of 2 tokens",
            fix="--samples 16 --sequence-length 512",
        )
    if (
        calibration not in ("default", "self", "topics")
        and not calibration.startswith("hf:")
        and not Path(calibration).is_file()
    ):
        raise UsageError(
            "There is no such calibration text",
            where=calibration,
            why="it is neither a file, nor default, self, topics or hf:NAME",
            fix="--calibration default",
        )


def cut(
    ids: npt.NDArray[np.int64], source: str, vocabulary: int, *, samples: int, sequence_length: int, seed: int
) -> Calibration:
    """Cut samples out of a text at random places; they do not overlap.

    Args:
        ids: int64 [T], the whole text.
        source: where it is from.
        vocabulary: token ids must be below.
        samples: how many.
        sequence_length: tokens of each.
        seed: of the places.

    Returns:
        The samples.

    Raises:
        UsageError: not enough tokens for one sample.
        CheckpointError: a token id outside the vocabulary.
    """
    if ids.size < sequence_length:
        raise UsageError(
            "The calibration text is too short" if ids.size else "The calibration text is empty",
            where=source,
            why=f"it has {ids.size} tokens, and one sample needs {sequence_length}",
            fix="give a longer text, or a smaller --sequence-length",
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if outside.size:
        raise CheckpointError(
            "The tokenizer makes a token that the model does not have",
            where=f"{source}, token {int(outside[0])} of the text",
            why=f"its id is {int(ids[outside[0]])}, the model's vocabulary has {vocabulary}",
            fix="use the tokenizer that belongs to the model",
        )
    generator = np.random.default_rng(seed)
    available = ids.size // sequence_length
    taken = min(samples, available)
    # Which of the windows are taken, and how the tokens left over are spread between them, are both left to
    # chance.
    windows = np.sort(generator.choice(available, size=taken, replace=False))
    gaps = np.sort(generator.integers(0, ids.size - available * sequence_length + 1, size=taken))
    starts = windows * sequence_length + gaps
    token_ids = np.stack([ids[start : start + sequence_length] for start in generator.permutation(starts)])
    warnings: tuple[str, ...] = ()
    if taken < samples:
        warnings = (
            f"the calibration text ({source}, {ids.size} tokens) is enough for {taken} samples of "
            f"{sequence_length} tokens, not {samples}",
        )
    return Calibration(token_ids, source, _sha256(token_ids), warnings)


def _sha256(token_ids: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(token_ids.astype("<i8").tobytes()).hexdigest()


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
        raise UsageError(
            "The text cannot be read", where=str(path), why=error.strerror or str(error)
        ) from None


def read_data_set(name: str, characters: int) -> str:
    """Text of a data set on the hub, streamed until there is enough.

    Args:
        name: "org/name", with "@config" behind it where the data set has several.
        characters: how much is enough.

    Returns:
        The texts of the training split, an empty line between them.

    Raises:
        ResourceError: the `datasets` package is missing, or the data set cannot be reached.
        UsageError: no text in it.
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
        rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
        text = "\n\n".join(_texts(rows, characters))
    except (
        Exception
    ) as error:  # the library wraps network, format and name errors in classes of many packages
        raise ResourceError(
            "The data set cannot be read",
            where=f"hf:{name}",
            why=f"{type(error).__name__}: {error}",
            fix="check the name and the connection, or --calibration default",
        ) from error
    if not text:
        raise UsageError(
            "The data set has no text",
            where=f"hf:{name}",
            why="none of its rows has text under the name text, content or document",
            fix="--calibration FILE",
        )
    return text


def _texts(rows: Any, characters: int) -> Iterator[str]:
    for row in rows:
        text = next(
            (row[key] for key in ("text", "content", "document") if isinstance(row.get(key), str)), ""
        )
        if text.strip():
            yield text
            characters -= len(text)
        if characters <= 0:
            return


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
