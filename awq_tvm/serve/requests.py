"""What clients may send: OpenAI's fields, each with its limits. What this server cannot do is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.prompt.chat_template import Message
from awq_tvm.runtime.sampler import SamplingOptions

MAX_PROMPTS, MAX_ANSWERS, MAX_MESSAGES = 32, 128, 1024
_MAX_SEED = (1 << 63) - 1

Stop = str | Annotated[list[str], Field(max_length=64)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Closed):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Closed):
    """A JSON schema under a name, which says nothing of the answer."""

    name: str | None = None
    description: str | None = None
    form: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # answers always keep to it


class ResponseFormat(_Closed):
    """What answers look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Common(_Closed):
    """Fields of both kinds of requests. Ranges that `SamplingOptions` checks are not repeated here."""

    model: str = Field(max_length=512)
    n: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(default=None, ge=-_MAX_SEED - 1, le=_MAX_SEED)
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    # These say nothing of the answer.
    user: str | None = None
    metadata: Any = None
    store: Any = None

    def _options(self, logprobs: int | None, max_tokens: int | None, answer: int) -> SamplingOptions:
        """How answer number `answer` is drawn; each has a seed of its own, counted up from the request's."""
        if self.logit_bias:
            raise UnsupportedError("logit_bias is not supported.", where="logit_bias", fix="leave it out")
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        given = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return SamplingOptions(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,  # as OpenAI has it
            logprobs=logprobs,
            seed=None if self.seed is None else (self.seed + answer) & _MAX_SEED,
            stop=stop,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema that answers must keep to; None where they may be any text.

        Raises:
            UsageError: a schema is announced and not given, or given and not announced.
        """
        wanted = self.response_format
        if wanted is None or (wanted.type == "text" and wanted.json_schema is None):
            return None
        if (wanted.type == "json_schema") != (wanted.json_schema is not None):
            raise UsageError(
                "A response_format of type json_schema has a field json_schema, and no other has.",
                where="response_format",
                fix="correct the request",
            )
        return {"type": "object"} if wanted.json_schema is None else wanted.json_schema.form

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1


class CompletionRequest(_Common):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: int | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or as tokens.

        Raises:
            UsageError: none, or too many.
        """
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            found: list[Any] = [prompt]
        else:
            found = list(prompt)
        if not 1 <= len(found) <= MAX_PROMPTS:
            raise UsageError(
                "The number of prompts cannot be served.",
                where="prompt",
                why=f"found {len(found)}, legal is from 1 to {MAX_PROMPTS}",
                fix="send fewer prompts a request",
            )
        return found

    def options(self, answer: int) -> SamplingOptions:
        """How one of the answers is drawn."""
        if self.best_of not in (None, self.answers):
            raise UnsupportedError("best_of is not supported.", where="best_of", fix="leave it out")
        return self._options(self.logprobs, self.max_tokens, answer)


class TextPart(_Closed):
    """A part of a message; only text is known."""

    type: Literal["text"]
    text: str


class ChatMessage(_Closed):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None

    def message(self) -> Message:
        """What the chat template is given."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Common):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def options(self, answer: int) -> SamplingOptions:
        """How one of the answers is drawn."""
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs.", where="top_logprobs", fix="set logprobs to true")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._options((self.top_logprobs or 0) if self.logprobs else None, limit, answer)
