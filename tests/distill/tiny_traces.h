// Traces written by a tiny model, for tests of training.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <filesystem>
#include <memory>
#include <string>

#include "core/philox.h"
#include "data/target_encoder.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"
#include "tests/data/sample_traces.h"
#include "tests/distill/tiny_model.h"

namespace distill {

inline constexpr int64_t kTinyVocab = 40;

// `documents` answers of 12 tokens to prompts of 3, drawn from the teacher's distribution.
inline std::shared_ptr<const data::TraceReader> make_tiny_traces(const std::filesystem::path& folder,
                                                                 TinyModel& teacher, const std::string& targets,
                                                                 int documents) {
  constexpr int kPrompt = 3, kCompletion = 12;
  const data::TraceProvenance provenance = data::sample_provenance(targets, teacher.shape().vocab_size);
  data::TraceWriter writer(folder, provenance);
  const c10::NoGradGuard no_grad;
  for (int d = 0; d < documents; ++d) {
    core::Philox random(1, static_cast<uint64_t>(d), 0);
    data::Trace trace;
    trace.document.key = {"prompt-" + std::to_string(d), 0};
    trace.document.prompt_length = kPrompt;
    std::vector<int32_t>& tokens = trace.document.tokens;
    for (int i = 0; i < kPrompt; ++i) tokens.push_back(static_cast<int32_t>(random.next_below(kTinyVocab)));
    for (int i = 0; i < kCompletion; ++i) {
      const at::Tensor logits =
          teacher.logits(teacher.forward(nn::PackedBatch::from_sequences({tokens})))[-1].contiguous();
      data::encode_target({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())}, provenance.targets,
                          trace.targets);
      const at::Tensor cumulative = at::softmax(logits.to(at::kDouble), -1).cumsum(0);
      const auto drawn = (cumulative < random.next_double()).sum().item<int64_t>();
      tokens.push_back(static_cast<int32_t>(std::min(drawn, teacher.shape().vocab_size - 1)));
    }
    writer.append(trace);
  }
  writer.finish();
  return std::make_shared<const data::TraceReader>(data::TraceReader::open(folder));
}

}  // namespace distill
