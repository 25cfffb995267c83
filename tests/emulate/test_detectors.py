"""Each fault that real hardware punishes, planted; beside it the same kernel without the fault."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from awq_tvm.emulate import EmulatedKernels, build_kernels
from awq_tvm.errors import BundleError

METAL = """// Function: {name}
#include <metal_stdlib>
using namespace metal;
struct {name}_args_t {{
  long m;
}};
kernel void {name}(  device float* x_ptr [[ buffer(0) ]],
  device float* y_ptr [[ buffer(1) ]],
  constant {name}_args_t& arg [[ buffer(2) ]],
  uint blockIdx [[threadgroup_position_in_grid]],
  uint threadIdx [[thread_position_in_threadgroup]]
) {{
{body}
}}
"""

CUDA = """extern "C" __global__ void __launch_bounds__(64) {name}(float* x_ptr, float* y_ptr, int64_t m) {{
{body}
}}
"""

SHARED = "__shared__ alignas(64) float s[64];\n"
BYTES = (
    "__shared__ alignas(64) unsigned char b[64];\nb[threadIdx.x] = 0; __syncthreads(); b[threadIdx.x] = 1; "
)
COPY = (
    'asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : '
    '"r"((uint32_t)__cvta_generic_to_shared(s + {at})), "l"(x_ptr + {at}) : "memory");\n'
    'asm volatile("cp.async.commit_group;" : : );\n'
)
MATRIX = (
    "threadgroup float s[64];\ns[threadIdx] = 0; threadgroup_barrier(mem_flags::mem_threadgroup);\n"
    "if (threadIdx < 32) {{ simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1); "
)
WAIT = 'asm volatile("cp.async.wait_group 0;" : : : "memory");\n'


@dataclass(frozen=True)
class Planted:
    """A kernel body with ``{0}`` where the fault is: what makes it right, what makes it wrong, what is said then."""

    body: str
    right: str
    wrong: str
    said: str
    dialect: str = "cuda"


T = "threadIdx.x"
FAULTS = {
    "read before the barrier": Planted(
        SHARED + f"s[{T}] = x_ptr[{T}]; {{0}} y_ptr[{T}] = s[63 - {T}];",
        "__syncthreads();",
        "",
        "uninitialised",
    ),
    "missing barrier between write and read": Planted(
        SHARED + f"s[{T}] = 0; __syncthreads(); s[{T}] = x_ptr[{T}]; {{0}} y_ptr[{T}] = s[63 - {T}];",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "missing barrier between read and write": Planted(
        SHARED
        + f"s[{T}] = x_ptr[{T}]; __syncthreads(); float v = s[63 - {T}]; {{0}} s[{T}] = v; y_ptr[{T}] = v;",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "two writers": Planted(
        SHARED + f"s[{{0}}] = x_ptr[{T}]; __syncthreads(); y_ptr[{T}] = s[{T} / 2];",
        T,
        f"{T} / 2",
        "missing barrier",
    ),
    "a barrier of the warp is none of the block": Planted(
        SHARED + f"s[{T}] = 0; __syncthreads(); s[{T}] = x_ptr[{T}]; __syncwarp(); y_ptr[{T}] = s[{{0}}];",
        f"{T} ^ 1",
        f"63 - {T}",
        "missing barrier",
    ),
    "a shuffle orders no memory": Planted(
        SHARED + f"s[{T}] = 0; __syncthreads(); s[{T}] = x_ptr[{T}]; {{0}} y_ptr[{T}] = s[{T} ^ 1];",
        "__syncwarp();",
        "float v = __shfl_xor_sync(0xffffffff, x_ptr[0], 1);",
        "missing barrier",
    ),
    "uninitialised shared memory": Planted(
        SHARED + f"if ({T} < {{0}}) s[{T}] = x_ptr[{T}]; __syncthreads(); y_ptr[{T}] = s[{T}];",
        "64",
        "63",
        "uninitialised",
    ),
    "beyond a shared array": Planted(
        SHARED + f"s[{T} + {{0}}] = x_ptr[{T}]; __syncthreads(); y_ptr[{T}] = s[{T}];",
        "0",
        "1",
        "outside its arrays",
    ),
    "beyond dynamic shared memory": Planted(
        f"extern __shared__ __align__(64) float d[];\nd[{T} + {{0}}] = x_ptr[{T}]; y_ptr[{T}] = d[{T} + {{0}}];",
        "0",
        "1",
        "outside its arrays",
    ),
    "read beyond a buffer": Planted(f"y_ptr[{T}] = x_ptr[{T} + {{0}}];", "0", "1", "out of bounds"),
    "write before a buffer": Planted(f"y_ptr[{T} - {{0}}] = x_ptr[{T}];", "0", "1", "out of bounds"),
    "misaligned vector": Planted(
        f"if ({T} < 8) *(float4*)(y_ptr + {T} * 4) = *(float4*)(x_ptr + {T} * 4 + {{0}});",
        "0",
        "1",
        "misaligned",
    ),
    "misaligned pair": Planted(
        f"if ({T} < 8) *(float2*)(y_ptr + {T} * 2) = *(float2*)(x_ptr + {T} * 2 + {{0}});",
        "0",
        "1",
        "misaligned",
    ),
    "divergent barrier": Planted(
        f"if ({T} < {{0}}) __syncthreads();\ny_ptr[{T}] = 1;", "64", "40", "divergent"
    ),
    "different barriers": Planted(
        f"if ({T} < {{0}}) {{{{\n__syncthreads();\n}}}} else {{{{\n__syncthreads();\n}}}}\ny_ptr[{T}] = 1;",
        "64",
        "32",
        "different barriers",
    ),
    "a lane is missing": Planted(
        f"if ({T} % 32 < {{0}}) y_ptr[{T}] = __shfl_down_sync(0xffffffff, x_ptr[{T}], 1, 32);",
        "32",
        "31",
        "divergent warp-wide operation",
    ),
    "a lane outside the mask": Planted(
        f"y_ptr[{T}] = __shfl_sync({{0}}, x_ptr[{T}], 0);", "0xffffffff", "0x7fffffff", "not in the mask"
    ),
    "copy not waited for": Planted(
        SHARED + COPY.format(at=T) + f"{{0}} y_ptr[{T}] = s[{T}];", WAIT, "", "asynchronous copy"
    ),
    "another thread's copy without a barrier": Planted(
        SHARED
        + f"s[{T}] = 0; __syncthreads();"
        + COPY.format(at=T)
        + WAIT
        + f"{{0}} y_ptr[{T}] = s[63 - {T}];",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "copy over what others read": Planted(
        SHARED
        + f"s[{T}] = x_ptr[{T}]; __syncthreads(); y_ptr[{T}] = s[63 - {T}]; {{0}}"
        + COPY.format(at=T)
        + WAIT,
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "misaligned copy": Planted(
        SHARED
        + f"if ({T} == 0) {{{{ "
        + COPY.replace("ca.shared.global [%0], [%1], 4", "cg.shared.global [%0], [%1], 16").format(at="{0}")
        + "}}",
        "4",
        "1",
        "misaligned",
    ),
    "missing barrier in global memory": Planted(
        f"y_ptr[{T}] = x_ptr[{T}]; {{0}} float v = y_ptr[{T} ^ 32]; __syncthreads(); y_ptr[{T}] = v;",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "another block's result": Planted(
        f"y_ptr[blockIdx.x * 32 + {T} / 2] = 1; __syncthreads(); x_ptr[0] = y_ptr[{{0}}];",
        f"blockIdx.x * 32 + {T} / 2",
        f"{T} / 2",
        "another block wrote",
    ),
    "the byte beside one's own": Planted(BYTES + f"y_ptr[{T}] = b[{{0}}];", T, f"{T} ^ 1", "missing barrier"),
    "a byte over what another read": Planted(
        BYTES + f"__syncthreads(); y_ptr[{T}] = b[{{0}}]; b[{T}] = 2;", T, f"{T} ^ 1", "missing barrier"
    ),
    "two bytes that were written one by one": Planted(
        BYTES + f"{{0}} y_ptr[{T}] = ((unsigned short*)b)[{T} / 2];",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "one byte of two that were written together": Planted(
        BYTES
        + f"__syncthreads(); if ({T} < 32) ((unsigned short*)b)[{T}] = {T}; {{0}} y_ptr[{T}] = b[63 - {T}];",
        "__syncthreads();",
        "",
        "missing barrier",
    ),
    "a byte that nobody wrote": Planted(
        "__shared__ alignas(64) unsigned char b[64];\n"
        + f"if ({T} != {{0}}) b[{T}] = 1; __syncthreads(); y_ptr[{T}] = b[{T}];",
        "64",
        "63",
        "uninitialised",
    ),
    "a matrix that the warp's own lanes wrote": Planted(
        SHARED
        + f"s[{T}] = x_ptr[{T}]; __syncthreads(); s[{T}] = 1; {{0}} uint32_t r[1];\n"
        + 'asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%0}}, [%1];" : "=r"(r[0]) : '
        + f'"r"((uint32_t)__cvta_generic_to_shared(s + {T} / 32 * 32 + {T} % 8 * 4)));\ny_ptr[{T}] = r[0];',
        "__syncwarp();",
        "",
        "missing barrier",
    ),
    "lanes with another ldmatrix": Planted(
        SHARED
        + f"s[{T}] = 1; __syncthreads(); uint32_t r[2], at = (uint32_t)__cvta_generic_to_shared(s + {T} % 16 * 4);\n"
        + f"if ({T} % 32 < {{0}}) {{{{ "
        + 'asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%0}}, [%1];" : "=r"(r[0]) : "r"(at)); }}'
        + ' else asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%0, %1}}, [%2];" : '
        + '"=r"(r[0]), "=r"(r[1]) : "r"(at));',
        "32",
        "16",
        "different ldmatrix",
    ),
    "metal: missing barrier": Planted(
        "threadgroup float s[64];\ns[threadIdx] = 0; threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "s[threadIdx] = x_ptr[threadIdx];\n{0}\ny_ptr[threadIdx] = s[63 - threadIdx];",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        "missing barrier",
        "metal",
    ),
    "metal: a lane is missing": Planted(
        "if (threadIdx % 32 < {0}) y_ptr[threadIdx] = simd_shuffle_down(x_ptr[threadIdx], 1);\n"
        "else threadgroup_barrier(mem_flags::mem_threadgroup);",
        "32",
        "16",
        "divergent",
        "metal",
    ),
    "metal: a lane is missing from a sum": Planted(
        "if (threadIdx % 32 < {0}) y_ptr[threadIdx] = simd_sum(x_ptr[threadIdx]);\n"
        "else threadgroup_barrier(mem_flags::mem_threadgroup);",
        "32",
        "31",
        "divergent",
        "metal",
    ),
    "metal: a matrix's elements before a barrier": Planted(
        MATRIX + "simdgroup_store(m, s, 8);\n{0}\ny_ptr[threadIdx] = s[63 - threadIdx]; }}",
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        "missing barrier",
        "metal",
    ),
    "metal: a matrix that the lanes wrote": Planted(
        MATRIX + "s[threadIdx] = 1;\n{0}\nsimdgroup_load(m, s, 8); simdgroup_store(m, y_ptr, 8); }}",
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        "missing barrier",
        "metal",
    ),
    "metal: a matrix of uninitialised memory": Planted(
        "threadgroup float s[64];\ns[threadIdx % {0}] = 1; threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "simdgroup_float8x8 m; simdgroup_load(m, s, 8); if (threadIdx < 32) simdgroup_store(m, y_ptr, 8);",
        "64",
        "63",
        "uninitialised",
        "metal",
    ),
    "metal: a matrix beyond a buffer": Planted(
        "simdgroup_float8x8 m; simdgroup_load(m, x_ptr + {0}, 8); if (threadIdx < 32) simdgroup_store(m, y_ptr, 8);",
        "0",
        "1",
        "out of bounds",
        "metal",
    ),
    "metal: lanes with products of different types": Planted(
        "auto h = make_filled_simdgroup_matrix<half, 8, 8>(1); simdgroup_float8x8 d, f = make_filled_simdgroup_matrix"
        "<float, 8, 8>(1); if (threadIdx % 32 < {0}) simdgroup_multiply_accumulate(d, f, f, f);\n"
        "else simdgroup_multiply_accumulate(d, h, h, f);",
        "32",
        "31",
        "divergent warp-wide operation",
        "metal",
    ),
    "metal: lanes with different matrices": Planted(
        "simdgroup_float8x8 m; simdgroup_load(m, x_ptr + (threadIdx < {0} ? 0 : 1), 7);",
        "64",
        "63",
        "different matrices",
        "metal",
    ),
    "metal: beyond a buffer": Planted(
        "y_ptr[threadIdx] = x_ptr[threadIdx + {0}];", "0", "1", "out of bounds", "metal"
    ),
}


def kernel(name: str, form: str) -> str:
    return f"{form}_{list(FAULTS).index(name)}"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, EmulatedKernels]:
    """Every fault and its right twin, compiled once for each dialect."""
    if shutil.which("g++") is None:
        pytest.skip("kernels run on the CPU through g++, not installed")
    sources = {"cuda": "#include <cuda.h>\n#include <cuda_fp16.h>\n", "metal": ""}
    for name, planted in FAULTS.items():
        for form in ("right", "wrong"):
            frame = CUDA if planted.dialect == "cuda" else METAL
            body = planted.body.format(getattr(planted, form))
            sources[planted.dialect] += frame.format(name=kernel(name, form), body=body)
    return {
        dialect: EmulatedKernels(build_kernels(source, dialect, tmp_path_factory.mktemp(dialect)))
        for dialect, source in sources.items()
    }


def launch(kernels: dict[str, EmulatedKernels], name: str, form: str) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    blocks = 2 if "blockIdx" in FAULTS[name].body else 1
    kernels[FAULTS[name].dialect].launch(kernel(name, form), [x, y, 64], (blocks, 1, 1), (64, 1, 1), 256)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, kernels) -> None:
    with pytest.raises(BundleError, match="went wrong in the emulator") as error:
        launch(kernels, name, "wrong")
    assert FAULTS[name].said in error.value.why
    assert ", 0, 0), thread (" in error.value.why


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_without_the_fault_runs(name: str, kernels) -> None:
    launch(kernels, name, "right")
