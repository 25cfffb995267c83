"""GGUF files end to end, written by the gguf package."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.checkpoint.gguf_config import llama3_factors
from awq_tvm.checkpoint.gguf_file import hugging_face_name, unpermute_heads
from awq_tvm.errors import AwqTvmError, CheckpointError, UnsupportedError

from .tiny_models import BPE_TOKENS, permute_heads, save_gguf, tiny_config, tiny_weights

FAMILIES = ("llama", "qwen2", "qwen3")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_names_values_and_config(tmp_path: Path, family: str, tied: bool) -> None:
    config = tiny_config(
        family, tie_word_embeddings=tied, attention_bias=family == "llama", mlp_bias=family == "llama"
    )
    weights = tiny_weights(config)
    checkpoint = open_checkpoint(save_gguf(tmp_path / "m.gguf", config, weights))
    assert (checkpoint.format, checkpoint.scheme, checkpoint.quantized) == ("gguf", None, ())
    assert set(checkpoint.tensors) == set(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)
        assert checkpoint.tensors[name].dtype == "float32"
        assert checkpoint.tensors[name].stored_as == "F32"
    keys = [key for key in config if key not in ("mlp_bias", "attention_bias")]
    assert {key: checkpoint.config[key] for key in keys} == {key: config[key] for key in keys}
    if family == "llama":
        assert checkpoint.config["attention_bias"] is True
        assert checkpoint.config["mlp_bias"] is True
    assert (checkpoint.config["bos_token_id"], checkpoint.config["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_size_without_a_key_length(tmp_path: Path, family: str) -> None:
    config = tiny_config(family)
    metadata = {f"{family}.attention.key_length": None, f"{family}.attention.head_count": [4, 4]}
    path = save_gguf(tmp_path / "m.gguf", config, tiny_weights(config), metadata=metadata)
    assert open_checkpoint(path).config["head_dim"] == 8
    metadata[f"{family}.attention.head_count"] = 0
    with pytest.raises(CheckpointError, match="num_attention_heads is 0"):
        open_checkpoint(save_gguf(path, config, tiny_weights(config), metadata=metadata))


def test_permutation_is_undone() -> None:
    rows = np.arange(4 * 8 * 3, dtype=np.float32).reshape(32, 3)
    permuted = permute_heads(rows, 4)
    assert not np.array_equal(permuted, rows)
    np.testing.assert_array_equal(unpermute_heads(permuted, 4), rows)
    np.testing.assert_array_equal(unpermute_heads(permuted[:, 0], 4), rows[:, 0])


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_types_the_gguf_package_can_write(tmp_path: Path, kind: Kind) -> None:
    config = tiny_config("qwen2")
    weights = tiny_weights(config)
    checkpoint = open_checkpoint(save_gguf(tmp_path / "m.gguf", config, weights, types={UP: kind}))
    expected = gguf.quants.dequantize(gguf.quants.quantize(weights[UP], kind), kind)
    np.testing.assert_array_equal(checkpoint.read(UP), expected)
    assert np.abs(expected - weights[UP]).max() < 0.5
    assert checkpoint.tensors[UP].stored_as == kind.name
    assert checkpoint.tensors[UP].stored_bytes < weights[UP].nbytes


def q4_k_block(
    scale: float, minimum: float, scales: list[int], minimums: list[int], values: np.ndarray
) -> bytes:
    """One Q4_K super-block: 8 groups of 32 values; w = scale * scales[g] * value - minimum * minimums[g]."""
    packed = bytearray(12)
    for g in range(4):
        packed[g] = scales[g] | (scales[g + 4] >> 4) << 6
        packed[g + 4] = minimums[g] | (minimums[g + 4] >> 4) << 6
        packed[g + 8] = (scales[g + 4] & 15) | (minimums[g + 4] & 15) << 4
    groups = values.reshape(4, 2, 32)
    nibbles = groups[:, 0] | groups[:, 1] << 4
    return struct.pack("<2e", scale, minimum) + bytes(packed) + nibbles.astype(np.uint8).tobytes()


def test_a_k_quant_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = tiny_config("qwen2", intermediate_size=256, num_hidden_layers=1)
    config_small = tiny_config("qwen2")
    weights = {k: v for k, v in tiny_weights(config_small).items() if ".layers.1." not in k}
    weights["model.layers.0.mlp.gate_proj.weight"] = rng.normal(size=(256, 32)).astype(np.float32)
    weights[UP] = rng.normal(size=(256, 32)).astype(np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    del weights[name]
    blocks, expected = [], np.empty((32, 8, 32), np.float32)
    for row in range(32):
        scales, minimums = rng.integers(0, 64, (2, 8))
        values = rng.integers(0, 16, 256).astype(np.uint8)
        blocks.append(q4_k_block(0.25, 0.5, scales.tolist(), minimums.tolist(), values))
        expected[row] = values.reshape(8, 32) * (0.25 * scales[:, None]) - 0.5 * minimums[:, None]
    path = tmp_path / "m.gguf"
    raw = np.frombuffer(b"".join(blocks), np.uint8).reshape(32, 144)
    writer_extra = {"blk.0.ffn_down.weight": raw}
    save_gguf(path, config, weights, extra_raw=(writer_extra, Kind.Q4_K))
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors[name].stored_as == "Q4_K"
    np.testing.assert_allclose(checkpoint.read(name), expected.reshape(32, 256), rtol=1e-6)


def test_nan_is_named_when_read(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    weights = tiny_weights(config)
    weights[UP][5, 6] = np.inf
    checkpoint = open_checkpoint(save_gguf(tmp_path / "m.gguf", config, weights))
    with pytest.raises(CheckpointError, match=r"up_proj.weight\[5, 6\] is inf"):
        checkpoint.read(UP)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scale_linear": 1.0}, None),
        (YARN, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        (
            YARN | {"rope.scaling.yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, metadata: dict[str, Any], expected: dict[str, Any] | None) -> None:
    config = tiny_config("qwen2")
    fields = {f"qwen2.{key}": value for key, value in metadata.items()}
    checkpoint = open_checkpoint(
        save_gguf(tmp_path / "m.gguf", config, tiny_weights(config), metadata=fields)
    )
    assert checkpoint.config["rope_scaling"] == expected


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_factors_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = tiny_config(head_dim=64, rope_theta=500000.0, rope_scaling=dict(LLAMA3))
    theirs = transformers.AutoConfig.for_model(**config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(config, LLAMA3), rtol=1e-5)


def test_rope_factors_become_llama3_scaling(tmp_path: Path) -> None:
    config = tiny_config(rope_theta=500000.0)
    weights = tiny_weights(config)
    factors = llama3_factors(config, LLAMA3).astype(np.float32)
    assert factors.max() == 32
    for values, expected in ((factors, LLAMA3), (np.ones_like(factors), None)):
        path = save_gguf(
            tmp_path / f"{values[-1]}.gguf", config, weights, extra={"rope_freqs.weight": values}
        )
        checkpoint = open_checkpoint(path)
        assert checkpoint.config["rope_scaling"] == expected
        assert set(checkpoint.tensors) == set(weights)
    for values, kind, message in (
        (factors * 1.5, UnsupportedError, "other than those of Llama 3.1"),
        (factors[:-1], CheckpointError, "makes no sense"),
        (-factors, CheckpointError, "makes no sense"),
    ):
        path = save_gguf(tmp_path / "bad.gguf", config, weights, extra={"rope_freqs.weight": values})
        with pytest.raises(kind, match=message):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"general.architecture": "mamba"}, UnsupportedError, "architecture 'mamba'"),
        ({"general.architecture": 3}, CheckpointError, "does not name its architecture"),
        ({"llama.expert_count": 8}, UnsupportedError, "mixture of experts"),
        ({"llama.attention.head_count": [4, 2]}, UnsupportedError, "layers of different shape"),
        ({"llama.attention.head_count": 0}, CheckpointError, "num_attention_heads is 0"),
        ({"llama.attention.head_count_kv": 3}, CheckpointError, "does not divide"),
        ({"llama.embedding_length": 0}, CheckpointError, "hidden_size is 0"),
        ({"llama.block_count": 4_000_000_000}, CheckpointError, "num_hidden_layers is 4000000000"),
        ({"llama.block_count": 3}, CheckpointError, "missing: model.layers.2"),
        ({"llama.feed_forward_length": 63}, CheckpointError, "wrong shape: model.layers.0.mlp"),
        ({"llama.rope.scaling.type": "longrope"}, UnsupportedError, "RoPE scaling of type 'longrope'"),
        ({"llama.rope.scaling.type": "yarn"}, CheckpointError, "rope_scaling.factor is None"),
        ({"llama.rope.freq_base": -1.0}, CheckpointError, "rope_theta is -1.0"),
    ],
)
def test_metadata_that_lies(
    tmp_path: Path, metadata: dict[str, Any], kind: type[AwqTvmError], message: str
) -> None:
    config = tiny_config()
    weights = tiny_weights(config)
    open_checkpoint(save_gguf(tmp_path / "good.gguf", config, weights))  # the good twin
    with pytest.raises(kind, match=message):
        open_checkpoint(save_gguf(tmp_path / "bad.gguf", config, weights, metadata=metadata))


def test_unknown_tensor_is_listed_as_extra(tmp_path: Path) -> None:
    config = tiny_config()
    extra = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"extra: blk.0.attn_sinks.weight"):
        open_checkpoint(save_gguf(tmp_path / "m.gguf", config, tiny_weights(config), extra=extra))
    assert hugging_face_name("blk.0.attn_sinks.weight") is None
    assert hugging_face_name("blk.00.attn_q.weight") is None
    assert hugging_face_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    assert hugging_face_name("output.weight") == "lm_head.weight"
    assert hugging_face_name("strange.weight") is None


def edit_tensor(content: bytes, name: bytes, *, kind: int | None = None, offset: int | None = None) -> bytes:
    """Overwrite the type or offset of a two-dimensional tensor in the table."""
    at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    parts = struct.unpack_from("<IQ", content, at)
    new = struct.pack("<IQ", parts[0] if kind is None else kind, parts[1] if offset is None else offset)
    return content[:at] + new + content[at + 12 :]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"kind": 999}, UnsupportedError, "tensor of type 999"),
        ({"kind": int(Kind.IQ1_S)}, UnsupportedError, "tensor of type IQ1_S"),
        ({"kind": int(Kind.Q4_K)}, CheckpointError, "whole number of blocks"),
        ({"offset": 1 << 62}, CheckpointError, "outside the file"),
        ({"offset": 0}, CheckpointError, "overlap"),
    ],
)
def test_tensor_table_that_lies(
    tmp_path: Path, change: dict[str, int], kind: type[AwqTvmError], message: str
) -> None:
    config = tiny_config()
    path = save_gguf(tmp_path / "m.gguf", config, tiny_weights(config))
    open_checkpoint(path)  # the good twin
    path.write_bytes(edit_tensor(path.read_bytes(), b"blk.0.ffn_up.weight", **change))
    with pytest.raises(kind, match=message):
        open_checkpoint(path)


def test_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    path = save_gguf(tmp_path / "m.gguf", config, tiny_weights(config))
    content = path.read_bytes()
    for keep in (0, 3, 8, 24, 100, 1000, len(content) // 2, len(content) - 64):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


# Tokenizer


def side_files(path: Path, **metadata: Any) -> dict[str, Any]:
    config = tiny_config()
    fields = {f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()}
    checkpoint = open_checkpoint(save_gguf(path, config, tiny_weights(config), metadata=fields))
    return {
        name: json.loads(content) if name.endswith(".json") else content
        for name, content in checkpoint.side_files.items()
    }


def test_tokenizer_files(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    files = side_files(tmp_path / "m.gguf", chat_template="{{ messages }}<|im_end|>")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    ids = tokenizer.encode("in the thing<extra_0></s>").ids
    assert [BPE_TOKENS[i] for i in ids] == ["in", "Ġthe", "Ġ", "th", "ing", "<extra_0>", "</s>"]
    assert tokenizer.decode(ids) == "in the thing<extra_0>"
    assert files["generation_config.json"] == {"bos_token_id": 1, "eos_token_id": 2}
    settings = files["tokenizer_config.json"]
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert settings["chat_template"] == "{{ messages }}<|im_end|>"
    assert files["chat_template.jinja"] == b"{{ messages }}<|im_end|>"
    assert settings["added_tokens_decoder"]["2"]["special"] is True
    extra = BPE_TOKENS.index("<extra_0>")
    assert settings["added_tokens_decoder"][str(extra)]["special"] is False


# Where the rules differ: digits, case of contractions, newlines, and (for Qwen) composed characters.
@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġa", "1", "2", "3", "4", "'", "Sb", ".", "ĊĠ", "Ġce", "Ìģ"]),
        ("gpt-2", ["Ġa", "1234", "'", "Sb", ".", "ĊĠ", "Ġce", "Ìģ"]),
        ("default", ["Ġa", "123", "4", "'", "Sb", ".", "ĊĠ", "Ġce", "Ìģ"]),
        ("llama-bpe", ["Ġa", "123", "4", "'S", "b", ".Ċ", "Ġ", "Ġce", "Ìģ"]),
        ("qwen2", ["Ġa", "1", "2", "3", "4", "'S", "b", ".Ċ", "Ġ", "ĠcÃ©"]),
    ],
)
def test_text_is_cut_as_the_model_was_trained(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    files = side_files(tmp_path / "m.gguf", ggml__pre=pre)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    text = " a1234'Sb.\n  ce\u0301"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_bos_eos_and_turn_ends(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    files = side_files(
        tmp_path / "m.gguf", ggml__add_bos_token=True, ggml__add_eos_token=True, ggml__eot_token_id=0
    )
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert tokenizer.encode("the").ids[0] == 1
    assert tokenizer.encode("the").ids[-1] == 2
    assert tokenizer.encode("a", "b").ids == [1, 3, 2, 1, 4, 2]
    assert tokenizer.encode("the", add_special_tokens=False).ids == [BPE_TOKENS.index("the")]
    assert files["generation_config.json"]["eos_token_id"] == [2, 0]


def test_end_of_turn_is_taken_from_the_chat_template(tmp_path: Path) -> None:
    tokens = [*BPE_TOKENS[:-1], "<|im_end|>"]
    files = side_files(tmp_path / "m.gguf", chat_template="x<|im_end|>", ggml__tokens=tokens)
    assert files["generation_config.json"]["eos_token_id"] == [2, 47]


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        ({"ggml__model": "t5"}, UnsupportedError, "tokenizer of kind 't5'"),
        ({"ggml__pre": "novel"}, UnsupportedError, "pre-tokenizer named 'novel'"),
        ({"ggml__tokens": "x"}, CheckpointError, "no list of tokens"),
        ({"ggml__tokens": [*BPE_TOKENS, "more"]}, CheckpointError, "more tokens than the embedding has rows"),
        ({"ggml__tokens": ["a"] * 48}, CheckpointError, "lists a token twice"),
        ({"ggml__token_type": [1, 1]}, CheckpointError, "lists differ in length"),
        ({"ggml__merges": "x"}, CheckpointError, "no list of merges"),
        ({"ggml__merges": ["xyz"]}, CheckpointError, "merges do not fit its tokens"),
        ({"ggml__merges": ["é è"]}, CheckpointError, "merges do not fit its tokens"),
        ({"ggml__eos_token_id": 48}, CheckpointError, "special token is not in the vocabulary"),
        ({"ggml__model": "llama"}, CheckpointError, "no score for every token"),
        ({"chat_template": 3}, CheckpointError, "chat template is not a string"),
    ],
)
def test_tokenizer_that_lies(
    tmp_path: Path, metadata: dict[str, Any], kind: type[AwqTvmError], message: str
) -> None:
    side_files(tmp_path / "good.gguf")  # the good twin
    with pytest.raises(kind, match=message):
        side_files(tmp_path / "bad.gguf", **metadata)


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in (0xC3, 0xA9)), "▁", *"abcdet"]
    pieces += ["ab", "abc", "bc", "▁abc", "▁a"]
    pieces += [f"zz{i}" for i in range(48 - len(pieces))]
    scores = [0.0] * 12 + [-5.0, -4.0, -1.0, -2.0, -3.0] + [-100.0] * (48 - 17)
    types = [2, 3, 3, 6, 6] + [1] * 43
    metadata = {
        "ggml__model": "llama",
        "ggml__tokens": pieces,
        "ggml__scores": scores,
        "ggml__token_type": types,
    }
    files = side_files(tmp_path / "m.gguf", **metadata)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    # "bc" scores best and is merged first; then "abc" of "a" + "bc"; then "▁abc".
    assert tokenizer.encode("abc abcd").tokens == ["<s>", "▁abc", "▁abc", "d"]
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é").ids) == "abc é"
    plain = side_files(
        tmp_path / "n.gguf", **metadata, ggml__add_space_prefix=False, ggml__add_bos_token=False
    )
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain["tokenizer.json"]))
    assert tokenizer.encode("abc").tokens == ["abc"]
    assert tokenizer.decode(tokenizer.encode(" abc").ids) == " abc"
