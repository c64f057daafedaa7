#include "data/target_capture.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "data/set_position.h"
#include "data/target_encoder.h"
#include "kernels/multiversion.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::data {
namespace {

constexpr size_t kFeatures = TargetCapture::kFeatures, kBuckets = TargetCapture::kBuckets;

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
  std::array<float, kBuckets> buckets() const {
    std::array<float, kBuckets> result{};
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

// sketch += hidden ⊗ (a - b)
void add_product(std::span<const double> hidden, std::span<const float> a, std::span<const float> b,
                 std::vector<float>& sketch) {
  sketch.resize(kSketch);
  for (size_t feature = 0; feature < kFeatures; ++feature) {
    for (size_t i = 0; i < kBuckets; ++i) {
      const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
      sketch[feature * kBuckets + i] += static_cast<float>(hidden[feature] * difference);
    }
  }
}

}  // namespace

TargetCapture::TargetCapture(const TraceProvenance& provenance, const TraceKey& key)
    : provenance_(provenance),
      stream_(target_stream(key)),
      sampler_(provenance.targets, provenance.sampling.seed, key) {}

void TargetCapture::add(std::span<const float> logits) {
  sampler_.add(logits);
  if (positions_++ % kFidelityStride == 0) {
    const double scale = 1 / provenance_.targets.temperature;
    const float maximum = *std::ranges::max_element(logits);
    const Softmax teacher(logits, maximum, scale), student(logits, maximum, 0.5 * scale);
    Measured measured{.position = positions_ - 1, .hidden = features(logits), .student = student.buckets(), .kept = {}};
    for (const int32_t id : sampler_.candidates()) measured.kept.emplace_back(id, teacher[id]);
    std::ranges::sort(measured.kept);
    add_product(measured.hidden, measured.student, teacher.buckets(), fidelity_.full);
    open_.push_back(std::move(measured));
  }
  measure_decided();
}

SparseTargets TargetCapture::finish() {
  sampler_.finish();
  measure_decided();
  SparseTargets targets = std::move(sampler_.targets());
  if (fidelity_.positions > 0) targets.fidelity = std::move(fidelity_);
  return targets;
}

void TargetCapture::measure_decided() {
  for (; !open_.empty() && open_.front().position < sampler_.targets().positions(); open_.pop_front()) {
    measure(open_.front());
  }
}

void TargetCapture::measure(const Measured& whole) {
  core::Philox rounding = rounding_draws(provenance_.sampling.seed, stream_, whole.position);
  const StoredPosition stored = as_stored(sampler_.targets()[whole.position], provenance_.targets, rounding);
  const auto probability_of = [&](int32_t id) {
    const auto found = std::ranges::lower_bound(whole.kept, id, {}, &std::pair<int32_t, double>::first);
    return found->second;
  };
  std::array<float, kBuckets> w{}, q = whole.student;
  double covered = 0, kept = 0;
  size_t heaviest = 0;
  for (size_t i = 0; i < stored.ids.size(); ++i) {
    const int32_t id = stored.ids[i];
    const double weight = stored.weights[i], probability = probability_of(id);
    w[static_cast<size_t>(id) % kBuckets] += with_sign(static_cast<float>(weight), static_cast<uint32_t>(id));
    covered += weight;
    kept += probability;
    if (weight > 0 && probability > 0) fidelity_.divergence += weight * std::log(weight / probability);
    if (weight > stored.weights[heaviest]) heaviest = i;
  }
  const double left = std::max(0.0, 1 - kept);
  if (stored.uncovered > 0 && left > 0) fidelity_.divergence += stored.uncovered * std::log(stored.uncovered / left);
  fidelity_.tail_mass += left;
  ++fidelity_.positions;
  if (!stored.ids.empty()) {
    const double weight = stored.weights[heaviest];
    auto& bin = fidelity_.bins[std::min(kCalibrationBins - 1, static_cast<size_t>(weight * kCalibrationBins))];
    ++bin.count;
    bin.weight += weight;
    bin.probability += probability_of(stored.ids[heaviest]);
  }
  for (float& value : q) value = static_cast<float>(covered * static_cast<double>(value));
  add_product(whole.hidden, q, w, fidelity_.stored);
}

}  // namespace distill::data
