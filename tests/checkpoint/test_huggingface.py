"""Hugging Face folders end to end, through `open_checkpoint`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.checkpoint.awq_format import AwqGemm
from awq_tvm.checkpoint.config import FAMILIES
from awq_tvm.checkpoint.folder import SIDE_FILES, read_side_files, safe_file
from awq_tvm.checkpoint.scheme_fit import QuantizationScheme
from awq_tvm.errors import AwqTvmError, CheckpointError, UnsupportedError

from .tiny_models import (
    all_linears,
    assert_same,
    gptq_arrays,
    random_weight,
    save_folder,
    tiny_config,
    tiny_weights,
)

SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dense_folder(tmp_path: Path, family: str, shards: int, dtype: Any) -> None:
    config = tiny_config(family)
    weights = tiny_weights(config, dtype)
    folder = save_folder(tmp_path / "model", config, weights, shards=shards)
    (folder / "tokenizer.json").write_bytes(b"{}")
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.format, checkpoint.source, checkpoint.path) == ("huggingface", str(folder), folder)
    assert checkpoint.scheme is None
    assert checkpoint.quantized == ()
    assert set(checkpoint.tensors) == set(weights)
    for name, values in weights.items():
        read = checkpoint.read(name)
        assert read.dtype == values.dtype
        assert checkpoint.tensors[name].dtype == values.dtype.name
        assert checkpoint.tensors[name].shape == values.shape
        np.testing.assert_array_equal(read.view(np.uint8), values.view(np.uint8))
    assert checkpoint.side_files == {"tokenizer.json": b"{}"}


def test_tied_head_is_absent_whether_stored_or_not(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    weights = tiny_weights(config)
    assert "lm_head.weight" not in open_checkpoint(save_folder(tmp_path / "a", config, weights)).tensors
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    assert "lm_head.weight" not in open_checkpoint(save_folder(tmp_path / "b", config, weights)).tensors
    weights["lm_head.weight"][3, 4] += 1
    with pytest.raises(CheckpointError, match="differs from the embedding it is tied to"):
        open_checkpoint(save_folder(tmp_path / "c", config, weights))


def test_old_rotary_buffers_are_skipped(tmp_path: Path) -> None:
    config = tiny_config()
    weights = tiny_weights(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    checkpoint = open_checkpoint(save_folder(tmp_path / "a", config, weights))
    assert not any("inv_freq" in name for name in checkpoint.tensors)


def test_nan_is_named_when_read(tmp_path: Path) -> None:
    config = tiny_config()
    weights = tiny_weights(config, np.float16)
    weights["model.layers.1.mlp.up_proj.weight"][5, 6] = np.nan
    checkpoint = open_checkpoint(save_folder(tmp_path / "a", config, weights))
    checkpoint.read("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight\[5, 6\] is nan"):
        checkpoint.read("model.layers.1.mlp.up_proj.weight")


def test_wrong_missing_and_extra_weights_are_listed(tmp_path: Path) -> None:
    config = tiny_config()
    weights = tiny_weights(config)
    del weights["lm_head.weight"]
    weights["model.norm.weight"] = np.ones(31, np.float32)
    weights["surplus"] = np.ones(1, np.float32)
    with pytest.raises(
        CheckpointError, match=r"missing: lm_head[\s\S]*extra: surplus[\s\S]*wrong shape: model.norm"
    ):
        open_checkpoint(save_folder(tmp_path / "a", config, weights))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def point_to(shard: str) -> Callable[[Path], None]:
    return lambda folder: edit_index(folder, lambda index: index.update({"model.norm.weight": shard}))


def as_symlink(folder: Path) -> None:
    shutil.move(folder / SHARD, folder.parent / "elsewhere")
    (folder / SHARD).symlink_to(folder.parent / "elsewhere")


def as_hardlink(folder: Path) -> None:
    os.link(folder / SHARD, folder.parent / "elsewhere")


def double_shard(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / "again.safetensors")
    edit_index(folder, lambda index: index.update({"model.norm.weight": "again.safetensors"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / SHARD).unlink(), "is missing"),
        (double_shard, "not where the index says"),
        (point_to("model-00003-of-00003.safetensors"), "not where the index says"),
        (
            lambda folder: edit_index(folder, lambda index: index.update({"more": SHARD})),
            "not in their shard",
        ),
        (
            lambda folder: edit_index(folder, lambda index: index.pop("model.norm.weight")),
            "not where the index",
        ),
        (point_to("../model.safetensors"), "leaves the checkpoint folder"),
        (point_to("/etc/model.safetensors"), "leaves the checkpoint folder"),
        (point_to("sub/model.safetensors"), "leaves the checkpoint folder"),
        (point_to("a\0b.safetensors"), "leaves the checkpoint folder"),
        (point_to("pytorch_model.bin"), "not a .safetensors file"),
        (lambda folder: (folder / INDEX).write_text("{}"), "no weight_map"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 3}}'), "not a .safetensors file"),
        (as_symlink, "symlink"),
        (as_hardlink, "hardlink"),
        (lambda folder: shutil.copy(folder / SHARD, folder / "model.safetensors"), "two sets of weights"),
        (lambda folder: (folder / "config.json").unlink(), "missing"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "not UTF-8"),
        (lambda folder: ((folder / SHARD).unlink(), (folder / SHARD).mkdir()), "not a regular file"),
    ],
)
def test_spoiled_shards_are_refused(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    config = tiny_config()
    folder = save_folder(tmp_path / "model", config, tiny_weights(config), shards=3)
    open_checkpoint(folder)  # the good twin
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("target", ["missing", "loop"])
def test_broken_links_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / target)
    with pytest.raises(CheckpointError, match="is missing"):
        safe_file(tmp_path, "loop")


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    config = tiny_config()
    good = save_folder(tmp_path / "good", config, tiny_weights(config))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in good.iterdir():
        shutil.copy(file, blobs / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-of-{file.name}")
    assert open_checkpoint(snapshot).tensors == open_checkpoint(good).tensors
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(good / "config.json")
    with pytest.raises(CheckpointError, match="symlink"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    config = tiny_config()
    folder = save_folder(tmp_path / "a", config, tiny_weights(config))
    (folder / name).write_bytes(b"never opened")
    open_checkpoint(folder)  # beside safetensors they do no harm
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickles") as caught:
        open_checkpoint(folder)
    assert "save_pretrained" in (caught.value.fix or "")


def test_folder_without_weights_or_index(tmp_path: Path) -> None:
    config = tiny_config()
    folder = save_folder(tmp_path / "a", config, tiny_weights(config))
    (folder / "model.safetensors").rename(folder / SHARD)
    with pytest.raises(CheckpointError, match=f"found {SHARD} but no {INDEX}"):
        open_checkpoint(folder)
    (folder / SHARD).unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        open_checkpoint(folder)


def test_side_files_have_size_limits(tmp_path: Path) -> None:
    for name in SIDE_FILES:
        (tmp_path / name).write_bytes(b"x")
    assert set(read_side_files(tmp_path)) == set(SIDE_FILES)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(10**9)  # sparse
    with pytest.raises(CheckpointError, match="too large"):
        read_side_files(tmp_path)


def awq_folder(
    path: Path, spoil: Callable[[dict[str, np.ndarray], dict[str, Any]], None] | None = None
) -> Path:
    """An AutoAWQ folder, its words packed by hand."""
    scheme = QuantizationScheme(4, 8, True, ("lm_head",))
    section = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 8, "zero_point": True}
    config = tiny_config(quantization_config=section | {"modules_to_not_convert": ["lm_head"]})
    weights = {
        k: v
        for k, v in tiny_weights(config, np.float16).items()
        if k.removesuffix(".weight") not in all_linears()
    }
    for seed, (name, shape) in enumerate(all_linears().items()):
        packed = AwqGemm().pack(random_weight(shape, 4, 8, seed=seed), scheme)
        weights |= {f"{name}.{suffix}": array for suffix, array in packed.items()}
    if spoil is not None:
        spoil(weights, config)
    return save_folder(path, config, weights)


def test_awq_folder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(awq_folder(tmp_path / "a"))
    assert checkpoint.format == "awq"
    assert checkpoint.scheme == QuantizationScheme(4, 8, True, ("lm_head",))
    assert list(checkpoint.quantized) == sorted(all_linears()) or set(checkpoint.quantized) == set(
        all_linears()
    )
    assert not any("qweight" in name or "q_proj" in name for name in checkpoint.tensors)
    for seed, (name, shape) in enumerate(all_linears().items()):
        expected, read = random_weight(shape, 4, 8, seed=seed), checkpoint.read_quantized(name)
        np.testing.assert_array_equal(read.q, expected.q)
        np.testing.assert_array_equal(read.dequantize(), expected.dequantize())
    with pytest.raises(CheckpointError, match="no dense tensor"):
        checkpoint.read("model.layers.0.mlp.up_proj.weight")


UP = "model.layers.0.mlp.up_proj"


def drop(name: str) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    return lambda weights, config: weights.__delitem__(name)


def add(
    name: str, values: Sequence[int] = (0,) * 32
) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    return lambda weights, config: weights.update({name: np.array(values, np.int32)})


def section(value: Any) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    return lambda weights, config: config.update({"quantization_config": value})


def group_size(value: int) -> Callable[[dict[str, np.ndarray], dict[str, Any]], None]:
    return lambda weights, config: config["quantization_config"].update({"group_size": value})


def no_linears(weights: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    for name in [name for name in weights if name.endswith(("qweight", "qzeros", "scales"))]:
        del weights[name]


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (drop(f"{UP}.scales"), CheckpointError, "incomplete"),
        (drop(f"{UP}.qweight"), CheckpointError, "missing: model.layers.0.mlp.up_proj.weight"),
        (add(f"{UP}.g_idx", [3, 2, 1, 0] * 8), UnsupportedError, "in a format that has none"),
        (add(f"{UP}.g_idx", [0] * 31), CheckpointError, "does not give each input channel a group"),
        (add(f"{UP}.bias", [0, 1] * 32), CheckpointError, "extra: model.layers.0.mlp.up_proj.bias"),
        (add(f"{UP}.surplus"), CheckpointError, "extra: model.layers.0.mlp.up_proj.surplus"),
        (group_size(16), CheckpointError, "do not fit each other and group_size 16"),
        (group_size(24), CheckpointError, "does not divide"),
        (group_size(0), CheckpointError, "group_size is 0"),
        (no_linears, CheckpointError, "no linear is"),
        (section("awq"), CheckpointError, "not an object"),
        (section({"quant_method": "gptq", "bits": 4}), CheckpointError, "do not fit each other"),
        (section({"quant_method": "novel"}), UnsupportedError, "'novel'"),
        (section({"bits": 4}), UnsupportedError, "None"),
        (section({"quant_method": "awq", "version": "marlin"}), UnsupportedError, "'marlin' layout"),
    ],
)
def test_spoiled_awq_folder(
    tmp_path: Path,
    spoil: Callable[[dict[str, np.ndarray], dict[str, Any]], None],
    kind: type[AwqTvmError],
    message: str,
) -> None:
    open_checkpoint(awq_folder(tmp_path / "good"))  # the good twin
    with pytest.raises(kind, match=message):
        open_checkpoint(awq_folder(tmp_path / "bad", spoil))


def test_an_order_and_biases_that_say_nothing_are_dropped(tmp_path: Path) -> None:
    def spoil(weights: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        weights[f"{UP}.g_idx"] = np.arange(32, dtype=np.int32) // 8
        weights[f"{UP}.bias"] = np.zeros(64, np.float16)

    checkpoint = open_checkpoint(awq_folder(tmp_path / "a", spoil))
    assert not any(name.endswith((".g_idx", ".bias")) for name in checkpoint.tensors)


@pytest.mark.parametrize("desc_act", [False, True])
def test_gptq_folder(tmp_path: Path, desc_act: bool) -> None:
    section = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": desc_act}
    config = tiny_config(quantization_config=section | {"checkpoint_format": "gptq_v2"})
    weights = {
        k: v
        for k, v in tiny_weights(config, np.float16).items()
        if k.removesuffix(".weight") not in all_linears()
    }
    for name, shape in all_linears().items():
        arrays = gptq_arrays(random_weight(shape, 4, 16), 0)
        arrays["g_idx"] = np.arange(shape[1], dtype=np.int32) // 16
        weights |= {f"{name}.{suffix}": array for suffix, array in arrays.items()}
    checkpoint = open_checkpoint(save_folder(tmp_path / "a", config, weights))
    assert checkpoint.format == "gptq"
    assert checkpoint.scheme == QuantizationScheme(4, 16, True, ("lm_head",))
    for name, shape in all_linears().items():
        assert_same(checkpoint.read_quantized(name), random_weight(shape, 4, 16))
    if desc_act:  # then g_idx must be there
        del weights[f"{UP}.g_idx"]
        with pytest.raises(CheckpointError, match="incomplete"):
            open_checkpoint(save_folder(tmp_path / "b", config, weights))


def test_awq_scale_that_makes_no_sense_is_named_when_read(tmp_path: Path) -> None:
    def spoil(weights: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        weights[f"{UP}.scales"] = weights[f"{UP}.scales"].copy()
        weights[f"{UP}.scales"][1, 2] = np.nan

    checkpoint = open_checkpoint(awq_folder(tmp_path / "a", spoil))
    checkpoint.read_quantized("model.layers.1.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"scales\[2, 1\] is nan") as caught:
        checkpoint.read_quantized(UP)
    assert UP in (caught.value.where or "")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    folder = save_folder(tmp_path / "a", config, tiny_weights(config))
    content = (folder / "model.safetensors").read_bytes()
    open_checkpoint(folder)
    for keep in (0, 7, 100, len(content) // 2, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:keep])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_weights_of_an_unknown_architecture_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "something_new"}')
    save_file({"x": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    assert open_checkpoint(folder).read("x").sum() == 4
