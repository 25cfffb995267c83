#include "executor.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "error.h"
#include "json.h"
#include "machine.h"
#include "weights.h"

namespace awq {
namespace {

namespace ffi = tvm::ffi;

constexpr DLDevice kCpu{kDLCPU, 0};
// Of the virtual machine: freed memory is kept for the next call.
constexpr int kPooledAllocator = 2;
constexpr int64_t kSequence = 0;

struct Aligned {
  void AllocData(DLTensor* tensor) {
    tensor->data = ::operator new(std::max<std::size_t>(ffi::GetDataSize(*tensor), 64), std::align_val_t(64));
  }
  void FreeData(DLTensor* tensor) { ::operator delete(tensor->data, std::align_val_t(64)); }
};

ffi::Tensor int32_tensor(const int32_t* values, int64_t count) {
  ffi::Tensor made = ffi::Tensor::FromNDAlloc(Aligned{}, ffi::Shape({count}), DLDataType{kDLInt, 32, 1}, kCpu);
  std::copy(values, values + count, static_cast<int32_t*>(made.data_ptr()));
  return made;
}

ffi::Function member(const ffi::Module& module, const char* name) {
  const auto found = module->GetFunction(name);
  if (!found.has_value()) throw bundle_error("The bundle's library cannot be loaded.", name, "it has no such function");
  return *found;
}

ffi::Module load_machine(const std::string& library) {
  const ffi::Module loaded = ffi::Module::LoadFromFile(library);
  ffi::Module machine = member(loaded, "vm_load_executable")().cast<ffi::Module>();
  member(machine, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  return machine;
}

// What the library says of itself: that it is the manifest's, and which functions it has.
Json checked_facts(const ffi::Module& machine, const Manifest& manifest, const std::string& library) {
  const std::string text = member(machine, "metadata")().cast<ffi::String>();
  const Json facts = Json::parse(text, library + ", metadata");
  const std::string found = facts.at("fingerprint").text();
  if (found != manifest.fingerprint) {
    throw bundle_error("The library is not the one the manifest describes.", library,
                       "it was built for " + found + ", the manifest says " + manifest.fingerprint,
                       "build the bundle again with `python -m awq_tvm compile`");
  }
  return facts;
}

}  // namespace

Executor::Executor(const std::string& path, const Manifest& manifest, int threads)
    : chunk_(manifest.prefill_chunk_size), vocab_size_(manifest.vocab_size), machine_(ffi::UnsafeInit()) {
  // Read when the pool starts, at the first parallel loop; left alone, TVM uses every second processor.
  setenv("TVM_NUM_THREADS", std::to_string(threads ? threads : processors()).c_str(), 1);
  const std::string library = path + "/" + manifest.library;
  machine_ = load_machine(library);
  const Json facts = checked_facts(machine_, manifest, library);
  for (const ffi::Tensor& tensor : map_weights(path + "/" + manifest.weights, manifest.parameters)) {
    weights_.push_back(tensor);
  }
  forward_ = member(machine_, "forward");
  cache_ = member(machine_, "create_kv_cache")();
  if (facts.boolean_or("decode", false)) bind_decode();
  const auto cache_function = [](const std::string& name) {
    return ffi::Function::GetGlobalRequired("vm.builtin.kv_state_" + name);
  };
  add_sequence_ = cache_function("add_sequence");
  remove_sequence_ = cache_function("remove_sequence");
  begin_forward_ = cache_function("begin_forward");
  end_forward_ = cache_function("end_forward");
}

// The function for one token computes in memory that is allocated here, once; it is given its arguments here too.
void Executor::bind_decode() {
  const int32_t nothing = 0;
  token_ = int32_tensor(&nothing, 1);
  const ffi::String bound = "decode_in_workspace";
  const auto workspace = member(machine_, "decode_workspace")().cast<ffi::Array<ffi::Any>>();
  std::vector<ffi::Any> arguments = {ffi::String("decode"), bound, true, *token_, cache_};
  arguments.insert(arguments.end(), weights_.begin(), weights_.end());
  arguments.insert(arguments.end(), workspace.begin(), workspace.end());
  const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  ffi::Any nothing_returned;
  member(machine_, "save_function").CallPacked(views.data(), int32_t(views.size()), &nothing_returned);
  decode_ = member(machine_, bound.c_str());
}

void Executor::restart() {
  if (started_) remove_sequence_(cache_, kSequence);
  add_sequence_(cache_, kSequence);
  started_ = true;
}

const float* Executor::forward(const std::vector<int32_t>& tokens) {
  const int64_t count = int64_t(tokens.size());
  for (int64_t start = 0; start < count; start += chunk_) {
    call_forward(tokens.data() + start, std::min(chunk_, count - start));
  }
  return static_cast<const float*>(logits_->data_ptr());
}

void Executor::call_forward(const int32_t* tokens, int64_t count) {
  begin_forward_(cache_, ffi::Shape({kSequence}), ffi::Shape({count}));
  if (decode_.has_value() && count == 1) {
    *static_cast<int32_t*>(token_->data_ptr()) = *tokens;
    logits_ = (*decode_)().cast<ffi::Tensor>();
  } else {
    const int32_t last = int32_t(count - 1);
    const auto result =
        forward_(int32_tensor(tokens, count), int32_tensor(&last, 1), cache_, weights_).cast<ffi::Array<ffi::Any>>();
    logits_ = result[0].cast<ffi::Tensor>();
  }
  end_forward_(cache_);
  const bool fits = logits_->ndim() == 2 && logits_->size(0) == 1 && logits_->size(1) == vocab_size_ &&
                    logits_->dtype().code == kDLFloat && logits_->dtype().bits == 32;
  if (!fits) {
    throw bundle_error("The library is not the one the manifest describes.", "forward", "other logits came back");
  }
}

}  // namespace awq
