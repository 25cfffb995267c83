"""The paged KV cache of a compiled model.

The cache itself (pages, sequences, forks) is TVM's runtime object; what it calls to compute is compiled into
the model: our kernels on CPUs; on GPUs ours for rotating, appending, decoding and merging, on CUDA's tensor cores and
Apple's SIMD groups for prompts too, and TVM's for the rest.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.nn.llm import kv_cache as stock
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, PagedKVCache, RopeMode
from tvm.target import Target

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.models.rope import RopeConfig
from awq_tvm.schedules.attention import decode, merge, pages, prefill, rotary
from awq_tvm.schedules.attention.gpu.append import append_on_gpu
from awq_tvm.schedules.attention.gpu.choose import decode_on_gpu, prefill_on_gpu
from awq_tvm.schedules.attention.gpu.rotary import split_and_rotate_on_gpu
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape, Kernel, default_config

STOCK_PAGE_SIZE = 16
"""Tokens of a page that TVM's GPU kernels are written for."""


def create_kv_cache(
    *,
    max_batch_size: Any,
    max_total_seq_len: Any,
    prefill_chunk_size: Any,
    page_size: Any,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    rope: RopeConfig,
    dtype: str,
    target: Target,
    gpu_cores: int | None = None,
    sliding_window: int | None = None,
    int8_pages: bool = False,
) -> PagedKVCache:
    """Emit the creation of a paged KV cache into the current BlockBuilder, and add its kernels to the module.

    The softmax scale that a model passes to the cache must hold ``rope.attention_scale ** 2``.

    Args:
        max_batch_size: sequences at once, an int64 expression, like the next three.
        max_total_seq_len: cached tokens of all sequences together, rounded up to pages.
        prefill_chunk_size: tokens of one forward pass.
        page_size: tokens of a page, 16.
        num_hidden_layers: attention layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: features of a head.
        rope: the rotary embedding.
        dtype: of qkv and the attention's output, and of the cache unless that is int8.
        target: what the kernels are for.
        gpu_cores: SMs or cores of a GPU, None where they are unknown: contexts are divided among them.
        sliding_window: newest tokens that a query of any layer sees, itself included; None for all. The cache
            keeps the older ones all the same.
        int8_pages: keep keys and values as int8 with a scale a token and head.

    Raises:
        UnsupportedError: a size that no kernel serves, a sliding window on a GPU that has no kernel of ours for
            prompts, int8 pages on a GPU, or bfloat16 on a CPU.
    """
    if rope.head_dim != head_dim:
        raise UnsupportedError(f"a rotation over {rope.head_dim} of {head_dim} features is not supported")
    if isinstance(page_size := getattr(page_size, "value", page_size), int) and page_size != PAGE_SIZE:
        raise UnsupportedError(f"a page of {page_size} tokens has no kernel", fix=f"use pages of {PAGE_SIZE}")
    heads = (num_attention_heads, num_key_value_heads, head_dim)
    shape = AttentionShape(*heads, dtype, sliding_window, int8_pages)
    on_cpu = target.kind.name == "llvm"
    if dtype == "bfloat16" and on_cpu:
        raise UnsupportedError(
            "attention in bfloat16 has no CPU kernel", where="attention", fix="use float32 or float16"
        )
    if int8_pages and not on_cpu:
        raise UnsupportedError(
            "a KV cache in int8 has no GPU kernel", where="attention", fix="keep the cache in float16"
        )
    kernels = (
        _cpu_kernels(shape, num_hidden_layers, target)
        if on_cpu
        else _gpu_kernels(shape, num_hidden_layers, target, gpu_cores)
    )
    return PagedKVCache(
        _expr=relax.call_pure_packed(
            "vm.builtin.paged_attention_kv_cache_create",
            relax.ShapeExpr([max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, 0, 1]),
            relax.ShapeExpr([0, num_hidden_layers]),
            relax.prim_value(num_attention_heads),
            relax.prim_value(num_key_value_heads),
            relax.prim_value(head_dim),
            relax.prim_value(head_dim),
            relax.ShapeExpr([int(AttnKind.MHA)] * num_hidden_layers),
            relax.prim_value(0),  # no disaggregation
            relax.prim_value(int(RopeMode.NORMAL)),
            relax.prim_value(1.0),
            relax.prim_value(rope.theta),
            relax.const(rope.inverse_frequencies(), "float32"),
            relax.op.zeros((), dtype),
            *kernels,
            ty_args=relax.AnyType(),
        ),
        _name="paged_kv_cache",
    )


