// Every access of a kernel to memory. The kernel's translation unit is compiled with -fsanitize=thread, which calls a
// hook for each load and store that is not to the stack; the hooks are these, and no sanitizer is linked.
#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "block.h"

namespace emulator {

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
inline void global_order(Block& block, const unsigned char* pointer, std::size_t bytes, bool write, unsigned self) {
  const auto first = reinterpret_cast<std::uintptr_t>(pointer) / 2;
  const auto last = (reinterpret_cast<std::uintptr_t>(pointer) + bytes - 1) / 2;
  if (!write && block.written.untouched(first, last)) return;
  bool again = false;
  unsigned other = 0;
  for (std::uintptr_t unit = first; unit <= last; ++unit) {
    const Writer* found = block.written.find(unit);
    if (found && !(found->block == block.serial && ordered(block, found->time, found->thread, self))) {
      if (!write && found->block != block.serial)
        fail("no order: another block wrote global memory that thread %u reads", block.current);
      if (!write)
        fail("missing barrier: thread %u wrote global memory, and thread %u reads it", number_of(found->thread),
             block.current);
      again = true;
      other = number_of(found->thread);
    }
    if (write) block.written.insert(unit, block.serial, block.time, self);
  }
  if (again) expect_same(block, pointer, bytes, other);
}

// An access of a thread that has not waited for the launches before, which may still run: it may read what none of them
// writes. A write is refused wherever it goes, so that it need not be known what they read.
__attribute__((noinline)) void early_access(Block& block, const unsigned char* pointer, std::size_t bytes, bool write) {
  if (write)
    fail("write of %zu bytes of global memory before griddepcontrol.wait: kernel %s, launched before, may still run", bytes,
         name_before(block));
  const Unfinished& unfinished = block.unfinished;
  const std::size_t before = unfinished.names.size() - 1;
  const auto first = reinterpret_cast<std::uintptr_t>(pointer) / 2;
  const auto last = (reinterpret_cast<std::uintptr_t>(pointer) + bytes - 1) / 2;
  for (std::uintptr_t unit = first; unit <= last; ++unit) {
    const std::uint32_t launch = block.written.launch_of(unit);
    if (launch >= unfinished.first && launch - unfinished.first < before)
      fail("read of %zu bytes before griddepcontrol.wait: kernel %s, launched before, writes them and may still run", bytes,
           unfinished.names[launch - unfinished.first]);
  }
}

[[noreturn]] void fail_unwritten(unsigned offset) {
  fail("read of shared memory at %u that nobody wrote: uninitialised", offset);
}

inline void judge_busy(Mark m, unsigned offset, const char* what) {
  if (m & kPending) fail("%s shared memory at %u that an asynchronous copy is about to fill", what, offset);
}

// A read of bytes that were written last at `m`; of at most two at `offset`.
inline void judge_read(Block& block, Mark m, unsigned offset, unsigned self) {
  if (time_of(m) < block.first_time) fail_unwritten(offset);
  if (!ordered(block, time_of(m), thread_of(m), self))
    fail("missing barrier: thread %u wrote shared memory at %u, and thread %u reads it", number_of(thread_of(m)), offset,
         number_of(self));
}

// The mark of those who read since the last barrier of the block, one more of them.
inline Mark read_again(const Block& block, Mark before, unsigned self) {
  const Mark mine = mark(block.time, self);
  if (time_of(before) < block.barrier_time) return mine;
  const unsigned other = thread_of(before);
  const Mark among = other == self ? 0 : warp_of(other) == warp_of(self) ? kReadByLanes : kReadByWarps;
  return mine | (before & kFlags) | among;
}

// A write to bytes that were written and read last at two marks. True if it is to be the value that is there.
inline bool judge_write(Block& block, Mark written, Mark read, unsigned offset, unsigned self) {
  if (time_of(read) >= block.barrier_time) {
    const unsigned reader = thread_of(read);
    const bool clear = !(read & kReadByWarps) && warp_of(reader) == warp_of(self) &&
                       time_of(read) < block.warps[warp_of(self)].time;
    if (!clear && (read & kFlags || reader != self))
      fail("missing barrier: thread %u read shared memory at %u, and thread %u writes it", number_of(reader), offset,
           number_of(self));
  }
  return time_of(written) >= block.first_time && !ordered(block, time_of(written), thread_of(written), self);
}

void split(Block& block, unsigned offset) {
  Shadow& shadow = block.shadow;
  Mark& both = shadow.writes[offset / 2];
  if (both & kSplit) return;
  const unsigned even = offset & ~1u;
  shadow.byte_writes[even] = shadow.byte_writes[even + 1] = both & ~Mark(0xffff);
  shadow.byte_reads[even] = shadow.byte_reads[even + 1] = shadow.reads[offset / 2];
  both |= kSplit;
}

// One byte, which has marks of its own from now on until both are written at once.
void read_byte(Block& block, unsigned offset, unsigned self) {
  split(block, offset);
  Shadow& shadow = block.shadow;
  judge_busy(shadow.writes[offset / 2], offset, "read of");
  judge_read(block, shadow.byte_writes[offset], offset, self);
  shadow.byte_reads[offset] = read_again(block, shadow.byte_reads[offset], self);
}

bool write_byte(Block& block, unsigned offset, unsigned self, unsigned& other) {
  split(block, offset);
  Shadow& shadow = block.shadow;
  judge_busy(shadow.writes[offset / 2], offset, "write to");
  if (shadow.writes[offset / 2] & kBusy) fail("write to shared memory at %u that a wgmma under way reads", offset);
  Mark& written = shadow.byte_writes[offset];
  const bool again = judge_write(block, written, shadow.byte_reads[offset], offset, self);
  if (again) other = number_of(thread_of(written));
  written = mark(block.time, self);
  shadow.byte_reads[offset] = 0;
  return again;
}

__attribute__((noinline)) void read_two(Block& block, unsigned offset, unsigned self) {
  const Mark m = block.shadow.writes[offset / 2];
  judge_busy(m, offset, "read of");
  if (!(m & kSplit)) return judge_read(block, m, offset, self);
  read_byte(block, offset, self);
  read_byte(block, offset + 1, self);
}

inline bool write_two(Block& block, unsigned offset, unsigned self, unsigned& other) {
  const Mark m = block.shadow.writes[offset / 2];
  if (m & kSplit) return write_byte(block, offset, self, other) | write_byte(block, offset + 1, self, other);
  judge_busy(m, offset, "write to");
  if (m & kBusy) fail("write to shared memory at %u that a wgmma under way reads", offset);
  const bool again = judge_write(block, m, block.shadow.reads[offset / 2], offset, self);
  if (again) other = number_of(thread_of(m));
  return again;
}

inline __attribute__((always_inline)) void read_shared(Block& block, unsigned offset, std::size_t bytes, unsigned self) {
  if ((offset | bytes) & 1) {
    for (std::size_t i = 0; i < bytes; ++i) read_byte(block, offset + i, self);
    return;
  }
  const std::size_t count = bytes / 2;
  Mark* const writes = block.shadow.writes + offset / 2;
  Mark* const reads = block.shadow.reads + offset / 2;
  if (uniform(writes, count) && uniform(reads, count) && !(writes[0] & kSplit)) {
    judge_busy(writes[0], offset, "read of");
    judge_read(block, writes[0], offset, self);
    std::fill_n(reads, count, read_again(block, reads[0], self));
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    read_two(block, offset + 2 * i, self);
    reads[i] = read_again(block, reads[i], self);
  }
}

inline __attribute__((always_inline)) void write_shared(Block& block, unsigned offset, std::size_t bytes, unsigned self) {
  bool again = false;
  unsigned other = 0;
  if ((offset | bytes) & 1) {
    for (std::size_t i = 0; i < bytes; ++i) again |= write_byte(block, offset + i, self, other);
  } else {
    const std::size_t count = bytes / 2;
    Mark* const writes = block.shadow.writes + offset / 2;
    Mark* const reads = block.shadow.reads + offset / 2;
    const std::size_t judged = uniform(writes, count) && uniform(reads, count) && !(writes[0] & kSplit) ? 1 : count;
    for (std::size_t i = 0; i < judged; ++i) again |= write_two(block, offset + 2 * i, self, other);
    std::fill_n(writes, count, mark(block.time, self));
    std::fill_n(reads, count, 0);
  }
  if (__builtin_expect(block.meets_others, 0)) judge_cluster_write(block, offset, bytes);
  if (__builtin_expect(again, 0)) expect_same(block, block.arena + offset, bytes, other);
}

// The array that an access lies in, or null.
inline const Range* array_of(Block& block, std::size_t offset, std::size_t bytes) {
  const auto inside = [&](const Range& array) { return offset >= array.first && offset + bytes <= array.end; };
  if (inside(block.near_array)) return &block.near_array;
  for (const Range& array : block.arrays)
    if (inside(array)) return &(block.near_array = array);
  return nullptr;
}

// An access of a thread, or of all of a warp's as one, to memory that is no stack.
inline __attribute__((always_inline)) void touch(Block& block, const unsigned char* pointer, std::size_t bytes, bool write,
                                                 unsigned self) {
  const auto offset = static_cast<std::size_t>(pointer - block.arena);
  if (offset < kArenaBytes) {
    if (!array_of(block, offset, bytes))
      fail("%s of %zu bytes of shared memory outside its arrays: out of bounds", write ? "write" : "read", bytes);
    write ? write_shared(block, offset, bytes, self) : read_shared(block, offset, bytes, self);
    return;
  }
  global_access(block, pointer, bytes, write ? "write" : "read");
  if (__builtin_expect(block.overlaps, 0) && !block.fibers[block.current].waited)
    early_access(block, pointer, bytes, write);
  // A byte of its own is what neighbours in two bytes have: told apart by nobody here.
  if (bytes > 1) global_order(block, pointer, bytes, write, self);
  else if (write) block.written.insert_byte(reinterpret_cast<std::uintptr_t>(pointer) / 2);
}

void expect_aligned(const void* pointer, std::size_t bytes, std::size_t to, bool write) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % to != 0)
    fail("%s of %zu bytes at an address that is no multiple of %zu: misaligned", write ? "write" : "read", bytes, to);
}

