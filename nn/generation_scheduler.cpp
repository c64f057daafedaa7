#include "nn/generation_scheduler.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace distill::nn {

struct SharedPrefix {
  int64_t tokens = 0;                   // of the prompt without its last
  int64_t waiting = 0;                  // samples that have not started
  ScheduledSequence* leader = nullptr;  // the sample that is computing the prefix
  std::vector<int32_t> blocks;          // its blocks, once computed and while samples wait
};

GenerationScheduler::GenerationScheduler(SchedulerLimits limits) : limits_(limits), allocator_(limits.blocks) {
  core::check(limits.block_size > 0, "a cache block cannot have {} tokens", limits.block_size);
  core::check(limits.max_sequences > 0, "cannot run {} sequences side by side", limits.max_sequences);
  core::check(limits.max_step_tokens > 0, "cannot compute {} tokens in a step", limits.max_step_tokens);
}

GenerationScheduler::~GenerationScheduler() = default;

// The last token drawn is never fed to the model.
bool GenerationScheduler::fits(int64_t length) const {
  return blocks_for(length - 1) <= allocator_.num_blocks();
}

bool GenerationScheduler::has_room() const {
  return static_cast<int64_t>(running_.size() + waiting_.size()) < limits_.max_sequences;
}

void GenerationScheduler::add(int64_t prompt_length, std::span<const uint64_t> ids) {
  std::shared_ptr<SharedPrefix> prefix;
  if (ids.size() > 1 && prompt_length > 1) {
    prefix = std::make_shared<SharedPrefix>();
    prefix->tokens = prompt_length - 1;
    prefix->waiting = static_cast<int64_t>(ids.size());
  }
  for (const uint64_t id : ids) {
    auto sequence = std::make_unique<ScheduledSequence>();
    sequence->id = id;
    sequence->length = prompt_length;
    sequence->prefix = prefix;
    waiting_.push_back(std::move(sequence));
  }
}

StepPlan GenerationScheduler::plan() {
  StepPlan plan;
  int64_t singles = 0;
  for (const auto& sequence : running_) {
    if (sequence->length - sequence->cached == 1) singles += 1 + sequence->drafts;
  }
  int64_t prefill_budget = std::max<int64_t>(1, limits_.max_step_tokens - singles);
  // Preemption shortens the list from its end, so whoever is planned stays.
  for (size_t i = 0; i < running_.size(); ++i) schedule(i, prefill_budget, plan);
  while (prefill_budget > 0 && admit()) schedule(running_.size() - 1, prefill_budget, plan);
  core::check(!plan.items.empty() || is_idle(), "the scheduler found nothing to compute for {} sequences", running());
  return plan;
}

void GenerationScheduler::schedule(size_t index, int64_t& prefill_budget, StepPlan& plan) {
  ScheduledSequence& sequence = *running_[index];
  const int64_t missing = sequence.length - sequence.cached;
  const int64_t count =
      reserve(index, missing == 1 ? wanted_with_drafts(sequence) : std::min(missing, prefill_budget), plan);
  if (missing > 1) prefill_budget -= count;
  if (count > 0) plan.items.push_back({.sequence = &sequence, .begin = sequence.cached, .count = count});
}

// Where blocks are scarce, what others need goes before guesses.
int64_t GenerationScheduler::wanted_with_drafts(const ScheduledSequence& sequence) const {
  const int64_t more = blocks_for(sequence.length + sequence.drafts) - static_cast<int64_t>(sequence.blocks.size());
  return allocator_.num_free() >= more + running() ? 1 + sequence.drafts : 1;
}

// Whether the block that the next token goes to also belongs to someone else.
bool GenerationScheduler::must_copy(const ScheduledSequence& sequence) const {
  return sequence.cached % limits_.block_size != 0 && allocator_.is_shared(sequence.blocks.back());
}

int64_t GenerationScheduler::tokens_that_fit(const ScheduledSequence& sequence) const {
  const int64_t free = allocator_.num_free() - (must_copy(sequence) ? 1 : 0);
  if (free < 0) return 0;
  return (static_cast<int64_t>(sequence.blocks.size()) + free) * limits_.block_size - sequence.cached;
}

