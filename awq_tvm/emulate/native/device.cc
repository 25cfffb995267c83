// A stand-in for a GPU in TVM's runtime: memory of the host behind red zones, and modules whose functions launch in the
// emulator. With it the host part of a library for CUDA or Metal runs as it would on the device. Which of the two it
// stands for is AWQ_KIND.
#include <dlpack/dlpack.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

extern "C" {
int awq_emulate_launch(const char*, void**, const std::uint32_t*, const std::uint32_t*, std::uint32_t, char*,
                       std::size_t);
const char* awq_emulate_where();
void awq_emulate_arguments(const void* const*, const std::size_t*, std::size_t);
void awq_emulate_overlap();
void awq_emulate_cluster(unsigned blocks);
void awq_emulate_register(const void*, std::size_t);
void awq_emulate_unregister(const void*);
}

namespace {

namespace ffi = tvm::ffi;
using tvm::Device;
using tvm::runtime::DeviceAPI;
using tvm::runtime::DeviceAttrKind;

constexpr std::size_t kRedZone = 4096;

std::map<std::string, std::int64_t>& launches() {
  static std::map<std::string, std::int64_t> counted;
  return counted;
}
std::int64_t overlapped = 0;  // of them, those that might begin before earlier ones had ended

// Tensors lie in storages that are larger, and are reused: of each place the bytes of the largest tensor there that is
// still in use. The virtual machine makes one anew whenever it reuses a storage; those of a workspace are all made at
// once, and of two at one place the larger one counts.
class Tensors {
 public:
  void made(const void* data, const ffi::Tensor& tensor, std::size_t bytes) {
    std::vector<Made>& here = made_[address(data)];
    here.erase(std::remove_if(here.begin(), here.end(), [](const Made& one) { return one.tensor.expired(); }),
               here.end());
    here.push_back({ffi::details::ObjectUnsafe::ObjectPtrFromObjectRef<ffi::TensorObj>(tensor), bytes});
  }
  // What was known of memory that is given or taken.
  void forget(const void* data, std::size_t bytes) {
    made_.erase(made_.lower_bound(address(data)), made_.lower_bound(address(data) + bytes));
  }
  // 0 where no tensor is.
  std::size_t bytes_at(const void* data) const {
    const auto found = made_.find(address(data));
    std::size_t most = 0;
    if (found != made_.end())
      for (const Made& one : found->second)
        if (!one.tensor.expired()) most = std::max(most, one.bytes);
    return most;
  }

 private:
  struct Made {
    ffi::WeakObjectPtr<ffi::TensorObj> tensor;
    std::size_t bytes;
  };
  static std::uintptr_t address(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }
  std::map<std::uintptr_t, std::vector<Made>> made_;
};

Tensors& tensors() {
  static Tensors known;
  return known;
}

// A launch as a graph keeps it: what the kernel is given is that of the capture.
struct Launch {
  std::string name;
  std::vector<std::uint64_t> values;
  std::vector<const void*> firsts;
  std::vector<std::size_t> lengths;
  std::uint32_t sizes[2][3] = {{1, 1, 1}, {1, 1, 1}};
  std::uint32_t dynamic = 0;
  bool overlaps = false;
  unsigned cluster = 1;  // blocks along x

  void run() {
    std::vector<void*> pointers;
    for (std::uint64_t& value : values) pointers.push_back(&value);
    awq_emulate_arguments(firsts.data(), lengths.data(), firsts.size());
    if (overlaps) awq_emulate_overlap();
    awq_emulate_cluster(cluster);
    char message[2048];
    if (awq_emulate_launch(name.c_str(), pointers.data(), sizes[0], sizes[1], dynamic, message, sizeof message))
      TVM_FFI_THROW(RuntimeError) << "emulator: " << message;
    ++launches()[name];
    overlapped += overlaps;
  }
};

// Where launches go while a graph is captured; null while none is.
std::vector<Launch>* capture = nullptr;

// What a driver refuses while a graph is captured.
void not_in_capture(const char* what) {
  if (capture) TVM_FFI_THROW(RuntimeError) << "emulator: " << what << " while a graph is captured";
}

// Memory is freed by destructors, out of which nothing can be thrown: it is said at the end of the capture.
bool freed_in_capture = false;

// Memory that a function of kernels takes for itself and gives back when it returns, and the size of its page.
std::map<const void*, std::size_t>& temporaries() {
  static std::map<const void*, std::size_t> taken;
  return taken;
}

class EmulatedDevice : public DeviceAPI {
 public:
  using DeviceAPI::AllocDataSpace;

