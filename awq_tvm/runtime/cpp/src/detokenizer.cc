#include "detokenizer.h"

#include <cstdlib>

#include "text_steps.h"
#include "unicode.h"

namespace awq {
namespace {

const char* const kReplacement = "\xef\xbf\xbd";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; !from.empty() && (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// The byte of "<0xE2>", -1 where a token is none.
int byte_of(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  char* end = nullptr;
  const long value = std::strtol(token.substr(3, 2).c_str(), &end, 16);
  return *end ? -1 : int(value);
}

// Bytes of a token of a byte-level vocabulary; its own where it has letters that stand for none.
std::string bytes_of(const std::string& token) {
  static const std::unordered_map<char32_t, char> bytes = [] {
    std::unordered_map<char32_t, char> made;
    for (int byte = 0; byte < 256; ++byte) made[byte_letters()[byte]] = char(byte);
    return made;
  }();
  std::u32string points;
  decode_utf8(token, &points);
  std::string out;
  for (const char32_t point : points) {
    const auto found = bytes.find(point);
    if (found == bytes.end()) return token;
    out += found->second;
  }
  return out;
}

}  // namespace

Decoding::Decoding(const Json& json) {
  if (json.is_null()) blanks_between = true;
  else read(json);
}

void Decoding::read(const Json& json) {
  const std::string type = json.at("type").text();
  if (type == "Sequence") {
    for (const Json& step : json.at("decoders").elements()) read(step);
  } else if (type == "ByteLevel") {
    byte_level = true;
  } else if (type == "ByteFallback" && !fused_) {
    byte_fallback = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Replace" && !fused_ && !byte_fallback && !json.at("pattern").find("String").is_null()) {
    replacements.emplace_back(json.at("pattern").at("String").text(), json.at("content").text());
  } else if (type == "Strip" && fused_ && json.at("stop").integer(0, 1 << 20) == 0) {
    strip = json.at("content").text();
    strip_most = json.at("start").integer(0, 1 << 20);
  } else if (type == "Metaspace") {
    metaspace = json.at("replacement").text();
    drop_first = json.text_or("prepend_scheme", "always") != "never";
  } else {
    refuse_step(json, "it joins tokens by " + type + ", here or in this way");
  }
}

std::string Detokenizer::push(int32_t token) {
  const auto& contents = tokenizer_.contents();
  // A token that decodes to nothing does not end a run of byte tokens.
  if (token < 0 || std::size_t(token) >= contents.size() || tokenizer_.skipped_ids().count(token)) return "";
  std::string text = contents[token];
  const bool first = std::exchange(first_, false);
  if (decoding_.byte_level) {
    held_ += bytes_of(text);
    return certain(false);
  }
  for (const auto& [from, to] : decoding_.replacements) text = replaced(std::move(text), from, to);
  if (const int byte = decoding_.byte_fallback ? byte_of(text) : -1; byte >= 0) {
    bytes_ += char(byte);
    return "";
  }
  if (!decoding_.metaspace.empty()) {
    text = replaced(std::move(text), decoding_.metaspace, first && decoding_.drop_first ? "" : " ");
  }
  if (decoding_.blanks_between && !first) text.insert(0, 1, ' ');
  return stripped(end_of_bytes() + text, false);
}

std::string Detokenizer::finish() {
  if (decoding_.byte_level) return certain(true);
  return stripped(end_of_bytes(), true);
}

// The whole characters of what is held; a replacement character for what can be none any more.
std::string Detokenizer::certain(bool last) {
  std::string out;
  std::size_t at = 0;
  while (at < held_.size()) {
    const int length = utf8_length(held_, at);
    if (!length && !last) break;
    out += length > 0 ? held_.substr(at, length) : kReplacement;
    at = length ? at + std::abs(length) : held_.size();
  }
  held_.erase(0, at);
  return out;
}

std::string Detokenizer::end_of_bytes() {
  const std::string run = std::exchange(bytes_, "");
  std::u32string unused;
  if (decode_utf8(run, &unused)) return run;
  std::string out;
  for (std::size_t i = 0; i < run.size(); ++i) out += kReplacement;
  return out;
}

std::string Detokenizer::stripped(std::string text, bool last) {
  if (!left_to_strip_ || decoding_.strip.empty()) return text;
  start_ += text;
  while (left_to_strip_ && start_.compare(0, decoding_.strip.size(), decoding_.strip) == 0) {
    start_.erase(0, decoding_.strip.size());
    --left_to_strip_;
  }
  // Other text: nothing more is stripped.
  if (start_.size() >= decoding_.strip.size()) left_to_strip_ = 0;
  if (left_to_strip_ && !last) return "";
  return std::exchange(start_, "");
}

}  // namespace awq
