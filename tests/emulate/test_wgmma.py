"""wgmma against numpy, and each fault that Hopper punishes, planted beside the same kernel without it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from awq_tvm.emulate import EmulatedKernels, build_kernels
from awq_tvm.errors import BundleError, UnsupportedError

THREADS = 128
WIDTHS = {0: 16, 1: 128, 2: 64, 3: 32}
"""Bytes in which chunks are swizzled, by the number in the descriptor; 16: they are not."""

FRAME = """extern "C" __global__ void __launch_bounds__(128) {name}(uint* a, uint* image, float* c, float* y) {{
  extern __shared__ __align__(64) uint memory[];
  uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, pair = t % 4;
  uint32_t at = (uint32_t)__cvta_generic_to_shared(memory), first = (1024 - at % 1024) % 1024;
  uint* s = memory + first / 4;
  uint64_t b = {descriptor}ull + ((at + first) >> 4);
  float d[{count}];
{body}
}}
"""
LOAD = "for (int i = t; i < {words}; i += 128) s[i] = image[i];\n"
PROXY = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");\n'
BARRIER = "__syncthreads();\n"
FENCE = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");\n'
COMMIT = 'asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");\n'
WAIT = 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");\n'
SUMS = """for (int i = 0; i < {count}; ++i)
    {what};