  void SetDevice(Device) final {}
  void GetAttr(Device, DeviceAttrKind kind, ffi::Any* value) final {
    switch (kind) {
      case tvm::runtime::kExist: *value = 1; break;
      case tvm::runtime::kMaxThreadsPerBlock: *value = 1024; break;
      case tvm::runtime::kWarpSize: *value = 32; break;
      default: break;
    }
  }
  void* AllocDataSpace(Device, std::size_t bytes, std::size_t alignment, DLDataType) final {
    not_in_capture("memory is allocated");
    return take(bytes, alignment);
  }
  void FreeDataSpace(Device, void* data) final {
    freed_in_capture |= capture != nullptr;
    give(data);
  }
  // TVM keeps pages of such memory, and asks the driver only where none is large enough: then it frees the largest. Of
  // the pages only the sizes are kept here, so that what lies in one still ends where it ends.
  void* AllocWorkspace(Device, std::size_t bytes, DLDataType) final {
    std::size_t page = (std::max<std::size_t>(bytes, 1) + kPage - 1) / kPage * kPage;
    const auto fits = pages_.lower_bound(page);
    if (fits != pages_.end()) {
      page = *fits;
      pages_.erase(fits);
    } else {
      not_in_capture("memory is allocated");
      if (!pages_.empty()) pages_.erase(std::prev(pages_.end()));
    }
    void* data = take(bytes, 256);
    temporaries()[data] = page;
    return data;
  }
  void FreeWorkspace(Device, void* data) final {
    const auto found = temporaries().find(data);
    pages_.insert(found->second);
    temporaries().erase(found);
    give(data);
  }
  void StreamSync(Device, TVMStreamHandle) final { not_in_capture("the stream is waited for"); }
  TVMStreamHandle CreateStream(Device) final { return nullptr; }
  void FreeStream(Device, TVMStreamHandle) final {}
  void SetStream(Device, TVMStreamHandle) final {}
  TVMStreamHandle GetCurrentStream(Device) final { return nullptr; }
  void SyncStreamFromTo(Device, TVMStreamHandle, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, std::size_t from_offset, void* to, std::size_t to_offset, std::size_t bytes,
                      Device, Device, DLDataType, TVMStreamHandle) final {
    not_in_capture("memory is copied");
    std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset, bytes);
  }

 private:
  static constexpr std::size_t kPage = 4096;

  void* take(std::size_t bytes, std::size_t alignment) {
    // As wide as what a device gives, whatever is asked for.
    if (alignment < 256) alignment = 256;
    const std::size_t before = (kRedZone + alignment - 1) / alignment * alignment;
    void* whole = nullptr;
    if (posix_memalign(&whole, alignment, before + bytes + kRedZone) != 0) throw std::bad_alloc();
    auto* data = static_cast<unsigned char*>(whole) + before;
    awq_emulate_register(data, bytes);
    wholes_[data] = {whole, bytes};
    return data;
  }
  void give(void* data) {
    awq_emulate_unregister(data);
    const auto [whole, bytes] = wholes_.at(data);
    tensors().forget(data, bytes);
    std::free(whole);
    wholes_.erase(data);
  }

  std::map<void*, std::pair<void*, std::size_t>> wholes_;
  std::multiset<std::size_t> pages_;
};

// What a module says of one of its functions, in the order of the bytes it was saved as.
struct Signature {
  std::vector<DLDataType> arguments;
  std::vector<std::string> tags;
};

