"""config.json as transformers reads it, and the part of it that is a causal language model.

A model that sees is a vision tower, a projector and a language model. The last is quantized like any other; text
alone goes through it as through the causal language model of its config.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from awq_tvm.errors import CheckpointError, UnsupportedError
from awq_tvm.quantize.families import SEEING

# Of a config.json, what describes the files and not the network.
_NOT_THE_NETWORK = (
    "model_type",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "auto_map",
)

# What transformers raises for values that make no sense, from its checks or from arithmetic with them.
_BAD_CONFIG = (
    StrictDataclassError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)


@contextmanager
def refusing_bad_configs() -> Iterator[None]:
    """Turn what transformers raises for a config that makes no sense into a CheckpointError."""
    try:
        yield
    except _BAD_CONFIG as error:
        raise CheckpointError(
            "No network can be made from the config",
            where="config.json",
            why=f"{type(error).__name__}: {error}",
            fix="take config.json from the model's publisher",
        ) from error


def parse_network_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Read a config.json; use within `refusing_bad_configs`.

    Args:
        config: config.json of a model_type that transformers knows.
    """
    # A copy: transformers writes into the dicts it is given.
    values = copy.deepcopy({key: value for key, value in config.items() if key not in _NOT_THE_NETWORK})
    return AutoConfig.for_model(config["model_type"], **values)


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the causal language model in a model.

    Args:
        config: config.json.

    Returns:
        For a model of `SEEING` that of its language model, complete; else the config itself.

    Raises:
        UnsupportedError: a language model that was not tried there.
        CheckpointError: a config that makes no sense.
    """
    seeing = SEEING.get(config.get("model_type", ""))
    if seeing is None:
        return dict(config)
    with refusing_bad_configs():
        whole = parse_network_config(config)
        text = whole.get_text_config().to_dict()
        tied = bool(whole.tie_word_embeddings)
    if text["model_type"] not in seeing.languages:
        raise UnsupportedError(
            f"Models of type {config['model_type']!r} with a language model of type {text['model_type']!r} "
            "cannot be quantized yet",
            where="config.json: text_config.model_type",
            why=f"tried were {', '.join(seeing.languages)}",
            fix="see docs/adding-a-model.md for how a family is added",
        )
    rope = text.get("rope_parameters")
    if isinstance(rope, dict):
        # Directions that positions in a picture have and those in a text do not.
        text["rope_parameters"] = {key: value for key, value in rope.items() if key != "mrope_section"}
    return {**text, "model_type": seeing.languages[text["model_type"]], "tie_word_embeddings": tied}
