#include "piece_model.h"

#include <cstdio>

#include "bpe.h"
#include "text_steps.h"
#include "unigram.h"

namespace awq {

int32_t PieceModel::id_of(const std::string& content) const {
  const auto found = vocabulary_.find(content);
  return found == vocabulary_.end() ? -1 : found->second;
}

bool PieceModel::append_bytes(const std::string& text, std::vector<int32_t>* tokens) const {
  const std::size_t before = tokens->size();
  for (const char byte : text) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned char>(byte));
    const int32_t id = id_of(name);
    if (id < 0) {
      tokens->resize(before);
      return false;
    }
    tokens->push_back(id);
  }
  return true;
}

std::unique_ptr<PieceModel> read_model(const Json& json) {
  const std::string type = json.text_or("type", "BPE");
  if (type == "BPE") return std::make_unique<Bpe>(json);
  if (type == "Unigram") return std::make_unique<Unigram>(json);
  refuse_step(json, "its model is " + type + ", this runner knows BPE and Unigram");
}

}  // namespace awq
