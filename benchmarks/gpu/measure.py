"""What a GPU does: its limits, then every linear and M beside PyTorch and our other kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.tuning.cuda_driver import Gpu
from awq_tvm.schedules.spec import MatmulSpec

from .check import error_of, random_weight
from .pack import IN_TURN, OURS, Case
from .peers import LEAST_CALLS, torch_contenders
from .report import Limits, Row
from .timing import LEAST_ROTATED_BYTES, Contender, copies_beyond, interleaved

READ_BYTES, ROUNDS = 1 << 30, 4096
"""What is read, and how often each warp multiplies, to find the machine's limits."""

_PRODUCTS, _OPERATIONS = 8, 2 * 16 * 8 * 16
"""Of a round of the kernel ``multiply``, and of one matrix product."""

_OF_WARPGROUP, _WARPGROUP_SHARED = 2 * 64 * 128 * 16, 17408
"""Operations of a round of a warpgroup in ``multiply_wgmma``, and the shared memory of its block."""

_SQUARE = 8192


def measure_limits(
    gpu: Gpu,
    image: str,
    wgmma: bool,
    torch: Any,
    repetitions: int,
    read_bytes: int = READ_BYTES,
    rounds: int = ROUNDS,
) -> Limits:
    """Medians of the best that the machine does.

    Args:
        gpu: the device.
        image: name of the binary of ``limits.cu`` for it.
        wgmma: ``limits_hopper.cu`` is in it.
        torch: the module, or None.
        repetitions: of each.
        read_bytes: how much is read.
        rounds: how often each warp multiplies.
    """
    loaded = gpu.load(image)
    buffers = {"x": gpu.empty(read_bytes), "out": gpu.empty(4 * 512 * 16 * gpu.sms)}
    read = Launch("read16", ("out", "x", read_bytes // 16), (4 * gpu.sms, 1, 1), (512, 1, 1), 0)
    multiply = Launch("multiply", ("out", rounds), (4 * gpu.sms, 1, 1), (256, 1, 1), 0)
    hopper = Launch("multiply_wgmma", ("out", rounds), (4 * gpu.sms, 1, 1), (256, 1, 1), _WARPGROUP_SHARED)
    contenders = [
        Contender(one.kernel, lambda one=one: gpu.seconds(lambda: gpu.launch(loaded, one, buffers)))  # type: ignore[misc]
        for one in (read, multiply, *([hopper] if wgmma else []))
    ]
    if torch is not None:
        a, b = (torch.randn(_SQUARE, _SQUARE, device="cuda", dtype=torch.float16) for _ in range(2))

        def matmul() -> float:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            torch.matmul(a, b)
            last.record()
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        contenders.append(Contender("matmul", matmul))
    found = {one.name: one.median for one in interleaved(contenders, repetitions)}
    gpu.free_all()
    operations = multiply.blocks * 8 * rounds * _PRODUCTS * _OPERATIONS
    return Limits(
        read_bytes / found["read16"],
        operations / found["multiply"],
        hopper.blocks * 2 * rounds * _OF_WARPGROUP / found[hopper.kernel] if wgmma else None,
        2.0 * _SQUARE**3 / found["matmul"] if torch is not None else None,
    )


def measure_rows(
    gpu: Gpu, cases: Sequence[Case], torch: Any, repetitions: int, rotated: int = LEAST_ROTATED_BYTES
) -> Iterator[Row]:
    """Check, then time, every M of every case, in turn with others that compute the same.

    Args:
        gpu: the device.
        cases: for it, those that are called ours before the others.
        torch: the module, or None.
        repetitions: of each contender, in turn.
        rotated: bytes of weights that are gone through at least, one copy after the other.
    """
    for case in (case for case in cases if case.name == OURS):
        spec = MatmulSpec(**case.spec)
        for m in case.launches:
            same = [one for one in cases if one.spec == case.spec and m in one.launches]
            errors = {}
            for one in same:
                errors[one.name] = error_of(gpu, one, m)
                gpu.free_all()
            right = [one for one in same if errors[one.name] <= 1]
            wrong = {name: "wrong numbers" for name, error in errors.items() if not error <= 1}
            if case not in right:
                yield Row(case.shape, m, 0, 0.0, errors, (), wrong)
                continue
            peers, left_out = (
                torch_contenders(torch, spec, m, gpu.l2_bytes) if torch is not None else ([], {})
            )
            ours = [_ours(gpu, one, m, rotated) for one in right]
            if any(launch.overlaps for launch in case.launches[m]):
                ours.append(_in_turn(gpu, case, m, rotated))
            times = interleaved([*ours, *peers], repetitions)
            gpu.free_all()
            counts = case.counts[m]
            operations = 2.0 * m * spec.in_features * spec.out_features
            yield Row(
                case.shape, m, counts["floor_bytes"], operations, errors, tuple(times), {**wrong, **left_out}
            )


def _in_turn(gpu: Gpu, case: Case, m: int, rotated: int) -> Contender:
    """The same kernels as ``_ours``, each of which begins when the one before it has ended."""
    gpu.overlap = False
    try:
        return replace(_ours(gpu, case, m, rotated), name=IN_TURN)
    finally:
        gpu.overlap = True


def _ours(gpu: Gpu, case: Case, m: int, rotated: int) -> Contender:
    """Our kernels for M, recorded as a graph through all copies of the weight."""
    spec = MatmulSpec(**case.spec)
    weight = random_weight(spec, case.layout, seed=1)
    size = sum(array.nbytes for array in weight.values())
    copies = copies_beyond(gpu.l2_bytes, size, rotated)
    shared = {
        "x": gpu.upload(np.random.default_rng(1).standard_normal((m, spec.in_features)).astype(np.float16)),
        "y": gpu.empty(2 * m * spec.out_features),
        **{name: gpu.empty(needed) for name, needed in case.workspaces.items()},
    }
    first = {name: gpu.upload(array) for name, array in weight.items()}
    others = [
        {name: gpu.copy(buffer, weight[name].nbytes) for name, buffer in first.items()}
        for _ in range(copies - 1)
    ]
    image = gpu.image(case)
    rounds = -(-LEAST_CALLS // copies)

    def start() -> None:
        for buffers in (first, *others):
            for launch in case.launches[m]:
                gpu.launch(image, launch, {**shared, **buffers})

    # Once before it is recorded: kernels are loaded when they are first launched.
    start()
    gpu.wait()

    def all_rounds() -> None:
        for _ in range(rounds):
            start()

    graph = gpu.graph(all_rounds)
    return Contender(case.name, lambda: gpu.seconds(graph) / (rounds * copies))
