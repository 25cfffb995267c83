// Runs the CUDA and Metal source that TVM generates as C++ on the CPU: every thread of a block is a fiber, barriers
// and shuffles switch fibers. Blocks run one after another. What is not defined here does not compile.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

struct half {
  _Float16 value;
  half() = default;
  half(float f) : value(static_cast<_Float16>(f)) {}
  half(double f) : value(static_cast<_Float16>(f)) {}
  half(int i) : value(static_cast<_Float16>(i)) {}
  operator float() const { return static_cast<float>(value); }
};

template <typename T, int N>
struct Vector;

template <typename T>
struct alignas(sizeof(T) * 2) Vector<T, 2> {
  T x, y;
  T& operator[](int i) { return (&x)[i]; }
};

template <typename T>
struct alignas(sizeof(T) * 4) Vector<T, 4> {
  T x, y, z, w;
  T& operator[](int i) { return (&x)[i]; }
};

namespace emulator {

constexpr unsigned kWarpSize = 32;
constexpr std::size_t kStackBytes = 256 * 1024;

enum class State { kReady, kBlockBarrier, kWarpBarrier, kDone };

struct Index {
  unsigned x, y, z;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  Index position;
  float shuffled;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::size_t current;
inline Index block;
inline const std::function<void()>* body;

inline void fail(const char* message) {
  std::fprintf(stderr, "emulator: %s\n", message);
  std::abort();
}

inline void wait(State state) {
  Fiber& self = fibers[current];
  self.state = state;
  swapcontext(&self.context, &scheduler);
}

inline void enter() {
  (*body)();
  wait(State::kDone);
}

inline void block_barrier() {
#ifndef EMULATOR_NO_BARRIERS
  wait(State::kBlockBarrier);
#endif
}

inline float shuffle_down(float value, unsigned distance) {
  const std::size_t self = current;
  fibers[self].shuffled = value;
  wait(State::kWarpBarrier);
  const std::size_t other = self + distance;
  const bool inside = other / kWarpSize == self / kWarpSize && other < fibers.size();
  const float got = inside ? fibers[other].shuffled : value;
  wait(State::kWarpBarrier);
  return got;
}

inline bool release_warps() {
  bool released = false;
  for (std::size_t first = 0; first < fibers.size(); first += kWarpSize) {
    std::size_t waiting = 0, lanes = 0;
    for (; lanes < kWarpSize && first + lanes < fibers.size(); ++lanes)
      waiting += fibers[first + lanes].state == State::kWarpBarrier;
    if (waiting == 0) continue;
    if (waiting != lanes) fail("a shuffle that not every lane of the warp reaches");
    for (std::size_t i = 0; i < lanes; ++i) fibers[first + i].state = State::kReady;
    released = true;
  }
  return released;
}

inline void run_block() {
  for (std::size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.state = State::kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    for (current = 0; current < fibers.size(); ++current)
      if (fibers[current].state == State::kReady) swapcontext(&scheduler, &fibers[current].context);
    if (release_warps()) continue;
    std::size_t at_barrier = 0, done = 0;
    for (const Fiber& fiber : fibers) {
      at_barrier += fiber.state == State::kBlockBarrier;
      done += fiber.state == State::kDone;
    }
    if (done == fibers.size()) return;
    if (at_barrier != fibers.size()) fail("a barrier that not every thread of the block reaches");
    for (Fiber& fiber : fibers) fiber.state = State::kReady;
  }
}

inline void run_grid(const unsigned* grid, const unsigned* threads, const std::function<void()>& kernel) {
  fibers.resize(std::size_t(threads[0]) * threads[1] * threads[2]);
  std::size_t i = 0;
  for (unsigned z = 0; z < threads[2]; ++z)
    for (unsigned y = 0; y < threads[1]; ++y)
      for (unsigned x = 0; x < threads[0]; ++x) {
        fibers[i].position = {x, y, z};
        fibers[i++].stack.resize(kStackBytes);
      }
  body = &kernel;
  for (block.z = 0; block.z < grid[2]; ++block.z)
    for (block.y = 0; block.y < grid[1]; ++block.y)
      for (block.x = 0; block.x < grid[0]; ++block.x) run_block();
}

}  // namespace emulator
