#include "data/plain_codec.h"

#include <c10/util/Half.h>

#include <cmath>
#include <numeric>

#include "core/error.h"
#include "data/little_endian.h"
#include "data/trace_record.h"

namespace distill::data {
namespace {

void check_positions(const TraceDocument& document, const SparseTargets& targets) {
  core::check(targets.positions() == static_cast<size_t>(document.completion_length()),
              "{} targets for {} completion tokens", targets.positions(), document.completion_length());
}

// Sum of masses may be off by the rounding of many fp32 weights.
constexpr double kMassTolerance = 1e-3;

void check_distinct_ids(const SparseTargets& targets, int64_t vocab_size) {
  std::vector<uint32_t> seen(static_cast<size_t>(vocab_size));  // the last position, from 1, that had the id
  for (size_t position = 0; position < targets.positions(); ++position) {
    for (const int32_t id : targets[position].ids) {
      core::check(id >= 0 && id < vocab_size, "position {}: id {} is outside the vocabulary of {}", position, id,
                  vocab_size);
      core::check(seen[id] != position + 1, "position {}: id {} appears twice", position, id);
      seen[id] = static_cast<uint32_t>(position + 1);
    }
  }
}

}  // namespace

void check_masses(const SparseTargets& targets) {
  for (size_t position = 0; position < targets.positions(); ++position) {
    double sum = targets.uncovered[position];
    bool valid = targets.uncovered[position] >= 0;
    for (const float weight : targets[position].weights) {
      valid &= weight >= 0;
      sum += weight;
    }
    core::check(valid && std::abs(sum - 1) <= kMassTolerance, "position {}: the weights and the rest sum to {}",
                position, sum);
  }
}

nlohmann::json PlainCodec::description() const {
  return {{"name", kName}, {"version", 1}};
}

// u32 counts [positions], f32 uncovered [positions], u16 or u32 ids [entries], f32 weights [entries].
void PlainCodec::encode(const TraceDocument& document, const SparseTargets& targets,
                        std::vector<std::byte>& out) const {
  check_positions(document, targets);
  check_distinct_ids(targets, vocab_size_);
  check_masses(targets);
  for (size_t i = 0; i < targets.positions(); ++i) append_value(out, static_cast<uint32_t>(targets[i].ids.size()));
  append(out, std::span<const float>(targets.uncovered));
  append_tokens(out, targets.ids, token_bytes(vocab_size_));
  append(out, std::span<const float>(targets.weights));
}

void PlainCodec::decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const {
  const auto positions = static_cast<size_t>(document.completion_length());
  const size_t width = token_bytes(vocab_size_);
  core::check(payload.size() >= 8 * positions, "{} bytes are too few for {} positions", payload.size(), positions);
  out.clear();
  out.offsets.resize(positions + 1);
  uint64_t entries = 0;  // at most 2^24 positions of 2^32 entries: cannot overflow
  for (size_t i = 0; i < positions; ++i) {
    entries += load<uint32_t>(payload.data(), i);
    out.offsets[i + 1] = static_cast<int64_t>(entries);
  }
  const size_t rest = payload.size() - 8 * positions;
  core::check(rest / (width + 4) == entries && rest % (width + 4) == 0, "{} bytes for {} ids and weights", rest,
              entries);
  const std::byte* at = payload.data() + 4 * positions;
  out.uncovered.resize(positions);
  for (size_t i = 0; i < positions; ++i) out.uncovered[i] = load<float>(at, i);
  at += 4 * positions;
  out.ids = load_tokens({at, width * entries}, width);
  at += width * entries;
  out.weights.resize(entries);
  for (size_t i = 0; i < entries; ++i) out.weights[i] = load<float>(at, i);
  check_distinct_ids(out, vocab_size_);
  check_masses(out);
}

TargetCodec::Sizes PlainCodec::sizes(const Trace& trace, std::span<const std::byte>) const {
  const auto entries = static_cast<double>(trace.targets.ids.size());
  return {.ids = entries * static_cast<double>(token_bytes(vocab_size_)),
          .weights = 4 * (entries + static_cast<double>(trace.targets.positions()))};
}

nlohmann::json FullCodec::description() const {
  return {{"name", kName}, {"version", 1}};
}

// f16 log-probabilities [positions, vocabulary].
void FullCodec::encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const {
  check_positions(document, targets);
  check_masses(targets);
  std::vector<c10::Half> row(static_cast<size_t>(vocab_size_));
  for (size_t i = 0; i < targets.positions(); ++i) {
    const TargetDistribution target = targets[i];
    core::check(target.ids.size() == row.size(), "position {}: {} ids of a vocabulary of {}", i, target.ids.size(),
                vocab_size_);
    for (size_t j = 0; j < row.size(); ++j) {
      core::check(target.ids[j] == static_cast<int32_t>(j), "position {}: full targets list every id in order", i);
      row[j] = std::log(target.weights[j]);
    }
    append(out, std::span<const c10::Half>(row));
  }
}

void FullCodec::decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const {
  const auto positions = static_cast<size_t>(document.completion_length()), vocab = static_cast<size_t>(vocab_size_);
  core::check(payload.size() == positions * vocab * sizeof(c10::Half), "{} bytes for {} full distributions of {}",
              payload.size(), positions, vocab);
  out.clear();
  out.ids.resize(positions * vocab);
  out.weights.resize(positions * vocab);
  for (size_t i = 0; i < positions; ++i) {
    float* weights = out.weights.data() + i * vocab;
    std::iota(out.ids.begin() + static_cast<ptrdiff_t>(i * vocab),
              out.ids.begin() + static_cast<ptrdiff_t>((i + 1) * vocab), 0);
    double sum = 0;
    for (size_t j = 0; j < vocab; ++j)
      sum += weights[j] = std::exp(float(load<c10::Half>(payload.data(), i * vocab + j)));
    // Rounding to fp16 changes each probability by up to 0.8 % and the sum by less.
    core::check(std::abs(sum - 1) < 0.05, "position {}: the probabilities sum to {}", i, sum);
    for (size_t j = 0; j < vocab; ++j) weights[j] = static_cast<float>(weights[j] / sum);
    out.offsets.push_back(static_cast<int64_t>((i + 1) * vocab));
    out.uncovered.push_back(0);
  }
}

TargetCodec::Sizes FullCodec::sizes(const Trace&, std::span<const std::byte> payload) const {
  return {.weights = static_cast<double>(payload.size())};
}

}  // namespace distill::data
