"""The same sequences read and continued by a GPU's bundle in the emulator, with CUDA graphs and without.

    python -m tests.support.emulated_graphs BUNDLE

Prints JSON: "launched", how many graphs were launched again; "steps" of one token; and whether the logits of all
steps are the same to the bit: "as_without" graphs, and "moved", in graphs that were captured on other tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.runtime.emulated import emulated_executor
from awq_tvm.runtime.executor import Executor
from awq_tvm.runtime.tvm_library import load_runtime_library

STEPS = 8


def story(executor: Executor) -> list[np.ndarray]:
    """Two sequences in turn, of which one ends and a third begins: the logits of every step."""
    found = []

    def read(sequence: int, *tokens: int) -> None:
        found.append(executor.forward([sequence], [list(tokens)]))

    first = executor.new_sequence()
    read(first, 3, 1, 4, 1, 5)
    read(first, 9)
    second = executor.new_sequence()
    read(second, 2, 6)
    for token in (5, 3, 5):
        read(second, token)
        read(first, token + 1)
    executor.remove_sequence(first)
    third = executor.new_sequence()
    read(third, *range(1, 20))
    read(third, 7)
    for sequence in (second, third):
        executor.remove_sequence(sequence)
    return found


def main(path: str) -> None:
    """The child."""
    with emulated_executor(open_bundle(Path(path), target=False)) as executor:
        assert executor.graphs
        in_graphs = story(executor)
        launched = load_runtime_library("cpu").get_global_func("awq_emulate.graph_launches")()
        # The fault: tensors of its own, while the graphs hold those of the first, which are kept.
        kept = executor._decode
        executor._decode = executor._bind_decode()
        moved = story(executor)
        executor.graphs = False
        executor._decode = executor._bind_decode()
        without = story(executor)
        del kept
    same = [all(map(np.array_equal, found, without)) for found in (in_graphs, moved)]
    print(json.dumps({"launched": int(launched), "steps": STEPS, "as_without": same[0], "moved": same[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
