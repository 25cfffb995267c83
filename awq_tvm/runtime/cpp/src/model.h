// One answer at a time from a verified bundle: greedy, token by token. See awq_tvm/runtime/engine.py.
#pragma once

#include <string>
#include <vector>

#include "bundle.h"
#include "executor.h"

namespace awq {

class Model {
 public:
  // Verify a bundle in full, then load it. threads: 0 for one a processor.
  Model(const std::string& path, int threads);

  // Start an answer. max_tokens: 0 for as many as the context holds, 256 at most.
  void start(std::vector<int32_t> tokens, int max_tokens);
  // The next token; -1 where the answer is over.
  int32_t next();

  const Manifest manifest;

 private:
  Executor executor_;
  std::vector<int32_t> feed_;  // tokens that were not read yet
  int64_t left_ = 0;           // tokens that may still be generated
};

}  // namespace awq
