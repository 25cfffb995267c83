// TVM's RPC server in C++, for one client after the other: a device without Python. Prints its port.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace {

constexpr int32_t kMagic = 0xff271;  // of tvm/rpc/base.py; the code of success too

bool receive(int socket, void* data, size_t size) {
  for (auto* at = static_cast<char*>(data); size;) {
    const ssize_t count = read(socket, at, size);
    if (count <= 0) return false;
    at += count;
    size -= size_t(count);
  }
  return true;
}

// The client says its key, we ours.
bool greet(int socket) {
  int32_t magic = 0, length = 0;
  if (!receive(socket, &magic, 4) || magic != kMagic || !receive(socket, &length, 4) || length > 1024) return false;
  std::string key(size_t(length), ' ');
  if (!receive(socket, key.data(), key.size())) return false;
  const std::string ours = "server:";
  const int32_t answer[] = {kMagic, int32_t(ours.size())};
  return write(socket, answer, sizeof answer) == sizeof answer &&
         write(socket, ours.data(), ours.size()) == ssize_t(ours.size());
}

}  // namespace

int main(int, char** argv) {
  using namespace tvm::ffi;
  const std::string folder = argv[1];
  const auto inside = [folder](const String& path) { return String(folder + "/" + std::string(path)); };
  reflection::GlobalDef()
      .def("tvm.rpc.server.workpath", inside)
      .def("tvm.rpc.server.load_module", [inside](const String& path) { return Module::LoadFromFile(inside(path)); });
  const int server = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(server, reinterpret_cast<sockaddr*>(&address), length) || listen(server, 1) ||
      getsockname(server, reinterpret_cast<sockaddr*>(&address), &length)) {
    return 1;
  }
  std::printf("%d\n", ntohs(address.sin_port));
  std::fflush(stdout);
  const Function serve = Function::GetGlobalRequired("rpc.ServerLoop");
  for (;;) {
    const int client = accept(server, nullptr, nullptr);
    if (client >= 0 && greet(client)) serve(client);
    close(client);
  }
}
