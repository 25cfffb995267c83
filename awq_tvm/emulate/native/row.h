// Eight numbers at a time.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace emulator {

// Eight float32, which the compiler reckons with as with one.
typedef float Row __attribute__((vector_size(32)));

// Eight float16, or bfloat16, that lie together.
inline Row widened(const std::uint16_t* numbers, bool bfloat) {
  Row wide;
  if (bfloat) {
    std::uint32_t words[8];
    for (unsigned i = 0; i < 8; ++i) words[i] = std::uint32_t(numbers[i]) << 16;
    std::memcpy(&wide, words, sizeof wide);
    return wide;
  }
#ifdef __F16C__
  __m128i packed;
  std::memcpy(&packed, numbers, sizeof packed);
  return reinterpret_cast<Row>(_mm256_cvtph_ps(packed));
#else
  for (unsigned i = 0; i < 8; ++i) {
    _Float16 half;
    std::memcpy(&half, numbers + i, 2);
    wide[i] = half;
  }
  return wide;
#endif
}

}  // namespace emulator
