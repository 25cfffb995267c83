"""x86-64 CPUs, named by the level of the System V psABI that they reach."""

from __future__ import annotations

from typing import Literal

from awq_tvm.targets.description import Target

LINUX_TRIPLE = "x86_64-unknown-linux-gnu"

# The micro-architecture levels of the x86-64 psABI, section 3.1.1, under LLVM's names.
V2_FEATURES = frozenset({"cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"})
V3_FEATURES = V2_FEATURES | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}
V4_FEATURES = V3_FEATURES | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = (("x86-64-v4", V4_FEATURES), ("x86-64-v3", V3_FEATURES), ("x86-64-v2", V2_FEATURES))

# Beyond the levels, what our kernels or LLVM can make use of.
EXTRA_FEATURES = frozenset({"avx512bf16", "avx512fp16", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avxvnni"})


def x86_target(
    name: str,
    summary: str,
    *,
    mcpu: str,
    extra: frozenset[str] = frozenset(),
    cores: int,
    triple: str = LINUX_TRIPLE,
    l1_bytes: int | None = 32 * 2**10,
    l2_bytes: int | None = None,
    l3_bytes: int | None = None,
) -> Target:
    """Describe an x86-64 CPU of one psABI level with explicit features on top.

    Args:
        name: the target's name.
        summary: one line.
        mcpu: "x86-64-v2", "x86-64-v3" or "x86-64-v4".
        extra: LLVM features beyond the level; each goes into mattr.
        cores: cores to use.
        triple: the LLVM triple of the platform.
        l1_bytes: level-1 data cache per core.
        l2_bytes: level-2 cache per core.
        l3_bytes: shared last-level cache.
    """
    features = dict(LEVELS)[mcpu] | extra
    activations: Literal["float", "int8"] = "int8" if "avx2" in features else "float"
    return Target(
        name=name,
        summary=summary,
        kind="cpu",
        family="x86",
        tvm_target={
            "kind": "llvm",
            "mtriple": triple,
            "mcpu": mcpu,
            "mattr": [f"+{feature}" for feature in sorted(extra)],
            "num-cores": cores,
        },
        features=features,
        cores=cores,
        l1_bytes=l1_bytes,
        l2_bytes=l2_bytes,
        l3_bytes=l3_bytes,
        default_activations=activations,
    )


TARGETS = (
    x86_target(
        "x86-64-v3", "any x86-64 CPU with AVX2 and FMA (Haswell, Zen 1 and later)", mcpu="x86-64-v3", cores=4
    ),
    x86_target(
        "x86-64-v4",
        "any x86-64 CPU with AVX-512 F, BW, CD, DQ, VL (Skylake-X and later)",
        mcpu="x86-64-v4",
        cores=4,
    ),
    x86_target(
        "x86-64-v3-vnni",
        "AVX2 with AVX-VNNI (Alder Lake and later)",
        mcpu="x86-64-v3",
        extra=frozenset({"avxvnni"}),
        cores=4,
    ),
    x86_target(
        "x86-64-v4-vnni",
        "AVX-512 with VNNI (Ice Lake, Zen 4 and later)",
        mcpu="x86-64-v4",
        extra=frozenset({"avx512vnni"}),
        cores=4,
    ),
)
