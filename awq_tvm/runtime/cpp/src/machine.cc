#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace awq {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

utsname this_system() {
  utsname name{};
  uname(&name);
  return name;
}

}  // namespace

#if defined(__aarch64__)

std::set<std::string> cpu_features() {
  // What the kernel tells every process; an emulator answers for the processor it stands for, which /proc/cpuinfo
  // does not.
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  std::set<std::string> found;
  const std::pair<unsigned long, const char*> low[] = {
      {HWCAP_FP, "fp-armv8"},     {HWCAP_ASIMD, "neon"},       {HWCAP_AES, "aes"},          {HWCAP_SHA2, "sha2"},
      {HWCAP_SHA3, "sha3"},       {HWCAP_CRC32, "crc"},        {HWCAP_ATOMICS, "lse"},      {HWCAP_ASIMDHP, "fullfp16"},
      {HWCAP_ASIMDRDM, "rdm"},    {HWCAP_JSCVT, "jsconv"},     {HWCAP_FCMA, "complxnum"},   {HWCAP_LRCPC, "rcpc"},
      {HWCAP_ASIMDDP, "dotprod"}, {HWCAP_ASIMDFHM, "fp16fml"}, {HWCAP_SVE, "sve"}};
  const std::pair<unsigned long, const char*> high[] = {
      {HWCAP2_SVE2, "sve2"}, {HWCAP2_I8MM, "i8mm"}, {HWCAP2_BF16, "bf16"}};
  for (const auto& [bit, name] : low) {
    if (first & bit) found.insert(name);
  }
  for (const auto& [bit, name] : high) {
    if (second & bit) found.insert(name);
  }
  return found;
}

#else

std::set<std::string> cpu_features() {
  // Linux names that differ from LLVM's; every other flag is the same word in both.
  static const std::map<std::string, std::string> names = {
      {"abm", "lzcnt"},
      {"amx_bf16", "amx-bf16"},
      {"amx_int8", "amx-int8"},
      {"amx_tile", "amx-tile"},
      {"avx512_bf16", "avx512bf16"},
      {"avx512_bitalg", "avx512bitalg"},
      {"avx512_fp16", "avx512fp16"},
      {"avx512_vbmi2", "avx512vbmi2"},
      {"avx512_vnni", "avx512vnni"},
      {"avx512_vp2intersect", "avx512vp2intersect"},
      {"avx512_vpopcntdq", "avx512vpopcntdq"},
      {"avx_vnni", "avxvnni"},
      {"avx_vnni_int8", "avxvnniint8"},
      {"bmi1", "bmi"},
      {"lahf_lm", "sahf"},
      {"pclmulqdq", "pclmul"},
      {"pni", "sse3"},
      {"rdrand", "rdrnd"},
      {"sha_ni", "sha"},
      {"sse4_1", "sse4.1"},
      {"sse4_2", "sse4.2"}};
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::set<std::string> all;
  bool first = true;
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::set<std::string> core;
    for (std::string word; words >> word;) {
      const auto renamed = names.find(word);
      core.insert(renamed == names.end() ? word : renamed->second);
    }
    if (first) all = core;
    for (auto it = all.begin(); it != all.end();) it = core.count(*it) ? std::next(it) : all.erase(it);
    first = false;
  }
  return all;
}

#endif

std::string architecture(const std::string& triple) {
  const std::string first = lower(triple.empty() ? this_system().machine : triple.substr(0, triple.find('-')));
  if (first == "arm64") return "aarch64";
  return first == "amd64" || first == "x64" ? "x86_64" : first;
}

std::string operating_system(const std::string& triple) {
  const std::string words = lower(triple.empty() ? this_system().sysname : triple);
  const std::pair<const char*, std::vector<const char*>> systems[] = {
      {"ios", {"ios"}},
      {"darwin", {"darwin", "macos", "apple"}},
      {"linux", {"linux", "android"}},
      {"windows", {"windows", "win32", "mingw"}}};
  for (const auto& [system, marks] : systems) {
    for (const char* mark : marks) {
      if (words.find(mark) != std::string::npos) return system;
    }
  }
  return "unknown";
}

int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return std::max(1L, sysconf(_SC_NPROCESSORS_ONLN));
}

}  // namespace awq
