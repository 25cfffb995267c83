// SHA-256 (FIPS 180-4), by the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace awq {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  // The digest in lower-case hexadecimal; nothing can be added after it.
  std::string hex();

 private:
  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> rest_{};
  uint64_t size_ = 0;
};

namespace sha256 {

// Adds whole blocks of 64 bytes to the state.
using Blocks = void (*)(uint32_t* state, const uint8_t* data, std::size_t count);
void portable_blocks(uint32_t* state, const uint8_t* data, std::size_t count);
// The fastest that this processor runs; nullptr where it has no such instructions.
Blocks native_blocks();

extern const uint32_t kRound[64];

}  // namespace sha256
}  // namespace awq
