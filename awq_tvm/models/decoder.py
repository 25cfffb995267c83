"""The pre-norm decoder that Llama, Mistral and Qwen share: attention, gated MLP, RMSNorm, rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from awq_tvm.errors import UnsupportedError
from awq_tvm.models.layers import Embedding, QuantizedEmbedding, RMSNorm, make_linear, take_rows

if TYPE_CHECKING:
    from awq_tvm.models.config import ModelConfig
    from awq_tvm.models.precision import Precision

_ACTIVATIONS: dict[str, Callable[[nn.Tensor], nn.Tensor]] = {
    "silu": op.silu,
    "swish": op.silu,
    "gelu": op.gelu,
    "gelu_pytorch_tanh": lambda x: op.gelu(x, approximate="tanh"),
    "relu": op.relu,
}


class Attention(nn.Module):
    """Grouped-query attention over the paged KV cache, which also applies the rotary embedding."""

    def __init__(self, config: ModelConfig, precision: Precision, name: str, layer: int) -> None:
        """Declare q, k, v and o under the checkpoint name ``name``."""
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.dtype, self.attention_dtype = precision.dtype, precision.attention_dtype
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.softmax_scale = config.rope.attention_scale**2 * config.head_dim**-0.5
        hidden, d, bias = config.hidden_size, config.head_dim, config.attention_bias

        def projection(part: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
            return make_linear(
                f"{name}.{part}", in_features, out_features, bias=has_bias, precision=precision
            )

        self.q_proj = projection("q_proj", hidden, self.heads * d, bias)
        self.k_proj = projection("k_proj", hidden, self.kv_heads * d, bias)
        self.v_proj = projection("v_proj", hidden, self.kv_heads * d, bias)
        self.o_proj = projection("o_proj", self.heads * d, hidden, config.attention_output_bias)
        self.q_norm = RMSNorm(d, config.rms_norm_eps, precision.dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(d, config.rms_norm_eps, precision.dtype) if config.qk_norm else None

    def forward(self, x: nn.Tensor, kv_cache: Any) -> nn.Tensor:
        """Attend x[n, hidden] -> [n, hidden], appending keys and values to the cache."""
        n, d = x.shape[0], self.head_dim
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.q_norm is not None and self.k_norm is not None:
            q = op.reshape(self.q_norm(op.reshape(q, (n, self.heads, d))), (n, self.heads * d))
            k = op.reshape(self.k_norm(op.reshape(k, (n, self.kv_heads, d))), (n, self.kv_heads * d))
        qkv = op.reshape(op.concat([q, k, v], dim=1), (1, n, self.heads + 2 * self.kv_heads, d))
        qkv = _in(self.attention_dtype, qkv)
        out = kv_cache.attention_with_fused_qkv(self.layer, qkv, self.heads, self.softmax_scale)
        return self.o_proj(_in(self.dtype, op.reshape(out, (n, self.heads * d))))


def _in(dtype: str, x: nn.Tensor) -> nn.Tensor:
    return x if x.dtype == dtype else op.astype(x, dtype)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, precision: Precision, name: str) -> None:
        """Declare gate, up and down under the checkpoint name ``name``."""
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.gate_proj = make_linear(f"{name}.gate_proj", hidden, inner, bias=bias, precision=precision)
        self.up_proj = make_linear(f"{name}.up_proj", hidden, inner, bias=bias, precision=precision)
        self.down_proj = make_linear(f"{name}.down_proj", inner, hidden, bias=bias, precision=precision)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """Apply to x[n, hidden]."""
        return self.down_proj(op.multiply(self.activation(self.gate_proj(x)), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, precision: Precision, layer: int) -> None:
        """Declare one layer."""
        super().__init__()
        name = f"model.layers.{layer}"
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision.dtype)
        self.self_attn = Attention(config, precision, f"{name}.self_attn", layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision.dtype)
        self.mlp = GatedMLP(config, precision, f"{name}.mlp")

    def forward(self, x: nn.Tensor, kv_cache: Any) -> nn.Tensor:
        """Apply to x[n, hidden]."""
        x = op.add(self.self_attn(self.input_layernorm(x), kv_cache), x)
        return op.add(self.mlp(self.post_attention_layernorm(x)), x)


class DecoderModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        """Declare the trunk."""
        super().__init__()
        spec = precision.spec("model.embed_tokens", config.hidden_size, config.vocab_size)
        if precision.act_order("model.embed_tokens"):
            raise UnsupportedError(
                "a token embedding quantized in activation order",
                where="model.embed_tokens",
                why="its rows are read as they are, so there is no input that could be put in order",
                fix="quantize the original model with this tool",
            )
        self.embed_tokens = (
            QuantizedEmbedding(spec)
            if spec is not None
            else Embedding(
                config.vocab_size,
                config.hidden_size,
                weight_dtype=precision.weight_dtype,
                dtype=precision.dtype,
            )
        )
        self.layers = nn.ModuleList(
            [DecoderLayer(config, precision, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision.dtype)

    def forward(self, token_ids: nn.Tensor, kv_cache: Any) -> nn.Tensor:
        """token_ids int32[n] -> final hidden states before the norm, [n, hidden]."""
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x = layer(x, kv_cache)
        return x


class DecoderForCausalLM(nn.Module):
    """The model with its output head."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        """Declare the whole model; a tied head has no parameter of its own."""
        super().__init__()
        self.model = DecoderModel(config, precision)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else make_linear(
                "lm_head", config.hidden_size, config.vocab_size, bias=False, precision=precision
            )
        )

    def forward(self, input_ids: nn.Tensor, logit_positions: nn.Tensor, kv_cache: Any) -> nn.Tensor:
        """Logits of some of the tokens.

        Args:
            input_ids: int32 [n], the new tokens of all sequences, one after the other.
            logit_positions: int32 [m], indices into input_ids.
            kv_cache: the paged cache, told beforehand which sequences the tokens belong to.

        Returns:
            float32 [m, vocab_size].
        """
        x = take_rows(self.model(input_ids, kv_cache), logit_positions)
        x = self.model.norm(x)
        logits = self.model.embed_tokens.project(x) if self.lm_head is None else self.lm_head(x)
        return logits if logits.dtype == "float32" else op.astype(logits, "float32")
