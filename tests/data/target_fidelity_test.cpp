// That fidelity says what docs/targets.md defines.
#include "data/target_fidelity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/set_position.h"
#include "data/target_capture.h"
#include "data/target_encoder.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_statistics.h"
#include "data/trace_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

constexpr size_t kVocab = 1000, kHidden = 16;
constexpr uint64_t kPositions = 4000;

// Logits of a random head at random hidden states, of different certainty.
class Head {
 public:
  Head() {
    core::Philox random(5, 0, 0);
    for (float& weight : weights_) weight = static_cast<float>(random.next_normal() / std::sqrt(double{kHidden}));
  }
  std::vector<float> hidden(uint64_t position) const {
    core::Philox random(6, position, 0);
    const double scale = std::exp(1 + 0.5 * random.next_normal());
    std::vector<float> result(kHidden);
    for (float& value : result) value = static_cast<float>(scale * (0.3 + random.next_normal()));
    return result;
  }
  std::vector<float> logits(const std::vector<float>& hidden) const {
    std::vector<float> result(kVocab);
    for (size_t id = 0; id < kVocab; ++id) {
      result[id] = std::inner_product(hidden.begin(), hidden.end(), weights_.begin() + id * kHidden, 0.0f);
    }
    return result;
  }

 private:
  std::vector<float> weights_ = std::vector<float>(kVocab * kHidden);
};

std::vector<double> softmax(const std::vector<float>& logits, double scale) {
  const double greatest = *std::ranges::max_element(logits);
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(scale * (static_cast<double>(logit) - greatest)));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

Fidelity measured(const std::string& targets, uint64_t positions = kPositions) {
  const Head head;
  const TraceProvenance provenance = sample_provenance(targets, kVocab);
  TargetCapture capture(provenance, {"prompt", 0});
  for (uint64_t i = 0; i < positions; ++i) capture.add(head.logits(head.hidden(i)));
  Fidelity fidelity;
  fidelity.add(*capture.finish().fidelity);
  fidelity.finish();
  return fidelity;
}

TEST(Fidelity, OfWholeDistributionsIsPerfect) {
  const Fidelity fidelity = measured("full", 200);
  EXPECT_EQ(fidelity.positions(), 50);
  EXPECT_NEAR(fidelity.divergence(), 0, 1e-6);
  EXPECT_NEAR(fidelity.tail_mass(), 0, 1e-6);
  EXPECT_NEAR(fidelity.calibration_error(), 0, 1e-6);
  EXPECT_NEAR(fidelity.gradient_angle(), 0, 0.1);
  EXPECT_NEAR(fidelity.gradient_norm_ratio(), 1, 1e-4);
}

TEST(Fidelity, CountsTheMassOfTheTail) {
  const Head head;
  double tail = 0;
  for (uint64_t i = 0; i < 400; i += kFidelityStride) {
    auto p = softmax(head.logits(head.hidden(i)), 1);
    std::ranges::sort(p, std::greater<>());
    tail += 1 - std::accumulate(p.begin(), p.begin() + 8, 0.0);
  }
  EXPECT_NEAR(measured("topk:8", 400).tail_mass(), tail / 100, 1e-5);
}

// The gradient of the head's matrix as it is, for a student with half the teacher's logits, beside its sketch.
TEST(Fidelity, EstimatesTheAngleAndTheNormOfTheGradient) {
  for (const char* mode : {"topk:8", "threshold:4", "sampled:8"}) {
    const Head head;
    const TraceProvenance provenance = sample_provenance(mode, kVocab);
    std::vector<double> full(kVocab * kHidden), stored(kVocab * kHidden);
    TargetSampler sampler(provenance.targets, 0, {"prompt", 0});
    for (uint64_t i = 0; i < kPositions; ++i) sampler.add(head.logits(head.hidden(i)));
    sampler.finish();
    for (uint64_t i = 0; i < kPositions; i += kFidelityStride) {
      const auto hidden = head.hidden(i), logits = head.logits(hidden);
      const auto p = softmax(logits, 1), q = softmax(logits, 0.5);
      core::Philox rounding = rounding_draws(0, target_stream({"prompt", 0}), i);
      const StoredPosition position = as_stored(sampler.targets()[i], provenance.targets, rounding);
      std::vector<double> w(kVocab);
      for (size_t j = 0; j < position.ids.size(); ++j) w[position.ids[j]] = position.weights[j];
      const double covered = std::accumulate(w.begin(), w.end(), 0.0);
      for (size_t id = 0; id < kVocab; ++id) {
        for (size_t j = 0; j < kHidden; ++j) {
          full[id * kHidden + j] += hidden[j] * (q[id] - p[id]);
          stored[id * kHidden + j] += hidden[j] * (covered * q[id] - w[id]);
        }
      }
    }
    const auto product = [](const auto& a, const auto& b) {
      return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    };
    const double norms = std::sqrt(product(full, full) * product(stored, stored));
    const double angle = std::acos(product(full, stored) / norms) * 180 / M_PI;
    const Fidelity fidelity = measured(mode);  // one document, and so one batch
    // Eight features of sixteen hidden numbers say this much about them.
    EXPECT_NEAR(fidelity.gradient_angle() / angle, 1, 0.2) << mode << ' ' << angle;
    EXPECT_NEAR(fidelity.gradient_norm_ratio(), std::sqrt(product(stored, stored) / product(full, full)), 0.05) << mode;
  }
}

