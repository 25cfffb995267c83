// The regular expressions by which tokenizers cut text: alternatives, classes of characters with Unicode's categories,
// repetitions of one character, groups, groups without case, and looking ahead.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace awq {

struct CharRange {
  char32_t low, high;
  uint32_t categories = 0;  // instead of the range
  bool space = false;       // instead of the range
  bool negated = false;
};

struct CharSet {
  std::vector<CharRange> ranges;
  bool negated = false, folded = false;

  bool has(char32_t point) const;
};

class Pattern {
 public:
  // Throws std::invalid_argument where the pattern has what is not known here.
  explicit Pattern(const std::u32string& pattern);

  struct Match {
    std::size_t start, end;
  };
  // All matches from left to right, none of them empty.
  std::vector<Match> find_all(const std::u32string& text) const;

 private:
  struct Item;
  using Sequence = std::vector<Item>;
  struct Item {
    enum Kind { kChars, kGroup, kAhead, kNotAhead, kEnd } kind = kChars;
    CharSet chars;
    std::size_t least = 1, most = 1;
    bool possessive = false;
    std::vector<Sequence> alternatives;
  };
  struct Rest {
    const Sequence* sequence;
    std::size_t index;
    const Rest* next;
  };
  struct Parser;
  friend struct Parser;

  static bool run(const Sequence& sequence, std::size_t index, const std::u32string& text, std::size_t place,
                  const Rest* rest, std::size_t* end);
  static bool any(const std::vector<Sequence>& alternatives, const std::u32string& text, std::size_t place,
                  const Rest* rest, std::size_t* end);

  std::vector<Sequence> alternatives_;
};

}  // namespace awq
