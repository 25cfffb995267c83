// Who wrote which bytes of global memory in the launch that runs, two bytes at a time.
#pragma once
#include <bitset>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace emulator {

struct Writer {
  std::uint32_t launch = 0;  // what another than the one that runs has left counts as nobody
  std::uint32_t block = 0;
  std::uint32_t time = 0;
  std::uint32_t thread = 0;
};

class Written {
 public:
  void begin() {
    // 32 KiB each; the next launches seldom write where those long ago did.
    if (pages_.size() > kKept) pages_.clear();
    ++launch_;
    maybe_.reset();
    near_ = nullptr;
  }
  // Null where nobody of this launch wrote. Most memory is only read, and known by the first look.
  const Writer* find(std::uintptr_t unit) {
    if (!maybe_[unit / kUnits % kBits]) return nullptr;
    Page* page = near(unit / kUnits);
    if (!page) return nullptr;
    const Writer& found = page->writers[unit % kUnits];
    return found.launch == launch_ ? &found : nullptr;
  }
  void insert(std::uintptr_t unit, std::uint32_t block, std::uint32_t time, unsigned thread) {
    const std::uintptr_t number = unit / kUnits;
    Page* page = near(number);
    if (!page) {
      maybe_[number % kBits] = true;
      auto& kept = pages_[number];
      if (!kept) kept = std::make_unique<Page>(Page{number, 0, {}});
      page = near_ = kept.get();
      page->launch = launch_;
    }
    page->writers[unit % kUnits] = {launch_, block, time, thread};
  }

 private:
  static constexpr std::uintptr_t kUnits = 2048, kBits = 8192, kKept = 4096;
  struct Page {
    std::uintptr_t number;
    std::uint32_t launch;
    Writer writers[kUnits];
  };
  // The page that this launch has written to, or null.
  Page* near(std::uintptr_t number) {
    if (near_ && near_->number == number) return near_;
    const auto found = pages_.find(number);
    if (found == pages_.end() || found->second->launch != launch_) return nullptr;
    return near_ = found->second.get();
  }
  std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages_;
  std::bitset<kBits> maybe_;
  Page* near_ = nullptr;
  std::uint32_t launch_ = 0;
};

}  // namespace emulator
