"""NVIDIA GPUs.

Sources: bandwidth, peaks and SM counts from NVIDIA's data sheets and architecture white papers, dense rates
at boost clock; shared memory per block, registers and warp size from the compute capability tables of the
CUDA C++ Programming Guide. float16 rates are with float32 sums.
The figures are as published by the maker and stated here from general knowledge; only some were compared
with a listing. Nothing but roofline ranking reads them: check one before you build on it.
"""

from __future__ import annotations

from typing import Any

from awq_tvm.targets.description import Target

KIB, MIB = 2**10, 2**20

X86_HOST = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu"}
JETSON_HOST = {"kind": "llvm", "mtriple": "aarch64-unknown-linux-gnu", "mcpu": "cortex-a78ae"}

# The most shared memory one block may opt into, by compute capability.
SHARED_MEMORY_BYTES = {
    "sm_75": 64 * KIB,
    "sm_80": 163 * KIB,
    "sm_86": 99 * KIB,
    "sm_87": 163 * KIB,
    "sm_89": 99 * KIB,
    "sm_90": 227 * KIB,
    "sm_100": 227 * KIB,
}


def cuda_target(
    name: str,
    summary: str,
    *,
    arch: str,
    archs: tuple[str, ...] | None = None,
    shared_memory_bytes: int | None = None,
    host: dict[str, Any] | None = None,
    **measures: Any,
) -> Target:
    """Describe an NVIDIA GPU.

    Args:
        name: the target's name.
        summary: one line.
        arch: "sm_90" and the like, never "sm_90a": TVM's rules take a suffix for a GPU without tensor cores.
        archs: the architectures to make binary code for; by default `arch` alone.
        shared_memory_bytes: the most one block may take; by default what `arch` allows.
        host: the CPU side; x86-64 Linux by default.
        **measures: the remaining fields of `Target`.
    """
    return Target(
        name=name,
        summary=summary,
        kind="cuda",
        family="cuda",
        tvm_target={
            "kind": "cuda",
            "arch": arch,
            "max_threads_per_block": 1024,
            # What a kernel gets without opting in to more.
            "max_shared_memory_per_block": 48 * KIB,
            "registers_per_block": 65536,
            "thread_warp_size": 32,
        },
        host=host or X86_HOST,
        sm_arch=arch,
        cuda_archs=archs or (arch,),
        shared_memory_bytes=shared_memory_bytes or SHARED_MEMORY_BYTES[arch],
        registers_per_sm=65536,
        warp_size=32,
        **measures,
    )


TARGETS = (
    cuda_target(
        "cuda-sm80-to-sm90",
        "any Ampere, Ada or Hopper GPU, and newer ones through PTX",
        arch="sm_80",
        archs=("sm_80", "sm_86", "sm_89", "sm_90"),
        ptx_arch="compute_90",
        shared_memory_bytes=SHARED_MEMORY_BYTES["sm_86"],  # the least of the four
    ),
    cuda_target(
        "jetson-agx-orin",
        "Jetson AGX Orin 64 GB, 16 SMs, 256-bit LPDDR5",
        arch="sm_87",
        host=JETSON_HOST,
        num_sms=16,
        l2_bytes=4 * MIB,
        read_bandwidth_gb_per_s=204.8,
        fp32_gflops=5_300.0,
    ),
    cuda_target(
        "nvidia-t4",
        "Tesla T4, Turing, 40 SMs; no cp.async and no m16n8k16",
        arch="sm_75",
        num_sms=40,
        l2_bytes=4 * MIB,
        read_bandwidth_gb_per_s=320.0,
        int8_dot_gops=130_000.0,
        fp32_gflops=8_100.0,
        fp16_gflops=65_000.0,
    ),
    cuda_target(
        "nvidia-a10",
        "A10, Ampere, 72 SMs",
        arch="sm_86",
        num_sms=72,
        l2_bytes=6 * MIB,
        read_bandwidth_gb_per_s=600.0,
        int8_dot_gops=250_000.0,
        fp32_gflops=31_200.0,
        fp16_gflops=125_000.0,
    ),
    cuda_target(
        "nvidia-a100",
        "A100 80 GB SXM, Ampere, 108 SMs",
        arch="sm_80",
        num_sms=108,
        l2_bytes=40 * MIB,
        read_bandwidth_gb_per_s=2_039.0,
        int8_dot_gops=624_000.0,
        fp32_gflops=19_500.0,
        fp16_gflops=312_000.0,
    ),
    cuda_target(
        "nvidia-rtx-3090",
        "GeForce RTX 3090, Ampere, 82 SMs",
        arch="sm_86",
        num_sms=82,
        l2_bytes=6 * MIB,
        read_bandwidth_gb_per_s=936.0,
        int8_dot_gops=284_000.0,
        fp32_gflops=35_600.0,
        fp16_gflops=71_000.0,
    ),
    cuda_target(
        "nvidia-rtx-4090",
        "GeForce RTX 4090, Ada, 128 SMs",
        arch="sm_89",
        num_sms=128,
        l2_bytes=72 * MIB,
        read_bandwidth_gb_per_s=1_008.0,
        int8_dot_gops=660_600.0,
        fp32_gflops=82_600.0,
        fp16_gflops=165_200.0,
    ),
    cuda_target(
        "nvidia-l4",
        "L4, Ada, 58 SMs",
        arch="sm_89",
        num_sms=58,
        l2_bytes=48 * MIB,
        read_bandwidth_gb_per_s=300.0,
        int8_dot_gops=242_000.0,
        fp32_gflops=30_300.0,
        fp16_gflops=121_000.0,
    ),
    cuda_target(
        "nvidia-l40s",
        "L40S, Ada, 142 SMs",
        arch="sm_89",
        num_sms=142,
        l2_bytes=96 * MIB,
        read_bandwidth_gb_per_s=864.0,
        int8_dot_gops=733_000.0,
        fp32_gflops=91_600.0,
        fp16_gflops=362_000.0,
    ),
    cuda_target(
        "nvidia-h100",
        "H100 80 GB SXM, Hopper, 132 SMs",
        arch="sm_90",
        archs=("sm_90a",),
        num_sms=132,
        l2_bytes=50 * MIB,
        read_bandwidth_gb_per_s=3_350.0,
        int8_dot_gops=1_979_000.0,
        fp32_gflops=67_000.0,
        fp16_gflops=989_000.0,
    ),
    cuda_target(
        "nvidia-h200",
        "H200 141 GB SXM, Hopper, 132 SMs",
        arch="sm_90",
        archs=("sm_90a",),
        num_sms=132,
        l2_bytes=50 * MIB,
        read_bandwidth_gb_per_s=4_800.0,
        int8_dot_gops=1_979_000.0,
        fp32_gflops=67_000.0,
        fp16_gflops=989_000.0,
    ),
    cuda_target(
        "nvidia-b200",
        "B200 SXM as in HGX B200, Blackwell, 148 SMs",
        arch="sm_100",
        num_sms=148,
        read_bandwidth_gb_per_s=7_700.0,
        int8_dot_gops=4_500_000.0,
        fp32_gflops=75_000.0,
        fp16_gflops=2_250_000.0,
    ),
)
