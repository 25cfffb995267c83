// Stands for CUDA's half precision header.
#pragma once
#include "cuda.h"
#include "half.h"

using half = __half;
struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline bool __hgt(__half a, __half b) { return a > b; }
inline bool __hlt(__half a, __half b) { return a < b; }
inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline unsigned short __half_as_ushort(__half a) { unsigned short b; std::memcpy(&b, &a, 2); return b; }
inline __half __ushort_as_half(unsigned short a) { __half b; std::memcpy(&b, &a, 2); return b; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half hexp(__half a) { return __half(std::exp(float(a))); }
inline __half hsqrt(__half a) { return __half(std::sqrt(float(a))); }
inline __half htanh(__half a) { return __half(std::tanh(float(a))); }
