"""Where the attention kernels of CPUs plug in: what they are asked, what they are built with, what can be tuned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tvm.target import Target as TvmTarget

from awq_tvm.schedules.attention.decode import decode_paged
from awq_tvm.schedules.attention.prefill import prefill_paged, prefill_ragged
from awq_tvm.schedules.attention.shape import AttentionConfig, AttentionShape, Kernel, default_config
from awq_tvm.schedules.attention.spaces import CONTEXT, attention_parts
from awq_tvm.schedules.rule import AttentionRule, Match, Part, register_attention

if TYPE_CHECKING:
    from tvm import tirx

    from awq_tvm.targets import Target

_KERNELS = {"decode": decode_paged, "prefill_paged": prefill_paged, "prefill_ragged": prefill_ragged}


@dataclass(frozen=True)
class AttentionSpec:
    """One kernel of attention.

    Args:
        kernel: which.
        shape: its sizes.
    """

    kernel: Kernel
    shape: AttentionShape

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> AttentionSpec:
        """Read back what ``to_json`` wrote."""
        return AttentionSpec.from_dict(json.loads(text))

    @staticmethod
    def from_dict(found: dict[str, Any]) -> AttentionSpec:
        """Read back what ``asdict`` made of it."""
        return AttentionSpec(found["kernel"], AttentionShape(**found["shape"]))

    @property
    def title(self) -> str:
        """The kernel in words."""
        shape = self.shape
        heads = f"{shape.heads} heads of {shape.head_dim} over {shape.kv_heads}"
        return f"attention {self.kernel}, {heads}, {shape.page_dtype}"

    @property
    def bits(self) -> int:
        """Of a cached number."""
        return {"int8": 8, "float16": 16, "float32": 32}[self.shape.page_dtype]

    @property
    def bytes_read(self) -> int:
        """From memory when it is timed; new keys and values were just computed, and are near."""
        shape = self.shape
        numbers = 0 if self.kernel == "prefill_ragged" else 2 * CONTEXT * shape.kv_heads * shape.head_dim
        return numbers * self.bits // 8

    def operations(self, rows: int) -> int:
        """Multiplications and additions when it is timed."""
        keys = rows * (rows + 1) // 2 if self.kernel == "prefill_ragged" else rows * CONTEXT
        return 4 * keys * self.shape.heads * self.shape.head_dim


class CpuAttention(AttentionRule):
    """The kernels of this package, for any CPU."""

    name = "cpu.attention"
    version = 1

    def applies(self, spec: AttentionSpec, target: Target) -> Match:
        """The default of the kernel."""
        return Match(_default(spec, json.dumps(target.tvm_target, sort_keys=True)))

    def build(self, spec: AttentionSpec, target: Target, config: AttentionConfig) -> tirx.PrimFunc:
        """The kernel, parameters as the cache runtime passes them."""
        return _KERNELS[spec.kernel](spec.shape, config)

    def space(self, spec: AttentionSpec, target: Target) -> tuple[Part, ...]:
        """Tiles, and for one token how the context is split."""
        return attention_parts(spec.kernel, spec.shape, target, self.applies(spec, target).config)


@cache
def _default(spec: AttentionSpec, tvm_target: str) -> AttentionConfig:
    return default_config(spec.kernel, spec.shape, TvmTarget(json.loads(tvm_target)))


for _family in ("x86", "arm"):
    register_attention(_family, CpuAttention())
