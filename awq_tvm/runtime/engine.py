"""Text in, text out: a verified bundle, its tokenizer and its executor behind two calls."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from awq_tvm.bundle.reader import Bundle, open_bundle
from awq_tvm.bundle.verify import rebuild_line
from awq_tvm.errors import BundleError, UnsupportedError, UsageError
from awq_tvm.memory import give_back_code, give_back_freed
from awq_tvm.prompt.chat_template import ChatTemplate, Message, find_chat_template
from awq_tvm.prompt.tokenizer import Tokenizer, load_tokenizer
from awq_tvm.runtime.answer import AnswerWriter, Constraint, FinishReason
from awq_tvm.runtime.logit_row import DeviceRow
from awq_tvm.runtime.sampler import SamplingOptions

MAX_THREADS = 1024
_DEFAULT_NEW_TOKENS = 256
_GREEDY = SamplingOptions()


class ExecutorLike(Protocol):
    """What the engine needs of `runtime.executor.Executor`."""

    context_length: int
    weight_bytes: int

    def new_sequence(self) -> int:
        """Start a sequence and return its id."""
        ...

    def remove_sequence(self, seq_id: int) -> None:
        """Forget a sequence and free its pages."""
        ...

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        logits: Literal["last", "all"] = "last",
    ) -> np.ndarray:
        """Append tokens to sequences; float32 [m, V], one row a sequence or a token."""
        ...

    def step(
        self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> Sequence[np.ndarray | DeviceRow]:
        """Append tokens to sequences; of each the logits after its last, float32 [V], to draw from."""
        ...


@dataclass(frozen=True, slots=True)
class Timings:
    """How long one answer took. Times are seconds of wall clock.

    Attributes:
        prompt_tokens: tokens read.
        generated_tokens: tokens drawn, one that only ended the answer included.
        prefill_seconds: from the start to the logits of the first token.
        decode_seconds: from there to the end.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens read in a second."""
        return self.prompt_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens drawn in a second after the first; None where there was only one."""
        later = self.generated_tokens - 1
        return later / max(self.decode_seconds, 1e-9) if later > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """The counts, the times and the two rates as JSON values."""
        return {
            **asdict(self),
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Attributes:
        token_ids: tokens of the answer, without an end-of-text token.
        text: their text, cut before a stop string.
        finish_reason: "stop" at an end-of-text token or a stop string, else "length".
        timings: how long it took.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    timings: Timings


class Answer(Iterator[str]):
    """An answer being generated: iterate over its text; `generation` is there when that ends.

    Closing it early, also by leaving a `with` block, frees its place in the cache.
    """

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        self._pieces = pieces
        self.generation: Generation | None = None

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        try:
            return next(self._pieces)
        except StopIteration as stop:
            self.generation = self.generation or stop.value
            raise

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_executor(bundle: Bundle, threads: int | None) -> ExecutorLike:
    """Load a verified bundle into the TVM runtime.

    Raises:
        BundleError: the library is none that this runtime can load.
    """
    # Here, after verification: this import loads the TVM runtime.
    from awq_tvm.runtime.executor import Executor

    try:
        return Executor(bundle.library, bundle.weights, bundle.manifest, threads=threads)
    except (RuntimeError, OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(
            "The bundle's library cannot be loaded.",
            where=str(bundle.library),
            why=f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1][:300]}",
            fix=f"`{rebuild_line(bundle.path, bundle.manifest)}`",
        ) from None


