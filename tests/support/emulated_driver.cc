// As much of NVIDIA's driver as cuda_driver.py calls, with kernels in the emulator: memory of the host, graphs
// that are replayed, events that read the clock. An "image" is the path of a library that the emulator built.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Module {
  void* library;
  template <typename F>
  F* function(const char* name) const {
    return reinterpret_cast<F*>(dlsym(library, name));
  }
};
struct Function {
  const Module* module;
  std::string name;
  std::size_t parameters;
  int shared_bytes = 48 * 1024;
};
// What the attributes of a launch ask for.
struct How {
  bool overlaps = false;
  unsigned cluster = 1;
};
using Graph = std::vector<std::function<int()>>;
using Clock = std::chrono::steady_clock;

std::vector<Module*> modules;
std::map<std::uint64_t, std::size_t> buffers;
Graph* captured = nullptr;
std::string message = "invalid argument";

void tell(const Module& module, std::uint64_t buffer, std::size_t bytes) {
  module.function<void(const void*, std::size_t)>("awq_emulate_register")(reinterpret_cast<void*>(buffer), bytes);
}

int launch(const Function& function, const std::uint32_t (&grid)[3], const std::uint32_t (&block)[3],
           std::uint32_t shared, void** arguments, const How& how) {
  if (how.overlaps) function.module->function<void()>("awq_emulate_overlap")();
  function.module->function<void(unsigned)>("awq_emulate_cluster")(how.cluster);
  char error[2048] = "";
  const int failed = function.module->function<int(const char*, void**, const std::uint32_t*, const std::uint32_t*,
                                                   std::uint32_t, char*, std::size_t)>("awq_emulate_launch")(
      function.name.c_str(), arguments, grid, block, shared, error, sizeof error);
  if (failed) message = error;
  return failed ? 700 : 0;
}

// The host has waited for all that was launched.
int synchronize() {
  for (const Module* module : modules) module->function<void()>("awq_emulate_synchronize")();
  return 0;
}

int start(void* function, const unsigned (&sizes)[7], void* stream, void** arguments, void** extra, const How& how) {
  const auto& which = *static_cast<Function*>(function);
  const auto [gx, gy, gz, bx, by, bz, shared] = sizes;
  if (stream != &buffers || extra || int(shared) > which.shared_bytes) return 1;
  const auto run = [=, gx = gx, gy = gy, gz = gz, bx = bx, by = by, bz = bz, shared = shared,
                    &which](std::vector<std::uint64_t> values) {
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(&value);
    return launch(which, {gx, gy, gz}, {bx, by, bz}, shared, pointers.data(), how);
  };
  // As the driver does, the values are taken when the kernel is launched or recorded.
  std::vector<std::uint64_t> values(which.parameters);
  for (std::size_t i = 0; i < values.size(); ++i) std::memcpy(&values[i], arguments[i], 8);
  if (!captured) return run(values);
  captured->push_back([=] { return run(values); });
  return 0;
}

}  // namespace

extern "C" {

// As cuda.h has them.
struct CUlaunchAttribute {
  int id;
  char pad[4];
  union {
    char bytes[64];
    int allowed;
    unsigned cluster[3];
  } value;
};
struct CUlaunchConfig {
  unsigned sizes[7];
  void* stream;
  CUlaunchAttribute* attributes;
  unsigned count;
};

int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int) { return *device = 0, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &modules, 0; }
int cuCtxSetCurrent(void* context) { return context == &modules ? 0 : 201; }
int cuStreamCreate(void** stream, unsigned) { return *stream = &buffers, 0; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "emulated"), 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetAttribute(int* value, int which, int) {
  static const std::map<int, int> known = {{75, 9}, {76, 0}, {16, 2}, {38, 1024}};
  return *value = known.at(which), 0;
}
int cuGetErrorString(int, const char** text) { return *text = message.c_str(), 0; }

int cuModuleLoadData(void** module, const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return message = dlerror(), 209;
  modules.push_back(new Module{library});
  for (const auto& [buffer, bytes] : buffers) tell(*modules.back(), buffer, bytes);
  return *module = modules.back(), 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  const auto* from = static_cast<Module*>(module);
  std::istringstream lines(from->function<const char*()>("awq_emulate_kernels")());
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string found, parameter;
    words >> found;
    std::size_t count = 0;
    while (words >> parameter) ++count;
    if (found == name) return *function = new Function{from, name, count}, 0;
  }
  return 500;
}
int cuFuncSetAttribute(void* function, int which, int value) {
  if (which != 8) return 1;
  return static_cast<Function*>(function)->shared_bytes = value, 0;
}

int cuMemAlloc_v2(std::uint64_t* buffer, std::size_t bytes) {
  *buffer = reinterpret_cast<std::uint64_t>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  buffers[*buffer] = bytes;
  for (const Module* module : modules) tell(*module, *buffer, bytes);
  return 0;
}
int cuMemFree_v2(std::uint64_t buffer) {
  if (!buffers.erase(buffer)) return 1;
  for (const Module* module : modules)
    module->function<void(const void*)>("awq_emulate_unregister")(reinterpret_cast<void*>(buffer));
  return std::free(reinterpret_cast<void*>(buffer)), 0;
}
int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t bytes) {
  return std::memcpy(reinterpret_cast<void*>(to), from, bytes), 0;
}
int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t bytes) {
  return std::memcpy(to, reinterpret_cast<void*>(from), bytes), 0;
}
int cuMemcpyDtoD_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes) {
  return std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  return start(function, {gx, gy, gz, bx, by, bz, shared}, stream, arguments, extra, {});
}
int cuLaunchKernelEx(const CUlaunchConfig* config, void* function, void** arguments, void** extra) {
  How how;
  for (unsigned i = 0; i < config->count; ++i) {
    const CUlaunchAttribute& asked = config->attributes[i];
    if (asked.id == 6) how.overlaps = asked.value.allowed != 0;
    else if (asked.id == 4 && asked.value.cluster[1] == 1 && asked.value.cluster[2] == 1) how.cluster = asked.value.cluster[0];
    else return 1;
  }
  return start(function, config->sizes, config->stream, arguments, extra, how);
}
int cuStreamBeginCapture_v2(void*, int) { return captured ? 1 : (captured = new Graph, 0); }
int cuStreamEndCapture(void*, void** graph) {
  *graph = captured;
  captured = nullptr;
  return 0;
}
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long) { return *ready = graph, 0; }
int cuGraphLaunch(void* graph, void*) {
  for (const auto& run : *static_cast<Graph*>(graph))
    if (const int failed = run()) return failed;
  return 0;
}
int cuStreamSynchronize(void*) { return captured ? 900 : synchronize(); }

int cuEventCreate(void** event, unsigned) { return *event = new Clock::time_point, 0; }
int cuEventRecord(void* event, void*) { return *static_cast<Clock::time_point*>(event) = Clock::now(), 0; }
int cuEventSynchronize(void*) { return synchronize(); }
int cuEventElapsedTime(float* milliseconds, void* first, void* last) {
  const auto between = *static_cast<Clock::time_point*>(last) - *static_cast<Clock::time_point*>(first);
  return *milliseconds = std::chrono::duration<float, std::milli>(between).count(), 0;
}
int cuEventDestroy_v2(void* event) { return delete static_cast<Clock::time_point*>(event), 0; }
}
