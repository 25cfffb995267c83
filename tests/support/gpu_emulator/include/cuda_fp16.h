// Stands for CUDA's half precision header.
#pragma once
#include "cuda.h"

using __half = half;
using half2 = Vector<half, 2>;
using __half2 = half2;
inline bool __hgt(half a, half b) { return float(a) > float(b); }
inline bool __hlt(half a, half b) { return float(a) < float(b); }
inline float __half2float(half a) { return a; }
inline half __float2half(float a) { return a; }
inline half __float2half_rn(float a) { return a; }
