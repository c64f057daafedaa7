#include "nn/step_batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace distill::nn {

StepBatch assemble_step(const StepPlan& plan, int64_t block_size,
                        const std::function<std::span<const int32_t>(const ScheduledSequence&)>& tokens_of) {
  const auto sequences = static_cast<int64_t>(plan.items.size());
  int64_t tokens = 0;
  size_t most_blocks = 0;
  for (const StepItem& item : plan.items) {
    tokens += item.count;
    most_blocks = std::max(most_blocks, item.sequence->blocks.size());
  }
  StepBatch batch{
      .tokens = {.tokens = at::empty({tokens}, at::kLong),
                 .positions = at::empty({tokens}, at::kLong),
                 .sequence_offsets = at::empty({sequences + 1}, at::kInt)},
      .slots = {.slots = at::empty({tokens}, at::kLong),
                .block_table = at::zeros({sequences, static_cast<int64_t>(most_blocks)}, at::kInt),
                .context_lengths = at::empty({sequences}, at::kInt)},
      .last_rows = {},
  };
  auto* token = batch.tokens.tokens.mutable_data_ptr<int64_t>();
  auto* position = batch.tokens.positions.mutable_data_ptr<int64_t>();
  auto* offset = batch.tokens.sequence_offsets.mutable_data_ptr<int32_t>();
  auto* slot = batch.slots.slots.mutable_data_ptr<int64_t>();
  auto* table = batch.slots.block_table.mutable_data_ptr<int32_t>();
  auto* context = batch.slots.context_lengths.mutable_data_ptr<int32_t>();
  std::vector<int64_t> last_rows;
  int64_t row = 0;
  *offset++ = 0;
  for (const StepItem& item : plan.items) {
    const ScheduledSequence& sequence = *item.sequence;
    const auto ids = tokens_of(sequence);
    for (int64_t p = item.begin; p < item.begin + item.count; ++p, ++row) {
      token[row] = ids[static_cast<size_t>(p)];
      position[row] = p;
      slot[row] = sequence.blocks[static_cast<size_t>(p / block_size)] * block_size + p % block_size;
    }
    if (item.reaches_end()) {
      for (int64_t last = row - std::min(item.count, 1 + item.drafts()); last < row; ++last) last_rows.push_back(last);
    }
    *offset++ = static_cast<int32_t>(row);
    *context++ = static_cast<int32_t>(item.begin + item.count);
    std::ranges::copy(sequence.blocks, table);
    table += most_blocks;
  }
  batch.last_rows = at::tensor(last_rows, at::kLong);
  return batch;
}

}  // namespace distill::nn
