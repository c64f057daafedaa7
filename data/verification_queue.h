// Verifies answers beside other work and hands the verdicts on in the order in which the answers came.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "data/prompts.h"
#include "data/trace.h"

namespace distill::data {

// Programs run on threads of the queue, whatever else is verified on the caller's, which is where verdicts are handed
// on. Not thread-safe.
class VerificationQueue {
 public:
  using Done = std::function<void(Verdict)>;

  // `threads` programs run side by side; as many as there are processors, at least two, if 0.
  explicit VerificationQueue(size_t threads = 0);
  // Drops what was not handed on; waits for the programs under way.
  ~VerificationQueue();
  VerificationQueue(const VerificationQueue&) = delete;
  VerificationQueue& operator=(const VerificationQueue&) = delete;

  // The answer that `completion` gives to `prompt`, which outlives the queue; kUnchecked where it names no verifier.
  // `done` is called once the verdicts of this answer and of all before it are there, during this or a later call.
  // Waits where four times as many answers as threads wait to be handed on. Throws what verify() threw for an answer
  // when it is that answer's turn.
  void add(const Prompt& prompt, std::string completion, Done done);

  // Waits for every answer.
  void finish();

 private:
  struct Pending {
    std::future<Verdict> verdict;
    Done done;
  };
  // Those that are ready, and those before the last `waiting` in any case.
  void hand_on(size_t waiting);
  void work();

  size_t limit_;
  std::deque<Pending> pending_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::packaged_task<Verdict()>> tasks_;  // guarded by mutex_
  bool ending_ = false;                              // likewise
  std::vector<std::thread> threads_;                 // started for the first program
};

}  // namespace distill::data
