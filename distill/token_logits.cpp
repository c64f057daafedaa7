#include "distill/token_logits.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/interrupt.h"
#include "core/progress.h"
#include "core/text_file.h"
#include "data/safetensors_writer.h"

namespace distill {
namespace {

constexpr int64_t kBlockSize = 16;

std::vector<int32_t> parse_ids(const nlohmann::json& line, int64_t vocab_size) {
  core::check(line.is_array(), "expected an array of token ids, found {}", line.type_name());
  std::vector<int32_t> ids;
  for (const auto& id : line) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) {
      core::fail("entry {}: {} is not a token id of this model, an integer from 0 to {}", ids.size(), id.dump(),
                 vocab_size - 1);
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

at::Tensor incremental_logits(nn::CausalLM& model, const std::vector<int32_t>& tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  const int64_t blocks = (length + kBlockSize - 1) / kBlockSize;
  const auto cache = model.make_cache(blocks, kBlockSize);
  const at::Tensor block_table = at::arange(blocks, at::kInt).unsqueeze(0);
  const at::Tensor result = at::empty({length, model.shape().vocab_size}, at::kFloat);
  for (int64_t t = 0; t < length; ++t) {
    const at::Tensor position = at::full({1}, t, at::kLong);
    const nn::PackedBatch batch{.tokens = at::full({1}, tokens[static_cast<size_t>(t)], at::kLong),
                                .positions = position,
                                .sequence_offsets = at::tensor({0, 1}, at::kInt)};
    const nn::CacheSlots slots{
        .slots = position, .block_table = block_table, .context_lengths = at::full({1}, t + 1, at::kInt)};
    result[t].copy_(model.logits(model.forward(batch, *cache, slots))[0]);
  }
  return result;
}

}  // namespace

std::vector<std::vector<int32_t>> read_token_lines(const std::filesystem::path& path, int64_t vocab_size) {
  std::vector<std::vector<int32_t>> sequences;
  core::for_each_json_line(path, [&](size_t number, nlohmann::json&& line) {
    // Tensors are numbered by line, so a blank line in between would shift them.
    core::check(number == sequences.size() + 1, "the line before is blank");
    sequences.push_back(parse_ids(line, vocab_size));
  });
  return sequences;
}

at::Tensor sequence_logits(nn::CausalLM& model, const std::vector<int32_t>& tokens, ScoringMode mode) {
  if (tokens.empty()) return at::empty({0, model.shape().vocab_size}, at::kFloat);
  if (mode == ScoringMode::kIncremental) return incremental_logits(model, tokens);
  return model.logits(model.forward(nn::PackedBatch::from_sequences({tokens})));
}

void write_token_logits(nn::CausalLM& model, const std::vector<std::vector<int32_t>>& sequences, ScoringMode mode,
                        const std::filesystem::path& out) {
  std::vector<data::SafetensorsWriter::Declaration> declarations;
  for (size_t i = 0; i < sequences.size(); ++i) {
    declarations.push_back({.name = std::to_string(i),
                            .type = at::kFloat,
                            .shape = {static_cast<int64_t>(sequences[i].size()), model.shape().vocab_size}});
  }
  data::SafetensorsWriter writer(out, std::move(declarations));
  core::Progress progress("logits", sequences.size(), "sequences");
  for (size_t i = 0; i < sequences.size(); ++i) {
    core::check(!core::interrupt_requested(), "stopped before sequence {} of {}; {} was not written", i,
                sequences.size(), out.string());
    writer.write(sequence_logits(model, sequences[i], mode));
    progress.advance();
  }
  writer.commit();
}

}  // namespace distill
