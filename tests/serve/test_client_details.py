"""Details of answers that OpenAI's own client hands on: what of a prompt was kept, seeds, stops, limits."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest

from tests.support import tiny_decoder as tiny

from .conftest import MODEL, Server

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def _metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_usage_says_what_was_kept(client: Any, server: Server) -> None:
    """A second answer to a prompt reads its end alone, and is the first one's."""
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    prompt = tiny.tokens(100, seed=77)
    before = _metric(server, "awq_tvm_cached_tokens_total")
    first = client.completions.create(prompt=prompt, **options)
    second = client.completions.create(prompt=prompt, **options)
    *_, last = client.completions.create(
        prompt=[prompt, prompt[:70]], stream=True, stream_options={"include_usage": True}, **options
    )
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 64
    assert last.usage.prompt_tokens_details.cached_tokens == 128
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == 100
    assert second.choices[0].text == first.choices[0].text
    assert _metric(server, "awq_tvm_cached_tokens_total") - before == 192
    assert _metric(server, "awq_tvm_cache_pages_kept") >= 4
    assert _metric(server, "awq_tvm_prefixes_kept") >= 1
    assert _metric(server, "awq_tvm_cache_pages_used") == 0


def test_a_seed_makes_an_answer_come_again(client: Any) -> None:
    def ask(seed: int | None, n: int = 1) -> list[str]:
        answer = client.completions.create(
            model=MODEL, prompt="Once upon", max_tokens=12, temperature=1.5, seed=seed, n=n
        )
        return [choice.text for choice in answer.choices]

    several = ask(5, 3)
    assert several == ask(5, 3)
    assert len(set(several)) == 3
    assert ask(5) == several[:1]
    assert ask(6) == several[1:2]  # answers count the seed up


def test_stops_are_as_openai_has_them(client: Any) -> None:
    def ask(**options: Any) -> Any:
        answer = client.completions.create(
            model=MODEL, prompt="Once upon", max_tokens=16, temperature=0, **options
        )
        return answer.choices[0]

    whole = ask()
    assert whole.finish_reason == "length"
    late = whole.text[len(whole.text) // 2 :][:2]
    early = whole.text[2:4]
    found = ask(stop=[late, early, "never in there"])
    assert found.finish_reason == "stop"
    assert found.text == whole.text[: min(whole.text.index(late), whole.text.index(early))]
    assert ask(stop="never in there").text == whole.text


def test_logprobs_of_each_token(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Once"}],
        max_completion_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 5
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy draws the likeliest
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 10**9), ("n", 129), ("top_p", 2.0), ("temperature", -1.0), ("prompt", "")],
)
def test_the_client_is_told_which_field(client: Any, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": MODEL, "prompt": "Once", field: value})
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
