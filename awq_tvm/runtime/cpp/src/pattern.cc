#include "pattern.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "unicode.h"

namespace awq {
namespace {

constexpr std::size_t kMany = std::numeric_limits<std::size_t>::max();

// Case is told apart in ASCII alone, and by the two letters elsewhere that fold into it.
char32_t folded(char32_t point) {
  if (point == 0x17f) return U's';
  if (point == 0x212a) return U'k';
  return point >= U'A' && point <= U'Z' ? point + 32 : point;
}

bool in_range(const CharRange& range, char32_t point) {
  if (range.categories) return (category_of(point) & range.categories) != 0;
  return range.space ? is_space(point) : point >= range.low && point <= range.high;
}

[[noreturn]] void unknown(const std::string& what) { throw std::invalid_argument("the pattern has " + what); }

}  // namespace

bool CharSet::has(char32_t point) const {
  const bool found = std::any_of(ranges.begin(), ranges.end(), [&](const CharRange& range) {
    bool inside = in_range(range, point);
    if (folded && !inside) {
      const char32_t lower = awq::folded(point);
      const char32_t upper = lower >= U'a' && lower <= U'z' ? lower - 32 : lower;
      inside = in_range(range, lower) || in_range(range, upper);
    }
    return inside != range.negated;
  });
  return found != negated;
}

struct Pattern::Parser {
  const std::u32string& text;
  std::size_t at = 0;
  int depth = 0;

  bool more() const { return at < text.size(); }
  char32_t peek() const { return more() ? text[at] : 0; }
  bool take(const std::u32string& word) {
    if (text.compare(at, word.size(), word) != 0) return false;
    at += word.size();
    return true;
  }

  std::vector<Sequence> alternatives(bool fold) {
    if (++depth > 32) unknown("too many groups in groups");
    std::vector<Sequence> found(1);
    while (more() && peek() != U')') {
      if (take(U"|")) found.emplace_back();
      else found.back().push_back(item(fold));
    }
    --depth;
    return found;
  }

  Item item(bool fold) {
    Item made;
    if (take(U"(")) {
      if (take(U"?i:")) fold = true;
      else if (take(U"?=")) made.kind = Item::kAhead;
      else if (take(U"?!")) made.kind = Item::kNotAhead;
      else if (!take(U"?:") && peek() == U'?') unknown("a group of a kind that is not known here");
      if (made.kind == Item::kChars) made.kind = Item::kGroup;
      made.alternatives = alternatives(fold);
      if (!take(U")")) unknown("a group that does not end");
    } else if (take(U"$")) {
      made.kind = Item::kEnd;
    } else if (take(U"[")) {
      made.chars = set();
    } else if (take(U".")) {
      made.chars.ranges = {{U'\n', U'\n'}};
      made.chars.negated = true;
    } else if (take(U"\\")) {
      made.chars.ranges = {escape()};
    } else if (std::u32string(U"^*+?{").find(peek()) != std::u32string::npos) {
      unknown("a sign that is not known here");
    } else {
      made.chars.ranges = {{peek(), peek()}};
      ++at;
    }
    made.chars.folded = fold;
    repetition(&made);
    return made;
  }

  void repetition(Item* made) {
    if (take(U"*")) made->least = 0, made->most = kMany;
    else if (take(U"+")) made->most = kMany;
    else if (take(U"?")) made->least = 0;
    else if (take(U"{")) bounds(made);
    else return;
    if (take(U"?")) unknown("a repetition that takes as little as it can");
    made->possessive = take(U"+");
    // Repeating a group would need as much stack as there is text.
    if (made->kind != Item::kChars && (made->kind != Item::kGroup || made->most > 1 || made->possessive)) {
      unknown("a group that is repeated");
    }
  }

  void bounds(Item* made) {
    made->least = number();
    made->most = made->least;
    if (take(U",")) made->most = peek() == U'}' ? kMany : number();
    if (!take(U"}") || made->least > made->most) unknown("bounds of a repetition that make no sense");
  }

  std::size_t number() {
    std::size_t value = 0;
    while (peek() >= U'0' && peek() <= U'9' && value < 100000) value = value * 10 + (text[at++] - U'0');
    return value;
  }

