// Text to tokens, so that user text cannot become control tokens. See awq_tvm/prompt/tokenizer.py.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "json.h"
#include "piece_model.h"
#include "text_steps.h"

namespace awq {

class Tokenizer {
 public:
  // tokenizer_json: of a bundle, parsed.
  explicit Tokenizer(const Json& tokenizer_json);

  // Tokens of a user's text and what the tokenizer puts around it; a control token spelled out is ordinary text.
  std::vector<int32_t> encode(const std::string& text) const;

  // Contents by id, empty where there is none.
  const std::vector<std::string>& contents() const { return contents_; }
  // Tokens that decode to nothing.
  const std::set<int32_t>& skipped_ids() const { return skipped_ids_; }

 private:
  struct Added {
    std::u32string content;
    int32_t id;
  };
  struct Part {
    std::u32string text;
    int32_t id;  // of an added token; -1 for a text
    bool first;
  };

  void read_added(const Json& added);
  void read_processor(const Json& json);
  std::u32string normalized(std::u32string text) const;
  std::vector<int32_t> encode_plain(const std::u32string& text) const;
  std::vector<int32_t> encode_broken(const std::u32string& text) const;
  static std::vector<Part> apart(const Part& part, const std::vector<Added>& added);

  std::unique_ptr<PieceModel> model_;
  std::vector<Normalizer> normalizers_;
  std::vector<Cutter> cutters_;
  std::vector<Added> raw_, later_;       // found in user text, before and after it was normalized
  std::vector<std::u32string> literals_;  // of control tokens, longest first
  std::set<int32_t> control_ids_, skipped_ids_;
  std::vector<int32_t> before_, after_;
  std::vector<std::string> contents_;
};

}  // namespace awq
