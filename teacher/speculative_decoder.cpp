#include "teacher/speculative_decoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "core/error.h"
#include "core/philox.h"

namespace distill::teacher {
namespace {

constexpr int64_t kBlockSize = 32;

void check_options(const SpeculativeOptions& options) {
  options.sampling.validate();
  if (options.drafts < 0 || options.drafts > 64) core::fail_usage("drafts: {} is not between 0 and 64", options.drafts);
  if (options.max_new_tokens < 1) core::fail_usage("max_new_tokens: {} is not positive", options.max_new_tokens);
}

}  // namespace

double SpeculativeStatistics::acceptance(size_t position) const {
  const auto count = static_cast<double>(drafted.at(position));
  return count > 0 ? static_cast<double>(accepted[position]) / count : 0;
}

// One answer under way. Positions [0, known) of the model's cache hold what the model has seen; `tokens` are prompt and
// answer, the last of which the model has not seen yet.
struct SpeculativeDecoder::Sequence {
  std::unique_ptr<nn::KvCache> cache;
  at::Tensor block_table;  // [1, blocks]
  std::vector<int32_t> tokens;
  int64_t prompt_length = 0;
  int64_t module_known = 0;       // positions of the module's cache that are not drafts
  at::Tensor unread_hidden = {};  // [count, hidden] of positions module_known on, which the module has not read

  nn::CacheSlots slots(int64_t position, int64_t count) const {
    return {.slots = at::arange(position, position + count, at::kLong),
            .block_table = block_table,
            .context_lengths = at::full({1}, position + count, at::kInt)};
  }
  static nn::PackedBatch batch(std::span<const int32_t> tokens, int64_t position) {
    const auto count = static_cast<int64_t>(tokens.size());
    at::Tensor ids = at::empty({count}, at::kLong);
    std::ranges::copy(tokens, ids.mutable_data_ptr<int64_t>());
    return {.tokens = ids,
            .positions = at::arange(position, position + count, at::kLong),
            .sequence_offsets = at::tensor({0, static_cast<int32_t>(count)}, at::kInt)};
  }
};

at::Tensor SpeculativeDecoder::run_model(Sequence& sequence, const std::vector<int32_t>& tokens, int64_t position) {
  ++statistics_.passes;
  return model_.forward(Sequence::batch(tokens, position), *sequence.cache,
                        sequence.slots(position, static_cast<int64_t>(tokens.size())));
}

int32_t SpeculativeDecoder::draw(const at::Tensor& logits, const SpeculativeOptions& options, int64_t index) {
  const std::span<const float> row(logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel()));
  return sampler_
      .draw(row, options.sampling, core::Philox(options.seed, options.document, static_cast<uint64_t>(index)))
      .token;
}

std::vector<int32_t> SpeculativeDecoder::draft(Sequence& sequence, const SpeculativeOptions& options, int64_t count) {
  std::vector<int32_t> drafts;
  // First what the module has not read: each hidden state with the token that follows it.
  int64_t position = sequence.module_known;
  std::vector<int32_t> following(sequence.tokens.begin() + position + 1, sequence.tokens.end());
  at::Tensor hidden = sequence.unread_hidden;
  while (static_cast<int64_t>(drafts.size()) < count) {
    const auto rows = static_cast<int64_t>(following.size());
    const nn::CacheSlots slots = sequence.slots(position, rows);
    hidden = model_.mtp_forward(0, Sequence::batch(following, position), hidden, sequence.cache.get(), &slots)
                 .narrow(0, rows - 1, 1);
    position += rows;
    const int64_t index = static_cast<int64_t>(sequence.tokens.size() + drafts.size()) - sequence.prompt_length;
    drafts.push_back(draw(model_.mtp_logits(0, hidden)[0], options, index));
    following = {drafts.back()};
  }
  if (count > 0) {
    sequence.module_known = static_cast<int64_t>(sequence.tokens.size()) - 1;
    sequence.unread_hidden = at::Tensor();
  }
  return drafts;
}

std::vector<int32_t> SpeculativeDecoder::generate(const std::vector<int32_t>& prompt,
                                                  const SpeculativeOptions& options) {
  check_options(options);
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t most = length + options.max_new_tokens;
  core::check(length > 0, "a prompt has no tokens");
  core::check(most <= model_.shape().max_positions, "{} prompt tokens and {} new ones exceed the model's context of {}",
              length, options.max_new_tokens, model_.shape().max_positions);
  core::check(options.drafts == 0 || model_.mtp_depth() > 0,
              "the checkpoint has no multi-token-prediction module to draft with; decode with 0 drafts");
  statistics_.drafted.resize(std::max(statistics_.drafted.size(), static_cast<size_t>(options.drafts)));
  statistics_.accepted.resize(statistics_.drafted.size());

  const int64_t blocks = (most + kBlockSize - 1) / kBlockSize;
  Sequence sequence{.cache = model_.make_cache(blocks, kBlockSize),
                    .block_table = at::arange(blocks, at::kInt).unsqueeze(0),
                    .tokens = prompt,
                    .prompt_length = length};
  // Adds a token; true if it ends the answer.
  const auto add = [&](int32_t token) {
    sequence.tokens.push_back(token);
    return static_cast<int64_t>(sequence.tokens.size()) == most ||
           std::ranges::find(options.stop_tokens, token) != options.stop_tokens.end();
  };

  sequence.unread_hidden = run_model(sequence, prompt, 0);
  bool done = add(draw(model_.logits(sequence.unread_hidden.narrow(0, length - 1, 1))[0], options, 0));
  while (!done) {
    const auto position = static_cast<int64_t>(sequence.tokens.size()) - 1;  // of the token the model has not seen
    // The pass itself gives one token more than the drafts it accepts.
    const std::vector<int32_t> drafts = draft(sequence, options, std::min(options.drafts, most - position - 2));
    std::vector<int32_t> unseen{sequence.tokens.back()};
    unseen.insert(unseen.end(), drafts.begin(), drafts.end());
    const at::Tensor hidden = run_model(sequence, unseen, position);
    const at::Tensor logits = model_.logits(hidden);
    size_t kept = 0;
    for (bool agreed = true; agreed && !done; ++kept) {
      const int32_t token =
          draw(logits[static_cast<int64_t>(kept)], options, position + 1 + static_cast<int64_t>(kept) - length);
      agreed = kept < drafts.size() && token == drafts[kept];
      if (agreed) ++statistics_.accepted[kept];
      done = add(token);
    }
    for (size_t i = 0; i < drafts.size(); ++i) ++statistics_.drafted[i];
    if (options.drafts == 0) continue;
    const at::Tensor seen = hidden.narrow(0, 0, static_cast<int64_t>(kept));
    sequence.unread_hidden = sequence.unread_hidden.defined() ? at::cat({sequence.unread_hidden, seen}) : seen;
  }
  return {sequence.tokens.begin() + length, sequence.tokens.end()};
}

}  // namespace distill::teacher
