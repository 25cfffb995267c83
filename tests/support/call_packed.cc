// Loads a compiled library and calls one function of it on raw arrays and numbers, with no TVM runtime: what TVM's
// loader would fill in is filled in here, for one thread. For running cross-compiled code under an emulator.
//
// call_packed LIBRARY SYMBOL FILE DTYPE_CODE:BITS:DIM,DIM... [int VALUE] [float VALUE] ...   (arrays are written back)
#include <dlfcn.h>
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

extern "C" void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  std::fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) std::fputs(parts[i] ? parts[i] : "", stderr);
  std::fputs("\n", stderr);
}

namespace {

struct ParallelEnv {
  void* sync;
  int32_t tasks;
};
using Lambda = int (*)(int, ParallelEnv*, void*);

int parallel_launch(Lambda lambda, void* data, int) {
  ParallelEnv env{nullptr, 1};
  return lambda(0, &env, data);
}
void* alloc_workspace(int, int, uint64_t bytes, int, int) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }
int free_workspace(int, int, void* memory) {
  std::free(memory);
  return 0;
}

void fill(void* library, const char* name, void* value) {
  if (void* slot = dlsym(library, name)) *static_cast<void**>(slot) = value;
}

struct Array {
  std::string file;
  std::vector<char> bytes;
  std::vector<int64_t> shape;
  DLTensor tensor;
};

}  // namespace

int main(int argc, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  fill(library, "__TVMBackendParallelLaunch", reinterpret_cast<void*>(parallel_launch));
  fill(library, "__TVMBackendAllocWorkspace", reinterpret_cast<void*>(alloc_workspace));
  fill(library, "__TVMBackendFreeWorkspace", reinterpret_cast<void*>(free_workspace));
  std::vector<Array> arrays((argc - 3) / 2);
  std::vector<TVMFFIAny> arguments(arrays.size());
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    Array& array = arrays[i];
    array.file = argv[3 + 2 * i];
    std::memset(&arguments[i], 0, sizeof(TVMFFIAny));
    if (array.file == "int" || array.file == "float") {
      const bool whole = array.file == "int";
      array.file.clear();
      arguments[i].type_index = whole ? kTVMFFIInt : kTVMFFIFloat;
      if (whole) arguments[i].v_int64 = std::atoll(argv[4 + 2 * i]);
      if (!whole) arguments[i].v_float64 = std::atof(argv[4 + 2 * i]);
      continue;
    }
    std::ifstream in(array.file, std::ios::binary);
    array.bytes.assign(std::istreambuf_iterator<char>(in), {});
    void* aligned = alloc_workspace(0, 0, array.bytes.size(), 0, 0);
    std::memcpy(aligned, array.bytes.data(), array.bytes.size());
    std::istringstream type(argv[4 + 2 * i]);
    int code = 0, bits = 0;
    char separator;
    type >> code >> separator >> bits;
    for (int64_t extent; type >> separator >> extent;) array.shape.push_back(extent);
    array.tensor = DLTensor{aligned, {kDLCPU, 0}, int32_t(array.shape.size()),
                            {uint8_t(code), uint8_t(bits), 1}, array.shape.data(), nullptr, 0};
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &array.tensor;
  }
  auto function = reinterpret_cast<TVMFFISafeCallType>(dlsym(library, argv[2]));
  if (!function) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  TVMFFIAny result;
  std::memset(&result, 0, sizeof(result));
  if (function(nullptr, arguments.data(), int32_t(arguments.size()), &result)) return 3;
  for (const Array& array : arrays) {
    if (array.file.empty()) continue;
    const char* data = static_cast<const char*>(array.tensor.data);
    std::ofstream(array.file, std::ios::binary).write(data, array.bytes.size());
  }
  return 0;
}