// Reads what TVM's module of a GPU saves first: its format, then its functions.
class Reader {
 public:
  explicit Reader(const ffi::Bytes& bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  template <typename T>
  T number() {
    T value;
    take(&value, sizeof value);
    return value;
  }
  std::string text() {
    std::string value(length(1), '\0');
    take(value.data(), value.size());
    return value;
  }
  std::size_t length(std::size_t least_bytes) {
    const auto count = number<std::uint64_t>();
    if (count > static_cast<std::uint64_t>(end_ - at_) / least_bytes)
      TVM_FFI_THROW(ValueError) << "the device part of the library is cut short";
    return count;
  }

 private:
  void take(void* into, std::size_t bytes) {
    if (bytes > static_cast<std::size_t>(end_ - at_))
      TVM_FFI_THROW(ValueError) << "the device part of the library is cut short";
    std::memcpy(into, at_, bytes);
    at_ += bytes;
  }
  const char *at_, *end_;
};

std::map<std::string, Signature> read_signatures(const ffi::Bytes& bytes) {
  Reader reader(bytes);
  reader.text();  // the format of the code
  std::map<std::string, Signature> found;
  for (std::size_t left = reader.length(8); left; --left) {
    Signature& signature = found[reader.text()];
    reader.text();  // the name again
    for (std::size_t i = reader.length(4); i; --i) {
      const auto code = reader.number<std::uint8_t>(), bits = reader.number<std::uint8_t>();
      signature.arguments.push_back({code, bits, reader.number<std::uint16_t>()});
    }
    for (std::size_t i = reader.length(8); i; --i) signature.tags.push_back(reader.text());
    for (std::size_t i = reader.length(4); i; --i)
      if (reader.number<std::int32_t>() != 0) TVM_FFI_THROW(ValueError) << "the emulator knows no tensor maps";
  }
  return found;
}

void launch(const std::string& name, const Signature& signature, ffi::PackedArgs args) {
  const std::size_t count = signature.arguments.size();
  Launch one;
  one.name = name;
  one.values.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const DLDataType type = signature.arguments[i];
    if (type.code == kDLFloat) {
      const double value = args[i].cast<double>();
      const float narrow = static_cast<float>(value);
      if (type.bits == 32) std::memcpy(&one.values[i], &narrow, sizeof narrow);
      else if (type.bits == 64) std::memcpy(&one.values[i], &value, sizeof value);
      else TVM_FFI_THROW(ValueError) << "kernel " << name << ": a float argument of " << int(type.bits) << " bits";
    } else if (type.code == kDLOpaqueHandle) {
      void* data = args[i].cast<void*>();
      if (capture && temporaries().count(data))
        TVM_FFI_THROW(RuntimeError) << "emulator: kernel " << name << ": a graph would keep temporary memory, which TVM "
                                    << "frees or gives to others before the graph is launched";
      one.values[i] = reinterpret_cast<std::uint64_t>(data);
      one.firsts.push_back(data);
      one.lengths.push_back(tensors().bytes_at(data));
    } else {
      one.values[i] = static_cast<std::uint64_t>(args[i].cast<std::int64_t>());
    }
  }
  std::size_t at = count;  // of the numbers that tags ask for, which come behind the kernel's arguments
  for (const std::string& tag : signature.tags) {
    if (tag == "tirx.use_programtic_dependent_launch") {
      one.overlaps = true;
      continue;
    }
    const auto given = args[at++].cast<std::int64_t>();
    if (tag == "tirx.use_dyn_shared_memory") {
      one.dynamic = static_cast<std::uint32_t>(given);
      continue;
    }
    if (tag == "clusterCtaIdx.x") {
      one.cluster = static_cast<unsigned>(given);
      continue;
    }
    const bool block = tag.rfind("threadIdx.", 0) == 0;
    if (!block && tag.rfind("blockIdx.", 0) != 0)
      TVM_FFI_THROW(ValueError) << "kernel " << name << ": the emulator does not know the launch parameter " << tag;
    one.sizes[block][tag.back() - 'x'] = static_cast<std::uint32_t>(given > 0 ? given : 1);
  }
  if (capture) capture->push_back(std::move(one));
  else one.run();
}

class EmulatedModule : public ffi::ModuleObj {
 public:
  explicit EmulatedModule(std::map<std::string, Signature> signatures) : signatures_(std::move(signatures)) {}
  const char* kind() const final { return AWQ_KIND; }
  int GetPropertyMask() const final { return ffi::Module::kRunnable; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = signatures_.find(std::string(name));
    if (found == signatures_.end()) return std::nullopt;
    return ffi::Function::FromPacked([name = found->first, signature = found->second](ffi::PackedArgs args, ffi::Any*) {
      launch(name, signature, args);
    });
  }

 private:
  std::map<std::string, Signature> signatures_;
};

void device_api(ffi::PackedArgs, ffi::Any* value) {
  static auto* device = new EmulatedDevice;
  *value = static_cast<void*>(static_cast<DeviceAPI*>(device));
}

// Lets us know of every tensor that the virtual machine makes.
void watch_tensors() {
  constexpr const char* name = "vm.builtin.alloc_tensor";
  const ffi::Function original = ffi::Function::GetGlobalRequired(name);
  const auto watched = [original](ffi::PackedArgs args, ffi::Any* made) {
    // Of a pool, and free for others before the graph is launched.
    not_in_capture("a tensor is made");
    original.CallPacked(args, made);
    const auto tensor = made->cast<ffi::Tensor>();
    const std::size_t bytes = ffi::GetDataSize(*tensor.GetDLTensorPtr());
    if (bytes) tensors().made(static_cast<const char*>(tensor.data_ptr()) + tensor.byte_offset(), tensor, bytes);
  };
  ffi::Function::SetGlobal(name, ffi::Function::FromPacked(watched), true);
}

