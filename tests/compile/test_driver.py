"""From checkpoint to bundle: what is written, what is refused, and that a refusal comes before the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from awq_tvm.bundle.verify import read_manifest, verify_bundle
from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.compile import description, driver
from awq_tvm.compile.driver import compile_model
from awq_tvm.errors import (
    AwqTvmError,
    BundleError,
    CheckpointError,
    ResourceError,
    TargetError,
    UnsupportedError,
    UsageError,
)
from awq_tvm.progress import ProgressEvent
from awq_tvm.targets import detect
from tests.support import tiny_decoder as tiny


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    return tiny.quantized_llama(tmp_path_factory)


@pytest.fixture
def no_work() -> Any:
    """Fails the test where the first stage begins."""
    with mock.patch.object(driver, "export_model", side_effect=AssertionError("the work began")):
        yield


def _copy(compiled: tiny.Compiled, folder: Path, **config: Any) -> Path:
    """The good checkpoint with some of its config.json changed."""
    folder.mkdir()
    for path in compiled.checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    return folder


def test_the_bundle_says_what_it_is(compiled: tiny.Compiled) -> None:
    manifest = verify_bundle(compiled.bundle)
    assert manifest.model.architecture == "llama"
    assert manifest.model.vocab_size == tiny.VOCAB
    assert manifest.model.context_length == tiny.CONTEXT
    assert manifest.recipe.bits == 4
    assert manifest.recipe.group_size == 32
    assert manifest.recipe.method == "awq"
    assert manifest.recipe.activations == compiled.report.activations == "float"
    assert manifest.target.name == compiled.report.target == detect().name
    assert manifest.target.fingerprint == detect().fingerprint
    assert {"tokenizer.json", "config.json", "README.md", manifest.library} <= set(manifest.files)
    assert sum(kernel.count for kernel in manifest.tuning.kernels) >= 4 * tiny.LAYERS
    assert [kernel.model_dump() for kernel in manifest.tuning.kernels] == list(compiled.report.kernels)
    assert set(compiled.report.seconds) == {"export", "passes", "build", "weights"}
    assert not list(compiled.bundle.parent.glob("*.partial"))


def test_a_flipped_byte_in_any_file_is_found(compiled: tiny.Compiled, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in compiled.bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    verify_bundle(copy)
    for path in sorted(copy.iterdir()):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(BundleError):
            verify_bundle(copy)
        path.write_bytes(good)
    verify_bundle(copy)


@pytest.mark.skipif(not detect().has_int8_dot, reason="this CPU has no int8 dot product")
def test_int8_activations_stay_near_the_float_ones(compiled: tiny.Compiled, tmp_path: Path) -> None:
    """x is rounded to 127 steps a group: 1 / 254 of its largest number, a few of which add up."""
    events: list[ProgressEvent] = []
    report = compile_model(
        str(compiled.checkpoint),
        tmp_path / "bundle",
        activations="int8",
        vocabulary_bits=16,
        context_length=64,
        max_sequences=20,
        progress=events.append,
    )
    assert report.activations == "int8"
    assert all("int8" in kernel["name"] for kernel in report.kernels if " w4 " in kernel["name"])
    eight = tiny.Compiled(compiled.model, compiled.checkpoint, tmp_path / "bundle", report)
    ids = tiny.tokens(40)
    executor = eight.executor()
    assert executor.context_length == 64
    assert executor.max_sequences == 20
    assert executor.free_pages >= 20 * 64 // executor.page_size  # each may grow to the whole context
    rows = executor.forward([executor.new_sequence() for _ in range(18)], [[n] for n in range(18)])
    alone = executor.forward([executor.new_sequence()], [[17]])
    assert tiny.relative_error(rows[17:], alone) < 0.02  # x may be rounded the other way
    found = executor.forward([executor.new_sequence()], [ids], logits="all")
    error = tiny.relative_error(found, tiny.torch_logits(compiled.model, ids))
    assert tiny.TOLERANCE < error < 0.05
    assert [event.stage for event in events if event.total == 1 and event.done == 1] == list(report.seconds)
    named = [event.message for event in events if event.stage == "passes" and event.message]
    assert "verify_fusion" in named


def test_a_float16_cache_stays_near_the_float32_one(compiled: tiny.Compiled, tmp_path: Path) -> None:
    """Queries, keys, values and what attention makes of them are each rounded to 11 bits, layer after layer."""
    halved = tiny.Compiled(
        compiled.model,
        compiled.checkpoint,
        tmp_path / "bundle",
        compile_model(
            str(compiled.checkpoint),
            tmp_path / "bundle",
            activations="float",
            vocabulary_bits=16,
            kv_cache="float16",
        ),
    )
    ids = tiny.tokens(40)
    expected = tiny.torch_logits(compiled.model, ids)
    executor = halved.executor()
    sequence = executor.new_sequence()
    rows = [executor.forward([sequence], [ids[:30]], logits="all")]
    rows += [executor.forward([sequence], [[token]]) for token in ids[30:]]
    error = tiny.relative_error(np.concatenate(rows), expected)
    assert tiny.TOLERANCE < error < 8 * 2.0**-11


def test_an_int8_cache_stays_near_the_float32_one(compiled: tiny.Compiled, tmp_path: Path) -> None:
    """Token by token, so that every key and value is read from the cache, and in two parts."""
    folder = tmp_path / "bundle"
    options = {"activations": "float", "vocabulary_bits": 16, "kv_cache": "int8"}
    report = compile_model(str(compiled.checkpoint), folder, **options)  # type: ignore[arg-type]
    eight = tiny.Compiled(compiled.model, compiled.checkpoint, folder, report)
    ids = tiny.tokens(40)
    rows = []
    for bundle, kept in ((eight, "int8"), (compiled, "float32")):
        executor = bundle.executor()
        one, other = executor.new_sequence(), executor.new_sequence()
        steps = [executor.forward([one], [[token]]) for token in ids]
        parts = [executor.forward([other], [part], logits="all") for part in (ids[:19], ids[19:])]
        rows.append((np.concatenate(steps), np.concatenate(parts)))
        assert read_manifest(bundle.bundle).recipe.extra["kv_cache"] == kept
        assert f"keys and values {kept}" in (bundle.bundle / "README.md").read_text()
    for near, exact in zip(*rows, strict=True):
        assert 1e-4 < tiny.relative_error(near, exact) < 0.05
    # The first part sees nothing that was rounded.
    assert tiny.relative_error(rows[0][1][:19], rows[1][1][:19]) < tiny.TOLERANCE


@pytest.mark.parametrize("opt", [0, 1])
def test_lower_levels_give_the_same_logits(compiled: tiny.Compiled, tmp_path: Path, opt: int) -> None:
    options = {"activations": "float", "vocabulary_bits": 16, "opt": opt, "debug_dump": tmp_path / "dump"}
    report = compile_model(str(compiled.checkpoint), tmp_path / "bundle", **options)  # type: ignore[arg-type]
    plain = tiny.Compiled(compiled.model, compiled.checkpoint, tmp_path / "bundle", report)
    ids = tiny.tokens(40)
    rows = []
    for bundle in (plain, compiled):
        executor = bundle.executor()
        rows.append(executor.forward([executor.new_sequence()], [ids], logits="all"))
    assert tiny.relative_error(*rows) < tiny.TOLERANCE
    names = {path.name.partition("_")[2] for path in (tmp_path / "dump").iterdir()}
    assert "exported.py" in names
    assert ("fuse_dequantize_matmul.py" in names) == (opt > 0)
    assert "combine_parallel_linears.py" not in names


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activations": "int4"}, UsageError, "unknown activation mode 'int4'"),
        (
            {"activations": "int8", "target": "raspberry-pi-4"},
            UnsupportedError,
            "raspberry-pi-4 has no int8 dot product",
        ),
        ({"activations": "int8", "target": "cuda"}, UnsupportedError, "has no int8 dot product"),
        ({"target": "abacus"}, TargetError, "no target 'abacus'"),
        ({"context_length": 0}, UsageError, "context length 0 is out of range"),
        ({"context_length": -5}, UsageError, "or leave out --context-length"),
        ({"context_length": tiny.CONTEXT + 1}, UsageError, f"1 to {tiny.CONTEXT} tokens"),
        ({"max_sequences": 0}, UsageError, "0 sequences at once are not possible"),
        ({"max_sequences": 129}, UsageError, "legal is from 1 to 128"),
        ({"vocabulary_bits": 5}, UsageError, "cannot be stored in 5 bits"),
        ({"kv_cache": "int4"}, UsageError, "unknown KV cache 'int4'"),
        (
            {"kv_cache": "float32", "target": "cuda"},
            UnsupportedError,
            "does not keep its KV cache in float32",
        ),
        ({"kv_cache": "int8", "target": "cuda"}, UnsupportedError, "does not keep its KV cache in int8"),
        ({"kv_cache": "int8", "target": "metal"}, UnsupportedError, "what they compute in, here float16"),
        ({"kv_cache": "bfloat16"}, UnsupportedError, "CPUs keep it in float32, float16 or int8"),
        ({"dtype": "int8"}, UsageError, "unknown number format 'int8'"),
        ({"dtype": "bfloat16"}, UnsupportedError, "computes in float32"),
        ({"dtype": "bfloat16", "target": "metal"}, UnsupportedError, "CUDA from compute capability 8.0"),
        ({"dtype": "bfloat16", "target": "nvidia-t4"}, UnsupportedError, "computes in float16"),
        ({"dtype": "float32", "target": "cuda"}, UnsupportedError, "computes in float16 and bfloat16"),
        ({"opt": 9}, UsageError, "no optimization level 9"),
    ],
)
def test_options_are_refused_before_the_work(
    compiled: tiny.Compiled, tmp_path: Path, options: dict[str, Any], error: type[AwqTvmError], message: str
) -> None:
    with pytest.raises(error, match=message):
        compile_model(str(compiled.checkpoint), tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_work")
def test_an_existing_output_is_refused_and_kept(compiled: tiny.Compiled, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="exists already"):
        compile_model(str(compiled.checkpoint), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
def test_a_dump_folder_that_is_a_file_is_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    (tmp_path / "dump").write_text("mine")
    with pytest.raises(ResourceError, match="folder for the dumps"):
        compile_model(str(compiled.checkpoint), tmp_path / "bundle", debug_dump=tmp_path / "dump")


@pytest.mark.usefixtures("no_work")
def test_a_missing_tokenizer_is_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json") as caught:
        compile_model(str(folder), tmp_path / "bundle")
    assert "save_pretrained" in (caught.value.fix or "")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "generation",
    ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, -2]}', '{"eos_token_id": true}'],
)
def test_a_damaged_generation_config_is_refused(
    compiled: tiny.Compiled, tmp_path: Path, generation: str
) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint")
    (folder / "generation_config.json").write_text(generation)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        compile_model(str(folder), tmp_path / "bundle")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_special_tokens_outside_the_vocabulary_are_refused(
    compiled: tiny.Compiled, tmp_path: Path, name: str
) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint", **{name: tiny.VOCAB})
    with pytest.raises(CheckpointError, match=f"{name} is {tiny.VOCAB}"):
        compile_model(str(folder), tmp_path / "bundle")


def test_generation_config_goes_before_config(compiled: tiny.Compiled, tmp_path: Path) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint", eos_token_id=3, bos_token_id=4)
    assert description.special_tokens(open_checkpoint(str(folder))) == {
        "eos_token_id": (3,),
        "bos_token_id": (4,),
    }
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert description.special_tokens(open_checkpoint(str(folder))) == {
        "eos_token_id": (7, 8),
        "bos_token_id": (4,),
    }


def test_the_recipe_beside_the_weights_is_told_without_what_it_lacks(
    compiled: tiny.Compiled, tmp_path: Path
) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint")
    recipe = {
        "method": "rtn",
        "symmetric": False,
        "budget": 3.5,
        "calibration": None,
        "options": {"grid": 20},
    }
    (folder / "recipe.json").write_text(json.dumps({**recipe, "": 1, "note": ""}))
    assert description.recipe_fields(open_checkpoint(str(folder))) == {
        "method": "rtn",
        "symmetric": "false",
        "budget": "3.5",
        "options": '{"grid": 20}',
    }


@pytest.mark.usefixtures("no_work")
def test_a_damaged_recipe_is_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    folder = _copy(compiled, tmp_path / "checkpoint")
    (folder / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        compile_model(str(folder), tmp_path / "bundle")


def test_a_failed_build_leaves_nothing(compiled: tiny.Compiled, tmp_path: Path) -> None:
    error = TargetError("no linker")
    with (
        mock.patch.object(driver, "build_library", side_effect=error),
        pytest.raises(TargetError, match="no linker"),
    ):
        compile_model(str(compiled.checkpoint), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
