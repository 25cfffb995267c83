"""The same products by PyTorch, on the same GPU: cuBLAS in float16, its kernel for 4-bit weights, and two steps.

Those dequantize the weight in one kernel, which PyTorch's compiler makes, and multiply by cuBLAS: what is left to do
without a kernel that does both, and what such a kernel has to beat for every M.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from awq_tvm.schedules.spec import MatmulSpec

from .report import APART, CUBLAS, INT4
from .timing import Contender, copies_beyond

LEAST_CALLS = 20
"""Of a graph, so that what it takes to launch one counts for little."""


def torch_contenders(
    torch: Any, spec: MatmulSpec, m: int, l2_bytes: int
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders, and of those that this PyTorch does not have the reason.

    Args:
        torch: the module.
        spec: the linear; weights are random, as times do not depend on them.
        m: tokens.
        l2_bytes: of the GPU; weights rotate beyond it.
    """
    found, left_out = [], {}
    for name, make in ((CUBLAS, _dense), (INT4, _int4), (APART, _apart)):
        try:
            call, size = make(torch, spec, m)
            found.append(Contender(name, _recorded(torch, call, copies_beyond(l2_bytes, size))))
        except (RuntimeError, AttributeError, TypeError, ImportError) as error:
            left_out[name] = str(error).splitlines()[0]
    return found, left_out


def _dense(torch: Any, spec: MatmulSpec, m: int) -> tuple[Callable[[], Callable[[], Any]], int]:
    x = torch.randn(m, spec.in_features, device="cuda", dtype=torch.float16)

    def copy() -> Callable[[], Any]:
        weight = torch.randn(spec.out_features, spec.in_features, device="cuda", dtype=torch.float16)
        return lambda: torch.matmul(x, weight.T)

    return copy, 2 * spec.in_features * spec.out_features


def _int4(torch: Any, spec: MatmulSpec, m: int) -> tuple[Callable[[], Callable[[], Any]], int]:
    x = torch.randn(m, spec.in_features, device="cuda", dtype=torch.bfloat16)
    groups = spec.in_features // spec.group_size

    def copy() -> Callable[[], Any]:
        shape = (spec.out_features, spec.in_features // 2)
        codes = torch.randint(0, 256, shape, device="cuda", dtype=torch.uint8)
        weight = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        beside = torch.randn(groups, spec.out_features, 2, device="cuda", dtype=torch.bfloat16)
        return lambda: torch.ops.aten._weight_int4pack_mm(x, weight, spec.group_size, beside)

    copy()()  # what is not there says so before anything is recorded
    return copy, spec.in_features * spec.out_features // 2 + 4 * groups * spec.out_features


def dequantized(torch: Any, codes: Any, scales: Any, zeros: Any) -> Any:
    """W, float16 [N, K].

    Args:
        torch: the module.
        codes: uint8 [N, K / 2], two of 4 bits in each, the lower first.
        scales: float16 [N, K / group_size].
        zeros: float16, the same shape.
    """
    both = torch.stack((codes & 15, codes >> 4), -1)
    grouped = both.view(*scales.shape, -1).to(torch.float16)
    return ((grouped - zeros[..., None]) * scales[..., None]).view(codes.shape[0], -1)


def _apart(torch: Any, spec: MatmulSpec, m: int) -> tuple[Callable[[], Callable[[], Any]], int]:
    x = torch.randn(m, spec.in_features, device="cuda", dtype=torch.float16)
    groups = spec.in_features // spec.group_size
    in_one_kernel = torch.compile(partial(dequantized, torch))

    def copy() -> Callable[[], Any]:
        shape = (spec.out_features, spec.in_features // 2)
        codes = torch.randint(0, 256, shape, device="cuda", dtype=torch.uint8)
        scales, zeros = torch.randn(2, spec.out_features, groups, device="cuda", dtype=torch.float16)
        return lambda: torch.matmul(x, in_one_kernel(codes, scales, zeros).T)

    copy()()  # compiles, or says why not
    return copy, spec.in_features * spec.out_features // 2 + 4 * groups * spec.out_features


def _recorded(torch: Any, copy: Callable[[], Callable[[], Any]], copies: int) -> Callable[[], float]:
    """Seconds a call, of a graph of calls through all copies of the weight."""
    calls = [copy() for _ in range(copies)]
    rounds = -(-LEAST_CALLS // copies)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()

    def seconds() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / (rounds * copies)

    return seconds