inline __attribute__((always_inline)) void access_memory(const void* where, std::size_t bytes, bool write, bool vector) {
  Block* block = running;
  if (block == nullptr) return;
  if (__builtin_expect(block->second_write.bytes != 0, 0)) judge_second_write(*block);
  // Loads and stores of 2, 4, 8 and 16 bytes are one instruction each on the device.
  if (vector) expect_aligned(where, bytes, bytes, write);
  touch(*block, static_cast<const unsigned char*>(where), bytes, write, block->current);
}

// One for each length and direction, which the compiler makes quick.
template <std::size_t bytes, bool write>
__attribute__((noinline)) void access_vector(const void* where) {
  access_memory(where, bytes, write, true);
}

inline __attribute__((always_inline)) bool on_stack(const void* where, std::size_t bytes, bool write) {
  const auto from_stack = static_cast<std::size_t>(static_cast<const unsigned char*>(where) - running_stacks);
  if (__builtin_expect(from_stack >= kStackBytes * kMaxThreads, 0)) return false;
  if (__builtin_expect(watching_registers, 0)) touch_register(*running, from_stack, bytes, write);
  return true;
}

// Many accesses are to the threads' own stacks, so that this part is small and inline.
template <std::size_t bytes, bool write>
inline __attribute__((always_inline)) void access(const void* where) {
  if (!on_stack(where, bytes, write)) access_vector<bytes, write>(where);
}

