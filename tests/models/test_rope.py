"""Rotary embeddings against transformers, and the configurations that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_tvm.errors import CheckpointError, UnsupportedError
from awq_tvm.models.rope import RopeConfig

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn_all": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "yarn_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 0.7,
    },
}


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], theta: float, head_dim: int) -> None:
    """The same float32 numbers but for the last bit or two (their power function against ours)."""
    transformers = pytest.importorskip("transformers")
    modeling_llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters=dict(scaling, rope_theta=theta),
        max_position_embeddings=16384,
    )
    theirs = modeling_llama.LlamaRotaryEmbedding(config)
    ours = RopeConfig.from_hugging_face(config.to_dict(), head_dim)
    expected = theirs.inv_freq.numpy()
    difference = ours.inverse_frequencies().view(np.int32).astype(np.int64) - expected.view(np.int32)
    assert np.max(np.abs(difference)) <= 2
    assert ours.attention_scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_old_and_new_config_say_the_same() -> None:
    """``rope_theta`` and ``rope_scaling`` (with "type") are read like ``rope_parameters``."""
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert RopeConfig.from_hugging_face(old, 64) == RopeConfig.from_hugging_face(new, 64)
    assert RopeConfig.from_hugging_face({"rope_scaling": None}, 64) == RopeConfig(64)


def test_yarn_takes_its_original_length_from_max_position_embeddings() -> None:
    """As transformers does where the parameter is left out."""
    config = {"rope_scaling": {"rope_type": "yarn", "factor": 4}, "max_position_embeddings": 4096}
    assert RopeConfig.from_hugging_face(config, 64).original_max_position_embeddings == 4096


LLAMA3 = SCALINGS["llama3"]


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedError, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, UnsupportedError, "'longrope'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, UnsupportedError, "not known"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        ({"rope_scaling": [1]}, CheckpointError, "no object"),
        ({"rope_scaling": {"rope_type": "linear"}}, CheckpointError, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, CheckpointError, "factor is 0.5"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, CheckpointError, "finite number"),
        ({"rope_theta": float("nan")}, CheckpointError, "rope_theta"),
        ({"rope_theta": True}, CheckpointError, "rope_theta"),
        ({"rope_theta": 0}, CheckpointError, "above 1"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, CheckpointError, "high_freq_factor"),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}},
            CheckpointError,
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": SCALINGS["yarn"] | {"beta_fast": 0.5}}, CheckpointError, "beta_fast"),
        (
            {"rope_scaling": SCALINGS["yarn"] | {"attention_factor": -1.0}},
            CheckpointError,
            "attention_factor",
        ),
    ],
)
def test_refusals(config: dict[str, Any], error: type[Exception], words: str) -> None:
    """A configuration that cannot be served says which parameter and why."""
    RopeConfig.from_hugging_face({}, 64)
    with pytest.raises(error, match=words):
        RopeConfig.from_hugging_face(config, 64)


@pytest.mark.parametrize("head_dim", [0, -8, 7])
def test_odd_heads_are_refused(head_dim: int) -> None:
    """Features turn in pairs."""
    with pytest.raises(UnsupportedError, match="head_dim"):
        RopeConfig(head_dim)
