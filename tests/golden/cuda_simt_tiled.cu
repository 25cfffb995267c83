extern "C" __global__ void __launch_bounds__(256) mm_kernel_2(uchar* __restrict__ qweight_ptr, half* __restrict__ scales_ptr, half* __restrict__ x_ptr, half* __restrict__ y_ptr, uchar* __restrict__ zeros_ptr, int64_t cse_v1, int64_t m) {
  alignas(64) float sums_ptr[16];
  __shared__ alignas(64) float x_tile_ptr[2048];
  __shared__ alignas(64) float w_tile_ptr[2048];
  alignas(64) float x_own_ptr[4];
  alignas(64) float w_own_ptr[4];
  alignas(64) half x_run_ptr[8];
  alignas(64) uint raw_ptr[1];
  alignas(64) float scale_ptr[1];
  alignas(64) float zero_ptr[1];
  sums_ptr[0] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[1] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[2] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[3] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[4] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[5] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[6] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[7] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[8] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[9] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[10] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[11] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[12] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[13] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[14] = 0x0p+0f/*0.000000e+00*/;
  sums_ptr[15] = 0x0p+0f/*0.000000e+00*/;
  int64_t cse_v2 = (((int64_t)blockIdx.y) * (int64_t)64);
  int64_t cse_v3 = ((int64_t)((int)threadIdx.x));
  int cse_v4 = (((int)threadIdx.x) & 15);
  for (int v = 0; v < 2; ++v) {
    int64_t cse_v5 = (((min(((((int64_t)blockIdx.y) * (int64_t)64) + (((int64_t)((int)threadIdx.x)) >> (int64_t)2)), cse_v1) * (int64_t)64) + (((int64_t)v) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8));
    *(half4*)(x_run_ptr + 0) = *(half4*)(x_ptr + (((min(((((int64_t)blockIdx.y) * (int64_t)64) + (((int64_t)((int)threadIdx.x)) >> (int64_t)2)), cse_v1) * (int64_t)64) + (((int64_t)v) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8)));
    *(half4*)(x_run_ptr + 4) = *(half4*)(x_ptr + ((((min(((((int64_t)blockIdx.y) * (int64_t)64) + (((int64_t)((int)threadIdx.x)) >> (int64_t)2)), cse_v1) * (int64_t)64) + (((int64_t)v) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8)) + (int64_t)4));
    int cse_v6 = (((int)threadIdx.x) & 3);
    int cse_v7 = (((int)threadIdx.x) >> 2);
    int cse_v8 = (((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2));
    x_tile_ptr[(((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2))] = ((float)x_run_ptr[0]);
    int cse_v9 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64)] = ((float)x_run_ptr[1]);
    int cse_v10 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128)] = ((float)x_run_ptr[2]);
    int cse_v11 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192)] = ((float)x_run_ptr[3]);
    int cse_v12 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256)] = ((float)x_run_ptr[4]);
    int cse_v13 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320)] = ((float)x_run_ptr[5]);
    int cse_v14 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384)] = ((float)x_run_ptr[6]);
    int cse_v15 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448);
    x_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448)] = ((float)x_run_ptr[7]);
    int cse_v16 = min((((int)threadIdx.x) >> 2), 15);
    raw_ptr[0] = ((uint*)qweight_ptr)[(((min((((int)threadIdx.x) >> 2), 15) * 8) + (v * 4)) + (((int)threadIdx.x) & 3))];
    int cse_v17 = ((min((((int)threadIdx.x) >> 2), 15) * 2) + v);
    scale_ptr[0] = ((float)scales_ptr[((min((((int)threadIdx.x) >> 2), 15) * 2) + v)]);
    zero_ptr[0] = ((float)zeros_ptr[((min((((int)threadIdx.x) >> 2), 15) * 2) + v)]);
    w_tile_ptr[(((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2))] = ((((float)((raw_ptr[0] >> (uint)0) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64)] = ((((float)((raw_ptr[0] >> (uint)4) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128)] = ((((float)((raw_ptr[0] >> (uint)8) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192)] = ((((float)((raw_ptr[0] >> (uint)12) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256)] = ((((float)((raw_ptr[0] >> (uint)16) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320)] = ((((float)((raw_ptr[0] >> (uint)20) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384)] = ((((float)((raw_ptr[0] >> (uint)24) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    w_tile_ptr[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448)] = ((((float)((raw_ptr[0] >> (uint)28) & (uint)15)) - zero_ptr[0]) * scale_ptr[0]);
    __syncthreads();
    for (int v_1 = 0; v_1 < 32; ++v_1) {
      int cse_v18 = (v_1 * 64);
      *(float4*)(x_own_ptr + 0) = *(float4*)(x_tile_ptr + ((v_1 * 64) + ((((int)threadIdx.x) >> 4) * 4)));
      *(float4*)(w_own_ptr + 0) = *(float4*)(w_tile_ptr + ((v_1 * 64) + ((((int)threadIdx.x) & 15) * 4)));
      sums_ptr[0] = (sums_ptr[0] + (x_own_ptr[0] * w_own_ptr[0]));
      sums_ptr[1] = (sums_ptr[1] + (x_own_ptr[0] * w_own_ptr[1]));
      sums_ptr[2] = (sums_ptr[2] + (x_own_ptr[0] * w_own_ptr[2]));
      sums_ptr[3] = (sums_ptr[3] + (x_own_ptr[0] * w_own_ptr[3]));
      sums_ptr[4] = (sums_ptr[4] + (x_own_ptr[1] * w_own_ptr[0]));
      sums_ptr[5] = (sums_ptr[5] + (x_own_ptr[1] * w_own_ptr[1]));
      sums_ptr[6] = (sums_ptr[6] + (x_own_ptr[1] * w_own_ptr[2]));
      sums_ptr[7] = (sums_ptr[7] + (x_own_ptr[1] * w_own_ptr[3]));
      sums_ptr[8] = (sums_ptr[8] + (x_own_ptr[2] * w_own_ptr[0]));
      sums_ptr[9] = (sums_ptr[9] + (x_own_ptr[2] * w_own_ptr[1]));
      sums_ptr[10] = (sums_ptr[10] + (x_own_ptr[2] * w_own_ptr[2]));
      sums_ptr[11] = (sums_ptr[11] + (x_own_ptr[2] * w_own_ptr[3]));
      sums_ptr[12] = (sums_ptr[12] + (x_own_ptr[3] * w_own_ptr[0]));
      sums_ptr[13] = (sums_ptr[13] + (x_own_ptr[3] * w_own_ptr[1]));
      sums_ptr[14] = (sums_ptr[14] + (x_own_ptr[3] * w_own_ptr[2]));
      sums_ptr[15] = (sums_ptr[15] + (x_own_ptr[3] * w_own_ptr[3]));
    }
    __syncthreads();
  }
  int64_t cse_v19 = ((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4));
  int64_t cse_v20 = ((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4));
  if ((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4))] = ((half)sums_ptr[0]);
  }
  if ((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)1)] = ((half)sums_ptr[1]);
  }
  if ((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)2)] = ((half)sums_ptr[2]);
  }
  if ((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)3)] = ((half)sums_ptr[3]);
  }
  int64_t cse_v21 = (((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)1);
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)1) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)16)] = ((half)sums_ptr[4]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)1) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)17)] = ((half)sums_ptr[5]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)1) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)18)] = ((half)sums_ptr[6]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)1) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)19)] = ((half)sums_ptr[7]);
  }
  int64_t cse_v22 = (((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)2);
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)2) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)32)] = ((half)sums_ptr[8]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)2) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)33)] = ((half)sums_ptr[9]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)2) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)34)] = ((half)sums_ptr[10]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)2) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)35)] = ((half)sums_ptr[11]);
  }
  int64_t cse_v23 = (((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)3);
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)3) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)48)] = ((half)sums_ptr[12]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)3) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)49)] = ((half)sums_ptr[13]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)3) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)50)] = ((half)sums_ptr[14]);
  }
  if (((((((int64_t)blockIdx.y) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)4) * (int64_t)4)) + (int64_t)3) < m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((int64_t)blockIdx.y) * (int64_t)1024) + (((int64_t)((int)threadIdx.x)) * (int64_t)4)) + (int64_t)51)] = ((half)sums_ptr[15]);
  }
}
