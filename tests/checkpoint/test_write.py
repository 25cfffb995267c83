"""write_quantized_checkpoint: what it writes is read back bit by bit, and what it refuses leaves nothing."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from awq_tvm.checkpoint import (
    QuantizationScheme,
    QuantizedWeight,
    linears_to_quantize,
    open_checkpoint,
    write_quantized_checkpoint,
)
from awq_tvm.checkpoint.expected_tensors import expected_tensors
from awq_tvm.errors import CheckpointError, ResourceError, UsageError

from .tiny_models import all_linears, assert_same, random_weight, tiny_config, tiny_weights

SIDE = {"tokenizer.json": b"{}", "chat_template.jinja": "höhe".encode()}


def parts(
    scheme: QuantizationScheme, config: dict[str, Any], dtype: Any = np.float16, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, QuantizedWeight]]:
    dense = {
        name: values
        for name, values in tiny_weights(config, dtype, seed).items()
        if name.removesuffix(".weight") not in all_linears()
    }
    quantized = {
        name: random_weight(
            shape, scheme.bits, scheme.group_size, symmetric=not scheme.zero_point, seed=seed + at
        )
        for at, (name, shape) in enumerate(all_linears().items())
    }
    return dense, quantized


def write(out: Path, scheme: QuantizationScheme, **changes: Any) -> Path:
    config = changes.pop("config", tiny_config())
    dense, quantized = ({}, {}) if "quantized" in changes and "dense" in changes else parts(scheme, config)
    arguments = {
        "config": config,
        "scheme": scheme,
        "dense": dense.items(),
        "quantized": quantized.items(),
        "side_files": SIDE,
        "card": "# card\n",
    }
    return write_quantized_checkpoint(out, **(arguments | changes))


@settings(max_examples=15, deadline=None)
@given(
    bits=st.integers(2, 8),
    zero_point=st.booleans(),
    group_size=st.sampled_from([4, 8, 16, 32]),
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    dtype=st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    shard_bytes=st.sampled_from([1, 5000, 20_000, 1 << 30]),
    tied=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_round_trip_is_bit_exact(tmp_path_factory: Any, **case: Any) -> None:
    scheme = QuantizationScheme(case["bits"], case["group_size"], case["zero_point"], ("lm_head",))
    config = tiny_config(case["family"], tie_word_embeddings=case["tied"])
    dense, quantized = parts(scheme, config, case["dtype"], case["seed"])
    out = tmp_path_factory.mktemp("out") / "model"
    write_quantized_checkpoint(
        out,
        config=config,
        scheme=scheme,
        dense=iter(dense.items()),
        quantized=iter(quantized.items()),
        side_files=SIDE,
        card="# card\n",
        max_shard_bytes=case["shard_bytes"],
    )
    read = open_checkpoint(out)
    assert read.format == ("awq" if case["bits"] == 4 and case["zero_point"] else "compressed-tensors")
    assert read.scheme == scheme
    assert read.side_files == SIDE
    assert set(read.tensors) == set(dense)
    assert set(read.quantized) == set(quantized)
    for name, values in dense.items():
        assert read.read(name).dtype == values.dtype
        np.testing.assert_array_equal(read.read(name).view(np.uint8), values.view(np.uint8))
    for name, weight in quantized.items():
        back = read.read_quantized(name)
        np.testing.assert_array_equal(back.q, weight.q)
        np.testing.assert_array_equal(back.zeros, weight.zeros)
        np.testing.assert_array_equal(back.scales.view(np.uint16), weight.scales.view(np.uint16))
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["model"]


def wide_parts(
    scheme: QuantizationScheme,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, QuantizedWeight]]:
    """A model whose rows fill llm-awq's tiles of 64 channels."""
    config = tiny_config(hidden_size=64, intermediate_size=128, head_dim=16, tie_word_embeddings=True)
    shapes = expected_tensors(config) or {}
    linears = linears_to_quantize(config)
    dense = {
        name: np.ones(shape, np.float16)
        for name, shape in shapes.items()
        if name.removesuffix(".weight") not in linears
    }
    quantized = {
        name: random_weight(shape, scheme.bits, scheme.group_size, symmetric=not scheme.zero_point, seed=at)
        for at, (name, shape) in enumerate(linears.items())
    }
    return config, dense, quantized


