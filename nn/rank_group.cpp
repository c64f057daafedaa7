#include "nn/rank_group.h"

#define USE_C10D_GLOO 1
#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "core/error.h"
#include "nn/nccl_backend.h"

namespace distill::nn {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kMeet{120};
constexpr std::chrono::seconds kBeat{1};
constexpr std::chrono::seconds kSilence{20};     // after which a rank counts as gone
constexpr std::chrono::minutes kCollective{30};  // ranks may work between two operations for at most this long
constexpr std::chrono::seconds kFarewell{10};
constexpr int kFailure = 1;

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "an unknown machine";
}

std::vector<uint8_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string text_of(const std::vector<uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}

std::string key(const char* what, int rank) {
  return std::string(what) + "/" + std::to_string(rank);
}

// torchrun's agent keeps the store, with all that was written to it, when it starts a job again: each attempt has keys
// of its own.
c10::intrusive_ptr<c10d::Store> connect(const core::RankEnvironment& environment, bool server,
                                        std::chrono::milliseconds timeout) {
  const auto store = c10::make_intrusive<c10d::TCPStore>(
      environment.host, c10d::TCPStoreOptions{.port = environment.port,
                                              .isServer = server,
                                              .numWorkers = static_cast<size_t>(environment.size),
                                              .waitWorkers = false,
                                              .timeout = timeout});
  return c10::make_intrusive<c10d::PrefixStore>("attempt" + std::to_string(environment.attempt), store);
}

