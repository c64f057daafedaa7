// Writes which experts each token goes to, for tests/parity/deepseek_parity.py: tensor "<sequence>.<layer>"
// [tokens, experts per token] int32, layers counted among those with experts; fp32.
// Usage: dump_routings MODEL TOKENS.jsonl OUT.safetensors
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>

#include "core/error.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"
#include "distill/token_logits.h"
#include "teacher/deepseek_model.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: dump_routings MODEL TOKENS.jsonl OUT.safetensors\n");
    return 2;
  }
  try {
    const auto model =
        distill::teacher::load_deepseek_model(distill::data::ModelFiles::open(argv[1]), {.compute = at::kFloat});
    auto& deepseek = dynamic_cast<distill::teacher::DeepseekModel&>(*model);
    distill::data::NamedTensors routings;
    const auto sequences = distill::read_token_lines(argv[2], model->shape().vocab_size);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto layers = deepseek.routings(distill::nn::PackedBatch::from_sequences({sequences[i]}));
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        routings.emplace_back(fmt::format("{}.{}", i, layer), layers[layer].experts);
      }
    }
    distill::data::write_safetensors(argv[3], routings);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_routings: %s\n", error.what());
    return 1;
  }
}
