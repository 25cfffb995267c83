// Tokens to text as they come: nothing is shown that a later token could still change. See "decoder" in tokenizer.json.
#pragma once

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "json.h"
#include "tokenizer.h"

namespace awq {

// How a tokenizer's tokens are joined.
struct Decoding {
  explicit Decoding(const Json& json);  // null: with blanks between them

  bool byte_level = false, byte_fallback = false, blanks_between = false;
  std::vector<std::pair<std::string, std::string>> replacements;  // in each token
  std::string metaspace;     // a blank, but for those of the first token where drop_first
  bool drop_first = false;
  std::string strip;         // taken off the beginning of the whole, strip_most times at most
  int64_t strip_most = 0;

 private:
  void read(const Json& json);

  bool fused_ = false;
};

// Decodes one answer; the pieces joined are the decoding of the whole.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, const Decoding& decoding)
      : tokenizer_(tokenizer), decoding_(decoding), left_to_strip_(decoding.strip_most) {}

  // Take a token; return the text that is now certain, maybe none.
  std::string push(int32_t token);
  // The text that was held back; the answer is over.
  std::string finish();

 private:
  std::string certain(bool last);
  std::string end_of_bytes();
  std::string stripped(std::string text, bool last);

  const Tokenizer& tokenizer_;
  const Decoding& decoding_;
  std::string held_;   // bytes of a byte-level vocabulary that are no whole character yet
  std::string bytes_;  // a run of byte tokens: a part of it that is no UTF-8 changes the whole run
  std::string start_;  // the beginning, while some of it may be stripped
  int64_t left_to_strip_;
  bool first_ = true;
};

}  // namespace awq
