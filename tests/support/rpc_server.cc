// TVM's RPC server in C++, for one client after the other: a device without Python. Prints its port.
//
// rpc_server FOLDER [TRACKER_PORT KEY]   (a tracker on this machine, to which it offers itself)
#include <arpa/inet.h>
#include <sys/socket.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

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

// What tvm/rpc/tracker.py asks of a server.
class Tracker {
 public:
  Tracker(int port, std::string key, int own_port) : key_(std::move(key)), own_port_(own_port) {
    socket_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(uint16_t(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int32_t magic = 0x2f271;
    int32_t answer = 0;
    if (connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) ||
        write(socket_, &magic, 4) != 4 || !receive(socket_, &answer, 4) || answer != magic) {
      std::exit(1);
    }
    say("[5, {\"key\": \"server:" + key_ + "\", \"addr\": [null, " + std::to_string(own_port_) + "]}]");
  }

  // One client may come.
  void offer() {
    const std::string match = key_ + ":" + std::to_string(++count_);
    say("[3, \"" + key_ + "\", [" + std::to_string(own_port_) + ", \"" + match + "\"], null]");
  }

 private:
  void say(const std::string& text) {
    const int32_t length = int32_t(text.size());
    int32_t answer = 0;
    std::string code(1, ' ');
    if (write(socket_, &length, 4) != 4 || write(socket_, text.data(), text.size()) != ssize_t(text.size()) ||
        !receive(socket_, &answer, 4) || answer != 1 || !receive(socket_, code.data(), 1) || code != "0") {
      std::exit(1);
    }
  }

  std::string key_;
  int own_port_, socket_ = -1, count_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
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
  std::unique_ptr<Tracker> tracker;
  if (argc > 3) tracker = std::make_unique<Tracker>(std::atoi(argv[2]), argv[3], ntohs(address.sin_port));
  const Function serve = Function::GetGlobalRequired("rpc.ServerLoop");
  for (;;) {
    if (tracker) tracker->offer();
    const int client = accept(server, nullptr, nullptr);
    if (client >= 0 && greet(client)) serve(client);
    close(client);
  }
}
