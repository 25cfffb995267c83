"""The kernels of one linear, and what is in their machine code: ``python -m benchmarks.gpu.kernel_table KxN``.

Counts, and no times. Needs nvcc and nvdisasm, and no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from awq_tvm.errors import AwqTvmError, TargetError
from awq_tvm.schedules.cuda.config import FewConfig
from awq_tvm.schedules.cuda.division import division_of
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

from .build import build_cases, rule_of
from .count_table import instructions_of
from .counts import Config, config_for
from .machine_code import find_disassembler
from .pack import OURS, WITH_MMA, Case

MANY = 1 << 14
"""M for which no kernel is launched but that for many tokens."""

HEADER = (
    "M up to",
    "by",
    "outputs x tokens of a block",
    "registers",
    "bytes spilled",
    "matrix instructions of a round",
    "all instructions of it",
    "outside the loop",
)


def kernel_table(spec: MatmulSpec, target: Target) -> list[str]:
    """The kernels of a linear as lines of Markdown; a round is a warp's turn of the loop over k.

    Raises:
        UnsupportedError: the tensor-core kernels do not serve it.
        TargetError: nvcc or nvdisasm is missing, or nvcc rejects the source.
    """
    if find_disassembler() is None:
        raise TargetError(
            "Machine code cannot be read here",
            why="nvdisasm was not found",
            fix="pip install nvidia-cuda-nvdisasm, or put the CUDA toolkit's bin folder on PATH",
        )
    configs = {name: rule_of(name, spec, target)[1] for name in (OURS, WITH_MMA)}
    ships = configs[OURS]
    ends = [few.most_tokens for few in ships.few] + [one.tokens for one in ships.middle]
    ends += [m for config in configs.values() for m in _most_in_clusters(spec, config)]
    with TemporaryDirectory(prefix="awq-tvm-") as folder:
        cases = build_cases(spec, target, sorted({*ends, MANY}), Path(folder))
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for case in cases:
        rows = _rows(case, spec, configs[case.name])
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return lines


def _most_in_clusters(spec: MatmulSpec, config: Config) -> list[int]:
    """The largest M above those of the middle whose tiles are clusters, if there is one."""
    tokens = config.many.tokens
    first = config.middle[-1].tokens // tokens + 1
    every = range(first * tokens, MANY, tokens)
    return [m for m in every if division_of(spec, config, config.many, m).clustered][-1:]


def _rows(case: Case, spec: MatmulSpec, config: Config) -> Iterator[tuple[str, ...]]:
    """Those that multiply, by the largest M for which each is launched, and one row for all that add parts of k."""
    largest = {launches[0].kernel: m for m, launches in case.launches.items()}
    for name, m in largest.items():
        one, counted = config_for(spec, config, m), case.kernels[name]
        tokens = one.most_tokens if isinstance(one, FewConfig) else one.tokens
        loop = counted["loop_instructions"]
        yield (
            "more" if m == MANY else str(m),
            instructions_of(case, m),
            f"{one.rows} x {tokens}",
            str(counted["registers"]),
            str(counted["spill_bytes"]),
            # Where k has few blocks, the compiler leaves no loop.
            str(counted["loop_matrix"]) if loop else "",
            str(loop) if loop else "",
            str(counted["instructions"] - loop),
        )
    adding = [counted for counted in case.kernels.values() if not counted["matrix"]]
    if adding:
        registers, spilled, code = (
            sorted({counted[key] for counted in adding})
            for key in ("registers", "spill_bytes", "instructions")
        )
        yield ("", "adds parts", "", _range(registers), _range(spilled), "", "", _range(code))


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", help="KxN")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="float16", help="of x: float16 or bfloat16")
    options = parser.parse_args(arguments)
    k, n = map(int, options.shape.split("x"))
    try:
        spec = MatmulSpec(k, n, options.bits, options.group_size, options.dtype)
        lines = kernel_table(spec, resolve(options.target))
    except AwqTvmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"Counts of {options.shape} for {options.target}. No time was measured.\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
