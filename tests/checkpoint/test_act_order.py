"""Weights quantized in activation order: read with their groups, never without, and written where they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.checkpoint import Checkpoint, QuantizationScheme, export_checkpoint, open_checkpoint
from awq_tvm.checkpoint.compressed_tensors import PackQuantized
from awq_tvm.checkpoint.group_order import read_group_order
from awq_tvm.checkpoint.write import write_quantized_checkpoint
from awq_tvm.errors import CheckpointError, UsageError

from .tiny_models import (
    all_linears,
    assert_same,
    gptq_arrays,
    random_weight,
    save_folder,
    scattered_weight,
    tiny_config,
    tiny_weights,
)

UP = "model.layers.0.mlp.up_proj"
IN_ORDER = "model.layers.1.mlp.up_proj"


def weight_of(name: str, **options: Any) -> Any:
    make = random_weight if name == IN_ORDER else scattered_weight
    return make(all_linears()[name], 4, 16, seed=list(all_linears()).index(name), **options)


def dense_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    weights = tiny_weights(config, np.float16)
    return {key: value for key, value in weights.items() if key.removesuffix(".weight") not in all_linears()}


def gptq_folder(path: Path, *, desc_act: bool = True, **orders: np.ndarray) -> Path:
    """Each linear with groups of its own, packed by the loops of the tests; one of them in order."""
    section = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": desc_act}
    config = tiny_config(quantization_config=section | {"checkpoint_format": "gptq_v2"})
    weights = dense_weights(config)
    for name, (_, features) in all_linears().items():
        weight = weight_of(name)
        arrays = gptq_arrays(weight, 0)
        in_order = np.arange(features, dtype=np.int32) // 16
        arrays["g_idx"] = in_order if weight.group_of is None else weight.group_of
        weights |= {f"{name}.{suffix}": array for suffix, array in arrays.items()}
    weights |= {f"{UP}.g_idx": order for order in orders.values()}
    return save_folder(path, config, weights)


def by_the_formula(weight: Any) -> np.ndarray:
    """W[n, k] = (q[n, k] - z[n, g_idx[k]]) * s[n, g_idx[k]], one number after the other."""
    outputs, features = weight.q.shape
    values = np.empty((outputs, features), np.float32)
    for n in range(outputs):
        for k in range(features):
            group = k // 16 if weight.group_of is None else weight.group_of[k]
            values[n, k] = (int(weight.q[n, k]) - int(weight.zeros[n, group])) * float(
                weight.scales[n, group]
            )
    return values


@pytest.mark.parametrize("desc_act", [True, False])
def test_gptq_is_read_with_its_order(tmp_path: Path, desc_act: bool) -> None:
    """Whatever desc_act says: it is g_idx that counts, as in every reader of these files."""
    checkpoint = open_checkpoint(gptq_folder(tmp_path / "a", desc_act=desc_act))
    assert checkpoint.scheme == QuantizationScheme(4, 16, True, ("lm_head",), act_order=True)
    assert not any("g_idx" in name for name in checkpoint.tensors)
    for name in all_linears():
        found = checkpoint.read_quantized(name)
        assert_same(found, weight_of(name))
        np.testing.assert_allclose(found.dequantize(), by_the_formula(weight_of(name)), rtol=1e-6)


def test_pytorch_computes_with_the_order(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from awq_tvm.quantize.torch_model import build_model

    model = build_model(open_checkpoint(gptq_folder(tmp_path / "a")))
    found = model.get_submodule(UP).weight.numpy()
    np.testing.assert_allclose(found, by_the_formula(weight_of(UP)), rtol=1e-6)


def test_columns_side_by_side() -> None:
    weight = scattered_weight((8, 64), 4, 16)
    assert weight.group_of is not None
    sorted_columns, order = weight.side_by_side()
    assert order is not None
    assert sorted_columns.group_of is None
    np.testing.assert_array_equal(weight.group_of[order], np.arange(64) // 16)
    np.testing.assert_array_equal(sorted_columns.dequantize(), weight.dequantize()[:, order])
    plain = random_weight((8, 64), 4, 16)
    assert plain.side_by_side() == (plain, None)


IN_FOUR = np.repeat(np.arange(2, dtype=np.int32), 16)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (IN_FOUR[:31], r"int32 \[31\]; needed: integers \[32\]"),
        (IN_FOUR[::-1] + 1, "does not give each input channel a group"),
        (IN_FOUR - 1, "does not give each input channel a group"),
        (IN_FOUR.astype(np.float32), "float32"),
        (np.zeros(32, np.int32), "group 0 has 32 channels; needed: 16 in each"),
        (np.array([0] * 15 + [1] * 17, np.int32), "group 0 has 15 channels"),
    ],
)
def test_orders_that_cannot_be(tmp_path: Path, order: np.ndarray, message: str) -> None:
    open_checkpoint(gptq_folder(tmp_path / "good", order=IN_FOUR[::-1].copy()))  # the good twin
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(gptq_folder(tmp_path / "bad", order=order))
    assert UP in (caught.value.where or "")


def test_an_order_that_only_counts_is_none() -> None:
    assert read_group_order(IN_FOUR, 32, 16, "here") is None
    found = read_group_order(IN_FOUR[::-1].astype(np.int64), 32, 16, "here")
    assert found is not None
    assert found.dtype == np.int32


def exported(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    checkpoint = open_checkpoint(gptq_folder(tmp_path / "a"))
    out = export_checkpoint(tmp_path / "b", checkpoint, format="compressed-tensors")
    return checkpoint, open_checkpoint(out)


def test_compressed_tensors_keeps_the_order(tmp_path: Path) -> None:
    checkpoint, back = exported(tmp_path)
    weights = back.config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert weights["actorder"] == "group"
    assert back.scheme == checkpoint.scheme
    for name in all_linears():
        assert_same(back.read_quantized(name), weight_of(name))


def test_compressed_tensors_needs_the_order_it_announces(tmp_path: Path) -> None:
    scheme = QuantizationScheme(4, 16, act_order=True)
    section = PackQuantized().describe(scheme)
    config = tiny_config(quantization_config=section)
    weights = dense_weights(config)
    for name in all_linears():
        arrays = PackQuantized().pack(weight_of(name), scheme)
        weights |= {f"{name}.{suffix}": array for suffix, array in arrays.items()}
    assert open_checkpoint(save_folder(tmp_path / "good", config, weights)).scheme is not None
    unset = {name: np.full_like(array, -1) for name, array in weights.items() if name.endswith("g_idx")}
    neighbours = open_checkpoint(save_folder(tmp_path / "unset", config, weights | unset))
    assert neighbours.scheme == QuantizationScheme(
        4, 16
    )  # as the library leaves it where nothing was reordered
    assert neighbours.read_quantized(UP).group_of is None
    del weights[f"{UP}.weight_g_idx"]
    with pytest.raises(CheckpointError, match="incomplete"):
        open_checkpoint(save_folder(tmp_path / "bad", config, weights))


@pytest.mark.parametrize("format", ["awq", "awq-gemv-fast", "llm-awq"])
def test_awq_formats_cannot_hold_it(tmp_path: Path, format: str) -> None:
    checkpoint = open_checkpoint(gptq_folder(tmp_path / "a"))
    with pytest.raises(UsageError, match="the channels of a group side by side, and no g_idx"):
        export_checkpoint(tmp_path / "b", checkpoint, format=format)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1"])
def test_gguf_quantizes_the_values_again(tmp_path: Path, kind: str) -> None:
    """The codes in another order would be other values, so they must not be taken for blocks."""
    folder = gptq_folder(tmp_path / "a")
    (folder / "tokenizer.json").write_bytes(gpt2_tokenizer())
    out = export_checkpoint(tmp_path / "m.gguf", open_checkpoint(folder), format=f"gguf-{kind}")
    found = open_checkpoint(out).read(f"{UP}.weight")
    step = {"f16": 2**-10, "q8_0": 1 / 127, "q4_1": 2 / 15}[kind]
    wanted = by_the_formula(weight_of(UP))
    assert np.abs(found - wanted).max() <= step * np.abs(wanted).max()


def gpt2_tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer.to_str().encode()


def test_a_scheme_without_order_writes_no_scattered_weight(tmp_path: Path) -> None:
    config, scheme = tiny_config(), QuantizationScheme(4, 16, False)
    weights = {name: weight_of(name, symmetric=True) for name in all_linears()}
    with pytest.raises(CheckpointError, match="groups are scattered, and act_order is false"):
        write_quantized_checkpoint(
            tmp_path / "b",
            config=config,
            scheme=scheme,
            dense=dense_weights(config).items(),
            quantized=weights.items(),
            side_files={},
            card="",
        )
    assert not (tmp_path / "b").exists()


def test_the_librarys_own_order_is_ours() -> None:
    """compressed-tensors before 0.20 decompresses what we pack to what we dequantize."""
    module = pytest.importorskip("compressed_tensors.compressors.quantized_compressors.pack_quantized")
    import torch
    from compressed_tensors.quantization import QuantizationArgs

    weight = scattered_weight((16, 64), 4, 16, symmetric=True)
    scheme = QuantizationScheme(4, 16, False, act_order=True)
    arrays = {key: torch.from_numpy(value) for key, value in PackQuantized().pack(weight, scheme).items()}
    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=16, actorder="group")
    found = module.PackedQuantizationCompressor().decompress_weight(arrays, arguments)
    np.testing.assert_allclose(found.float().numpy(), weight.dequantize(), rtol=2**-10, atol=1e-7)
