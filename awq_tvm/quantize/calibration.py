"""The token samples that quantization is calibrated on, from what `--calibration` names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback, ignore_progress
from awq_tvm.quantize.documents import DocumentEncoder
from awq_tvm.quantize.samples import cut, pack
from awq_tvm.quantize.self_text import sample_from_model
from awq_tvm.quantize.text_sources import python_help_topics, read_data_set, read_json_lines, read_text
from awq_tvm.quantize.text_tokens import Document, unknown_token

# Above this many weights the default text is not the model's own: it would take too long and too much memory.
_MOST_WEIGHTS_THAT_WRITE = 10**9
_JSON_LINES = (".jsonl", ".ndjson")
# A text that the vocabulary does not fit has tokens below both. By characters alone Chinese would be below in a
# vocabulary made for it (a character is nearly a word: 1.5 a token in Gemma 3's); by bytes alone Cyrillic letter by
# letter would not, at two bytes each. SmolLM2 takes 4.1 and 4.1 of English, 2.3 and 2.4 of German, and is below both
# with Russian (1.3 and 2.4), Greek, Arabic, Hindi, Chinese (0.6 and 1.7) and columns of numbers.
_FEWEST_CHARACTERS, _FEWEST_BYTES = 1.5, 2.5
# Smaller vocabularies are hardly more than an alphabet, and take many tokens for any text.
_SMALLEST_VOCABULARY = 1000
_MOST_UNKNOWN = 0.01


@dataclass(frozen=True)
class Calibration:
    """Token samples, and what to say about them.

    Attributes:
        token_ids: int64 [samples, sequence_length].
        loss_mask: bool [samples, sequence_length], the tokens that count in losses. The others are only there to be
            attended to. The first sample has some that count.
        source: where the text is from, one line.
        sha256: of the token ids, and of the mask where not all count, so that two runs can be compared.
        warnings: what the user should know; empty where all is well.
    """

    token_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()


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
            UTF-8 text file or of JSON lines (.jsonl, see `documents`), or "default": "self" for models of up to a
            billion weights, else "topics".
        samples: how many.
        sequence_length: tokens of each, at least 2.
        seed: of the places where the text is cut, of the order of documents, or of the drawing.
        progress: told while the model writes its own text.

    Returns:
        The samples. Where the text is short there are fewer of them, and a warning says so.

    Raises:
        UsageError: numbers that make no sense, a text that is not there, is not text, or too short for one
        sample; a document that cannot be read, with file and line.
        CheckpointError: a token outside the model's vocabulary, no tokenizer, or no chat template for a
        conversation.
        ResourceError: a data set that cannot be had.
    """
    check_request(calibration, samples=samples, sequence_length=sequence_length)
    if calibration == "default":
        calibration = default_for(checkpoint)
    if calibration == "self":
        token_ids = sample_from_model(
            checkpoint, samples=samples, sequence_length=sequence_length, seed=seed, progress=progress
        )
        mask = np.ones(token_ids.shape, dtype=bool)
        return Calibration(token_ids, mask, "the model itself, temperature 1", _sha256(token_ids, mask))
    separator = separator_of(checkpoint.config)
    size: dict[str, int] = {"samples": samples, "sequence_length": sequence_length}
    one_text = calibration == "topics" or not _has_rows(calibration)
    with DocumentEncoder(checkpoint) as encoder:
        if one_text:
            if calibration == "topics":
                source, text = "the help topics that come with Python", python_help_topics()
            else:
                source, text = Path(calibration).name, read_text(Path(calibration))
            documents = [encoder.text(text, source)]
        else:
            if calibration.startswith("hf:"):
                source, rows = calibration, read_data_set(calibration[3:])
            else:
                source, rows = Path(calibration).name, read_json_lines(Path(calibration), seed)
            documents = _enough(encoder, rows, samples * sequence_length)
        misfits = _misfits(documents, encoder.tokenizer, separator, source)
    tokens = sum(document.ids.size for document in documents)
    if one_text and tokens >= samples * sequence_length:
        token_ids = cut(documents[0].ids, source, seed=seed, **size)
        mask = np.ones(token_ids.shape, dtype=bool)
    else:
        token_ids, mask = pack(documents, separator, source, **size)
    warnings: tuple[str, ...] = ()
    if tokens < samples * sequence_length:
        warnings = (
            f"the calibration text ({source}) has {tokens} tokens; {samples} samples of {sequence_length} tokens "
            f"need {samples * sequence_length}",
        )
    return Calibration(token_ids, mask, source, _sha256(token_ids, mask), (*warnings, *misfits))


def separator_of(config: Mapping[str, Any]) -> int | None:
    """The token that stands between two documents: what ends a text, else what begins one, else none."""
    for name in ("eos_token_id", "bos_token_id"):
        found = config.get(name)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, int):
            return found
    return None


def _misfits(
    documents: Sequence[Document], tokenizer: Tokenizer, separator: int | None, source: str
) -> Iterator[str]:
    """Warnings about text that the vocabulary is not made for; it says little about what the model is used for."""
    tokens = sum(document.ids.size for document in documents)
    if not tokens:
        return
    characters = sum(document.characters for document in documents) / tokens
    size = sum(document.utf8_bytes for document in documents) / tokens
    if (
        characters < _FEWEST_CHARACTERS
        and size < _FEWEST_BYTES
        and tokenizer.get_vocab_size() >= _SMALLEST_VOCABULARY
    ):
        yield (
            f"the model's vocabulary hardly fits the calibration text ({source}): a token is {characters:.1f} "
            f"characters ({size:.1f} bytes), in text that it fits about 4; calibrate on what the model is used for"
        )
    # Some models end texts with the same token: then it says nothing.
    if (unknown := unknown_token(tokenizer)) not in (None, separator):
        share = sum(int((document.ids == unknown).sum()) for document in documents) / tokens
        if share > _MOST_UNKNOWN:
            yield (
                f"{share:.1%} of the tokens of the calibration text ({source}) stand for what the model's vocabulary "
                "lacks; calibrate on what the model is used for"
            )


def _has_rows(calibration: str) -> bool:
    return calibration.startswith("hf:") or Path(calibration).suffix in _JSON_LINES


def _enough(
    encoder: DocumentEncoder, rows: Iterable[tuple[str, Mapping[str, Any]]], tokens: int
) -> list[Document]:
    """The documents of the first rows that together have so many tokens, or of all rows."""
    documents: list[Document] = []
    for where, row in rows:
        if (document := encoder.row(row, where)) is not None:
            documents.append(document)
            tokens -= document.ids.size
        if tokens <= 0:
            break
    return documents


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


def _sha256(token_ids: npt.NDArray[np.int64], loss_mask: npt.NDArray[np.bool_]) -> str:
    digest = hashlib.sha256(token_ids.astype("<i8").tobytes())
    if not loss_mask.all():
        digest.update(np.packbits(loss_mask).tobytes())
    return digest.hexdigest()