@pytest.mark.parametrize(
    ("format", "scheme"),
    [
        ("awq", QuantizationScheme(4, 32)),
        ("llm-awq", QuantizationScheme(4, 64)),
        ("llm-awq", QuantizationScheme(4, 32)),
        ("awq-gemv-fast", QuantizationScheme(4, 32)),
        ("compressed-tensors", QuantizationScheme(4, 32)),
        ("compressed-tensors", QuantizationScheme(4, 32, zero_point=False)),
    ],
)
def test_every_format_comes_back(tmp_path: Path, format: str, scheme: QuantizationScheme) -> None:
    config, dense, quantized = wide_parts(scheme)
    out = write(
        tmp_path / "a",
        scheme,
        format=format,
        config=config,
        dense=dense.items(),
        quantized=quantized.items(),
    )
    read = open_checkpoint(out)
    assert read.format == format
    assert read.scheme is not None
    assert replace(read.scheme, modules_to_not_convert=()) == scheme
    for name, weight in quantized.items():
        assert_same(read.read_quantized(name), weight)


@pytest.mark.parametrize(
    ("format", "scheme", "message"),
    [
        ("gguf", QuantizationScheme(4, 32), "no format 'gguf' is written"),
        ("awq", QuantizationScheme(3, 32), "bits is 3"),
        ("awq", QuantizationScheme(4, 32, zero_point=False), "always have zero points"),
        ("llm-awq", QuantizationScheme(4, 16), "group_size is 16"),
        ("llm-awq", QuantizationScheme(4, 32), "in_features 32 is not a multiple of 64"),
    ],
)
def test_formats_that_do_not_fit_are_refused_before_any_work(
    tmp_path: Path, format: str, scheme: QuantizationScheme, message: str
) -> None:
    def never() -> Iterator[Any]:
        pytest.fail("something was read")
        yield

    with pytest.raises(UsageError, match=message):
        write(tmp_path / "a", scheme, format=format, dense=never(), quantized=never())
    assert list(tmp_path.iterdir()) == []


