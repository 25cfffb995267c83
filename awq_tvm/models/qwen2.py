"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from awq_tvm.models.decoder import DecoderForCausalLM


class Qwen2ForCausalLM(DecoderForCausalLM):
    """See the module's docstring; what differs is in ``ModelConfig``."""
