// What a kernel's translation unit and the runtime share: threads as fibers, warp-wide operations, shared memory.
// The kernel's side of it is inline where it is small; every access to memory reaches the runtime by the hooks that
// the compiler emits (see access.cc).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace emulator {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
// What a launch asks for dynamically begins at kDynamic, aligned to what generated code declares and to no more, and lies
// within the 18 bits that a descriptor of a matrix has for an address; static arrays begin at kStatic.
constexpr unsigned kArenaBytes = 512 * 1024;
constexpr unsigned kDynamic = 1024 + 64;
constexpr unsigned kStatic = 256 * 1024;
constexpr unsigned kRedZone = 64;

struct Index {
  unsigned x, y, z;
};

// What lanes give each other in a warp-wide operation.
struct alignas(16) Deposit {
  unsigned char bytes[128];
};

constexpr unsigned kWarpgroupSize = 128;

enum class Meeting : int { kSync, kShuffle, kVote, kMma, kLoadMatrix, kWgmma };

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

// Ends the launch with a message that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits for every thread of the block; `site` tells one barrier of the source from another.
void block_barrier(int site);

// Waits for the lanes of `mask`, which must all come to the same meeting. Returns what every lane deposited.
const Deposit* meet(Meeting meeting, unsigned mask, const void* mine, std::size_t bytes);

// Orders the shared memory of the lanes of `mask`.
void warp_barrier(unsigned mask);

unsigned lane();
unsigned live_lanes();

// Static shared memory: the array that begins `offset` bytes into the block's arena may be touched.
unsigned char* shared_array(unsigned offset, std::size_t bytes);
unsigned char* dynamic_shared();
std::uint32_t shared_address(const void* pointer);
unsigned char* shared_pointer(std::uint32_t address);

// Asynchronous copies of the calling thread: made when waited for.
void copy_async(std::uint32_t to, const void* from, unsigned bytes, unsigned source_bytes);
void commit_copies();
void wait_copies(unsigned left);

// Products of a warpgroup, under way until they are waited for (see wgmma.cc): of 16 k and `columns` columns. `d` are the
// columns / 2 accumulators of the calling thread, `a` its fragment of the left operand; `b` describes the right one. Both
// operands are float16 or bfloat16.
void wgmma(float* const* d, unsigned columns, const std::uint32_t* a, std::uint64_t b, bool add,
           bool bfloat16);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned left);

// What the thread has written to shared memory is visible to wgmma, once a barrier has passed.
void fence_proxy();

// Accesses that no compiler hook sees, because the runtime makes them for the kernel.
void check_read(const void* pointer, std::size_t bytes);
void check_write(const void* pointer, std::size_t bytes);

constexpr unsigned aligned(unsigned offset, unsigned to) { return (offset + to - 1) / to * to; }

template <typename T>
const T& of(const Deposit* deposits, unsigned lane) {
  return *reinterpret_cast<const T*>(deposits[lane].bytes);
}

template <typename T>
T shuffle(unsigned mask, T value, int from, bool inside) {
  static_assert(sizeof(T) <= sizeof(Deposit));
  const Deposit* all = meet(Meeting::kShuffle, mask, &value, sizeof(T));
  if (inside && (from < 0 || from >= int(kWarpSize))) fail("a shuffle reads lane %d", from);
  if (inside && !(mask >> from & 1)) fail("a shuffle reads lane %d, which is not in its mask %#x", from, mask);
  return inside ? of<T>(all, from) : value;
}

// A kernel of the library: its wrapper calls the function with the arguments that were given.
struct Kernel {
  const char* name;
  const char* parameters;
  void (*call)(void** arguments);
  Kernel* next;
  Kernel(const char* name, const char* parameters, void (*call)(void**));
};

}  // namespace emulator
