// The errors a user can meet: what happened, where, why, and how to fix it. See awq_tvm/errors.py.
#pragma once

#include <stdexcept>
#include <string>

#include "awq_tvm.h"

namespace awq {

class Error : public std::runtime_error {
 public:
  // status: AWQ_TVM_USAGE and so on.
  Error(int status, const std::string& what, const std::string& where, const std::string& why, const std::string& fix)
      : std::runtime_error(what + "\n  where: " + where + "\n  why: " + why + "\n  fix: " + fix), status(status) {}

  const int status;
};

inline const char* const kCopyAgain = "copy the bundle again, or build it again with `python -m awq_tvm compile`";

inline Error usage_error(const std::string& what, const std::string& where, const std::string& why,
                         const std::string& fix) {
  return Error(AWQ_TVM_USAGE, what, where, why, fix);
}

inline Error bundle_error(const std::string& what, const std::string& where, const std::string& why,
                          const std::string& fix = kCopyAgain) {
  return Error(AWQ_TVM_BUNDLE, what, where, why, fix);
}

}  // namespace awq
