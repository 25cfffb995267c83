// Stands for CUDA's own headers: the dialect that generated kernels are written in. What is not here does not compile.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __inline__ inline
#define __restrict__
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
};
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
constexpr int warpSize = emulator::kWarpSize;

#define AWQ_VECTORS(name, T)                                                          \
  using name##2 = AwqVector<T, 2>;                                                    \
  using name##3 = AwqVector<T, 3>;                                                    \
  using name##4 = AwqVector<T, 4>;                                                    \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                          \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                  \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
AWQ_VECTORS(char, signed char)
AWQ_VECTORS(uchar, unsigned char)
AWQ_VECTORS(short, short)
AWQ_VECTORS(ushort, unsigned short)
AWQ_VECTORS(int, int)
AWQ_VECTORS(uint, unsigned)
AWQ_VECTORS(longlong, long long)
AWQ_VECTORS(ulonglong, unsigned long long)
AWQ_VECTORS(float, float)
AWQ_VECTORS(double, double)
#undef AWQ_VECTORS

using std::max;
using std::min;
template <typename A, typename B>
inline auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }
template <typename A, typename B>
inline auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <typename T>
inline T __ldg(const T* pointer) { return *pointer; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }

#define __syncthreads() (emulator::block_barrier(__LINE__))
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::warp_barrier(mask); }
inline unsigned __activemask() { return emulator::live_lanes(); }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int own = emulator::lane(), start = own & ~(width - 1);
  return emulator::shuffle(mask, value, start + (from & (width - 1)), true);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int own = emulator::lane(), start = own & ~(width - 1), from = own - int(distance);
  return emulator::shuffle(mask, value, from, from >= start);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int own = emulator::lane(), end = (own & ~(width - 1)) + width, from = own + int(distance);
  return emulator::shuffle(mask, value, from, from < end);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int own = emulator::lane(), end = (own & ~(width - 1)) + width, from = own ^ lanes;
  return emulator::shuffle(mask, value, from, from < end);
}
inline unsigned __ballot_sync(unsigned mask, int holds) { return emulator::ballot(mask, holds != 0); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __any_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) != 0; }
inline int __all_sync(unsigned mask, int holds) { return __ballot_sync(mask, holds) == mask; }

inline std::size_t __cvta_generic_to_shared(const void* pointer) { return emulator::shared_address(pointer); }

#include "ptx.h"
