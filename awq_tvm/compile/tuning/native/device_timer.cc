// Checks and times candidates on a device: linked into the library that holds them, so that a device needs TVM's
// runtime and nothing of ours. It runs in a forked child with a time limit: a candidate that hangs, aborts or writes
// where it should not takes nothing with it but that child. The process that loads this library must not have run a
// kernel itself, since TVM's threads do not survive a fork. The C library is all that is used here.
//
// EACH_KERNEL is K(0) K(1) ... for the functions kernel_0, kernel_1, ... that are linked with this, if any.
#include <dlpack/dlpack.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define K(number) extern "C" int __tvm_ffi_kernel_##number(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
EACH_KERNEL
#undef K

namespace {

#define K(number) __tvm_ffi_kernel_##number,
const TVMFFISafeCallType KERNELS[] = {EACH_KERNEL nullptr};
#undef K
constexpr int64_t KERNEL_COUNT = sizeof(KERNELS) / sizeof(KERNELS[0]) - 1;

// As in timing.py.
constexpr double STRETCH = 4e-4;
constexpr int LEAST_STRETCHES = 9, MOST_STRETCHES = 1 << 16;
constexpr int MOST_WEIGHTS = 16;

enum Status : int64_t { TIMED = 0, WRONG = 1, SIGNAL = 2, EXIT = 3, SLOW = 4, RAISED = 5, NO_MEMORY = 6 };

// What the child leaves for its parent; the times follow it.
struct Shared {
  int64_t finished, status, place, rows;
  double error;
  double times[1];
};

struct Plan {
  int64_t threads, limit_ms, microseconds, cold_bytes, most_copies;
  int64_t chosen_count, timed_count, checked_count;
  const int64_t *chosen, *timed, *checked;
};

struct Operands {
  const DLTensor *x, *expected, *allowed;
  const DLTensor* weights[MOST_WEIGHTS];
  int count;
};

// One use of the weights: the originals or a copy.
struct Call {
  TVMFFISafeCallType kernel;
  int64_t x_shape[2], y_shape[2];
  DLTensor x, y;
  int weight_count;
  DLTensor (*copies)[MOST_WEIGHTS];

  bool run(int64_t copy) {
    TVMFFIAny arguments[MOST_WEIGHTS + 2], result;
    memset(arguments, 0, sizeof(arguments));
    memset(&result, 0, sizeof(result));
    const int count = weight_count + 2;
    for (int i = 0; i < count; ++i) {
      arguments[i].type_index = kTVMFFIDLTensorPtr;
      arguments[i].v_ptr = i == 0 ? &x : i == count - 1 ? &y : &copies[copy][i - 1];
    }
    return kernel(nullptr, arguments, count, &result) == 0;
  }
};

double now(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

size_t bytes_of(const DLTensor& tensor) {
  size_t count = 1;
  for (int i = 0; i < tensor.ndim; ++i) count *= static_cast<size_t>(tensor.shape[i]);
  return (count * tensor.dtype.bits * tensor.dtype.lanes + 7) / 8;
}

const DLTensor* tensor_of(const TVMFFIAny& argument) {
  if (argument.type_index == kTVMFFIDLTensorPtr) return static_cast<const DLTensor*>(argument.v_ptr);
  if (argument.type_index == kTVMFFITensor) return TVMFFITensorGetDLTensorPtr(argument.v_obj);
  return nullptr;
}

template <typename T>
T* data_of(const DLTensor* tensor) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor->data) + tensor->byte_offset);
}

void* aligned(size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, bytes ? bytes : 64) ? nullptr : memory;
}

// The largest |y - expected| as a share of what is allowed; NaN where y has one.
double error_of(const float* y, const Operands& operands, int64_t rows) {
  const int64_t n = operands.allowed->shape[0];
  const float *expected = data_of<float>(operands.expected), *allowed = data_of<float>(operands.allowed);
  double worst = 0;
  for (int64_t i = 0; i < rows * n; ++i) {
    const double off = fabs(static_cast<double>(y[i]) - expected[i]) / allowed[i % n];
    if (!(off <= worst)) worst = off;
    if (isnan(worst)) return worst;
  }
  return worst;
}

