"""Qwen3: Llama with RMSNorm over each head of q and k."""

from __future__ import annotations

from awq_tvm.models.decoder import DecoderForCausalLM


class Qwen3ForCausalLM(DecoderForCausalLM):
    """See the module's docstring; what differs is in ``ModelConfig``."""
