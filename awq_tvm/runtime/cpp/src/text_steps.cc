#include "text_steps.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "error.h"
#include "pattern.h"
#include "unicode.h"

namespace awq {
namespace {

const char* const kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum class Behavior { kRemoved, kIsolated, kWithPrevious, kWithNext };
using Matches = std::vector<Pattern::Match>;
using Finder = std::function<Matches(const std::u32string&)>;

Matches find_text(const std::u32string& text, const std::u32string& wanted) {
  Matches found;
  const std::size_t size = wanted.size();
  for (std::size_t at = 0; size && (at = text.find(wanted, at)) != std::u32string::npos; at += size) {
    found.push_back({at, at + size});
  }
  return found;
}

Finder regex(const std::string& pattern, const Json& json) {
  std::u32string points;
  decode_utf8(pattern, &points);
  try {
    const auto compiled = std::make_shared<Pattern>(points);
    return [compiled](const std::u32string& text) { return compiled->find_all(text); };
  } catch (const std::invalid_argument& error) {
    refuse_step(json, error.what());
  }
}

// {"String": text} or {"Regex": pattern}
Finder finder(const Json& json) {
  if (!json.find("Regex").is_null()) return regex(json.at("Regex").text(), json);
  const std::u32string wanted = points_of(json.at("String"));
  return [wanted](const std::u32string& text) { return find_text(text, wanted); };
}

std::vector<std::u32string> cut(const std::u32string& text, const Matches& matches, Behavior behavior) {
  std::vector<std::u32string> pieces;
  std::size_t done = 0;
  std::u32string held;  // a match that goes with what follows
  const auto add = [&](std::u32string piece) {
    piece = held + piece;
    held.clear();
    if (!piece.empty()) pieces.push_back(std::move(piece));
  };
  for (const auto& [start, end] : matches) {
    const std::u32string match = text.substr(start, end - start), before = text.substr(done, start - done);
    done = end;
    add(behavior == Behavior::kWithPrevious ? before + match : before);
    if (behavior == Behavior::kIsolated) add(match);
    if (behavior == Behavior::kWithNext) held = match;
  }
  add(text.substr(done));
  return pieces;
}

Cutter cutter(const Finder& find, Behavior behavior, bool inverted) {
  return [=](std::vector<std::u32string>* pieces, bool) {
    std::vector<std::u32string> out;
    for (const std::u32string& piece : *pieces) {
      Matches matches = find(piece);
      if (inverted) {
        Matches between;
        std::size_t done = 0;
        matches.push_back({piece.size(), piece.size()});
        for (const auto& [start, end] : matches) {
          if (start > done) between.push_back({done, start});
          done = end;
        }
        matches = between;
      }
      for (std::u32string& part : cut(piece, matches, behavior)) out.push_back(std::move(part));
    }
    *pieces = std::move(out);
  };
}

Cutter read_split(const Json& json) {
  const std::string name = json.at("behavior").text();
  const std::pair<const char*, Behavior> behaviors[] = {{"Removed", Behavior::kRemoved},
                                                        {"Isolated", Behavior::kIsolated},
                                                        {"MergedWithPrevious", Behavior::kWithPrevious},
                                                        {"MergedWithNext", Behavior::kWithNext}};
  for (const auto& [known, behavior] : behaviors) {
    if (name == known) return cutter(finder(json.at("pattern")), behavior, json.boolean_or("invert", false));
  }
  refuse_step(json, "its behavior is " + name);
}

void read_byte_level(const Json& json, std::vector<Cutter>* steps) {
  if (json.boolean_or("add_prefix_space", true)) {
    steps->push_back([](std::vector<std::u32string>* pieces, bool) {
      for (std::u32string& piece : *pieces) {
        if (piece.empty() || piece[0] != U' ') piece.insert(0, 1, U' ');
      }
    });
  }
  if (json.boolean_or("use_regex", true)) steps->push_back(cutter(regex(kGpt2, json), Behavior::kIsolated, false));
  steps->push_back([](std::vector<std::u32string>* pieces, bool) {
    for (std::u32string& piece : *pieces) {
      const std::string bytes = encode_utf8(piece);
      piece.clear();
      for (const unsigned char byte : bytes) piece += byte_letters()[byte];
    }
  });
}

void read_metaspace(const Json& json, std::vector<Cutter>* steps) {
  const std::u32string sign = points_of(json.at("replacement"));
  const std::string scheme = json.text_or("prepend_scheme", "always");
  if (sign.size() != 1) refuse_step(json, "its replacement is no single character");
  steps->push_back([=](std::vector<std::u32string>* pieces, bool first) {
    for (std::size_t i = 0; i < pieces->size(); ++i) {
      std::u32string& piece = (*pieces)[i];
      std::replace(piece.begin(), piece.end(), U' ', sign[0]);
      const bool wanted = scheme == "always" || (scheme == "first" && first && i == 0);
      if (wanted && (piece.empty() || piece[0] != sign[0])) piece.insert(0, sign);
    }
  });
  if (json.boolean_or("split", true)) {
    const Finder find = [sign](const std::u32string& text) { return find_text(text, sign); };
    steps->push_back(cutter(find, Behavior::kWithNext, false));
  }
}

void add_cutters(const Json& json, std::vector<Cutter>* steps) {
  if (json.is_null()) return;
  const std::string type = json.at("type").text();
  if (type == "Sequence") {
    for (const Json& step : json.at("pretokenizers").elements()) add_cutters(step, steps);
  } else if (type == "ByteLevel") {
    read_byte_level(json, steps);
  } else if (type == "Split") {
    steps->push_back(read_split(json));
  } else if (type == "Digits") {
    const char* const pattern = json.boolean_or("individual_digits", false) ? "\\p{N}" : "\\p{N}+";
    steps->push_back(cutter(regex(pattern, json), Behavior::kIsolated, false));
  } else if (type == "Metaspace") {
    read_metaspace(json, steps);
  } else {
    refuse_step(json, "it cuts text by " + type);
  }
}

void add_normalizers(const Json& json, std::vector<Normalizer>* steps) {
  if (json.is_null()) return;
  const std::string type = json.at("type").text();
  if (type == "Sequence") {
    for (const Json& step : json.at("normalizers").elements()) add_normalizers(step, steps);
  } else if (type == "NFC") {
    steps->push_back([](std::u32string* text) { *text = compose(*text); });
  } else if (type == "Prepend") {
    const std::u32string front = points_of(json.at("prepend"));
    steps->push_back([front](std::u32string* text) {
      if (!text->empty()) text->insert(0, front);
    });
  } else if (type == "Replace") {
    const Finder find = finder(json.at("pattern"));
    const std::u32string content = points_of(json.at("content"));
    steps->push_back([find, content](std::u32string* text) {
      std::u32string out;
      std::size_t done = 0;
      for (const auto& [start, end] : find(*text)) {
        out += text->substr(done, start - done) + content;
        done = end;
      }
      *text = out + text->substr(done);
    });
  } else {
    refuse_step(json, "it changes text by " + type);
  }
}

}  // namespace

void refuse_step(const Json& json, const std::string& why) {
  throw Error(AWQ_TVM_UNSUPPORTED, "This runner does not know all that the tokenizer does.", json.where(), why,
              "give token ids, --ids of awq_tvm_run, or use `python -m awq_tvm generate`");
}

std::u32string points_of(const Json& json) {
  std::u32string points;
  if (!decode_utf8(json.text(), &points)) json.refuse("it is no UTF-8");
  return points;
}

const std::array<char32_t, 256>& byte_letters() {
  static const std::array<char32_t, 256> letters = [] {
    std::array<char32_t, 256> made{};
    char32_t spare = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool shown = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
      made[byte] = shown ? char32_t(byte) : spare++;
    }
    return made;
  }();
  return letters;
}

std::vector<Normalizer> read_normalizers(const Json& json) {
  std::vector<Normalizer> steps;
  add_normalizers(json, &steps);
  return steps;
}

std::vector<Cutter> read_cutters(const Json& json) {
  std::vector<Cutter> steps;
  add_cutters(json, &steps);
  return steps;
}

}  // namespace awq
