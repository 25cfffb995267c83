"""Answers as OpenAI's API writes them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from awq_tvm.prompt.tokenizer import Tokenizer
from awq_tvm.runtime.answer import DrawnToken
from awq_tvm.serve.job import Progress

_LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI's server writes this too


class Reply:
    """Objects of one request, streamed or whole.

    Args:
        model: name it is served under.
        tokenizer: of the model.
        chat: for /v1/chat/completions; else for /v1/completions.
        logprobs: whether log-probabilities were asked for.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, *, chat: bool, logprobs: bool) -> None:
        self._tokenizer, self._chat, self._logprobs = tokenizer, chat, logprobs
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(
        self, choices: Sequence[Sequence[Progress]], prompt_tokens: int, cached_tokens: int = 0
    ) -> dict[str, Any]:
        """The answer in one piece: what each choice's tokens brought, in order."""
        return {
            **self._head,
            "object": self._kind,
            "choices": [self._whole_choice(number, events) for number, events in enumerate(choices)],
            "usage": usage(prompt_tokens, sum(map(len, choices)), cached_tokens),
        }

    def first(self, index: int) -> dict[str, Any]:
        """The piece that opens one choice of a streamed conversation."""
        return self._piece(
            {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        )

    def piece(self, index: int, events: Sequence[Progress]) -> dict[str, Any]:
        """What some tokens brought to one choice."""
        text = "".join(event.text for event in events)
        choice: dict[str, Any] = {"index": index, "finish_reason": events[-1].finish_reason}
        choice |= {"delta": {"content": text} if text else {}} if self._chat else {"text": text}
        choice["logprobs"] = self._chances([event.token for event in events]) if self._logprobs else None
        return self._piece(choice)

    def last(self, prompt_tokens: int, generated_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
        """The piece with the usage, which has no choice."""
        return {**self._piece(), "usage": usage(prompt_tokens, generated_tokens, cached_tokens)}

    def _piece(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = f"{self._kind}.chunk" if self._chat else self._kind
        return {**self._head, "object": kind, "choices": list(choices)}

    def _whole_choice(self, index: int, events: Sequence[Progress]) -> dict[str, Any]:
        text = "".join(event.text for event in events)
        body = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        chances = self._chances([event.token for event in events]) if self._logprobs else None
        return {"index": index, **body, "logprobs": chances, "finish_reason": events[-1].finish_reason}

    def _chances(self, tokens: Sequence[DrawnToken]) -> dict[str, Any]:
        if self._chat:
            return {
                "content": [
                    {
                        **self._entry(token.id, token.logprob),
                        "top_logprobs": [self._entry(*other) for other in token.top],
                    }
                    for token in tokens
                ]
            }
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _likeliest(self, token: DrawnToken) -> dict[str, float]:
        # Parts of code points all have the same text: the likeliest of them stands for it.
        return {self._text(other): _finite(value) for other, value in reversed(token.top)}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        # Part of a code point has no text, and the vocabulary does not say its bytes in a form all models share.
        known = "\ufffd" not in text
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if known else None}

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)


def usage(prompt_tokens: int, generated_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Tokens of the prompts, how many of them were in the cache already, and tokens written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated_tokens,
        "total_tokens": prompt_tokens + generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def event(data: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _finite(value: float | None) -> float:
    return max(value if value is not None else _LEAST_LOGPROB, _LEAST_LOGPROB)
