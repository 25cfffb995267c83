"""The counts of a pack as a table: arithmetic, and what the disassembler said; no times."""

from __future__ import annotations

from collections.abc import Sequence

from awq_tvm.compile.toolchain.launch import Launch

from .pack import Case

REGISTERS, THREADS, WARP = 65536, 2048, 32
"""Of an SM, from compute capability 8.0 on, but for 8.6, 8.7 and 8.9 with 1536 threads."""

SHARED_OF_SM = {
    "sm_80": 164 * 1024,
    "sm_86": 100 * 1024,
    "sm_87": 164 * 1024,
    "sm_89": 100 * 1024,
    "sm_90": 228 * 1024,
    "sm_90a": 228 * 1024,
    "sm_100": 228 * 1024,
}
RESERVED_SHARED = 1024
"""That the system keeps of each block's."""


def blocks_of_sm(arch: str, launch: Launch, kernel: dict[str, int]) -> int:
    """How many blocks of a kernel an SM has room for, by registers, shared memory and threads."""
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    # A warp's registers are given out 256 at a time.
    warp_registers = -(-kernel["registers"] * WARP // 256) * 256
    by_registers = REGISTERS // (warp_registers * (threads // WARP))
    shared = launch.shared_bytes + kernel["shared_bytes"] + RESERVED_SHARED
    most_threads = 1536 if arch in ("sm_86", "sm_87", "sm_89") else THREADS
    return min(by_registers, SHARED_OF_SM[arch] // shared, most_threads // threads)


HEADER = (
    "K x N",
    "M",
    "by",
    "blocks",
    "on an SM",
    "registers",
    "bytes MB",
    "floor",
    "copied / floor",
    "products / floor",
    "matrix instructions of a round",
    "others for 16 x 8 x 16",
)


def instructions_of(case: Case, m: int) -> str:
    """What multiplies at M."""
    return "wgmma" if m in case.rounds_weights_at else "mma"


def table(cases: Sequence[Case]) -> list[str]:
    """The counts of cases of one architecture as lines of Markdown.

    A round is what a warp does for its outputs and tokens and 64 k. The last column is what it issues beside matrix
    instructions for each product of 16 outputs, eight tokens and 16 k.
    """
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for case in cases:
        for m, counts in case.counts.items():
            launch = case.launches[m][0]
            kernel = case.kernels[launch.kernel]
            loop, matrix = kernel.get("loop_instructions", 0), kernel.get("loop_matrix", 0)
            cells = (
                case.shape,
                str(m),
                instructions_of(case, m),
                _blocks(counts),
                str(blocks_of_sm(case.arch, launch, kernel)),
                str(kernel["registers"]),
                f"{counts['copied_bytes'] / 1e6:.1f}",
                f"{counts['floor_bytes'] / 1e6:.1f}",
                f"{counts['copied_bytes'] / counts['floor_bytes']:.2f}",
                f"{counts['products'] / counts['floor_products']:.2f}",
                str(matrix) if loop else "",
                f"{(loop - matrix) / kernel['loop_products']:.1f}" if loop else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _blocks(counts: dict[str, int]) -> str:
    """Tiles of one block, and those that are divided by their parts."""
    if not counts["rest"]:
        return str(counts["whole"])
    divided = f"{counts['rest']} x {counts['parts']}"
    return f"{counts['whole']} + {divided}" if counts["whole"] else divided
