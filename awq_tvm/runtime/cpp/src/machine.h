// What this machine can execute, in the names that LLVM uses. See awq_tvm/bundle/machine.py.
#pragma once

#include <set>
#include <string>

namespace awq {

// LLVM names of this CPU's features, those that every core has.
std::set<std::string> cpu_features();
// "x86_64", "aarch64" and so on, of an LLVM triple; without one of this machine.
std::string architecture(const std::string& triple = "");
// "linux", "darwin", "ios", "windows" or "unknown".
std::string operating_system(const std::string& triple = "");
// Processors that this process may run on.
int processors();

}  // namespace awq
