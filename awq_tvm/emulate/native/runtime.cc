// Runs a launch: blocks one after another, those of a cluster by turns, the threads of each as fibers.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

namespace emulator {

Block* running = nullptr;
bool watching_registers = false;
const unsigned char* running_stacks = nullptr;

namespace {

Kernel* kernels = nullptr;
std::vector<Buffer> next_buffers;
bool next_overlaps = false, next_begins_alone = false;
unsigned next_cluster = 1;

unsigned char* reserve(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<unsigned char*>(memory);
}

void describe(const Block& block, char* text, std::size_t length) {
  const Index thread = block.positions[block.current];
  std::snprintf(text, length, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.kernel->name, block.index.x,
                block.index.y, block.index.z, thread.x, thread.y, thread.z);
}

// Lets the next thread of the warp go on that can, or the scheduler where none can. Comes back when this one can.
void leave() {
  Block& block = *running;
  if (block.second_write.bytes && !block.failed) judge_second_write(block);
  const unsigned self = block.current;
  Warp& warp = block.warps[self / kWarpSize];
  Context& own = block.contexts[self];
  if (block.failed || !warp.ready) return switch_to(own, block.scheduler);
  const unsigned next = block.next_of(warp);
  if (next != self) switch_to(own, block.contexts[next]);
}

unsigned bit_of(unsigned thread) { return 1u << thread % kWarpSize; }

void enter() {
  Block& block = *running;
  block.kernel->call(block.arguments);
  const Fiber& self = block.fibers[block.current];
  if (!self.products.reads.empty()) fail("the thread ends while a wgmma is under way");
  if (self.arrived) fail("the thread ends, and has not waited at a barrier of the cluster where it arrived");
  if (!block.read_by_others.empty())
    fail("missing barrier of the cluster: the thread ends, and another block read its shared memory since the last");
  if (block.overlaps && !self.waited)
    fail("the thread ends without griddepcontrol.wait in a launch that may begin early: who waits for it would not wait for "
         "kernel %s, launched before", name_before(block));
  block.warps[block.current / kWarpSize].done |= bit_of(block.current);
  --block.left;
  leave();
}

}  // namespace

Kernel::Kernel(const char* name, const char* parameters, void (*call)(void**))
    : name(name), parameters(parameters), call(call), next(kernels) {
  kernels = this;
}

void fail(const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  Block& block = *running;
  char where[256];
  describe(block, where, sizeof where);
  block.message = std::string(where) + ": " + text;
  block.failed = true;
  leave();
  std::abort();  // a failed block's fibers are not resumed
}

Index thread_index() { return running->positions[running->current]; }
Index block_index() { return running->index; }
Index block_size() { return running->size; }
Index grid_size() { return running->grid; }
unsigned lane() { return running->current % kWarpSize; }

unsigned live_lanes() {
  const Warp& warp = running->warps[running->current / kWarpSize];
  return warp.all & ~warp.done;
}

void block_barrier(int site) {
  Warp& warp = running->warps[running->current / kWarpSize];
  warp.at_barrier |= bit_of(running->current);
  warp.site[running->current % kWarpSize] = site;
  leave();
}

const char* name_before(const Block& block) {
  const auto& names = block.unfinished.names;
  return names.size() > 1 ? names[names.size() - 2] : "(none)";
}

unsigned cluster_rank() { return running->rank; }

void cluster_arrive() {
  bool& arrived = running->fibers[running->current].arrived;
  if (arrived) fail("the thread arrives at a barrier of the cluster, and has not waited at the one before");
  arrived = running->meets_others = true;
}

void cluster_wait() {
  Block& block = *running;
  if (!std::exchange(block.fibers[block.current].arrived, false))
    fail("the thread waits at a barrier of the cluster without arriving there");
  block.warps[block.current / kWarpSize].at_cluster |= bit_of(block.current);
  leave();
}

void wait_for_launches() { running->fibers[running->current].waited = true; }

void meet_warpgroup() {
  running->warps[running->current / kWarpSize].at_wgmma |= bit_of(running->current);
  leave();
}

void meet(Work work, unsigned mask, void* mine) {
  Block& block = *running;
  Warp& warp = block.warps[block.current / kWarpSize];
  const unsigned own = block.current % kWarpSize;
  if (!(mask >> own & 1)) fail("lane %u is not in the mask %#x of its warp-wide operation", own, mask);
  warp.work[own] = work;
  warp.mask[own] = mask;
  warp.brought[own] = mine;
  warp.meeting |= 1u << own;
  if ((warp.meeting & mask) == mask) {
    bool all = true;
    for (unsigned i = 0; i < kWarpSize; ++i)
      all &= !(mask >> i & 1) | ((warp.work[i] == work) & (warp.mask[i] == mask));
    if (all) {
      if (work) work(warp.brought, mask);
      else if (mask == ~0u) warp.time = ++block.time;
      warp.meeting &= ~mask;
      warp.ready |= mask;
    }
  }
  leave();
}

void warp_barrier(unsigned mask) { meet(nullptr, mask, nullptr); }

unsigned char* shared_array(unsigned offset, std::size_t bytes) {
  auto& arrays = running->arrays;
  const bool known = std::any_of(arrays.begin(), arrays.end(), [&](const Range& a) { return a.first == offset; });
  if (!known) arrays.push_back({offset, offset + bytes});
  return running->arena + offset;
}

unsigned char* dynamic_shared() { return running->arena + kDynamic; }

std::uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - running->arena;
  if (offset < 0 || offset >= std::ptrdiff_t(kArenaBytes)) fail("the address of shared memory was asked of other memory");
  return static_cast<std::uint32_t>(offset);
}