// Gives running sequence `index` blocks for up to `wanted` more tokens; returns for how many. Takes blocks from younger
// sequences only to make at least one token possible.
int64_t GenerationScheduler::reserve(size_t index, int64_t wanted, StepPlan& plan) {
  ScheduledSequence& sequence = *running_[index];
  if (wanted == 0) return 0;
  while (tokens_that_fit(sequence) < 1) {
    if (drop_a_prefix()) continue;
    if (index + 1 == running_.size()) return 0;
    preempt_youngest();
  }
  const int64_t count = std::min(wanted, tokens_that_fit(sequence));
  if (must_copy(sequence)) {
    const int32_t own = allocator_.allocate();
    plan.copies.push_back({.from = sequence.blocks.back(), .to = own});
    allocator_.release(sequence.blocks.back());
    sequence.blocks.back() = own;
  }
  while (static_cast<int64_t>(sequence.blocks.size()) < blocks_for(sequence.cached + count)) {
    sequence.blocks.push_back(allocator_.allocate());
  }
  return count;
}

// Moves the first waiting sequence to the running ones if there is room for it, leaving a block for each running one.
bool GenerationScheduler::admit() {
  if (waiting_.empty() || running() >= limits_.max_sequences) return false;
  ScheduledSequence& sequence = *waiting_.front();
  SharedPrefix* prefix = sequence.prefix.get();
  if (prefix && prefix->leader) return false;  // its prefix is about to be there
  const auto missing_blocks = [&] {
    const int64_t shared = prefix && !prefix->blocks.empty() ? prefix->tokens / limits_.block_size : 0;
    return blocks_for(sequence.length) - shared;
  };
  while (running_.empty() && allocator_.num_free() < missing_blocks() && drop_a_prefix()) {
  }
  if (!running_.empty() && allocator_.num_free() < missing_blocks() + running()) return false;

  if (prefix) {
    if (prefix->blocks.empty()) {
      prefix->leader = &sequence;
    } else {
      sequence.blocks = prefix->blocks;
      sequence.cached = prefix->tokens;
      for (const int32_t block : sequence.blocks) allocator_.share(block);
    }
    if (--prefix->waiting == 0) release_prefix(*prefix);
  }
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

void GenerationScheduler::preempt_youngest() {
  auto sequence = std::move(running_.back());
  running_.pop_back();
  release_blocks(*sequence);
  sequence->cached = 0;
  sequence->drafts = 0;
  if (SharedPrefix* prefix = sequence->prefix.get()) {
    ++prefix->waiting;
    if (prefix->leader == sequence.get()) prefix->leader = nullptr;
  }
  waiting_.push_front(std::move(sequence));
  ++preemptions_;
}

bool GenerationScheduler::drop_a_prefix() {
  if (held_prefixes_.empty()) return false;
  release_prefix(*held_prefixes_.back());
  return true;
}

void GenerationScheduler::release_prefix(SharedPrefix& prefix) {
  for (const int32_t block : prefix.blocks) allocator_.release(block);
  prefix.blocks.clear();
  std::erase(held_prefixes_, &prefix);
}

void GenerationScheduler::release_blocks(ScheduledSequence& sequence) {
  for (const int32_t block : sequence.blocks) allocator_.release(block);
  sequence.blocks.clear();
}

void GenerationScheduler::commit(const StepPlan& plan) {
  for (const StepItem& item : plan.items) {
    ScheduledSequence& sequence = *item.sequence;
    sequence.cached += item.count;
    SharedPrefix* prefix = sequence.prefix.get();
    if (!prefix || prefix->leader != &sequence || sequence.cached < prefix->tokens) continue;
    prefix->leader = nullptr;
    if (prefix->waiting == 0) continue;
    prefix->blocks.assign(sequence.blocks.begin(), sequence.blocks.begin() + blocks_for(prefix->tokens));
    for (const int32_t block : prefix->blocks) allocator_.share(block);
    held_prefixes_.push_back(prefix);
  }
}

void GenerationScheduler::forget_drafts(ScheduledSequence& sequence) {
  sequence.cached = std::min(sequence.cached, sequence.length - 1);
  while (static_cast<int64_t>(sequence.blocks.size()) > blocks_for(sequence.cached)) {
    allocator_.release(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
}

void GenerationScheduler::finish(ScheduledSequence& sequence) {
  const auto it = std::ranges::find(running_, &sequence, [](const auto& running) { return running.get(); });
  core::check(it != running_.end(), "sequence {} is not running", sequence.id);
  release_blocks(sequence);
  running_.erase(it);
}

}  // namespace distill::nn