int compare(const void* a, const void* b) {
  const double one = *static_cast<const double*>(a), other = *static_cast<const double*>(b);
  return (one > other) - (one < other);
}

double lower_quartile(double* values, int64_t count) {
  qsort(values, static_cast<size_t>(count), sizeof(double), compare);
  const double place = 0.25 * static_cast<double>(count - 1);
  const int64_t below = static_cast<int64_t>(place);
  const int64_t above = below + 1 < count ? below + 1 : below;
  return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

int compare_counts(const void* a, const void* b) {
  const int64_t one = *static_cast<const int64_t*>(a), other = *static_cast<const int64_t*>(b);
  return (one > other) - (one < other);
}

// The median, of the middle two the larger.
int64_t middle(int64_t* values, int64_t count) {
  qsort(values, static_cast<size_t>(count), sizeof(int64_t), compare_counts);
  return values[count / 2];
}

// Seconds of a call of each: the lower quartile of many short stretches, in which they take turns in random order.
// All walk through the same copies of the weights, as far apart as can be and at the same pace: else those behind
// find in the last level cache what the one in front has read from memory.
bool time_calls(Call* calls, int64_t count, int64_t copies, double seconds, clockid_t clock, double* out) {
  auto* lengths = static_cast<int64_t*>(calloc(count, sizeof(int64_t)));
  auto* places = static_cast<int64_t*>(calloc(count, sizeof(int64_t)));
  auto* order = static_cast<int64_t*>(calloc(count, sizeof(int64_t)));
  auto* stretches = static_cast<double*>(calloc(count * MOST_STRETCHES, sizeof(double)));
  if (!lengths || !places || !order || !stretches) return false;
  for (int64_t i = 0; i < count; ++i) {
    order[i] = i;
    const double start = now(clock);
    double elapsed = 0;
    int64_t done = 0;
    while (elapsed < STRETCH) {
      calls[i].run(done++ % copies);
      elapsed = now(clock) - start;
    }
    const int64_t fitting = llround(static_cast<double>(done) * STRETCH / elapsed);
    lengths[i] = fitting > 1 ? fitting : 1;
    places[i] = i * copies / count;
  }
  const int64_t length = middle(lengths, count);
  uint64_t state = 0x9e3779b97f4a7c15u;
  const double end = now(clock) + seconds * static_cast<double>(count);
  int64_t rounds = 0;
  for (; rounds < MOST_STRETCHES && (rounds < LEAST_STRETCHES || now(clock) < end); ++rounds) {
    for (int64_t i = count - 1; i > 0; --i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      const int64_t j = static_cast<int64_t>(state % static_cast<uint64_t>(i + 1)), kept = order[i];
      order[i] = order[j], order[j] = kept;
    }
    for (int64_t turn = 0; turn < count; ++turn) {
      const int64_t i = order[turn];
      const double start = now(clock);
      for (int64_t j = 0; j < length; ++j) calls[i].run((places[i] + j) % copies);
      stretches[i * MOST_STRETCHES + rounds] = (now(clock) - start) / static_cast<double>(length);
      places[i] = (places[i] + length) % copies;
    }
  }
  for (int64_t i = 0; i < count; ++i) out[2 * i] = lower_quartile(stretches + i * MOST_STRETCHES, rounds);
  free(lengths), free(places), free(order), free(stretches);
  return true;
}

void settle(const Plan& plan) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  const int deadly[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTERM};
  for (const int number : deadly) signal(number, SIG_DFL);
  char threads[24];
  snprintf(threads, sizeof(threads), "%lld", static_cast<long long>(plan.threads));
  setenv("TVM_NUM_THREADS", threads, 1);
  setenv("TVM_BIND_THREADS", "0", 1);
  // The last CPUs that are allowed: the first ones serve most interrupts.
  cpu_set_t all, mine;
  CPU_ZERO(&mine);
  if (sched_getaffinity(0, sizeof(all), &all)) return;
  int64_t left = plan.threads;
  for (int cpu = CPU_SETSIZE - 1; cpu >= 0 && left > 0; --cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &mine), --left;
  }
  if (!left) sched_setaffinity(0, sizeof(mine), &mine);
}

