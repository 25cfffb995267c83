"""gguf_write and gguf_metadata: read back by our own reader, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, QuantizedWeight, open_checkpoint
from awq_tvm.checkpoint.gguf_file import gguf_name, hugging_face_name, permuted_rows, unpermute_heads
from awq_tvm.checkpoint.gguf_metadata import ARCHITECTURES
from awq_tvm.checkpoint.gguf_tokenizer import _PRE_TOKENIZERS, _splitter, pre_tokenizer_name
from awq_tvm.checkpoint.gguf_write import KINDS, exact_blocks, write_gguf
from awq_tvm.checkpoint.write import write_quantized_checkpoint
from awq_tvm.errors import AwqTvmError, CheckpointError, ResourceError, UnsupportedError, UsageError

from .tiny_models import all_linears, random_weight, save_folder, save_gguf, tiny_config, tiny_weights

TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in KINDS}


@pytest.fixture(scope="session")
def side_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tokenizer for 48 tokens, with a chat template."""
    config = tiny_config()
    template = {"tokenizer.chat_template": "{{ messages[0]['content'] }}"}
    path = save_gguf(
        tmp_path_factory.mktemp("tokenizer") / "a.gguf", config, tiny_weights(config), metadata=template
    )
    return dict(open_checkpoint(path).side_files)


Spoil = Callable[[dict[str, Any], dict[str, np.ndarray], dict[str, bytes]], Any]


def dense(folder: Path, files: dict[str, bytes], spoil: Spoil | None = None, **changes: Any) -> Checkpoint:
    config = tiny_config(changes.pop("family", "llama"), bos_token_id=1, eos_token_id=2, **changes)
    weights, files = tiny_weights(config, np.float16), dict(files)
    if spoil is not None:
        spoil(config, weights, files)
    save_folder(folder, config, weights)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return open_checkpoint(folder)


def quantized(folder: Path, files: dict[str, bytes], scheme: QuantizationScheme) -> Checkpoint:
    config = tiny_config()
    weights = tiny_weights(config, np.float16)
    write_quantized_checkpoint(
        folder,
        config=config,
        scheme=scheme,
        dense=[(name, w) for name, w in weights.items() if name.removesuffix(".weight") not in all_linears()],
        quantized=[
            (name, random_weight(shape, scheme.bits, scheme.group_size, symmetric=not scheme.zero_point))
            for name, shape in all_linears().items()
        ],
        side_files=files,
        card="",
    )
    return open_checkpoint(folder)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["q4_0", "q4_1", "q8_0"]),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_hold_the_same_weights(
    kind: str, bits: int, group_size: int, symmetric: bool, seed: int
) -> None:
    weight = random_weight((6, 256), bits, group_size, symmetric=symmetric, seed=seed)
    blocks = exact_blocks(weight, kind)
    if blocks is None:
        centred = weight.q.reshape(6, -1, group_size).astype(int) - weight.zeros[:, :, None]
        limit = {"q4_0": centred.max() > 7 or centred.min() < -8, "q4_1": bits > 4}
        assert limit.get(kind, np.abs(centred).max() > 127)
        return
    found, expected = gguf.quants.dequantize(blocks, TYPES[kind]), weight.dequantize()
    if kind == "q4_1":  # scale * zero point is rounded to float16
        offsets = weight.scales.astype(np.float32) * weight.zeros
        np.testing.assert_array_less(
            np.abs(found - expected), np.repeat(offsets, group_size, 1) * 2.0**-11 + 1e-6
        )
    else:
        np.testing.assert_array_equal(found, expected)


def test_what_has_no_exact_blocks() -> None:
    assert exact_blocks(random_weight((4, 32), 4, 16), "q4_1") is None
    assert exact_blocks(random_weight((4, 32), 4, 32), "f16") is None
    weight = random_weight((4, 32), 4, 32)
    assert exact_blocks(weight, "q4_1") is not None
    large = QuantizedWeight(weight.q, weight.scales * 0 + np.float16(60000), weight.zeros | 2, 4, 32)
    assert exact_blocks(large, "q4_1") is None  # scale * zero point overflows


