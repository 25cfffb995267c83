// What manifest.json says, and every check a bundle passes before one byte of it is loaded. See awq_tvm/bundle.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace awq {

struct FileInfo {
  std::string sha256;
  int64_t size;
};

// Lengths are in tokens.
struct Manifest {
  std::string tvm_version, tvm_ffi_version;
  int64_t vocab_size, context_length, prefill_chunk_size;
  std::vector<int32_t> eos_token_ids;
  std::string target_name, target_kind, fingerprint, triple;
  std::vector<std::string> required_features;
  bool source_only;    // nvcc has not compiled the kernels yet
  std::string source;  // what the bundle was compiled from, for messages
  std::string library, weights;
  std::vector<std::string> parameters;  // names of the weights in the order of the library's arguments
  std::map<std::string, FileInfo> files;
};

// Run every check; return the manifest of a bundle that may be loaded.
Manifest verify_bundle(const std::string& path);

// A whole file, refused where it is larger than most.
std::string read_file(const std::string& path, int64_t most);

}  // namespace awq
