// wgmma: products of a warpgroup (four warps) that go on while its threads do, until they are waited for.
//
// A product is computed when all 128 threads have come to it, and its sums are kept apart: they reach the registers when
// they are waited for, and whoever touches these before, or writes to the shared memory that it reads, is at fault. It
// reads shared memory through another proxy than the threads' own loads and stores, so that who wrote has to have made a
// fence of that proxy, and then come to a barrier.
//
// What is not seen is a change of the left operand's registers: they are passed by value.
#include <algorithm>
#include <limits>

#include "block.h"
#include "row.h"

namespace emulator {

namespace {

constexpr unsigned kChunk = 16;  // bytes; eight k of one column
constexpr unsigned kColumns = 8;  // that lie together
constexpr unsigned kK = 16;

// A number of a pair. Not by the functions that kernels use: these are watched, as if the kernel wrote registers.
float widen(std::uint32_t pair, unsigned which, bool bfloat16) {
  const std::uint32_t bits = pair >> 16 * which & 0xffff;
  float wide;
  if (bfloat16) {
    const std::uint32_t whole = bits << 16;
    std::memcpy(&wide, &whole, sizeof wide);
  } else {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    wide = half;
  }
  return wide;
}

// Where chunks of the right operand lie, [K, N] by its k: the canonical layouts of the PTX ISA.
struct Matrix {
  unsigned start, leading, stride;
  unsigned width;  // bytes from a column to the next; of the pattern in which chunks are swizzled, if they are

  explicit Matrix(std::uint64_t descriptor) {
    const auto field = [&](unsigned at) { return static_cast<unsigned>(descriptor >> at & 0x3fff) << 4; };
    start = field(0), leading = field(16), stride = field(32);
    constexpr unsigned widths[] = {16, 128, 64, 32};
    width = widths[descriptor >> 62];
    if (descriptor >> 14 & 3 || descriptor >> 30 & 3 || descriptor >> 46 & 0xffff)
      fail("descriptor %#llx of a matrix has bits, or a base offset, that are not known",
           static_cast<unsigned long long>(descriptor));
    if (width == 16) return;
    // The pattern goes by the bits of the address: a matrix begins in the first row of one, and columns come in eights.
    if (start % (kColumns * width) + 2 * kChunk > width)
      fail("a matrix swizzled in %u bytes begins at %#x: misaligned", width, start);
    if (stride % (kColumns * width) != 0)
      fail("eights of columns of a matrix swizzled in %u bytes are %u apart: misaligned", width, stride);
  }

  unsigned chunk(unsigned half, unsigned column) const {
    const unsigned inside = width == 16 ? half * leading : half * kChunk;
    const unsigned at = start + column / kColumns * stride + column % kColumns * width + inside;
    return at ^ (at >> 7 & (width / kChunk - 1)) * kChunk;
  }
};

void expect_visible(Block& block, unsigned offset) {
  const Mark* writes = block.shadow.writes + offset / 2;
  // Most chunks were written by one access.
  const bool alike = uniform(writes, kChunk / 2) && !(writes[0] & kSplit);
  for (unsigned i = offset; i < offset + (alike ? 1 : kChunk); ++i) {
    const Mark written = last_write(block, i);
    const unsigned writer = number_of(thread_of(written));
    const auto& fences = block.fibers[writer].proxy_fences;
    const auto fence = std::upper_bound(fences.begin(), fences.end(), time_of(written));
    if (fence == fences.end() || !ordered(block, *fence, writer, block.current))
      fail("missing fence.proxy.async: thread %u wrote shared memory at %u, and a wgmma reads it", writer, i);
  }
}

// The calling thread's part of the left operand: lane 4 r + p has, of row r (and r + 8 in every second register),
// k = 2 p, 2 p + 1 and 8 more.
void read_left(Warpgroup& group, unsigned thread, const std::uint32_t* a, bool bfloat16) {
  const unsigned warp = thread % kWarpgroupSize / kWarpSize, row = thread % kWarpSize / 4, pair = thread % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned e = 0; e < 2; ++e)
      group.left[group.turn][16 * warp + 8 * (i % 2) + row][i / 2 * 8 + 2 * pair + e] = widen(a[i], e, bfloat16);
}

void read_right(Block& block, Warpgroup& group, bool bfloat16) {
  const Matrix matrix(group.descriptor);
  const unsigned part = group.columns / 4;
  group.right.resize(kK * group.columns);
  std::vector<unsigned> chunks;
  for (unsigned column = 0; column < group.columns; ++column)
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned at = matrix.chunk(half, column);
      const unsigned char* from = shared_pointer(at);
      check_read(from, kChunk);
      expect_visible(block, at);
      chunks.push_back(at);
      std::uint16_t numbers[kChunk / 2];
      std::memcpy(numbers, from, sizeof numbers);
      const Row wide = widened(numbers, bfloat16);
      // Lane % 4 = p has the columns 8 i + 2 p and the next.
      const unsigned place = column / kColumns * 2 + column % 2;
      float* into = &group.right[(column % kColumns / 2 * kK + half * 8) * part + place];
      for (unsigned i = 0; i < kChunk / 2; ++i) into[i * part] = wide[i];
    }
  group.reads = std::make_shared<AsyncReads>(block, std::move(chunks));
}

unsigned char& register_at(Block& block, const float* where) {
  return block.registers[(reinterpret_cast<const unsigned char*>(where) - block.stacks) / 4];
}

