// Who wrote which bytes of global memory in the launch that runs, two bytes at a time.
#pragma once
#include <cstdint>
#include <vector>

namespace emulator {

struct Writer {
  std::uintptr_t unit = 0;
  std::uint64_t launch = 0;
  std::uint64_t block = 0;
  std::uint32_t epoch = 0, warp_epoch = 0;
  unsigned thread = 0;
};

// A hash table that is never cleared: what an earlier launch left counts as empty.
class Written {
 public:
  void begin() {
    ++launch_;
    used_ = 0;
    lowest_ = ~std::uintptr_t(0);
    highest_ = 0;
  }
  // Quick: weights and x are read far more often than anything, and lie elsewhere than what a kernel writes.
  bool maybe(std::uintptr_t first, std::uintptr_t last) const { return first <= highest_ && last >= lowest_; }
  Writer* find(std::uintptr_t unit) {
    Writer& place = slots_[slot(unit)];
    return place.launch == launch_ ? &place : nullptr;
  }
  Writer& insert(std::uintptr_t unit) {
    if (used_ * 2 >= slots_.size()) grow();
    Writer& place = slots_[slot(unit)];
    if (place.launch != launch_) {
      ++used_;
      place.launch = launch_;
      place.unit = unit;
      if (unit < lowest_) lowest_ = unit;
      if (unit > highest_) highest_ = unit;
    }
    return place;
  }

 private:
  std::size_t slot(std::uintptr_t unit) const {
    std::size_t at = (unit * 0x9e3779b97f4a7c15u) >> 32;
    while (true) {
      const Writer& place = slots_[at &= slots_.size() - 1];
      if (place.launch != launch_ || place.unit == unit) return at;
      ++at;
    }
  }
  void grow() {
    std::vector<Writer> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Writer& writer : old)
      if (writer.launch == launch_) slots_[slot(writer.unit)] = writer;
  }
  std::vector<Writer> slots_ = std::vector<Writer>(1 << 12);
  std::size_t used_ = 0;
  std::uint64_t launch_ = 0;
  std::uintptr_t lowest_ = ~std::uintptr_t(0), highest_ = 0;
};

}  // namespace emulator
