"""Apple GPUs: the base chips of each generation.

Sources: core counts, bandwidth and, where Apple states it, float32 throughput from Apple's announcements;
threadgroup memory and SIMD-group width from the Metal Feature Set Tables (family Apple7 and later).
Stated from general knowledge of those pages, not copied from them: check a figure before you build on it.
"""

from __future__ import annotations

from typing import Any

from awq_tvm.targets.arm import MACOS_TRIPLE
from awq_tvm.targets.description import Target

THREADGROUP_MEMORY_BYTES = 32 * 2**10
SIMD_WIDTH = 32


def metal_target(generation: str, summary: str, **measures: Any) -> Target:
    """Describe the GPU of an Apple chip, "m1" say; `measures` are the remaining fields of `Target`."""
    return Target(
        name=f"apple-{generation}-gpu",
        summary=summary,
        kind="metal",
        family="metal",
        tvm_target={
            "kind": "metal",
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": THREADGROUP_MEMORY_BYTES,
            "thread_warp_size": SIMD_WIDTH,
        },
        host={"kind": "llvm", "mtriple": MACOS_TRIPLE, "mcpu": f"apple-{generation}"},
        shared_memory_bytes=THREADGROUP_MEMORY_BYTES,
        warp_size=SIMD_WIDTH,
        **measures,
    )


TARGETS = (
    metal_target(
        "m1", "Apple M1, 8 GPU cores", num_sms=8, read_bandwidth_gb_per_s=68.25, fp32_gflops=2_600.0
    ),
    metal_target(
        "m2", "Apple M2, 10 GPU cores", num_sms=10, read_bandwidth_gb_per_s=100.0, fp32_gflops=3_600.0
    ),
    metal_target("m3", "Apple M3, 10 GPU cores", num_sms=10, read_bandwidth_gb_per_s=100.0),
    metal_target("m4", "Apple M4, 10 GPU cores", num_sms=10, read_bandwidth_gb_per_s=120.0),
)
