"""Counts in machine code: of each kernel its instructions, and those of the loop that multiplies."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\w+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")


def disassemble(image: Path) -> str | None:
    """The text of a binary's machine code, or None where cuobjdump is not on the path."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        return None
    return subprocess.run([tool, "-sass", str(image)], capture_output=True, text=True, check=True).stdout


def count(listing: str) -> dict[str, dict[str, int]]:
    """Counts by kernel.

    Returns:
        For each kernel "instructions", "hmma" (matrix products), "copies_16" and "copies" (asynchronous copies to
        shared memory, those of 16 bytes and all), and of the loop with the most matrix products
        "loop_instructions" and "loop_hmma".
    """
    found: dict[str, dict[str, int]] = {}
    name, code = "", list[tuple[int, str, str]]()
    for line in listing.splitlines():
        if function := _FUNCTION.match(line):
            if name:
                found[name] = _of(code)
            name, code = function[1], []
        elif instruction := _INSTRUCTION.match(line):
            code.append((int(instruction[1], 16), instruction[2], instruction[3]))
    if name:
        found[name] = _of(code)
    return found


def _of(code: list[tuple[int, str, str]]) -> dict[str, int]:
    # What follows the end is padding: a jump to itself, and nothing.
    code = [(at, op, rest) for at, op, rest in code if op != "NOP"]
    loops = []
    for at, op, rest in code:
        target = _TARGET.search(rest)
        if op.startswith("BRA") and target and int(target[1], 16) < at:
            loops.append([one for one in code if int(target[1], 16) <= one[0] <= at])
    best = max(loops, key=lambda loop: (_hmma(loop), -len(loop)), default=[])
    copies = [op for _, op, _ in code if op.startswith("LDGSTS")]
    return {
        "instructions": len(code),
        "hmma": _hmma(code),
        "copies": len(copies),
        "copies_16": sum(".128" in op for op in copies),
        "loop_instructions": len(best) if _hmma(best) else 0,
        "loop_hmma": _hmma(best),
    }


def _hmma(code: list[tuple[int, str, str]]) -> int:
    return sum(op.startswith("HMMA") for _, op, _ in code)
