"""PTX instructions and simdgroup matrices against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from awq_tvm.errors import BundleError, TargetError, UnsupportedError

FRAME = """#include <cuda.h>
#include <cuda_fp16.h>
extern "C" __global__ void __launch_bounds__(32) k({parameters}) {{
  uint32_t t = threadIdx.x;
{body}
}}
"""


def launch(emulated, body: str, arrays: dict[str, np.ndarray]) -> None:
    kinds = {"uint32": "uint32_t", "float32": "float", "uint16": "unsigned short"}
    parameters = ", ".join(f"{kinds[str(a.dtype)]}* {name}" for name, a in arrays.items())
    emulated(FRAME.format(parameters=parameters, body=body)).launch(
        "k", list(arrays.values()), (1, 1, 1), (32, 1, 1)
    )


def words(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)


def halves(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-2, 2, shape).astype(np.float16)


@pytest.mark.parametrize("table", [0xEA, 0x96, 0x01, 0xC0])
def test_lop3(table: int, emulated) -> None:
    a, b, c, d = *words(3, 32), np.zeros(32, np.uint32)
    body = f'asm("lop3.b32 %0, %1, %2, %3, {table};" : "=r"(d[t]) : "r"(a[t]), "r"(b[t]), "r"(c[t]));'
    launch(emulated, body, {"a": a, "b": b, "c": c, "d": d})
    expected = np.zeros(32, np.uint32)
    for row in range(8):
        if table >> row & 1:
            expected |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    np.testing.assert_array_equal(d, expected)


def test_prmt(emulated) -> None:
    a, b, s, d = *words(3, 32), np.zeros(32, np.uint32)
    s &= 0x7777
    launch(
        emulated,
        'asm volatile("prmt.b32 %0, %1, %2, %3;" : "=r"(d[t]) : "r"(a[t]), "r"(b[t]), "r"(s[t]));',
        {"a": a, "b": b, "s": s, "d": d},
    )
    pool = np.stack([a, b], 1).view(np.uint8)
    picks = np.stack([s >> 4 * i & 7 for i in range(4)], 1)
    np.testing.assert_array_equal(d, np.take_along_axis(pool, picks, 1).copy().view(np.uint32)[:, 0])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_arithmetic_of_pairs_rounds_once(name: str, emulated) -> None:
    a, b, c = halves(3, 64)
    d = np.zeros(32, np.uint32)
    instruction = {"fma": "fma.rn.f16x2 %0, %1, %2, %3"}.get(name, f"{name}.f16x2 %0, %1, %2")
    more = ', "r"(c[t])' if name == "fma" else ""
    launch(
        emulated,
        f'asm("{instruction};" : "=r"(d[t]) : "r"(a[t]), "r"(b[t]){more});',
        {"a": a.view(np.uint32), "b": b.view(np.uint32), "c": c.view(np.uint32), "d": d},
    )
    wide = a.astype(np.float64), b.astype(np.float64), c.astype(np.float64)
    expected = {
        "add": wide[0] + wide[1],
        "sub": wide[0] - wide[1],
        "mul": wide[0] * wide[1],
        "fma": wide[0] * wide[1] + wide[2],
    }[name]
    np.testing.assert_array_equal(d.view(np.float16), expected.astype(np.float16))


def test_two_float32_become_two_float16_and_are_stored_at_once(emulated) -> None:
    low, high = (np.float32([1 + 2.0**-11, 1 + 3 * 2.0**-11, -3, 1e6] * 8) * sign for sign in (1, -1))
    y = np.zeros(64, np.uint32)
    launch(
        emulated,
        'uint32_t both; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high[t]), "f"(low[t]));\n'
        'asm volatile("st.global.v2.b32 [%0], {%1, %2};" :: "l"(y + 2 * t), "r"(both), "r"(t) : "memory");',
        {"low": low, "high": high, "y": y},
    )
    with np.errstate(over="ignore"):
        expected = np.stack([low, high], 1).astype(np.float16)
    np.testing.assert_array_equal(y[::2].copy().view(np.float16), expected.ravel())
    np.testing.assert_array_equal(y[1::2], np.arange(32))


def test_bfloat16_rounds_once_to_even(emulated) -> None:
    """Numbers between two bfloat16, halfway, and just above by less than float32 shows."""
    wide = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 3e37, 0])
    a = np.resize(wide.astype(ml_dtypes.bfloat16), 64)
    b = np.resize(np.float32([1, 1 + 2.0**-7, 3, 2.0**-7]).astype(ml_dtypes.bfloat16), 64)
    c = np.resize(np.float32([2.0**-8, -1, 2.0**-24, 0, 5]).astype(ml_dtypes.bfloat16), 64)
    d, low, high = np.zeros(32, np.uint32), np.resize(wide, 32), np.resize(wide[::-1], 32)
    packed = np.zeros(32, np.uint32)
    launch(
        emulated,
        'asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d[t]) : "r"(a[t]), "r"(b[t]), "r"(c[t]));\n'
        'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed[t]) : "f"(high[t]), "f"(low[t]));',
        {
            **{"a": a.view(np.uint32), "b": b.view(np.uint32), "c": c.view(np.uint32), "d": d},
            **{"packed": packed, "low": low, "high": high},
        },
    )
    exact = a.astype(float) * b.astype(float) + c.astype(float)
    np.testing.assert_array_equal(d.view(np.uint16), _nearest_bfloat16(exact))
    both = np.stack([low, high], 1).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(packed.view(ml_dtypes.bfloat16), both.ravel())


def test_powers_of_two_are_flushed(emulated) -> None:
    x = np.resize(np.float32([0, 1.5, -126, -126.5, -140, -3e38, 127, 1e-40]), 32)
    y = np.full(32, np.nan, np.float32)
    launch(emulated, 'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y[t]) : "f"(x[t]));', {"x": x, "y": y})
    expected = np.exp2(x.astype(float))
    expected[expected < 2.0**-126] = 0
    np.testing.assert_allclose(y, expected, rtol=2.0**-22)
    assert (y[x < -126] == 0).all()


def _nearest_bfloat16(exact: np.ndarray) -> np.ndarray:
    """Bits of the bfloat16 nearest to each float64, to even where two are; found among neighbours."""
    guess = exact.astype(np.float32).view(np.uint32) >> 16
    neighbours = np.stack([guess + step for step in (0, 1)])
    values = (neighbours << 16).astype(np.uint32).view(np.float32).astype(float)
    distance = np.abs(values - exact)
    even = neighbours % 2 == 0
    best = np.where(distance[0] == distance[1], np.where(even[0], 0, 1), np.argmin(distance, 0))
    return np.take_along_axis(neighbours, best[None], 0)[0].astype(np.uint16)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma_multiplies_fragments(kind: str, emulated) -> None:
    """The layouts of the PTX ISA, with registers filled by their formulas here."""
    A, B, C = (
        halves(16, 16).astype(np.float32),
        halves(16, 8).astype(np.float32),
        np.zeros((16, 8), np.float32),
    )
    C[:] = np.random.default_rng(2).normal(size=C.shape)
    if kind == "bf16":
        A, B = ((m.view(np.uint32) & 0xFFFF0000).view(np.float32) for m in (A, B))

    def bits(m: np.ndarray) -> np.ndarray:
        if kind == "bf16":
            return (m.view(np.uint32) >> 16).astype(np.uint32)
        return m.astype(np.float16).view(np.uint16).astype(np.uint32)

    lane = np.arange(32)
    row, pair = lane // 4, lane % 4 * 2
    a = np.stack(
        [
            bits(A)[row + 8 * (i % 2), pair + 8 * (i // 2)]
            | bits(A)[row + 8 * (i % 2), pair + 8 * (i // 2) + 1] << 16
            for i in range(4)
        ],
        1,
    )
    b = np.stack([bits(B)[pair + 8 * i, row] | bits(B)[pair + 8 * i + 1, row] << 16 for i in range(2)], 1)
    c = np.stack([C[row + 8 * (i // 2), pair + i % 2] for i in range(4)], 1)
    d = np.zeros((32, 4), np.float32)
    body = (
        f'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "\n'
        '"{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"\n'
        ': "=f"(d[4*t]), "=f"(d[4*t+1]), "=f"(d[4*t+2]), "=f"(d[4*t+3])\n'
        ': "r"(a[4*t]), "r"(a[4*t+1]), "r"(a[4*t+2]), "r"(a[4*t+3]), "r"(b[2*t]), "r"(b[2*t+1]),\n'
        '"f"(c[4*t]), "f"(c[4*t+1]), "f"(c[4*t+2]), "f"(c[4*t+3]));'
    )
    arrays = {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b), "c": np.ascontiguousarray(c)}
    launch(emulated, body, {**arrays, "d": d})
    D = np.zeros((16, 8), np.float32)
    for i in range(4):
        D[row + 8 * (i // 2), pair + i % 2] = d[:, i]
    np.testing.assert_allclose(D, A @ B + C, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "trans"), [(1, ""), (2, ""), (4, ""), (4, ".trans")])
def test_ldmatrix(count: int, trans: str, emulated) -> None:
    """Lane i names row i of the stacked matrices; they lie in reverse here."""
    m = np.random.default_rng(3).integers(0, 2**16, (8 * count, 8), dtype=np.uint16)
    d = np.zeros((32, count), np.uint32)
    outputs = ", ".join(f'"=r"(d[{count}*t+{i}])' for i in range(count))
    names = ", ".join(f"%{i}" for i in range(count))
    rows = 8 * count
    body = (
        "__shared__ alignas(16) unsigned short s[256];\n"
        f"if (t < {rows}) for (int i = 0; i < 8; ++i) s[({rows - 1} - t) * 8 + i] = m[t * 8 + i];\n"
        "__syncthreads();\n"
        f'asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%{count}];" : {outputs} '
        f': "r"((uint32_t)__cvta_generic_to_shared(s + ({rows - 1} - t % {rows}) * 8)));'
    )
    launch(emulated, body, {"m": m, "d": d})
    lane = np.arange(32)
    for i in range(count):
        one = m[8 * i : 8 * i + 8].astype(np.uint32)
        one = one.T if trans else one
        np.testing.assert_array_equal(
            d[:, i], one[lane // 4, lane % 4 * 2] | one[lane // 4, lane % 4 * 2 + 1] << 16
        )


def test_copies_land_when_they_are_waited_for_and_zeros_fill(emulated) -> None:
    x, y = words(32), np.zeros(32, np.uint32)
    body = (
        "__shared__ alignas(64) uint32_t s[32];\n"
        'asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : '
        '"r"((uint32_t)__cvta_generic_to_shared(s + t)), "l"(x + t), "r"(t % 2 * 4) : "memory");\n'
        'asm volatile("cp.async.commit_group;" : : );\n'
        'asm volatile("cp.async.commit_group;" : : );\n'
        'asm volatile("cp.async.wait_group 1;" : : : "memory");\n'
        "y[t] = s[t];"
    )
    launch(emulated, body, {"x": x, "y": y})
    np.testing.assert_array_equal(y, np.where(np.arange(32) % 2, x, 0))


def test_scopes_registers_and_predicates(emulated) -> None:
    a, d = words(32), np.zeros(32, np.uint32)
    body = (
        'asm volatile("{ .reg .pred p; .reg .b32 r; setp.ne.b32 p, %2, 0; mov.b32 r, %1; @p mov.b32 %0, r; '
        '@!p mov.b32 %0, 7; }" : "=r"(d[t]) : "r"(a[t]), "r"(t % 3));'
    )
    launch(emulated, body, {"a": a, "d": d})
    np.testing.assert_array_equal(d, np.where(np.arange(32) % 3, a, 7))


def test_votes(emulated) -> None:
    d = np.zeros((32, 3), np.uint32)
    body = (
        "d[3*t] = __ballot_sync(0xffffffff, t % 3 == 0); d[3*t+1] = __any_sync(0xffffffff, t == 5); "
        "d[3*t+2] = __all_sync(0xffffffff, t != 5);"
    )
    launch(emulated, body, {"d": d})
    ballot = sum(1 << i for i in range(0, 32, 3))
    assert (d == [ballot, 1, 0]).all()


@pytest.mark.parametrize("direction", ["up", "down", "xor", ""])
def test_shuffles_within_halves_of_a_warp(direction: str, emulated) -> None:
    x, y = words(32), np.zeros(32, np.uint32)
    name = f"__shfl_{direction}_sync" if direction else "__shfl_sync"
    launch(emulated, f"y[t] = {name}(0xffffffff, x[t], 3, 16);", {"x": x, "y": y})
    lane = np.arange(32)
    start = lane // 16 * 16
    source = {"up": lane - 3, "down": lane + 3, "xor": lane ^ 3, "": start + 3}[direction]
    inside = (source >= start) & (source < start + 16)
    np.testing.assert_array_equal(y, np.where(inside, x[np.where(inside, source, 0)], x))


def test_some_lanes_shuffle_more_often_than_others(emulated) -> None:
    """What others have still to read of a common shuffle is not disturbed by those that go on by themselves."""
    x, y = words(32), np.zeros((32, 3), np.uint32)
    body = (
        "if (t < 16) y[3*t] = __shfl_xor_sync(0xffff, x[t], 1); y[3*t+1] = __shfl_xor_sync(0xffffffff, x[t], 31); "
        "if (t < 16) for (int i = 0; i < 3; ++i) y[3*t+2] = __shfl_xor_sync(0xffff, x[t] + i, 2);"
    )
    launch(emulated, body, {"x": x, "y": y})
    lane = np.arange(32)
    np.testing.assert_array_equal(y[:, 1], x[lane ^ 31])
    np.testing.assert_array_equal(y[:16, 0], x[lane[:16] ^ 1])
    np.testing.assert_array_equal(y[:16, 2], x[lane[:16] ^ 2] + np.uint32(2))


@pytest.mark.parametrize(
    "instruction",
    [
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %0}, {%0, %0, %0, %0}, {%0, %0}, {%0, %0, %0, %0};",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %0}, [%1];",
    ],
)
def test_unknown_forms_are_named(instruction: str, emulated) -> None:
    with pytest.raises(UnsupportedError, match="does not know a form") as error:
        launch(emulated, f'asm volatile("{instruction}" : "=r"(d[t]) : "r"(d[t]));', {"d": words(32)})
    assert instruction.split()[0] in error.value.why


@pytest.mark.parametrize(
    "instruction", ["mbarrier.inval.shared.b64 [%1];", "mul.lo.u32 %0, %1, 3;", "cp.async.bulk.commit_group;"]
)
def test_unknown_instructions_are_named(instruction: str, emulated) -> None:
    with pytest.raises(UnsupportedError, match="does not know an instruction") as error:
        launch(emulated, f'asm volatile("{instruction}" : "=r"(d[t]) : "r"(d[t]));', {"d": words(32)})
    assert instruction.split()[0].rstrip(";") in error.value.why


def test_unknown_functions_are_named(emulated) -> None:
    with pytest.raises(TargetError, match="does not compile") as error:
        launch(emulated, "d[t] = __no_such_intrinsic(t);", {"d": words(32)})
    assert "__no_such_intrinsic" in error.value.why


def test_metal_pointers_without_an_address_space_are_refused(emulated) -> None:
    body = "y_ptr[threadIdx] = *(uint*)(a_ptr + threadIdx);"
    with pytest.raises(UnsupportedError, match="says what memory it points into") as error:
        emulated(METAL_FRAME.replace("BODY", body), "metal")
    assert error.value.why == "(uint*)"
    for said in ("(device uint*)", "(volatile device uint*)"):
        emulated(METAL_FRAME.replace("BODY", body.replace("(uint*)", said)), "metal")


def test_unknown_shared_declarations_are_named(emulated) -> None:
    with pytest.raises(UnsupportedError, match="shared memory"):
        launch(emulated, "__shared__ struct { int a; } s;", {"d": words(32)})


def test_a_launch_that_no_device_would_take_is_refused(emulated) -> None:
    d = words(32)
    kernels = emulated(FRAME.format(parameters="uint32_t* d", body="d[t] = t;"))
    with pytest.raises(BundleError) as error:
        kernels.launch("k", [d], (1, 1, 1), (32, 64, 1))
    assert "2048 threads" in error.value.why
    with pytest.raises(BundleError) as error:
        kernels.launch("other", [d], (1, 1, 1), (32, 1, 1))
    assert "no kernel other" in error.value.why
    with pytest.raises(BundleError) as error:
        kernels.launch("k", [d], (1, 1, 1), (32, 1, 1), 2**20)
    assert "dynamic shared memory" in error.value.why
    with pytest.raises(BundleError) as error:
        kernels.launch("k", [d], (0, 1, 1), (32, 1, 1))
    assert "no blocks" in error.value.why


METAL_FRAME = """// Function: k
#include <metal_stdlib>
using namespace metal;
kernel void k(  device float* a_ptr [[ buffer(0) ]],
  device float* b_ptr [[ buffer(1) ]],
  device float* y_ptr [[ buffer(2) ]],
  uint threadIdx [[thread_position_in_threadgroup]]
) {
BODY
}
"""


def test_sums_of_a_simd_group_and_dot_products(emulated) -> None:
    body = "y_ptr[threadIdx] = simd_sum(dot(((device float4*)a_ptr)[threadIdx], ((device float4*)b_ptr)[threadIdx]));"
    a, b = halves(2, 256).astype(np.float32)
    y = np.zeros(64, np.float32)
    emulated(METAL_FRAME.replace("BODY", body), "metal").launch("k", [a, b, y], (1, 1, 1), (64, 1, 1))
    expected = (a.astype(float) * b).reshape(2, -1).sum(1)
    np.testing.assert_allclose(y, np.repeat(expected, 32), rtol=1e-4, atol=1e-4)


def test_whether_any_lane_of_a_simd_group_holds(emulated) -> None:
    body = "y_ptr[threadIdx] = simd_any(a_ptr[threadIdx] > b_ptr[threadIdx]);"
    a, b, y = np.zeros(96, np.float32), np.zeros(96, np.float32), np.full(96, 7, np.float32)
    a[40], b[70] = 1, 1
    emulated(METAL_FRAME.replace("BODY", body), "metal").launch("k", [a, b, y], (1, 1, 1), (96, 1, 1))
    np.testing.assert_array_equal(y, np.repeat([0, 1, 0], 32))


@pytest.mark.parametrize(
    ("kind", "dtype", "rounding"), [("float", np.float32, 1e-5), ("half", np.float16, 2.0**-11)]
)
def test_simdgroup_matrices(emulated, kind: str, dtype: type, rounding: float) -> None:
    body = """
  simdgroup_float8x8 a[1], b[1], c[1];
  c[0] = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_load(a[0], a_ptr, 16, 0, false);
  simdgroup_load(b[0], b_ptr, 8, 0, true);
  simdgroup_multiply_accumulate(c[0], a[0], b[0], c[0]);
  simdgroup_store(c[0], y_ptr, 8, 0, true);
"""
    a, b = halves(8, 16).astype(dtype), halves(8, 8).astype(dtype)
    y = np.zeros((8, 8), dtype)
    source = METAL_FRAME.replace("BODY", body).replace("float", kind)
    emulated(source, "metal").launch("k", [a, b, y], (1, 1, 1), (32, 1, 1))
    expected = a[:, :8].astype(float) @ b.T.astype(float) + 1
    np.testing.assert_allclose(y.T, expected, rtol=rounding, atol=1e-5)
