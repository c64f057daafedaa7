// Writes what `distill logits` does not show of a DeepSeek model, for tests/parity/deepseek_parity.py, in fp32:
// "routing.<sequence>.<layer>" [tokens, experts per token] int32, which experts each token goes to, layers counted
// among those with experts, and "draft.<sequence>.<module>" [tokens - 1 - module, vocab], the logits of prediction
// modules. Usage: dump_deepseek MODEL TOKENS.jsonl OUT.safetensors
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>

#include "core/error.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"
#include "distill/token_logits.h"
#include "teacher/deepseek_model.h"

namespace {

using distill::nn::PackedBatch;
using distill::teacher::DeepseekModel;

// Each module's logits, given what the model or the module before gives for the tokens before.
std::vector<at::Tensor> drafts(DeepseekModel& model, const std::vector<int32_t>& tokens) {
  std::vector<at::Tensor> logits;
  at::Tensor hidden = model.forward(PackedBatch::from_sequences({tokens}));
  const auto length = static_cast<int64_t>(tokens.size());
  for (int64_t depth = 0; depth < model.mtp_depth() && depth + 1 < length; ++depth) {
    const std::vector<int32_t> next(tokens.begin() + depth + 1, tokens.end());
    hidden = model.mtp_forward(depth, PackedBatch::from_sequences({next}), hidden.narrow(0, 0, length - depth - 1),
                               nullptr, nullptr);
    logits.push_back(model.mtp_logits(depth, hidden));
  }
  return logits;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: dump_deepseek MODEL TOKENS.jsonl OUT.safetensors\n");
    return 2;
  }
  try {
    const auto model =
        distill::teacher::load_deepseek_model(distill::data::ModelFiles::open(argv[1]), {.compute = at::kFloat});
    auto& deepseek = dynamic_cast<DeepseekModel&>(*model);
    distill::data::NamedTensors tensors;
    const auto sequences = distill::read_token_lines(argv[2], model->shape().vocab_size);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto layers = deepseek.routings(PackedBatch::from_sequences({sequences[i]}));
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        tensors.emplace_back(fmt::format("routing.{}.{}", i, layer), layers[layer].experts);
      }
      const auto logits = drafts(deepseek, sequences[i]);
      for (size_t depth = 0; depth < logits.size(); ++depth) {
        tensors.emplace_back(fmt::format("draft.{}.{}", i, depth), logits[depth]);
      }
    }
    distill::data::write_safetensors(argv[3], tensors);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_deepseek: %s\n", error.what());
    return 1;
  }
}
