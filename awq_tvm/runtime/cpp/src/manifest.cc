// manifest.json: its seal, then its fields. Only what the runner uses is looked at.
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "bundle.h"
#include "error.h"
#include "json.h"
#include "manifest.h"
#include "sha256.h"

namespace awq {
namespace {

constexpr int64_t kMaxManifestBytes = 16 << 20;
constexpr int64_t kMaxLength = 1 << 24;

// The last field is the SHA-256 of the text with that field all zeros.
void check_seal(const std::string& raw, const std::string& where) {
  static const std::string before = "\"manifest_sha256\": \"", after = "\"\n}\n";
  constexpr std::size_t digits = 64;
  std::string found = "none", unsealed = raw;
  if (raw.size() > before.size() + digits + after.size()) {
    const std::size_t start = raw.size() - after.size() - digits;
    if (raw.compare(start - before.size(), before.size(), before) == 0 &&
        raw.compare(start + digits, after.size(), after) == 0) {
      found = raw.substr(start, digits);
      unsealed.replace(start, digits, digits, '0');
    }
  }
  Sha256 hash;
  hash.update(unsealed.data(), unsealed.size());
  const std::string expected = hash.hex();
  if (found != expected) {
    throw bundle_error("The manifest was changed after it was written.", where,
                       "manifest_sha256 says " + found + ", the text has " + expected);
  }
}

// One flat directory, no hidden files: a name cannot climb out of the bundle.
std::string file_name(const Json& owner, const std::string& name) {
  const auto alphanumeric = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
  };
  const bool fits = !name.empty() && name.size() <= 128 && alphanumeric(name[0]) &&
                    std::all_of(name.begin(), name.end(), [&](char c) {
                      return alphanumeric(c) || c == '.' || c == '_' || c == '+' || c == '-';
                    });
  if (!fits) owner.refuse("a name that no file of a bundle has");
  return name;
}

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> found;
  for (const Json& element : list.elements()) found.push_back(element.text());
  return found;
}

}  // namespace

Manifest parse_manifest(const std::string& raw, const std::string& where) {
  const Json root = Json::parse(raw, where);
  // Before the seal: another version may be sealed in another way.
  const Json version = root.find("schema_version");
  if (version.integer(0, 1 << 20) != 1) {
    throw bundle_error("The bundle has another schema version.", where, "this runner reads schema_version 1",
                       "build it again with this version: `python -m awq_tvm compile MODEL -o BUNDLE`");
  }
  check_seal(raw, where);
  Manifest manifest;
  manifest.tvm_version = root.at("versions").at("tvm").text();
  manifest.tvm_ffi_version = root.at("versions").at("tvm_ffi").text();
  const Json model = root.at("model");
  manifest.vocab_size = model.at("vocab_size").integer(1, kMaxLength);
  manifest.context_length = model.at("context_length").integer(1, kMaxLength);
  manifest.prefill_chunk_size = model.at("prefill_chunk_size").integer(1, kMaxLength);
  for (const Json& id : model.at("eos_token_ids").elements()) {
    manifest.eos_token_ids.push_back(int32_t(id.integer(0, manifest.vocab_size - 1)));
  }
  const Json target = root.at("target");
  manifest.target_name = target.at("name").text();
  manifest.target_kind = target.at("kind").text();
  manifest.fingerprint = target.at("fingerprint").text();
  manifest.triple = target.at("triple").text();
  manifest.required_features = texts(target.at("required_features"));
  manifest.source_only = root.boolean_or("source_only", false);
  manifest.source = root.at("recipe").at("extra").text_or("source", "MODEL");
  manifest.library = file_name(root.at("library"), root.at("library").text());
  manifest.weights = file_name(root.at("weights"), root.at("weights").text());
  manifest.parameters = texts(root.at("parameters"));
  const std::set<std::string> distinct(manifest.parameters.begin(), manifest.parameters.end());
  if (distinct.size() != manifest.parameters.size()) root.at("parameters").refuse("it names a tensor twice");
  for (const auto& [name, info] : root.at("files").members()) {
    manifest.files[file_name(info, name)] = {info.at("sha256").text(), info.at("size").integer(0, int64_t(1) << 50)};
  }
  for (const std::string& name : {manifest.library, manifest.weights}) {
    if (!manifest.files.count(name)) root.at("files").refuse("it does not list " + name);
  }
  return manifest;
}

Manifest read_manifest(const std::string& path) {
  const char* const fix = "name the directory that `python -m awq_tvm compile MODEL -o BUNDLE` wrote";
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    throw bundle_error("There is no bundle here.", path, "it is not a directory or does not exist", fix);
  }
  const std::string where = path + "/manifest.json";
  if (lstat(where.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw bundle_error("This directory is not a bundle.", path, "it has no regular file manifest.json", fix);
  }
  return parse_manifest(read_file(where, kMaxManifestBytes), where);
}

std::string read_file(const std::string& path, int64_t most) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file ? int64_t(file.tellg()) : -1;
  if (size < 0) throw Error(AWQ_TVM_RESOURCE, "A file cannot be read.", path, "it cannot be opened", kCopyAgain);
  if (size > most) {
    throw bundle_error("A file of the bundle is too large.", path,
                       "it has " + std::to_string(size) + " bytes, at most " + std::to_string(most) + " are read");
  }
  std::string content(std::size_t(size), '\0');
  file.seekg(0);
  if (!file.read(content.data(), size)) {
    throw Error(AWQ_TVM_RESOURCE, "A file cannot be read.", path, "it ended early", kCopyAgain);
  }
  return content;
}

}  // namespace awq
