"""Prefill on CUDA's tensor cores, in the emulator against float64, and what the compiler makes of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError, UnsupportedError
from awq_tvm.schedules.attention.gpu.choose import has_tensor_prefill
from awq_tvm.schedules.attention.gpu.tensor_prefill import tensor_prefill_paged, tensor_prefill_ragged
from awq_tvm.schedules.attention.gpu.tensor_prefill_config import (
    TensorPrefillConfig,
    default_prefill_config,
    shared_stride,
)
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.targets import resolve
from awq_tvm.targets.cuda import SHARED_MEMORY_BYTES
from benchmarks.gpu.machine_code import disassemble, find_disassembler, read_listing
from tests.support.gpu_attention import BOUND
from tests.support.gpu_kernels import Emulated, needs_compiler
from tests.support.gpu_prefill import (
    BATCHES,
    CACHED,
    UNEVEN,
    check_paged,
    check_ragged,
    run_paged,
    run_ragged,
)

SHAPES = {
    "a group of four": AttentionShape(8, 2, 64, "float16"),
    "an odd group, bfloat16 and a window": AttentionShape(3, 1, 32, "bfloat16", sliding_window=20),
    "every head with keys of its own": AttentionShape(2, 2, 80, "float16"),
    "queries in shared memory": AttentionShape(8, 1, 128, "float16", sliding_window=70),
    "features of one product": AttentionShape(4, 2, 16, "float16", sliding_window=1),
    "rows no power of two apart": AttentionShape(3, 1, 96, "float16"),
    "the most features": AttentionShape(4, 1, 256, "float16", sliding_window=33),
    "bfloat16 and queries in shared memory": AttentionShape(4, 1, 128, "bfloat16"),
}
FAST = ("a group of four", "an odd group, bfloat16 and a window", "queries in shared memory")


def build(kind: str, shape: AttentionShape, config: TensorPrefillConfig | None = None) -> HostPart:
    config = config or default_prefill_config(shape, SHARED_MEMORY_BYTES["sm_90"])
    made = {"ragged": tensor_prefill_ragged, "paged": tensor_prefill_paged}[kind](shape, config)
    return HostPart(made.with_attr("global_symbol", "attend"), resolve("nvidia-h100"))


NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "check"), [("ragged", check_ragged), ("paged", check_paged)])
def test_new_tokens_attend(name: str, kind: str, check: Callable[..., None], tmp_path: Path) -> None:
    """To one another, and to pages."""
    host = build(kind, SHAPES[name])
    kernels = Emulated(host.source, "cuda", tmp_path)
    check(kernels, host, SHAPES[name], UNEVEN if name in FAST else slice(None))


@needs_compiler
@pytest.mark.slow
def test_tiles_for_less_shared_memory(tmp_path: Path) -> None:
    shape = AttentionShape(2, 1, 128, "float16", sliding_window=40)
    config = default_prefill_config(shape, SHARED_MEMORY_BYTES["sm_86"])
    assert config != default_prefill_config(shape, SHARED_MEMORY_BYTES["sm_80"])
    host = build("paged", shape, config)
    kernels = Emulated(host.source, "cuda", tmp_path)
    assert run_paged(kernels, host, shape, BATCHES[3], CACHED[3])[0] < BOUND["float16"]


@needs_compiler
def test_the_barriers_are_needed(tmp_path: Path) -> None:
    """Without them the emulator objects, so with them there is no race it can see."""
    shape = SHAPES["a group of four"]
    host = build("ragged", shape)
    barrier = r"__syncthreads\(\);"
    # Queries have come; a tile has come; the last was multiplied; outputs are there.
    assert len(re.findall(barrier, host.source)) == 4
    kernels = Emulated(re.sub(barrier, "", host.source), "cuda", tmp_path)
    with pytest.raises(BundleError) as error:
        run_ragged(kernels, host, shape, (70,))
    assert re.search(r"missing barrier|uninitialised|cp\.async|copy", error.value.why)


@pytest.mark.skipif(
    shutil.which("nvcc") is None or find_disassembler() is None, reason="nvcc or nvdisasm is not installed"
)
@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("sm_90", (32, 8, 128)),
        pytest.param("sm_86", (9, 3, 64), marks=pytest.mark.slow),
        pytest.param("sm_80", (32, 8, 128), marks=pytest.mark.slow),
        pytest.param("sm_80", (8, 4, 256), marks=pytest.mark.slow),
        pytest.param("sm_86", (32, 8, 128), marks=pytest.mark.slow),
        pytest.param("sm_86", (8, 4, 256), marks=pytest.mark.slow),
        pytest.param("sm_89", (32, 32, 80), marks=pytest.mark.slow),
        pytest.param("sm_89", (32, 32, 96), marks=pytest.mark.slow),
        pytest.param("sm_90", (9, 3, 64), marks=pytest.mark.slow),
        pytest.param("sm_90", (8, 4, 256), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_nothing_is_spilled_and_everything_comes_16_bytes_at_a_time(
    arch: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    config = default_prefill_config(AttentionShape(*shape, "float16"), SHARED_MEMORY_BYTES[arch])
    for kind in ("ragged", "paged"):
        path = tmp_path / "kernels.cu"
        path.write_text(build(kind, AttentionShape(*shape, "float16"), config).source)
        _, (cubin,), (kernel,) = Nvcc.find().compile(path, (arch,), None)
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == 0
        listing = disassemble(cubin)
        assert listing is not None
        (code,) = read_listing(listing).values()
        assert code.count("LDL", "STL") == 0
        # Two products of a tile: of each 16 rows, keys and features two for S, and two for O.
        pieces = config.row_blocks * config.tile_keys // 16 * (shape[2] // 16)
        assert code.loop.count("HMMA.16816.F32") == code.count("HMMA") == 4 * pieces
        assert code.count("LDGSTS") > 0
        assert all(name.endswith(".128") for name in code.instructions if name.startswith("LDGSTS"))
        # What is read otherwise are numbers of tokens and pages.
        assert not [name for name in code.instructions if re.match(r"LDG.*\.U16", name)]
        wide = [name for name in code.instructions if name.startswith("STG") and name.endswith(".128")]
        assert wide
        shared = config.shared_rows() * shared_stride(AttentionShape(*shape, "float16")) * 16
        # Two blocks fit an SM, but for the longest heads where it has least.
        blocks = 1 if arch == "sm_86" and shape[2] == 256 else 2
        assert blocks * (shared + 1024) <= SHARED_MEMORY_BYTES[arch] + 1024
        assert 2 * config.threads * kernel.registers <= 65536


@pytest.mark.parametrize(
    ("target", "shape", "there"),
    [
        ("nvidia-h100", AttentionShape(8, 2, 64, "float16"), True),
        ("nvidia-h100", AttentionShape(8, 2, 64, "bfloat16"), True),
        ("nvidia-h100", AttentionShape(8, 2, 64, "float32"), False),
        ("nvidia-h100", AttentionShape(8, 2, 72, "float16"), False),
        ("nvidia-h100", AttentionShape(8, 2, 272, "float16"), False),
        ("nvidia-t4", AttentionShape(8, 2, 64, "float16"), False),
        ("metal", AttentionShape(8, 2, 64, "float16"), False),
    ],
    ids=str,
)
def test_where_there_is_one(target: str, shape: AttentionShape, there: bool) -> None:
    assert has_tensor_prefill(shape, tvm.target.Target(resolve(target).tvm_target_with_host)) == there


@pytest.mark.parametrize("sizes", [(4, 3, 32), (0, 1, 32), (4, 1, 24), (4, 1, 0)], ids=str)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UnsupportedError, match="not consistent"):
        TensorPrefillConfig(*sizes, held_queries=True)
