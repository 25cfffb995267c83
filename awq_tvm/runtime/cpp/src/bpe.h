// Byte-pair encoding of one piece of text. See "model" in tokenizer.json.
#pragma once

#include "piece_model.h"

namespace awq {

class Bpe : public PieceModel {
 public:
  explicit Bpe(const Json& model);

  void encode(const std::u32string& piece, std::vector<int32_t>* tokens) const override;

 private:
  struct Merge {
    int32_t rank, made;
  };

  std::vector<int32_t> symbols(const std::u32string& piece) const;
  const Merge* merge_of(int32_t left, int32_t right) const;

  std::unordered_map<uint64_t, Merge> merges_;
  bool byte_fallback_, fuse_unknown_, ignore_merges_;
  int32_t unknown_ = -1;
};

}  // namespace awq
