// awq_tvm_run BUNDLE PROMPT: a prompt in, its greedy answer out, streamed. Stands on awq_tvm.h alone.
#include <getopt.h>

#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "awq_tvm.h"

namespace {

const char* const kUsage =
    "usage: awq_tvm_run [--ids] [--max-tokens N] [--threads N] [--json] BUNDLE PROMPT\n"
    "\n"
    "Verifies a bundle, then generates the most likely answer to a prompt.\n"
    "\n"
    "  --ids           the prompt and the answer are token ids, separated by blanks or commas\n"
    "  --max-tokens N  most tokens to generate; without it as many as the context holds, 256 at most\n"
    "  --threads N     threads of the CPU, 1 to 1024; without it one a processor\n"
    "  --json          print one line of JSON when the answer is complete: token_ids, text, seconds\n";

struct Options {
  bool ids = false, json = false, help = false;
  int max_tokens = 0, threads = 0;
  std::string bundle, prompt;
};

bool whole_number(const std::string& text, int least, int* number) {
  char* end = nullptr;
  const long found = std::strtol(text.c_str(), &end, 10);
  *number = int(found);
  return !text.empty() && !*end && found >= least && found <= INT_MAX;
}

// False where the words make no sense.
bool parse(int argc, char** argv, Options* options) {
  const option names[] = {{"ids", no_argument, nullptr, 'i'},           {"json", no_argument, nullptr, 'j'},
                          {"help", no_argument, nullptr, 'h'},          {"max-tokens", required_argument, nullptr, 'm'},
                          {"threads", required_argument, nullptr, 't'}, {}};
  for (int found; (found = getopt_long(argc, argv, "", names, nullptr)) != -1;) {
    if (found == 'i') options->ids = true;
    if (found == 'j') options->json = true;
    if (found == 'h') return options->help = true;
    if (found == 'm' && !whole_number(optarg, 1, &options->max_tokens)) return false;
    if (found == 't' && !whole_number(optarg, 1, &options->threads)) return false;
    if (found == '?') return false;
  }
  if (argc - optind != 2) return false;
  options->bundle = argv[optind];
  options->prompt = argv[optind + 1];
  return true;
}

// False where a word is no token id.
bool parse_ids(const std::string& text, std::vector<int32_t>* ids) {
  for (std::size_t start = 0; (start = text.find_first_not_of(" ,\n\t", start)) != std::string::npos;) {
    const std::size_t end = std::min(text.find_first_of(" ,\n\t", start), text.size());
    int id = 0;
    if (!whole_number(text.substr(start, end - start), 0, &id)) return false;
    ids->push_back(id);
    start = end;
  }
  return true;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char escaped[8];
    if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + '"';
}

int failed(int status) {
  std::fprintf(stderr, "%s\n", awq_tvm_error());
  return status;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Answer {
  std::vector<int32_t> ids;
  std::string text;
  double load_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

void print_json(const Answer& answer) {
  std::string ids;
  for (const int32_t id : answer.ids) ids += (ids.empty() ? "" : ", ") + std::to_string(id);
  std::printf("{\"schema_version\": 1, \"token_ids\": [%s], \"text\": %s, \"load_seconds\": %.6f, "
              "\"prefill_seconds\": %.6f, \"decode_seconds\": %.6f}\n",
              ids.c_str(), quoted(answer.text).c_str(), answer.load_seconds, answer.prefill_seconds,
              answer.decode_seconds);
}

int generate(awq_tvm* model, const Options& options, Answer* answer) {
  const auto start = std::chrono::steady_clock::now();
  awq_tvm_piece piece;
  int status = AWQ_TVM_OK;
  while (status == AWQ_TVM_OK) {
    status = awq_tvm_next(model, &piece);
    if (status > AWQ_TVM_END) return status;
    if (!answer->prefill_seconds) answer->prefill_seconds = seconds_since(start);
    answer->text.append(piece.text, piece.length);
    if (piece.token >= 0) answer->ids.push_back(piece.token);
    if (options.json) continue;
    if (!options.ids) std::fwrite(piece.text, 1, piece.length, stdout);
    if (options.ids && piece.token >= 0) std::printf("%s%d", answer->ids.size() > 1 ? " " : "", piece.token);
    std::fflush(stdout);
  }
  answer->decode_seconds = seconds_since(start) - answer->prefill_seconds;
  if (options.json) print_json(*answer);
  if (!options.json) std::printf("\n");
  return AWQ_TVM_OK;
}

int run(const Options& options) {
  std::vector<int32_t> ids;
  if (options.ids && !parse_ids(options.prompt, &ids)) {
    std::fprintf(stderr, "The prompt is no list of token ids.\n%s", kUsage);
    return AWQ_TVM_USAGE;
  }
  const auto start = std::chrono::steady_clock::now();
  awq_tvm* loaded = nullptr;
  int status = awq_tvm_load(options.bundle.c_str(), options.threads, &loaded);
  const std::unique_ptr<awq_tvm, void (*)(awq_tvm*)> model(loaded, awq_tvm_free);
  if (status != AWQ_TVM_OK) return failed(status);
  Answer answer;
  answer.load_seconds = seconds_since(start);
  status = options.ids ? awq_tvm_prompt_ids(loaded, ids.data(), ids.size(), options.max_tokens)
                       : awq_tvm_prompt(loaded, options.prompt.c_str(), options.max_tokens);
  if (status == AWQ_TVM_OK) status = generate(loaded, options, &answer);
  return status == AWQ_TVM_OK ? 0 : failed(status);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fputs(kUsage, stderr);
    return AWQ_TVM_USAGE;
  }
  if (options.help) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  return run(options);
}
