// Hashes standard input by the runner's code: first the portable way, then by the processor's instructions, if any.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "sha256.h"

// For one block and for many: what is left after whole blocks is not looked at.
void print(const char* name, awq::sha256::Blocks blocks, const std::vector<unsigned char>& data) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  blocks(state, data.data(), data.size() / 64);
  std::printf("%s ", name);
  for (uint32_t word : state) std::printf("%08x", word);
  std::printf("\n");
}

int main() {
  std::vector<unsigned char> data;
  for (int c; (c = std::getchar()) != EOF;) data.push_back(static_cast<unsigned char>(c));
  awq::Sha256 hash;
  // In pieces of all lengths, so that each way to fill a block is met.
  for (std::size_t start = 0, step = 0; start < data.size(); start += step, step = (step + 7) % 131) {
    step = std::min(step, data.size() - start);
    hash.update(data.data() + start, step);
  }
  std::printf("digest %s\n", hash.hex().c_str());
  print("portable", awq::sha256::portable_blocks, data);
  if (const auto native = awq::sha256::native_blocks()) print("native", native, data);
}
