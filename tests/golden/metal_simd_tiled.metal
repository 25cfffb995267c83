kernel void mm_kernel_2(  device uchar* qweight_ptr [[ buffer(0) ]],
  device half* scales_ptr [[ buffer(1) ]],
  device half* x_ptr [[ buffer(2) ]],
  device half* y_ptr [[ buffer(3) ]],
  device uchar* zeros_ptr [[ buffer(4) ]],
  constant mm_kernel_2_args_t& arg [[ buffer(5) ]],
  uint2 blockIdx [[threadgroup_position_in_grid]],
  uint2 threadIdx [[thread_position_in_threadgroup]]
) {
  thread float sums[16];
  threadgroup float x_tile[2048];
  threadgroup float w_tile[2048];
  thread float4 x_own[1];
  thread float4 w_own[1];
  thread half4 x_run[2];
  thread uint raw[1];
  thread float scale[1];
  thread float zero[1];
  sums[0] = 0.000000e+00f;
  sums[1] = 0.000000e+00f;
  sums[2] = 0.000000e+00f;
  sums[3] = 0.000000e+00f;
  sums[4] = 0.000000e+00f;
  sums[5] = 0.000000e+00f;
  sums[6] = 0.000000e+00f;
  sums[7] = 0.000000e+00f;
  sums[8] = 0.000000e+00f;
  sums[9] = 0.000000e+00f;
  sums[10] = 0.000000e+00f;
  sums[11] = 0.000000e+00f;
  sums[12] = 0.000000e+00f;
  sums[13] = 0.000000e+00f;
  sums[14] = 0.000000e+00f;
  sums[15] = 0.000000e+00f;
  long cse_v1 = (((long)blockIdx.y) * (long)64);
  long cse_v2 = ((long)((int)threadIdx.x));
  int cse_v3 = (((int)threadIdx.x) & 15);
  for (int v = 0; v < 2; ++v) {
    long cse_v4 = (((min(((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) >> (long)2)), arg.cse_v5) * (long)64) + (((long)v) * (long)32)) + ((((long)((int)threadIdx.x)) & (long)3) * (long)8));
    x_run[0] = *(device half4*)(x_ptr + (((min(((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) >> (long)2)), arg.cse_v5) * (long)64) + (((long)v) * (long)32)) + ((((long)((int)threadIdx.x)) & (long)3) * (long)8)));
    x_run[1] = *(device half4*)(x_ptr + ((((min(((((long)blockIdx.y) * (long)64) + (((long)((int)threadIdx.x)) >> (long)2)), arg.cse_v5) * (long)64) + (((long)v) * (long)32)) + ((((long)((int)threadIdx.x)) & (long)3) * (long)8)) + (long)4));
    int cse_v6 = (((int)threadIdx.x) & 3);
    int cse_v7 = (((int)threadIdx.x) >> 2);
    int cse_v8 = (((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2));
    x_tile[(((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2))] = ((float)(x_run[0])[0]);
    int cse_v9 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64)] = ((float)(x_run[0])[1]);
    int cse_v10 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128)] = ((float)(x_run[0])[2]);
    int cse_v11 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192)] = ((float)(x_run[0])[3]);
    int cse_v12 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256)] = ((float)(x_run[1])[0]);
    int cse_v13 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320)] = ((float)(x_run[1])[1]);
    int cse_v14 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384)] = ((float)(x_run[1])[2]);
    int cse_v15 = ((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448);
    x_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448)] = ((float)(x_run[1])[3]);
    int cse_v16 = min((((int)threadIdx.x) >> 2), 15);
    raw[0] = ((device uint*)qweight_ptr)[(((min((((int)threadIdx.x) >> 2), 15) * 8) + (v * 4)) + (((int)threadIdx.x) & 3))];
    int cse_v17 = ((min((((int)threadIdx.x) >> 2), 15) * 2) + v);
    scale[0] = ((float)scales_ptr[((min((((int)threadIdx.x) >> 2), 15) * 2) + v)]);
    zero[0] = ((float)zeros_ptr[((min((((int)threadIdx.x) >> 2), 15) * 2) + v)]);
    w_tile[(((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2))] = ((((float)((raw[0] >> (uint)0) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 64)] = ((((float)((raw[0] >> (uint)4) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 128)] = ((((float)((raw[0] >> (uint)8) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 192)] = ((((float)((raw[0] >> (uint)12) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 256)] = ((((float)((raw[0] >> (uint)16) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 320)] = ((((float)((raw[0] >> (uint)20) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 384)] = ((((float)((raw[0] >> (uint)24) & (uint)15)) - zero[0]) * scale[0]);
    w_tile[((((((int)threadIdx.x) & 3) * 512) + (((int)threadIdx.x) >> 2)) + 448)] = ((((float)((raw[0] >> (uint)28) & (uint)15)) - zero[0]) * scale[0]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int v_1 = 0; v_1 < 32; ++v_1) {
      int cse_v18 = (v_1 * 64);
      x_own[0] = *(threadgroup float4*)(x_tile + ((v_1 * 64) + ((((int)threadIdx.x) >> 4) * 4)));
      w_own[0] = *(threadgroup float4*)(w_tile + ((v_1 * 64) + ((((int)threadIdx.x) & 15) * 4)));
      sums[0] = (sums[0] + ((x_own[0])[0] * (w_own[0])[0]));
      sums[1] = (sums[1] + ((x_own[0])[0] * (w_own[0])[1]));
      sums[2] = (sums[2] + ((x_own[0])[0] * (w_own[0])[2]));
      sums[3] = (sums[3] + ((x_own[0])[0] * (w_own[0])[3]));
      sums[4] = (sums[4] + ((x_own[0])[1] * (w_own[0])[0]));
      sums[5] = (sums[5] + ((x_own[0])[1] * (w_own[0])[1]));
      sums[6] = (sums[6] + ((x_own[0])[1] * (w_own[0])[2]));
      sums[7] = (sums[7] + ((x_own[0])[1] * (w_own[0])[3]));
      sums[8] = (sums[8] + ((x_own[0])[2] * (w_own[0])[0]));
      sums[9] = (sums[9] + ((x_own[0])[2] * (w_own[0])[1]));
      sums[10] = (sums[10] + ((x_own[0])[2] * (w_own[0])[2]));
      sums[11] = (sums[11] + ((x_own[0])[2] * (w_own[0])[3]));
      sums[12] = (sums[12] + ((x_own[0])[3] * (w_own[0])[0]));
      sums[13] = (sums[13] + ((x_own[0])[3] * (w_own[0])[1]));
      sums[14] = (sums[14] + ((x_own[0])[3] * (w_own[0])[2]));
      sums[15] = (sums[15] + ((x_own[0])[3] * (w_own[0])[3]));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  long cse_v19 = ((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4));
  long cse_v20 = ((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4));
  if ((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4))] = ((half)sums[0]);
  }
  if ((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)1)] = ((half)sums[1]);
  }
  if ((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)2)] = ((half)sums[2]);
  }
  if ((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)3)] = ((half)sums[3]);
  }
  long cse_v21 = (((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)1);
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)1) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)16)] = ((half)sums[4]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)1) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)17)] = ((half)sums[5]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)1) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)18)] = ((half)sums[6]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)1) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)19)] = ((half)sums[7]);
  }
  long cse_v22 = (((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)2);
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)2) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)32)] = ((half)sums[8]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)2) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)33)] = ((half)sums[9]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)2) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)34)] = ((half)sums[10]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)2) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)35)] = ((half)sums[11]);
  }
  long cse_v23 = (((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)3);
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)3) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)48)] = ((half)sums[12]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)3) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)49)] = ((half)sums[13]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)3) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)50)] = ((half)sums[14]);
  }
  if (((((((long)blockIdx.y) * (long)64) + ((((long)((int)threadIdx.x)) >> (long)4) * (long)4)) + (long)3) < arg.m) && ((((int)threadIdx.x) & 15) < 4)) {
    y_ptr[(((((long)blockIdx.y) * (long)1024) + (((long)((int)threadIdx.x)) * (long)4)) + (long)51)] = ((half)sums[15]);
  }
}
