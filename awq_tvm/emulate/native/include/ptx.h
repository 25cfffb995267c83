// What PTX instructions do, as functions of the registers that an asm statement names. emulate/ptx.py calls them.
#pragma once
#include <cmath>
#include <limits>

namespace ptx {

inline _Float16 half_of(std::uint32_t pair, int i) {
  const std::uint16_t bits = static_cast<std::uint16_t>(pair >> (16 * i));
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return h;
}
inline std::uint32_t pair_of(_Float16 low, _Float16 high) {
  std::uint16_t a, b;
  std::memcpy(&a, &low, 2);
  std::memcpy(&b, &high, 2);
  return a | std::uint32_t(b) << 16;
}

inline std::uint32_t lop3(std::uint32_t a, std::uint32_t b, std::uint32_t c, int table) {
  std::uint32_t d = 0;
#pragma GCC unroll 8  // the table is a constant, and the loop comes down to two operations
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return d;
}
inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = std::uint64_t(b) << 32 | a;
  std::uint32_t d = 0;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 15;
    std::uint32_t byte = bytes >> (8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << (8 * i);
  }
  return d;
}
inline std::uint32_t add_f16x2(std::uint32_t a, std::uint32_t b) {
  return pair_of(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1));
}
inline std::uint32_t sub_f16x2(std::uint32_t a, std::uint32_t b) {
  return pair_of(half_of(a, 0) - half_of(b, 0), half_of(a, 1) - half_of(b, 1));
}
inline std::uint32_t mul_f16x2(std::uint32_t a, std::uint32_t b) {
  return pair_of(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1));
}
// Of the approximation's error nothing, but subnormal numbers are 0 on both sides.
inline float exp2_flushed(float x) {
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0 : y;
}
inline std::uint32_t pack_f16x2(float high, float low) { return pair_of(_Float16(low), _Float16(high)); }
inline std::uint32_t fma_f16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  // The product of two float16 is exact in float32, and its sum with a third in double wherever the result is not tiny.
  // On to float32 by rounding to odd, so that the last rounding is the only one; no step is a call of a library.
  const auto one = [&](int i) {
    const double sum = double(float(half_of(a, i)) * float(half_of(b, i))) + double(float(half_of(c, i)));
    std::uint64_t bits;
    std::memcpy(&bits, &sum, 8);
    constexpr std::uint64_t kLost = (std::uint64_t(1) << 29) - 1;  // bits that a float32 has not
    bits = (bits | ((bits & kLost) + kLost & ~kLost)) & ~kLost;
    double odd;
    std::memcpy(&odd, &bits, 8);
    return static_cast<_Float16>(static_cast<float>(odd));
  };
  return pair_of(one(0), one(1));
}

inline float bf16(std::uint32_t pair, int i) {
  const std::uint32_t bits = pair >> (16 * i) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline std::uint32_t nearest_bf16(double value) {
  // To float32 first: by the round-to-odd of a double that is not exact there, the second rounding finds no false tie.
  float f = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(f)) return 0x7fff;
  if (double(f) != value) {
    if (std::fabs(double(f)) > std::fabs(value)) --bits;
    bits |= 1;
  }
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline std::uint32_t fma_bf16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  // As with float16: the product is exact in double.
  const auto one = [&](int i) { return nearest_bf16(double(bf16(a, i)) * bf16(b, i) + bf16(c, i)); };
  return one(0) | one(1) << 16;
}
inline std::uint32_t pack_bf16x2(float high, float low) { return nearest_bf16(low) | nearest_bf16(high) << 16; }

// D += A @ B of a warpgroup, or D = A @ B: by the thread whose fragment of A these are, and whose accumulators.
template <bool bfloat16, typename... D>
__attribute__((no_sanitize("thread"))) inline void wgmma(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                                         std::uint32_t a3, std::uint64_t b, bool add, D&... d) {
  float* const accumulators[] = {&d...};
  const std::uint32_t a[] = {a0, a1, a2, a3};
  emulator::wgmma(accumulators, 2 * sizeof...(D), a, b, add, bfloat16);
}

template <typename T, int N>
inline void load(const void* address, T* into) {
  struct alignas(sizeof(T) * N) Block {
    T parts[N];
  };
  emulator::check_read(address, sizeof(Block));
  std::memcpy(into, address, sizeof(Block));
}
template <typename T, int N>
inline void store(const void* address, const T (&words)[N]) {
  emulator::check_write(address, sizeof words);
  std::memcpy(const_cast<void*>(address), words, sizeof words);
}

}  // namespace ptx
