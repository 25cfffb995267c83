"""Rows of data sets to documents: plain texts as they are, conversations as the model's chat template writes them.

A row is a conversation if it has `messages` (role, content), `conversations` (ShareGPT: from, value) or `prompt` and
`response`; else a text, under `text`, `content` or `document`. Of a conversation what the assistant writes counts in
losses: its texts, and the control token that ends each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.errors import AwqTvmError, BundleError, CheckpointError, UsageError
from awq_tvm.prompt import tokenizer as prompt
from awq_tvm.prompt.chat_template import ChatTemplate, Message, find_chat_template
from awq_tvm.prompt.tokenizer import Piece, Token
from awq_tvm.quantize.text_tokens import Document, check_vocabulary, encode, load_tokenizer

_FIX = 'write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
_TEXT_FIELDS = ("text", "content", "document")
# What ShareGPT files call the speakers.
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
}


class DocumentEncoder:
    """Turns rows into tokens; close it to end the process that renders the chat template.

    Args:
        checkpoint: its tokenizer and chat template are used, and its vocabulary checked.

    Raises:
        CheckpointError: the model has no tokenizer that can be read.

    Attributes:
        tokenizer: the model's own.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self._vocabulary: int = checkpoint.config["vocab_size"]

    def __enter__(self) -> DocumentEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        # Reading the property would start what there is to end.
        if "_template" in vars(self):
            self._template.close()

    def row(self, row: Mapping[str, Any], where: str) -> Document | None:
        """Tokens of a row.

        Args:
            row: a JSON object; see the module for its fields.
            where: of the row, for errors.

        Returns:
            None where the text is empty.

        Raises:
            UsageError: a field is missing or not what it has to be, or the template refuses the conversation.
            CheckpointError: no chat template that works, or a token outside the model's vocabulary.
        """
        if (found := _conversation(row, where)) is not None:
            return self._conversation(found, where)
        field = next((field for field in _TEXT_FIELDS if field in row), None)
        if field is None:
            raise _no_text(row, where)
        if row[field] is None or not (text := _string(row[field], field, where)).strip():
            return None
        return self.text(text, where)

    def text(self, text: str, where: str) -> Document:
        """Tokens of a plain text, with the special tokens that the tokenizer itself adds.

        Raises:
            UsageError: the text is not valid Unicode.
            CheckpointError: a token outside the model's vocabulary.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                "The calibration text is not valid Unicode",
                where=where,
                why=f"character {error.start} is the lone surrogate U+{ord(text[error.start]):04X}",
            ) from None
        ids = encode(self.tokenizer, text)
        check_vocabulary(ids, where, self._vocabulary)
        return Document(ids, len(text), len(text.encode()))

    def _conversation(self, turns: list[tuple[str, str]], where: str) -> Document:
        try:
            pieces = self._template.render(
                [Message(role, content) for role, content in turns], add_generation_prompt=False
            )
            tokens = self._chat_tokenizer.locate_pieces(pieces)
        except BundleError as error:
            raise CheckpointError(error.what, where=f"{error.where}, with {where}", why=error.why) from None
        except AwqTvmError as error:
            raise type(error)(error.what, where=where, why=error.why, fix=error.fix) from None
        ids = np.asarray([token.id for token in tokens], np.int64)
        check_vocabulary(ids, where, self._vocabulary)
        text = "".join(piece.text for piece in pieces)
        answers = _answers(pieces, tokens, self._chat_tokenizer.control_ids)
        return Document(ids, len(text), len(text.encode()), answers)

    @cached_property
    def _chat_tokenizer(self) -> prompt.Tokenizer:
        return prompt.load_tokenizer(self._checkpoint.side_files)

    @cached_property
    def _template(self) -> ChatTemplate:
        source = find_chat_template(self._checkpoint.side_files, self._chat_tokenizer.config)
        if source is None:
            raise CheckpointError(
                "The model has no chat template",
                why="a conversation becomes text by chat_template.jinja, or the one in tokenizer_config.json",
                fix='copy chat_template.jinja beside the weights, or give plain texts: {"text": "..."}',
            )
        return ChatTemplate(source, self._chat_tokenizer.special_strings())


def _answers(
    pieces: Sequence[Piece], tokens: Sequence[Token], control_ids: Collection[int]
) -> npt.NDArray[np.bool_]:
    """Which tokens the assistant writes, bool [T]: any part of its texts, and the control token after each."""
    size = sum(len(piece.text) for piece in pieces)
    written, ending = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    begin, after_answer = 0, False
    for piece in pieces:
        end = begin + len(piece.text)
        if piece.role == "assistant":
            written[begin:end] = True
        elif after_answer and piece.trusted and piece.text.strip():
            # Between the text and its end some templates have a blank, which nobody asks the model for.
            ending[end - len(piece.text.lstrip())] = True
        begin, after_answer = end, piece.role == "assistant"
    return np.asarray(
        [
            bool(written[token.start : token.end].any())
            or (token.id in control_ids and bool(ending[token.start : token.end].any()))
            for token in tokens
        ],
        dtype=bool,
    )


def _conversation(row: Mapping[str, Any], where: str) -> list[tuple[str, str]] | None:
    """Roles and texts of a row that is a conversation."""
    if row.get("messages") is not None:
        return list(_turns(row["messages"], "messages", "role", "content", where))
    if row.get("conversations") is not None:
        turns = _turns(row["conversations"], "conversations", "from", "value", where)
        return [(_SPEAKERS.get(speaker, speaker), text) for speaker, text in turns]
    if row.get("prompt") is not None and row.get("response") is not None:
        return [
            ("user", _string(row["prompt"], "prompt", where)),
            ("assistant", _string(row["response"], "response", where)),
        ]
    return None


def _turns(entries: Any, field: str, speaker: str, text: str, where: str) -> Iterator[tuple[str, str]]:
    if not isinstance(entries, list):
        raise _bad_field(field, "a list", entries, where)
    for index, entry in enumerate(entries):
        name = f"{field}[{index}]"
        if not isinstance(entry, Mapping):
            raise _bad_field(name, "an object", entry, where)
        yield (
            _string(entry.get(speaker), f"{name}.{speaker}", where),
            _string(entry.get(text), f"{name}.{text}", where),
        )


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise _bad_field(field, "a string", value, where)
    return value


def _no_text(row: Mapping[str, Any], where: str) -> UsageError:
    fields = ", ".join(map(str, list(row)[:8]))
    return UsageError(
        "A calibration document has no text",
        where=where,
        why=f"it has {f'only {fields[:200]}' if fields else 'no fields'}, "
        "and neither text, messages, conversations, nor prompt and response",
        fix=_FIX,
    )


def _bad_field(field: str, wanted: str, found: Any, where: str) -> UsageError:
    return UsageError(
        "A calibration document cannot be read",
        where=f"{where}, {field}",
        why=f"found {'nothing' if found is None else type(found).__name__}, needed {wanted}",
        fix=_FIX,
    )