def test_names_and_row_order_are_undone_by_the_reader() -> None:
    names = [*tiny_weights(tiny_config("qwen3")), "model.layers.0.self_attn.q_proj.bias"]
    for name in names:
        assert hugging_face_name(gguf_name(name) or "") == name
    for name in ("model.norm", "model.layers.0.mlp.router.weight", "model.layers.01.mlp.up_proj.weight", "x"):
        assert gguf_name(name) is None
    rows = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    np.testing.assert_array_equal(unpermute_heads(rows[permuted_rows(24, 3)], 3), rows)
    assert permuted_rows(8, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_dense_models_come_back(tmp_path: Path, side_files: dict[str, bytes], family: str, kind: str) -> None:
    checkpoint = dense(tmp_path / "a", side_files, family=family, tie_word_embeddings=kind == "q4_0")
    out = tmp_path / "sub" / "a.gguf"
    assert write_gguf(out, checkpoint, kind=kind) == out
    assert [entry.name for entry in out.parent.iterdir()] == ["a.gguf"]
    back = open_checkpoint(out)
    assert back.side_files == side_files | {"tokenizer_config.json": back.side_files["tokenizer_config.json"]}
    same = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "head_dim"}
    same |= {"num_attention_heads", "vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings"}
    assert {key: back.config[key] for key in same} == {key: checkpoint.config[key] for key in same}
    assert set(back.tensors) == set(checkpoint.tensors)
    for name, info in back.tensors.items():
        values = np.asarray(checkpoint.read(name), np.float32)
        in_layers = name.startswith("model.layers.")
        stored = "f32" if values.ndim == 1 else kind if in_layers or kind == "f16" else "q8_0"
        assert info.stored_as == stored.upper()
        if stored in ("f32", "f16"):
            np.testing.assert_array_equal(back.read(name), values)
        else:  # rows are only moved, so each block is what the library makes of the original
            expected = gguf.quants.dequantize(gguf.quants.quantize(values, TYPES[stored]), TYPES[stored])
            np.testing.assert_array_equal(back.read(name), expected)


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        (QuantizationScheme(4, 32), "q4_1"),
        (QuantizationScheme(3, 32), "q4_1"),
        (QuantizationScheme(4, 32, zero_point=False), "q4_0"),
        (QuantizationScheme(4, 32), "q8_0"),
        (QuantizationScheme(4, 16), "q8_0"),
        (QuantizationScheme(4, 32), "f16"),
    ],
)
def test_quantized_models_come_back(
    tmp_path: Path, side_files: dict[str, bytes], scheme: QuantizationScheme, kind: str
) -> None:
    checkpoint = quantized(tmp_path / "a", side_files, scheme)
    back = open_checkpoint(write_gguf(tmp_path / "a.gguf", checkpoint, kind=kind))
    for name in checkpoint.quantized:
        expected = checkpoint.read_quantized(name).dequantize()
        error = np.abs(back.read(f"{name}.weight") - expected).max()
        if kind in ("q4_0", "q8_0") and scheme.group_size == 32:
            assert error == 0
        else:
            assert error < {"q4_1": 2**-11, "q8_0": 2**-7, "f16": 2**-10}[kind] * np.abs(expected).max()


def test_rows_that_are_no_whole_blocks_stay_float16(tmp_path: Path, side_files: dict[str, bytes]) -> None:
    def narrow(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
        config["intermediate_size"] = 40
        for layer in range(2):
            for name in ("gate_proj", "up_proj"):
                key = f"model.layers.{layer}.mlp.{name}.weight"
                weights[key] = weights[key][:40].copy()
            key = f"model.layers.{layer}.mlp.down_proj.weight"
            weights[key] = weights[key][:, :40].copy()

    checkpoint = dense(tmp_path / "a", side_files, narrow)
    back = open_checkpoint(write_gguf(tmp_path / "a.gguf", checkpoint, kind="q4_0"))
    assert back.tensors["model.layers.0.mlp.down_proj.weight"].stored_as == "F16"
    assert back.tensors["model.layers.0.mlp.up_proj.weight"].stored_as == "Q4_0"


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
        LLAMA3 | {"original_max_position_embeddings": 8192},
    ],
)
def test_rope_scaling_comes_back(
    tmp_path: Path, side_files: dict[str, bytes], scaling: dict[str, Any]
) -> None:
    checkpoint = dense(tmp_path / "a", side_files, rope_scaling=scaling, rope_theta=500000.0)
    back = open_checkpoint(write_gguf(tmp_path / "a.gguf", checkpoint, kind="f16"))
    assert back.config["rope_scaling"] == scaling


