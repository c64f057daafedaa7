#include "data/verification_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/cpu_count.h"
#include "core/error.h"
#include "data/verifier.h"

namespace distill::data {

VerificationQueue::VerificationQueue(size_t threads)
    : threads_(threads > 0 ? threads : std::max<size_t>(2, static_cast<size_t>(core::available_cpus()))) {
  limit_ = 4 * threads_.size();
}

VerificationQueue::~VerificationQueue() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    tasks_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void VerificationQueue::add(const Prompt& prompt, std::string completion, Done done) {
  std::packaged_task<Verdict()> task([&prompt, completion = std::move(completion)] {
    if (prompt.verifier.empty()) return Verdict::kUnchecked;
    return core::with_context(fmt::format("prompt \"{}\"", prompt.id),
                              [&] { return verify(prompt.verifier, *prompt.answer, completion); });
  });
  pending_.push_back({task.get_future(), std::move(done)});
  if (runs_program(prompt.verifier)) {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    for (std::thread& thread : threads_) {
      if (!thread.joinable()) thread = std::thread([this] { work(); });
    }
    changed_.notify_one();
  } else {
    task();
  }
  hand_on(limit_);
}

void VerificationQueue::finish() {
  hand_on(0);
}

void VerificationQueue::hand_on(size_t waiting) {
  while (!pending_.empty()) {
    const bool ready = pending_.front().verdict.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    if (!ready && pending_.size() <= waiting) return;
    Pending first = std::move(pending_.front());
    pending_.pop_front();
    first.done(first.verdict.get());
  }
}

void VerificationQueue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    if (ending_) return;
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

}  // namespace distill::data