// The sums so far of these accumulators, under way from now on.
Accumulators& begin(Block& block, Products& products, float* const* d, unsigned count) {
  for (Accumulators& found : products.under_way)
    if (found.registers[0] == d[0] && found.count == count && std::equal(d, d + count, found.registers)) return found;
  Accumulators sums{count, 0, {}, {}};
  for (unsigned i = 0; i < count; ++i) {
    const auto from_stack = static_cast<std::size_t>(reinterpret_cast<unsigned char*>(d[i]) - block.stacks);
    if (from_stack >= kStackBytes * kMaxThreads) fail("an accumulator of wgmma is no local variable");
    unsigned char& state = register_at(block, d[i]);
    if (state & kUnderWay) fail("two wgmma under way share some accumulators, and not all");
    if (!(state & kAccumulator)) products.known.push_back(d[i]);
    state = kAccumulator | kUnderWay;
    sums.registers[i] = d[i];
    sums.values[i] = *d[i];
    *d[i] = std::numeric_limits<float>::quiet_NaN();
  }
  products.under_way.push_back(sums);
  return products.under_way.back();
}

}  // namespace

AsyncReads::AsyncReads(Block& block, std::vector<unsigned> chunks) : block(block), chunks(std::move(chunks)) {
  for (unsigned at : this->chunks) count_async_read(block, at, kChunk, true);
}

AsyncReads::~AsyncReads() {
  for (unsigned at : chunks) count_async_read(block, at, kChunk, false);
}

void touch_register(Block& block, std::size_t offset, std::size_t bytes, bool write) {
  Products& products = block.fibers[block.current].products;
  for (std::size_t word = offset / 4; word <= (offset + bytes - 1) / 4; ++word) {
    const unsigned char state = block.registers[word];
    if (state & kUnderWay)
      fail("%s of an accumulator of a wgmma that was not waited for", write ? "write" : "read");
    if (write || state & kAccumulator) products.fenced = false;
  }
}

void forget_products(Block& block, Fiber& fiber) {
  for (float* known : fiber.products.known) register_at(block, known) = 0;
  fiber.products = {};
  fiber.proxy_fences.clear();
}

void wgmma(float* const* d, unsigned columns, const std::uint32_t* a, std::uint64_t descriptor, bool add,
           bool bfloat16) {
  Block& block = *running;
  const unsigned self = block.current, number = self / kWarpgroupSize;
  if ((number + 1) * kWarpgroupSize > block.threads) fail("wgmma needs warpgroups of 128 threads");
  if (columns % 8 != 0 || columns == 0 || columns > 256) fail("wgmma has no shape of %u columns", columns);
  Products& products = block.fibers[self].products;
  if (!products.fenced) fail("missing wgmma.fence: registers were written, and a wgmma follows");

  Warpgroup& group = block.warpgroups[number];
  if (group.come++ == 0) {
    group.columns = columns, group.descriptor = descriptor, group.add = add;
  } else if (group.columns != columns || group.descriptor != descriptor || group.add != add) {
    fail("threads of a warpgroup come to different wgmma, or with different descriptors");
  }
  const unsigned turn = group.turn;
  read_left(group, self, a, bfloat16);
  if (group.come == kWarpgroupSize) {
    group.come = 0;
    group.turn ^= 1;
    read_right(block, group, bfloat16);
  }
  meet_warpgroup();

  Accumulators& sums = begin(block, products, d, columns / 2);
  sums.group = products.committed;
  products.reads.emplace_back(products.committed, group.reads);
  if (++group.gone == kWarpgroupSize) {
    group.gone = 0;
    group.reads.reset();
  }
  const unsigned part = columns / 4;
  const float(*left)[kK] = group.left[turn] + self % kWarpgroupSize / kWarpSize * 16 + self % kWarpSize / 4;
  const float* right = group.right.data() + self % 4 * kK * part;
  for (unsigned lower = 0; lower < 2; ++lower) {
    float found[64] = {};
    for (unsigned k = 0; k < kK; ++k)
      for (unsigned i = 0; i < part; ++i) found[i] += left[8 * lower][k] * right[k * part + i];
    for (unsigned i = 0; i < part; ++i) {
      float& sum = sums.values[i / 2 * 4 + 2 * lower + i % 2];
      sum = add ? sum + found[i] : found[i];
    }
  }
}

void wgmma_fence() {
  watching_registers = true;
  running->fibers[running->current].products.fenced = true;
}

void wgmma_commit() { ++running->fibers[running->current].products.committed; }

void wgmma_wait(unsigned left) {
  Block& block = *running;
  Products& products = block.fibers[block.current].products;
  if (products.committed <= left) return;
  const std::size_t done = products.committed - left;
  auto& reads = products.reads;
  reads.erase(std::remove_if(reads.begin(), reads.end(), [&](const auto& one) { return one.first < done; }), reads.end());
  auto& under_way = products.under_way;
  for (const Accumulators& sums : under_way)
    if (sums.group < done)
      for (unsigned i = 0; i < sums.count; ++i) {
        *sums.registers[i] = sums.values[i];
        register_at(block, sums.registers[i]) = kAccumulator;
      }
  under_way.erase(
      std::remove_if(under_way.begin(), under_way.end(), [&](const Accumulators& sums) { return sums.group < done; }),
      under_way.end());
}

void fence_proxy() {
  Block& block = *running;
  watching_registers = true;
  block.fibers[block.current].proxy_fences.push_back(++block.time);
}

}  // namespace emulator
