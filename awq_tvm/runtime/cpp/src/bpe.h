// Byte-pair encoding of one piece of text. See "model" in tokenizer.json.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.h"

namespace awq {

class Bpe {
 public:
  explicit Bpe(const Json& model);

  // Appends the tokens of a piece.
  void encode(const std::u32string& piece, std::vector<int32_t>* tokens) const;
  // -1 where the vocabulary has no such token.
  int32_t id_of(const std::string& content) const;
  const std::unordered_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank, made;
  };

  std::vector<int32_t> symbols(const std::u32string& piece) const;
  const Merge* merge_of(int32_t left, int32_t right) const;

  std::unordered_map<std::string, int32_t> vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;
  bool byte_fallback_, fuse_unknown_, ignore_merges_;
  int32_t unknown_ = -1;
};

}  // namespace awq