def test_the_reference_library_reads_it_and_shards_hold_the_limit(tmp_path: Path) -> None:
    out = write(tmp_path / "a", QuantizationScheme(4, 8), max_shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert len(shards) > 1
    tensors = {}
    for shard in shards:
        content = load_file(out / shard)
        assert sum(array.nbytes for array in content.values()) <= 20_000
        assert {index["weight_map"][name] for name in content} == {shard}
        tensors |= content
    assert set(tensors) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert tensors["model.layers.0.mlp.up_proj.qweight"].shape == (32, 8)
    assert (out / "README.md").read_text() == "# card\n"


def test_a_card_that_is_a_function_sees_the_finished_folder(tmp_path: Path) -> None:
    """It may open the checkpoint; if it fails, nothing is there."""
    scheme = QuantizationScheme(4, 8, True)

    def card(folder: Path) -> str:
        read = open_checkpoint(str(folder))
        return f"{len(read.quantized)} linears, {sorted(read.side_files)}"

    out = write(tmp_path / "a", scheme, card=card)
    read = open_checkpoint(out)
    assert (out / "README.md").read_text() == f"{len(read.quantized)} linears, {sorted(SIDE)}"

    def fail(folder: Path) -> str:
        raise KeyError(folder)

    with pytest.raises(KeyError):
        write(tmp_path / "b", scheme, card=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_config_says_what_is_true_of_the_folder(tmp_path: Path) -> None:
    scheme = QuantizationScheme(4, 8, True, ("up_proj",))
    dense, quantized = parts(scheme, tiny_config())
    left = "model.layers.1.mlp.up_proj"
    quantized.pop("model.layers.0.mlp.up_proj")
    dense["model.layers.0.mlp.up_proj.weight"] = np.ones((64, 32), np.float16)
    dense[f"{left}.weight"] = quantized.pop(left).dequantize().astype(np.float16)
    config = tiny_config(dtype="float32", something_else=[1], quantization_config={"quant_method": "old"})
    out = write(tmp_path / "a", scheme, config=config, dense=dense.items(), quantized=quantized.items())
    saved = json.loads((out / "config.json").read_text())
    assert saved["quantization_config"] == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 8,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.up_proj", left],
    }
    assert (saved["torch_dtype"], "dtype" in saved, saved["something_else"]) == ("float16", False, [1])
    assert left not in open_checkpoint(out).quantized


@pytest.mark.parametrize(("bits", "zero_point"), [(3, True), (8, False), (4, False)])
def test_transformers_understands_the_config(tmp_path: Path, bits: int, zero_point: bool) -> None:
    transformers = pytest.importorskip("transformers")
    out = write(tmp_path / "a", QuantizationScheme(bits, 8, zero_point))
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert str(config.dtype) == "torch.float16"
    weights = config.quantization_config["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["symmetric"], weights["group_size"]) == (bits, not zero_point, 8)


def spoiled(name: str, value: Any) -> dict[str, Any]:
    dense, _ = parts(QuantizationScheme(4, 8), tiny_config())
    return {"dense": (dense | {name: value}).items()}


def other_weight(weight: QuantizedWeight) -> dict[str, Any]:
    _, quantized = parts(QuantizationScheme(4, 8), tiny_config())
    return {"quantized": (quantized | {"model.layers.0.mlp.up_proj": weight}).items()}


def twice() -> dict[str, Any]:
    dense, _ = parts(QuantizationScheme(4, 8), tiny_config())
    return {"dense": [*dense.items(), *dense.items()]}


def missing() -> dict[str, Any]:
    _, quantized = parts(QuantizationScheme(4, 8), tiny_config())
    quantized.pop("model.layers.1.mlp.up_proj")
    return {"quantized": quantized.items()}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            spoiled("model.norm.weight", np.full(32, np.nan, np.float16)),
            CheckpointError,
            r"model.norm.weight\[0\] is nan",
        ),
        (spoiled("model.norm.weight", np.ones(32, np.float64)), CheckpointError, "float64; needed"),
        (
            spoiled("model.norm.weight", np.ones(31, np.float16)),
            CheckpointError,
            "wrong shape: model.norm.weight",
        ),
        (spoiled("surplus", np.ones(3, np.float16)), CheckpointError, "extra: surplus"),
        (missing(), CheckpointError, "missing: model.layers.1.mlp.up_proj.weight"),
        (twice(), CheckpointError, "given twice"),
        (other_weight(random_weight((64, 32), 4, 16)), CheckpointError, "otherwise than the scheme says"),
        (other_weight(random_weight((64, 32), 3, 8)), CheckpointError, "otherwise than the scheme says"),
        (other_weight(random_weight((12, 32), 4, 8)), CheckpointError, "not a multiple of 8"),
        ({"side_files": {"../x": b""}}, CheckpointError, "does not belong"),
        ({"side_files": {"config.json": b""}}, CheckpointError, "does not belong"),
        ({"config": tiny_config(hidden_size=0)}, CheckpointError, "hidden_size is 0"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    write(tmp_path / "good", QuantizationScheme(4, 8))  # the good twin
    with pytest.raises(kind, match=message) as caught:
        write(tmp_path / "bad", QuantizationScheme(4, 8), **changes)
    assert ".partial" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["good"]


def test_a_scheme_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="group_size 64 does not divide"):
        write(tmp_path / "a", QuantizationScheme(4, 64), dense=never(), quantized=never())
    assert list(tmp_path.iterdir()) == []


def never() -> Iterator[tuple[str, Any]]:
    raise AssertionError("nothing may be read before the checks are done")
    yield


def test_an_error_of_the_caller_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[str, QuantizedWeight]]:
        yield "model.layers.0.mlp.up_proj", random_weight((64, 32), 4, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", QuantizationScheme(4, 8), quantized=interrupted())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    for name in ("folder", "file", "link"):
        out = tmp_path / name
        out.mkdir() if name == "folder" else out.write_text("x") if name == "file" else out.symlink_to(
            "nowhere"
        )
        with pytest.raises(ResourceError, match="exists already"):
            write(out, QuantizationScheme(4, 8))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "some" / "where" / "a", QuantizationScheme(4, 8))
    assert open_checkpoint(tmp_path / "some" / "where" / "a").scheme == QuantizationScheme(
        4, 8, True, ("lm_head",)
    )


def test_too_little_disk_is_seen_up_front(tmp_path: Path) -> None:
    huge = tiny_config(vocab_size=1 << 23, hidden_size=1 << 18, head_dim=1 << 12, intermediate_size=1 << 18)

    with pytest.raises(ResourceError, match="too little room on the disk"):
        write(tmp_path / "a", QuantizationScheme(4, 64), config=huge, dense=never(), quantized=never())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ResourceError, match="no room left for the output"):
            write(tmp_path / "a", QuantizationScheme(4, 8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "a", QuantizationScheme(4, 8))  # the good twin


def test_a_folder_of_the_user_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "precious").write_text("x")
    with pytest.raises(ResourceError, match="no mark of an interrupted run"):
        write(tmp_path / "a", QuantizationScheme(4, 8))
    assert (tmp_path / "a.partial" / "precious").read_text() == "x"
