kernel void mm_kernel(  device uchar* qweight_ptr [[ buffer(0) ]],
  device half* scales_ptr [[ buffer(1) ]],
  device half* x_ptr [[ buffer(2) ]],
  device half* y_ptr [[ buffer(3) ]],
  device uchar* zeros_ptr [[ buffer(4) ]],
  constant mm_kernel_args_t& arg [[ buffer(5) ]],
  uint2 blockIdx [[threadgroup_position_in_grid]],
  uint2 threadIdx [[thread_position_in_threadgroup]]
) {
  thread float sums[1];
  thread uint4 raw[1];
  thread float scale[1];
  thread float zero[1];
  thread float weights[32];
  thread half4 x_run[8];
  thread float partial[1];
  sums[0] = 0.000000e+00f;
  if (((int)threadIdx.x) < 2) {
    raw[0] = *(device uint4*)(((device uint*)qweight_ptr) + (((((int)blockIdx.x) * 32) + (((int)threadIdx.y) * 8)) + (((int)threadIdx.x) * 4)));
    int cse_v1 = (((((int)blockIdx.x) * 8) + (((int)threadIdx.y) * 2)) + ((int)threadIdx.x));
    scale[0] = ((float)scales_ptr[(((((int)blockIdx.x) * 8) + (((int)threadIdx.y) * 2)) + ((int)threadIdx.x))]);
    zero[0] = ((float)zeros_ptr[(((((int)blockIdx.x) * 8) + (((int)threadIdx.y) * 2)) + ((int)threadIdx.x))]);
    weights[0] = (((float)(((raw[0])[0] >> (uint)0) & (uint)15)) - zero[0]);
    weights[1] = (((float)(((raw[0])[0] >> (uint)4) & (uint)15)) - zero[0]);
    weights[2] = (((float)(((raw[0])[0] >> (uint)8) & (uint)15)) - zero[0]);
    weights[3] = (((float)(((raw[0])[0] >> (uint)12) & (uint)15)) - zero[0]);
    weights[4] = (((float)(((raw[0])[0] >> (uint)16) & (uint)15)) - zero[0]);
    weights[5] = (((float)(((raw[0])[0] >> (uint)20) & (uint)15)) - zero[0]);
    weights[6] = (((float)(((raw[0])[0] >> (uint)24) & (uint)15)) - zero[0]);
    weights[7] = (((float)(((raw[0])[0] >> (uint)28) & (uint)15)) - zero[0]);
    weights[8] = (((float)(((raw[0])[1] >> (uint)0) & (uint)15)) - zero[0]);
    weights[9] = (((float)(((raw[0])[1] >> (uint)4) & (uint)15)) - zero[0]);
    weights[10] = (((float)(((raw[0])[1] >> (uint)8) & (uint)15)) - zero[0]);
    weights[11] = (((float)(((raw[0])[1] >> (uint)12) & (uint)15)) - zero[0]);
    weights[12] = (((float)(((raw[0])[1] >> (uint)16) & (uint)15)) - zero[0]);
    weights[13] = (((float)(((raw[0])[1] >> (uint)20) & (uint)15)) - zero[0]);
    weights[14] = (((float)(((raw[0])[1] >> (uint)24) & (uint)15)) - zero[0]);
    weights[15] = (((float)(((raw[0])[1] >> (uint)28) & (uint)15)) - zero[0]);
    weights[16] = (((float)(((raw[0])[2] >> (uint)0) & (uint)15)) - zero[0]);
    weights[17] = (((float)(((raw[0])[2] >> (uint)4) & (uint)15)) - zero[0]);
    weights[18] = (((float)(((raw[0])[2] >> (uint)8) & (uint)15)) - zero[0]);
    weights[19] = (((float)(((raw[0])[2] >> (uint)12) & (uint)15)) - zero[0]);
    weights[20] = (((float)(((raw[0])[2] >> (uint)16) & (uint)15)) - zero[0]);
    weights[21] = (((float)(((raw[0])[2] >> (uint)20) & (uint)15)) - zero[0]);
    weights[22] = (((float)(((raw[0])[2] >> (uint)24) & (uint)15)) - zero[0]);
    weights[23] = (((float)(((raw[0])[2] >> (uint)28) & (uint)15)) - zero[0]);
    weights[24] = (((float)(((raw[0])[3] >> (uint)0) & (uint)15)) - zero[0]);
    weights[25] = (((float)(((raw[0])[3] >> (uint)4) & (uint)15)) - zero[0]);
    weights[26] = (((float)(((raw[0])[3] >> (uint)8) & (uint)15)) - zero[0]);
    weights[27] = (((float)(((raw[0])[3] >> (uint)12) & (uint)15)) - zero[0]);
    weights[28] = (((float)(((raw[0])[3] >> (uint)16) & (uint)15)) - zero[0]);
    weights[29] = (((float)(((raw[0])[3] >> (uint)20) & (uint)15)) - zero[0]);
    weights[30] = (((float)(((raw[0])[3] >> (uint)24) & (uint)15)) - zero[0]);
    weights[31] = (((float)(((raw[0])[3] >> (uint)28) & (uint)15)) - zero[0]);
    long cse_v2 = ((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32));
    x_run[0] = *(device half4*)(x_ptr + ((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)));
    x_run[1] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)4));
    x_run[2] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)8));
    x_run[3] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)12));
    x_run[4] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)16));
    x_run[5] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)20));
    x_run[6] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)24));
    x_run[7] = *(device half4*)(x_ptr + (((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) * (long)32)) + (long)28));
    partial[0] = 0.000000e+00f;
    partial[0] = (partial[0] + (weights[0] * ((float)(x_run[0])[0])));
    partial[0] = (partial[0] + (weights[1] * ((float)(x_run[0])[1])));
    partial[0] = (partial[0] + (weights[2] * ((float)(x_run[0])[2])));
    partial[0] = (partial[0] + (weights[3] * ((float)(x_run[0])[3])));
    partial[0] = (partial[0] + (weights[4] * ((float)(x_run[1])[0])));
    partial[0] = (partial[0] + (weights[5] * ((float)(x_run[1])[1])));
    partial[0] = (partial[0] + (weights[6] * ((float)(x_run[1])[2])));
    partial[0] = (partial[0] + (weights[7] * ((float)(x_run[1])[3])));
    partial[0] = (partial[0] + (weights[8] * ((float)(x_run[2])[0])));
    partial[0] = (partial[0] + (weights[9] * ((float)(x_run[2])[1])));
    partial[0] = (partial[0] + (weights[10] * ((float)(x_run[2])[2])));
    partial[0] = (partial[0] + (weights[11] * ((float)(x_run[2])[3])));
    partial[0] = (partial[0] + (weights[12] * ((float)(x_run[3])[0])));
    partial[0] = (partial[0] + (weights[13] * ((float)(x_run[3])[1])));
    partial[0] = (partial[0] + (weights[14] * ((float)(x_run[3])[2])));
    partial[0] = (partial[0] + (weights[15] * ((float)(x_run[3])[3])));
    partial[0] = (partial[0] + (weights[16] * ((float)(x_run[4])[0])));
    partial[0] = (partial[0] + (weights[17] * ((float)(x_run[4])[1])));
    partial[0] = (partial[0] + (weights[18] * ((float)(x_run[4])[2])));
    partial[0] = (partial[0] + (weights[19] * ((float)(x_run[4])[3])));
    partial[0] = (partial[0] + (weights[20] * ((float)(x_run[5])[0])));
    partial[0] = (partial[0] + (weights[21] * ((float)(x_run[5])[1])));
    partial[0] = (partial[0] + (weights[22] * ((float)(x_run[5])[2])));
    partial[0] = (partial[0] + (weights[23] * ((float)(x_run[5])[3])));
    partial[0] = (partial[0] + (weights[24] * ((float)(x_run[6])[0])));
    partial[0] = (partial[0] + (weights[25] * ((float)(x_run[6])[1])));
    partial[0] = (partial[0] + (weights[26] * ((float)(x_run[6])[2])));
    partial[0] = (partial[0] + (weights[27] * ((float)(x_run[6])[3])));
    partial[0] = (partial[0] + (weights[28] * ((float)(x_run[7])[0])));
    partial[0] = (partial[0] + (weights[29] * ((float)(x_run[7])[1])));
    partial[0] = (partial[0] + (weights[30] * ((float)(x_run[7])[2])));
    partial[0] = (partial[0] + (weights[31] * ((float)(x_run[7])[3])));
    sums[0] = (sums[0] + (scale[0] * partial[0]));
  }
  sums[0] = (sums[0] + simd_shuffle_down(sums[0], 16));
  sums[0] = (sums[0] + simd_shuffle_down(sums[0], 8));
  sums[0] = (sums[0] + simd_shuffle_down(sums[0], 4));
  sums[0] = (sums[0] + simd_shuffle_down(sums[0], 2));
  sums[0] = (sums[0] + simd_shuffle_down(sums[0], 1));
  if (((int)threadIdx.x) == 0) {
    y_ptr[(((((long)blockIdx.y) * (long)16) + (((long)((int)blockIdx.x)) * (long)4)) + ((long)((int)threadIdx.y)))] = ((half)sums[0]);
  }
}


// Function: mm_kernel_1
#include <metal_stdlib>
using namespace metal;

union __TVMArgUnion {
 int v_int[2];
};

struct mm_kernel_1_args_t {
  long cse_v3;
  long m;
};
