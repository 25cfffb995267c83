// Who wrote which bytes of global memory in the launch that runs, and which launch wrote them last, two bytes at a time.
#pragma once
#include <bitset>
#include <cstdint>
#include <iterator>
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
  // Of a launch. What launches before `wanted` have written is no longer asked for.
  void begin(std::uint32_t wanted) {
    // 40 KiB each; the next launches seldom write where those long ago did.
    if (pages_.size() > kKept)
      for (auto at = pages_.begin(); at != pages_.end();) at = at->second->launch < wanted ? pages_.erase(at) : std::next(at);
    ++launch_;
    maybe_.reset();
    near_ = nullptr;
  }
  // Whether nobody of this launch wrote any of these, or anything near: most memory is only read, and known by this look.
  bool untouched(std::uintptr_t first, std::uintptr_t last) const {
    return last - first < kUnits && !maybe_[first / kUnits % kBits] && !maybe_[last / kUnits % kBits];
  }
  // Null where nobody of this launch wrote.
  const Writer* find(std::uintptr_t unit) {
    if (!maybe_[unit / kUnits % kBits]) return nullptr;
    Page* page = near(unit / kUnits);
    if (!page) return nullptr;
    const Writer& found = page->writers[unit % kUnits];
    return found.launch == launch_ ? &found : nullptr;
  }
  void insert(std::uintptr_t unit, std::uint32_t block, std::uint32_t time, unsigned thread) {
    Page& page = written(unit);
    page.writers[unit % kUnits] = {launch_, block, time, thread};
    page.launches[unit % kUnits] = launch_;
  }
  // A write of one byte, whose neighbour is nobody's or another thread's.
  void insert_byte(std::uintptr_t unit) { written(unit).launches[unit % kUnits] = launch_; }
  // The launch that wrote there last, 0 where none did.
  std::uint32_t launch_of(std::uintptr_t unit) const {
    const auto found = pages_.find(unit / kUnits);
    return found == pages_.end() ? 0 : found->second->launches[unit % kUnits];
  }
  // The one that runs, or ran last.
  std::uint32_t launch() const { return launch_; }

 private:
  static constexpr std::uintptr_t kUnits = 2048, kBits = 8192, kKept = 4096;
  struct Page {
    std::uintptr_t number;
    std::uint32_t launch;
    Writer writers[kUnits];
    std::uint32_t launches[kUnits];
  };
  Page& written(std::uintptr_t unit) {
    const std::uintptr_t number = unit / kUnits;
    if (Page* page = near(number)) return *page;
    maybe_[number % kBits] = true;
    auto& kept = pages_[number];
    if (!kept) kept = std::make_unique<Page>(Page{number, 0, {}, {}});
    near_ = kept.get();
    near_->launch = launch_;
    return *near_;
  }
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