// What virtual machines have captured, by the numbers of the functions.
class Graphs {
 public:
  // As TVM does it for a GPU: the first call runs the function, then captures it, and every later one launches what was
  // captured and looks at nothing else of what it is given.
  ffi::ObjectRef run_or_capture(ffi::ModuleObj* machine, ffi::PackedArgs args) {
    // TVM's class of these machines is a module first; its header asks for others that no wheel has.
    auto& [owner, captured] = machines_[machine];
    if (owner.expired()) {
      captured.clear();
      owner = ffi::details::ObjectUnsafe::ObjectPtrFromUnowned<ffi::ModuleObj>(machine);
    }
    const auto number = args[3].cast<std::int64_t>();
    const auto found = captured.find(number);
    if (found != captured.end()) {
      for (Launch& one : found->second.launches) one.run();
      ++launched_;
      return found->second.result;
    }
    std::vector<ffi::AnyView> arguments{args[1]};
    const auto given = args[2].cast<ffi::Array<ffi::Any>>();
    arguments.insert(arguments.end(), given.begin(), given.end());
    const ffi::Function invoke = machine->GetFunction("invoke_closure").value();
    const auto invoked = [&] {
      ffi::Any result;
      invoke.CallPacked(ffi::PackedArgs(arguments.data(), static_cast<int>(arguments.size())), &result);
      return result.cast<ffi::ObjectRef>();
    };
    invoked();
    Graph graph;
    {
      Capturing capturing(&graph.launches);
      graph.result = invoked();
      if (freed_in_capture) not_in_capture("memory is freed");
    }
    return captured.emplace(number, std::move(graph)).first->second.result;
  }
  // How often one was launched that had been captured before.
  std::int64_t launched() const { return launched_; }

 private:
  struct Capturing {
    explicit Capturing(std::vector<Launch>* into) {
      capture = into;
      freed_in_capture = false;
    }
    ~Capturing() { capture = nullptr; }
  };
  struct Graph {
    std::vector<Launch> launches;
    ffi::ObjectRef result;
  };
  std::map<const void*, std::pair<ffi::WeakObjectPtr<ffi::ModuleObj>, std::map<std::int64_t, Graph>>> machines_;
  std::int64_t launched_ = 0;
};

Graphs& graphs() {
  static auto* known = new Graphs;
  return *known;
}

void run_or_capture(ffi::PackedArgs args, ffi::Any* result) {
  if (args.size() != 4) TVM_FFI_THROW(ValueError) << "the emulator knows no graphs of symbolic shapes";
  *result = graphs().run_or_capture(static_cast<ffi::ModuleObj*>(args[0].cast<void*>()), args);
}

// A kernel that divides by zero, or runs out of its stack, ends the process: it is named first.
void name_kernel(int number) {
  const char* where = awq_emulate_where();
  if (*where) std::fprintf(stderr, "\nemulator: %s\n", where);
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void watch_signals() {
  static unsigned char own_stack[64 * 1024];  // that of the thread may be what has run out
  stack_t stack{};
  stack.ss_sp = own_stack;
  stack.ss_size = sizeof own_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_handler = name_kernel;
  action.sa_flags = SA_ONSTACK | SA_NODEFER;
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigaction(number, &action, nullptr);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  watch_tensors();
  watch_signals();
  refl::GlobalDef()
      .def_packed("device_api." AWQ_KIND, device_api)
      .def_packed("device_api." AWQ_KIND "_host", device_api)
      .def_packed("vm.builtin.cuda_graph.run_or_capture", run_or_capture)
      .def("ffi.Module.load_from_bytes." AWQ_KIND,
           [](const ffi::Bytes& bytes) {
             return ffi::Module(ffi::make_object<EmulatedModule>(read_signatures(bytes)));
           })
      .def("awq_emulate.graph_launches", [] { return graphs().launched(); })
      .def("awq_emulate.overlapped_launches", [] { return overlapped; })
      .def("awq_emulate.launches", [] {
        ffi::Map<ffi::String, std::int64_t> counted;
        for (const auto& [name, count] : launches()) counted.Set(name, count);
        return counted;
      });
}
