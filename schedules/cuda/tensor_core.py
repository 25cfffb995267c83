"""CUDA: the fused dequantize-matmul on tensor cores, for compute capability 8.0 and later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.config import Dispatch, FewConfig, TensorCoreConfig, Tile
from awq_tvm.schedules.cuda.defaults import default_config
from awq_tvm.schedules.cuda.few_tokens import few_tokens_kernel
from awq_tvm.schedules.cuda.fragments import BLOCK_K, HALF_K
from awq_tvm.schedules.cuda.split_k import Tiles, add_parts_kernel, along_of, cluster_tiles, make_tiles
from awq_tvm.schedules.cuda.tiled import tiled_kernel
from awq_tvm.schedules.gpu.function import Emit, matmul_function
from awq_tvm.schedules.layout import LAYOUTS, Layout
from awq_tvm.schedules.rule import Match, MatmulRule, NotApplicable, Part
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

LEAST_ARCH = 80


class TensorCoreRule(MatmulRule):
    """Weights as the left operand of `mma.m16n8k16`, x in float16 or bfloat16, sums in float32."""

    name = "cuda_tensor_core_matmul"
    version = 10
    gates_outputs = True

    def applies(self, spec: MatmulSpec, target: Target) -> Match | NotApplicable:
        """Every spec of whole blocks of k in 16 bits, on a GPU that has the instructions and the shared memory."""
        if spec.activations != "float" or spec.dtype not in ("float16", "bfloat16"):
            return NotApplicable(
                f"activations are {spec.activations} in {spec.dtype}, and it takes float16 and bfloat16"
            )
        if spec.in_features % BLOCK_K or spec.group_size % HALF_K:
            return NotApplicable(
                f"K = {spec.in_features} in groups of {spec.group_size} is not whole blocks of {BLOCK_K} in "
                f"groups of a multiple of {HALF_K}"
            )
        if int((target.sm_arch or "sm_0").removeprefix("sm_")) < LEAST_ARCH:
            return NotApplicable(f"{target.sm_arch} lacks cp.async and mma.m16n8k16")
        return matched(_default(spec, target), spec, target)

    def layout(self, spec: MatmulSpec, target: Target) -> Layout:
        """Fragments, shared by all kernels."""
        return LAYOUTS["mma_fragments"]

    def build(self, spec: MatmulSpec, target: Target, config: Dispatch[Tile, Tile]) -> Any:
        """See ``MatmulRule.build``; the host part looks at M and launches one kernel."""
        overlaps = target.overlaps_launches
        up_to: dict[int, Emit] = {few.most_tokens: _few(spec, few, overlaps) for few in config.few}
        for tile in config.middle:
            up_to[tile.tokens] = self._emit(spec, config, tile, lambda tokens: 1, overlaps)
        # What prompts take: of their time a launch is next to nothing.
        many = self._emit(
            spec, config, config.many, lambda tokens: along_of(config.many, tokens), overlaps=False
        )
        return matmul_function(spec, self.layout(spec, target), self.name, up_to, many)

    def _emit(
        self,
        spec: MatmulSpec,
        config: Dispatch[Tile, Tile],
        tile: Tile,
        along: Callable[[Any], Any],
        overlaps: bool,
    ) -> Emit:
        """What emits the kernel of a tile, and the one that adds parts, if there may be any."""

        def emit(arguments: dict[str, Any], tokens: Any) -> None:
            number = along(tokens)
            alone = make_tiles(spec, config, tile, number)
            clusters = None if isinstance(number, int) else cluster_tiles(spec, config, tile, number)
            if clusters is None:
                self._launch(alone, arguments, tokens, overlaps)
                return
            are_clusters, together = clusters
            with T.If(are_clusters):
                with T.Then():
                    self._launch(together, arguments, tokens, overlaps)
                with T.Else():
                    self._launch(alone, arguments, tokens, overlaps)

        return emit

    def _launch(self, tiles: Tiles, arguments: dict[str, Any], tokens: Any, overlaps: bool) -> None:
        """Emit the kernel of tiles, and where parts leave their sums the one that adds them."""
        self.kernel_of(tiles.tile, overlaps)(tiles.spec, tiles.tile, arguments, tokens, tiles)
        rest = tiles.division.rest
        if tiles.sums is None:
            return
        if isinstance(rest, int):
            add_parts_kernel(tiles, arguments, tokens, overlaps)
        else:
            with T.If(rest > 0), T.Then():
                add_parts_kernel(tiles, arguments, tokens, overlaps)

    def kernel_of(self, tile: Tile, overlaps: bool) -> Callable[..., None]:
        """What emits the kernel for one of ``middle`` or for ``many``, whose launches may overlap or not."""
        return partial(tiled_kernel, overlaps=overlaps)

    def space(self, spec: MatmulSpec, target: Target) -> tuple[Part, ...]:
        """See ``MatmulRule.space``."""
        from awq_tvm.schedules.cuda.spaces import tensor_core_parts

        return tensor_core_parts(spec, target, _default(spec, target))


def _default(spec: MatmulSpec, target: Target) -> TensorCoreConfig:
    return default_config(spec, target.num_sms, target.shared_memory_bytes, target.has_clusters)


def _few(spec: MatmulSpec, config: FewConfig, overlaps: bool) -> Emit:
    return lambda arguments, tokens: few_tokens_kernel(spec, config, arguments, tokens, overlaps)


def matched(config: Dispatch[Tile, Tile], spec: MatmulSpec, target: Target) -> Match | NotApplicable:
    """A configuration, if the target's shared memory has room for its tiles."""
    wanted = config.shared_bytes(spec.bits, spec.group_size)
    if (target.shared_memory_bytes or 0) < wanted:
        return NotApplicable(
            f"the tiles take {wanted} bytes of shared memory, and {target.shared_memory_bytes} are there"
        )
    return Match(config)
