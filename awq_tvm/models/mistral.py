"""Mistral: Llama with an optional sliding window."""

from __future__ import annotations

from awq_tvm.models.decoder import DecoderForCausalLM


class MistralForCausalLM(DecoderForCausalLM):
    """See the module's docstring; what differs is in ``ModelConfig``."""