void access_range(const void* where, std::size_t bytes, bool write, bool vector) {
  if (!on_stack(where, bytes, write)) access_memory(where, bytes, write, vector);
}

// By the function that is quick for the length, where it has one.
template <bool write>
void check(const void* pointer, std::size_t bytes) {
  switch (bytes) {
    case 4: return access<4, write>(pointer);
    case 8: return access<8, write>(pointer);
    case 16: return access<16, write>(pointer);
    default: access_range(pointer, bytes, write, true);
  }
}

}  // namespace

void set_pending(Block& block, unsigned offset, std::size_t bytes, bool pending) {
  Mark* const writes = block.shadow.writes;
  for (unsigned i = offset / 2; i < (offset + bytes) / 2; ++i)
    writes[i] = pending ? writes[i] | kPending : writes[i] & ~kPending;
}

void count_async_read(Block& block, unsigned offset, std::size_t bytes, bool begins) {
  for (unsigned i = offset / 2; i < (offset + bytes) / 2; ++i)
    begins ? block.shadow.writes[i] += kAsyncRead : block.shadow.writes[i] -= kAsyncRead;
}

Mark last_write(const Block& block, unsigned offset) {
  const Mark both = block.shadow.writes[offset / 2];
  return both & kSplit ? block.shadow.byte_writes[offset] : both;
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

void check_read(const void* pointer, std::size_t bytes) { check<false>(pointer, bytes); }
void check_write(const void* pointer, std::size_t bytes) { check<true>(pointer, bytes); }

void check_as_warp(const void* pointer, std::size_t bytes, std::size_t alignment, bool write) {
  Block& block = *running;
  if (block.second_write.bytes) judge_second_write(block);
  expect_aligned(pointer, bytes, alignment, write);
  const auto* first = static_cast<const unsigned char*>(pointer);
  const unsigned self = as_warp(block.current);
  // A row of eight, which the compiler makes quick.
  bytes == 16 ? touch(block, first, 16, write, self) : touch(block, first, bytes, write, self);
}

}  // namespace emulator

using emulator::access;
using emulator::access_range;

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

#define HOOKS(size)                                                     \
  void __tsan_read##size(void* p) { access<size, false>(p); }           \
  void __tsan_write##size(void* p) { access<size, true>(p); }           \
  void __tsan_unaligned_read##size(void* p) { access<size, false>(p); } \
  void __tsan_unaligned_write##size(void* p) { access<size, true>(p); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// Structures that are no power of two long, copied as their parts.
void __tsan_read_range(void* p, unsigned long bytes) { access_range(p, bytes, false, false); }
void __tsan_write_range(void* p, unsigned long bytes) { access_range(p, bytes, true, false); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
