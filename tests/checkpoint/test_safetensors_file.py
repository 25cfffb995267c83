from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save_file

from awq_tvm.checkpoint.folder import WeightFolder
from awq_tvm.checkpoint.safetensors_file import DTYPES, SafetensorsFile
from awq_tvm.errors import CheckpointError

from .tiny_models import raw_safetensors

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]}
GOOD = {"a": A, "b": B}
DATA = bytes(range(28))


def open_bytes(folder: Path, content: bytes) -> SafetensorsFile:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def test_good_twin_reads_as_the_reference_library_does(tmp_path: Path) -> None:
    content = raw_safetensors(GOOD, DATA)
    file = open_bytes(tmp_path, content)
    expected = load(content)
    assert list(file.tensors) == ["a", "b"]
    for name, values in expected.items():
        np.testing.assert_array_equal(file.read(name), values)
        assert file.tensors[name].shape == values.shape
        assert file.tensors[name].stored_bytes == values.nbytes
    with pytest.raises(ValueError, match="read-only"):
        file.read("a")[0, 0] = 1


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or cut short"),
        (b"\x02\0\0\0\0\0\0", "empty or cut short"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "longer than the file"),
        ((100).to_bytes(8, "little") + b"{}", "longer than the file"),
        ((0).to_bytes(8, "little") + b"{}", "header is empty"),
        (raw_safetensors(b'{"\xff": 1}'), "not UTF-8"),
        (raw_safetensors(b"{nonsense"), "cannot parse JSON"),
        (raw_safetensors(b"[]", b""), "does not begin with"),
        (raw_safetensors(GOOD, DATA[:-1]), "outside the file"),
        (raw_safetensors(GOOD, DATA + b"!"), "trailing bytes"),
        (raw_safetensors(changed("b", data_offsets=[23, 27]), DATA), "overlap"),
        (raw_safetensors(changed("b", data_offsets=[25, 29]), DATA + b"!"), "hole"),
        (raw_safetensors(changed("a", shape=[2, 4]), DATA), "disagree"),
        (raw_safetensors(changed("a", shape=[-2, -3]), DATA), "sizes >= 0"),
        (raw_safetensors(changed("a", shape=[2.0, 3]), DATA), "sizes >= 0"),
        (raw_safetensors(changed("a", shape=[True, 6]), DATA), "sizes >= 0"),
        (raw_safetensors(changed("a", shape=6), DATA), "sizes >= 0"),
        (raw_safetensors(changed("a", shape=[1 << 32, 1 << 32, 6]), DATA), "disagree"),
        (raw_safetensors(changed("a", shape=[1 << 62, 6]), DATA), "disagree"),
        (raw_safetensors(changed("a", dtype="F33"), DATA), "unknown dtype"),
        (raw_safetensors(changed("a", dtype=["F32"]), DATA), "unknown dtype"),
        (raw_safetensors(changed("a", data_offsets=[24, 0]), DATA), "outside the file"),
        (raw_safetensors(changed("a", data_offsets=[0]), DATA), "begin, end"),
        (raw_safetensors(changed("a", data_offsets=[-1, 23]), DATA), "begin, end"),
        (raw_safetensors({**GOOD, "a": 3}, DATA), "header entry"),
        (raw_safetensors(changed("a", more=1), DATA), "header entry"),
        (raw_safetensors({**GOOD, "__metadata__": {"x": 1}}, DATA), "__metadata__"),
        (raw_safetensors({**GOOD, "__metadata__": 1}, DATA), "__metadata__"),
        (
            raw_safetensors(
                b"{" + b'"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}", DATA[:24]
            ),
            "duplicate",
        ),
        (raw_safetensors(b'{"a":' + b"[" * 100_000), "nested too deep"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    open_bytes(tmp_path, raw_safetensors(GOOD, DATA))  # the good twin
    with pytest.raises(CheckpointError, match=message) as caught:
        open_bytes(tmp_path, content)
    assert str(tmp_path / "x.safetensors") in (caught.value.where or "")


def test_error_names_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_bytes(tmp_path, raw_safetensors(changed("b", dtype="I13"), DATA))
    assert "tensor 'b'" in str(caught.value)


def test_header_over_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="header is too long"):
        SafetensorsFile(path)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        SafetensorsFile(tmp_path / "absent.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe.safetensors")


def test_every_dtype_and_odd_shapes_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, dtype in DTYPES.items():
        if name == "BOOL":
            arrays[name] = rng.integers(0, 2, (3, 5)).astype(bool)
        elif not name.startswith("F8"):  # the reference writer has no numpy type for these
            arrays[name] = rng.integers(0, 100, (3, 5)).astype(dtype)
    arrays["scalar"], arrays["none"] = np.array(3.5, np.float32), np.empty((0, 4), np.float16)
    save_file(arrays, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, values in arrays.items():
        read = file.read(name)
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read.astype(np.float64), values.astype(np.float64))
    assert file.tensors["BF16"].dtype == "bfloat16"
    assert file.read("BF16").dtype == ml_dtypes.bfloat16


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_or_cut_byte_escapes_as_another_error(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray(raw_safetensors(GOOD, DATA))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        file = open_bytes(folder, bytes(content[:cut]))
    except CheckpointError:
        return
    total = sum(file.read(name).nbytes for name in file.tensors)
    header = int.from_bytes(content[:8], "little")
    assert total == cut - 8 - header


def _mapped_memory() -> int:
    """Bytes of mapped files that count as this process's memory now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell what is mapped")
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    """Two shards of four tensors of 8 MB: never more than one counts, and views read before stay good."""
    size = 1 << 23
    for shard in "ab":
        tensors = {f"{shard}{index}": np.full(size, 10 * index, np.uint8) for index in range(4)}
        save_file(tensors, tmp_path / f"{shard}.safetensors")
    weight_map = {f"{shard}{index}": f"{shard}.safetensors" for shard in "ab" for index in range(4)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    folder = WeightFolder(tmp_path)
    before, views = _mapped_memory(), []
    for name in weight_map:
        views.append(folder.read(name))
        assert int(views[-1].sum(dtype=np.int64)) == 10 * int(name[1]) * size
        assert _mapped_memory() - before < 2 * size
    assert [int(view[-1]) for view in views] == [0, 10, 20, 30] * 2
