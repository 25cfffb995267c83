kernel void attend_kernel_1(  device int* last_page_length_ptr [[ buffer(0) ]],
  device float* log_sum_ptr [[ buffer(1) ]],
  device half* output_ptr [[ buffer(2) ]],
  device int* page_indptr_ptr [[ buffer(3) ]],
  device float* split_states_ptr [[ buffer(4) ]],
  device float* split_sums_ptr [[ buffer(5) ]],
  constant attend_kernel_1_args_t& arg [[ buffer(6) ]],
  uint2 blockIdx [[threadgroup_position_in_grid]],
  uint2 threadIdx [[thread_position_in_threadgroup]]
) {
  thread int first[1];
  thread int length[1];
  thread int share[1];
  thread float maximum[1];
  thread float total[1];
  thread float sums[1];
  thread int at[1];
  thread float weight[1];
  thread float divisor[1];
  int cse_v1 = ((((int)blockIdx.x) * 2) + ((int)blockIdx.y));
  first[0] = (((((int)blockIdx.x) * 2) + ((int)blockIdx.y)) * arg.cse_v2[0]);
  int cse_v3 = (((int)blockIdx.x) + arg.page_indptr_offset[0]);
  int cse_v4 = ((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1);
  int condval;
  if (0 < (page_indptr_ptr[((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1)] - page_indptr_ptr[(((int)blockIdx.x) + arg.page_indptr_offset[0])])) {
    condval = ((((page_indptr_ptr[((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1)] * 16) + last_page_length_ptr[(((int)blockIdx.x) + arg.last_page_length_offset[0])]) - (page_indptr_ptr[(((int)blockIdx.x) + arg.page_indptr_offset[0])] * 16)) - 16);
  } else {
    condval = 0;
  }
  length[0] = condval;
  share[0] = (((length[0] + arg.cse_v2[0]) - 1) / arg.cse_v2[0]);
  share[0] = (max(((share[0] + 15) / 16), 4) * 16);
  length[0] = max((((length[0] + share[0]) - 1) / share[0]), 1);
  maximum[0] = -1.000000e+30f;
  total[0] = 0.000000e+00f;
  for (int v = 0; v < length[0]; ++v) {
    maximum[0] = max(maximum[0], split_states_ptr[((v * 2) + (first[0] * 2))]);
  }
  sums[0] = 0.000000e+00f;
  for (int v_1 = 0; v_1 < length[0]; ++v_1) {
    at[0] = (first[0] + v_1);
    weight[0] = exp2((split_states_ptr[(at[0] * 2)] - maximum[0]));
    total[0] = (total[0] + (weight[0] * split_states_ptr[((at[0] * 2) + 1)]));
    sums[0] = (sums[0] + (weight[0] * split_sums_ptr[((at[0] * 16) + min(((int)threadIdx.x), 15))]));
  }
  if (((int)threadIdx.x) < 16) {
    float condval_1;
    if (0.000000e+00f < total[0]) {
      condval_1 = total[0];
    } else {
      condval_1 = 1.000000e+00f;
    }
    divisor[0] = condval_1;
    output_ptr[(((((int)blockIdx.x) * 32) + (((int)blockIdx.y) * 16)) + ((int)threadIdx.x))] = ((half)(sums[0] / divisor[0]));
    if (((int)threadIdx.x) == 0) {
      float condval_2;
      if (0.000000e+00f < total[0]) {
        condval_2 = (maximum[0] + log2(divisor[0]));
      } else {
        condval_2 = -1.000000e+30f;
      }
      log_sum_ptr[((((int)blockIdx.x) * 2) + ((int)blockIdx.y))] = condval_2;
    }
  }
}


// Function: attend_kernel_2
#include <metal_stdlib>
using namespace metal;

union __TVMArgUnion {
 int v_int[2];
};

struct attend_kernel_2_args_t {
  int batch[2];
  int cse_v5[2];
  float cse_v6[2];
  long cse_v7;
  int last_page_length_offset[2];
  int page_indptr_offset[2];
  int page_values_offset[2];
};
