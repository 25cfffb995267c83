// Runs a launch: blocks one after another, the threads of each as fibers.
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

unsigned char* reserve(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<unsigned char*>(memory);
}

void describe(const Block& block, char* text, std::size_t length) {
  const Index thread = block.fibers[block.current].position;
  std::snprintf(text, length, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.kernel->name, block.index.x,
                block.index.y, block.index.z, thread.x, thread.y, thread.z);
}

void leave() {
  Block& block = *running;
  if (block.second_write.bytes && !block.failed) judge_second_write(block);
  switch_to(block.fibers[block.current].context, block.scheduler);
}

void enter() {
  running->kernel->call(running->arguments);
  if (!running->fibers[running->current].products.reads.empty()) fail("the thread ends while a wgmma is under way");
  running->fibers[running->current].state = State::kDone;
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

Index thread_index() { return running->fibers[running->current].position; }
Index block_index() { return running->index; }
Index block_size() { return running->size; }
Index grid_size() { return running->grid; }
unsigned lane() { return running->current % kWarpSize; }

unsigned live_lanes() {
  const unsigned first = running->current / kWarpSize * kWarpSize;
  unsigned mask = 0;
  for (unsigned i = 0; i < kWarpSize && first + i < running->threads; ++i)
    if (running->fibers[first + i].state != State::kDone) mask |= 1u << i;
  return mask;
}

void block_barrier(int site) {
  Fiber& self = running->fibers[running->current];
  self.state = State::kBarrier;
  self.site = site;
  leave();
}

const Deposit* meet(Meeting meeting, unsigned mask, const void* mine, std::size_t bytes) {
  Block& block = *running;
  Fiber& self = block.fibers[block.current];
  const unsigned own = block.current % kWarpSize, first = block.current - own;
  if (!(mask >> own & 1)) fail("lane %u is not in the mask %#x of its warp-wide operation", own, mask);
  // A lane that goes on to the next meeting must not overwrite what others have still to read of this one.
  self.parity ^= 1;
  const unsigned parity = self.parity;
  if (bytes) std::memcpy(block.deposits[parity][block.current].bytes, mine, bytes);
  self.state = State::kMeeting;
  self.meeting = meeting;
  self.mask = mask;
  leave();
  return block.deposits[parity] + first;
}

void warp_barrier(unsigned mask) { meet(Meeting::kSync, mask, nullptr, 0); }

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
  running->fibers[running->current].copies.back().push_back({to, from, bytes, source_bytes});
}

void commit_copies() { running->fibers[running->current].copies.emplace_back(); }

void wait_copies(unsigned left) {
  auto& groups = running->fibers[running->current].copies;
  // The last one is open: it has not been committed, and is not waited for.
  if (groups.size() <= left + 1) return;
  const std::size_t done = groups.size() - 1 - left;
  for (std::size_t i = 0; i < done; ++i)
    for (const Copy& copy : groups[i]) {
      set_pending(*running, copy.to, copy.bytes, false);
      check_write(shared_pointer(copy.to), copy.bytes);
      std::memset(shared_pointer(copy.to), 0, copy.bytes);
      std::memcpy(shared_pointer(copy.to), copy.from, copy.source_bytes);
    }
  groups.erase(groups.begin(), groups.begin() + std::ptrdiff_t(done));
}

Block::Block()
    : stacks(reserve(kStackBytes * kMaxThreads)),
      arena(reserve(kArenaBytes)),
      shadow(reinterpret_cast<Shadow*>(reserve(kArenaBytes * sizeof(Shadow)))),
      registers(reserve(kStackBytes * kMaxThreads / 4)) {}

Block::~Block() {
  munmap(stacks, kStackBytes * kMaxThreads);
  munmap(arena, kArenaBytes);
  munmap(shadow, kArenaBytes * sizeof(Shadow));
  munmap(registers, kStackBytes * kMaxThreads / 4);
}

