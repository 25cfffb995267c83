"""Runs a GPU's bundle in the emulator, in a process of its own: its tokens, logits and launches.

    python -m tests.support.emulated_bundle BUNDLE PLAN.json INTO.npz

The plan: "parts", what is read at once, each a number of tokens and the rows of logits that are wanted ("last" or
"all"); "greedy", how many tokens are generated after them; "vocabulary", from which the tokens read are drawn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.support.child import output_of

Part = tuple[int, Literal["last", "all"]]


@dataclass(frozen=True)
class Emulated:
    """What came of it.

    Attributes:
        ids: what was read and then generated.
        logits: the rows that were wanted, then one for each generated token.
        rows: after which of ``ids`` each row of logits comes.
        launches: how often each kernel was launched.
        overlapped: how many of the launches might begin before those before them had ended.
    """

    ids: list[int]
    logits: np.ndarray[Any, Any]
    rows: list[int]
    launches: dict[str, int]
    overlapped: int


def run_in_emulator(
    bundle: Path, folder: Path, *, parts: list[Part], greedy: int, vocabulary: int
) -> Emulated:
    """Read tokens drawn by chance, generate more, in a child process; ``folder`` takes what it needs."""
    plan, into = folder / "plan.json", folder / "found.npz"
    plan.write_text(json.dumps({"parts": parts, "greedy": greedy, "vocabulary": vocabulary}))
    output_of(__name__, bundle, plan, into)
    with np.load(into) as found:
        launches = json.loads(str(found["launches"]))
        overlapped = int(found["overlapped"])
        return Emulated(found["ids"].tolist(), found["logits"], found["rows"].tolist(), launches, overlapped)


def main(bundle: str, plan_path: str, into: str) -> None:
    """The child."""
    from awq_tvm.bundle.reader import open_bundle
    from awq_tvm.runtime.emulated import emulated_executor, launches
    from awq_tvm.runtime.logit_row import DeviceRow, likeliest
    from awq_tvm.runtime.tvm_library import load_runtime_library

    plan = json.loads(Path(plan_path).read_text())
    counts = [count for count, _ in plan["parts"]]
    drawn = np.random.default_rng(0).integers(0, plan["vocabulary"], sum(counts))
    ids, rows, logits = [int(token) for token in drawn], list[int](), []
    with emulated_executor(open_bundle(Path(bundle), target=False)) as executor:
        sequence, at = executor.new_sequence(), 0
        for count, wanted in plan["parts"]:
            logits.append(executor.forward([sequence], [ids[at : at + count]], logits=wanted))
            at += count
            rows += range(at - count if wanted == "all" else at - 1, at)
        for _ in range(plan["greedy"]):
            ids.append(int(logits[-1][-1].argmax()))
            rows.append(len(ids) - 1)
            (row,) = executor.step([sequence], [ids[-1:]], [0.0])
            assert isinstance(row, DeviceRow)
            logits.append(row.whole()[None])
            assert likeliest(row) == int(row.whole().argmax())
    overlapped = int(load_runtime_library("cpu").get_global_func("awq_emulate.overlapped_launches")())
    counted = {"launches": json.dumps(launches()), "overlapped": overlapped}
    np.savez(into, ids=ids, logits=np.concatenate(logits), rows=rows, **counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
