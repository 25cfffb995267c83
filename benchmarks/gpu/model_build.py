"""A model of Llama-3-8B's shape, compiled without any weights: they are made up where it is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import tvm

from awq_tvm import ir_attrs
from awq_tvm.checkpoint import Checkpoint, QuantizationScheme
from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.checkpoint.config import normalise_config
from awq_tvm.checkpoint.expected_tensors import expected_tensors
from awq_tvm.compile.description import describe, recipe_fields, special_tokens
from awq_tvm.compile.toolchain import Kernel, build_library
from awq_tvm.compile.vocabulary import round_vocabulary
from awq_tvm.models.config import ModelConfig
from awq_tvm.models.export import Limits, export_model
from awq_tvm.models.precision import Precision, QuantizedShape
from awq_tvm.passes import pipeline
from awq_tvm.schedules.layout import DENSE_LAYOUTS, LAYOUTS
from awq_tvm.schedules.parameter_plan import DenseSource, ParameterPlan, QuantizedSource
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

from .model import DRAFT_NAME, PARAMETERS_NAME, Parameter

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

VOCABULARY_BITS = 8


def imagined_checkpoint(config: dict[str, Any], bits: int, group_size: int) -> Checkpoint:
    """A quantized checkpoint that has names, shapes and a scheme, and no weights."""
    normal = normalise_config(config, "config.json")
    shapes = expected_tensors(normal) or {}
    linears = [name.removesuffix(".weight") for name in shapes if name.endswith("_proj.weight")]

    def absent(*_: object) -> NoReturn:
        raise NotImplementedError("nothing of this checkpoint is ever read")

    return Checkpoint(
        source="random weights",
        path=Path("llama-3-8b-shaped"),
        format="awq",
        config=normal,
        tensors={
            name: TensorInfo("float16", shape, "F16", 2 * _product(shape))
            for name, shape in shapes.items()
            if name.removesuffix(".weight") not in linears
        },
        load_dense=absent,
        load_side_files=dict,
        scheme=QuantizationScheme(bits, group_size),
        quantized=linears,
        load_quantized=absent,
    )


def build_model(
    into: Path, target: Target, config: dict[str, Any], group_size: int = 128, context_length: int = 2048
) -> tuple[Kernel, ...]:
    """Compile the model; a folder with its library, its manifest's draft, and what its weights are.

    Args:
        into: the folder, made here.
        target: what it runs on.
        config: as config.json has it.
        group_size: of the linears, in 4 bits.
        context_length: tokens of the longest sequence.

    Returns:
        What the compiler reports of its kernels.
    """
    checkpoint = imagined_checkpoint(config, 4, group_size)
    rounded = round_vocabulary(checkpoint, VOCABULARY_BITS)
    scheme = rounded.scheme or QuantizationScheme(4, group_size)
    shapes = {
        name: QuantizedShape(scheme.of(name).bits, scheme.of(name).group_size) for name in rounded.quantized
    }
    precision = Precision(target.compute_dtype, "float16", "float", shapes, target.compute_dtype)
    model, limits = ModelConfig.from_hugging_face(checkpoint.config), Limits(context_length)
    with tvm.target.Target(target.tvm_target_with_host) as tvm_target:
        mod = export_model(model, precision, limits, tvm_target, target.num_sms)
    mod = pipeline.run(mod, target, 2)
    plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
    kernels = json.loads(mod.attrs[ir_attrs.COVERAGE])
    into.mkdir(parents=True)
    with TemporaryDirectory(prefix="awq_tvm-") as folder:
        library = build_library(mod, target, Path(folder))
        draft = describe(
            checkpoint,
            model,
            limits,
            target,
            precision,
            plan,
            kernels,
            library,
            special_tokens(checkpoint),
            recipe_fields(checkpoint),
        )
        shutil.copyfile(library.path, into / library.path.name)
        for source in library.files:
            if source.suffix == ".cu":
                shutil.copyfile(source, into / source.name)
    (into / DRAFT_NAME).write_text(draft.model_dump_json(indent=1), encoding="utf-8")
    parameters = [asdict(one) for one in _parameters(plan, checkpoint)]
    (into / PARAMETERS_NAME).write_text(json.dumps(parameters), encoding="utf-8")
    return library.kernels


def _parameters(plan: ParameterPlan, checkpoint: Checkpoint) -> Iterator[Parameter]:
    """Shape and dtype of every parameter, and what kind of numbers it holds, in the plan's order."""
    for name, source in plan.sources.items():
        if isinstance(source, QuantizedSource):
            spec = MatmulSpec.from_json(source.spec)
            array = LAYOUTS[source.layout].arrays(spec)[source.array]
            yield Parameter(name, array.shape, array.dtype, array.suffix, spec.bits, spec.in_features)
        elif isinstance(source, DenseSource):
            parts = [checkpoint.tensors[tensor].shape for tensor in source.tensors]
            shape = (sum(part[0] for part in parts), *parts[0][1:])
            if source.layout is not None:
                (array,) = DENSE_LAYOUTS[source.layout].arrays(shape[1], shape[0], source.dtype)
                shape = array.shape
            yield Parameter(name, shape, source.dtype, "dense", 16, shape[-1])


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
