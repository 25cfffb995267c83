// Reading manifest.json, for the checks in bundle.cc.
#pragma once

#include <string>

#include "bundle.h"

namespace awq {

// The manifest of a bundle directory, its seal checked.
Manifest read_manifest(const std::string& path);

}  // namespace awq
