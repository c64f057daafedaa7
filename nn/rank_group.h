// The ranks of a distributed job as one c10d process group (Gloo), with a watch on the others: a rank that dies, or
// whose process or machine stands still, ends every other one within a minute, saying which rank it was and on which
// machine. A rank that lives and waits, say for a file system that does not answer, cannot be told from one that
// computes: the others wait for it half an hour.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <functional>
#include <memory>
#include <string>

#include "core/rank_environment.h"

namespace c10d {
class ProcessGroup;
}

namespace distill::nn {

class RankGroup {
 public:
  // Meets the other ranks; returns when all are there. Throws Error naming host and port if they are not within two
  // minutes.
  explicit RankGroup(const core::RankEnvironment& environment);
  // Waits for nobody. Rank 0 keeps the others' meeting point alive until they are done, for at most some seconds.
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int rank() const;
  int size() const;
  const c10::intrusive_ptr<c10d::ProcessGroup>& process_group() const;

  // Collective operations: every rank calls them in the same order with tensors of the same shape and dtype, on the CPU
  // and contiguous. They throw Error if another rank is gone.
  void sum(at::Tensor& tensor) const;                      // over all ranks, the result everywhere
  void broadcast(at::Tensor& tensor, int from = 0) const;  // that rank's values
  std::string broadcast(std::string text) const;

  // Runs `operation`, part of which is collective. If it throws, waits until the watch has found out whether another
  // rank is the reason; otherwise throws on.
  void guard(const std::function<void()>& operation) const;

  // Tells the other ranks why this one is about to end; they end too.
  void report_failure(const std::string& reason) noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace distill::nn
