// Stands for CUDA's own header: the dialect that generated kernels are written in.
#pragma once
#include <algorithm>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __shared__ static
#define threadIdx (emulator::fibers[emulator::current].position)
#define blockIdx (emulator::block)

using std::max;
using std::min;
using uint2 = Vector<unsigned, 2>;
using uint4 = Vector<unsigned, 4>;
using float2 = Vector<float, 2>;
using float4 = Vector<float, 4>;

inline void __syncthreads() { emulator::block_barrier(); }
inline float __shfl_down_sync(unsigned mask, float value, unsigned distance, int width) {
  if (mask != 0xffffffffu || width != 32) emulator::fail("a shuffle of part of a warp");
  return emulator::shuffle_down(value, distance);
}
