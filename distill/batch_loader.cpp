#include "distill/batch_loader.h"

#include <ATen/ATen.h>

#include <chrono>
#include <utility>

#include "distill/fair_shares.h"

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

StepBatches BatchLoader::read() {
  StepBatches step;
  std::vector<data::BatcherState> begins;
  std::vector<int64_t> sizes;
  data::BatchSize size;
  do {
    begins.push_back(batcher_.state());
    size = batcher_.skip();
    sizes.push_back(size.tokens);
    step.tokens += size.tokens;
    step.targets += size.targets;
  } while (step.tokens + size.tokens / 2 < tokens_per_step_);
  step.after = batcher_.state();
  const std::vector<int> owners = fair_shares(sizes, size_);
  for (size_t i = 0; i < owners.size(); ++i) {
    if (owners[i] != rank_) continue;
    batcher_.restore(begins[i]);
    step.batches.push_back(batcher_.next());
    step.numbers.push_back(static_cast<int64_t>(i));
  }
  batcher_.restore(step.after);
  return step;
}

void BatchLoader::read_ahead() {
  pending_ = std::async(std::launch::async, [this] { return read(); });
}

StepBatches BatchLoader::next() {
  const auto start = std::chrono::steady_clock::now();
  StepBatches step = pending_.get();
  seconds_waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  read_ahead();
  return step;
}

}  // namespace distill
