// Decides which tokens of which sequences the model computes next, and where in the cache they go: continuous batching
// with chunked prefill (Agrawal et al. 2023, SARATHI) over cache blocks (Kwon et al. 2023, PagedAttention). It counts
// tokens and blocks; what the tokens are is the engine's business.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "nn/block_allocator.h"

namespace distill::nn {

struct SchedulerLimits {
  int64_t blocks = 0;  // of the cache
  int64_t block_size = 0;
  int64_t max_sequences = 16;  // computed side by side
  // Of a step; each sequence that waits only for its next token gets it regardless, and its drafts checked.
  int64_t max_step_tokens = 512;
};

// What the samples of one prompt share: the blocks of all its tokens but the last, once one of them has computed those.
struct SharedPrefix;

struct ScheduledSequence {
  uint64_t id = 0;     // the engine's
  int64_t length = 0;  // tokens so far
  int64_t cached = 0;  // of these, from the first: their entries are in the cache
  int64_t drafts = 0;  // tokens guessed beyond these, to be checked when the next token is due
  std::vector<int32_t> blocks;
  std::shared_ptr<SharedPrefix> prefix;  // null if the prompt has a single sample
};

// Tokens [begin, begin + count) of a sequence.
struct StepItem {
  ScheduledSequence* sequence = nullptr;
  int64_t begin = 0;
  int64_t count = 0;
  // Whether the sequence's next token can be drawn after this step.
  bool reaches_end() const { return begin + count >= sequence->length; }
  // Guesses among the tokens.
  int64_t drafts() const { return std::max<int64_t>(0, begin + count - sequence->length); }
};

struct BlockCopy {
  int32_t from = 0;
  int32_t to = 0;
};

struct StepPlan {
  std::vector<BlockCopy> copies;  // to be made in this order before anything is computed
  std::vector<StepItem> items;    // oldest sequence first
};

// First come, first served. When blocks run out, the youngest sequence gives all of its blocks back and is computed
// anew later, so the oldest always gets on. Not thread-safe.
class GenerationScheduler {
 public:
  explicit GenerationScheduler(SchedulerLimits limits);
  ~GenerationScheduler();

  // Whether one sequence of this many tokens fits the cache when it is alone.
  bool fits(int64_t length) const;

  // Queues one sequence per id, of a prompt of `prompt_length` tokens; none may grow beyond what fits().
  void add(int64_t prompt_length, std::span<const uint64_t> ids);

  // Fewer sequences are queued or running than may run.
  bool has_room() const;
  bool is_idle() const { return running_.empty() && waiting_.empty(); }

  // The next step. Call commit() once it has been computed, before anything else. Never empty unless idle.
  StepPlan plan();
  void commit(const StepPlan& plan);

  // After a commit, of sequences in the plan: one more token was drawn, or the sequence is complete (which deletes it).
  void grow(ScheduledSequence& sequence) { ++sequence.length; }
  // After that, of sequences with drafts: entries of those that turned out wrong are forgotten.
  void forget_drafts(ScheduledSequence& sequence);
  void finish(ScheduledSequence& sequence);

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t preemptions() const { return preemptions_; }
  const BlockAllocator& blocks() const { return allocator_; }

 private:
  int64_t blocks_for(int64_t tokens) const { return (tokens + limits_.block_size - 1) / limits_.block_size; }
  bool must_copy(const ScheduledSequence& sequence) const;
  int64_t tokens_that_fit(const ScheduledSequence& sequence) const;
  int64_t reserve(size_t index, int64_t wanted, StepPlan& plan);
  void schedule(size_t index, int64_t& prefill_budget, StepPlan& plan);
  int64_t wanted_with_drafts(const ScheduledSequence& sequence) const;
  bool admit();
  void preempt_youngest();
  bool drop_a_prefix();
  void release_prefix(SharedPrefix& prefix);
  void release_blocks(ScheduledSequence& sequence);

  SchedulerLimits limits_;
  BlockAllocator allocator_;
  std::vector<std::unique_ptr<ScheduledSequence>> running_;  // oldest first
  std::deque<std::unique_ptr<ScheduledSequence>> waiting_;   // likewise; all younger than those running
  std::vector<SharedPrefix*> held_prefixes_;                 // those that have blocks
  int64_t preemptions_ = 0;
};

}  // namespace distill::nn
