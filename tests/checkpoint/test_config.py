from __future__ import annotations

import json
from typing import Any

import pytest

from awq_tvm.checkpoint.config import FAMILIES, MAX_CONFIG_BYTES, normalise_config, parse_config
from awq_tvm.errors import CheckpointError

from .tiny_models import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_good_config_keeps_every_key(family: str) -> None:
    config = tiny_config(family, something_else={"deep": [1]})
    result = parse_config(json.dumps(config).encode(), "here")
    assert {key: result[key] for key in config} == config
    assert result["rope_scaling"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    given = {key: value for key, value in tiny_config(family).items() if key in sizes}
    ours = normalise_config({"model_type": family, **given}, "here")
    theirs = transformers.AutoConfig.for_model(family, **given)
    names = ["rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"]
    optional = ("attention_bias", "mlp_bias", "use_sliding_window", "hidden_act", "hidden_activation")
    names += [name for name in optional if name in FAMILIES[family]]
    assert {name: ours[name] for name in names} == {name: getattr(theirs, name) for name in names}
    rope = theirs.rope_parameters
    if family == "gemma3_text":
        assert ours["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    assert ours["rope_theta"] == rope["rope_theta"]
    assert ours["head_dim"] == (getattr(theirs, "head_dim", None) or 32 // 4)
    if family == "mistral":
        assert ours["sliding_window"] == theirs.sliding_window
        assert ours["num_key_value_heads"] == 4  # transformers assumes 8 here, for a model of 32 heads
    elif family != "qwen2" and family != "qwen3":
        assert ours["num_key_value_heads"] == theirs.num_key_value_heads


def test_a_window_of_nothing_is_no_mistake_where_none_is_used() -> None:
    config = tiny_config("qwen2", sliding_window=0, use_sliding_window=False)
    assert normalise_config(config, "here")["sliding_window"] == 0


def test_a_null_sliding_window_stays_null() -> None:
    assert normalise_config(tiny_config("mistral", sliding_window=None), "here")["sliding_window"] is None


@pytest.mark.parametrize(
    ("spelling", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            5e5,
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, 5e5, LLAMA3),
        ({"rope_theta": None, "rope_parameters": None}, 1e4, None),
        (
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            1e4,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_rope_has_one_spelling(
    spelling: dict[str, Any], theta: float, scaling: dict[str, Any] | None
) -> None:
    result = normalise_config(tiny_config(**spelling), "here")
    assert (result["rope_theta"], result["rope_scaling"]) == (theta, scaling)
    assert "rope_parameters" not in result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"num_attention_heads": 5, "head_dim": None}, "does not divide hidden_size 32"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rope_scaling": 3}, "rope_scaling is 3"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer type"),
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
            "'spiral' is unknown; known: default, linear",
        ),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "is unknown"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -1}}, "rope_scaling.factor is -1"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [], "long_factor": [1.0]}},
            "short_factor is",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor must be below"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"model_type": 3}, "model_type is 3"),
    ],
)
def test_refuses_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    normalise_config(tiny_config(), "here")  # the good twin
    with pytest.raises(CheckpointError, match=message) as caught:
        normalise_config(tiny_config(**changes), "some config.json")
    assert caught.value.where == "some config.json"


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(CheckpointError) as caught:
        normalise_config(tiny_config(hidden_size=0, vocab_size=0, rms_norm_eps=2), "here")
    assert all(word in str(caught.value) for word in ("hidden_size", "vocab_size", "rms_norm_eps"))


def test_unknown_model_type_is_read_and_what_it_has_is_checked() -> None:
    result = normalise_config({"model_type": "something_new", "hidden_size": 8}, "here")
    assert result["hidden_size"] == 8
    with pytest.raises(CheckpointError, match="hidden_size is 0"):
        normalise_config({"model_type": "something_new", "hidden_size": 0}, "here")


def test_parameters_by_layer_type_are_left_alone_where_unknown() -> None:
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    result = normalise_config({"model_type": "something_new", "rope_parameters": nested}, "here")
    assert result["rope_parameters"] == nested
    flat = tiny_config("gemma3_text")
    gemma = {key: value for key, value in flat.items() if not key.startswith("rope_")}
    result = normalise_config({**gemma, "rope_parameters": nested}, "here")
    assert result["rope_parameters"] == nested
    assert "rope_theta" not in result
    assert "rope_local_base_freq" not in result
    assert normalise_config(gemma, "here")["rope_local_base_freq"] == 10000.0


def test_200_megabytes_are_not_parsed() -> None:
    raw = b'{"model_type": "llama"' + b" " * MAX_CONFIG_BYTES + b"}"
    with pytest.raises(CheckpointError, match="too large"):
        parse_config(raw, "here")
