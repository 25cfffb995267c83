"""`chat BUNDLE`: a conversation on the terminal, or line by line from a pipe."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from awq_tvm.cli.generate import describe
from awq_tvm.cli.options import BundlePath, Json, RequireSignature, Threads, check_signed
from awq_tvm.cli.output import print_json, say
from awq_tvm.errors import AwqTvmError, UsageError

if TYPE_CHECKING:
    from awq_tvm.prompt.chat_template import Message
    from awq_tvm.runtime.engine import Engine, Generation
    from awq_tvm.runtime.sampler import SamplingOptions

_HELP = """/help   this list
/reset  forget the conversation
/stats  how fast the answers were
/exit   leave (so does ^D); ^C stops an answer"""
# Thoughts of earlier answers are not put before the model again.
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)


def command(
    bundle: BundlePath,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="What the model is told first.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; 256 by default.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the most likely with this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", show_default=False)] = None,
    require_signature: RequireSignature = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Talk with a bundle; with --json each answer is one JSON object on a line."""
    from awq_tvm.runtime.engine import Engine
    from awq_tvm.runtime.sampler import SamplingOptions

    options = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    check_signed(bundle, require_signature)
    with Engine.load(bundle, threads=threads) as engine:
        engine.encode("hello", chat=True)  # a model without a chat template is refused before the first line
        Conversation(engine, options, system=system, as_json=json_output).run()


class Conversation:
    """The turns so far and the commands that act on them.

    Args:
        engine: answers.
        options: how it draws.
        system: what the model is told first; None for nothing.
        as_json: print each answer as a JSON object.
    """

    def __init__(
        self, engine: Engine, options: SamplingOptions, *, system: str | None = None, as_json: bool = False
    ) -> None:
        from awq_tvm.prompt.chat_template import Message

        self._engine, self._options, self._as_json = engine, options, as_json
        self._first = [] if system is None else [Message("system", system)]
        self.turns: list[Message] = []
        self._answers: list[Generation] = []
        self._interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Read lines until /exit or the end of input."""
        if self._interactive:
            import readline  # noqa: F401 - gives input() line editing and history

            say("Type /help for commands.")
        while True:
            try:
                line = input("> " if self._interactive else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                say("\nType /exit to leave.")
                continue
            if not self.take(line.strip()):
                return

    def take(self, line: str) -> bool:
        """Act on one line; return whether to go on."""
        if line == "/exit":
            return False
        if line == "/help":
            say(_HELP)
        elif line == "/reset":
            self.turns.clear()
            say("The conversation is forgotten.")
        elif line == "/stats":
            self._stats()
        elif line.startswith("/"):
            say(f"There is no command {line.split()[0]}; /help lists them.")
        elif line:
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        from awq_tvm.prompt.chat_template import Message

        self.turns.append(Message("user", line))
        shown: list[str] = []
        try:
            stream = self._engine.stream_tokens(self._encode(), self._options)
        except AwqTvmError as error:
            # One line that cannot be answered does not end the conversation.
            self.turns.pop()
            if not self._interactive:
                raise
            say(f"error: {error}")
            return
        try:
            with stream:
                for piece in stream:
                    shown.append(piece)
                    if not self._as_json:
                        print(piece, end="", flush=True)
        except KeyboardInterrupt:
            say("\n[stopped]")
        if not self._as_json:
            print(flush=True)
        text = _THOUGHTS.sub("", "".join(shown))
        self.turns.append(Message("assistant", text))
        answer = stream.generation
        if answer is None:
            return
        self._answers.append(answer)
        if self._as_json:
            print_json(
                {
                    "token_ids": answer.token_ids,
                    "text": answer.text,
                    "finish_reason": answer.finish_reason,
                    "timings": answer.timings.as_dict(),
                }
            )
        else:
            say(describe(answer.timings.as_dict(), answer.finish_reason))

    def _encode(self) -> list[int]:
        """Tokens of the conversation; its oldest turns go where it no longer fits with room for an answer."""
        context = self._engine.executor.context_length
        dropped = 0
        while True:
            try:
                tokens = self._engine.encode([*self._first, *self.turns])
                if len(tokens) < context or len(self.turns) == 1:
                    break
            except UsageError:
                if len(self.turns) == 1:
                    raise
            del self.turns[:2]
            dropped += 2
        if dropped:
            say(f"[the conversation outgrew the context of {context} tokens: {dropped} oldest turns dropped]")
        return tokens

    def _stats(self) -> None:
        timings = [answer.timings for answer in self._answers]
        read = sum(timing.prompt_tokens for timing in timings)
        read_seconds = sum(timing.prefill_seconds for timing in timings)
        written = sum(timing.generated_tokens for timing in timings)
        later = sum(max(timing.generated_tokens - 1, 0) for timing in timings)
        seconds = sum(timing.decode_seconds for timing in timings)
        say(f"{len(timings)} answers, {len(self.turns)} turns kept")
        if timings:
            say(f"{read} tokens read ({read / max(read_seconds, 1e-9):.0f}/s)")
            say(f"{written} tokens written ({later / max(seconds, 1e-9):.1f}/s)")