Status check_and_time(const Plan& plan, const Operands& operands, Shared* shared) {
  size_t size = 0;
  for (int i = 0; i < operands.count; ++i) size += bytes_of(*operands.weights[i]);
  int64_t copies = (plan.cold_bytes + static_cast<int64_t>(size) - 1) / static_cast<int64_t>(size);
  copies = copies < 2 ? 2 : copies > plan.most_copies ? plan.most_copies : copies;
  const int64_t n = operands.allowed->shape[0], most_rows = operands.x->shape[0];
  auto* weights = static_cast<DLTensor(*)[MOST_WEIGHTS]>(calloc(copies, sizeof(DLTensor[MOST_WEIGHTS])));
  auto* calls = static_cast<Call*>(calloc(plan.chosen_count, sizeof(Call)));
  auto* y = static_cast<float*>(aligned(sizeof(float) * most_rows * n));
  if (!weights || !calls || !y) return NO_MEMORY;
  for (int64_t copy = 0; copy < copies; ++copy) {
    for (int i = 0; i < operands.count; ++i) {
      const DLTensor& original = *operands.weights[i];
      const size_t bytes = bytes_of(original);
      weights[copy][i] = original;
      weights[copy][i].byte_offset = 0;
      weights[copy][i].data = aligned(bytes);
      if (!weights[copy][i].data) return NO_MEMORY;
      memcpy(weights[copy][i].data, data_of<char>(&original), bytes);
    }
  }
  const auto set_rows = [&](int64_t rows) {
    for (int64_t i = 0; i < plan.chosen_count; ++i) {
      Call& call = calls[i];
      call.kernel = KERNELS[plan.chosen[i]];
      call.x_shape[0] = call.y_shape[0] = rows;
      call.x_shape[1] = operands.x->shape[1], call.y_shape[1] = n;
      call.x = *operands.x, call.y = *operands.x;
      call.x.shape = call.x_shape, call.y.shape = call.y_shape;
      call.x.strides = call.y.strides = nullptr;
      call.y.data = y, call.y.byte_offset = 0;
      call.weight_count = operands.count, call.copies = weights;
    }
  };
  for (int64_t place = 0; place < plan.chosen_count; ++place) {
    for (int64_t i = 0; i < plan.checked_count + plan.timed_count; ++i) {
      const int64_t rows = i < plan.checked_count ? plan.checked[i] : plan.timed[i - plan.checked_count];
      set_rows(rows);
      memset(y, 0xff, sizeof(float) * rows * n);  // NaN
      shared->place = place, shared->rows = rows;
      if (!calls[place].run(0)) return RAISED;
      shared->error = error_of(y, operands, rows);
      if (!(shared->error <= 1)) return WRONG;
    }
  }
  const clockid_t clock = plan.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  const double seconds = 1e-6 * static_cast<double>(plan.microseconds) / 2 / static_cast<double>(plan.timed_count);
  for (int64_t i = 0; i < plan.timed_count; ++i) {
    set_rows(plan.timed[i]);
    double* times = shared->times + 2 * i * plan.chosen_count;  // [M][candidate][cold, hot]
    if (!time_calls(calls, plan.chosen_count, copies, seconds, clock, times)) return NO_MEMORY;
    if (!time_calls(calls, plan.chosen_count, 1, seconds, clock, times + 1)) return NO_MEMORY;
  }
  return TIMED;
}

