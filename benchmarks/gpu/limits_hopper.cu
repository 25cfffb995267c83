// Hopper's own products, without any memory: of 64 rows, 128 columns and 16 k, both operands any small numbers. Takes 17408
// bytes of shared memory.

extern "C" __global__ void __launch_bounds__(256) multiply_wgmma(float* __restrict__ out, long long rounds) {
  extern __shared__ unsigned x[];
  unsigned a[4];
  float sums[64];
  for (int i = threadIdx.x; i < 4352; i += 256) x[i] = (i * 2654435761u) & 0x3bff3bff;
  for (int i = 0; i < 4; ++i) a[i] = ((threadIdx.x + 256 * i) * 2246822519u) & 0xbbffbbff;
  // No constant: the assembler would set it between products, and have them wait for each other.
  for (int i = 0; i < 64; ++i) sums[i] = threadIdx.x;
  const unsigned address = (static_cast<unsigned>(__cvta_generic_to_shared(x)) + 1023) & ~1023u;
  // Columns 128 bytes apart, in eights of 1024, swizzled in 128 bytes: from a multiple of 1024 on.
  const unsigned long long columns = 1ull << 62 | 64ull << 32 | 1ull << 16 | (address >> 4 & 0x3fff);
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
  __syncthreads();
  long long round = 0;
#pragma unroll 1
  do {
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
        "}, {%64, %65, %66, %67}, %68, add, 1, 1, 0; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
          "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
          "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(columns), "r"(1));
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
  } while (++round < rounds);
  asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
  float total = 0;
  for (int i = 0; i < 64; ++i) total += sums[i];
  out[blockIdx.x * 256 + threadIdx.x] = total;
}
