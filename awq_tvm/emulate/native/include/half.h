// Half precision of both dialects: every operation rounds once, to nearest even.
#pragma once
#include <cstring>

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
