#include "bpe.h"

#include <queue>
#include <tuple>

#include "unicode.h"

namespace awq {
namespace {

uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

}  // namespace

Bpe::Bpe(const Json& model)
    : PieceModel(model.at("vocab").ids()),
      byte_fallback_(model.boolean_or("byte_fallback", false)),
      fuse_unknown_(model.boolean_or("fuse_unk", false)),
      ignore_merges_(model.boolean_or("ignore_merges", false)) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.text_or(affix, "").empty()) model.find(affix).refuse("this runner's BPE has no affixes");
  }
  const Json unknown = model.find("unk_token");
  if (!unknown.is_null()) unknown_ = id_of(unknown.text());
  int32_t rank = 0;
  const auto pairs = model.at("merges").pairs();
  merges_.reserve(pairs.size());
  for (const auto& [left, right] : pairs) {
    const int32_t first = id_of(left), second = id_of(right), made = id_of(left + right);
    if (first < 0 || second < 0 || made < 0) model.at("merges").refuse("a merge of tokens that are not in vocab");
    merges_[pair_key(first, second)] = {rank++, made};
  }
}

const Bpe::Merge* Bpe::merge_of(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// A token for each character; for its bytes where it has none; or the unknown token.
std::vector<int32_t> Bpe::symbols(const std::u32string& piece) const {
  std::vector<int32_t> found;
  bool unknown_before = false;
  for (const char32_t point : piece) {
    const std::string letter = encode_utf8(std::u32string(1, point));
    const int32_t id = id_of(letter);
    if (id >= 0) {
      found.push_back(id);
      unknown_before = false;
      continue;
    }
    const bool all = byte_fallback_ && append_bytes(letter, &found);
    if (!all && unknown_ >= 0 && !(fuse_unknown_ && unknown_before)) found.push_back(unknown_);
    unknown_before = !all;
  }
  return found;
}

void Bpe::encode(const std::u32string& piece, std::vector<int32_t>* tokens) const {
  if (ignore_merges_) {
    const int32_t whole = id_of(encode_utf8(piece));
    if (whole >= 0) return tokens->push_back(whole);
  }
  std::vector<int32_t> ids = symbols(piece);
  const int count = int(ids.size());
  std::vector<int> previous(count), next(count);
  // The merge of the lowest rank first, of several the leftmost. One that a merge beside it undid is passed over.
  using Entry = std::tuple<int32_t, int, int32_t, int32_t>;  // rank, place, left, right
  std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> waiting;
  const auto offer = [&](int left) {
    if (left < 0 || next[left] >= count) return;
    const int32_t right = ids[next[left]];
    if (const Merge* merge = merge_of(ids[left], right)) waiting.emplace(merge->rank, left, ids[left], right);
  };
  for (int i = 0; i < count; ++i) previous[i] = i - 1, next[i] = i + 1;
  for (int i = 0; i + 1 < count; ++i) offer(i);
  while (!waiting.empty()) {
    const auto [rank, left, first, second] = waiting.top();
    waiting.pop();
    if (ids[left] != first || next[left] >= count || ids[next[left]] != second) continue;
    const int right = next[left];
    ids[left] = merge_of(first, second)->made;
    ids[right] = -1;
    next[left] = next[right];
    if (next[left] < count) previous[next[left]] = left;
    offer(previous[left]);
    offer(left);
  }
  for (const int32_t id : ids) {
    if (id >= 0) tokens->push_back(id);
  }
}

}  // namespace awq
