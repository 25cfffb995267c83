"""Tokens a second of servers with 1, 4, 8 and 16 streams at once, and the time to the first token.

    python -m benchmarks.serve BUNDLE [--streams 1,4,8,16] [--threads N] [--peer NAME=URL] [--start NAME=COMMAND]

The bundle is served by a process of its own. A peer is any server with OpenAI's API, on the same machine: one that
runs already (--peer), or a command that starts it (--start), in which {port} and {threads} are filled in. llama.cpp's
own server, 16 places of 2048 tokens, and that of llama-cpp-python, in an environment of its own:

    --start 'llama.cpp=llama-server -m MODEL.gguf -t {threads} -tb {threads} -np 16 -cb -c 32768 --port {port}'
    --start 'llama-cpp-python=ENVIRONMENT/bin/python -m llama_cpp.server --model MODEL.gguf --n_threads {threads}
        --n_threads_batch {threads} --interrupt_requests false --port {port}'

Every stream asks greedily, one prompt after the other. All servers are asked the same and take turns, --repetitions
times over, so that other load meets all of them alike. Medians. With --prompt-words N prompts are that long, of words
by chance, and no two begin alike, so that nothing that a server keeps is of use to it.
"""

from __future__ import annotations

import argparse
import random
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import openai

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "To bake bread you need",
    "The three laws of motion are",
    "In the year 1969",
    "A good way to learn a language is",
    "The ocean is salty because",
    "Computers store numbers as",
)


def ask(client: openai.OpenAI, model: str, prompt: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first piece of text, and tokens written."""
    begin, first, written, pieces = time.perf_counter(), 0.0, 0, 0
    options: dict[str, Any] = {"stream_options": {"include_usage": True}}
    for piece in client.completions.create(
        model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True, **options
    ):
        if piece.choices and piece.choices[0].text:
            first = first or time.perf_counter() - begin
            pieces += 1
        written = piece.usage.completion_tokens if piece.usage else written
    return (
        first,
        written or pieces,
    )  # llama-cpp-python has no usage in streams, and sends each token by itself


def prompts_of(streams: int, words: int | None, seed: int = 0) -> list[list[str]]:
    """What each stream asks: two prompts, a single stream all of them.

    Args:
        streams: at once.
        words: of a prompt, drawn from PROMPTS; None for PROMPTS themselves, each stream beginning at another.
        seed: of the words.
    """
    if words is None:
        asked = [[PROMPTS[(stream + turn) % len(PROMPTS)] for turn in range(2)] for stream in range(streams)]
        return [list(PROMPTS)] if streams == 1 else asked
    rng, known = random.Random(seed), " ".join(PROMPTS).split()
    turns = 2 if streams > 1 else len(PROMPTS)
    return [[" ".join(rng.choices(known, k=words)) for _ in range(turns)] for _ in range(streams)]


def measure(url: str, turns: Sequence[Sequence[str]], tokens: int) -> tuple[float, float]:
    """Tokens a second of all streams together, and the median seconds to a first token."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    model = next(iter(client.models.list())).id

    def run(prompts: Sequence[str]) -> list[tuple[float, int]]:
        return [ask(client, model, prompt, tokens) for prompt in prompts]

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(turns)) as pool:
        found = [each for answers in pool.map(run, turns) for each in answers]
    seconds = time.perf_counter() - begin
    return sum(written for _, written in found) / seconds, statistics.median(first for first, _ in found)


@contextmanager
def started(command: str, threads: str, seconds: float = 120) -> Iterator[str]:
    """URL of a server that a command starts; it is ended afterwards.

    Raises:
        SystemExit: it does not answer in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.format(port=port, threads=threads) for word in shlex.split(command)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=5)
        deadline = time.monotonic() + seconds
        try:
            while not _answers(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"no server came of: {shlex.join(words)}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def start_ours(bundle: str, threads: str) -> AbstractContextManager[str]:
    """Our server on a bundle, as `started`."""
    words = [sys.executable, "-m", "awq_tvm", "serve", bundle]
    return started(f"{shlex.join(words)} --port {{port}} --threads {{threads}}", threads)


def _answers(client: openai.OpenAI) -> bool:
    try:
        model = next(iter(client.models.list())).id
        client.completions.create(model=model, prompt="a", max_tokens=1)
    except openai.OpenAIError:
        return False
    return True


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument(
        "--prompt-words", type=int, help="of a prompt; without it prompts are short sentences"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--start", action="append", default=[], metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.streams.split(",")]
    with ExitStack() as stack:
        urls = {"awq_tvm": stack.enter_context(start_ours(arguments.bundle, arguments.threads))}
        for name, command in (peer.split("=", 1) for peer in arguments.start):
            urls[name] = stack.enter_context(started(command, arguments.threads))
        urls |= dict(peer.split("=", 1) for peer in arguments.peer)
        rows: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for url in urls.values():
            measure(url, prompts_of(2, None), 4)
        for repetition in range(arguments.repetitions):
            for count in counts:
                turns = prompts_of(count, arguments.prompt_words, seed=repetition * 1000 + count)
                for name, url in urls.items():
                    rows.setdefault((name, count), []).append(measure(url, turns, arguments.tokens))
    print("server            streams  tokens/s  against 1 stream  first token, s")
    for (name, count), found in rows.items():
        rate = statistics.median(rate for rate, _ in found)
        base = statistics.median(rate for rate, _ in rows[name, counts[0]])
        first = statistics.median(first for _, first in found)
        print(f"{name:<16}  {count:>7}  {rate:>8.1f}  {rate / base:>16.2f}  {first:>14.3f}")


if __name__ == "__main__":
    main()
