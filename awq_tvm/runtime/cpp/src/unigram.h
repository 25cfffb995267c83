// The likeliest way to write one piece of text in tokens that each have a probability: SentencePiece's Unigram.
#pragma once

#include "piece_model.h"

namespace awq {

class Unigram : public PieceModel {
 public:
  explicit Unigram(const Json& model);

  void encode(const std::u32string& piece, std::vector<int32_t>* tokens) const override;

 private:
  std::vector<double> scores_;  // logarithms, by id
  double unknown_score_ = 0;
  std::size_t longest_ = 1;  // characters of the longest token
  int32_t unknown_;
  bool byte_fallback_;
};

}  // namespace awq