def test_a_window_limits_the_context(tmp_path: Path, side_files: dict[str, bytes]) -> None:
    windowed = dense(tmp_path / "a", side_files, family="mistral", sliding_window=16)
    file = write_gguf(tmp_path / "a.gguf", windowed, kind="f16")
    assert open_checkpoint(file).config["max_position_embeddings"] == 16
    unused = dense(tmp_path / "b", side_files, family="qwen2", sliding_window=16, use_sliding_window=False)
    file = write_gguf(tmp_path / "b.gguf", unused, kind="f16")
    assert open_checkpoint(file).config["max_position_embeddings"] == 128


def rope(**scaling: Any) -> Spoil:
    return lambda config, weights, files: config.update(rope_scaling=scaling)


def other_tokenizer(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    files["tokenizer.json"] = tokenizer.to_str().encode()


def unsplit_tokenizer(
    config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]
) -> None:
    files["tokenizer.json"] = Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).to_str().encode()


def unmarked(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    tokenizer = sentencepiece("bare")
    tokenizer.normalizer = normalizers.Strip()
    files["tokenizer.json"] = tokenizer.to_str().encode()


def word_pieces(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    files["tokenizer.json"] = Tokenizer(models.WordPiece(vocab={"a": 0})).to_str().encode()


def large_tokenizer(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.add_tokens(["one_more"])
    files["tokenizer.json"] = tokenizer.to_str().encode()


def unknown_model(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    config["model_type"] = "something_new"


def overflow(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    for name in weights:
        weights[name] = weights[name].astype(np.float32)
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (rope(rope_type="dynamic", factor=2.0), UnsupportedError, "type 'dynamic'"),
        (rope(rope_type="yarn", factor=2.0, mscale=1.5), UnsupportedError, "not written: mscale"),
        (unknown_model, UnsupportedError, "'something_new' model"),
        (other_tokenizer, UnsupportedError, "tokenizer that is not written"),
        (unmarked, UnsupportedError, "tokenizer that is not written"),
        (word_pieces, UnsupportedError, "tokenizer that is not written"),
        (unsplit_tokenizer, UnsupportedError, "tokenizer that is not written"),
        (large_tokenizer, CheckpointError, "more tokens than the embedding has rows"),
        (lambda config, weights, files: files.pop("tokenizer.json"), CheckpointError, "is missing"),
        (
            lambda config, weights, files: files.update({"tokenizer.json": b"{"}),
            CheckpointError,
            "cannot be read",
        ),
        (overflow, CheckpointError, "does not fit float16"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path, side_files: dict[str, bytes], spoil: Spoil, kind: type[AwqTvmError], message: str
) -> None:
    write_gguf(tmp_path / "good.gguf", dense(tmp_path / "good", side_files), kind="f16")  # the good twin
    checkpoint = dense(tmp_path / "bad", side_files, spoil)
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=message):
        write_gguf(tmp_path / "out" / "bad.gguf", checkpoint, kind="f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tensor_without_a_name_is_refused(tmp_path: Path, side_files: dict[str, bytes]) -> None:
    checkpoint = dense(tmp_path / "a", side_files)
    checkpoint.tensors["surplus"] = checkpoint.tensors["model.norm.weight"]  # type: ignore[index]
    with pytest.raises(UnsupportedError, match="no name for: surplus"):
        write_gguf(tmp_path / "a.gguf", checkpoint, kind="f16")


def test_other_kinds_and_existing_files_are_refused(tmp_path: Path, side_files: dict[str, bytes]) -> None:
    checkpoint = dense(tmp_path / "a", side_files)
    with pytest.raises(UsageError, match="'q4_k' are not written"):
        write_gguf(tmp_path / "a.gguf", checkpoint, kind="q4_k")
    (tmp_path / "a.gguf").write_bytes(b"mine")
    with pytest.raises(ResourceError):
        write_gguf(tmp_path / "a.gguf", checkpoint, kind="f16")
    assert (tmp_path / "a.gguf").read_bytes() == b"mine"


@pytest.fixture
def small_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, side_files: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    checkpoint = dense(tmp_path / "a", side_files)
    request.getfixturevalue("small_files")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_gguf(tmp_path / "out" / "a.gguf", checkpoint, kind="f16")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", _PRE_TOKENIZERS)
def test_pre_tokenizers_are_known_by_what_they_do(name: str) -> None:
    rules = _PRE_TOKENIZERS[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter(rules)
    found = pre_tokenizer_name(tokenizer, rules.ignore_merges)
    assert found is not None
    assert _PRE_TOKENIZERS[found].patterns == rules.patterns  # names that mean the same are one


def test_pre_tokenizers_as_the_models_spell_them() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pre_tokenizer_name(tokenizer, False) == "gpt-2"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert pre_tokenizer_name(tokenizer, False) == "smollm"


# 48 tokens: special ones, one byte, letters, and what their merges make.
SP_TOKENS = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", *"abcdefghijklmnopqrstuvwxyz.,1"]
SP_MERGES = [
    ("t", "h"),
    ("▁", "th"),
    ("i", "n"),
    ("▁th", "e"),
    ("in", "g"),
    ("h", "e"),
    ("▁", "in"),
    ("a", "n"),
]
SP_TOKENS += [left + right for left, right in SP_MERGES]
SP_TOKENS += [f"<extra_{i}>" for i in range(48 - len(SP_TOKENS))]
SP_TEXTS = ["the thing", "  in the  inn", "a thin then,\nhe sang", "she ate 11 an", "the<s>", ""]


def sentencepiece(spelling: str) -> Tokenizer:
    """A tokenizer as Llama 2's, with or without a space before the text, in the older and newer spelling."""
    ids = {token: at for at, token in enumerate(SP_TOKENS)}
    model = models.BPE(vocab=ids, merges=SP_MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if spelling == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    else:
        steps = [normalizers.Prepend("▁")] if spelling == "prefix" else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SP_TOKENS[:3]])
    return tokenizer


@pytest.mark.parametrize("spelling", ["prefix", "bare", "metaspace"])
@pytest.mark.parametrize("pairs", [False, True])
def test_sentencepiece_tokenizers_come_back(tmp_path: Path, spelling: str, pairs: bool) -> None:
    tokenizer = sentencepiece(spelling)
    content = json.loads(tokenizer.to_str())
    if not pairs:  # as tokenizer.json spelt merges before 2024
        content["model"]["merges"] = [" ".join(pair) for pair in SP_MERGES]
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    files = {
        "tokenizer.json": json.dumps(content).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "generation_config.json": b'{"eos_token_id": [2, 9]}',
    }
    file = write_gguf(tmp_path / "a.gguf", dense(tmp_path / "a", files), kind="f16")
    back = open_checkpoint(file)
    again = Tokenizer.from_str(back.side_files["tokenizer.json"].decode())
    # Before text that begins with a space, Metaspace puts no other; GGUF has no word for that.
    texts = [text for text in SP_TEXTS if spelling != "metaspace" or not text.startswith(" ")]
    for text in texts:
        assert again.encode(text).ids == tokenizer.encode(text).ids
    assert json.loads(back.side_files["generation_config.json"])["eos_token_id"] == [2, 9]
    assert (back.config["bos_token_id"], back.config["eos_token_id"]) == (1, 2)
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in texts:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert model.tokenize(text.encode(), add_bos=False, special=True) == expected
    model.close()


def gentle(config: dict[str, Any], weights: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    """Weights of a usual size: attention that picks one token by far would multiply every rounding."""
    for name, values in weights.items():
        if name.startswith("model.layers.") and values.ndim == 2:
            weights[name] = values * np.float16(0.2)


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1"])
def test_llama_cpp_computes_the_same(
    tmp_path: Path, side_files: dict[str, bytes], family: str, kind: str
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from awq_tvm.quantize.reference import reference_logits

    checkpoint = dense(tmp_path / "a", side_files, gentle, family=family)
    file = write_gguf(tmp_path / "a.gguf", checkpoint, kind=kind)
    ids = [1, 5, 17, 40, 9, 9, 23]
    model = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    model.eval(ids)
    found = np.array(model._scores[: len(ids)])
    model.close()
    # llama.cpp rounds activations: to float16 in matmuls with f16, to 8 bits with the others.
    bound = 0.002 if kind == "f16" else 0.05
    expected = reference_logits(str(file))(np.array(ids))
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)
    if kind == "f16":  # the file still is the model it was made of
        original = reference_logits(str(tmp_path / "a"))(np.array(ids))
        assert np.linalg.norm(found - original) < bound * np.linalg.norm(original)
        assert (found.argmax(-1) == original.argmax(-1)).all()
