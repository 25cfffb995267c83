"""A server under mixed load for minutes: does its memory grow, and does anything stay in use?

    python -m benchmarks.serve_soak BUNDLE [--minutes 10] [--disconnects 1000] [--clients 12] [--threads N]

First the cache is filled with prompts that are kept, for its memory is taken as it is used. Then clients ask for
answers one after the other: streamed and whole, texts and conversations that share a system prompt, several answers
to a prompt, JSON, requests that are refused, and streams that are left at some random moment. It goes on until the
minutes are over and as many streams were left as wanted. Prints the memory of the server every half minute and one
JSON line at the end. Ends with 1 if a page of the cache is in use afterwards, a request failed otherwise than it
should, or memory at the end is above that after a third of the time by more than --bar.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai

from awq_tvm.memory import memory_of

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "To bake bread you need",
    "A good way to learn a language is",
    "Computers store numbers as",
)
SYSTEM = "You are a helpful and patient assistant. " * 12  # longer than a part that is kept
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


class Load:
    """What the clients do, and how often they did it.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self._model = next(iter(self._client.models.list())).id
        self._lock = threading.Lock()
        self._kinds: tuple[tuple[Callable[[random.Random], None], int], ...] = (
            (self.leave, 8), (self.stream, 3), (self.talk, 3), (self.several, 1), (self.as_json, 1), (self.refused, 1)
        )  # fmt: skip

    def one(self, rng: random.Random) -> None:
        """Do one thing."""
        kinds, weights = zip(*self._kinds, strict=True)
        (kind,) = rng.choices(kinds, weights)
        try:
            kind(rng)
        except Exception as error:  # whatever it is, it is what this looks for
            with self._lock:
                self.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}"[:300])
        with self._lock:
            self.done[kind.__name__] += 1

    def fill(self, url: str) -> None:
        """Have every page of the cache used once, by prompts that are kept."""
        pages, number = -1.0, 0
        while (kept := in_use(url)["cache_pages_kept"]) > pages:
            pages, number = kept, number + 1
            self._complete(random.Random(0), prompt=[100 + number, *range(200, 1100)], max_tokens=1)

    def _complete(self, rng: random.Random, **options: Any) -> Any:
        return self._client.completions.create(
            **{
                "model": self._model,
                "prompt": f"{rng.choice(PROMPTS)} {rng.random():.3f}",
                "max_tokens": rng.randint(1, 32),
                "temperature": rng.choice((0.0, 1.0)),
                **options,
            }
        )

    def leave(self, rng: random.Random) -> None:
        """Close a stream after some of it, maybe before anything came."""
        with self._complete(rng, stream=True, max_tokens=200, n=rng.choice((1, 1, 2))) as stream:
            for _ in range(rng.choice((0, 1, 3, 10, 30))):
                if next(iter(stream), None) is None:
                    break

    def stream(self, rng: random.Random) -> None:
        """Read a stream to its end."""
        pieces = list(self._complete(rng, stream=True))
        if not pieces[-1].choices[0].finish_reason:
            raise ValueError("it ended without a reason")

    def talk(self, rng: random.Random) -> None:
        """Two turns of a conversation."""
        turns: list[Any] = [{"role": "system", "content": SYSTEM}]
        for _ in range(2):
            turns.append({"role": "user", "content": rng.choice(PROMPTS)})
            answer = self._client.chat.completions.create(model=self._model, messages=turns, max_tokens=16)
            turns.append({"role": "assistant", "content": answer.choices[0].message.content})

    def several(self, rng: random.Random) -> None:
        """Some answers to each of two prompts."""
        answer = self._complete(rng, prompt=list(PROMPTS[:2]), n=2, logprobs=2, max_tokens=8)
        if len(answer.choices) != 4:
            raise ValueError(f"{len(answer.choices)} choices")

    def as_json(self, rng: random.Random) -> None:
        """An answer that keeps to a schema."""
        form = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
        self._complete(rng, max_tokens=24, extra_body={"response_format": form})

    def refused(self, rng: random.Random) -> None:
        """Something that cannot be asked."""
        try:
            self._complete(
                rng, **rng.choice(({"max_tokens": 10**9}, {"prompt": ""}, {"n": 1000}, {"top_p": 2.0}))
            )
        except openai.BadRequestError:
            return
        raise ValueError("it was not refused")


def in_use(url: str) -> dict[str, float]:
    """What the server says is under way and kept."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = {line.split()[0]: float(line.split()[-1]) for line in lines if line[:1] != "#"}
    names = ("running", "waiting", "cache_pages_used", "cache_pages_kept", "cached_tokens_total")
    return {name: found[f"awq_tvm_{name}"] for name in names}


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process afterwards, whatever happened."""
    try:
        yield
    finally:
        process.terminate()


def main() -> int:
    """Run the load and say what was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--bar", type=float, default=32, help="MiB that memory may grow by")
    arguments = parser.parse_args()
    words = [sys.executable, "-m", "awq_tvm", "serve", arguments.bundle, "--port", "0", "--json"]
    with subprocess.Popen(
        [*words, "--threads", arguments.threads], stdout=subprocess.PIPE, text=True
    ) as process, ending(process):  # fmt: skip
        if process.stdout is None:
            raise SystemExit("the server has no output")
        url, process_id = json.loads(process.stdout.readline())["url"], process.pid
        load = Load(url)
        load.fill(url)
        begin, over = time.monotonic(), threading.Event()

        def client(seed: int) -> None:
            rng = random.Random(seed)
            while not over.is_set():
                load.one(rng)

        readings: list[tuple[float, float]] = []
        with ThreadPoolExecutor(arguments.clients) as pool:
            clients = [pool.submit(client, seed) for seed in range(arguments.clients)]
            while True:
                time.sleep(2)
                seconds = time.monotonic() - begin
                if seconds - (readings[-1][0] if readings else -30) >= 30:
                    readings.append((seconds, memory_of(process_id).get("VmRSS", 0) / 1024))
                    print(f"{seconds:6.0f} s  {readings[-1][1]:7.1f} MiB  {dict(load.done)}", file=sys.stderr)
                if seconds >= 60 * arguments.minutes and load.done["leave"] >= arguments.disconnects:
                    break
            over.set()
            for each in clients:
                each.result()
        deadline = time.monotonic() + 30
        while (left := in_use(url))["running"] + left["waiting"] and time.monotonic() < deadline:
            time.sleep(0.1)
        memory = memory_of(process_id).get("VmRSS", 0) / 1024
    early = next(mib for seconds, mib in readings if seconds >= readings[-1][0] / 3)
    found = {
        "schema_version": 1,
        "seconds": round(readings[-1][0]),
        "done": dict(load.done),
        "left": left,
        "mib_after_a_third": round(early, 1),
        "mib_most": round(max(mib for _, mib in readings), 1),
        "mib_at_the_end": round(memory, 1),
        "faults": load.faults[:10],
    }
    print(json.dumps(found))
    unused = left["running"] == left["waiting"] == left["cache_pages_used"] == 0
    return 0 if unused and not load.faults and memory - early <= arguments.bar else 1


if __name__ == "__main__":
    sys.exit(main())
