"""The server under load on a real model, SmolLM2-135M: 64 streams at once, and 1,000 clients that leave early."""

from __future__ import annotations

import random
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from awq_tvm.memory import memory_of
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.support.demo_bundle import make_demo_bundle

from .conftest import MODEL, Server, eventually, running

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

# Quantizing and compiling the model takes two minutes.
pytestmark = pytest.mark.slow

WORDS = (
    "time people water music winter computer river bread city history light dog school engine garden story"
)
FIRST = WORDS.split()
PROMPTS = [f"The {FIRST[n % 16]} and the {FIRST[(3 * n + n // 16 + 1) % 16]} of" for n in range(64)]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_bundle(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Iterator[Server]:
    with running(smollm2, "--max-waiting", 256) as server:
        yield server


@pytest.fixture(scope="module")
def client(loaded: Server) -> Any:
    return openai.OpenAI(base_url=f"{loaded.url}/v1", api_key="none", max_retries=0, timeout=600)


def _nothing_in_use(server: Server) -> bool:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {"awq_tvm_running 0.0", "awq_tvm_waiting 0.0", "awq_tvm_cache_pages_used 0.0"} <= set(lines)


def test_64_streams_are_their_single_runs(client: Any, loaded: Server, smollm2: Path) -> None:
    def ask(prompt: str) -> str:
        pieces = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=24, temperature=0, stream=True
        )
        return "".join(piece.choices[0].text for piece in pieces)

    assert len(set(PROMPTS)) == 64
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(ask, PROMPTS))
    with Engine.load(smollm2, threads=1) as engine:
        alone = [engine.generate(prompt, SamplingOptions(max_tokens=24)).text for prompt in PROMPTS]
    assert found == alone
    assert _nothing_in_use(loaded)


def test_1000_disconnects_leave_no_page(client: Any, loaded: Server) -> None:
    """Each at a moment of its own, a third of them before reading anything."""
    rng = random.Random(0)
    moments = [(number, rng.random() * 0.6) for number in range(1000)]

    def leave(moment: tuple[int, float]) -> None:
        number, seconds = moment
        begin = time.monotonic()
        with client.completions.create(
            model=MODEL,
            prompt=PROMPTS[number % 64],
            max_tokens=200,
            temperature=1,
            n=1 + number % 2,
            stream=True,
        ) as stream:
            while number % 3 and time.monotonic() - begin < seconds and next(iter(stream), None):
                pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, moments[:200]))
        before = memory_of(loaded.process.pid).get("VmRSS", 0)
        list(pool.map(leave, moments[200:]))
    eventually(lambda: _nothing_in_use(loaded))
    # In kB: 800 requests may not leave more than 40 kB each, of which an allocator's noise is the larger part.
    assert memory_of(loaded.process.pid).get("VmRSS", 0) - before < 32_000
    assert client.completions.create(model=MODEL, prompt="Hello", max_tokens=2).choices
