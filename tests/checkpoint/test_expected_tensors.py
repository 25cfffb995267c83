from __future__ import annotations

from typing import Any

import pytest

from awq_tvm.checkpoint.config import FAMILIES, normalise_config
from awq_tvm.checkpoint.expected_tensors import check_weights, expected_tensors
from awq_tvm.errors import CheckpointError

from .tiny_models import tiny_config, tiny_weights

VARIANTS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("gemma3_text", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_same_tensors_as_transformers_has(family: str, changes: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        theirs.pop("lm_head.weight", None)
    assert expected_tensors(normalise_config(config, "here")) == theirs


def test_every_family_has_a_table_and_no_other_model_type_has() -> None:
    assert all(
        expected_tensors(normalise_config(tiny_config(family), "here")) for family in FAMILIES if family
    )
    assert expected_tensors({"model_type": "something_new"}) is None
    check_weights({"model_type": "something_new"}, {"x": (1,)}, "here")  # nothing to compare with


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_every_mismatch_is_listed_at_once(family: str, changes: dict[str, Any]) -> None:
    config = normalise_config(tiny_config(family, **changes), "here")
    shapes = {name: value.shape for name, value in tiny_weights(config).items()}
    check_weights(config, shapes, "here")  # the good twin
    bad = dict(shapes)
    del bad["model.norm.weight"]
    bad["model.layers.0.mlp.up_proj.weight"] = (64, 31)
    bad["model.layers.9.mlp.up_proj.weight"] = (64, 32)
    with pytest.raises(CheckpointError, match="3 of the weights") as caught:
        check_weights(config, bad, "the folder")
    text = str(caught.value)
    assert "missing: model.norm.weight [32]" in text
    assert "extra: model.layers.9.mlp.up_proj.weight [64, 32]" in text
    assert "wrong shape: model.layers.0.mlp.up_proj.weight is [64, 31], config.json makes it [64, 32]" in text


def test_a_very_long_list_is_counted() -> None:
    config = normalise_config(tiny_config(num_hidden_layers=100), "here")
    with pytest.raises(CheckpointError, match=r"903 of the weights[\s\S]*and 503 more"):
        check_weights(config, {}, "here")