"""
PLACE = "c[(row + i / 2 % 2 * 8) * {columns} + i / 4 * 8 + pair * 2 + i % 2]"


def wgmma(columns: int, k: int = 0, add: str = "1", b: str = "b", modes: str = "1, 1, 0") -> str:
    """The statement, whose left operand is row by row in ``a``: 16 k from word ``k`` of 8 (a row) times rows."""
    n = columns // 2
    sums = ", ".join(f"%{i}" for i in range(n))
    left = ", ".join(f"%{n + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(n))
    places = [f"a[(row + {8 * (i % 2)}) * KW + {k} + pair + {4 * (i // 2)}]" for i in range(4)]
    inputs = ", ".join(f'"r"({place})' for place in places)
    return (
        f'asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{n + 5}, 0; '
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16 {{{sums}}}, {{{left}}}, %{n + 4}, p, "
        f'{modes}; }}"\n'
        f': {outputs} : {inputs}, "l"({b}), "r"({add}));\n'
    )


def lay_out(B: np.ndarray, mode: int) -> np.ndarray:
    """[columns, k] as the PTX ISA wants it in shared memory: columns in eights, k in parts of ``width`` bytes."""
    columns, k = B.shape
    per_row = WIDTHS[mode] // 16
    chunks = B.reshape(columns // 8, 8, k // 8 // per_row, per_row, 8)
    placed = np.empty_like(chunks)
    for column in range(8):
        for chunk in range(per_row):
            # A pattern of 128 bytes changes with every column, of 64 with every second, of 32 with every fourth.
            placed[:, column, :, chunk ^ column * per_row // 8] = chunks[:, column, :, chunk]
    return np.ascontiguousarray(placed.transpose(2, 0, 1, 3, 4))


def described(mode: int, columns: int) -> int:
    width = WIDTHS[mode]
    return mode << 62 | (8 * width >> 4) << 32 | ((columns * 16 if mode == 0 else 16) >> 4) << 16


def kernel(body: str, columns: int, k: int, mode: int = 1, name: str = "k") -> str:
    return FRAME.format(
        name=name,
        descriptor=described(mode, columns),
        count=columns // 2,
        body=body.replace("KW", str(k // 2)),
    )


def operands(columns: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(columns + k)
    A, B = (rng.uniform(-2, 2, (rows, k)).astype(np.float16) for rows in (64, columns))
    return A, B, rng.standard_normal((64, columns)).astype(np.float32)


def launch(
    kernels: EmulatedKernels,
    A: np.ndarray,
    image: np.ndarray,
    C: np.ndarray,
    name: str = "k",
    threads: int = THREADS,
) -> np.ndarray:
    y = np.full_like(C, np.nan)
    arguments = [A.view(np.uint32), image.view(np.uint32), C, y]
    kernels.launch(name, arguments, (1, 1, 1), (threads, 1, 1), image.nbytes + 1024)
    return y


def run(emulated, source: str, A: np.ndarray, image: np.ndarray, C: np.ndarray) -> np.ndarray:
    return launch(emulated("#include <cuda.h>\n" + source), A, image, C)


def load(columns: int, k: int) -> str:
    return LOAD.format(words=columns * k // 2)


def sums(columns: int, what: str) -> str:
    return SUMS.format(count=columns // 2, what=what.replace("AT", PLACE.format(columns=columns)))


STORE = "y[&AT - c] = d[i]"


@pytest.mark.parametrize("mode", WIDTHS)
@pytest.mark.parametrize("columns", [8, 24, 128, 256])
def test_it_multiplies_and_adds(columns: int, mode: int, emulated) -> None:
    A, B, C = operands(columns, 16)
    if mode in (1, 2):
        # The second half of the rows' k of a wider matrix; what lies before is not to be read.
        wide = np.full((columns, WIDTHS[mode] // 2), np.nan, np.float16)
        wide[:, 16:32] = B
        image, b = lay_out(wide, mode), "b + 2"
    else:
        image, b = lay_out(B, mode), "b"
    k = image.size // columns
    body = load(columns, k) + sums(columns, "d[i] = AT") + PROXY + BARRIER + FENCE
    body += wgmma(columns, b=b) + COMMIT + WAIT + sums(columns, STORE)
    y = run(emulated, kernel(body, columns, 16, mode), A, image, C)
    np.testing.assert_allclose(y, C + A.astype(np.float32) @ B.T.astype(np.float32), rtol=1e-5, atol=1e-4)


def test_it_multiplies_bfloat16(emulated) -> None:
    A, B, C = operands(24, 16)
    A, B = A.astype(ml_dtypes.bfloat16), B.astype(ml_dtypes.bfloat16) * ml_dtypes.bfloat16(1e20)
    body = load(24, 16) + sums(24, "d[i] = AT") + PROXY + BARRIER + FENCE + wgmma(24) + COMMIT + WAIT
    body = body.replace(".f32.f16.f16", ".f32.bf16.bf16") + sums(24, STORE)
    image = lay_out(B.view(np.float16), 3)
    y = run(emulated, kernel(body, 24, 16, 3), A, image, C)
    np.testing.assert_allclose(y, C + A.astype(np.float32) @ B.T.astype(np.float32), rtol=1e-5, atol=1e16)


@pytest.mark.parametrize("add", ["0", "1"])
def test_several_under_way_add_to_the_same_sums(add: str, emulated) -> None:
    A, B, C = operands(16, 64)
    body = load(16, 64) + sums(16, "d[i] = AT") + PROXY + BARRIER + FENCE
    for step in range(4):
        body += wgmma(16, 8 * step, add if step == 0 else "1", f"b + {2 * step}") + COMMIT
    body += WAIT.replace(" 0;", " 1;") + WAIT + sums(16, STORE)
    y = run(emulated, kernel(body, 16, 64), A, lay_out(B, 1), C)
    expected = A.astype(np.float32) @ B.T.astype(np.float32) + (C if add == "1" else 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@dataclass(frozen=True)
class Planted:
    """A kernel of 16 columns and 64 k with ``{0}`` where the fault is: what is right, what is wrong, what is said."""

    body: str
    right: str
    wrong: str
    said: str


BEFORE = load(16, 64) + sums(16, "d[i] = AT")
READY = BEFORE + PROXY + BARRIER + FENCE
DONE = COMMIT + WAIT + sums(16, STORE)
FAULTS = {
    "sums read too early": Planted(
        READY + wgmma(16) + COMMIT + "SLOT" + sums(16, STORE) + WAIT, WAIT, "", "read of an accumulator"
    ),
    "sums of a group that may be under way": Planted(
        READY + wgmma(16) + COMMIT + "SLOT" + sums(16, STORE) + WAIT,
        WAIT,
        WAIT.replace(" 0;", " 1;"),
        "read of an accumulator",
    ),
    "sums written too early": Planted(
        READY + wgmma(16) + COMMIT + "SLOT" + sums(16, "d[i] = 0") + WAIT + sums(16, STORE),
        WAIT,
        "",
        "write of an accumulator",
    ),
    "never committed": Planted(
        READY + wgmma(16) + "SLOT" + WAIT, COMMIT, "", "ends while a wgmma is under way"
    ),
    "never waited for": Planted(
        READY + wgmma(16) + COMMIT + "SLOT", WAIT, "", "ends while a wgmma is under way"
    ),
    "no fence at all": Planted(
        BEFORE + PROXY + BARRIER + "SLOT" + wgmma(16) + DONE, FENCE, "", "missing wgmma.fence"
    ),
    "no fence after sums were written": Planted(
        READY + wgmma(16) + COMMIT + WAIT + sums(16, "d[i] = 0") + "SLOT" + wgmma(16) + DONE,
        FENCE,
        "",
        "missing wgmma.fence",
    ),
    "no fence after sums were read": Planted(
        READY + wgmma(16) + COMMIT + WAIT + sums(16, STORE) + "SLOT" + wgmma(16, add="0") + DONE,
        FENCE,
        "",
        "missing wgmma.fence",
    ),
    "no fence of the proxy": Planted(
        BEFORE + "SLOT" + BARRIER + FENCE + wgmma(16) + DONE, PROXY, "", "missing fence.proxy.async"
    ),
    "a fence of the proxy behind the barrier": Planted(
        BEFORE + "SLOT" + FENCE + wgmma(16) + DONE,
        PROXY + BARRIER,
        BARRIER + PROXY,
        "missing fence.proxy.async",
    ),
    "a fence of the proxy before the last write": Planted(
        BEFORE + PROXY + "s[t] = image[t]; SLOT" + BARRIER + FENCE + wgmma(16) + DONE,
        PROXY,
        "",
        "missing fence.proxy.async",
    ),
    "no barrier": Planted(BEFORE + PROXY + "SLOT" + FENCE + wgmma(16) + DONE, BARRIER, "", "missing barrier"),
    "shared memory overwritten too early": Planted(
        READY + wgmma(16) + COMMIT + "SLOT" + "s[t] = 0;" + WAIT + sums(16, STORE),
        WAIT + BARRIER,
        BARRIER,
        "a wgmma under way reads",
    ),
    "one thread waits for all": Planted(
        READY
        + wgmma(16)
        + COMMIT
        + "if (SLOT) { "
        + WAIT
        + " } "
        + BARRIER
        + "s[t] = 0;"
        + WAIT
        + sums(16, STORE),
        "true",
        "t < 96",
        "a wgmma under way reads",
    ),
    "a copy into what is read": Planted(
        READY
        + wgmma(16)
        + COMMIT
        + "SLOT"
        + 'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at + first + t * 16), "l"(image + t * 4));'
        + 'asm volatile("cp.async.wait_all;");'
        + WAIT
        + sums(16, STORE),
        WAIT + BARRIER,
        BARRIER,
        "a wgmma under way reads",
    ),
    "misaligned": Planted(READY + wgmma(16, b="b + SLOT") + DONE, "2", "7", "misaligned"),
    "in the second row of a pattern": Planted(READY + wgmma(16, b="b + SLOT") + DONE, "0", "8", "misaligned"),
    "eights that share a pattern": Planted(
        READY + wgmma(16, b="b + SLOT") + DONE, "0", "(32ull << 32)", "misaligned"
    ),
    "bits that mean nothing": Planted(
        READY + wgmma(16, b="b + SLOT") + DONE, "0", "(1ull << 49)", "bits, or a base offset"
    ),
    "beyond what was written": Planted(
        READY + wgmma(16, b="b + SLOT") + DONE, "0", "(128ull)", "uninitialised"
    ),
    "beyond shared memory": Planted(READY + wgmma(16, b="b + SLOT") + DONE, "0", "256", "outside its arrays"),
    "other descriptors in one warp": Planted(
        READY + wgmma(16, b="b + (t < 32 ? 0 : SLOT)") + DONE, "0", "2", "different descriptors"
    ),
    "one warp stays away": Planted(
        READY + "if (SLOT) {" + wgmma(16) + "}" + COMMIT + WAIT, "true", "t < 96", "divergent"
    ),
}


def name_of(fault: str, form: str) -> str:
    return f"{form}_{list(FAULTS).index(fault)}"


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> EmulatedKernels:
    """Every fault and its right twin, compiled once."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU through g++, not installed")
    source = "#include <cuda.h>\n"
    for fault, one in FAULTS.items():
        for form in ("right", "wrong"):
            body = one.body.replace("SLOT", getattr(one, form))
            source += kernel(body, 16, 64, name=name_of(fault, form))
    return EmulatedKernels(build_kernels(source, "cuda", tmp_path_factory.mktemp("wgmma")))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, planted) -> None:
    A, B, C = operands(16, 64)
    with pytest.raises(BundleError) as error:
        launch(planted, A, lay_out(B, 1), C, name_of(fault, "wrong"))
    assert FAULTS[fault].said in error.value.why
    # What the fault has left is none of the next launch's business.
    launch(planted, A, lay_out(B, 1), C, name_of(fault, "right"))


