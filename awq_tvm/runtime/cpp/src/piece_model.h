// What turns one piece of text into tokens: "model" in tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.h"

namespace awq {

class PieceModel {
 public:
  explicit PieceModel(std::unordered_map<std::string, int32_t> vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~PieceModel() = default;

  // Appends the tokens of a piece.
  virtual void encode(const std::u32string& piece, std::vector<int32_t>* tokens) const = 0;
  // -1 where the vocabulary has no such token.
  int32_t id_of(const std::string& content) const;
  const std::unordered_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }

 protected:
  // Appends the tokens <0xE2> and so on of a text's bytes; false, and nothing, where the vocabulary lacks one.
  bool append_bytes(const std::string& text, std::vector<int32_t>* tokens) const;

 private:
  std::unordered_map<std::string, int32_t> vocabulary_;
};

std::unique_ptr<PieceModel> read_model(const Json& json);

}  // namespace awq
