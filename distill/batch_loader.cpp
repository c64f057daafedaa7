#include "distill/batch_loader.h"

#include <ATen/ATen.h>

#include <chrono>
#include <utility>

namespace distill {

BatchLoader::BatchLoader(std::shared_ptr<const data::TraceSource> traces, const data::BatcherOptions& options,
                         const data::BatcherState& from, int64_t tokens_per_step, int rank, int size)
    : batcher_(std::move(traces), options), tokens_per_step_(tokens_per_step), rank_(rank), size_(size) {
  batcher_.restore(from);
  read_ahead();
}

BatchLoader::~BatchLoader() {
  if (pending_.valid()) pending_.wait();
}

void BatchLoader::read_ahead() {
  pending_ = std::async(std::launch::async, [this] {
    StepBatches step;
    data::BatchSize size;
    int turn = 0;
    do {
      if (turn == rank_) {
        step.batches.push_back(batcher_.next());
        size = {.tokens = step.batches.back().tokens.numel(), .targets = step.batches.back().target_rows.numel()};
      } else {
        size = batcher_.skip();
      }
      turn = (turn + 1) % size_;
      step.tokens += size.tokens;
      step.targets += size.targets;
    } while (step.tokens + size.tokens / 2 < tokens_per_step_);
    step.after = batcher_.state();
    return step;
  });
}

StepBatches BatchLoader::next() {
  const auto start = std::chrono::steady_clock::now();
  StepBatches step = pending_.get();
  seconds_waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  read_ahead();
  return step;
}

}  // namespace distill
