#include "unigram.h"

#include <algorithm>

#include "text_steps.h"
#include "unicode.h"

namespace awq {
namespace {

constexpr int64_t kMaxId = 1 << 24;
// How much less likely than the least likely token an unknown character is.
constexpr double kUnknownPenalty = 10;

std::unordered_map<std::string, int32_t> ids_of(const std::vector<std::pair<std::string, double>>& scored) {
  std::unordered_map<std::string, int32_t> ids;
  ids.reserve(scored.size());
  for (std::size_t id = 0; id < scored.size(); ++id) ids[scored[id].first] = int32_t(id);
  return ids;
}

}  // namespace

Unigram::Unigram(const Json& model)
    : PieceModel(ids_of(model.at("vocab").scores())), byte_fallback_(model.boolean_or("byte_fallback", false)) {
  const auto scored = model.at("vocab").scores();
  const Json unknown = model.find("unk_id");
  if (scored.empty() || unknown.is_null()) refuse_step(model, "its Unigram has no unknown token");
  unknown_ = int32_t(unknown.integer(0, std::min<int64_t>(kMaxId, int64_t(scored.size()) - 1)));
  scores_.reserve(scored.size());
  double least = scored[0].second;
  for (const auto& [content, score] : scored) {
    std::u32string points;
    if (!decode_utf8(content, &points)) model.at("vocab").refuse("a token is no UTF-8");
    longest_ = std::max(longest_, points.size());
    least = std::min(least, score);
    scores_.push_back(score);
  }
  unknown_score_ = least - kUnknownPenalty;
}

void Unigram::encode(const std::u32string& piece, std::vector<int32_t>* tokens) const {
  // The best way to each place: its score, where its last token begins, and that token.
  struct Place {
    double score = 0;
    std::size_t start = std::u32string::npos;
    int32_t id = -1;
  };
  std::vector<Place> best(piece.size() + 1);
  const auto offer = [&](std::size_t start, std::size_t end, double score, int32_t id) {
    score += best[start].score;
    if (best[end].start == std::u32string::npos || score > best[end].score) best[end] = {score, start, id};
  };
  for (std::size_t start = 0; start < piece.size(); ++start) {
    std::string content;
    bool alone = false;
    for (std::size_t end = start + 1; end <= std::min(piece.size(), start + longest_); ++end) {
      content += encode_utf8(piece.substr(end - 1, 1));
      const int32_t id = id_of(content);
      if (id < 0) continue;
      offer(start, end, scores_[id], id);
      alone = alone || end == start + 1;
    }
    if (!alone) offer(start, start + 1, unknown_score_, unknown_);
  }
  // Back from the end; unknown characters side by side are one.
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  bool unknown_after = false;
  for (std::size_t end = piece.size(); end > 0;) {
    const Place& place = best[end];
    const bool unknown = place.id == unknown_;
    if (unknown && unknown_after) spans.back().first = place.start;
    else spans.emplace_back(place.start, end);
    unknown_after = unknown;
    end = place.start;
  }
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    const std::string content = encode_utf8(piece.substr(span->first, span->second - span->first));
    const int32_t id = id_of(content);
    if (id >= 0) tokens->push_back(id);
    else if (!byte_fallback_ || !append_bytes(content, tokens)) tokens->push_back(unknown_);
  }
}

}  // namespace awq
