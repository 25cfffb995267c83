// Every access of a kernel to memory. The kernel's translation unit is compiled with -fsanitize=thread, which calls a
// hook for each load and store that is not to the stack; the hooks are these, and no sanitizer is linked.
#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "block.h"

namespace emulator {

bool ordered(const Block& block, std::uint32_t epoch, std::uint32_t warp_epoch, unsigned other, unsigned self) {
  if (epoch < block.epoch || other == self) return true;
  const unsigned warp = self / kWarpSize;
  return other / kWarpSize == warp && warp_epoch < block.warp_epochs[warp];
}

namespace {

// Global memory that kernels may touch: first byte to end.
std::map<const unsigned char*, const unsigned char*> regions;
std::shared_mutex regions_lock;
std::uint64_t regions_version = 0;
std::uint64_t seen_version = 0;

// The region that begins last before `pointer`, and the first after it; null where there is none.
struct Neighbours {
  const unsigned char *first, *end, *next;
};

Neighbours neighbours(const unsigned char* pointer) {
  std::shared_lock<std::shared_mutex> hold(regions_lock);
  seen_version = regions_version;
  Neighbours found{};
  const auto after = regions.upper_bound(pointer);
  if (after != regions.end()) found.next = after->first;
  if (after != regions.begin()) {
    found.first = std::prev(after)->first;
    found.end = std::prev(after)->second;
  }
  return found;
}

// Where a launch has said what its arguments are, anything else is out of bounds, be it memory of the device.
void argument_access(Block& block, const unsigned char* pointer, std::size_t bytes, const char* what) {
  const Buffer* before = nullptr;
  for (const Buffer& buffer : block.buffers) {
    if (pointer >= buffer.first && pointer + bytes <= buffer.end) {
      block.near_first = buffer.first;
      block.near_end = buffer.end;
      return;
    }
    if (buffer.first <= pointer && (!before || before->first < buffer.first)) before = &buffer;
  }
  if (before)
    fail("%s of %zu bytes, %td bytes into a tensor of %td: out of bounds", what, bytes, pointer - before->first,
         before->end - before->first);
  fail("%s of %zu bytes at %p, before every tensor of the launch: out of bounds", what, bytes,
       static_cast<const void*>(pointer));
}

void global_access(Block& block, const unsigned char* pointer, std::size_t bytes, const char* what) {
  if (seen_version == regions_version && pointer >= block.near_first && pointer + bytes <= block.near_end) return;
  if (!block.buffers.empty()) return argument_access(block, pointer, bytes, what);
  // A failing fiber is left for good, so that it must not hold the lock.
  const Neighbours found = neighbours(pointer);
  if (found.first && pointer + bytes <= found.end) {
    block.near_first = found.first;
    block.near_end = found.end;
    return;
  }
  if (found.first && pointer < found.end + 4096)
    fail("%s of %zu bytes, %td bytes into a buffer of %td: out of bounds", what, bytes, pointer - found.first,
         found.end - found.first);
  if (found.next && pointer + 4096 > found.next)
    fail("%s of %zu bytes, %td bytes before a buffer: out of bounds", what, bytes, found.next - pointer);
  fail("%s of %zu bytes at %p, which is no buffer of the device: out of bounds", what, bytes,
       static_cast<const void*>(pointer));
}

// Blocks of a launch are in no order; threads of a block are ordered by its barriers.
bool ordered(const Block& block, const Writer& writer) {
  return writer.block == block.serial && ordered(block, writer.epoch, writer.warp_epoch, writer.thread, block.current);
}

void global_order(Block& block, const unsigned char* pointer, std::size_t bytes, bool write) {
  const auto first = reinterpret_cast<std::uintptr_t>(pointer) / 2;
  const auto last = (reinterpret_cast<std::uintptr_t>(pointer) + bytes - 1) / 2;
  if (!write && !block.written.maybe(first, last)) return;
  bool again = false;
  unsigned other = 0;
  for (std::uintptr_t unit = first; unit <= last; ++unit) {
    const Writer* found = block.written.find(unit);
    if (found && !ordered(block, *found)) {
      if (!write && found->block != block.serial)
        fail("no order: another block wrote global memory that thread %u reads", block.current);
      if (!write)
        fail("missing barrier: thread %u wrote global memory, and thread %u reads it", found->thread, block.current);
      again = true;
      other = found->thread;
    }
    if (!write) continue;
    Writer& writer = block.written.insert(unit);
    writer.block = block.serial;
    writer.epoch = block.epoch;
    writer.warp_epoch = block.warp_epochs[block.current / kWarpSize];
    writer.thread = block.current;
  }
  if (again) expect_same(block, pointer, bytes, other);
}

__attribute__((noinline)) void access_memory(const void* where, std::size_t bytes, bool write, bool vector) {
  Block* block = running;
  if (block == nullptr) return;
  const auto* pointer = static_cast<const unsigned char*>(where);
  if (block->second_write.bytes) judge_second_write(*block);
  // What lanes gave each other is read by inline functions of the headers.
  if (static_cast<std::size_t>(pointer - reinterpret_cast<const unsigned char*>(block)) < sizeof(Block)) return;
  // Loads and stores of 2, 4, 8 and 16 bytes are one instruction each on the device.
  if (vector && reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0)
    fail("%s of %zu bytes at an address that is no multiple of %zu: misaligned", write ? "write" : "read", bytes,
         bytes);
  const auto offset = static_cast<std::size_t>(pointer - block->arena);
  if (offset < kArenaBytes) {
    for (const Range& array : block->arrays)
      if (offset >= array.first && offset + bytes <= array.end) {
        write ? write_shared(*block, offset, bytes) : read_shared(*block, offset, bytes);
        return;
      }
    fail("%s of %zu bytes of shared memory outside its arrays: out of bounds", write ? "write" : "read", bytes);
  }
  global_access(*block, pointer, bytes, write ? "write" : "read");
  // A byte of its own is what neighbours in two bytes have: told apart by nobody here.
  if (bytes > 1) global_order(*block, pointer, bytes, write);
}

// Most accesses are to the threads' own stacks, so that this part is small and inline.
inline __attribute__((always_inline)) void access(const void* where, std::size_t bytes, bool write, bool vector) {
  const auto from_stack = static_cast<std::size_t>(static_cast<const unsigned char*>(where) - running_stacks);
  if (__builtin_expect(from_stack >= kStackBytes * kMaxThreads, 0)) access_memory(where, bytes, write, vector);
  else if (__builtin_expect(watching_registers, 0)) touch_register(*running, from_stack, bytes, write);
}

}  // namespace

void set_pending(Block& block, unsigned offset, std::size_t bytes, bool pending) {
  for (Shadow* s = block.shadow + offset; s != block.shadow + offset + bytes; ++s) s->pending = pending;
}

void judge_second_write(Block& block) {
  SecondWrite& write = block.second_write;
  const std::size_t bytes = write.bytes;
  write.bytes = 0;
  if (std::memcmp(write.before, write.where, bytes) == 0) return;
  const auto offset = static_cast<std::size_t>(write.where - block.arena);
  if (offset < kArenaBytes)
    fail("missing barrier: thread %u wrote shared memory at %zu, and thread %u writes another value", write.writer,
         offset, block.current);
  fail("missing barrier: thread %u wrote global memory, and thread %u writes another value", write.writer,
       block.current);
}

void expect_same(Block& block, const unsigned char* where, std::size_t bytes, unsigned writer) {
  SecondWrite& write = block.second_write;
  write = {where, std::min(bytes, sizeof write.before), writer, {}};
  std::memcpy(write.before, where, write.bytes);
}

void write_shared(Block& block, unsigned offset, std::size_t bytes) {
  const unsigned self = block.current, warp = self / kWarpSize;
  bool again = false;
  unsigned other = 0;
  for (std::size_t i = 0; i < bytes; ++i) {
    Shadow& s = block.shadow[offset + i];
    if (s.pending) fail("write to shared memory at %zu that an asynchronous copy is about to fill", offset + i);
    if (s.async_reads) fail("write to shared memory at %zu that a wgmma under way reads", offset + i);
    if (s.write_epoch >= block.first_epoch &&
        !ordered(block, s.write_epoch, s.write_warp_epoch, s.writer, self))
      again = true, other = s.writer;
    if (s.read_epoch == block.epoch) {
      const bool clear = !s.read_by_warps && s.reader / kWarpSize == warp && s.read_warp_epoch < block.warp_epochs[warp];
      if (!clear && (s.read_by_lanes || s.read_by_warps || s.reader != self))
        fail("missing barrier: thread %u read shared memory at %zu, and thread %u writes it", unsigned(s.reader),
             offset + i, self);
    }
    s.write_epoch = block.epoch;
    s.write_warp_epoch = block.warp_epochs[warp];
    s.writer = static_cast<std::uint16_t>(self);
    s.read_epoch = 0;
    s.fences = static_cast<std::uint32_t>(block.fibers[self].proxy_fences.size());
  }
  if (again) expect_same(block, block.arena + offset, bytes, other);
}

void read_shared(Block& block, unsigned offset, std::size_t bytes) {
  const unsigned self = block.current, warp = self / kWarpSize;
  for (std::size_t i = 0; i < bytes; ++i) {
    Shadow& s = block.shadow[offset + i];
    if (s.pending) fail("read of shared memory at %zu that an asynchronous copy is about to fill", offset + i);
    if (s.write_epoch < block.first_epoch)
      fail("read of shared memory at %zu that nobody wrote: uninitialised", offset + i);
    if (!ordered(block, s.write_epoch, s.write_warp_epoch, s.writer, self))
      fail("missing barrier: thread %u wrote shared memory at %zu, and thread %u reads it", unsigned(s.writer),
           offset + i, self);
    if (s.read_epoch != block.epoch) {
      s.read_by_lanes = s.read_by_warps = false;
      s.reader = static_cast<std::uint16_t>(self);
    } else if (s.reader != self) {
      (s.reader / kWarpSize == warp ? s.read_by_lanes : s.read_by_warps) = true;
      s.reader = static_cast<std::uint16_t>(self);
    }
    s.read_epoch = block.epoch;
    s.read_warp_epoch = block.warp_epochs[warp];
  }
}

std::vector<Buffer> buffers_of(const void* const* arguments, const std::size_t* bytes, std::size_t count) {
  std::vector<Buffer> found;
  for (std::size_t i = 0; i < count; ++i) {
    const auto* first = static_cast<const unsigned char*>(arguments[i]);
    if (bytes[i]) {
      found.push_back({first, first + bytes[i]});
      continue;
    }
    const Neighbours around = neighbours(first);
    if (around.first && first < around.end) found.push_back({around.first, around.end});
  }
  return found;
}

void check_read(const void* pointer, std::size_t bytes) { access(pointer, bytes, false, true); }
void check_write(const void* pointer, std::size_t bytes) { access(pointer, bytes, true, true); }

}  // namespace emulator

using emulator::access;

extern "C" {

void awq_emulate_register(const void* base, std::size_t bytes) {
  std::unique_lock<std::shared_mutex> hold(emulator::regions_lock);
  const auto* first = static_cast<const unsigned char*>(base);
  emulator::regions[first] = first + bytes;
  ++emulator::regions_version;
}

void awq_emulate_unregister(const void* base) {
  std::unique_lock<std::shared_mutex> hold(emulator::regions_lock);
  emulator::regions.erase(static_cast<const unsigned char*>(base));
  ++emulator::regions_version;
}

#define HOOKS(size)                                                              \
  void __tsan_read##size(void* p) { access(p, size, false, true); }              \
  void __tsan_write##size(void* p) { access(p, size, true, true); }              \
  void __tsan_unaligned_read##size(void* p) { access(p, size, false, true); }    \
  void __tsan_unaligned_write##size(void* p) { access(p, size, true, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// Structures that are no power of two long, copied as their parts.
void __tsan_read_range(void* p, unsigned long bytes) { access(p, bytes, false, false); }
void __tsan_write_range(void* p, unsigned long bytes) { access(p, bytes, true, false); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