unsigned char* shared_pointer(std::uint32_t address) {
  if (address >= kArenaBytes) fail("%#x is no address of shared memory", address);
  return running->arena + address;
}

void copy_async(std::uint32_t to, const void* from, unsigned bytes, unsigned source_bytes) {
  if (source_bytes > bytes) fail("an asynchronous copy of %u bytes takes %u", bytes, source_bytes);
  if (reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
    fail("asynchronous copy of %u bytes from an address that is no multiple of it: misaligned", bytes);
  if (source_bytes) check_read(from, source_bytes);
  // It may land at any time from now on, so that it counts as a write now and when it is waited for.
  check_write(shared_pointer(to), bytes);
  set_pending(*running, to, bytes, true);
  Fiber& self = running->fibers[running->current];
  self.copies.push_back({to, from, bytes, source_bytes, self.committed});
}

void commit_copies() { ++running->fibers[running->current].committed; }

void wait_copies(unsigned left) {
  Fiber& self = running->fibers[running->current];
  auto& copies = self.copies;
  // The last group is open: it has not been committed, and is not waited for.
  if (self.committed <= left || copies.empty()) return;
  std::size_t done = 0;
  for (; done < copies.size() && copies[done].group < self.committed - left; ++done) {
    const Copy& copy = copies[done];
    set_pending(*running, copy.to, copy.bytes, false);
    check_write(shared_pointer(copy.to), copy.bytes);
    std::memset(shared_pointer(copy.to), 0, copy.bytes);
    std::memcpy(shared_pointer(copy.to), copy.from, copy.source_bytes);
  }
  copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(done));
}

Block::Block(History& history)
    : written(history.written),
      unfinished(history.unfinished),
      stacks(reserve(kStackBytes * kMaxThreads)),
      arena(reserve(kArenaBytes)),
      registers(reserve(kStackBytes * kMaxThreads / 4)) {
  const auto marks = [](std::size_t count) { return reinterpret_cast<Mark*>(reserve(count * sizeof(Mark))); };
  shadow = {marks(kArenaBytes / 2), marks(kArenaBytes / 2), marks(kArenaBytes), marks(kArenaBytes)};
}

Block::~Block() {
  munmap(stacks, kStackBytes * kMaxThreads);
  munmap(arena, kArenaBytes);
  for (Mark* marks : {shadow.writes, shadow.reads}) munmap(marks, kArenaBytes / 2 * sizeof(Mark));
  for (Mark* marks : {shadow.byte_writes, shadow.byte_reads}) munmap(marks, kArenaBytes * sizeof(Mark));
  munmap(registers, kStackBytes * kMaxThreads / 4);
}

// The lowest lane that is ready; it runs from now on.
unsigned Block::next_of(Warp& warp) {
  const auto lane = static_cast<unsigned>(__builtin_ctz(warp.ready));
  warp.ready &= warp.ready - 1;
  return current = static_cast<unsigned>(&warp - warps) * kWarpSize + lane;
}

// Lets go on who waits at a barrier of the block, or of its warpgroup, if all have come; false if nobody does.
bool Block::release() {
  const unsigned count = (threads + kWarpSize - 1) / kWarpSize;
  bool released = false, at_barrier = true;
  for (unsigned w = 0; w < count; ++w) at_barrier &= warps[w].at_barrier == warps[w].all;
  if (at_barrier) {
    for (unsigned i = 0; i < threads; ++i)
      if (warps[i / kWarpSize].site[i % kWarpSize] != warps[0].site[0]) {
        current = i;
        message = "threads of the block wait at different barriers: divergent";
        return false;
      }
    for (unsigned w = 0; w < count; ++w) std::swap(warps[w].ready, warps[w].at_barrier);
    barrier_time = ++time;
    return true;
  }
  constexpr unsigned kWarps = kWarpgroupSize / kWarpSize;
  for (unsigned first = 0; first + kWarps <= count; first += kWarps)
    if (std::all_of(warps + first, warps + first + kWarps, [](const Warp& warp) { return warp.at_wgmma == ~0u; })) {
      for (unsigned w = first; w < first + kWarps; ++w) std::swap(warps[w].ready, warps[w].at_wgmma);
      released = true;
    }
  return released;
}

