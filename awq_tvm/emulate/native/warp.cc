// Operations of a warp, each done for all its lanes by the one that comes last.
#include <type_traits>
#include <utility>

#include "block.h"
#include "row.h"

namespace emulator {

namespace {

constexpr unsigned kAll = ~0u;

template <typename T>
T& brought(void* const* lanes, unsigned lane) {
  return *static_cast<T*>(lanes[lane]);
}

struct Shuffle {
  Word value, got;
  unsigned from;
};

void do_shuffle(void* const* lanes, unsigned mask) {
  for (unsigned i = 0; i < kWarpSize; ++i)
    if (mask >> i & 1) {
      auto& mine = brought<Shuffle>(lanes, i);
      if (mask >> mine.from & 1) mine.got = brought<Shuffle>(lanes, mine.from).value;
    }
}

struct Vote {
  bool holds;
  unsigned votes;
};

void do_ballot(void* const* lanes, unsigned mask) {
  unsigned votes = 0;
  for (unsigned i = 0; i < kWarpSize; ++i)
    if (mask >> i & 1 && brought<Vote>(lanes, i).holds) votes |= 1u << i;
  for (unsigned i = 0; i < kWarpSize; ++i)
    if (mask >> i & 1) brought<Vote>(lanes, i).votes = votes;
}

struct Mma {
  std::uint32_t a[4], b[2];
  Sums sums;
};

// D = A @ B + C of mma.m16n8k16; A [16, 16] by rows, B [16, 8] by columns; C and D [16, 8] float32.
template <bool bfloat>
void do_mma(void* const* lanes, unsigned) {
  alignas(32) std::uint16_t a[16][16], b[16][8];
  // Lane 4 r + p holds, of row r of A (and r + 8 in every second register) and of column r of B, k = 2 p, 2 p + 1 and 8 more.
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = brought<Mma>(lanes, lane);
    const unsigned row = lane / 4, k = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) std::memcpy(&a[row + 8 * (i % 2)][k + 8 * (i / 2)], &mine.a[i], 4);
    for (unsigned i = 0; i < 2; ++i)
      for (unsigned e = 0; e < 2; ++e) b[k + 8 * i + e][row] = static_cast<std::uint16_t>(mine.b[i] >> 16 * e);
  }
  Row right[16];
  for (unsigned k = 0; k < 16; ++k) right[k] = widened(b[k], bfloat);
  for (unsigned row = 0; row < 16; ++row) {
    Row sum = {};
    // k and 8 more.
    const Row low = widened(a[row], bfloat), high = widened(a[row] + 8, bfloat);
    for (unsigned k = 0; k < 8; k += 2)
      sum += low[k] * right[k] + low[k + 1] * right[k + 1] + high[k] * right[k + 8] + high[k + 1] * right[k + 9];
    for (unsigned column = 0; column < 8; ++column)
      brought<Mma>(lanes, row % 8 * 4 + column / 2).sums.of[row / 8 * 2 + column % 2] += sum[column];
  }
}

struct LoadMatrices {
  std::uint32_t address;
  unsigned count;
  bool transposed;
  Fragments found;
};

// Lane i names row i % 8 of matrix i / 8, 16 bytes of shared memory; every lane gets two elements of each matrix.
void do_load_matrices(void* const* lanes, unsigned) {
  const auto& how = brought<LoadMatrices>(lanes, 0);
  for (unsigned lane = 1; lane < kWarpSize; ++lane) {
    const auto& other = brought<LoadMatrices>(lanes, lane);
    if (other.count != how.count || other.transposed != how.transposed) fail("lanes of a warp come to different ldmatrix");
  }
  for (unsigned matrix = 0; matrix < how.count; ++matrix) {
    std::uint16_t elements[8][8];
    for (unsigned row = 0; row < 8; ++row) {
      const auto& named = brought<LoadMatrices>(lanes, 8 * matrix + row);
      const unsigned char* from = shared_pointer(named.address);
      check_as_warp(from, 16, 16, false);
      std::memcpy(elements[row], from, 16);
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      const unsigned i = lane / 4, j = lane % 4 * 2;
      const std::uint16_t low = how.transposed ? elements[j][i] : elements[i][j];
      const std::uint16_t high = how.transposed ? elements[j + 1][i] : elements[i][j + 1];
      brought<LoadMatrices>(lanes, lane).found.of[matrix] = low | std::uint32_t(high) << 16;
    }
  }
}

struct MoveMatrix {
  Elements own;
  unsigned char* memory;
  unsigned stride;
  bool transposed;
};

constexpr unsigned kSide = 8;

// The first lane's matrix, which must be that of all.
const MoveMatrix& same_of_all(void* const* lanes) {
  const auto& first = brought<MoveMatrix>(lanes, 0);
  for (unsigned i = 1; i < kWarpSize; ++i) {
    const auto& other = brought<MoveMatrix>(lanes, i);
    if (other.memory != first.memory || other.stride != first.stride || other.transposed != first.transposed)
      fail("lanes of a SIMD group come to different matrices");
  }
  return first;
}

