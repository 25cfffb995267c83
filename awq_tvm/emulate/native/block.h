// The block that runs, one at a time, as scheduler (runtime.cc) and memory checks (access.cc) see it.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "written.h"

namespace emulator {

// No power of two, so that the tops of the stacks, where threads work, do not share the same few lines of the cache.
constexpr std::size_t kStackBytes = 128 * 1024 + 17 * 64;

enum class State : unsigned char { kReady, kBarrier, kMeeting, kDone };

struct Copy {
  std::uint32_t to;
  const void* from;
  unsigned bytes, source_bytes;
};

struct Fiber {
  Context context;
  State state;
  Meeting meeting;
  int site;
  unsigned mask, parity;
  Index position;
  std::vector<std::vector<Copy>> copies;  // groups, the last one open
};

// The last accesses to a byte of shared memory. An epoch counts the barriers passed, of the block or of the warp, and
// goes on from one block to the next: what an earlier one left is older than its first epoch, and needs no clearing.
struct Shadow {
  std::uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
  std::uint16_t writer, reader;
  bool read_by_lanes, read_by_warps, pending;
};

// A write to bytes that another thread has written since the last barrier, about to happen. It is a fault only if it
// changes them: that many threads store one value is common and does no harm.
struct SecondWrite {
  const unsigned char* where;
  std::size_t bytes;  // 0 where there is none
  unsigned writer;
  unsigned char before[64];
};

struct Range {
  std::size_t first, end;
};

// A buffer of global memory: first byte to end.
struct Buffer {
  const unsigned char *first, *end;
};

struct Block {
  const Kernel* kernel = nullptr;
  void** arguments = nullptr;
  Index grid, size, index;
  unsigned threads = 0, dynamic_bytes = 0;
  unsigned current = 0;
  bool failed = false;
  std::string message;
  std::uint32_t first_epoch = 1, epoch = 1;
  std::uint32_t warp_epochs[kMaxThreads / kWarpSize] = {};
  std::vector<Range> arrays;  // of shared memory, as offsets into the arena
  SecondWrite second_write = {};
  Written written;              // global memory
  std::uint64_t serial = 0;     // of the block, among all that this one has run
  Context scheduler;
  Fiber fibers[kMaxThreads];
  Deposit deposits[2][kMaxThreads];
  unsigned char* stacks = nullptr;
  unsigned char* arena = nullptr;
  Shadow* shadow = nullptr;
  // What this launch may touch of global memory; every buffer of the device where nothing is said.
  std::vector<Buffer> buffers;
  // The one that was touched last.
  const unsigned char *near_first = nullptr, *near_end = nullptr;

  Block();
  ~Block();
  bool run(Index which);
  bool release();
  void report_stuck();
};

extern Block* running;
extern const unsigned char* running_stacks;

// The buffers of a launch, from what it was told of its arguments.
std::vector<Buffer> buffers_of(const void* const* arguments, const std::size_t* bytes, std::size_t count);

void judge_second_write(Block& block);
void expect_same(Block& block, const unsigned char* where, std::size_t bytes, unsigned writer);
void write_shared(Block& block, unsigned offset, std::size_t bytes);
void read_shared(Block& block, unsigned offset, std::size_t bytes);
void set_pending(Block& block, unsigned offset, std::size_t bytes, bool pending);

}  // namespace emulator
