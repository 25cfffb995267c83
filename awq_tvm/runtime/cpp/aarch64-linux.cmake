# Builds the runner for 64-bit ARM Linux by Debian's cross compiler:
#
#   make arm-wheels
#   cmake -S awq_tvm/runtime/cpp -B build/runner-arm --toolchain aarch64-linux.cmake -DAWQ_TVM_WHEELS=$PWD/build/arm-wheels
#
# `--toolchain` is relative to the build folder or the source folder, and needs CMake 3.21.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
