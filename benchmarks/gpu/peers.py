"""The same products by PyTorch, on the same GPU: cuBLAS in float16, and its own kernel for 4-bit weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awq_tvm.schedules.spec import MatmulSpec

from .report import CUBLAS, INT4
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
    for name, make in ((CUBLAS, _dense), (INT4, _int4)):
        try:
            call, size = make(torch, spec, m)
            found.append(Contender(name, _recorded(torch, call, copies_beyond(l2_bytes, size))))
        except (RuntimeError, AttributeError, TypeError) as error:
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
