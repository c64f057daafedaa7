#include "core/sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>

#include "core/error.h"
#include "core/file_descriptor.h"

namespace distill::core {
namespace {

// What the child could not do, sent to the parent.
struct Failure {
  enum Step : int { kNone, kUserMap, kReadOnly, kTemporary, kLimits, kStart } step = kNone;
  int error = 0;
};
constexpr std::array kSteps{"",
                            "map its user into a namespace",
                            "make its file system read-only",
                            "give it a folder for temporary files",
                            "limit its resources",
                            "start /bin/sh"};

// Everything the child needs, made before it exists: after it, only system calls are safe.
struct Plan {
  const char* command;
  std::string user_map, group_map, temporary_options;
  SandboxLimits limits;
  int input, null, report;
};

[[noreturn]] void give_up(const Plan& plan, Failure::Step step) {
  const Failure failure{step, errno};
  if (::write(plan.report, &failure, sizeof failure) < 0) ::_exit(126);
  ::_exit(127);
}

bool write_text(const char* path, const char* text) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = ::write(fd, text, std::strlen(text)) >= 0;
  ::close(fd);
  return written;
}

bool limit(int resource, uint64_t value) {
  const rlimit both{value, value};
  return ::setrlimit(static_cast<__rlimit_resource>(resource), &both) == 0;
}

[[noreturn]] void run_child(const Plan& plan) {
  if (!write_text("/proc/self/setgroups", "deny") || !write_text("/proc/self/uid_map", plan.user_map.c_str()) ||
      !write_text("/proc/self/gid_map", plan.group_map.c_str())) {
    give_up(plan, Failure::kUserMap);
  }
  mount_attr read_only{};
  read_only.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID;
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &read_only, sizeof read_only) != 0) {
    give_up(plan, Failure::kReadOnly);
  }
  if (::mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, plan.temporary_options.c_str()) != 0) {
    give_up(plan, Failure::kTemporary);
  }
  const auto seconds = static_cast<uint64_t>(std::ceil(plan.limits.seconds));
  if (!limit(RLIMIT_AS, plan.limits.memory_bytes) || !limit(RLIMIT_CPU, seconds) || !limit(RLIMIT_CORE, 0) ||
      !limit(RLIMIT_FSIZE, plan.limits.temporary_bytes) || !limit(RLIMIT_NPROC, 256)) {
    give_up(plan, Failure::kLimits);
  }
  ::dup2(plan.input, STDIN_FILENO);
  ::dup2(plan.null, STDOUT_FILENO);
  ::dup2(plan.null, STDERR_FILENO);
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE}) ::signal(signal, SIG_DFL);
  ::execl("/bin/sh", "sh", "-c", plan.command, nullptr);
  give_up(plan, Failure::kStart);
}

FileDescriptor file_of(std::string_view input) {
  FileDescriptor fd(::memfd_create("input", MFD_CLOEXEC));
  check(static_cast<bool>(fd), "cannot create a file in memory: {}", std::strerror(errno));
  write_all(fd.get(), input.data(), input.size(), "a file in memory");
  check(::lseek(fd.get(), 0, SEEK_SET) == 0, "cannot rewind a file in memory: {}", std::strerror(errno));
  return fd;
}

// The end of the process, or nothing when its time is up.
bool ends_in_time(pid_t child, double seconds) {
  const FileDescriptor process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  check(static_cast<bool>(process), "cannot watch a process: {}", std::strerror(errno));
  pollfd poll{.fd = process.get(), .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    ready = ::poll(&poll, 1, static_cast<int>(seconds * 1000));
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

}  // namespace

SandboxResult run_in_sandbox(const std::string& command, std::string_view input, const SandboxLimits& limits) {
  const FileDescriptor text = file_of(input), null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  check(static_cast<bool>(null), "cannot open /dev/null: {}", std::strerror(errno));
  std::array<int, 2> ends{};
  check(::pipe2(ends.data(), O_CLOEXEC) == 0, "cannot create a pipe: {}", std::strerror(errno));
  const FileDescriptor read_end(ends[0]);
  FileDescriptor write_end(ends[1]);
  const Plan plan{.command = command.c_str(),
                  .user_map = fmt::format("1000 {} 1\n", ::geteuid()),
                  .group_map = fmt::format("1000 {} 1\n", ::getegid()),
                  .temporary_options = fmt::format("size={},mode=1777", limits.temporary_bytes),
                  .limits = limits,
                  .input = text.get(),
                  .null = null.get(),
                  .report = write_end.get()};

  // Like fork(), with namespaces of its own: the child is process 1 of one, and all others in it end with it.
  const unsigned long flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | SIGCHLD;
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, flags, nullptr, nullptr, nullptr, nullptr));
  check(child >= 0,
        "cannot run '{}' without network: creating namespaces: {} (is kernel.unprivileged_userns_clone or the "
        "container's seccomp profile in the way?)",
        command, std::strerror(errno));
  if (child == 0) run_child(plan);

  write_end.close();
  SandboxResult result;
  result.timed_out = !ends_in_time(child, limits.seconds);
  if (result.timed_out) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    check(errno == EINTR, "cannot wait for process {}: {}", child, std::strerror(errno));
  }
  Failure failure;
  if (::read(read_end.get(), &failure, sizeof failure) == sizeof failure) {
    fail("cannot run '{}' in a sandbox: {}: {}", command, kSteps.at(failure.step), std::strerror(failure.error));
  }
  result.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return result;
}

}  // namespace distill::core
