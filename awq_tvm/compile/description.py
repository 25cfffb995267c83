"""What a bundle says of itself: the manifest's fields and the card, from what was compiled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import awq_tvm
from awq_tvm.bundle import manifest as manifests
from awq_tvm.checkpoint import Checkpoint
from awq_tvm.checkpoint.json_file import parse_json_object
from awq_tvm.errors import CheckpointError

if TYPE_CHECKING:
    from awq_tvm.compile.toolchain import BuiltLibrary
    from awq_tvm.models.config import ModelConfig
    from awq_tvm.models.export import Limits
    from awq_tvm.models.precision import Precision
    from awq_tvm.schedules.parameter_plan import ParameterPlan
    from awq_tvm.targets import Target


# In the recipe's free text: what the symbols of a static archive begin with.
SYMBOL_PREFIX = "symbol_prefix"


def special_tokens(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The ids that begin and end a text; generation_config.json goes before config.json."""
    where = str(checkpoint.path / "generation_config.json")
    generation = parse_json_object(checkpoint.side_files.get("generation_config.json", b"{}"), where)
    vocabulary = int(checkpoint.config["vocab_size"])
    found = {}
    for name in ("eos_token_id", "bos_token_id"):
        value = generation.get(name, checkpoint.config.get(name))
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
            raise CheckpointError(
                f"{name} is {value!r:.80}", where=where, why=f"ids must be whole numbers below {vocabulary}"
            )
        found[name] = tuple(ids)
    return found


def recipe_fields(checkpoint: Checkpoint) -> dict[str, str]:
    """What ``recipe.json`` beside the weights says of how they were made; checkpoints of others have none.

    Texts are as they stand there, numbers and lists in JSON; what is null there was not done and is left out.
    """
    raw = checkpoint.side_files.get("recipe.json", b"{}")
    fields = parse_json_object(raw, str(checkpoint.path / "recipe.json"))
    scheme = checkpoint.config.get("quantization_config") or {}
    known = {"method": scheme["quant_method"]} if "quant_method" in scheme else {}
    said = {key: value for key, value in {**known, **fields}.items() if key and value not in (None, "")}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    return {key[:512]: text[:4096] for key, text in list(texts.items())[:128]}


def describe(
    checkpoint: Checkpoint,
    config: ModelConfig,
    limits: Limits,
    target: Target,
    precision: Precision,
    plan: ParameterPlan,
    kernels: Sequence[dict[str, Any]],
    library: BuiltLibrary,
    special: dict[str, tuple[int, ...]],
    recipe: dict[str, str],
    *,
    source_only: bool = False,
) -> manifests.ManifestDraft:
    """The manifest of a compiled model, all but the list of its files.

    Args:
        checkpoint: what was compiled.
        config: its model.
        limits: what the library has room for.
        target: what it was compiled for.
        precision: its number formats.
        plan: of the weights.
        kernels: coverage, see ``ir_attrs.COVERAGE``.
        library: that was built.
        special: see ``special_tokens``.
        recipe: see ``recipe_fields``.
        source_only: its kernels are not compiled.
    """
    scheme = checkpoint.scheme
    host = target.tvm_target if target.host is None else target.host
    return manifests.ManifestDraft(
        versions=manifests.Versions(
            awq_tvm=awq_tvm.__version__, tvm=version("apache-tvm"), tvm_ffi=version("apache-tvm-ffi")
        ),
        model=manifests.ModelInfo(
            name=str(checkpoint.config.get("_name_or_path") or checkpoint.path.name),
            architecture=config.model_type,
            vocab_size=config.vocab_size,
            num_hidden_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            context_length=limits.context_length,
            prefill_chunk_size=limits.prefill_chunk_size,
            max_sequences=limits.max_sequences,
            eos_token_ids=special["eos_token_id"],
            bos_token_id=special["bos_token_id"][0] if special["bos_token_id"] else None,
        ),
        recipe=manifests.RecipeInfo(
            method=recipe.get("method", "unknown")[:512] if scheme else "none",
            bits=scheme.bits if scheme else 16,
            group_size=max(scheme.group_size, 0) if scheme else 0,
            activations="int8" if precision.activations == "int8" else "float",
            extra={
                **{name: text for name, text in recipe.items() if name != "method"},
                "source": checkpoint.source,
                "kv_cache": precision.kv_cache,
                **({SYMBOL_PREFIX: library.symbol_prefix} if library.symbol_prefix else {}),
            },
        ),
        target=manifests.TargetInfo(
            name=target.name,
            kind=target.kind,
            fingerprint=target.fingerprint,
            triple=str(host["mtriple"]),
            required_features=_required_features(target),
        ),
        library=library.path.name,
        weights="weights.safetensors",
        parameters=tuple(plan.sources),
        tuning=manifests.TuningInfo(kernels=tuple(manifests.KernelInfo(**kernel) for kernel in kernels)),
        source_only=source_only,
    )


def _required_features(target: Target) -> tuple[str, ...]:
    """What a machine must have: all of a CPU's features, or one of a GPU's architectures."""
    if target.kind == "cuda":
        return (*target.cuda_archs, *((target.ptx_arch,) if target.ptx_arch else ()))
    return tuple(sorted(target.features))


def card(draft: manifests.ManifestDraft) -> str:
    """Text of the bundle's README.md."""
    recipe, model = draft.recipe, draft.model
    budget = recipe.extra.get("budget")
    bits = f"{recipe.bits} bits" if budget is None else f"{budget} bits on average"
    groups = f"groups of {recipe.group_size}" if recipe.group_size else "rows"
    return "\n".join(
        [
            f"# {model.name} for {draft.target.name}",
            "",
            f"{model.architecture}, {model.num_hidden_layers} layers, context {model.context_length} tokens; "
            f"weights {bits} in {groups}, activations {recipe.activations}, "
            f"keys and values {recipe.extra.get('kv_cache', 'in an unknown format')}.",
            "",
            _what_to_do(draft),
            "",
        ]
    )


def _what_to_do(draft: manifests.ManifestDraft) -> str:
    """A sentence on how a bundle is used."""
    prefix = draft.recipe.extra.get(SYMBOL_PREFIX)
    if draft.source_only:
        return (
            "Its kernels are not compiled yet. `python -m awq_tvm finish BUNDLE -o FINISHED` does that on a machine "
            "with the CUDA toolkit; `python -m awq_tvm verify BUNDLE --emulate` runs them on a CPU as they are."
        )
    if prefix is not None:
        return (
            f"Link {draft.library} whole into an app that has TVM's runtime; its module is "
            f'`ffi.SystemLib("{prefix}")`. No iPhone has run it.'
        )
    return (
        "Run it with `python -m awq_tvm generate BUNDLE --prompt TEXT`; check it with "
        "`python -m awq_tvm verify BUNDLE`."
    )
