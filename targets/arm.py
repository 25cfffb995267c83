"""64-bit ARM CPUs: boards, servers, phones and Apple's.

Bandwidths are the memory interface's, width times transfer rate, from the makers' pages. Compute peaks, where
given, are clock x cores x instructions a cycle (Arm's software optimization guides: FMLA and SDOT on 128-bit
vectors, two a cycle on Cortex-A76 and Neoverse N1, four on Neoverse V1 and V2) x operations an instruction
(FMLA 8, SDOT 32).
Stated from general knowledge of those pages, not copied from them: check a figure before you build on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from awq_tvm.targets.description import Target

LINUX_TRIPLE = "aarch64-unknown-linux-gnu"
ANDROID_TRIPLE = "aarch64-linux-android"
MACOS_TRIPLE = "arm64-apple-macos11.0"
IOS_TRIPLE = "arm64-apple-ios15.0"

KIB, MIB = 2**10, 2**20

# LLVM's names: v8.2-A with the dot product, the matrix extensions of v8.6-A, then vectors of no fixed width.
ARMV8 = frozenset({"neon"})
DOTPROD = ARMV8 | {"dotprod", "fullfp16", "lse", "rdm"}
APPLE_M1 = DOTPROD | {"fp16fml"}
MATRIX = DOTPROD | {"fp16fml", "i8mm", "bf16"}
SVE = MATRIX | {"sve"}
SVE2 = SVE | {"sve2"}

# What LLVM may use on these CPUs and Linux reports; the runtime compares them with the machine's.
KNOWN_FEATURES = SVE2


def arm_target(
    name: str,
    summary: str,
    *,
    mcpu: str,
    features: frozenset[str],
    cores: int,
    triple: str = LINUX_TRIPLE,
    mattr: Iterable[str] = (),
    **measures: Any,
) -> Target:
    """Describe an ARM CPU; int8 activations are its default where it has the dot product.

    Args:
        name: the target's name.
        summary: one line.
        mcpu: LLVM's CPU name.
        features: the LLVM features that matter, of `mcpu` or turned on by `mattr`.
        cores: cores to use.
        triple: the LLVM triple of the platform.
        mattr: "+feature" and "-feature" words beyond `mcpu`.
        **measures: the remaining fields of `Target`.
    """
    tvm_target: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": mcpu, "num-cores": cores}
    if words := list(mattr):
        tvm_target["mattr"] = words
    return Target(
        name=name,
        summary=summary,
        kind="cpu",
        family="arm",
        tvm_target=tvm_target,
        features=features,
        cores=cores,
        default_activations="int8" if "dotprod" in features else "float",
        **measures,
    )


def _apple(generation: str, summary: str, features: frozenset[str], l2_mib: int, bandwidth: float) -> Target:
    return arm_target(
        f"apple-{generation}-cpu",
        summary,
        mcpu=f"apple-{generation}",
        features=features,
        # The base chips have four performance cores; a static split over all cores would wait for the slow.
        cores=4,
        triple=MACOS_TRIPLE,
        l1_bytes=128 * KIB,
        l2_bytes=l2_mib * MIB,
        read_bandwidth_gb_per_s=bandwidth,
    )


TARGETS = (
    arm_target(
        "armv8.2-dotprod",
        "any 64-bit ARM Linux machine with the dot product (v8.2-A)",
        mcpu="generic",
        features=DOTPROD,
        mattr=[f"+{feature}" for feature in sorted(DOTPROD)],
        cores=4,
        l1_bytes=32 * KIB,
    ),
    arm_target(
        "raspberry-pi-4",
        "BCM2711, 4 Cortex-A72 at 1.8 GHz, 32-bit LPDDR4-3200; no dot product",
        mcpu="cortex-a72",
        features=ARMV8,
        cores=4,
        l1_bytes=32 * KIB,
        l2_bytes=1 * MIB,
        read_bandwidth_gb_per_s=12.8,
    ),
    arm_target(
        "raspberry-pi-5",
        "BCM2712, 4 Cortex-A76 at 2.4 GHz, 32-bit LPDDR4X-4267",
        mcpu="cortex-a76",
        features=DOTPROD,
        cores=4,
        l1_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=2 * MIB,
        read_bandwidth_gb_per_s=17.1,
        int8_dot_gops=614.4,  # 2.4 GHz x 4 cores x 2 SDOT x 32
        fp32_gflops=153.6,  # 2.4 GHz x 4 cores x 2 FMLA x 8
    ),
    arm_target(
        "graviton-2",
        "AWS, 64 Neoverse N1 at 2.5 GHz, 8 channels of DDR4-3200",
        mcpu="neoverse-n1",
        features=DOTPROD,
        cores=64,
        l1_bytes=64 * KIB,
        l2_bytes=1 * MIB,
        l3_bytes=32 * MIB,
        read_bandwidth_gb_per_s=204.8,
        int8_dot_gops=10240.0,  # 2.5 GHz x 64 cores x 2 SDOT x 32
        fp32_gflops=2560.0,  # 2.5 GHz x 64 cores x 2 FMLA x 8
    ),
    arm_target(
        "graviton-3",
        "AWS, 64 Neoverse V1 at 2.6 GHz, 8 channels of DDR5-4800",
        mcpu="neoverse-v1",
        features=SVE,
        cores=64,
        l1_bytes=64 * KIB,
        l2_bytes=1 * MIB,
        l3_bytes=32 * MIB,
        read_bandwidth_gb_per_s=307.2,
        int8_dot_gops=21299.2,  # 2.6 GHz x 64 cores x 4 SDOT x 32
        fp32_gflops=5324.8,  # 2.6 GHz x 64 cores x 4 FMLA x 8
    ),
    arm_target(
        "graviton-4",
        "AWS, 96 Neoverse V2 at 2.8 GHz, 12 channels of DDR5-5600",
        mcpu="neoverse-v2",
        features=SVE2,
        cores=96,
        l1_bytes=64 * KIB,
        l2_bytes=2 * MIB,
        l3_bytes=36 * MIB,
        read_bandwidth_gb_per_s=537.6,
        int8_dot_gops=34406.4,  # 2.8 GHz x 96 cores x 4 SDOT x 32
        fp32_gflops=8601.6,  # 2.8 GHz x 96 cores x 4 FMLA x 8
    ),
    arm_target(
        "snapdragon-x",
        "Qualcomm X Elite, 12 Oryon cores, 128-bit LPDDR5X-8448, under Linux",
        mcpu="oryon-1",
        features=MATRIX,
        cores=12,
        l1_bytes=96 * KIB,
        l2_bytes=12 * MIB,  # one for each cluster of four cores
        read_bandwidth_gb_per_s=135.0,
    ),
    arm_target(
        "snapdragon-8-gen-2",
        "Qualcomm SM8550, Cortex-X3, A715, A710 and A510, 64-bit LPDDR5X-8400, under Android",
        mcpu="cortex-a710",
        # Compiled for one of the middle cores; phones of this chip leave SVE switched off.
        mattr=("-sve", "-sve2"),
        features=MATRIX,
        cores=5,  # without the three Cortex-A510
        triple=ANDROID_TRIPLE,
        l1_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=8 * MIB,
        read_bandwidth_gb_per_s=67.2,
    ),
    _apple("m1", "Apple M1, 4 performance cores at 3.2 GHz, 68 GB/s", APPLE_M1, 12, 68.25),
    _apple("m2", "Apple M2, 4 performance cores, 100 GB/s", MATRIX, 16, 100.0),
    _apple("m3", "Apple M3, 4 performance cores, 100 GB/s", MATRIX, 16, 100.0),
    _apple("m4", "Apple M4, 4 performance cores, 120 GB/s", MATRIX, 16, 120.0),
    arm_target(
        "apple-a15-ios",
        "Apple A15 (iPhone 13) and later, 2 performance cores; a static archive for an app",
        mcpu="apple-a15",
        features=MATRIX,
        cores=2,
        triple=IOS_TRIPLE,
        l1_bytes=128 * KIB,
        l2_bytes=12 * MIB,
        read_bandwidth_gb_per_s=34.1,
    ),
)
