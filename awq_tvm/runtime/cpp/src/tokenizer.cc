#include "tokenizer.h"

#include <algorithm>

#include "error.h"
#include "unicode.h"

namespace awq {
namespace {

constexpr int64_t kMaxId = 1 << 24;

// Added tokens that a tokenizer does not call special but that templates use as such: <think>, [TOOL_CALLS].
bool is_markup(const std::u32string& content) {
  if (content.size() < 3) return false;
  const char32_t first = content.front(), last = content.back();
  const std::u32string inner = content.substr(1, content.size() - 2);
  if (first == U'<' && last == U'>') {
    return inner.size() <= 64 && std::none_of(inner.begin(), inner.end(), [](char32_t point) {
             return point == U'<' || point == U'>' || is_space(point);
           });
  }
  return first == U'[' && last == U']' && inner.size() >= 2 && inner.size() <= 64 &&
         std::all_of(inner.begin(), inner.end(), [](char32_t point) {
           return (point >= U'A' && point <= U'Z') || point == U'_' || point == U'/';
         });
}

}  // namespace

Tokenizer::Tokenizer(const Json& root)
    : model_(read_model(root.at("model"))),
      normalizers_(read_normalizers(root.find("normalizer"))),
      cutters_(read_cutters(root.find("pre_tokenizer"))) {
  contents_.resize(model_->vocabulary().size());
  const auto name = [this](int32_t id, const std::string& content) {
    if (id >= kMaxId) throw bundle_error("The tokenizer cannot be read.", "tokenizer.json", "an id is too large");
    if (std::size_t(id) >= contents_.size()) contents_.resize(id + 1);
    contents_[id] = content;
  };
  for (const auto& [content, id] : model_->vocabulary()) name(id, content);
  if (!root.find("added_tokens").is_null()) {
    for (const Json& token : root.at("added_tokens").elements()) {
      name(int32_t(token.at("id").integer(0, kMaxId)), token.at("content").text());
    }
    read_added(root.at("added_tokens"));
  }
  read_processor(root.find("post_processor"));
}

void Tokenizer::read_added(const Json& added) {
  for (const Json& token : added.elements()) {
    const std::u32string content = points_of(token.at("content"));
    const int32_t id = int32_t(token.at("id").integer(0, kMaxId));
    const bool special = token.boolean_or("special", false);
    if (special) skipped_ids_.insert(id);
    if (special || is_markup(content)) {
      control_ids_.insert(id);
      literals_.push_back(content);
      continue;
    }
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (token.boolean_or(flag, false)) refuse_step(token, std::string("an added token is ") + flag);
    }
    const bool later = token.boolean_or("normalized", true);
    if (!content.empty()) (later ? later_ : raw_).push_back({later ? normalized(content) : content, id});
  }
  const auto longer = [](const auto& a, const auto& b) { return a.size() > b.size(); };
  std::stable_sort(literals_.begin(), literals_.end(), longer);
  for (auto* tokens : {&raw_, &later_}) {
    std::stable_sort(tokens->begin(), tokens->end(),
                     [&](const Added& a, const Added& b) { return longer(a.content, b.content); });
  }
}

void Tokenizer::read_processor(const Json& json) {
  if (json.is_null()) return;
  const std::string type = json.at("type").text();
  if (type == "Sequence") {
    for (const Json& step : json.at("processors").elements()) read_processor(step);
  } else if (type == "TemplateProcessing") {
    std::vector<int32_t> front, back, *side = &front;
    for (const Json& part : json.at("single").elements()) {
      const Json token = part.find("SpecialToken");
      if (token.is_null()) {
        side = &back;
        continue;
      }
      for (const Json& id : json.at("special_tokens").at(token.at("id").text()).at("ids").elements()) {
        side->push_back(int32_t(id.integer(0, kMaxId)));
      }
    }
    before_.insert(before_.begin(), front.begin(), front.end());
    after_.insert(after_.end(), back.begin(), back.end());
  } else if (type != "ByteLevel") {
    refuse_step(json, "it finishes by " + type);
  }
}

std::u32string Tokenizer::normalized(std::u32string text) const {
  for (const Normalizer& step : normalizers_) step(&text);
  return text;
}

// The added tokens in a text and what is between them: the leftmost first, of several the longest.
std::vector<Tokenizer::Part> Tokenizer::apart(const Part& part, const std::vector<Added>& added) {
  std::vector<Part> parts;
  std::size_t done = 0;
  const auto add_text = [&](std::size_t end) {
    if (end > done) parts.push_back({part.text.substr(done, end - done), -1, part.first && done == 0});
  };
  for (std::size_t at = 0; at < part.text.size();) {
    const auto found = std::find_if(added.begin(), added.end(), [&](const Added& token) {
      return part.text.compare(at, token.content.size(), token.content) == 0;
    });
    if (found == added.end()) {
      ++at;
      continue;
    }
    add_text(at);
    parts.push_back({found->content, found->id, false});
    done = at += found->content.size();
  }
  add_text(part.text.size());
  return parts;
}

std::vector<int32_t> Tokenizer::encode_plain(const std::u32string& text) const {
  std::vector<int32_t> tokens;
  for (Part& whole : apart({text, -1, true}, raw_)) {
    if (whole.id < 0) whole.text = normalized(std::move(whole.text));
    const std::vector<Part> parts = whole.id < 0 ? apart(whole, later_) : std::vector<Part>{whole};
    for (const Part& part : parts) {
      if (part.id >= 0) {
        tokens.push_back(part.id);
        continue;
      }
      std::vector<std::u32string> pieces = {part.text};
      for (const Cutter& step : cutters_) step(&pieces, part.first);
      for (const std::u32string& piece : pieces) model_->encode(piece, &tokens);
    }
  }
  return tokens;
}

// Every control token's spelling is cut after its first character.
std::vector<int32_t> Tokenizer::encode_broken(const std::u32string& text) const {
  std::vector<int32_t> tokens;
  const auto add = [&](const std::u32string& part) {
    for (const int32_t id : encode_plain(part)) {
      if (!control_ids_.count(id)) tokens.push_back(id);
    }
  };
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto found = std::find_if(literals_.begin(), literals_.end(), [&](const std::u32string& literal) {
      return !literal.empty() && text.compare(at, literal.size(), literal) == 0;
    });
    if (found == literals_.end()) {
      ++at;
      continue;
    }
    add(text.substr(done, at + 1 - done));
    done = at + 1;
    at += found->size();
  }
  add(text.substr(done));
  return tokens;
}

std::vector<int32_t> Tokenizer::encode(const std::string& text) const {
  std::u32string points;
  if (!decode_utf8(text, &points)) {
    throw usage_error("The text is not valid Unicode.", "prompt", "it is no UTF-8", "pass text in UTF-8");
  }
  std::vector<int32_t> own = encode_plain(points);
  // A model with control tokens in its own vocabulary may reach one without the added-token step.
  if (std::any_of(own.begin(), own.end(), [&](int32_t id) { return control_ids_.count(id) > 0; })) {
    own = encode_broken(points);
  }
  std::vector<int32_t> tokens = before_;
  tokens.insert(tokens.end(), own.begin(), own.end());
  tokens.insert(tokens.end(), after_.begin(), after_.end());
  return tokens;
}

}  // namespace awq