def _add(function: tvm.tirx.PrimFunc, name: str) -> Any:
    return relax.BlockBuilder.current().add_func(function, name)


def _entry(function: tvm.tirx.PrimFunc, name: str) -> relax.Tuple:
    """A kernel as the runtime takes it, with the name of its backend."""
    return relax.Tuple([tvm.ir.StringImm("tirx"), _add(function, name)])


_NONE = relax.Tuple([])


def _cpu_kernels(shape: AttentionShape, layers: int, target: Target) -> list[Any]:
    """Our kernels, in the order of the runtime's parameters.

    Trees of tokens (speculative decoding) and latent attention have none: the runtime says so when they are
    asked for. A sliding window is baked into the ordinary kernels, so the runtime's own is not used.
    """

    def described(kernel: Kernel, build: Any) -> tvm.tirx.PrimFunc:
        """A kernel by default, and what it is, for whoever knows a better configuration."""
        return build(shape, default_config(kernel, shape, target)).with_attrs(
            {
                ir_attrs.OP: ir_attrs.OP_ATTENTION,
                ir_attrs.ATTENTION_SPEC: AttentionSpec(kernel, shape).to_json(),
                ir_attrs.LAYERS: layers,
            }
        )

    paged = _entry(described("prefill_paged", prefill.prefill_paged), "attention_prefill_paged")
    paged_decode = _entry(described("decode", decode.decode_paged), "attention_decode_paged")
    ragged = _entry(described("prefill_ragged", prefill.prefill_ragged), "attention_prefill_ragged")
    return [
        _add(pages.append(shape), "kv_cache_append"),
        relax.prim_value(0),  # append for latent attention
        ragged,
        paged,
        paged_decode,
        _NONE,  # prefill, the runtime's sliding window
        _NONE,  # decode, the runtime's sliding window
        _NONE,  # tree of tokens against the cache
        _NONE,  # tree of tokens
        _NONE,  # latent attention
        relax.Tuple([_add(merge.merge_in_place(shape), "attention_merge")]),
        _add(rotary.split_and_rotate(shape), "split_rotary"),
        _add(pages.copy_page(shape), "kv_cache_copy_page"),
        _add(pages.read_back(shape, layers), "kv_cache_read_back"),
        _add(pages.compact(shape), "kv_cache_compact"),
    ]


def _gpu_kernels(shape: AttentionShape, layers: int, target: Target, gpu_cores: int | None) -> list[Any]:
    """Kernels for CUDA and Metal, TVM's but for those of ``schedules``, in the order of the runtime's parameters."""
    h, h_kv, d, dtype = shape.heads, shape.kv_heads, shape.head_dim, shape.dtype
    no_rope: dict[str, Any] = {}
    own = prefill_on_gpu(shape, target)
    if own is None and shape.sliding_window is not None:
        raise UnsupportedError(
            "sliding-window attention has no GPU kernel for this target or these heads",
            why="prompts are read through a window on Metal, in float16, and on CUDA from compute capability 8.0 "
            "on, in float16 or bfloat16 with a multiple of 16 features, up to 256 in both; these are "
            f"{d} in {dtype}",
            fix="compile with a context no longer than the window",
        )
    ragged, paged = own or (
        stock._attention_prefill_ragged(h_kv, h, d, d, dtype, no_rope, target),
        stock._attention_prefill(h_kv, h, d, dtype, False, no_rope, target),
    )
    paged_decode = decode_on_gpu(shape, target, gpu_cores)
    return [
        _add(append_on_gpu(shape), "kv_cache_append"),
        relax.prim_value(0),
        _entry(ragged, "attention_prefill_ragged"),
        _entry(paged, "attention_prefill_paged"),
        _entry(paged_decode, "attention_decode_paged"),
        _NONE,
        _NONE,
        _NONE,
        _NONE,
        _NONE,
        relax.Tuple([_add(merge.merge_in_place_on_gpu(shape), "attention_merge")]),
        _add(split_and_rotate_on_gpu(shape), "split_rotary"),
        _add(stock._copy_single_page(h_kv, STOCK_PAGE_SIZE, d, dtype, target), "kv_cache_copy_page"),
        _add(stock._kv_cache_debug_get_kv(layers, h_kv, d, dtype), "kv_cache_read_back"),
        _add(stock._compact_kv_copy(h_kv, d, dtype, target), "kv_cache_compact"),
    ]
