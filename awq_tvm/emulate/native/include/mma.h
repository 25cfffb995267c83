// Stands for CUDA's header of matrices that a warp holds (nvcuda::wmma), as TVM's own schedules use them.
#pragma once
#include <type_traits>

#include "cuda_fp16.h"
#include "emulator.h"

namespace nvcuda::wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

// A lane holds some of the elements, row by row; which ones, CUDA does not say.
template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr int num_elements = rows * columns / int(emulator::kWarpSize);
  T x[num_elements];
};

// A matrix and where a warp takes it from, or brings it to.
template <typename Fragment, typename T>
struct AwqMove {
  Fragment* own;
  T* memory;
  unsigned stride;
  bool by_rows;
};
template <typename Fragment, typename T, bool store>
__attribute__((no_sanitize("thread"))) void awq_move(void* const* lanes, unsigned) {
  using Move = AwqMove<Fragment, T>;
  const Move& first = *static_cast<Move*>(lanes[0]);
  for (unsigned i = 1; i < emulator::kWarpSize; ++i) {
    const Move& other = *static_cast<Move*>(lanes[i]);
    if (other.memory != first.memory || other.stride != first.stride || other.by_rows != first.by_rows)
      emulator::fail("lanes of a warp come to different matrices");
  }
  if (first.stride * sizeof(T) % 16) emulator::fail("a matrix whose lines are %u elements apart", first.stride);
  const int lines = first.by_rows ? Fragment::rows : Fragment::columns;
  const int length = first.by_rows ? Fragment::columns : Fragment::rows;
  for (int line = 0; line < lines; ++line) {
    T* memory = first.memory + std::size_t(line) * first.stride;
    emulator::check_as_warp(memory, length * sizeof(T), line ? 16 : 32, store);
    for (int i = 0; i < length; ++i) {
      const int at = first.by_rows ? line * Fragment::columns + i : i * Fragment::columns + line;
      T& own = static_cast<Move*>(lanes[at / Fragment::num_elements])->own->x[at % Fragment::num_elements];
      std::memcpy(store ? &memory[i] : &own, store ? &own : &memory[i], sizeof(T));
    }
  }
}

template <typename Use, int m, int n, int k, typename T, typename Layout>
inline void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& into, const T* from, unsigned stride) {
  using Fragment = fragment<Use, m, n, k, T, Layout>;
  AwqMove<Fragment, T> mine{&into, const_cast<T*>(from), stride, std::is_same_v<Layout, row_major>};
  emulator::meet(awq_move<Fragment, T, false>, ~0u, &mine);
}
template <int m, int n, int k, typename T>
inline void load_matrix_sync(fragment<accumulator, m, n, k, T>& into, const T* from, unsigned stride, layout_t layout) {
  using Fragment = fragment<accumulator, m, n, k, T>;
  AwqMove<Fragment, T> mine{&into, const_cast<T*>(from), stride, layout == mem_row_major};
  emulator::meet(awq_move<Fragment, T, false>, ~0u, &mine);
}
template <int m, int n, int k, typename T>
inline void store_matrix_sync(T* into, const fragment<accumulator, m, n, k, T>& from, unsigned stride, layout_t layout) {
  using Fragment = fragment<accumulator, m, n, k, T>;
  AwqMove<Fragment, T> mine{const_cast<Fragment*>(&from), into, stride, layout == mem_row_major};
  emulator::meet(awq_move<Fragment, T, true>, ~0u, &mine);
}
template <typename Fragment, typename T>
inline void fill_fragment(Fragment& into, T value) {
  for (auto& element : into.x) element = value;
}

// D = A @ B + C, summed in float32.
#define AWQ_UNSEEN __attribute__((no_sanitize("thread")))
template <typename D, typename A, typename B, typename C>
struct AwqProduct {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};
template <typename T>
AWQ_UNSEEN float awq_number(const T* from) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, half>);
  std::conditional_t<std::is_same_v<T, half>, _Float16, float> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename T>
AWQ_UNSEEN void awq_store(T* into, float sum) {
  const std::conditional_t<std::is_same_v<T, half>, _Float16, float> value = sum;
  std::memcpy(into, &value, sizeof value);
}
template <typename D, typename A, typename B, typename C>
AWQ_UNSEEN void awq_multiply(void* const* lanes, unsigned) {
  float a[A::rows][A::columns], b[B::rows][B::columns], sums[D::rows][D::columns];
  for (int lane = 0; lane < int(emulator::kWarpSize); ++lane) {
    const auto& own = *static_cast<AwqProduct<D, A, B, C>*>(lanes[lane]);
    for (int i = 0; i < A::num_elements; ++i) (&a[0][0])[lane * A::num_elements + i] = awq_number(own.a->x + i);
    for (int i = 0; i < B::num_elements; ++i) (&b[0][0])[lane * B::num_elements + i] = awq_number(own.b->x + i);
    for (int i = 0; i < C::num_elements; ++i) (&sums[0][0])[lane * C::num_elements + i] = awq_number(own.c->x + i);
  }
  for (int row = 0; row < D::rows; ++row)
    for (int k = 0; k < A::columns; ++k)
      for (int column = 0; column < D::columns; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < int(emulator::kWarpSize); ++lane) {
    const auto& own = *static_cast<AwqProduct<D, A, B, C>*>(lanes[lane]);
    for (int i = 0; i < D::num_elements; ++i) awq_store(own.d->x + i, (&sums[0][0])[lane * D::num_elements + i]);
  }
}
#undef AWQ_UNSEEN
template <typename D, typename A, typename B, typename C>
inline void mma_sync(D& d, const A& a, const B& b, const C& c) {
  AwqProduct<D, A, B, C> mine{&d, &a, &b, &c};
  emulator::meet(awq_multiply<D, A, B, C>, ~0u, &mine);
}
}  // namespace nvcuda::wmma
