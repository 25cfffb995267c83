"""Conversations to prompts: a model's chat template, run apart, with message texts it never sees.

The template gets a placeholder for each text and the text is put in afterwards. So a text can neither steer
the template nor become one of its control tokens. Where the template trims a placeholder, it is trimmed.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_tvm.errors import BundleError, UnsupportedError, UsageError
from awq_tvm.prompt.tokenizer import Piece

ROLES = ("system", "user", "assistant", "tool")
MAX_TEMPLATE_CHARACTERS = 1 << 20
# Blanks that no template writes itself: where they are gone, the template has trimmed the text.
_BEFORE, _AFTER = "\u2003\u2002", "\u2002\u2003"
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACEHOLDER = re.compile(f"({_BEFORE})?{_OPEN}([0-9]{{1,6}}){_CLOSE}({_AFTER})?")
_WORKER = Path(__file__).with_name("template_worker.py")
_FIX = "give the model a working chat_template.jinja and build the bundle again, or leave out --chat"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Raises:
        UsageError: a role that is not one of system, user, assistant, tool.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(
                "A message has an unknown role.",
                where="role",
                why=f"found {self.role[:80]!r}, known are {', '.join(ROLES)}",
                fix="use one of the known roles",
            )


class ChatTemplate:
    """One template and the process that renders it, started at the first use.

    Args:
        source: the Jinja source.
        strings: what the template knows as bos_token, eos_token and so on.
        seconds: longest time one rendering may take.

    Raises:
        BundleError: the source is longer than 2^20 characters.
    """

    def __init__(self, source: str, strings: Mapping[str, str], *, seconds: float = 10.0) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise _broken(f"it has {len(source)} characters, at most {MAX_TEMPLATE_CHARACTERS} are read")
        self._source, self._strings, self._seconds = source, dict(strings), seconds
        self._worker: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[Piece]:
        """The prompt of a conversation: the template's own text trusted, the messages' not.

        Args:
            messages: oldest first, at least one.
            add_generation_prompt: end with what makes the model answer.

        Raises:
            UsageError: no message, or a conversation the template refuses.
            UnsupportedError: the template looks into the texts of the messages.
            BundleError: the template is broken, or takes too much time or memory.
        """
        if not messages:
            raise UsageError(
                "The conversation is empty.", where="messages", why="found 0, need 1", fix="say something"
            )
        request = {
            "messages": [
                {"role": message.role, "content": f"{_BEFORE}{_OPEN}{index}{_CLOSE}{_AFTER}"}
                for index, message in enumerate(messages)
            ],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._strings,
        }
        answer = self._ask(request)
        if "refused" in answer:
            raise UsageError(
                "The model's chat template does not take this conversation.",
                where="chat template",
                why=answer["refused"] or "it says no more",
                fix="change the order or the roles of the messages",
            )
        if "broken" in answer:
            raise _broken(answer["broken"])
        return _fill(answer["text"], messages)

    def close(self) -> None:
        """End the process; a later rendering starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        try:
            if self._worker is None:
                self._start()
            line = self._exchange((json.dumps(request) + "\n").encode())
            answer: dict[str, str] = json.loads(line)
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, ValueError)):
                raise _broken("the process that renders it ended") from None
            raise
        return answer

    def _start(self) -> None:
        # Isolated from the current folder; a session of its own, so that ^C in a terminal does not reach it.
        self._worker = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        hello = json.dumps({"path": sys.path, "template": self._source}) + "\n"
        self._send(hello.encode())

    def _send(self, data: bytes) -> None:
        if self._worker is None or self._worker.stdin is None:
            raise OSError("no process")
        self._worker.stdin.write(data)
        self._worker.stdin.flush()

    def _exchange(self, data: bytes) -> bytes:
        self._send(data)
        if self._worker is None or self._worker.stdout is None:
            raise OSError("no process")
        descriptor = self._worker.stdout.fileno()
        deadline = time.monotonic() + self._seconds
        parts: list[bytes] = []
        while not (parts and parts[-1].endswith(b"\n")):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise _broken(f"it took longer than {self._seconds:g} seconds")
            parts.append(os.read(descriptor, 1 << 20))
            if not parts[-1]:
                raise OSError("closed")
        return b"".join(parts)


def find_chat_template(side_files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """The template among a bundle's files: `chat_template.jinja`, or what tokenizer_config.json holds.

    Raises:
        BundleError: chat_template.jinja is not UTF-8.
    """
    if "chat_template.jinja" in side_files:
        try:
            return side_files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise _broken(str(error)) from None
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _fill(text: str, messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    done = 0
    for match in _PLACEHOLDER.finditer(text):
        index = int(match[2])
        if index >= len(messages):
            break  # left in the text, and refused below
        message = messages[index]
        content = message.content if match[1] else message.content.lstrip()
        content = content if match[3] else content.rstrip()
        pieces += [Piece(text[done : match.start()], True), Piece(content, False, message.role)]
        done = match.end()
    pieces.append(Piece(text[done:], True))
    if any(mark in piece.text for piece in pieces if piece.trusted for mark in (_OPEN, _CLOSE)):
        raise UnsupportedError(
            "The model's chat template takes the texts of messages apart.",
            where="chat template",
            why="a text came back in parts",
            fix="give the model a chat_template.jinja that writes each text whole",
        )
    return [piece for piece in pieces if piece.text]


def _broken(why: str) -> BundleError:
    return BundleError("The model's chat template does not work.", where="chat template", why=why, fix=_FIX)
