// One answer at a time from a verified bundle: greedy, token by token. See awq_tvm/runtime/engine.py.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "detokenizer.h"
#include "executor.h"
#include "tokenizer.h"

namespace awq {

class Model {
 public:
  // Verify a bundle in full, then load it. threads: 0 for one a processor.
  Model(const std::string& path, int threads);

  // Tokens of a text. The first use of text reads the tokenizer.
  std::vector<int32_t> encode(const std::string& text);
  // Start an answer. max_tokens: 0 for as many as the context holds, 256 at most.
  void start(std::vector<int32_t> tokens, int max_tokens);
  // The next token; -1 where the answer is over. text: what is certain now, where the runner knows the tokenizer.
  int32_t next(std::string* text);

  const Manifest manifest;

 private:
  struct Text {
    Tokenizer tokenizer;
    Decoding decoding;
  };

  const Text& text();
  int32_t next_token();

  std::string path_;
  Executor executor_;
  std::unique_ptr<const Text> text_;
  std::optional<Detokenizer> detokenizer_;
  std::vector<int32_t> feed_;  // tokens that were not read yet
  int64_t left_ = 0;           // tokens that may still be generated
};

}  // namespace awq
