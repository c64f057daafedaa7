// The batches of one optimizer step after the other, read ahead in the background.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "data/batcher.h"

namespace distill {

// What one step trains on.
struct StepBatches {
  std::vector<data::TrainingBatch> batches;  // of this rank
  std::vector<int64_t> numbers;              // of these among the step's batches
  int64_t tokens = 0;                        // of all ranks
  int64_t targets = 0;                       //   likewise
  data::BatcherState after;                  // where the batcher stands behind them
};

// One thread may call next(); the reading thread ends with the object.
class BatchLoader {
 public:
  // Continues at `from`. A step takes at least one batch, and further ones while that brings it nearer to
  // `tokens_per_step` tokens. `size` ranks share a step's batches out so that each has about as many tokens: what is
  // in a step does not depend on their number, and a rank's share may be empty.
  BatchLoader(std::shared_ptr<const data::TraceSource> traces, const data::BatcherOptions& options,
              const data::BatcherState& from, int64_t tokens_per_step, int rank = 0, int size = 1);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  StepBatches next();

  // Time spent in next() because the batches were not ready.
  double seconds_waited() const { return seconds_waited_; }

 private:
  StepBatches read();
  void read_ahead();

  data::Batcher batcher_;
  int64_t tokens_per_step_;
  int rank_, size_;
  std::future<StepBatches> pending_;
  double seconds_waited_ = 0;
};

}  // namespace distill
