#include "model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "error.h"

namespace awq {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kDefaultNewTokens = 256;
constexpr int64_t kMaxTokenizerBytes = 64 << 20;

int checked_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw usage_error(std::to_string(threads) + " threads cannot be meant.", "threads",
                      "legal is from 1 to " + std::to_string(kMaxThreads) + ", or 0 for one a processor",
                      "give the number of cores to use");
  }
  return threads;
}

// The most likely token, of equal ones the lowest.
int32_t greedy(const float* logits, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(logits[i]) || logits[i] == INFINITY) best = count;
    if (best == count) {
      throw bundle_error("The model computed a logit that is not a number.", "logit " + std::to_string(i),
                         "found " + std::to_string(logits[i]),
                         "run `python -m awq_tvm verify BUNDLE`, then build the bundle again");
    }
    if (logits[i] > logits[best]) best = i;
  }
  return int32_t(best);
}

}  // namespace

Model::Model(const std::string& path, int threads)
    : manifest((checked_threads(threads), verify_bundle(path))), path_(path), executor_(path, manifest, threads) {}

const Model::Text& Model::text() {
  if (!text_) {
    if (!manifest.files.count("tokenizer.json")) {
      throw bundle_error("The tokenizer cannot be read.", path_, "the bundle holds no tokenizer.json",
                         "give token ids, or check the model's tokenizer files and build the bundle again");
    }
    const std::string where = path_ + "/tokenizer.json";
    const Json root = Json::parse(read_file(where, kMaxTokenizerBytes), where);
    text_.reset(new Text{Tokenizer(root), Decoding(root.find("decoder"))});
  }
  return *text_;
}

std::vector<int32_t> Model::encode(const std::string& prompt) {
  if (prompt.empty()) {
    throw usage_error("The prompt is empty.", "prompt", "found 0 characters, need 1", "say something");
  }
  std::vector<int32_t> tokens = text().tokenizer.encode(prompt);
  for (const int32_t token : tokens) {
    if (token >= manifest.vocab_size) {
      throw bundle_error("The tokenizer does not fit the model.", "prompt",
                         "it made token id " + std::to_string(token) + ", the model has " +
                             std::to_string(manifest.vocab_size) + " of them",
                         "check the model's tokenizer files, then build the bundle again");
    }
  }
  return tokens;
}

void Model::start(std::vector<int32_t> tokens, int max_tokens) {
  const int64_t count = int64_t(tokens.size()), context = manifest.context_length;
  if (!count) throw usage_error("The prompt is empty.", "prompt", "found 0 tokens, need 1", "say something");
  if (count > context) {
    throw usage_error("The prompt is longer than the context.", "prompt",
                      "it has " + std::to_string(count) + " tokens, the context holds " + std::to_string(context),
                      "shorten it, or compile with a larger --context-length");
  }
  if (max_tokens < 0 || max_tokens > context) {
    throw usage_error("That number of tokens cannot be generated.", "max_tokens",
                      "found " + std::to_string(max_tokens) + ", the context holds " + std::to_string(context),
                      "ask for fewer tokens, or compile with a larger --context-length");
  }
  for (int32_t token : tokens) {
    // The compiled lookup does not check its indices.
    if (token < 0 || token >= manifest.vocab_size) {
      throw usage_error("A token id is outside the vocabulary.", "prompt",
                        "found " + std::to_string(token) + ", the vocabulary has " +
                            std::to_string(manifest.vocab_size),
                        "give ids of this model's tokenizer");
    }
  }
  executor_.restart();
  // An answer to token ids may go without text; one to text has read the tokenizer already.
  detokenizer_.reset();
  if (text_) detokenizer_.emplace(text_->tokenizer, text_->decoding);
  // The last token drawn is never read, so it needs no place in the context.
  left_ = std::min(context - count + 1, max_tokens ? max_tokens : kDefaultNewTokens);
  feed_ = std::move(tokens);
}

int32_t Model::next(std::string* text) {
  text->clear();
  const bool over = !left_;
  const int32_t token = over ? -1 : next_token();
  if (detokenizer_ && !over) *text = token < 0 ? "" : detokenizer_->push(token);
  // What is held back comes with the end, also where the answer is cut off.
  if (detokenizer_ && token < 0) {
    *text += detokenizer_->finish();
    detokenizer_.reset();
  }
  return token;
}

int32_t Model::next_token() {
  // An answer that met an error is over.
  const int64_t left = std::exchange(left_, 0) - 1;
  const int32_t token = greedy(executor_.forward(feed_), manifest.vocab_size);
  feed_ = {token};
  const auto& ends = manifest.eos_token_ids;
  if (std::find(ends.begin(), ends.end(), token) != ends.end()) return -1;
  left_ = left;
  return token;
}

}  // namespace awq