class Engine:
    """Generates text with one model.

    Args:
        executor: runs the model.
        tokenizer: of the model.
        eos_token_ids: tokens that end an answer.
        vocab_size: rows of logits the model has.
        chat_template: Jinja source, or None where the model has none.
    """

    def __init__(
        self,
        executor: ExecutorLike,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Sequence[int],
        vocab_size: int,
        chat_template: str | None = None,
    ) -> None:
        self.executor, self.tokenizer, self.vocab_size = executor, tokenizer, vocab_size
        self._ends = frozenset(eos_token_ids)
        self._template = (
            None if chat_template is None else ChatTemplate(chat_template, tokenizer.special_strings())
        )

    @classmethod
    def load(cls, bundle_path: Path | str, *, threads: int | None = None) -> Engine:
        """Verify a bundle in full, then load it.

        Args:
            bundle_path: the bundle directory.
            threads: CPU threads, 1 to 1024; None for one a core.

        Raises:
            UsageError: threads out of range.
            BundleError: the bundle is damaged, incomplete or of another version.
            TargetError: it is for another machine.
        """
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise UsageError(
                f"{threads} threads cannot be meant.",
                where="threads",
                why=f"found {threads}, legal is from 1 to {MAX_THREADS}",
                fix="give the number of cores to use",
            )
        bundle = open_bundle(bundle_path)
        side_files = bundle.side_files()
        tokenizer = load_tokenizer(side_files)
        template = find_chat_template(side_files, tokenizer.config)
        del side_files
        manifest = bundle.manifest
        executor = load_executor(bundle, threads)
        # The code of all that was only needed to get here would stay with the process; so would half of what reading
        # a tokenizer takes, which is free again. Now, before the weights come in.
        give_back_code()
        give_back_freed()
        return cls(
            executor,
            tokenizer,
            eos_token_ids=manifest.model.eos_token_ids,
            vocab_size=manifest.model.vocab_size,
            chat_template=template,
        )

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._ends

    def close(self) -> None:
        """End what runs beside the engine."""
        if self._template is not None:
            self._template.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, prompt: str | Sequence[Message], *, chat: bool = False) -> list[int]:
        """Tokens of a prompt; of a conversation, through the chat template.

        Args:
            prompt: a text, or messages, oldest first.
            chat: take a text as a user's message.

        Raises:
            UsageError: empty, or longer than the context.
            UnsupportedError: a conversation, and the model has no chat template.
        """
        if isinstance(prompt, str) and not prompt:
            raise UsageError(
                "The prompt is empty.", where="prompt", why="found 0 characters, need 1", fix="say something"
            )
        if isinstance(prompt, str) and not chat:
            tokens = self.tokenizer.encode(prompt)
        else:
            messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
            tokens = self._encode_chat(messages)
        self._check_prompt(tokens)
        return tokens

    def generate(
        self,
        prompt: str | Sequence[Message],
        options: SamplingOptions = _GREEDY,
        *,
        chat: bool = False,
    ) -> Generation:
        """Generate one answer; arguments and errors as `stream`."""
        return self.generate_tokens(self.encode(prompt, chat=chat), options)

    def generate_tokens(self, tokens: Sequence[int], options: SamplingOptions = _GREEDY) -> Generation:
        """Generate one answer to a prompt given as tokens."""
        pieces = self._start(tokens, options)
        while True:
            try:
                next(pieces)
            except StopIteration as stop:
                generation: Generation = stop.value
                return generation

    def stream(
        self,
        prompt: str | Sequence[Message],
        options: SamplingOptions = _GREEDY,
        *,
        chat: bool = False,
    ) -> Answer:
        """Generate one answer piece by piece.

        Args:
            prompt: a text, or messages, oldest first.
            options: how to draw and where to end.
            chat: take a text as a user's message and put it through the chat template.

        Raises:
            UsageError: an empty prompt, or more tokens than the context holds in it or asked for.
            UnsupportedError: a conversation, and the model has no chat template.
            BundleError: a tokenizer that does not fit the model.
        """
        return self.stream_tokens(self.encode(prompt, chat=chat), options)

    def stream_tokens(self, tokens: Sequence[int], options: SamplingOptions = _GREEDY) -> Answer:
        """Generate one answer to a prompt given as tokens, piece by piece."""
        return Answer(self._start(tokens, options))

    def start(
        self, tokens: Sequence[int], options: SamplingOptions = _GREEDY, constraint: Constraint | None = None
    ) -> AnswerWriter:
        """An answer to a prompt, to be fed with the logits after it and after each token of its own.

        Args:
            tokens: the prompt.
            options: how to draw and where to end.
            constraint: what the answer must look like.

        Raises:
            UsageError: an empty prompt, or more tokens than the context holds in it or asked for.
            BundleError: a tokenizer that does not fit the model.
        """
        self._check_prompt(tokens)
        # The last token drawn is never read, so it needs no place in the context.
        room = self.executor.context_length - len(tokens) + 1
        if options.max_tokens is not None and options.max_tokens > self.executor.context_length:
            raise UsageError(
                "More tokens are asked for than the context holds.",
                where="max_tokens",
                why=f"found {options.max_tokens}, the context holds {self.executor.context_length}",
                fix="ask for fewer tokens, or compile with a larger --context-length",
            )
        limit = min(room, _DEFAULT_NEW_TOKENS if options.max_tokens is None else options.max_tokens)
        return AnswerWriter(
            self.tokenizer, options, tokens, ends=self._ends, limit=limit, constraint=constraint
        )

    def _start(self, tokens: Sequence[int], options: SamplingOptions) -> Generator[str, None, Generation]:
        return self._run(list(tokens), self.start(tokens, options))

    def _run(self, tokens: list[int], writer: AnswerWriter) -> Generator[str, None, Generation]:
        start = time.perf_counter()
        prefill_end = None
        sequence = self.executor.new_sequence()
        try:
            feed = tokens
            while writer.finish_reason is None:
                (row,) = self.executor.step([sequence], [feed], [writer.options.temperature])
                prefill_end = prefill_end or time.perf_counter()
                piece = writer.take(row)
                feed = [writer.drawn[-1].id]
                if piece:
                    yield piece
        finally:
            self.executor.remove_sequence(sequence)
        end = time.perf_counter()
        prefill_end = prefill_end or end
        return Generation(
            token_ids=writer.token_ids,
            text=writer.text,
            finish_reason=writer.finish_reason or "length",
            timings=Timings(len(tokens), len(writer.drawn), prefill_end - start, end - prefill_end),
        )

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            raise UnsupportedError(
                "The model has no chat template.",
                where="chat",
                why="the bundle holds neither chat_template.jinja nor one in tokenizer_config.json",
                fix="use an instruction-tuned model, or leave out --chat",
            )
        return self.tokenizer.encode_pieces(self._template.render(messages))

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise UsageError(
                "The prompt is empty.", where="prompt", why="found 0 tokens, need 1", fix="say something"
            )
        if len(tokens) > self.executor.context_length:
            raise UsageError(
                "The prompt is longer than the context.",
                where="prompt",
                why=f"it has {len(tokens)} tokens, the context holds {self.executor.context_length}",
                fix="shorten it, or compile with a larger --context-length",
            )
        if max(tokens) >= self.vocab_size:
            raise BundleError(
                "The tokenizer does not fit the model.",
                where="prompt",
                why=f"it made token ids up to {max(tokens)}, the model has {self.vocab_size} of them",
                fix="check the model's tokenizer files, then build the bundle again",
            )
