#include "unicode.h"

#include <algorithm>
#include <iterator>
#include <tuple>

namespace awq {
namespace {

// The tables are sorted by their first members.
struct Run {
  char32_t first;
  uint32_t category;
};
struct Decomposition {
  char32_t point;
  char32_t parts[4];  // zeros after the last
};
struct Composition {
  char32_t first, second, made;
};
struct Combining {
  char32_t point;
  int rank;
};

#include "unicode_table.inc"

const char* const kNames[] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
                              "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

constexpr char32_t kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11a7, kSBase = 0xac00;
constexpr int kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

int combining_class(char32_t point) {
  const auto found = std::lower_bound(std::begin(kCombining), std::end(kCombining), point,
                                      [](const Combining& entry, char32_t wanted) { return entry.point < wanted; });
  return found == std::end(kCombining) || found->point != point ? 0 : found->rank;
}

std::u32string decompose(const std::u32string& text) {
  std::u32string out;
  for (const char32_t point : text) {
    if (point >= kSBase && point < kSBase + kSCount) {
      const int index = int(point - kSBase);
      out += char32_t(kLBase + index / (kVCount * kTCount));
      out += char32_t(kVBase + index % (kVCount * kTCount) / kTCount);
      if (index % kTCount) out += char32_t(kTBase + index % kTCount);
      continue;
    }
    const auto found =
        std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), point,
                         [](const Decomposition& entry, char32_t wanted) { return entry.point < wanted; });
    if (found == std::end(kDecompositions) || found->point != point) {
      out += point;
      continue;
    }
    for (const char32_t part : found->parts) {
      if (part) out += part;
    }
  }
  // Marks in the order of their classes.
  for (auto start = out.begin(); start != out.end();) {
    if (!combining_class(*start)) {
      ++start;
      continue;
    }
    const auto end = std::find_if(start, out.end(), [](char32_t point) { return !combining_class(point); });
    std::stable_sort(start, end, [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    start = end;
  }
  return out;
}

// 0 where the two do not compose.
char32_t pair_of(const char32_t first, const char32_t second) {
  if (first >= kLBase && first < kLBase + kLCount && second >= kVBase && second < kVBase + kVCount) {
    return kSBase + ((first - kLBase) * kVCount + (second - kVBase)) * kTCount;
  }
  const bool open = first >= kSBase && first < kSBase + kSCount && (first - kSBase) % kTCount == 0;
  if (open && second > kTBase && second < kTBase + kTCount) return first + (second - kTBase);
  const auto found = std::lower_bound(std::begin(kCompositions), std::end(kCompositions), std::tie(first, second),
                                      [](const Composition& entry, const auto& wanted) {
                                        return std::tie(entry.first, entry.second) < wanted;
                                      });
  const bool known = found != std::end(kCompositions) && found->first == first && found->second == second;
  return known ? found->made : 0;
}

}  // namespace

uint32_t category_mask(const std::string& name) {
  uint32_t mask = 0;
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    if (name == kNames[i] || (name.size() == 1 && name[0] == kNames[i][0])) mask |= 1u << i;
  }
  return mask;
}

uint32_t category_of(char32_t point) {
  const auto after = std::upper_bound(std::begin(kRuns), std::end(kRuns), point,
                                      [](char32_t wanted, const Run& run) { return wanted < run.first; });
  return std::prev(after)->category;
}

bool is_space(char32_t point) {
  return (point >= 9 && point <= 13) || point == 0x85 || (category_of(point) & (kZs | kZl | kZp));
}

int utf8_length(const std::string& text, std::size_t start) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(start);
  if (first < 0x80) return 1;
  const int length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return -1;
  for (int i = 1; i < length; ++i) {
    if (start + i >= text.size()) return 0;
    const unsigned next = byte(start + i);
    // The second byte's bounds keep out what has a shorter form, surrogates, and what is past the last code point.
    const unsigned low = i > 1 ? 0x80 : first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const unsigned high = i > 1 ? 0xbf : first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (next < low || next > high) return -i;
  }
  return length;
}

bool decode_utf8(const std::string& text, std::u32string* points) {
  points->clear();
  for (std::size_t start = 0; start < text.size();) {
    const int length = utf8_length(text, start);
    if (length < 1) return false;
    char32_t point = static_cast<unsigned char>(text[start]);
    if (length > 1) point &= 0x7fu >> length;
    for (int i = 1; i < length; ++i) point = point << 6 | (static_cast<unsigned char>(text[start + i]) & 0x3f);
    points->push_back(point);
    start += length;
  }
  return true;
}

std::string encode_utf8(const std::u32string& points) {
  std::string text;
  for (const char32_t point : points) {
    if (point < 0x80) {
      text += char(point);
      continue;
    }
    const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const unsigned heads[] = {0, 0xc0, 0xe0, 0xf0};
    text += char(heads[more] | point >> 6 * more);
    for (int i = more - 1; i >= 0; --i) text += char(0x80 | (point >> 6 * i & 0x3f));
  }
  return text;
}

std::u32string compose(const std::u32string& text) {
  std::u32string out;
  std::size_t starter = std::u32string::npos;
  int last = 0;  // class of the mark before
  for (const char32_t point : decompose(text)) {
    const int rank = combining_class(point);
    const bool reachable = starter != std::u32string::npos && (out.size() == starter + 1 || (last && last < rank));
    if (const char32_t made = reachable ? pair_of(out[starter], point) : 0) {
      out[starter] = made;
      continue;
    }
    if (!rank) starter = out.size();
    last = rank;
    out += point;
  }
  return out;
}

}  // namespace awq
