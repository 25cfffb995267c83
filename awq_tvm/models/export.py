"""From a checkpoint's description to a Relax module and the plan of its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec as nn_spec
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.models.kv_cache import create_kv_cache
from awq_tvm.models.llama import LlamaForCausalLM
from awq_tvm.models.mistral import MistralForCausalLM
from awq_tvm.models.qwen2 import Qwen2ForCausalLM
from awq_tvm.models.qwen3 import Qwen3ForCausalLM
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, OrderSource, ParameterPlan, QuantizedSource, Source
from awq_tvm.schedules.spec import MatmulSpec

if TYPE_CHECKING:
    from awq_tvm.models.config import ModelConfig
    from awq_tvm.models.decoder import DecoderForCausalLM
    from awq_tvm.models.precision import Precision

FAMILIES: dict[str, type[DecoderForCausalLM]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
"""By Hugging Face ``model_type``; adding a family is one file and one line here."""

_MODEL = "causal_lm"


@dataclass(frozen=True)
class Limits:
    """What the compiled model has room for.

    Args:
        context_length: tokens of the longest sequence.
        max_sequences: sequences at once.
        prefill_chunk_size: tokens of one call of ``forward``.
        max_logit_rows: logit rows of one call of ``forward``.
        page_size: tokens of one KV cache page.
    """

    context_length: int
    max_sequences: int = 8
    prefill_chunk_size: int = 512
    max_logit_rows: int = 128
    page_size: int = 16


def require_family(model_type: str) -> None:
    """Refuse a model that cannot be compiled, whether or not it can be quantized.

    Raises:
        UnsupportedError: the family is unknown.
    """
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model_type {model_type!r} is not supported",
            where="config.json",
            fix=f"use one of: {', '.join(sorted(FAMILIES))}",
        )


def export_model(
    config: ModelConfig,
    precision: Precision,
    limits: Limits,
    target: tvm.target.Target,
    gpu_cores: int | None = None,
) -> tvm.IRModule:
    """The Relax module with ``forward`` and ``create_kv_cache``, its weights in the row layout.

    ``forward(input_ids int32[n], logit_positions int32[m], kv_cache, *weights) -> (float32[m, vocab], kv_cache)``.
    The module carries the weights' ``ParameterPlan`` under ``ir_attrs.PARAMETER_PLAN`` and facts for the runtime
    under ``ir_attrs.METADATA``. ``gpu_cores`` are the GPU's SMs or cores, None where
    they are unknown.

    Raises:
        UnsupportedError: the family is unknown, or its attention does not fit in ``limits``.
    """
    require_family(config.model_type)
    if _window(config, limits) is not None and not config.all_windowed:
        raise UnsupportedError(
            f"context length {limits.context_length} is longer than the sliding window {config.sliding_window}",
            why="only some layers have the window, or config.json does not say which have",
            fix=f"compile with --context-length {config.sliding_window} or less",
        )
    model = FAMILIES[config.model_type](config, precision)
    wrapper = _Exported(model, config, precision, limits, target, gpu_cores)
    mod, parameters = wrapper.export_tvm(
        {
            "forward": {
                "input_ids": nn_spec.Tensor(["n"], "int32"),
                "logit_positions": nn_spec.Tensor(["m"], "int32"),
                "kv_cache": nn_spec.Object(object_type=PagedKVCache),
                "$": {"param_mode": "plain", "effect_mode": "none"},
            },
            "create_kv_cache": {"$": {"param_mode": "none", "effect_mode": "none"}},
        }
    )
    bounds = {"n": limits.prefill_chunk_size, "m": limits.max_logit_rows}
    mod["forward"] = mod["forward"].with_attr("tir_var_upper_bound", bounds)
    facts = {
        "model_type": config.model_type,
        "activations": precision.activations,
        "kv_cache": precision.kv_cache,
    }
    return mod.with_attrs(
        {
            ir_attrs.PARAMETER_PLAN: _plan(mod, parameters, precision).to_json(),
            ir_attrs.METADATA: json.dumps({**facts, **asdict(limits)}, sort_keys=True),
        }
    )


def _window(config: ModelConfig, limits: Limits) -> int | None:
    """The sliding window, None where no context is longer."""
    window = config.sliding_window
    return window if window is not None and limits.context_length > window else None


def _plan(
    mod: tvm.IRModule, parameters: list[tuple[str, nn.Parameter]], precision: Precision
) -> ParameterPlan:
    """Where each weight parameter of the exported ``forward`` comes from, by the parameter's name there."""
    forward = mod["forward"]
    variables = forward.params[int(forward.attrs["num_input"]) :]
    suffixes = [array.suffix for array in LAYOUTS["row"].arrays(MatmulSpec(8, 8, 4, 8, "float32"))]
    sources: dict[str, Source] = {}
    specs: dict[str, MatmulSpec] = {}
    for variable, (exported_name, parameter) in zip(variables, parameters, strict=True):
        name = exported_name.removeprefix(f"{_MODEL}.")
        module, _, suffix = name.rpartition(".")
        if precision.act_order(module) and suffix == "input_order":
            sources[variable.name] = OrderSource(module)
            continue
        if module not in precision.quantized or suffix not in suffixes:
            sources[variable.name] = DenseSource((name,), parameter.dtype)
            continue
        array = suffixes.index(suffix)
        if array == 0:
            rows, width = (int(extent) for extent in parameter.shape)
            in_features = width * (2 if precision.quantized[module].bits <= 4 else 1)
            specs[module] = precision.quantized_spec(module, in_features, rows)
        sources[variable.name] = QuantizedSource((module,), specs[module].to_json(), "row", array)
    return ParameterPlan(sources)


class _Exported(nn.Module):
    """The two functions of a compiled model; parameter names are the checkpoint's below ``_MODEL``."""

    def __init__(
        self,
        model: DecoderForCausalLM,
        config: ModelConfig,
        precision: Precision,
        limits: Limits,
        target: tvm.target.Target,
        gpu_cores: int | None,
    ) -> None:
        super().__init__()
        setattr(self, _MODEL, model)
        self.config, self.precision, self.limits, self.target = config, precision, limits, target
        self.gpu_cores = gpu_cores

    def forward(self, input_ids: nn.Tensor, logit_positions: nn.Tensor, kv_cache: Any) -> Any:
        return getattr(self, _MODEL)(input_ids, logit_positions, kv_cache), kv_cache

    def create_kv_cache(self) -> Any:
        config, limits = self.config, self.limits
        pages = limits.context_length * limits.max_sequences
        return create_kv_cache(
            max_batch_size=tirx.IntImm("int64", limits.max_sequences),
            max_total_seq_len=tirx.IntImm("int64", pages),
            prefill_chunk_size=tirx.IntImm("int64", limits.prefill_chunk_size),
            page_size=tirx.IntImm("int64", limits.page_size),
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope=config.rope,
            dtype=self.precision.attention_dtype,
            target=self.target,
            gpu_cores=self.gpu_cores,
            sliding_window=_window(config, limits),
            int8_pages=self.precision.int8_cache,
        )