// Eight times eight elements that lie together, as rows or, transposed, as columns.
template <bool store, typename T>
void do_move_matrix(void* const* lanes, unsigned) {
  const MoveMatrix& move = same_of_all(lanes);
  for (unsigned line = 0; line < kSide; ++line) {
    unsigned char* memory = move.memory + sizeof(T) * move.stride * line;
    check_as_warp(memory, kSide * sizeof(T), sizeof(T), store);
    T elements[kSide];
    if (!store) std::memcpy(elements, memory, sizeof elements);
    for (unsigned i = 0; i < kSide; ++i) {
      const unsigned row = move.transposed ? i : line, column = move.transposed ? line : i;
      T& own = static_cast<T*>(brought<MoveMatrix>(lanes, row * 4 + column / 2).own.own)[column % 2];
      store ? elements[i] = own : own = elements[i];
    }
    if (store) std::memcpy(memory, elements, sizeof elements);
  }
}

struct MultiplyMatrices {
  Elements d, a, b, c;
};

// The rows of an operand.
template <bool half>
void take(void* const* lanes, Elements MultiplyMatrices::*which, Row (&into)[kSide]) {
  std::conditional_t<half, std::uint16_t, float> rows[kSide][kSide];
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    std::memcpy(&rows[lane / 4][lane % 4 * 2], (brought<MultiplyMatrices>(lanes, lane).*which).own, 2 * sizeof rows[0][0]);
  for (unsigned row = 0; row < kSide; ++row)
    if constexpr (half) into[row] = widened(rows[row], false);
    else std::memcpy(&into[row], rows[row], sizeof rows[row]);
}

// A bit for each of d, a, b and c, whether it is of half precision.
template <unsigned halves>
void do_multiply(void* const* lanes, unsigned) {
  Row a[kSide], b[kSide], sums[kSide];
  take<(halves >> 1 & 1) != 0>(lanes, &MultiplyMatrices::a, a);
  take<(halves >> 2 & 1) != 0>(lanes, &MultiplyMatrices::b, b);
  take<(halves >> 3 & 1) != 0>(lanes, &MultiplyMatrices::c, sums);
  for (unsigned row = 0; row < kSide; ++row)
    for (unsigned k = 0; k < kSide; ++k) sums[row] += a[row][k] * b[k];
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    void* own = brought<MultiplyMatrices>(lanes, lane).d.own;
    for (unsigned e = 0; e < 2; ++e) {
      const float value = sums[lane / 4][lane % 4 * 2 + e];
      if (halves & 1) static_cast<_Float16*>(own)[e] = static_cast<_Float16>(value);
      else static_cast<float*>(own)[e] = value;
    }
  }
}

template <std::size_t... halves>
Work multiply_of(unsigned which, std::index_sequence<halves...>) {
  static constexpr Work works[] = {do_multiply<halves>...};
  return works[which];
}

}  // namespace

Word shuffle_word(unsigned mask, Word value, int from, bool inside) {
  const unsigned own = lane();
  Shuffle mine{value, value, inside ? static_cast<unsigned>(from) % kWarpSize : own};
  meet(do_shuffle, mask, &mine);
  if (inside && (from < 0 || from >= int(kWarpSize))) fail("a shuffle reads lane %d", from);
  if (inside && !(mask >> from & 1)) fail("a shuffle reads lane %d, which is not in its mask %#x", from, mask);
  return mine.got;
}

unsigned ballot(unsigned mask, bool holds) {
  Vote mine{holds, 0};
  meet(do_ballot, mask, &mine);
  return mine.votes;
}

Sums mma_f16(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1,
             float c0, float c1, float c2, float c3) {
  Mma mine{{a0, a1, a2, a3}, {b0, b1}, {{c0, c1, c2, c3}}};
  meet(do_mma<false>, kAll, &mine);
  return mine.sums;
}

Sums mma_bf16(std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1,
              float c0, float c1, float c2, float c3) {
  Mma mine{{a0, a1, a2, a3}, {b0, b1}, {{c0, c1, c2, c3}}};
  meet(do_mma<true>, kAll, &mine);
  return mine.sums;
}

Fragments load_matrices(unsigned count, bool transposed, std::uint32_t address) {
  LoadMatrices mine{address, count, transposed, {}};
  meet(do_load_matrices, kAll, &mine);
  return mine.found;
}

// Lanes that come to matrices of another type come to another work.
void load_matrix(Elements into, const void* from, unsigned stride, bool transposed) {
  MoveMatrix mine{into, static_cast<unsigned char*>(const_cast<void*>(from)), stride, transposed};
  meet(into.half ? do_move_matrix<false, std::uint16_t> : do_move_matrix<false, std::uint32_t>, kAll, &mine);
}

void store_matrix(Elements from, void* into, unsigned stride, bool transposed) {
  MoveMatrix mine{from, static_cast<unsigned char*>(into), stride, transposed};
  meet(from.half ? do_move_matrix<true, std::uint16_t> : do_move_matrix<true, std::uint32_t>, kAll, &mine);
}

void multiply_matrices(Elements d, Elements a, Elements b, Elements c) {
  MultiplyMatrices mine{d, a, b, c};
  const unsigned halves = d.half | a.half << 1 | b.half << 2 | c.half << 3;
  meet(multiply_of(halves, std::make_index_sequence<16>()), kAll, &mine);
}

}  // namespace emulator