bool Block::waits_for_cluster() const {
  return std::all_of(warps, warps + (threads + kWarpSize - 1) / kWarpSize,
                     [](const Warp& warp) { return warp.at_cluster == warp.all; });
}

void Block::leave_cluster_barrier() {
  for (unsigned w = 0; w * kWarpSize < threads; ++w) std::swap(warps[w].ready, warps[w].at_cluster);
  cluster_time = barrier_time = ++time;
  read_by_others.clear();
  meets_others = false;
}

void Block::report_stuck() {
  unsigned done = 0, waiting = 0, meeting = 0, clustered = 0, first = threads;
  for (unsigned w = 0; w * kWarpSize < threads; ++w) {
    const Warp& warp = warps[w];
    done += __builtin_popcount(warp.done);
    waiting += __builtin_popcount(warp.at_barrier);
    meeting += __builtin_popcount(warp.meeting | warp.at_wgmma);
    clustered += __builtin_popcount(warp.at_cluster);
    if (first == threads && warp.done != warp.all) first = w * kWarpSize + __builtin_ctz(warp.all & ~warp.done);
  }
  current = first;
  const bool barrier = warps[current / kWarpSize].at_barrier & bit_of(current);
  const Index& at = positions[current];
  char text[512];
  std::snprintf(text, sizeof text,
                "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): divergent %s: of %u threads %u wait at a barrier "
                "of the block, %u at one of their warp, %u at one of the cluster, %u have ended%s%s",
                kernel->name, index.x, index.y, index.z, at.x, at.y, at.z, barrier ? "barrier" : "warp-wide operation",
                threads, waiting, meeting, clustered, done, message.empty() ? "" : "; ", message.c_str());
  message = text;
  failed = true;
}

void Block::begin(Index which) {
  index = which;
  if (time >> 31) {  // long before it comes round
    time = 0;
    std::memset(shadow.writes, 0, kArenaBytes / 2 * sizeof(Mark));
    std::memset(shadow.reads, 0, kArenaBytes / 2 * sizeof(Mark));
  }
  first_time = barrier_time = cluster_time = ++time;
  read_by_others.clear();
  meets_others = false;
  failed = false;
  message.clear();
  second_write.bytes = 0;
  if (watching_registers) {
    for (Fiber& fiber : fibers) forget_products(*this, fiber);
    for (Warpgroup& warpgroup : warpgroups) warpgroup = {};
  }
  arrays.assign(1, {kDynamic, kDynamic + dynamic_bytes});
  near_array = {};
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    // What a block that ended, or failed, has left under way.
    for (const Copy& copy : fiber.copies) set_pending(*this, copy.to, copy.bytes, false);
    fiber.copies.clear();
    fiber.committed = 0;
    fiber.waited = fiber.arrived = false;
    positions[i] = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    prepare(contexts[i], stacks + kStackBytes * i, kStackBytes, enter);
  }
  for (unsigned w = 0; w * kWarpSize < threads; ++w) {
    Warp& warp = warps[w];
    warp.all = warp.ready = threads - w * kWarpSize < kWarpSize ? (1u << threads % kWarpSize) - 1 : ~0u;
    warp.at_barrier = warp.meeting = warp.at_wgmma = warp.at_cluster = warp.done = 0;
    warp.time = 0;
  }
  left = threads;
}

// A warp's threads run until each of them waits for another warp, or has ended; then those of the next do. Until all wait for
// the other blocks of the cluster, or have ended; false if something went wrong.
bool Block::go_on() {
  running = this;
  running_stacks = stacks;
  while (left) {
    for (unsigned w = 0; w * kWarpSize < threads; ++w) {
      if (!warps[w].ready) continue;
      switch_to(scheduler, contexts[next_of(warps[w])]);
      if (failed) return false;
    }
    if (left && !release()) {
      if (waits_for_cluster()) return true;
      report_stuck();
      return false;
    }
  }
  return true;
}

// Runs the blocks of a cluster, which have begun. Null, or the one in which something went wrong.
Block* run_together(const std::vector<Block*>& blocks) {
  for (;;) {
    for (Block* block : blocks)
      if (block->left && !block->go_on()) return block;
    const auto ended = std::find_if(blocks.begin(), blocks.end(), [](const Block* block) { return !block->left; });
    const auto waits = std::find_if(blocks.begin(), blocks.end(), [](const Block* block) { return block->left != 0; });
    if (waits == blocks.end()) return nullptr;
    if (ended != blocks.end()) {
      running = *waits;
      (*waits)->current = 0;
      (*waits)->report_stuck();
      return *waits;
    }
    for (Block* block : blocks) block->leave_cluster_barrier();
  }
}

}  // namespace emulator

