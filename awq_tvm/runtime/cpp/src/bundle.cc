// The checks of awq_tvm/bundle/verify.py, in its order: files, versions, machine, hashes.
#include "bundle.h"

#include <dirent.h>
#include <sys/stat.h>
#include <tvm/ffi/c_api.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>

#include "error.h"
#include "machine.h"
#include "manifest.h"
#include "sha256.h"

namespace awq {
namespace {

const char* const kManifestName = "manifest.json";

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string rebuild_line(const std::string& path, const Manifest& manifest) {
  return "`python -m awq_tvm compile " + manifest.source + " --target auto -o " + path + ".new`";
}

std::set<std::string> entries(const std::string& path) {
  std::set<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(path.c_str()), closedir);
  while (const dirent* entry = folder ? readdir(folder.get()) : nullptr) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.insert(name);
  }
  return names;
}

// The directory holds the listed regular files of the listed sizes, the manifest, and nothing else.
void check_listing(const std::string& path, const Manifest& manifest) {
  const std::set<std::string> found = entries(path);
  std::set<std::string> listed = {kManifestName};
  for (const auto& file : manifest.files) listed.insert(file.first);
  std::vector<std::string> missing, extra;
  std::set_difference(listed.begin(), listed.end(), found.begin(), found.end(), std::back_inserter(missing));
  std::set_difference(found.begin(), found.end(), listed.begin(), listed.end(), std::back_inserter(extra));
  if (!missing.empty() || !extra.empty()) {
    const bool missed = !missing.empty();
    throw bundle_error("The bundle does not hold the files its manifest lists.", path,
                       (missed ? "missing: " : "extra: ") + joined(missed ? missing : extra),
                       missed ? kCopyAgain : "move the extra files out of the bundle");
  }
  for (const std::string& name : found) {
    const std::string where = path + "/" + name;
    struct stat status {};
    if (lstat(where.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
      throw bundle_error("A file of the bundle is not a regular file.", where, "it is a link, a directory or a device",
                         "copy the bundle with its files, not links to them");
    }
    if (name != kManifestName && status.st_size != manifest.files.at(name).size) {
      throw bundle_error("A file of the bundle has another size.", where,
                         std::to_string(manifest.files.at(name).size) + " bytes are needed, " +
                             std::to_string(status.st_size) + " found");
    }
  }
}

void check_versions(const std::string& path, const Manifest& manifest) {
  const std::pair<const char*, std::pair<std::string, std::string>> packages[] = {
      {"apache-tvm", {manifest.tvm_version, AWQ_TVM_TVM_VERSION}},
      {"apache-tvm-ffi", {manifest.tvm_ffi_version, AWQ_TVM_FFI_VERSION}}};
  for (const auto& [package, versions] : packages) {
    if (versions.first != versions.second) {
      throw bundle_error(std::string("The bundle was built with another ") + package + ".", path,
                         versions.first + " is needed, this runner was built with " + versions.second,
                         "build the runner with " + std::string(package) + " " + versions.first + ", or " +
                             rebuild_line(path, manifest));
    }
  }
  // What is loaded may not be what the runner was built with.
  TVMFFIVersion loaded{};
  TVMFFIGetVersion(&loaded);
  if (loaded.major != TVM_FFI_VERSION_MAJOR || loaded.minor != TVM_FFI_VERSION_MINOR ||
      loaded.patch != TVM_FFI_VERSION_PATCH) {
    throw Error(AWQ_TVM_UNSUPPORTED, "Another libtvm_ffi was loaded than the runner was built with.", "libtvm_ffi",
                "its version is " + std::to_string(loaded.major) + "." + std::to_string(loaded.minor) + "." +
                    std::to_string(loaded.patch),
                "keep the libraries that were installed beside the runner");
  }
}

void check_target(const std::string& path, const Manifest& manifest) {
  const auto refuse = [&](const std::string& needed, const std::string& found) {
    throw Error(AWQ_TVM_TARGET, "The bundle was built for another machine.", path + ", target " + manifest.target_name,
                "it needs " + needed + "; found " + found, rebuild_line(path, manifest));
  };
  if (manifest.source_only) {
    throw Error(AWQ_TVM_TARGET, "The bundle holds its GPU kernels as source only.",
                path + ", target " + manifest.target_name, "it was compiled without nvcc, by `compile --source-only`",
                "on a machine with the CUDA toolkit: `python -m awq_tvm finish " + path + " -o " + path + ".finished`");
  }
  if (manifest.target_kind != "cpu") {
    throw Error(AWQ_TVM_UNSUPPORTED, "This runner runs bundles for CPUs.", path + ", target " + manifest.target_name,
                "found a bundle for " + manifest.target_kind,
                "use `python -m awq_tvm generate`, or compile for this machine's CPU: " + rebuild_line(path, manifest));
  }
  const std::string needed = architecture(manifest.triple), system = operating_system(manifest.triple);
  if (needed != architecture()) refuse("instruction set " + needed, architecture());
  if (system != operating_system() && system != "unknown") refuse("operating system " + system, operating_system());
  const std::set<std::string> have = cpu_features();
  std::vector<std::string> missing;
  for (const std::string& feature : manifest.required_features) {
    if (!have.count(feature)) missing.push_back(feature);
  }
  if (!missing.empty()) {
    refuse("CPU features " + joined(manifest.required_features), "a CPU without " + joined(missing));
  }
}

std::string file_sha256(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw Error(AWQ_TVM_RESOURCE, "A file cannot be read.", path, "it cannot be opened", kCopyAgain);
  std::setvbuf(file.get(), nullptr, _IONBF, 0);
  std::vector<char> buffer(1 << 18);  // small enough to stay in the second-level cache between copy and hash
  Sha256 hash;
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    hash.update(buffer.data(), count);
  }
  if (std::ferror(file.get())) {
    throw Error(AWQ_TVM_RESOURCE, "A file cannot be read.", path, "an error of the disk", kCopyAgain);
  }
  return hash.hex();
}

void check_hashes(const std::string& path, const Manifest& manifest) {
  for (const auto& [name, info] : manifest.files) {
    const std::string where = path + "/" + name, found = file_sha256(where);
    if (found != info.sha256) {
      throw bundle_error("A file of the bundle was changed after it was written.", where,
                         "sha256 " + info.sha256 + " is needed, " + found + " found");
    }
  }
}

}  // namespace

Manifest verify_bundle(const std::string& path) {
  const Manifest manifest = read_manifest(path);
  check_listing(path, manifest);
  check_versions(path, manifest);
  check_target(path, manifest);
  check_hashes(path, manifest);
  return manifest;
}

}  // namespace awq
