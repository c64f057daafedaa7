// A whole model on disk, tokenizer included, as a teacher or a student comes.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/atomic_file.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"
#include "data/trace_writer.h"
#include "student/dense_config.h"
#include "student/dense_model.h"
#include "tests/data/sample_traces.h"

namespace distill {

// Of the qwen2 family's tokenizer among the tokenizers' test data.
inline std::filesystem::path tokenizer_json() {
  return std::filesystem::path(DISTILL_TEST_DATA).parent_path().parent_path() / "data/testdata/tokenizers/qwen2.json";
}

inline nlohmann::json tiny_config(int64_t vocab_size, int64_t layers = 2) {
  return {{"model_type", "llama"},    {"vocab_size", vocab_size},      {"hidden_size", 32},
          {"intermediate_size", 48},  {"num_hidden_layers", layers},   {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"max_position_embeddings", 64}, {"tie_word_embeddings", true}};
}

inline int64_t tiny_vocab() {
  return data::Tokenizer::from_json_file(tokenizer_json())->vocab_size();
}

// Random weights; returns `folder`.
inline std::filesystem::path write_model_folder(const std::filesystem::path& folder, uint64_t seed = 1) {
  std::filesystem::create_directories(folder);
  nlohmann::json config = tiny_config(tiny_vocab());
  const auto model = student::make_dense_model(config, {.compute = at::kFloat, .trainable = true}, seed);
  data::write_safetensors(folder / "model.safetensors", model->parameters());
  config["eos_token_id"] = 3;
  core::write_file_atomically(folder / "config.json", config.dump());
  std::filesystem::copy_file(tokenizer_json(), folder / "tokenizer.json");
  core::write_file_atomically(folder / "generation_config.json", R"({"eos_token_id": 3})");
  return folder;
}

// Traces that name the model in `teacher` as theirs; their contents are random.
inline std::filesystem::path write_traces_of(const std::filesystem::path& folder, const std::filesystem::path& teacher,
                                             int documents = 20) {
  data::TraceProvenance provenance = data::sample_provenance("topk:4", tiny_vocab());
  provenance.teacher = teacher.string();
  provenance.tokenizer = data::Tokenizer::from_json_file(tokenizer_json())->fingerprint();
  data::TraceWriter writer(folder, provenance);
  for (const auto& trace : data::sample_traces(static_cast<size_t>(documents), provenance)) writer.append(trace);
  writer.finish();
  return folder;
}

}  // namespace distill