// By so much the KL divergence of a student from stored targets is too great on average.
TEST(Fidelity, TellsTheBiasOfTheDivergenceFromUnbiasedTargets) {
  const Head head;
  const TraceProvenance provenance = sample_provenance("threshold:4", kVocab);
  double difference = 0;
  for (uint64_t i = 0; i < kPositions; i += kFidelityStride) {
    const auto logits = head.logits(head.hidden(i));
    const auto p = softmax(logits, 1), q = softmax(logits, 0.5);
    core::Philox draws = target_draws(0, target_stream({"prompt", 0}), i);
    SparseTargets out;
    encode_target(logits, provenance.targets, draws, out);
    for (size_t id = 0; id < kVocab; ++id) difference -= p[id] * std::log(p[id] / q[id]);
    for (size_t j = 0; j < out.ids.size(); ++j) {
      difference += out.weights[j] * std::log(static_cast<double>(out.weights[j]) / q[out.ids[j]]);
    }
  }
  EXPECT_NEAR(measured("threshold:4").divergence(), difference * kFidelityStride / kPositions, 0.03);
}

TEST(Fidelity, KeepsItsNumbersAsBytesAndAsJson) {
  const Head head;
  const TraceProvenance provenance = sample_provenance("threshold:4", kVocab);
  TargetCapture capture(provenance, {"p", 0});
  for (uint64_t i = 0; i < 40; ++i) capture.add(head.logits(head.hidden(i)));
  const SparseTargets out = capture.finish();
  const auto bytes = out.fidelity->to_bytes();
  EXPECT_EQ(DocumentFidelity::from_bytes(bytes).to_bytes(), bytes);
  EXPECT_THAT(error_of([&] { DocumentFidelity::from_bytes(std::span(bytes).first(bytes.size() - 1)); }),
              HasSubstr("a fidelity record of"));
  Fidelity fidelity;
  fidelity.add(*out.fidelity);
  fidelity.finish();
  const nlohmann::json json = fidelity.to_json();
  const nlohmann::json again = Fidelity::from_json(json).to_json();
  for (const char* key : {"kl", "tail_mass", "ece", "gradient_angle_deg", "gradient_norm_ratio"}) {
    EXPECT_NEAR(again[key].get<double>(), json[key].get<double>(), 1e-9) << key;
  }
  for (const char* key : {"positions", "kl", "calibration"}) {
    auto damaged = json;
    damaged[key] = "?";
    EXPECT_THAT(error_of([&] { Fidelity::from_json(damaged); }), HasSubstr(key));
  }
}

TEST(Fidelity, IsWeightedByPositionsWhenItIsAddedUp) {
  const Fidelity few = measured("topk:8", 400), many = measured("threshold:8", 1200);
  Fidelity both = few;
  both += many;
  EXPECT_EQ(both.positions(), few.positions() + many.positions());
  EXPECT_NEAR(both.gradient_angle(), (few.gradient_angle() + 3 * many.gradient_angle()) / 4, 1e-9);
  EXPECT_NEAR(both.divergence(), (few.divergence() + 3 * many.divergence()) / 4, 1e-9);
}

TEST(Fidelity, OfASetIsThatOfAllItsShards) {
  const TemporaryFolder folder(TemporaryFolder::memory());
  const TraceProvenance provenance = sample_provenance("threshold:8", 300);
  const auto traces = sample_traces(40, provenance, 30);
  TraceWriter writer(folder.path(), provenance, {.documents_per_shard = 15});
  uint64_t positions = 0;
  for (const Trace& trace : traces) {
    writer.append(trace);
    positions += (trace.targets.positions() + kFidelityStride - 1) / kFidelityStride;
  }
  writer.finish();
  const TraceReader reader = TraceReader::open(folder.path());
  ASSERT_EQ(reader.shards().size(), 3);
  uint64_t sum = 0;
  for (const auto& shard : reader.shards()) sum += shard->fidelity()->positions();
  EXPECT_EQ(sum, positions);
  const nlohmann::json fidelity = measure_traces(reader)["fidelity"];
  EXPECT_EQ(fidelity["positions"], positions);
  EXPECT_GT(fidelity["gradient_angle_deg"], 1);
  EXPECT_GT(fidelity["kl"], 0);
}

}  // namespace
}  // namespace distill::data