// Wait for the child, or end it and all that it started when its time is up.
int64_t ended(pid_t child, int64_t limit_ms, int* code) {
  const double deadline = now(CLOCK_MONOTONIC) + 1e-3 * static_cast<double>(limit_ms);
  const timespec pause = {0, 2000000};
  bool in_time = true;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (now(CLOCK_MONOTONIC) > deadline) {
      in_time = false;
      kill(-child, SIGKILL);
      kill(child, SIGKILL);
    }
    nanosleep(&pause, nullptr);
  }
  kill(-child, SIGKILL);
  if (!in_time) return SLOW;
  *code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
  return WIFSIGNALED(status) ? SIGNAL : EXIT;
}

bool read_plan(const DLTensor* tensor, Plan* plan) {
  const int64_t *at = data_of<int64_t>(tensor), *end = at + tensor->shape[0];
  if (end - at < 8) return false;
  plan->threads = at[0], plan->limit_ms = at[1], plan->microseconds = at[2];
  plan->cold_bytes = at[3], plan->most_copies = at[4];
  plan->chosen_count = at[5], plan->timed_count = at[6], plan->checked_count = at[7];
  plan->chosen = at + 8, plan->timed = plan->chosen + plan->chosen_count;
  plan->checked = plan->timed + plan->timed_count;
  if (plan->chosen_count < 1 || plan->timed_count < 1 || plan->checked + plan->checked_count != end) return false;
  for (int64_t i = 0; i < plan->chosen_count; ++i) {
    if (plan->chosen[i] < 0 || plan->chosen[i] >= KERNEL_COUNT) return false;
  }
  return true;
}

int raise(const char* message) {
  TVMFFIErrorSetRaisedFromCStr("ValueError", message);
  return -1;
}

#if defined(__aarch64__)
// What the kernel tells every process, in the names of /proc/cpuinfo; an emulator answers for the processor that it
// stands for, which its /proc/cpuinfo may not.
void write_features(FILE* out) {
  static const char* const LOW[] = {"fp",      "asimd",   "",     "aes",    "",     "sha1",    "sha2", "crc32",
                                    "atomics", "fphp",    "asimdhp", "",    "asimdrdm", "jscvt", "fcma", "lrcpc",
                                    "",        "",        "",     "",       "asimddp", "",      "sve",  "asimdfhm"};
  const unsigned long low = getauxval(16), high = getauxval(26);  // AT_HWCAP, AT_HWCAP2
  fputs("Features:", out);
  for (unsigned i = 0; i < sizeof(LOW) / sizeof(LOW[0]); ++i) {
    if (LOW[i][0] && (low >> i & 1)) fprintf(out, " %s", LOW[i]);
  }
  if (high >> 1 & 1) fputs(" sve2", out);
  if (high >> 13 & 1) fputs(" i8mm", out);
  if (high >> 14 & 1) fputs(" bf16", out);
  fputs("\n", out);
}
#else
void copy_lines(FILE* out, const char* path, const char* start, bool once) {
  FILE* in = fopen(path, "r");
  if (!in) return;
  static char line[16384];
  while (fgets(line, sizeof(line), in)) {
    if (strncmp(line, start, strlen(start))) continue;
    fputs(line, out);
    if (once) break;
  }
  fclose(in);
}
#endif

}  // namespace

