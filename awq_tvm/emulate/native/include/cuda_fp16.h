// Stands for CUDA's half precision header: every operation rounds once, to nearest even.
#pragma once
#include "cuda.h"

struct __half {
  _Float16 value;
  __half() = default;
  __half(_Float16 h) : value(h) {}
  __half(float f) : value(static_cast<_Float16>(f)) {}
  __half(double f) : value(static_cast<_Float16>(f)) {}
  __half(int i) : value(static_cast<_Float16>(i)) {}
  __half(unsigned i) : value(static_cast<_Float16>(i)) {}
  __half(long i) : value(static_cast<_Float16>(i)) {}
  operator float() const { return static_cast<float>(value); }
};
using half = __half;
struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline __half operator+(__half a, __half b) { return __half(static_cast<_Float16>(a.value + b.value)); }
inline __half operator-(__half a, __half b) { return __half(static_cast<_Float16>(a.value - b.value)); }
inline __half operator*(__half a, __half b) { return __half(static_cast<_Float16>(a.value * b.value)); }
inline __half operator/(__half a, __half b) { return __half(static_cast<_Float16>(a.value / b.value)); }
inline __half operator-(__half a) { return __half(static_cast<_Float16>(-a.value)); }
inline bool operator>(__half a, __half b) { return a.value > b.value; }
inline bool operator<(__half a, __half b) { return a.value < b.value; }
inline bool operator>=(__half a, __half b) { return a.value >= b.value; }
inline bool operator<=(__half a, __half b) { return a.value <= b.value; }
inline bool operator==(__half a, __half b) { return a.value == b.value; }
inline bool operator!=(__half a, __half b) { return a.value != b.value; }
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