// LibTorch's messages carry a stack trace after the first line.
std::string first_line(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace

// Every rank writes a counter to the store every second and reads the others'. A rank whose counter stands still has
// died or hangs. What to do then is up to a thread of its own, since the main thread may be waiting for that very rank.
struct RankGroup::State {
  core::RankEnvironment environment;
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  std::mutex mutex;
  std::condition_variable wake;
  bool leaving = false;
  bool reported = false;
  std::thread watch;

  explicit State(const core::RankEnvironment& from) : environment(from) {
    try {
      store = connect(environment, environment.rank == 0, kMeet);
      store->set(key("host", environment.rank), bytes_of(host_name()));
      auto gloo_options = c10d::ProcessGroupGloo::Options::create(kCollective);
      gloo_options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
      const auto shared = c10::make_intrusive<c10d::PrefixStore>("gloo", store);
      const auto gloo =
          c10::make_intrusive<c10d::ProcessGroupGloo>(shared, environment.rank, environment.size, gloo_options);
      group = c10::make_intrusive<c10d::ProcessGroup>(shared, environment.rank, environment.size);
      group->setBackend(at::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
#ifdef DISTILL_NCCL
      add_nccl_backend(*group, store, environment.rank, environment.size);
#endif
      group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    } catch (const std::exception& error) {
      core::fail("rank {} of {} on {} did not meet the others at {}:{} ({} says so): {}", environment.rank,
                 environment.size, host_name(), environment.host, environment.port, environment.launcher,
                 first_line(error));
    }
    watch = std::thread([this] { keep_watch(); });
  }

  [[noreturn]] void end(const std::string& reason) const {
    std::fprintf(stderr, "distill: rank %d of %d on %s ends: %s\n", environment.rank, environment.size,
                 host_name().c_str(), reason.c_str());
    std::fflush(nullptr);
    ::_exit(kFailure);
  }

  // Whether the object is going away; otherwise waits for a beat.
  bool left() {
    std::unique_lock lock(mutex);
    return wake.wait_for(lock, kBeat, [this] { return leaving; });
  }

  void keep_watch() {
    struct Seen {
      std::string beat;
      Clock::time_point at = Clock::now();
    };
    std::vector<Seen> seen(static_cast<size_t>(environment.size));
    c10::intrusive_ptr<c10d::Store> own;
    Clock::time_point answered = Clock::now();
    for (int64_t beat = 0; !left(); ++beat) {
      try {
        if (!own) own = connect(environment, false, kSilence);
        own->set(key("beat", environment.rank), bytes_of(std::to_string(beat)));
        for (int rank = 0; rank < environment.size; ++rank) {
          if (rank == environment.rank) continue;
          if (own->check({key("failed", rank)})) {
            end(fmt::format("rank {} on {} failed: {}", rank, host_of(*own, rank),
                            text_of(own->get(key("failed", rank)))));
          }
          Seen& last = seen[static_cast<size_t>(rank)];
          const std::string now = own->check({key("done", rank)})   ? "done" + std::to_string(beat)
                                  : own->check({key("beat", rank)}) ? text_of(own->get(key("beat", rank)))
                                                                    : "";
          if (now != last.beat) last = {.beat = now, .at = Clock::now()};
          if (Clock::now() - last.at > kSilence) {
            end(fmt::format("rank {} on {} has not been heard of for {} seconds; it has died or hangs", rank,
                            host_of(*own, rank), kSilence.count()));
          }
        }
        answered = Clock::now();
      } catch (const std::exception& error) {
        own.reset();
        if (environment.rank != 0 && Clock::now() - answered > kSilence / 2) {
          end(fmt::format("rank 0 at {}:{} does not answer; it has died or hangs", environment.host, environment.port));
        }
      }
    }
  }

  static std::string host_of(c10d::Store& from, int rank) {
    return from.check({key("host", rank)}) ? text_of(from.get(key("host", rank))) : "an unknown machine";
  }
};

RankGroup::RankGroup(const core::RankEnvironment& environment) {
  // A rank that is gone is no reason to end without a word.
  std::signal(SIGPIPE, SIG_IGN);
  constexpr int kFatal = 3;
  FLAGS_caffe2_log_level = kFatal;  // what the watch finds out replaces LibTorch's stack traces
  state_ = std::make_unique<State>(environment);
}

RankGroup::~RankGroup() {
  State& state = *state_;
  try {
    state.store->set(key("done", rank()), bytes_of("done"));
    const auto deadline = Clock::now() + kFarewell;
    // The store lives in rank 0.
    for (int other = 1; rank() == 0 && !state.reported && other < size();) {
      if (state.store->check({key("done", other)})) {
        ++other;
      } else if (Clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      } else {
        break;
      }
    }
  } catch (const std::exception&) {
    // Nobody is left to tell.
  }
  {
    const std::lock_guard lock(state.mutex);
    state.leaving = true;
  }
  state.wake.notify_one();
  state.watch.join();
}

int RankGroup::rank() const {
  return state_->environment.rank;
}

int RankGroup::size() const {
  return state_->environment.size;
}

const c10::intrusive_ptr<c10d::ProcessGroup>& RankGroup::process_group() const {
  return state_->group;
}

void RankGroup::guard(const std::function<void()>& operation) const {
  try {
    operation();
  } catch (const std::exception& error) {
    std::this_thread::sleep_for(kSilence + 5 * kBeat);
    core::fail("rank {} of {} on {}: {}", rank(), size(), host_name(), first_line(error));
  }
}

void RankGroup::sum(at::Tensor& tensor) const {
  std::vector<at::Tensor> tensors{tensor};
  guard([&] { state_->group->allreduce(tensors)->wait(); });
}

void RankGroup::broadcast(at::Tensor& tensor, int from) const {
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = from;
  guard([&] { state_->group->broadcast(tensors, options)->wait(); });
}

std::string RankGroup::broadcast(std::string text) const {
  at::Tensor length = at::scalar_tensor(static_cast<int64_t>(text.size()), at::kLong);
  broadcast(length);
  text.resize(static_cast<size_t>(length.item<int64_t>()));
  at::Tensor bytes = at::from_blob(text.data(), {static_cast<int64_t>(text.size())}, at::kByte);
  broadcast(bytes);
  return text;
}

void RankGroup::report_failure(const std::string& reason) noexcept {
  state_->reported = true;
  try {
    state_->store->set(key("failed", rank()), bytes_of(reason));
    // Time for the others to read it while the store, perhaps in this rank, is there.
    std::this_thread::sleep_for(3 * kBeat);
  } catch (const std::exception&) {
    // The others notice the silence.
  }
}

}  // namespace distill::nn
