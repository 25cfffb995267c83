"""What is in the machine code of a CUDA kernel: its instructions, and those of the loop that multiplies.

The disassembler is `nvdisasm`, of the CUDA toolkit or of the package `nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_KERNEL = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,6}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*);")
_JUMP = re.compile(r"`\((\.L_x_\d+)\)")
_MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA")
_WARPGROUPS = re.compile(r"HGMMA\.64x(\d+)x(\d+)\.")


@dataclass(frozen=True)
class MachineCode:
    """One kernel's, without the padding at its end.

    Attributes:
        instructions: names with their modifiers, in order: "LDGSTS.E.BYPASS.128".
        loop: those of the loop with the most matrix products; empty if there is none.
    """

    instructions: tuple[str, ...]
    loop: tuple[str, ...]

    def count(self, *names: str) -> int:
        """How many instructions have one of these names, whatever their modifiers."""
        return _count(self.instructions, names)

    def counts(self) -> dict[str, int]:
        """What the tables of a pack show.

        Returns:
            "instructions", "matrix" (of those, matrix instructions), "copies_16" and "copies" (asynchronous copies to
            shared memory, those of 16 bytes and all); of the loop "loop_instructions", "loop_matrix" and
            "loop_products", what these compute of 16 x 8 x 16 for one warp.
        """
        copies = [name for name in self.instructions if name.startswith("LDGSTS")]
        return {
            "instructions": len(self.instructions),
            "matrix": self.count(*_MATRIX),
            "copies": len(copies),
            "copies_16": sum(name.endswith(".128") for name in copies),
            "loop_instructions": len(self.loop),
            "loop_matrix": _count(self.loop, _MATRIX),
            "loop_products": sum(map(_products, self.loop)),
        }


def find_disassembler() -> str | None:
    """The path of nvdisasm, or None where there is none."""
    if on_path := shutil.which("nvdisasm"):
        return on_path
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("cu*/bin/nvdisasm")]
    return str(found[0]) if found else None


def disassemble(image: Path) -> str | None:
    """The listing of a cubin, or None where there is no disassembler."""
    tool = find_disassembler()
    if tool is None:
        return None
    return subprocess.run([tool, "-c", str(image)], capture_output=True, text=True, check=True).stdout


def read_listing(listing: str) -> dict[str, MachineCode]:
    """The kernels of what ``disassemble`` returned, by name."""
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if kernel := _KERNEL.match(line):
            lines = kernels.setdefault(kernel[1], [])
        else:
            lines.append(line)
    return {name: _read(lines) for name, lines in kernels.items()}


def _read(lines: list[str]) -> MachineCode:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[str, ...]] = []
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif (found := _INSTRUCTION.match(line)) and found[1] != "NOP":
            instructions.append(found[1])
            jump = _JUMP.search(found[2])
            # To a label before it; what only jumps to itself is padding.
            if (
                found[1].startswith("BRA")
                and jump
                and labels.get(jump[1], len(instructions)) < len(instructions) - 1
            ):
                loops.append(tuple(instructions[labels[jump[1]] :]))
    best = max(loops, key=lambda loop: (_count(loop, _MATRIX), -len(loop)), default=())
    if instructions and instructions[-1] == "BRA":
        instructions.pop()
    return MachineCode(tuple(instructions), best if _count(best, _MATRIX) else ())


def _products(instruction: str) -> int:
    """Products of 16 x 8 x 16 of a warp: a warpgroup's of 64 rows are 16 for each of its warps."""
    if found := _WARPGROUPS.match(instruction):
        return int(found[1]) // 8 * int(found[2]) // 16
    return int(instruction.startswith("HMMA.16816."))


def _count(instructions: tuple[str, ...], names: tuple[str, ...]) -> int:
    return sum(instruction.split(".")[0] in names for instruction in instructions)
