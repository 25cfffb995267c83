// Runs what TVM compiled: tokens in, logits out. See awq_tvm/runtime/executor.py.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <optional>
#include <string>
#include <vector>

#include "bundle.h"

namespace awq {

// A loaded bundle and its paged KV cache, for one sequence at a time.
class Executor {
 public:
  // path: of a verified bundle. threads: of the CPU; TVM's pool starts once in a process, so the first one decides.
  Executor(const std::string& path, const Manifest& manifest, int threads);

  // Begin a sequence, in place of the one before.
  void restart();
  // Append tokens to the sequence; the logits after the last one, [vocab_size], valid until the next call.
  //
  // tokens: at least one, each in the vocabulary, no more in all than the context holds: the caller has checked.
  const float* forward(const std::vector<int32_t>& tokens);

 private:
  void bind_decode();
  void call_forward(const int32_t* tokens, int64_t count);

  int64_t chunk_, vocab_size_;
  tvm::ffi::Module machine_;
  tvm::ffi::Function forward_, add_sequence_, remove_sequence_, begin_forward_, end_forward_;
  tvm::ffi::Any cache_;
  tvm::ffi::Array<tvm::ffi::Any> weights_;
  std::optional<tvm::ffi::Function> decode_;
  std::optional<tvm::ffi::Tensor> token_, logits_;
  bool started_ = false;
};

}  // namespace awq
