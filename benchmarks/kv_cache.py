"""What a KV cache of fewer bits costs and gains: two bundles of one model, the second against the first.

    python -m benchmarks.kv_cache BUNDLE_FLOAT16 BUNDLE_INT8 --text FILE
    python -m benchmarks.kv_cache BUNDLE_FLOAT16 BUNDLE_INT8 --text FILE --tokens 1024 --depths 128,1000 --threads 2

The text is read one token at a time, as an answer is written, so every key and value comes from the cache; windows
go side by side. Prints a JSON line with both perplexities, the KL divergence of the second from the first and how
often both would choose the same token, then one for each depth: milliseconds for a token behind so many, quartiles
of turns that both bundles take one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from awq_tvm.bundle.verify import read_manifest
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.evaluate import read_text
from awq_tvm.scoring import Score, windows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="of the text")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--depths", default="128,512,1000", help="tokens in the cache where time is taken")
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    engines = [Engine.load(bundle, threads=options.threads) for bundle in options.bundles]
    names = [read_manifest(bundle).recipe.extra["kv_cache"] for bundle in options.bundles]
    ids = engines[0].tokenizer.encode(read_text(options.text))[: options.tokens]
    first, second = compare(engines, list(windows(ids, options.context)))
    print(
        json.dumps(
            {
                "kv_cache": names,
                "perplexity": [round(score.perplexity, 4) for score in (first, second)],
                "kl_divergence": second.kl_divergence,
                "top1_agreement": second.top1_agreement,
                "tokens": second.as_dict()["tokens"],
            }
        ),
        flush=True,
    )
    for depth in map(int, options.depths.split(",")):
        times = time_tokens(engines, ids, depth, options.repetitions)
        found = {
            name: [round(1000 * value, 3) for value in statistics.quantiles(own, n=4)]
            for name, own in zip(("first", "second"), times, strict=True)
        }
        print(json.dumps({"depth": depth, "threads": options.threads, "milliseconds": found}), flush=True)
    for engine in engines:
        engine.close()
    return 0


def compare(engines: Sequence[Engine], pieces: Sequence[np.ndarray]) -> tuple[Score, Score]:
    """Score both bundles over windows of token ids; the second one's distance is from the first."""
    scores = Score(), Score()
    together = 4
    for begin in range(0, len(pieces), together):
        batch = pieces[begin : begin + together]
        sequences = [[engine.executor.new_sequence() for _ in batch] for engine in engines]
        for place in range(max(map(len, batch)) - 1):
            alive = [i for i, piece in enumerate(batch) if place < len(piece) - 1]
            new = [[int(batch[i][place])] for i in alive]
            exact, near = (
                engine.executor.forward([own[i] for i in alive], new)
                for engine, own in zip(engines, sequences, strict=True)
            )
            targets = np.array([batch[i][place + 1] for i in alive])
            scores[0].add(exact, targets, None)
            scores[1].add(near, targets, exact)
        for engine, own in zip(engines, sequences, strict=True):
            for sequence in own:
                engine.executor.remove_sequence(sequence)
    return scores


def time_tokens(
    engines: Sequence[Engine], ids: Sequence[int], depth: int, repetitions: int
) -> list[list[float]]:
    """Seconds for each of so many tokens behind the first ``depth``, by bundle; bundles take turns."""
    sequences = [engine.executor.new_sequence() for engine in engines]
    for engine, sequence in zip(engines, sequences, strict=True):
        engine.executor.forward([sequence], [list(ids[:depth])])
    times: list[list[float]] = [[] for _ in engines]
    for turn in range(repetitions + 1):
        for engine, sequence, own in zip(engines, sequences, times, strict=True):
            begin = time.perf_counter()
            engine.executor.forward([sequence], [[ids[depth + turn]]])
            if turn:
                own.append(time.perf_counter() - begin)
    for engine, sequence in zip(engines, sequences, strict=True):
        engine.executor.remove_sequence(sequence)
    return times


if __name__ == "__main__":
    sys.exit(main())