def test_a_block_of_less_than_a_warpgroup_is_refused(planted) -> None:
    A, B, C = operands(16, 64)
    with pytest.raises(BundleError) as error:
        launch(planted, A, lay_out(B, 1), C, "right_0", threads=96)
    assert "warpgroups of 128" in error.value.why


def test_sums_that_are_no_registers_are_refused(emulated) -> None:
    A, B, _ = operands(16, 64)
    source = kernel((READY + wgmma(16) + DONE).replace('"+f"(d[', '"+f"(y[64 * t + '), 16, 64)
    with pytest.raises(BundleError) as error:
        run(emulated, source, A, lay_out(B, 1), np.zeros((128, 64), np.float32))
    assert "no local variable" in error.value.why


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("1, 1, 0", "1, 1, 1"),
        ("1, 1, 0", "1, -1, 0"),
        ("k16.f32", "k16.f16"),
        ("sync.aligned.m64", "sp.sync.aligned.m64"),
        ("%8, %9, %10, %11", "%8, %9"),
        ("{%8, %9, %10, %11}", "%12"),
        ("f32.f16.f16", "f32.bf16.f16"),
    ],
)
def test_other_forms_are_not_known(right: str, wrong: str, emulated) -> None:
    source = kernel(READY + wgmma(16) + DONE, 16, 64)
    assert right in source
    with pytest.raises(UnsupportedError, match="does not know"):
        emulated(source.replace(right, wrong))
