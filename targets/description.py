"""One frozen, checked description of a piece of hardware.

Nothing here imports TVM or NumPy: the command line lists targets, and the runtime checks a bundle against
this machine, without either.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from awq_tvm.errors import TargetError

Kind = Literal["cpu", "cuda", "metal"]
Family = Literal["x86", "arm", "cuda", "metal"]
Activations = Literal["float", "int8"]

FAMILIES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "cpu": ("x86", "arm"),
    "cuda": ("cuda",),
    "metal": ("metal",),
}
TVM_KIND: Mapping[str, str] = {"cpu": "llvm", "cuda": "cuda", "metal": "metal"}

# Any one of these multiplies int8 pairs and adds four of them to an int32, in one instruction or, AVX2, in three.
INT8_DOT_FEATURES = frozenset({"avx512vnni", "avxvnni", "avx2", "dotprod"})

_NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
_SM_ARCH = re.compile(r"sm_[0-9]{2,3}")

# Positive when known, None when not; the unit is in each name.
_MEASURES = (
    "cores", "l1_bytes", "l2_bytes", "l3_bytes", "read_bandwidth_gb_per_s", "int8_dot_gops", "fp32_gflops",
    "fp16_gflops", "num_sms", "shared_memory_bytes", "registers_per_sm", "warp_size",
)  # fmt: skip

_BFLOAT16_ARCH = 80
"""The least compute capability, times ten, whose tensor cores multiply bfloat16."""

_OVERLAP_ARCH = 90
"""The least one on which a launch may begin before the one before it has ended."""

_DERIVED = ("compute_dtype", "fingerprint")
"""In ``as_dict`` beside the fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What the compiler, the schedules and the tuner need to know of one chip.

    Sizes and peaks are of the whole chip unless said otherwise, and None where no source gives them.

    Attributes:
        name: lower-case words joined by "-", unique in the registry.
        summary: one line for people, with the source of the numbers.
        kind: "cpu", "cuda" or "metal": the runtime device.
        family: "x86", "arm", "cuda" or "metal": picks the schedules.
        tvm_target: what ``tvm.target.Target`` takes, without the host.
        host: the CPU that calls the kernels, likewise; None where the target is a CPU itself.
        features: LLVM feature names that compiled code may use, "avx512vnni" or "dotprod" for example; empty
            for GPUs. A CPU without all of them must not load the code.
        cores: CPU cores the work is split over: the fast ones, where a chip has two sorts.
        l1_bytes: level-1 data cache, per core.
        l2_bytes: level-2 cache as one core (CPU) or the whole chip (GPU) sees it.
        l3_bytes: last-level cache, shared.
        read_bandwidth_gb_per_s: memory reads, 10^9 bytes a second.
        int8_dot_gops: int8 multiplications and additions with int32 sums, 10^9 a second, dense.
        fp32_gflops: float32 outside matrix units, 10^9 a second.
        fp16_gflops: float16, on matrix units where there are any, 10^9 a second, dense.
        sm_arch: the CUDA architecture kernels are written for, "sm_80" say; never with a suffix.
        cuda_archs: the architectures binary code is made for; with an "a" behind it, for this one alone, and with
            all that it has.
        ptx_arch: the virtual architecture, "compute_90" say, whose PTX is put in for newer GPUs, or None.
        num_sms: streaming multiprocessors, or GPU cores on Apple.
        shared_memory_bytes: shared (threadgroup) memory one block may take at most.
        registers_per_sm: 32-bit registers.
        warp_size: threads in a warp (SIMD group).
        default_activations: what ``--activations auto`` means here.
    """

    name: str
    summary: str
    kind: Kind
    family: Family
    tvm_target: dict[str, Any] = dataclasses.field(hash=False)
    host: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    features: frozenset[str] = frozenset()
    cores: int | None = None
    l1_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    read_bandwidth_gb_per_s: float | None = None
    int8_dot_gops: float | None = None
    fp32_gflops: float | None = None
    fp16_gflops: float | None = None
    sm_arch: str | None = None
    cuda_archs: tuple[str, ...] = ()
    ptx_arch: str | None = None
    num_sms: int | None = None
    shared_memory_bytes: int | None = None
    registers_per_sm: int | None = None
    warp_size: int | None = None
    default_activations: Activations = "float"

    def __post_init__(self) -> None:
        """Prove the description consistent.

        Raises:
            TargetError: a name that is not lower-case words, fields that contradict each other, a measure
                that is not positive.
        """
        object.__setattr__(self, "tvm_target", copy.deepcopy(self.tvm_target))
        object.__setattr__(self, "host", copy.deepcopy(self.host))
        self._check_names()
        self._check_measures()
        if self.kind == "cpu":
            self._check_cpu()
        else:
            self._check_gpu()
        if self.kind == "cuda":
            self._check_cuda()
        elif self.sm_arch or self.cuda_archs or self.ptx_arch:
            raise self._wrong("sm_arch, cuda_archs and ptx_arch are for CUDA", f"kind is {self.kind!r}")

    def _wrong(self, why: str, fix: str) -> TargetError:
        return TargetError(
            "This target description is not consistent", where=f"target {self.name!r}", why=why, fix=fix
        )

    def _check_names(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise self._wrong(f"the name {self.name!r} is not lower-case words joined by '-'", "rename it")
        if self.kind not in FAMILIES_OF_KIND:
            raise self._wrong(f"unknown kind {self.kind!r}", f"use one of {', '.join(FAMILIES_OF_KIND)}")
        if self.family not in FAMILIES_OF_KIND[self.kind]:
            legal = ", ".join(FAMILIES_OF_KIND[self.kind])
            raise self._wrong(
                f"family {self.family!r} does not go with kind {self.kind!r}", f"use one of {legal}"
            )
        if self.tvm_target.get("kind") != TVM_KIND[self.kind]:
            found = self.tvm_target.get("kind")
            raise self._wrong(
                f"tvm_target has kind {found!r}", f"kind {self.kind!r} needs {TVM_KIND[self.kind]!r}"
            )
        if "host" in self.tvm_target:
            raise self._wrong("tvm_target holds a host", "put it in the field host")
        if self.default_activations not in ("float", "int8"):
            raise self._wrong(f"default_activations is {self.default_activations!r}", "use 'float' or 'int8'")

    def _check_measures(self) -> None:
        for measure in _MEASURES:
            value = getattr(self, measure)
            if value is not None and (isinstance(value, bool) or not 0 < value < float("inf")):
                raise self._wrong(
                    f"{measure} is {value!r}", "give a positive number, or None where it is unknown"
                )

    def _check_cpu(self) -> None:
        if self.cores is None:
            raise self._wrong("cores is None", "a CPU target must say over how many cores the work is split")
        if self.tvm_target.get("num-cores") != self.cores:
            found = self.tvm_target.get("num-cores")
            raise self._wrong(f"num-cores is {found!r} but cores is {self.cores}", "make them equal")
        if not self.tvm_target.get("mtriple"):
            raise self._wrong(
                "tvm_target has no mtriple", "name the platform, 'x86_64-unknown-linux-gnu' say"
            )
        if self.host is not None:
            raise self._wrong("a CPU target has a host", "leave host out")
        lacking = {
            name[1:] for name in self.tvm_target.get("mattr", ()) if name.startswith("+")
        } - self.features
        if lacking:
            raise self._wrong(f"mattr turns on {', '.join(sorted(lacking))}", "list them in features too")
        if self.default_activations == "int8" and not self.has_int8_dot:
            needed = ", ".join(sorted(INT8_DOT_FEATURES))
            raise self._wrong("int8 activations without an int8 dot product", f"needs one of {needed}")

    def _check_gpu(self) -> None:
        if self.host is None or self.host.get("kind") != "llvm" or not self.host.get("mtriple"):
            raise self._wrong(f"host is {self.host!r}", "give the CPU side as an llvm target with an mtriple")
        if self.features:
            raise self._wrong("a GPU target has CPU features", "put them in the host's mattr")
        for field in ("warp_size", "shared_memory_bytes"):
            if getattr(self, field) is None:
                raise self._wrong(f"{field} is None", "a GPU target must say it")
        if self.tvm_target.get("thread_warp_size") != self.warp_size:
            found = self.tvm_target.get("thread_warp_size")
            raise self._wrong(
                f"thread_warp_size is {found!r} but warp_size is {self.warp_size}", "make them equal"
            )

    def _check_cuda(self) -> None:
        if not _SM_ARCH.fullmatch(self.sm_arch or ""):
            # dlight reads "sm_90a" as "no tensor cores".
            raise self._wrong(
                f"{self.sm_arch or ''!r} is not an architecture such as 'sm_90'", "write it without a suffix"
            )
        for arch in self.cuda_archs:
            if not _SM_ARCH.fullmatch(arch.removesuffix("a")):
                raise self._wrong(
                    f"{arch!r} is not an architecture such as 'sm_90' or 'sm_90a'", "write it like these"
                )
        if self.tvm_target.get("arch") != self.sm_arch:
            found = self.tvm_target.get("arch")
            raise self._wrong(
                f"tvm_target has arch {found!r} but sm_arch is {self.sm_arch!r}", "make them equal"
            )
        if self.sm_arch not in {arch.removesuffix("a") for arch in self.cuda_archs}:
            raise self._wrong(f"cuda_archs {self.cuda_archs} lacks {self.sm_arch!r}", "add it")
        if self.ptx_arch is not None and not re.fullmatch(r"compute_[0-9]{2,3}", self.ptx_arch):
            raise self._wrong(f"ptx_arch is {self.ptx_arch!r}", "write it as 'compute_90'")

    @property
    def mcpu(self) -> str:
        """The LLVM CPU name or the CUDA architecture; empty where neither is set."""
        return str(self.tvm_target.get("mcpu") or self.tvm_target.get("arch") or "")

    @property
    def own_cuda_arch(self) -> str:
        """What to make code for that runs on this GPU alone: `sm_arch`, with its suffix among `cuda_archs`."""
        return next((arch for arch in self.cuda_archs if arch.removesuffix("a") == self.sm_arch), "")

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations between kernels: "float32" on a CPU, "float16" on a GPU."""
        return "float32" if self.kind == "cpu" else "float16"

    @property
    def has_bfloat16(self) -> bool:
        """Whether kernels may compute in bfloat16: on GPUs all of whose architectures multiply it on tensor cores."""
        return self.kind == "cuda" and all(_capability(arch) >= _BFLOAT16_ARCH for arch in self.cuda_archs)

    @property
    def overlaps_launches(self) -> bool:
        """Whether kernels may begin before the launch before them has ended: where no architecture precedes 9.0."""
        archs = [*self.cuda_archs, *([self.ptx_arch] if self.ptx_arch else [])]
        return self.kind == "cuda" and all(_capability(arch) >= _OVERLAP_ARCH for arch in archs)

    @property
    def has_clusters(self) -> bool:
        """Whether blocks can be launched in clusters, which read each other's shared memory: likewise."""
        return self.overlaps_launches

    @property
    def has_int8_dot(self) -> bool:
        """Whether a CPU has instructions for four-way int8 dot products."""
        return bool(self.features & INT8_DOT_FEATURES)

    @property
    def tvm_target_with_host(self) -> dict[str, Any]:
        """A fresh dict for ``tvm.target.Target``, the host inside it where there is one."""
        whole = copy.deepcopy(self.tvm_target)
        if self.host is not None:
            whole["host"] = copy.deepcopy(self.host)
        return whole

    @property
    def fingerprint(self) -> str:
        """Key of tuned records and bundles: the family and 12 hex digits.

        It covers what makes one schedule faster than another or unable to run: kind, family, triple, CPU
        or GPU architecture, features, cores, memory sizes and bandwidth. The name, the summary and the
        arithmetic peaks are left out, so that correcting those keeps the records. So is the level-3
        cache, of which virtual machines of one kind report different slices.
        """
        what = {
            "kind": self.kind,
            "family": self.family,
            "mtriple": self.tvm_target.get("mtriple"),
            "mcpu": self.mcpu,
            "host_mcpu": self.host.get("mcpu") if self.host else None,
            "features": sorted(self.features),
            "cores": self.cores,
            "l1_bytes": self.l1_bytes,
            "l2_bytes": self.l2_bytes,
            "read_bandwidth_gb_per_s": self.read_bandwidth_gb_per_s,
            "cuda_archs": self.cuda_archs,
            "num_sms": self.num_sms,
            "shared_memory_bytes": self.shared_memory_bytes,
            "warp_size": self.warp_size,
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return f"{self.family}-{digest[:12]}"

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values, features sorted, the fingerprint and derived fields included."""
        plain = dataclasses.asdict(self)
        plain["features"] = sorted(self.features)
        plain["cuda_archs"] = list(self.cuda_archs)
        plain["compute_dtype"] = self.compute_dtype
        plain["fingerprint"] = self.fingerprint
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Target:
        """Read back what ``as_dict`` made, from JSON too.

        Raises:
            TargetError: a field is unknown or contradicts another.
        """
        fields = {name: value for name, value in plain.items() if name not in _DERIVED}
        fields["features"] = frozenset(fields.get("features", ()))
        fields["cuda_archs"] = tuple(fields.get("cuda_archs", ()))
        try:
            return Target(**fields)
        except TypeError as error:
            raise TargetError("This is no target description", why=str(error)) from error


def _capability(arch: str) -> int:
    """Of a CUDA architecture, real or virtual, times ten."""
    return int(arch.removeprefix("sm_").removeprefix("compute_").rstrip("a"))


def missing_features(needed: Target, machine: Target) -> tuple[str, ...]:
    """Sorted LLVM features that code for `needed` may use and `machine` lacks; empty when it can run."""
    return tuple(sorted(needed.features - machine.features))