  CharSet set() {
    CharSet made;
    made.negated = take(U"^");
    for (bool first = true; more() && (first || peek() != U']'); first = false) {
      if (peek() == U'[' || take(U"&&")) unknown("a set within a set");
      CharRange range = member();
      const bool single = !range.categories && !range.space && range.low == range.high;
      if (single && peek() == U'-' && at + 1 < text.size() && text[at + 1] != U']') {
        ++at;
        range.high = member().high;
        if (range.high < range.low) unknown("a range that ends before it starts");
      }
      made.ranges.push_back(range);
    }
    if (!take(U"]")) unknown("a set that does not end");
    return made;
  }

  CharRange member() {
    if (take(U"\\")) return escape();
    const char32_t point = peek();
    ++at;
    return {point, point};
  }

  CharRange escape() {
    if (!more()) unknown("an escape without a letter");
    const char32_t letter = text[at++];
    switch (letter) {
      case U'r': return {U'\r', U'\r'};
      case U'n': return {U'\n', U'\n'};
      case U't': return {U'\t', U'\t'};
      case U's': return {0, 0, 0, true, false};
      case U'S': return {0, 0, 0, true, true};
      case U'd': return {0, 0, kNd, false, false};
      case U'D': return {0, 0, kNd, false, true};
      case U'p': return property(false);
      case U'P': return property(true);
      default: break;
    }
    const bool digit = letter >= U'0' && letter <= U'9';
    if (digit || (folded(letter) >= U'a' && folded(letter) <= U'z')) unknown("an escape that is not known here");
    return {letter, letter};
  }

  CharRange property(bool negated) {
    std::string name;
    if (take(U"{")) {
      while (more() && peek() != U'}') name += char(text[at++]);
      take(U"}");
    } else if (more()) {
      name = char(text[at++]);
    }
    const uint32_t mask = category_mask(name);
    if (!mask) unknown("a property of characters that is not known here: " + name);
    return {0, 0, mask, false, negated};
  }
};

Pattern::Pattern(const std::u32string& pattern) {
  Parser parser{pattern};
  alternatives_ = parser.alternatives(false);
  if (parser.more()) unknown("a group that did not begin");
}

bool Pattern::any(const std::vector<Sequence>& alternatives, const std::u32string& text, std::size_t place,
                  const Rest* rest, std::size_t* end) {
  return std::any_of(alternatives.begin(), alternatives.end(),
                     [&](const Sequence& one) { return run(one, 0, text, place, rest, end); });
}

bool Pattern::run(const Sequence& sequence, std::size_t index, const std::u32string& text, std::size_t place,
                  const Rest* rest, std::size_t* end) {
  if (index == sequence.size()) {
    if (rest) return run(*rest->sequence, rest->index, text, place, rest->next, end);
    *end = place;
    return true;
  }
  const Item& item = sequence[index];
  if (item.kind == Item::kEnd) {
    return place == text.size() && run(sequence, index + 1, text, place, rest, end);
  }
  if (item.kind == Item::kGroup) {
    const Rest after{&sequence, index + 1, rest};
    if (any(item.alternatives, text, place, &after, end)) return true;
    return item.least == 0 && run(sequence, index + 1, text, place, rest, end);
  }
  if (item.kind == Item::kAhead || item.kind == Item::kNotAhead) {
    std::size_t unused;
    const bool found = any(item.alternatives, text, place, nullptr, &unused);
    return found == (item.kind == Item::kAhead) && run(sequence, index + 1, text, place, rest, end);
  }
  std::size_t count = 0;
  while (count < item.most && place + count < text.size() && item.chars.has(text[place + count])) ++count;
  if (count < item.least) return false;
  // As many as there are, then one less each time.
  for (std::size_t taken = count + 1; taken-- > item.least;) {
    if (run(sequence, index + 1, text, place + taken, rest, end)) return true;
    if (item.possessive) return false;
  }
  return false;
}

std::vector<Pattern::Match> Pattern::find_all(const std::u32string& text) const {
  std::vector<Match> found;
  for (std::size_t place = 0; place < text.size();) {
    std::size_t end = place;
    if (any(alternatives_, text, place, nullptr, &end) && end > place) {
      found.push_back({place, end});
      place = end;
    } else {
      ++place;
    }
  }
  return found;
}

}  // namespace awq
