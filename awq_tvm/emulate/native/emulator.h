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
constexpr unsigned kMostOfCluster = 16;

struct Index {
  unsigned x, y, z;
};

constexpr unsigned kWarpgroupSize = 128;

// The same for a thread from its first statement to its last, so that the compiler may ask once.
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();

// Ends the launch with a message that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits for every thread of the block; `site` tells one barrier of the source from another.
void block_barrier(int site);

// The work of an operation of a warp: what each lane of `mask` has brought is at `lanes`, and takes what it gets.
using Work = void (*)(void* const* lanes, unsigned mask);

// Waits for the lanes of `mask`, which must all come to the same work. The last of them does it, for all.
void meet(Work work, unsigned mask, void* mine);

// Orders the shared memory of the lanes of `mask`.
void warp_barrier(unsigned mask);

__attribute__((const)) unsigned lane();
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

// The calling thread waits until all earlier launches have ended, where its own was let begin before (griddepcontrol). That
// the next may begin needs no more than the wait in it: it is held to the worst, whenever it is let begin.
void wait_for_launches();
inline void let_next_begin() {}

// Blocks of a cluster. A barrier of it is arrived at, and then waited at with nothing between. An address of another's shared
// memory has its number above the bits of an offset.
unsigned cluster_rank();
void cluster_arrive();
void cluster_wait();
std::uint32_t map_shared(std::uint32_t address, unsigned rank);
void load_cluster(std::uint32_t address, std::size_t bytes, void* into);

// Accesses that no compiler hook sees, because the runtime makes them for the kernel.
void check_read(const void* pointer, std::size_t bytes);
void check_write(const void* pointer, std::size_t bytes);
// By all lanes of the warp as one: which of them makes it is not defined.
void check_as_warp(const void* pointer, std::size_t bytes, std::size_t alignment, bool write);

// Operations of a warp, see warp.cc.
struct Word {
  std::uint64_t low, high;
};
Word shuffle_word(unsigned mask, Word value, int from, bool inside);
unsigned ballot(unsigned mask, bool holds);

struct Sums {
  float of[4];
};
Sums mma_f16(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1,
             float c0, float c1, float c2, float c3);
Sums mma_bf16(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1,
              float c0, float c1, float c2, float c3);

struct Fragments {
  std::uint32_t of[4];
};
Fragments load_matrices(unsigned count, bool transposed, std::uint32_t address);

// Two elements of an 8 x 8 matrix, at columns 2 (lane % 4) and the next of row lane / 4.
struct Elements {
  void* own;
  bool half;  // float otherwise
};
void load_matrix(Elements into, const void* from, unsigned stride, bool transposed);
void store_matrix(Elements from, void* into, unsigned stride, bool transposed);
void multiply_matrices(Elements d, Elements a, Elements b, Elements c);

constexpr unsigned aligned(unsigned offset, unsigned to) { return (offset + to - 1) / to * to; }

template <typename T>
T shuffle(unsigned mask, T value, int from, bool inside) {
  static_assert(sizeof(T) <= sizeof(Word));
  Word word{};
  std::memcpy(&word, &value, sizeof(T));
  word = shuffle_word(mask, word, from, inside);
  std::memcpy(&value, &word, sizeof(T));
  return value;
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