using namespace emulator;

extern "C" {

const char* awq_emulate_kernels() {
  static const std::string names = [] {
    std::string text;
    for (Kernel* kernel = kernels; kernel; kernel = kernel->next)
      text += std::string(kernel->name) + " " + kernel->parameters + "\n";
    return text;
  }();
  return names.c_str();
}

// Kernel, block and thread that run; empty where none does.
const char* awq_emulate_where() {
  static char text[256];
  text[0] = 0;
  if (running) describe(*running, text, sizeof text);
  return text;
}

// Of the next launch: where its arguments begin in global memory and how long each is, 0 where that
// is not known and all of the buffer around it may be touched.
void awq_emulate_arguments(const void* const* first, const std::size_t* bytes, std::size_t count) {
  next_buffers = buffers_of(first, bytes, count);
}

// The next launch may begin before those before it have ended.
void awq_emulate_overlap() { next_overlaps = true; }

// Of the next launch, so many blocks along x are a cluster each.
void awq_emulate_cluster(unsigned blocks) { next_cluster = blocks; }

// All launches have ended: the host has waited for them.
void awq_emulate_synchronize() { next_begins_alone = true; }

int awq_emulate_launch(const char* name, void** arguments, const std::uint32_t grid[3], const std::uint32_t block[3],
                       std::uint32_t dynamic_shared_bytes, char* error, std::size_t error_length) {
  const bool overlaps = std::exchange(next_overlaps, false);
  const unsigned of_cluster = std::exchange(next_cluster, 1);
  const auto refuse = [&](const std::string& why) {
    std::snprintf(error, error_length, "%s", why.c_str());
    return 1;
  };
  const Kernel* kernel = kernels;
  while (kernel && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
  if (!kernel) return refuse(std::string("there is no kernel ") + name);
  const std::uint64_t threads = std::uint64_t(block[0]) * block[1] * block[2];
  if (threads == 0 || threads > kMaxThreads) return refuse(std::string("kernel ") + name + ": a block of " + std::to_string(threads) + " threads");
  if (dynamic_shared_bytes > kStatic - kDynamic) return refuse(std::string("kernel ") + name + ": too much dynamic shared memory");
  const std::uint64_t blocks = std::uint64_t(grid[0]) * grid[1] * grid[2];
  if (blocks == 0) return refuse(std::string("kernel ") + name + ": a grid of no blocks");
  if (of_cluster == 0 || of_cluster > kMostOfCluster || grid[0] % of_cluster)
    return refuse(std::string("kernel ") + name + ": clusters of " + std::to_string(of_cluster) + " in " +
                  std::to_string(grid[0]) + " blocks");

  // The block that runs is a plain global, which every access looks at: one launch at a time.
  static std::mutex launching;
  const std::lock_guard<std::mutex> hold(launching);
  static History history;
  history.written.begin(history.unfinished.first);
  if (std::exchange(next_begins_alone, false) || !overlaps) history.unfinished = {history.written.launch(), {}};
  history.unfinished.names.push_back(kernel->name);
  // Kept for the next launch: stacks and arena are large.
  static std::vector<std::unique_ptr<Block>> kept;
  while (kept.size() < of_cluster) kept.push_back(std::make_unique<Block>(history));
  std::vector<Block*> cluster;
  for (unsigned rank = 0; rank < of_cluster; ++rank) {
    Block* own = kept[rank].get();
    cluster.push_back(own);
    own->kernel = kernel;
    own->arguments = arguments;
    own->grid = {grid[0], grid[1], grid[2]};
    own->size = {block[0], block[1], block[2]};
    own->threads = static_cast<unsigned>(threads);
    own->dynamic_bytes = dynamic_shared_bytes;
    own->overlaps = overlaps;
    own->buffers = next_buffers;
    own->near_first = own->near_end = nullptr;
    own->cluster = &cluster;
    own->rank = rank;
  }
  next_buffers.clear();
  Block* bad = nullptr;
  std::uint32_t serial = 0;
  for (unsigned z = 0; !bad && z < grid[2]; ++z)
    for (unsigned y = 0; !bad && y < grid[1]; ++y)
      for (unsigned x = 0; !bad && x < grid[0]; x += of_cluster) {
        for (Block* own : cluster) {
          own->serial = ++serial;
          own->begin({x + own->rank, y, z});
        }
        watching_registers = false;
        bad = run_together(cluster);
      }
  running = nullptr;
  return bad ? refuse(bad->message) : 0;
}
}
