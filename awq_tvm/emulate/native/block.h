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

struct Block;

struct Copy {
  std::uint32_t to;
  const void* from;
  unsigned bytes, source_bytes;
  std::size_t group;
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

struct Fiber {
  bool waited = false;  // for the launches before
  bool arrived = false;  // at a barrier of the cluster that it has still to wait at
  std::vector<Copy> copies;  // under way, in their order
  std::size_t committed = 0;  // groups of them
  Products products;
  std::vector<std::uint32_t> proxy_fences;  // when the thread made its writes visible to wgmma, rising
};

// Lanes, a bit each, by what they do, and what those that wait have come to. One that runs is in none of the sets.
struct Warp {
  unsigned all = 0, ready = 0, at_barrier = 0, meeting = 0, at_wgmma = 0, at_cluster = 0, done = 0;
  std::uint32_t time = 0;  // of its last barrier
  Work work[kWarpSize];
  unsigned mask[kWarpSize];
  void* brought[kWarpSize];
  int site[kWarpSize];
};

// A warpgroup that comes together for a wgmma: what the first of it called, and the right operand.
struct Warpgroup {
  unsigned come = 0, gone = 0, columns = 0;
  std::uint64_t descriptor = 0;
  bool add = false;
  std::shared_ptr<AsyncReads> reads;
  // [64][16], the left operand: of the product that threads come to, and of the one before, which some have still to read.
  float left[2][64][16];
  unsigned turn = 0;
  std::vector<float> right;  // [4][16][columns / 4]: what lane % 4 multiplies, by k
};

// When somebody touched a piece of shared memory last, and who. The time counts barriers, of blocks and warps, and fences,
// and goes on from one block to the next: what an earlier one left is older than its first time, and needs no clearing.
// Of a write the lowest byte holds flags and the next how many wgmma under way read it.
using Mark = std::uint64_t;
constexpr Mark kPending = 1;       // an asynchronous copy is about to fill it
constexpr Mark kSplit = 2;         // its two bytes have marks of their own
constexpr Mark kReadByLanes = 1;   // by several of one warp
constexpr Mark kReadByWarps = 2;
constexpr Mark kAsyncRead = 1 << 8;
constexpr Mark kFlags = 0xff, kBusy = 0xffff & ~kSplit;

constexpr Mark mark(std::uint32_t time, unsigned thread) { return Mark(time) << 32 | thread << 16; }
constexpr std::uint32_t time_of(Mark m) { return static_cast<std::uint32_t>(m >> 32); }
constexpr unsigned thread_of(Mark m) { return m >> 16 & 0xffff; }

// All lanes of a warp at once: none of them is who did it, and its operations come in their order.
constexpr unsigned kAsWarp = 0x8000;
constexpr unsigned as_warp(unsigned thread) { return kAsWarp | thread / kWarpSize * kWarpSize; }
constexpr unsigned number_of(unsigned thread) { return thread & ~kAsWarp; }
constexpr unsigned warp_of(unsigned thread) { return number_of(thread) / kWarpSize; }

// Of each two bytes of shared memory, and of each single one where somebody has touched one alone.
struct Shadow {
  Mark *writes, *reads;
  Mark *byte_writes, *byte_reads;
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

// What a launch that overlaps may find unfinished: all since the last one that did not overlap, itself among them. That a
// launch waits says nothing of those before: the next can begin while it still does.
struct Unfinished {
  std::uint32_t first = 1;         // number of the first, see Written
  std::vector<const char*> names;  // of the kernels
};

// What outlives launches.
struct History {
  Written written;  // global memory
  Unfinished unfinished;
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
  unsigned left = 0;  // threads that have not ended
  // Now, at the block's beginning, at its last barrier, and at the last of its cluster.
  std::uint32_t time = 1, first_time = 1, barrier_time = 1, cluster_time = 1;
  std::vector<Range> arrays;  // of shared memory, as offsets into the arena
  Range near_array = {};      // the one that was touched last
  SecondWrite second_write = {};
  Written& written;
  Unfinished& unfinished;
  std::uint32_t serial = 0;  // of the block, among those of the launch
  bool overlaps = false;  // the launch: it may have begun before those
  Context scheduler;
  // Apart from what else is known of a thread, as every switch looks at them.
  Context contexts[kMaxThreads];
  Index positions[kMaxThreads];
  Fiber fibers[kMaxThreads];
  Warp warps[kMaxThreads / kWarpSize];
  unsigned char* stacks = nullptr;
  unsigned char* arena = nullptr;
  Shadow shadow = {};
  // Of each four bytes of the stacks, what wgmma makes of it: see Register. Looked at once a launch has used wgmma.
  unsigned char* registers = nullptr;
  Warpgroup warpgroups[kMaxThreads / kWarpgroupSize];
  // What this launch may touch of global memory; every buffer of the device where nothing is said.
  std::vector<Buffer> buffers;
  // The one that was touched last.
  const unsigned char *near_first = nullptr, *near_end = nullptr;

  // Of a cluster: its blocks, this one's number among them, and since its last barrier: which two bytes of this block's
  // shared memory others have read, and whether they have any, or one of its own threads has arrived at the next.
  const std::vector<Block*>* cluster = nullptr;
  unsigned rank = 0;
  std::vector<bool> read_by_others;
  bool meets_others = false;

  explicit Block(History& history);
  ~Block();
  void begin(Index which);
  bool go_on();
  bool waits_for_cluster() const;
  void leave_cluster_barrier();
  unsigned next_of(Warp& warp);
  bool release();
  void report_stuck();
};

// What a word of a thread's stack is to wgmma.
enum Register : unsigned char { kAccumulator = 1, kUnderWay = 2 };

// The kernel that was launched before the one that runs.
const char* name_before(const Block& block);

extern Block* running;
extern bool watching_registers;
extern const unsigned char* running_stacks;

// The buffers of a launch, from what it was told of its arguments.
std::vector<Buffer> buffers_of(const void* const* arguments, const std::size_t* bytes, std::size_t count);

void judge_second_write(Block& block);
void expect_same(Block& block, const unsigned char* where, std::size_t bytes, unsigned writer);
// Whether what `other` did at a time is done for `self`, by identity or by barriers since.
inline bool ordered(const Block& block, std::uint32_t time, unsigned other, unsigned self) {
  if (time < block.barrier_time || other == self) return true;
  return warp_of(other) == warp_of(self) && time < block.warps[warp_of(self)].time;
}
// Whether what touched each two bytes last touched all of them: so it is of most accesses, and judged once.
inline bool uniform(const Mark* marks, std::size_t count) {
  Mark other = 0;
  for (std::size_t i = 1; i < count; ++i) other |= marks[i] ^ marks[0];
  return other == 0;
}
// The last write to a byte of shared memory.
Mark last_write(const Block& block, unsigned offset);
void count_async_read(Block& block, unsigned offset, std::size_t bytes, bool begins);
// A write to shared memory where other blocks of the cluster may read.
void judge_cluster_write(Block& block, unsigned offset, std::size_t bytes);
void touch_register(Block& block, std::size_t offset, std::size_t bytes, bool write);
void meet_warpgroup();
void forget_products(Block& block, Fiber& fiber);
void set_pending(Block& block, unsigned offset, std::size_t bytes, bool pending);

}  // namespace emulator
