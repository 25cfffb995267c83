// The block that runs, one at a time, as scheduler (runtime.cc) and memory checks (access.cc) see it.
#pragma once
#include <memory>
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

struct Block;

struct Copy {
  std::uint32_t to;
  const void* from;
  unsigned bytes, source_bytes;
};

// Bytes of shared memory that a wgmma under way reads, sixteen at a time; they are free again when the last thread of the
// warpgroup has waited for it.
struct AsyncReads {
  Block& block;
  std::vector<unsigned> chunks;
  AsyncReads(Block& block, std::vector<unsigned> chunks);
  ~AsyncReads();
};

// Accumulators that are under way: where they are, and what they will be when the last product is waited for.
struct Accumulators {
  unsigned count;
  std::size_t group;  // the newest that adds to them
  float* registers[128];
  float values[128];
};

// A thread's products: groups that were committed and not waited for, and an open one.
struct Products {
  bool fenced = false;  // nothing was written to registers since
  std::size_t committed = 0;
  std::vector<std::pair<std::size_t, std::shared_ptr<AsyncReads>>> reads;  // by group
  std::vector<Accumulators> under_way;
  std::vector<float*> known;  // all that ever were accumulators
};

// When a thread has made its writes visible to wgmma.
struct ProxyFence {
  std::uint32_t epoch, warp_epoch;
};

struct Fiber {
  Context context;
  State state;
  Meeting meeting;
  int site;
  unsigned mask, parity;
  Index position;
  std::vector<std::vector<Copy>> copies;  // groups, the last one open
  Products products;
  std::vector<ProxyFence> proxy_fences;
};

// A warpgroup that comes together for a wgmma: what the first of it called, and the right operand.
struct Warpgroup {
  unsigned come = 0, gone = 0, columns = 0;
  std::uint64_t descriptor = 0;
  bool add = false;
  std::shared_ptr<AsyncReads> reads;
  std::vector<float> right;  // [4][16][columns / 4]: what lane % 4 multiplies, by k
};

// The last accesses to a byte of shared memory. An epoch counts the barriers passed, of the block or of the warp, and
// goes on from one block to the next: what an earlier one left is older than its first epoch, and needs no clearing.
struct Shadow {
  std::uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
  std::uint16_t writer, reader;
  std::uint32_t fences;  // how many the writer had made
  std::uint8_t async_reads;
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
  // Of each four bytes of the stacks, what wgmma makes of it: see Register. Looked at once a launch has used wgmma.
  unsigned char* registers = nullptr;
  Warpgroup warpgroups[kMaxThreads / kWarpgroupSize];
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

// What a word of a thread's stack is to wgmma.
enum Register : unsigned char { kAccumulator = 1, kUnderWay = 2 };

extern Block* running;
extern bool watching_registers;
extern const unsigned char* running_stacks;

// The buffers of a launch, from what it was told of its arguments.
std::vector<Buffer> buffers_of(const void* const* arguments, const std::size_t* bytes, std::size_t count);

void judge_second_write(Block& block);
void expect_same(Block& block, const unsigned char* where, std::size_t bytes, unsigned writer);
void write_shared(Block& block, unsigned offset, std::size_t bytes);
void read_shared(Block& block, unsigned offset, std::size_t bytes);
bool ordered(const Block& block, std::uint32_t epoch, std::uint32_t warp_epoch, unsigned other, unsigned self);
void touch_register(Block& block, std::size_t offset, std::size_t bytes, bool write);
void forget_products(Block& block, Fiber& fiber);
void set_pending(Block& block, unsigned offset, std::size_t bytes, bool pending);

}  // namespace emulator
