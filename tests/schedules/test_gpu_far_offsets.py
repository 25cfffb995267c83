"""Tensors of more than 2**31 numbers: the last blocks of their launches, in the emulator.

Only those blocks run: the source says a higher number for each block than the launch does. What nothing touches of
the tensors is never in memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.errors import BundleError
from awq_tvm.schedules.attention.gpu.append import append_on_gpu
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.rule import Unserved, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support.gpu_kernels import Built, Emulated, build_for, needs_compiler, random_arrays, reference

pytestmark = needs_compiler

Dialect = Literal["cuda", "metal"]
TARGETS = {"cuda": "nvidia-a100", "metal": "metal"}
FAR = 2**31


def run_last_block(
    built: Built, launch: Launch, dialect: Dialect, arrays: dict[str, Any], folder: Path
) -> None:
    """The last block along every axis of a launch, and no other."""
    source = built.source
    for axis, extent in zip("xyz", launch.grid, strict=True):
        source = re.sub(rf"\bblockIdx\.{axis}\b", f"(blockIdx.{axis} + {extent - 1}u)", source)
    # Metal's of one dimension.
    source = re.sub(r"\)blockIdx\b(?!\.)", f")(blockIdx + {launch.grid[0] - 1}u)", source)
    given = [arrays[one] if isinstance(one, str) else one for one in launch.arguments]
    kernels = Emulated(source, dialect, folder).kernels
    kernels.launch(launch.kernel, given, (1, 1, 1), launch.block, launch.shared_bytes)


def linear(case: MatmulSpec, dialect: Dialect) -> Built:
    chip = resolve(TARGETS[dialect])
    chosen = select(case, chip)
    assert not isinstance(chosen, Unserved)
    return build_for(chosen.rule, case, chip)


def with_a_far_end(built: Built, case: MatmulSpec, few: MatmulSpec, m: int) -> dict[str, Any]:
    """Operands of a large linear, zeros but for its last outputs and tokens, which are those of a small one."""
    layout = LAYOUTS[built.func.attrs[ir_attrs.LAYOUT]]
    small = random_arrays(few, min(m, 256), layout)
    arrays: dict[str, Any] = {"small": small}
    for array in layout.arrays(case):
        arrays[array.suffix] = np.zeros(array.shape, array.dtype)
        part = small[array.suffix]
        arrays[array.suffix].reshape(-1)[-part.size :] = part.reshape(-1)
    arrays["x"] = np.zeros((m, case.in_features), case.dtype)
    arrays["x"][-len(small["x"]) :] = small["x"]
    arrays["y"] = np.zeros((m, case.out_features), case.dtype)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_a_weight_of_more_than_two_gigabytes(dialect: Dialect, tmp_path: Path) -> None:
    case, few = (MatmulSpec(16384, n, 8, 128, "float16") for n in (2**17 + 128, 128))
    built = linear(case, dialect)
    (launch,) = built.launches(1)
    arrays = with_a_far_end(built, case, few, 1)
    assert arrays["qweight"].nbytes > FAR
    run_last_block(built, launch, dialect, arrays, tmp_path)
    expected, bound = reference(few, arrays["small"])
    written = np.flatnonzero(arrays["y"][0])
    assert written[-1] == case.out_features - 1
    near = written - (case.out_features - few.out_features)
    assert (near >= 0).all()
    assert (np.abs(arrays["y"][0, written] - expected[0, near]) <= bound[0, near]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_more_than_two_billion_logits(dialect: Dialect, tmp_path: Path) -> None:
    case, few = (MatmulSpec(128, n, 4, 64, "float16") for n in (2**18, 256))
    m = 8192 + 256
    built = linear(case, dialect)
    (launch,) = built.launches(m)
    arrays = with_a_far_end(built, case, few, m)
    assert arrays["y"].size > FAR
    run_last_block(built, launch, dialect, arrays, tmp_path)
    # Metal's tiles multiply weights that are rounded.
    expected, bound = reference(few, arrays["small"], rounded=dialect == "metal")
    corner = arrays["y"][-256:, -256:]
    written = corner != 0
    assert written[-1].any()
    assert written.sum() >= 32 * 32
    assert (np.abs(corner - expected)[written] <= bound[written]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_keys_and_values_go_to_pages_far_away(dialect: Dialect, tmp_path: Path) -> None:
    """Where 32 bits would not do: the same kernel with no more of them is out of bounds."""
    shape = AttentionShape(32, 8, 128, "float16")
    # Kernels count in words of 32 bits.
    count = 2 * FAR // (2 * shape.kv_heads * PAGE_SIZE * shape.head_dim) + 1
    pages = np.zeros((count, 2, shape.kv_heads, PAGE_SIZE, shape.head_dim), np.float16)
    k, v = np.random.default_rng(0).standard_normal((2, 1, shape.kv_heads, shape.head_dim)).astype(np.float16)
    position = np.array([count * PAGE_SIZE - 1], np.int32)
    host = HostPart(append_on_gpu(shape).with_attr("global_symbol", "append"), resolve(TARGETS[dialect]))
    arrays = {"pages": pages, "k": k, "v": v, "position_map": position}
    (launch,) = host.launches({"tokens": 1, "num_pages": count, "position_map_offset": 0})
    given = [arrays[one] if isinstance(one, str) else one for one in launch.arguments]

    def run(source: str, name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        kernels = Emulated(source, dialect, folder).kernels
        kernels.launch(launch.kernel, given, launch.grid, launch.block, launch.shared_bytes)

    run(host.source, "wide")
    np.testing.assert_array_equal(pages[-1, 0, :, -1], k[0])
    np.testing.assert_array_equal(pages[-1, 1, :, -1], v[0])
    with pytest.raises(BundleError) as error:
        # Casts, and the register with the place in the pages.
        run(
            re.sub(r"(?<=\()(?:int64_t|long)(?=\))|(?:int64_t|long)(?= at\w*\[1\])", "int", host.source),
            "narrow",
        )
    assert "out of bounds" in error.value.why
