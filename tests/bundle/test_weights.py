from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from awq_tvm.bundle.weights import ALIGNMENT, PADDING_PREFIX, map_weights, write_weights
from awq_tvm.errors import BundleError, UsageError


@given(
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=12),
    dtype=st.sampled_from([np.int8, np.float16, np.int32, np.float64, np.bool_]),
)
def test_streams_any_shapes_aligned(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: type
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": (rng.random(shape) * 100).astype(dtype) for i, shape in enumerate(shapes)}
    write_weights(path, list(arrays), iter(arrays.items()))
    raw = path.read_bytes()
    (room,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + room])
    with safe_open(path, "numpy") as file:
        assert {name for name in file.keys() if not name.startswith(PADDING_PREFIX)} == set(arrays)  # noqa: SIM118
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
            assert (8 + room + header[name]["data_offsets"][0]) % ALIGNMENT == 0


def test_bfloat16_and_a_transposed_view(tmp_path: Path) -> None:
    brain = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    turned = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    write_weights(tmp_path / "w", ["brain", "turned"], [("brain", brain), ("turned", turned)])
    raw = (tmp_path / "w").read_bytes()
    (room,) = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8 : 8 + room])["brain"]
    assert entry["dtype"] == "BF16"
    assert raw[8 + room + entry["data_offsets"][0] :][:4] == brain.tobytes()
    with safe_open(tmp_path / "w", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("turned"), turned)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([("a", np.zeros(1)), ("a", np.zeros(1))], "came twice"),
        ([("a", np.zeros(1)), ("c", np.zeros(1))], "unknown"),
        ([("a", np.zeros(1))], "never came"),
        ([("a", np.zeros(1, dtype=complex))], "complex128"),
        ([("a", np.zeros((1,) * 9))], "9 dimensions"),
    ],
)
def test_wrong_tensors(tmp_path: Path, weights: list[tuple[str, np.ndarray]], why: str) -> None:
    good = [("a", np.zeros(1)), ("b", np.zeros(1))]
    write_weights(tmp_path / "good", ["a", "b"], good)
    with pytest.raises(UsageError, match=why):
        write_weights(tmp_path / "w", ["a", "b"], weights)


def test_mapped_tensors_equal_the_written_and_never_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    arrays = {"a": np.arange(7, dtype=np.int8), "b": np.ones((3, 5), np.float16), "c": np.zeros((0, 2))}
    write_weights(path, list(arrays), iter(arrays.items()))
    before = path.read_bytes()
    mapped = map_weights(path, ["b", "a", "c"])
    for name, array in zip("bac", mapped, strict=True):
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
        assert array.ctypes.data % ALIGNMENT == 0
    mapped[0][:] = 9
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda raw: raw[:4], "does not fit"),
        (lambda raw: struct.pack("<Q", 1 << 62) + raw[8:], "does not fit"),
        (lambda raw: raw[:8] + b"x" + raw[9:], "Expecting"),
        (lambda raw: raw.replace(b'"a"', b'"z"'), "tensor a"),
        (lambda raw: raw.replace(b'"I8"', b'"J8"'), "tensor a"),
        (lambda raw: raw.replace(b"[64]", b"[99]"), "tensor a"),
        (lambda raw: raw[:-1], "tensor a"),
        (lambda raw: raw.replace(b'"data_offsets":[0,64]', b'"data_offsets":[1,65]'), "boundary"),
    ],
)
def test_spoiled_files_are_refused(tmp_path: Path, spoil: Callable[[bytes], bytes], why: str) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, ["a"], [("a", np.arange(64, dtype=np.int8))])
    assert map_weights(path, ["a"])[0].sum() == 2016
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BundleError, match=why):
        map_weights(path, ["a"])
