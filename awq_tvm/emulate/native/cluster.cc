// Shared memory of other blocks of a cluster: read, and never written.
#include "block.h"

namespace emulator {

namespace {

constexpr unsigned kRankShift = 20;
static_assert(kArenaBytes <= 1u << kRankShift, "an offset fits below the number of a block");

void judge(const Block& owner, unsigned offset) {
  if (owner.shadow.writes[offset / 2] & kPending)
    fail("read of another block's shared memory at %u that an asynchronous copy is about to fill", offset);
  const Mark written = last_write(owner, offset);
  if (time_of(written) < owner.first_time)
    fail("read of another block's shared memory at %u that nobody wrote: uninitialised", offset);
  if (time_of(written) >= owner.cluster_time)
    fail("missing barrier of the cluster: thread %u of block %u wrote its shared memory at %u, and another block reads it",
         number_of(thread_of(written)), owner.rank, offset);
}

}  // namespace

std::uint32_t map_shared(std::uint32_t address, unsigned rank) {
  if (address >= kArenaBytes) fail("%#x is no address of the block's own shared memory", address);
  if (rank >= running->cluster->size())
    fail("block %u of a cluster that has %zu", rank, running->cluster->size());
  return address | (rank + 1) << kRankShift;
}

void load_cluster(std::uint32_t address, std::size_t bytes, void* into) {
  const unsigned number = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  Block& self = *running;
  // What is mapped nowhere is the block's own.
  Block& owner = number ? *(*self.cluster)[number - 1] : self;
  const unsigned char* from = owner.arena + offset;
  if (&owner == &self) {
    check_read(from, bytes);
    std::memcpy(into, from, bytes);
    return;
  }
  if (offset % bytes) fail("read of %zu bytes at an address that is no multiple of it: misaligned", bytes);
  if (owner.cluster_time == owner.first_time)
    fail("missing barrier of the cluster: block %u need not have begun, and its shared memory is read", owner.rank);
  if (!owner.left) fail("block %u of the cluster has ended, and its shared memory with it", owner.rank);
  bool inside = false;
  for (const Range& array : owner.arrays) inside |= offset >= array.first && offset + bytes <= array.end;
  if (!inside) fail("read of %zu bytes of another block's shared memory outside its arrays: out of bounds", bytes);
  if (self.fibers[self.current].arrived) fail("read of another block's shared memory before waiting at a barrier of the cluster");
  owner.meets_others = true;
  if (owner.read_by_others.empty()) owner.read_by_others.resize(kArenaBytes / 2);
  for (unsigned at = offset; at < offset + bytes; at += 2) {
    judge(owner, at);
    judge(owner, at + 1);
    owner.read_by_others[at / 2] = true;
  }
  std::memcpy(into, from, bytes);
}

void judge_cluster_write(Block& block, unsigned offset, std::size_t bytes) {
  if (block.fibers[block.current].arrived)
    fail("write to shared memory between arriving at a barrier of the cluster and waiting there: another block may read it");
  if (block.read_by_others.empty()) return;
  for (std::size_t at = offset / 2; at <= (offset + bytes - 1) / 2; ++at)
    if (block.read_by_others[at])
      fail("missing barrier of the cluster: another block read shared memory at %zu, and thread %u writes it", 2 * at,
           block.current);
}

}  // namespace emulator
