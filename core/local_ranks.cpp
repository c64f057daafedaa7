#include "core/local_ranks.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/error.h"
#include "core/file_descriptor.h"
#include "core/interrupt.h"

namespace distill::core {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kGrace = std::chrono::seconds(30);  // longer than ranks need to notice that another is gone
constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr const char* kLauncher = "DISTILL_LAUNCHER";  // its process number

// One that the system has free now; nothing keeps it free, but the system hands out others first.
int free_port() {
  const FileDescriptor fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  check(fd && ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 &&
            ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0,
        "no free port on this machine: {}", std::strerror(errno));
  return ntohs(address.sin_port);
}

std::vector<std::string> environment_of(int rank, int count, int port) {
  std::vector<std::string> variables;
  const std::vector<std::pair<std::string, std::string>> own{
      {"RANK", std::to_string(rank)}, {"WORLD_SIZE", std::to_string(count)}, {"LOCAL_RANK", std::to_string(rank)},
      {"MASTER_ADDR", "127.0.0.1"},   {"MASTER_PORT", std::to_string(port)}, {kLauncher, std::to_string(::getpid())}};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text(*variable);
    bool replaced = false;
    for (const auto& [name, value] : own) replaced = replaced || text.starts_with(name + "=");
    if (!replaced) variables.emplace_back(text);
  }
  for (const auto& [name, value] : own) variables.push_back(fmt::format("{}={}", name, value));
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (auto& string : strings) result.push_back(string.data());
  result.push_back(nullptr);
  return result;
}

struct Child {
  pid_t process = 0;
  bool running = false;
};

class Children {
 public:
  Children(int count, std::vector<std::string> arguments) : children_(static_cast<size_t>(count)) {
    const int port = free_port();
    // In process groups of their own: a terminal's Ctrl-C reaches them once, through signal_all().
    posix_spawnattr_t attributes{};
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    const std::vector<char*> argv = pointers(arguments);
    for (int rank = 0; rank < count; ++rank) {
      std::vector<std::string> variables = environment_of(rank, count, port);
      Child& child = children_[static_cast<size_t>(rank)];
      const int code =
          ::posix_spawnp(&child.process, argv[0], nullptr, &attributes, argv.data(), pointers(variables).data());
      check(code == 0, "cannot start {} as rank {}: {}", arguments[0], rank, std::strerror(code));
      child.running = true;
    }
    posix_spawnattr_destroy(&attributes);
  }
  ~Children() {
    signal_all(SIGKILL);
    for (auto& child : children_) {
      if (child.running) ::waitpid(child.process, nullptr, 0);
    }
  }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  void signal_all(int signal) const {
    for (const auto& child : children_) {
      if (child.running) ::kill(child.process, signal);
    }
  }

  void wait() {
    bool interrupted = false;
    Clock::time_point deadline = Clock::time_point::max();
    std::string failure;  // the first
    while (running() > 0) {
      if (interrupt_requested() && !std::exchange(interrupted, true)) signal_all(interrupt_signal());
      for (size_t rank = 0; rank < children_.size(); ++rank) {
        const std::string reason = failure_of(children_[rank]);
        if (reason.empty() || !failure.empty()) continue;
        failure = fmt::format("rank {} {}", rank, reason);
        deadline = Clock::now() + kGrace;
      }
      if (Clock::now() > deadline) signal_all(SIGKILL);
      std::this_thread::sleep_for(kPoll);
    }
    check(failure.empty(), "{}", failure);
  }

 private:
  size_t running() const {
    return static_cast<size_t>(std::ranges::count_if(children_, [](const Child& child) { return child.running; }));
  }

  // Why it has ended, if it has since the last time and not well.
  static std::string failure_of(Child& child) {
    int status = 0;
    if (!child.running || ::waitpid(child.process, &status, WNOHANG) <= 0) return {};
    child.running = false;
    if (WIFSIGNALED(status)) {
      return fmt::format("was ended by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
    }
    return WEXITSTATUS(status) == 0 ? "" : fmt::format("failed with exit code {}", WEXITSTATUS(status));
  }

  std::vector<Child> children_;
};

}  // namespace

void run_local_ranks(int count, const std::vector<std::string>& arguments) {
  Children(count, arguments).wait();
}

void end_with_launcher() {
  const char* const launcher = std::getenv(kLauncher);
  if (launcher == nullptr) return;
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (std::to_string(::getppid()) != launcher) ::raise(SIGTERM);  // it was gone before
}

}  // namespace distill::core
