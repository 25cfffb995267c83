// What happens to a text before it becomes tokens: "normalizer" and "pre_tokenizer" in tokenizer.json.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "json.h"

namespace awq {

using Normalizer = std::function<void(std::u32string*)>;
// Cuts pieces further. first: whether the first piece is the beginning of the text.
using Cutter = std::function<void(std::vector<std::u32string>*, bool first)>;

// json may be null, for none.
std::vector<Normalizer> read_normalizers(const Json& json);
std::vector<Cutter> read_cutters(const Json& json);

// The letters that stand for bytes in byte-level vocabularies.
const std::array<char32_t, 256>& byte_letters();

// An error about a step that this runner does not know.
[[noreturn]] void refuse_step(const Json& json, const std::string& why);
std::u32string points_of(const Json& json);

}  // namespace awq
