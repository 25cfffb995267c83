// What `push` needs on a device that is reached through TVM's RPC server, which cannot do it by itself: run a script
// of sh, write to the end of a file, and say what the machine is. The server loads this library and calls it.
#include <fcntl.h>
#include <sys/wait.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "machine.h"

namespace {

using tvm::ffi::Bytes;
using tvm::ffi::String;
using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File temporary() {
  File file(std::tmpfile(), std::fclose);
  if (!file) TVM_FFI_THROW(RuntimeError) << "no temporary file: " << std::strerror(errno);
  return file;
}

std::string content(std::FILE* file) {
  std::string text;
  char buffer[1 << 12];
  std::rewind(file);
  for (std::size_t count; (count = std::fread(buffer, 1, sizeof buffer, file));) text.append(buffer, count);
  return text;
}

// Returns: the exit code, the number of bytes of standard output, then standard output and standard error.
String shell(const String& script) {
  const File output = temporary(), errors = temporary();
  const pid_t child = fork();
  if (child < 0) TVM_FFI_THROW(RuntimeError) << "no process: " << std::strerror(errno);
  if (child == 0) {
    // Nothing but calls that are safe in the child of a process with threads.
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, 0);
    dup2(fileno(output.get()), 1);
    dup2(fileno(errors.get()), 2);
    execlp("sh", "sh", "-c", script.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  const std::string printed = content(output.get());
  return std::to_string(code) + " " + std::to_string(printed.size()) + "\n" + printed + content(errors.get());
}

void append(const String& path, const Bytes& piece) {
  const File file(std::fopen(path.c_str(), "ab"), std::fclose);
  if (!file || std::fwrite(piece.data(), 1, piece.size(), file.get()) != piece.size() || std::fflush(file.get())) {
    TVM_FFI_THROW(RuntimeError) << path << ": " << std::strerror(errno);
  }
}

// Returns: instruction set, system and the CPU's features, a line each.
String machine() {
  std::string features;
  for (const std::string& name : awq::cpu_features()) features += name + " ";
  return awq::architecture() + "\n" + awq::operating_system() + "\n" + features;
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(shell, shell)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(append, append)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(machine, machine)