// measure(plan, x, expected, allowed, times, status, weights...)
//   plan int64: threads, milliseconds allowed, microseconds of timing a candidate, bytes of weights to walk through,
//     most copies of them; how many candidates, timed M, checked M; and then those.
//   expected [rows, N] and allowed [N] float32: what y must be at most that far from.
//   times float64 [timed M, candidates, cold and hot], out; status int64 [4], out: see Status, then a signal or a code
//   or the place of a candidate, then M, then how wrong it is in thousandths of what is allowed.
extern "C" __attribute__((visibility("default"))) int __tvm_ffi_measure(void*, const TVMFFIAny* arguments, int32_t count,
                                                                       TVMFFIAny*) {
  const int fixed = 6;
  if (count <= fixed || count > fixed + MOST_WEIGHTS) return raise("measure takes six tensors and the weights");
  for (int i = 0; i < count; ++i) {
    if (!tensor_of(arguments[i])) return raise("measure takes tensors");
  }
  Plan plan;
  if (!read_plan(tensor_of(arguments[0]), &plan)) return raise("this plan does not fit the library");
  Operands operands = {tensor_of(arguments[1]), tensor_of(arguments[2]), tensor_of(arguments[3]), {}, count - fixed};
  for (int i = fixed; i < count; ++i) operands.weights[i - fixed] = tensor_of(arguments[i]);
  for (int64_t i = 0; i < plan.timed_count + plan.checked_count; ++i) {
    if (plan.timed[i] < 1 || plan.timed[i] > operands.x->shape[0]) return raise("there are not so many rows");
  }
  const int64_t time_count = 2 * plan.chosen_count * plan.timed_count;
  double* times = data_of<double>(tensor_of(arguments[4]));
  int64_t* status = data_of<int64_t>(tensor_of(arguments[5]));
  if (static_cast<int64_t>(bytes_of(*tensor_of(arguments[4])) / 8) < time_count) return raise("no room for times");
  const size_t size = sizeof(Shared) + sizeof(double) * static_cast<size_t>(time_count);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return raise("this device has no memory left");
  auto* shared = static_cast<Shared*>(memory);
  const pid_t child = fork();
  if (child == 0) {
    settle(plan);
    shared->status = check_and_time(plan, operands, shared);
    shared->finished = 1;
    _exit(0);
  }
  if (child < 0) {
    munmap(memory, size);
    return raise("this device cannot start a process");
  }
  setpgid(child, child);
  int code = 0;
  status[0] = ended(child, plan.limit_ms, &code);
  status[1] = code, status[2] = shared->rows, status[3] = 0;
  if (status[0] == EXIT && code == 0 && shared->finished) {
    status[0] = shared->status, status[1] = shared->place;
    status[3] = isnan(shared->error) ? -1 : shared->error > 1e15 ? int64_t(1e18) : llround(1000 * shared->error);
    if (status[0] == TIMED) memcpy(times, shared->times, sizeof(double) * static_cast<size_t>(time_count));
  }
  munmap(memory, size);
  return 0;
}

// describe(text): zero-terminated lines into a uint8 tensor: "machine: ...", and what /proc/cpuinfo says of features.
extern "C" __attribute__((visibility("default"))) int __tvm_ffi_describe(void*, const TVMFFIAny* arguments,
                                                                        int32_t count, TVMFFIAny*) {
  const DLTensor* text = count == 1 ? tensor_of(arguments[0]) : nullptr;
  if (!text) return raise("describe takes a tensor");
  char* buffer = data_of<char>(text);
  const size_t size = bytes_of(*text);
  memset(buffer, 0, size);
  FILE* out = fmemopen(buffer, size - 1, "w");
  if (!out) return raise("this device has no memory left");
  utsname name;
  uname(&name);
  fprintf(out, "machine: %s\nsystem: %s\ncpus: %ld\n", name.machine, name.sysname, sysconf(_SC_NPROCESSORS_ONLN));
  double load = 0;
  if (getloadavg(&load, 1) == 1) fprintf(out, "load: %.2f\n", load);
#if defined(__aarch64__)
  FILE* board = fopen("/proc/device-tree/model", "r");
  char model[128] = "";
  if (board) {
    model[fread(model, 1, sizeof(model) - 1, board)] = 0;
    fclose(board);
  }
  if (model[0]) fprintf(out, "model name: %s\n", model);
  write_features(out);
#else
  copy_lines(out, "/proc/cpuinfo", "model name", true);
  copy_lines(out, "/proc/cpuinfo", "flags", false);
#endif
  fclose(out);
  return 0;
}