// Lets go on who waits for each other and is complete; false if nobody is.
bool Block::release() {
  bool released = false;
  unsigned at_barrier = 0;
  for (unsigned i = 0; i < threads; ++i) at_barrier += fibers[i].state == State::kBarrier;
  if (at_barrier == threads) {
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].site != fibers[0].site) {
        current = i;
        message = "threads of the block wait at different barriers: divergent";
        return false;
      }
      fibers[i].state = State::kReady;
    }
    ++epoch;
    return true;
  }
  const auto at_wgmma = [](const Fiber& fiber) {
    return fiber.state == State::kMeeting && fiber.meeting == Meeting::kWgmma;
  };
  for (unsigned first = 0; first + kWarpgroupSize <= threads; first += kWarpgroupSize)
    if (std::all_of(fibers + first, fibers + first + kWarpgroupSize, at_wgmma)) {
      for (unsigned i = first; i < first + kWarpgroupSize; ++i) fibers[i].state = State::kReady;
      released = true;
    }
  for (unsigned first = 0; first < threads; first += kWarpSize)
    for (unsigned i = first; i < threads && i < first + kWarpSize; ++i) {
      if (fibers[i].state != State::kMeeting || fibers[i].meeting == Meeting::kWgmma) continue;
      const unsigned mask = fibers[i].mask;
      unsigned come = 0;
      for (unsigned j = first; j < threads && j < first + kWarpSize; ++j)
        if (fibers[j].state == State::kMeeting && fibers[j].mask == mask && fibers[j].meeting == fibers[i].meeting)
          come |= 1u << (j - first);
      if (come != mask) continue;
      if (fibers[i].meeting == Meeting::kSync && mask == ~0u) ++warp_epochs[first / kWarpSize];
      for (unsigned j = first; j < threads && j < first + kWarpSize; ++j)
        if (mask >> (j - first) & 1) fibers[j].state = State::kReady;
      released = true;
    }
  return released;
}

void Block::report_stuck() {
  for (unsigned i = 0; i < threads; ++i)
    if (fibers[i].state == State::kBarrier || fibers[i].state == State::kMeeting) {
      current = i;
      break;
    }
  const Fiber& fiber = fibers[current];
  unsigned done = 0, waiting = 0, meeting = 0;
  for (unsigned i = 0; i < threads; ++i) {
    done += fibers[i].state == State::kDone;
    waiting += fibers[i].state == State::kBarrier;
    meeting += fibers[i].state == State::kMeeting;
  }
  char text[512];
  std::snprintf(text, sizeof text,
                "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): divergent %s: of %u threads %u wait at a barrier "
                "of the block, %u at one of their warp, %u have ended%s%s",
                kernel->name, index.x, index.y, index.z, fiber.position.x, fiber.position.y, fiber.position.z,
                fiber.state == State::kBarrier ? "barrier" : "warp-wide operation", threads, waiting, meeting, done,
                message.empty() ? "" : "; ", message.c_str());
  message = text;
  failed = true;
}

bool Block::run(Index which) {
  index = which;
  running = this;
  running_stacks = stacks;
  first_epoch = ++epoch;
  ++serial;
  failed = false;
  message.clear();
  second_write.bytes = 0;
  if (watching_registers) {
    for (Fiber& fiber : fibers) forget_products(*this, fiber);
    for (Warpgroup& warpgroup : warpgroups) warpgroup = {};
    watching_registers = false;
  }
  arrays.assign(1, {kDynamic, kDynamic + dynamic_bytes});
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    for (const auto& group : fiber.copies)  // left by a block that ended, or failed, with copies under way
      for (const Copy& copy : group) set_pending(*this, copy.to, copy.bytes, false);
    fiber.state = State::kReady;
    fiber.parity = 0;
    fiber.position = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    fiber.copies.assign(1, {});
    prepare(fiber.context, stacks + kStackBytes * i, kStackBytes, enter);
  }
  unsigned left = threads;
  while (left) {
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].state != State::kReady) continue;
      current = i;
      switch_to(scheduler, fibers[i].context);
      if (failed) return false;
      left -= fibers[i].state == State::kDone;
    }
    if (left && !release()) {
      report_stuck();
      return false;
    }
  }
  return true;
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

int awq_emulate_launch(const char* name, void** arguments, const std::uint32_t grid[3], const std::uint32_t block[3],
                       std::uint32_t dynamic_shared_bytes, char* error, std::size_t error_length) {
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

  // The block that runs is a plain global, which every access looks at: one launch at a time.
  static std::mutex launching;
  const std::lock_guard<std::mutex> hold(launching);
  // Kept for the next launch: stacks and arena are large.
  static Block* own = new Block;
  own->kernel = kernel;
  own->arguments = arguments;
  own->grid = {grid[0], grid[1], grid[2]};
  own->size = {block[0], block[1], block[2]};
  own->threads = static_cast<unsigned>(threads);
  own->dynamic_bytes = dynamic_shared_bytes;
  own->written.begin();
  own->buffers = std::move(next_buffers);
  next_buffers.clear();
  own->near_first = own->near_end = nullptr;
  bool good = true;
  for (unsigned z = 0; good && z < grid[2]; ++z)
    for (unsigned y = 0; good && y < grid[1]; ++y)
      for (unsigned x = 0; good && x < grid[0]; ++x) good = own->run({x, y, z});
  running = nullptr;
  return good ? 0 : refuse(own->message);
}
}
