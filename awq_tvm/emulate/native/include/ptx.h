// What PTX instructions do, as functions of the registers that an asm statement names. emulate/ptx.py calls them.
#pragma once
#include <cmath>

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
inline std::uint32_t pack_f16x2(float high, float low) { return pair_of(_Float16(low), _Float16(high)); }
inline std::uint32_t fma_f16x2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  // A product of two float16 is exact in double, and so is its sum with a third wherever the result is not tiny.
  const auto one = [&](int i) {
    return static_cast<_Float16>(double(half_of(a, i)) * double(half_of(b, i)) + double(half_of(c, i)));
  };
  return pair_of(one(0), one(1));
}

inline float f16(std::uint32_t pair, int i) { return half_of(pair, i); }
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

// A lane's part of the operands of mma.m16n8k16, widened.
struct Mma {
  float a[8], b[4];
};

// D = A @ B + C; A [16, 16] by rows, B [16, 8] by columns, of what `widen` takes; C and D [16, 8] float32. Registers
// and what lanes gave each other are all it touches: without hooks, which would be called a hundred times.
template <float (*widen)(std::uint32_t, int)>
__attribute__((no_sanitize("thread"), noinline, optimize("O3"))) void mma_m16n8k16(float* d, const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const float (&c)[4]) {
  Mma mine;
  for (int i = 0; i < 8; ++i) mine.a[i] = widen(a[i / 2], i % 2);
  for (int i = 0; i < 4; ++i) mine.b[i] = widen(b[i / 2], i % 2);
  const emulator::Deposit* all = emulator::meet(emulator::Meeting::kMma, 0xffffffffu, &mine, sizeof mine);
  const unsigned lane = emulator::lane();
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2, lower = i / 2;
    float sum = 0;
    for (unsigned pair = 0; pair < 4; ++pair) {
      // Lane 4 r + p holds, of row r (and r + 8 in every second register), k = 2 p, 2 p + 1 and 8 more.
      const float* left = reinterpret_cast<const Mma*>(all[row * 4 + pair].bytes)->a;
      const float* right = reinterpret_cast<const Mma*>(all[column * 4 + pair].bytes)->b;
      sum += left[2 * lower] * right[0] + left[2 * lower + 1] * right[1] + left[4 + 2 * lower] * right[2] +
             left[4 + 2 * lower + 1] * right[3];
    }
    d[i] = c[i] + sum;
  }
}

// Lane i names row i % 8 of matrix i / 8, 16 bytes of shared memory; every lane gets two elements of each matrix.
template <int count, bool transposed>
inline void ldmatrix(std::uint32_t* into, std::uint32_t address) {
  const emulator::Deposit* all = emulator::meet(emulator::Meeting::kLoadMatrix, 0xffffffffu, &address, sizeof address);
  const unsigned lane = emulator::lane();
  if (lane < 8 * count) emulator::check_read(emulator::shared_pointer(address), 16);
  for (int m = 0; m < count; ++m) {
    std::uint16_t pair[2];
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned row = transposed ? lane % 4 * 2 + e : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + e;
      const auto* from = emulator::shared_pointer(emulator::of<std::uint32_t>(all, 8 * m + row));
      std::memcpy(&pair[e], from + 2 * column, 2);
    }
    into[m] = pair[0] | std::uint32_t(pair[1]) << 16;
  }
}

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
