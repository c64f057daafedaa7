#include "data/target_capture.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "data/set_position.h"
#include "data/target_encoder.h"
#include "kernels/multiversion.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::data {
namespace {

// The gradient of a head's matrix is a sum of hidden ⊗ (covered · q − w), too large to keep. Its sketch keeps
// kFeatures linear functions of the hidden state and, by random signs, kBuckets sums over the vocabulary: angles and
// ratios of norms come out the same but for a few percent.
constexpr size_t kFeatures = 8, kBuckets = kSketch / kFeatures;

// +1 or -1 as the sign bit of a float.
[[gnu::always_inline]] inline uint32_t sign_of(uint32_t id) {
  uint32_t hash = id * 2654435761u;
  hash ^= hash >> 15;
  hash *= 2246822519u;
  return hash & 0x80000000u;
}

[[gnu::always_inline]] inline float with_sign(float value, uint32_t id) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ sign_of(id));
}

using Buckets = std::array<float, kBuckets>;

DISTILL_MULTIVERSION void sum_signed(const float* values, size_t count, float* buckets) {
  const size_t whole = count / kBuckets * kBuckets;
  for (size_t begin = 0; begin < whole; begin += kBuckets) {
    for (size_t i = 0; i < kBuckets; ++i) {
      buckets[i] += with_sign(values[begin + i], static_cast<uint32_t>(begin + i));
    }
  }
  for (size_t i = whole; i < count; ++i) buckets[i - whole] += with_sign(values[i], static_cast<uint32_t>(i));
}

// softmax(logits * scale)
struct Softmax {
  std::vector<float> mass;
  double sum = 0;
  Softmax(std::span<const float> logits, float maximum, double scale) : mass(logits.size()) {
    std::vector<float> sums(kernels::row_chunks(logits.size()));
    kernels::row_exponentials(logits, maximum, static_cast<float>(scale), mass, sums);
    for (const float part : sums) sum += static_cast<double>(part);
  }
  double operator[](int32_t id) const { return static_cast<double>(mass[id]) / sum; }
  Buckets buckets() const {
    Buckets result{};
    sum_signed(mass.data(), mass.size(), result.data());
    for (float& value : result) value = static_cast<float>(static_cast<double>(value) / sum);
    return result;
  }
};

// Logits are linear in the hidden state; so are a few of them, less their mean.
std::array<double, kFeatures> features(std::span<const float> logits) {
  std::array<double, kFeatures> result{};
  double mean = 0;
  for (size_t i = 0; i < kFeatures; ++i) {
    const double logit = static_cast<double>(logits[(2 * i + 1) * logits.size() / (2 * kFeatures)]);
    result[i] = std::isfinite(logit) ? logit : 0;
    mean += result[i] / kFeatures;
  }
  for (double& feature : result) feature -= mean;
  return result;
}

void measure(std::span<const float> logits, const TargetSpec& spec, const StoredPosition& stored,
             DocumentFidelity& fidelity) {
  const float maximum = *std::ranges::max_element(logits);
  const Softmax teacher(logits, maximum, 1 / spec.temperature), student(logits, maximum, 0.5 / spec.temperature);
  const auto q = student.buckets(), p = teacher.buckets();
  Buckets w{};
  double covered = 0, kept = 0;
  size_t heaviest = 0;
  for (size_t i = 0; i < stored.ids.size(); ++i) {
    const int32_t id = stored.ids[i];
    const double weight = stored.weights[i], probability = teacher[id];
    w[static_cast<size_t>(id) % kBuckets] += with_sign(static_cast<float>(weight), static_cast<uint32_t>(id));
    covered += weight;
    kept += probability;
    if (weight > 0 && probability > 0) fidelity.divergence += weight * std::log(weight / probability);
    if (weight > stored.weights[heaviest]) heaviest = i;
  }
  const double left = std::max(0.0, 1 - kept);
  if (stored.uncovered > 0 && left > 0) fidelity.divergence += stored.uncovered * std::log(stored.uncovered / left);
  fidelity.tail_mass += left;
  ++fidelity.positions;
  if (!stored.ids.empty()) {
    const double weight = stored.weights[heaviest];
    auto& bin = fidelity.bins[std::min(kCalibrationBins - 1, static_cast<size_t>(weight * kCalibrationBins))];
    ++bin.count;
    bin.weight += weight;
    bin.probability += teacher[stored.ids[heaviest]];
  }
  fidelity.full.resize(kSketch);
  fidelity.stored.resize(kSketch);
  const auto hidden = features(logits);
  for (size_t feature = 0; feature < kFeatures; ++feature) {
    for (size_t i = 0; i < kBuckets; ++i) {
      const auto teacher_part = static_cast<double>(q[i]) - static_cast<double>(p[i]);
      const auto stored_part = covered * static_cast<double>(q[i]) - static_cast<double>(w[i]);
      fidelity.full[feature * kBuckets + i] += static_cast<float>(hidden[feature] * teacher_part);
      fidelity.stored[feature * kBuckets + i] += static_cast<float>(hidden[feature] * stored_part);
    }
  }
}

}  // namespace

void capture_target(std::span<const float> logits, const TraceProvenance& provenance, const TraceKey& key,
                    uint64_t position, SparseTargets& out) {
  core::Philox draws = target_draws(provenance.sampling.seed, key, position);
  encode_target(logits, provenance.targets, draws, out);
  if (position % kFidelityStride != 0) return;
  core::Philox rounding = rounding_draws(provenance.sampling.seed, target_stream(key), position);
  const StoredPosition stored = as_stored(out[out.positions() - 1], provenance.targets, rounding);
  if (!out.fidelity) out.fidelity.emplace();
  measure(logits, provenance.targets, stored, *out.fidelity);
}

}  // namespace distill::data
