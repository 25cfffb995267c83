"""Llama 1 to 3 and everything that shares its architecture, SmolLM2 among them."""

from __future__ import annotations

from awq_tvm.models.decoder import DecoderForCausalLM


class LlamaForCausalLM(DecoderForCausalLM):
    """See the module's docstring; what differs is in ``ModelConfig``."""
