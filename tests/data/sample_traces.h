// Small traces with random but reproducible contents.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/philox.h"
#include "data/set_codec.h"
#include "data/target_capture.h"
#include "data/trace.h"

namespace distill::data {

inline TraceProvenance sample_provenance(const std::string& targets = "topk:4", int64_t vocab_size = 50) {
  TraceProvenance result;
  result.teacher = "teacher.gguf";
  result.weights = std::string(64, '1');
  result.config = std::string(64, '2');
  result.tokenizer = std::string(64, '3');
  result.chat_template = std::string(64, '4');
  result.vocab_size = vocab_size;
  result.targets = TargetSpec::parse(targets);
  result.command = "distill generate";
  result.version = "0.1.0";
  return result;
}

// The same with hidden states of three layers.
inline TraceProvenance with_hidden_states(TraceProvenance provenance, HiddenType type = HiddenType::kBf16,
                                          int64_t width = 5) {
  provenance.hidden_states = HiddenStatesSpec{.layers = {0, 2, 3}, .last_layer = 3, .width = width, .type = type};
  return provenance;
}

// A prompt of 1 to 8 tokens and a completion of 1 to `max_completion`, with the targets of random logits and, where the
// provenance has any, random hidden states.
inline Trace sample_trace(const std::string& prompt_id, uint32_t sample, const TraceProvenance& provenance,
                          uint32_t max_completion = 12) {
  core::Philox random(7, core::stream_id(prompt_id, sample), 0);
  const auto vocab = static_cast<uint32_t>(provenance.vocab_size);
  Trace trace;
  TraceDocument& document = trace.document;
  document.key = {prompt_id, sample};
  document.prompt_length = static_cast<int32_t>(1 + random.next_below(8));
  document.finish_reason = random.next_below(2) == 0 ? FinishReason::kStop : FinishReason::kLength;
  document.verdict = static_cast<Verdict>(random.next_below(3));
  document.log_probability = -10 * random.next_double();
  document.seed = random.next_uint32();
  const uint32_t completion = 1 + random.next_below(max_completion);
  for (uint32_t i = 0; i < document.prompt_length + completion; ++i) {
    document.tokens.push_back(static_cast<int32_t>(random.next_below(vocab)));
  }
  std::vector<float> logits(vocab);
  TargetCapture capture(provenance, document.key);
  for (uint32_t i = 0; i < completion; ++i) {
    for (float& logit : logits) logit = static_cast<float>(3 * random.next_normal());
    capture.add(logits);
  }
  trace.targets = capture.finish();
  if (const auto& hidden = provenance.hidden_states) {
    std::vector<float> states(hidden->layers.size() * static_cast<size_t>(hidden->width));
    for (uint32_t i = 0; i < completion; ++i) {
      for (float& state : states) state = static_cast<float>(3 * random.next_normal());
      hidden->encode(states, trace.hidden_states);
    }
  }
  return trace;
}

inline std::vector<Trace> sample_traces(size_t count, const TraceProvenance& provenance, uint32_t max_completion = 12) {
  std::vector<Trace> traces;
  for (size_t i = 0; i < count; ++i) {
    traces.push_back(sample_trace("prompt-" + std::to_string(i / 2), i % 2, provenance, max_completion));
  }
  return traces;
}

// The codec of a shard with these traces.
inline std::unique_ptr<const TargetCodec> trained_codec(const std::vector<Trace>& traces,
                                                        const TraceProvenance& provenance) {
  SetCodecTrainer trainer(provenance);
  for (const Trace& trace : traces) trainer.count_ids(trace.document, trace.targets);
  for (const Trace& trace : traces) trainer.count_symbols(trace.document, trace.targets);
  return trainer.finish();
}

}  // namespace distill::data
