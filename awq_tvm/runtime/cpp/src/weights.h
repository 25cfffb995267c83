// The weights file, mapped: nothing of it is read before a kernel touches it.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <memory>
#include <string>
#include <vector>

namespace awq {

// Tensors of a safetensors file, over one mapping that lives as long as any of them.
//
// path: of a file that was verified. parameters: names, in the order wanted.
std::vector<tvm::ffi::Tensor> map_weights(const std::string& path, const std::vector<std::string>& parameters);

}  // namespace awq
