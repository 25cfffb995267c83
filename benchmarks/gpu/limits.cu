// What a GPU can do at best: reading memory 16 bytes at a time, and tensor cores without any memory.

extern "C" __global__ void __launch_bounds__(512) read16(unsigned* __restrict__ out, uint4* __restrict__ x, long long chunks) {
  unsigned seen = 0;
  const long long threads = (long long)gridDim.x * 512;
  for (long long at = (long long)blockIdx.x * 512 + threadIdx.x; at < chunks; at += 4 * threads) {
    uint4 four[4];
    for (int i = 0; i < 4; ++i)
      if (at + i * threads < chunks) four[i] = x[at + i * threads];
      else four[i] = make_uint4(0, 0, 0, 0);
    for (int i = 0; i < 4; ++i) seen += four[i].x ^ four[i].y ^ four[i].z ^ four[i].w;
  }
  out[blockIdx.x * 512 + threadIdx.x] = seen;
}

extern "C" __global__ void __launch_bounds__(256) multiply(float* __restrict__ out, long long rounds) {
  float sums[8][4] = {};
  unsigned a = threadIdx.x & 1, b = threadIdx.x & 2;
  for (long long round = 0; round < rounds; ++round)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
                   : "r"(a), "r"(a), "r"(a), "r"(a), "r"(b), "r"(b));
  float total = 0;
  for (int i = 0; i < 8; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  out[blockIdx.x * 256 + threadIdx.x] = total;
}
