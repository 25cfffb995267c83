#include "weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "error.h"
#include "json.h"

namespace awq {
namespace {

namespace ffi = tvm::ffi;

constexpr int64_t kAlignment = 64;

class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (file >= 0 && fstat(file, &status) == 0 && status.st_size > 0) {
      size = status.st_size;
      void* found = mmap(nullptr, std::size_t(size), PROT_READ, MAP_PRIVATE, file, 0);
      data = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
    }
    if (file >= 0) close(file);
    if (!data) throw Error(AWQ_TVM_RESOURCE, "The weights cannot be mapped.", path, std::strerror(errno), kCopyAgain);
  }
  ~Mapping() { munmap(data, std::size_t(size)); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* data = nullptr;
  int64_t size = 0;
};

// What a tensor keeps of the mapping: how TVM's FFI asks for memory of one's own.
struct Placed {
  std::shared_ptr<Mapping> mapping;
  char* data;

  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) { mapping.reset(); }
};

DLDataType dtype_of(const Json& code) {
  static const std::map<std::string, DLDataType> dtypes = {
      {"BOOL", {kDLBool, 8, 1}}, {"U8", {kDLUInt, 8, 1}},   {"I8", {kDLInt, 8, 1}},      {"U16", {kDLUInt, 16, 1}},
      {"I16", {kDLInt, 16, 1}},  {"F16", {kDLFloat, 16, 1}}, {"BF16", {kDLBfloat, 16, 1}}, {"U32", {kDLUInt, 32, 1}},
      {"I32", {kDLInt, 32, 1}},  {"F32", {kDLFloat, 32, 1}}, {"U64", {kDLUInt, 64, 1}},    {"I64", {kDLInt, 64, 1}},
      {"F64", {kDLFloat, 64, 1}}, {"F8_E4M3", {kDLFloat8_e4m3fn, 8, 1}}, {"F8_E5M2", {kDLFloat8_e5m2, 8, 1}}};
  const auto found = dtypes.find(code.text());
  if (found == dtypes.end()) code.refuse("a dtype that bundles do not have");
  return found->second;
}

ffi::Tensor tensor_at(const Json& entry, const std::shared_ptr<Mapping>& mapping, int64_t base) {
  const DLDataType dtype = dtype_of(entry.at("dtype"));
  const int64_t room = mapping->size - base;
  std::vector<int64_t> shape;
  int64_t bytes = dtype.bits / 8;
  for (const Json& extent : entry.at("shape").elements()) {
    shape.push_back(extent.integer(0, room));
    if (__builtin_mul_overflow(bytes, shape.back(), &bytes)) entry.refuse("its shape overflows");
  }
  const std::vector<Json> offsets = entry.at("data_offsets").elements();
  if (offsets.size() != 2) entry.refuse("data_offsets are not two");
  const int64_t start = offsets[0].integer(0, room), end = offsets[1].integer(start, room);
  if (end - start != bytes) entry.refuse("its shape does not fit its bytes");
  if ((base + start) % kAlignment) entry.refuse("it is not on a boundary of 64 bytes");
  return ffi::Tensor::FromNDAlloc(Placed{mapping, mapping->data + base + start}, ffi::Shape(shape), dtype,
                                  DLDevice{kDLCPU, 0});
}

}  // namespace

std::vector<ffi::Tensor> map_weights(const std::string& path, const std::vector<std::string>& parameters) {
  const auto mapping = std::make_shared<Mapping>(path);
  uint64_t header = 0;
  if (mapping->size >= 8) std::memcpy(&header, mapping->data, 8);
  if (mapping->size < 8 || header > uint64_t(mapping->size) - 8) {
    throw bundle_error("The weights cannot be mapped.", path, "the header does not fit the file");
  }
  const Json entries = Json::parse(std::string(mapping->data + 8, header), path);
  std::vector<ffi::Tensor> tensors;
  for (const std::string& name : parameters) {
    tensors.push_back(tensor_at(entries.at(name), mapping, 8 + int64_t(header)));
  }
  return tensors;
}

}  // namespace awq
