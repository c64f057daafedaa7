// Cuts a set of traces into training batches: shuffled, packed without padding, split into training and validation.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "data/trace_source.h"

namespace distill::data {

// Several documents back to back. A document of n tokens takes n - 1 positions: its last token is only a label.
struct TrainingBatch {
  at::Tensor tokens;            // [tokens] int64
  at::Tensor positions;         // [tokens] int64, position of each token in its own document
  at::Tensor sequence_offsets;  // [documents + 1] int32: document d is tokens[offsets[d], offsets[d + 1])
  at::Tensor labels;            // [tokens] int64, the token that follows, or kernels::kIgnoredLabel in a prompt
  at::Tensor loss_mask;         // [tokens] bool, true where the token that follows belongs to the completion

  // The teacher's distributions of the positions in the loss mask, in order, in compressed sparse rows.
  at::Tensor target_rows;       // [targets] int64: target i belongs to the hidden state of token target_rows[i]
  at::Tensor target_offsets;    // [targets + 1] int64: target i has ids and weights [offsets[i], offsets[i + 1])
  at::Tensor target_ids;        // [entries] int64
  at::Tensor target_weights;    // [entries] float32
  at::Tensor target_uncovered;  // [targets] float32, probability outside the ids
  std::vector<at::Tensor> hidden_states;   // the teacher's, [targets, width] float32 for each of options.hidden_layers
  std::vector<size_t> documents;           // numbers in the reader, in the order of the sequences
  std::vector<Verdict> verdicts;           // of the documents
  std::vector<int64_t> reasoning_targets;  // of each document, how many of its targets, from the first, are reasoning
};

struct BatcherOptions {
  int64_t max_tokens = 4096;  // a batch holds at most this many tokens; longer documents are cut to it
  uint64_t seed = 0;
  double validation_share = 0;  // of the prompts, chosen by a hash of their id and `seed`
  bool validation = false;      // serve the validation documents instead of the others
  int64_t rank = 0;             // of `world` readers, each of which gets every world-th batch
  int64_t world = 1;
  // Layers whose hidden states are read too, among those that the provenance says are stored. They are large.
  std::vector<int64_t> hidden_layers{};
};

struct BatchSize {
  int64_t tokens = 0;
  int64_t targets = 0;
};

// Where a batcher stands; enough to continue in another process.
struct BatcherState {
  uint64_t epoch = 0;
  uint64_t window = 0;  // of the documents shuffled together
  uint64_t batch = 0;   // in the window
  nlohmann::json to_json() const;
  static BatcherState from_json(const nlohmann::json& json);
};

// The same batches in the same order for the same documents, options and state, on every machine and whatever shards
// the documents lie in. Not thread-safe.
class Batcher {
 public:
  // Throws Error if no document falls on this side of the validation split, or hidden states of a layer are asked for
  // that the traces don't have.
  Batcher(std::shared_ptr<const TraceSource> reader, BatcherOptions options);
  ~Batcher();

  // The next batch of this rank; epochs follow each other without end, each in another order.
  TrainingBatch next();

  // The size of what next() would read, instead of reading it.
  BatchSize skip();

  // Batches of the current epoch from its beginning to the next one, for one pass over a validation set: nothing at the
  // end of the epoch.
  std::optional<TrainingBatch> next_in_epoch();

  BatcherState state() const;
  void restore(const BatcherState& state);

  // Documents and their positions with a target on this side of the split, over all ranks.
  uint64_t documents() const;
  uint64_t targets() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace distill::data
