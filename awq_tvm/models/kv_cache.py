"""The paged KV cache of a compiled model."""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.target import Target

from awq_tvm.models.rope import RopeConfig


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
) -> PagedKVCache:
    """Emit the creation of a paged KV cache into the current BlockBuilder."""
    scaling: dict[str, Any] = {"rope_type": rope.kind} if rope.kind in ("llama3", "yarn") else {}
    scaling |= {
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
    }
    return TIRPagedKVCache(
        attn_kind="mha",
        max_batch_size=max_batch_size,
        max_total_seq_len=max_total_seq_len,
        prefill_chunk_size=prefill_chunk_size,
        page_size=page_size,
        support_sliding_window=tirx.IntImm("int64", 0),
        layer_partition=relax.ShapeExpr([0, num_hidden_layers]),
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        qk_head_dim=head_dim,
        v_head_dim=head_dim,
        mla_original_qk_head_dim=head_dim,
        mla_original_v_head_dim=head_dim,
        rope_mode=RopeMode.NORMAL,
        rope_scale=1.0 / rope.factor if rope.kind == "linear" else 1.0,
        rope_theta=rope.theta,
        rope_scaling=scaling,
        rope_ext_factors=relax.prim_value(0),
        rotary_dim=head_dim,
        enable_disaggregation=False,
        dtype=dtype,
        target=target,
    )
